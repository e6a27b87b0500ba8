"""Arms that begin with the checkpoints of earlier arms: which, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sparse_transfer import config, expansion, experiment_file, lineage, plan, preflight
from sparse_transfer.errors import UserError
from sparse_transfer.model_source import resolve

NET = {"name": "resnet20_cifar", "label": "net", "weights": "random"}
UPSTREAM = {"task": {"name": "shapes"}, "preprocess": {"image_size": 32}}


def study(*more: dict[str, Any], **second: Any) -> config.Experiment:
    arms = [
        {
            "name": "first",
            "upstream": {"models": [NET], **UPSTREAM},
            "recipe": {"steps": 4},
            "prune": {"methods": ["gmp"], "sparsities": [0.5, 0.8], "seeds": [0, 1]},
        },
        {
            "name": "second",
            "upstream": {
                "models": [{"name": "checkpoint:first/dense", "label": "net"}],
                **UPSTREAM,
            },
            "recipe": {"steps": 4},
            "prune": {
                "methods": [
                    "fggp",
                    {
                        "name": "given",
                        "label": "held",
                        "model": {"name": "checkpoint:first/gmp", "label": "net"},
                    },
                ],
                "sparsities": [0.5, 0.8],
                "seeds": [0, 1],
                **second,
            },
        },
    ]
    return experiment_file.build({"name": "made", "arms": [*arms, *more]})


def made(of: config.Experiment) -> plan.Plan:
    return expansion.make(of, lambda ref: "hash")


def runs(of: plan.Plan, arm: str, method: str) -> list[plan.Run]:
    return [run for run in of.arms[arm] if run.subject.method == method]


def test_a_row_begins_where_the_same_seed_and_sparsity_ended():
    of = made(study())
    for run in of.arms["second"]:
        parent = run.parents["model"]
        assert parent in of.arms["first"]
        assert parent.subject.seed == run.subject.seed
        held = run.subject.method == "held"
        assert parent.subject.method == ("gmp" if held else "dense")
        assert parent.subject.sparsity == (run.subject.sparsity if held else 0)


def test_its_identity_follows_what_it_begins_with():
    before = {run.id for run in made(study()).arms["second"]}
    other = study()
    first = other.arms[0].model_copy(update={"recipe": config.Recipe(steps=5)})
    after = made(other.model_copy(update={"arms": (first, other.arms[1])}))
    assert not before & {run.id for run in after.arms["second"]}


def test_arms_that_begin_with_nothing_keep_their_identities():
    assert not any("model" in run.parents for run in made(study()).arms["first"])


def test_a_chain_goes_back_to_the_first_model():
    third = {
        "name": "third",
        "upstream": {
            "models": [{"name": "checkpoint:second/held", "label": "net"}],
            **UPSTREAM,
        },
        "recipe": {"steps": 4},
        "prune": {"dense": False, "methods": ["gmp"], "sparsities": [0.8], "seeds": [1]},
    }
    of = study(third)
    (run,) = made(of).arms["third"]
    assert run.parents["model"].subject.sparsity == 0.8
    assert plan.origin(run).name == "resnet20_cifar"
    models = [arm.upstream.models[0] for arm in lineage.with_origins(of).arms]
    assert [(model.name, model.weights, model.title) for model in models] == [
        ("resnet20_cifar", "random", "net")
    ] * 3


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("checkpoint:frist/dense", "first"),
        ("checkpoint:first/gpm", "gmp"),
        ("checkpoint:second/dense", "first"),  # itself is no earlier arm
    ],
)
def test_a_checkpoint_that_no_earlier_arm_makes_is_said(name: str, said: str):
    of = study(methods=[{"name": "fggp", "model": {"name": name}}])
    with pytest.raises(UserError, match=said):
        lineage.with_origins(of)
    (missing,) = made(of).unavailable
    assert said in str(missing.error)


def test_a_dense_row_does_not_begin_with_a_pruned_model():
    spoiled = {"name": "dense", "label": "d", "model": {"name": "checkpoint:first/gmp"}}
    with pytest.raises(UserError, match="names no checkpoint of seed 0"):
        made(study(methods=["fggp", spoiled], sparsities=[0.5]))


def test_seeds_that_were_not_made_are_said():
    with pytest.raises(UserError, match=r"of seed 2(?s:.*)same seeds"):
        made(study(seeds=[2]))


def test_outside_an_experiment_the_name_means_nothing():
    with pytest.raises(UserError, match="earlier arm of the same experiment"):
        resolve(config.ModelSpec(name="checkpoint:first/dense"))


def test_what_was_trained_before_may_be_the_teacher(tmp_path: Path):
    """The classifier of an earlier arm's checkpoint knows the task; random weights do not."""
    of = study()
    taught = config.Recipe(steps=4, distillation=config.Distillation())
    arms = [arm.model_copy(update={"recipe": taught}) for arm in of.arms]
    second_alone = of.model_copy(update={"arms": (of.arms[0], arms[1])})
    assert not [p for p in preflight.check(second_alone, None, tmp_path) if "teacher" in str(p[1])]
    both = of.model_copy(update={"arms": tuple(arms)})
    found = [
        where for where, error in preflight.check(both, None, tmp_path) if "teacher" in str(error)
    ]
    assert found and all(where.startswith("first") for where in found)


def test_weights_of_its_own_are_refused():
    model = {"name": "checkpoint:first/dense", "weights": "random"}
    with pytest.raises(UserError, match="which has its own"):
        lineage.with_origins(study(methods=[{"name": "fggp", "model": model}]))
