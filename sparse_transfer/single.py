"""Experiments of one row, for the verbs `prune` and `transfer`: built here, run like any other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from sparse_transfer import config, experiment_file, method_options, plugins, store
from sparse_transfer.errors import UserError

DEFAULT_SPARSITY = 0.9


def prune_experiment(
    *,
    model: str,
    task: str,
    method: str,
    sparsity: float | None,
    recipe: str,
    weights: str,
    kwargs: Sequence[str],
    pretrained_cfg: Sequence[str],
    options: Sequence[str],
    image_size: int,
    crop: str,
    recalibrate_bn: int,
    seed: int,
    overrides: Sequence[str],
) -> config.Experiment:
    """The experiment that `prune` runs: one model, one method, one sparsity, and its dense row.

    Raises:
        UserError: a sparsity for a method that has no target, among others.
    """
    own_options = pairs(options, "--option")
    plugin = plugins.load("pruner", method)
    if plugin.has_target and sparsity is None:
        spec = config.MethodSpec(name=method, options=own_options)
        natural = plugin(method_options.options_of(spec)).natural_sparsity()
        sparsity = DEFAULT_SPARSITY if natural is None else natural
    elif plugin.has_target and sparsity is not None and not 0 <= sparsity < 1:
        raise UserError(
            f"--sparsity {sparsity:g} is outside [0, 1).",
            "It is a share: 0.9 prunes nine of ten.",
            f"Write --sparsity {sparsity / 100:g} for {sparsity:g} %."
            if 1 < sparsity < 100
            else "",
        )
    elif not plugin.has_target and sparsity is not None:
        raise UserError(
            f"--sparsity {sparsity:g} has no effect on {method}.",
            "It has no target: its options decide how sparse the model becomes.",
            f"Leave --sparsity out; `sparse-transfer show {method}` lists the options.",
        )
    at = "" if sparsity is None else f" at {sparsity:.4g}"
    raw = {
        "name": "prune-" + store.slug(f"{model}-{method}{at.replace(' at ', '-')}"),
        "title": f"{model}, {method}{at}",
        "upstream": {
            "models": [
                {
                    "name": model,
                    "weights": weights,
                    "kwargs": pairs(kwargs, "--kwarg"),
                    "pretrained_cfg": pairs(pretrained_cfg, "--cfg"),
                }
            ],
            "task": {"name": task},
            "preprocess": {"image_size": image_size, "crop": crop},
        },
        "recipe": recipe,
        "prune": {
            "methods": [{"name": method, "options": own_options}],
            "sparsities": [] if sparsity is None else [sparsity],
            "seeds": [seed],
            **({"recalibrate_bn": {"images": recalibrate_bn}} if recalibrate_bn else {}),
        },
    }
    # two calls that differ in an option have reports of their own
    made = experiment_file.build(raw, overrides)
    told = store.digest(made.model_dump(mode="json", exclude={"name", "title"}))[:6]
    return made.model_copy(update={"name": f"{made.name}-{told}"})


def outcome(folder: Path) -> str:
    """What a pruning run came to, in one line: accuracy, sparsity, MACs."""
    result = store.read_json(folder / "result.json")
    scores = [f"{100 * row['metrics'][row['metric']]['value']:.1f} %" for row in result["rows"][:1]]
    accuracy = f"upstream accuracy {scores[0]}, " if scores else ""
    zeros, fewer = 100 * result["measured_sparsity"], result["macs_dense"] / result["macs"]
    return f"{accuracy}sparsity {zeros:.2f} %, {fewer:.2f} times fewer MACs"


def transfer_experiment(
    *,
    checkpoint: Path,
    dense: Path | None,
    tasks: Sequence[str],
    modes: Sequence[str],
    linear: str,
    full: str,
    online: str = "paper-linear-online",
    engine: str = "auto",
    image_size: int | None,
    crop: str | None,
    seeds: str,
    overrides: Sequence[str],
) -> config.Experiment:
    """The experiment that `transfer` runs: a finished checkpoint, and a dense one if given.

    Raises:
        UserError: a folder is no checkpoint of ours, or the dense one is not dense; an engine for
            full fine-tuning without it.
    """
    facts = checkpoint_facts(checkpoint)
    base = dense or checkpoint
    if dense is not None:
        given = checkpoint_facts(dense)
        if given["is_shrunk"] or given["measured_sparsity"]:
            reason = (
                f"Its mask leaves out {given['measured_sparsity']:.4f} of its prunable weights."
            )
            raise UserError(
                f"--dense {dense} is not a dense model.",
                "Channels were removed from it." if given["is_shrunk"] else reason,
                "Give the folder of the dense model, or leave --dense out.",
            )
    if not all(seed.strip().isdecimal() for seed in seeds.split(",")):
        raise UserError(f"--seeds {seeds} cannot be read.", hint="Write numbers: 0,1,2.")
    if engine != "auto" and "full" not in modes:
        raise UserError(
            f"--engine {engine} has no effect here.",
            "It says what computes full fine-tuning, and that is not asked for.",
            "Add --mode full, or leave --engine out.",
        )
    profile = full if engine == "auto" else {"base": full, "engine": engine}
    preprocess = _preprocess(facts, image_size, crop)
    # two rows of one name would be taken for one method
    method = "given" if dense and facts["method"] == "dense" else facts["method"]
    raw = {
        "name": f"transfer-{store.slug(checkpoint.resolve().parent.name)}-{facts['digest'][:8]}",
        "title": f"Transfer of {checkpoint}",
        "upstream": {
            "models": [{"name": f"local-dir:{base}", "label": facts["model"]}],
            "preprocess": preprocess,
        },
        **_as_it_is(checkpoint, facts, method, has_dense=dense is not None),
        "transfer": {
            "tasks": list(tasks),
            "modes": list(modes),
            "linear": linear,
            **({"online": online} if "linear-online" in modes else {}),
            **({"full": profile} if "full" in modes else {}),
            "preprocess": preprocess,
            "seeds": [int(seed) for seed in seeds.split(",")],
        },
    }
    return experiment_file.build(raw, overrides)


def evaluate_experiment(
    *,
    checkpoint: Path,
    tasks: Sequence[str],
    image_size: int | None,
    crop: str | None,
    overrides: Sequence[str],
) -> config.Experiment:
    """The experiment that `evaluate` runs: a finished checkpoint, scored as it is.

    Raises:
        UserError: the folder is no checkpoint of ours.
    """
    facts = checkpoint_facts(checkpoint)
    raw = {
        "name": f"evaluate-{store.slug(checkpoint.resolve().parent.name)}-{facts['digest'][:8]}",
        "title": f"Evaluation of {checkpoint}",
        "upstream": {
            "models": [{"name": f"local-dir:{checkpoint}", "label": facts["model"]}],
            "evaluate": list(tasks),
            "preprocess": _preprocess(facts, image_size, crop),
        },
        **_as_it_is(checkpoint, facts, facts["method"], has_dense=False),
    }
    return experiment_file.build(raw, overrides)


def bench_settings(
    checkpoint: Path,
    *,
    backends: Sequence[str],
    batch_sizes: Sequence[int],
    repeats: int,
    idle_ms: int,
    task: str | None,
    image_size: int | None,
) -> tuple[config.Bench, tuple[config.TaskRef, config.Preprocess] | None]:
    """What `bench` measures, and the images for backends that need some.

    Raises:
        UserError: the settings do not go together, or the folder is no checkpoint of ours.
    """
    try:
        settings = config.Bench(
            backends=tuple(backends),
            batch_size=tuple(batch_sizes),
            repeats=repeats,
            idle_ms=idle_ms,
        )
    except ValueError as error:
        raise UserError("These options of bench do not go together.", _said(error)) from error
    if task is None:
        return settings, None
    own = _preprocess(checkpoint_facts(checkpoint), image_size, None)
    return settings, (config.TaskRef(name=task), config.Preprocess(**own))


def _said(error: ValueError) -> str:
    """What a validator of ours said, without what pydantic puts around it."""
    told = error.errors() if isinstance(error, ValidationError) else []
    return "; ".join(str(one["msg"]).removeprefix("Value error, ") for one in told) or str(error)


def score(folder: Path) -> str:
    """What an evaluation came to, in one line."""
    (row,) = store.read_json(folder / "result.json")["rows"]
    value = row["metrics"][row["metric"]]["value"]
    return f"{row['task']}: {100 * value:.2f} % {row['metric']} of {row['n_test']:,} images"


def _preprocess(facts: Mapping[str, Any], image_size: int | None, crop: str | None) -> dict:
    """A checkpoint's own size and crop, or others."""
    size = image_size if image_size is not None else facts["image_size"]
    made = {"image_size": size, "crop": crop or facts["crop"]}
    if made["crop"] == "center":
        made["resize"] = round(size / facts["crop_pct"])
    return made


