"""Models that an experiment makes itself: `checkpoint:ARM/METHOD`, in a later arm.

A second fine-tuning begins where the first one ended, and a one-shot model is trained on with its
mask. Both are arms whose model is a checkpoint of an earlier arm: that of METHOD, of the same seed,
and of the same sparsity where METHOD has one. `checkpoint:` names are followed here to the model
whose weights started it all, for checks and forecasts that come before any checkpoint exists.
"""

from __future__ import annotations

from collections.abc import Sequence

from sparse_transfer.config import Arm, Experiment, ModelSpec
from sparse_transfer.errors import UserError, unknown_name

CHECKPOINT = "checkpoint:"


def is_made_here(spec: ModelSpec) -> bool:
    """Whether a model is the checkpoint of an earlier arm."""
    return spec.name.startswith(CHECKPOINT)


def maker(spec: ModelSpec, earlier: Sequence[Arm]) -> tuple[Arm, str]:
    """The earlier arm and the method whose checkpoint `checkpoint:ARM/METHOD` names.

    Raises:
        UserError: there is no such arm before this one, or it has no such method, or the model
            asks for weights of its own.
    """
    text = spec.name.removeprefix(CHECKPOINT)
    found = [arm for arm in earlier if text.startswith(f"{arm.name}/")]
    if not found:
        name = text.partition("/")[0]
        if not earlier:
            raise UserError(
                f"The model {spec.name} is not there.",
                "It names a checkpoint of an earlier arm, and there is none.",
                f"Write {CHECKPOINT}ARM/METHOD in an arm below the one that makes it.",
            )
        raise unknown_name("earlier arm", name, [arm.name for arm in earlier])
    arm = max(found, key=lambda arm: len(arm.name))
    method = text.removeprefix(f"{arm.name}/")
    if method not in (known := _methods(arm)):
        raise unknown_name(f"method of arm {arm.name}", method, known)
    if spec.weights != "pretrained" or spec.kwargs or spec.pretrained_cfg:
        raise UserError(
            f"The model {spec.name} cannot have weights, kwargs or pretrained_cfg.",
            "It is a checkpoint, which has its own.",
            "Give only `name` and `label`.",
        )
    return arm, method


def with_origins(experiment: Experiment) -> Experiment:
    """The experiment with every `checkpoint:` model replaced by the model that it began as.

    Shapes, names and speed of the two are the same, unless channels were removed in between.

    Raises:
        UserError: as `maker`.
    """
    arms: list[Arm] = []
    for arm in experiment.arms:
        models = tuple(_origin(model, arms) for model in arm.upstream.models)
        methods = tuple(
            method.model_copy(update={"model": _origin(method.model, arms)})
            if method.model
            else method
            for method in arm.prune.methods
        )
        update = {
            "upstream": arm.upstream.model_copy(update={"models": models}),
            "prune": arm.prune.model_copy(update={"methods": methods}),
        }
        arms.append(arm.model_copy(update=update))
    return experiment.model_copy(update={"arms": tuple(arms)})


def _origin(spec: ModelSpec, earlier: Sequence[Arm]) -> ModelSpec:
    """`earlier` has its own origins already."""
    if not is_made_here(spec):
        return spec
    arm, title = maker(spec, earlier)
    own = next((m.model for m in arm.prune.methods if m.title == title), None)
    models = arm.upstream.models
    of_label = [model for model in models if model.title == spec.title]
    found = own or (of_label or list(models))[0]
    return found.model_copy(update={"label": spec.title})


def _methods(arm: Arm) -> list[str]:
    named = [method.title for method in arm.prune.methods]
    return list(dict.fromkeys([*(["dense"] if arm.prune.dense else []), *named]))