def _as_it_is(checkpoint: Path, facts: Mapping[str, Any], method: str, *, has_dense: bool) -> dict:
    """Recipe and methods that leave a checkpoint as it is."""
    measured, is_shrunk = facts["measured_sparsity"], facts["is_shrunk"]
    given = {
        # without the channels that were removed it is a smaller dense model
        "name": "given" if measured or not is_shrunk else "dense",
        "label": method,
        "model": {"name": f"local-dir:{checkpoint}", "label": facts["model"]},
    }
    sparsities = [measured] if measured or not is_shrunk else []
    prune = {"dense": has_dense, "methods": [given], "sparsities": sparsities}
    return {"recipe": "one-shot", "prune": prune}


def checkpoint_facts(folder: Path) -> dict[str, Any]:
    """What a checkpoint folder says of itself, read without torch.

    Returns:
        model, method, measured_sparsity, is_shrunk (channels were removed), image_size, crop,
        crop_pct, and the digest of its weights.

    Raises:
        UserError: it is not a checkpoint of this program.
    """
    if not (folder / "sparsity.json").is_file():
        raise UserError(
            f"{folder} is not a checkpoint of sparse-transfer.",
            "It holds no sparsity.json." if folder.is_dir() else "There is no such folder.",
            "Give the folder that `sparse-transfer prune` printed.",
        )
    record = store.read_json(folder / "sparsity.json")
    settings = store.read_json(folder / "config.json")
    try:
        transform = settings["pretrained_cfg"]
        return {
            "model": record["facts"].get("model") or record["title"],
            "method": record["facts"].get("method") or "given",
            "measured_sparsity": round(record["sparsity"]["prunable"] or 0.0, 6),
            "is_shrunk": (folder / "shrink.json").is_file(),
            "image_size": transform["input_size"][-1],
            "crop": "none" if transform.get("crop_mode") == "squash" else "center",
            "crop_pct": transform.get("crop_pct") or 1.0,
            "digest": record["weights_digest"],
        }
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{folder} is not a checkpoint of sparse-transfer.",
            f"Its sparsity.json or config.json lacks {error}.",
            "Copy it again, or run its pruning again.",
        ) from error


def pairs(assignments: Sequence[str], flag: str) -> dict[str, Any]:
    """What `name=value` options of a flag say, the values read as YAML.

    Raises:
        UserError: one has no `=`, or its value is not YAML.
    """
    values: dict[str, Any] = {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals:
            raise UserError(
                f"{flag} {assignment} cannot be read.", hint=f"Write {flag} name=value."
            )
        values[name], _ = experiment_file.parse_yaml(text, f"{flag} {name}")
    return values
