"""The experiment behind `try`: rows, variants by length, and the longest one that fits a budget.

Four arms, run like any others. *First fine-tune*: the model on the folder, dense. *One shot*: that
model pruned at once, batch-norm statistics recomputed. *Second fine-tune*: from the first one's
checkpoint, under the same recipe, dense as the control and pruned in several ways; one row goes on
from the one-shot model with its mask held. *Frozen backbone*: a probe of the pretrained features.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparse_transfer import config, experiment_file, store
from sparse_transfer.errors import UserError

HEADLINE = "Pruned on the downstream task (not transfer)"
FIRST, ONE_SHOT, SECOND, FROZEN = (
    "first fine-tune",
    "one shot",
    "second fine-tune",
    "frozen backbone",
)
DENSE = "dense before 2nd fine-tune"
CONTINUED, ONE_SHOT_TUNED = "dense continued", "one-shot, then fine-tuned"
# Magnitudes are ranked by LAMP scores: the layers of a pretrained network differ in scale, and one
# ranking of raw magnitudes empties the small ones (docs/pruners.md has the figures).
BY_LAYER = {"allocation": "lamp"}
METHODS: dict[str, dict[str, Any]] = {"gmp": BY_LAYER, "fggp": {}}
TEXT = (
    "All rows learn from the same images, and those that are fine-tuned by one recipe: the "
    "reference, the pruned rows and a smaller model twice, dense once. Errors are counted on the "
    "test images, which nothing was chosen by. gmp and one shot rank weights by LAMP scores. "
    "Below, dense of the second fine-tune is the dense model continued."
)
RECALIBRATION_IMAGES = 1000
BENCH = {"batch_size": 1, "repeats": 20}
# Engines of float32 that prepare a model in seconds: an answer names one time per row.
BACKENDS = ("dense", "onnxruntime", "openvino", "sparse")


@dataclass(frozen=True)
class Variant:
    """How long and how large: `epochs` of each of the two fine-tunings, but at least `steps`."""

    name: str
    image_size: int
    epochs: int
    steps: int

    def epochs_of(self, images: int, batch_size: int) -> int:
        """Epochs over `images` training images."""
        return max(self.epochs, math.ceil(self.steps / math.ceil(images / batch_size)))


# Shortest first. All have the same rows and the same recipe.
VARIANTS = (
    Variant("quick", image_size=96, epochs=3, steps=60),
    Variant("short", image_size=128, epochs=6, steps=150),
    Variant("full", image_size=224, epochs=15, steps=400),
)
DEFAULT = "short"


@dataclass(frozen=True)
class Request:
    """What was asked for, with everything found out about it.

    Attributes:
        model: as given; task: a card's name or file; validation: share of train to hold out.
        folder: what people call the data; train: images of its training part.
        image_size: the model's own, which no variant exceeds; `fixed_size`: none goes below.
        smaller: the rival; None leaves it out for `no_smaller`.
        backends: that are here.
        notes: on the folder.
    """

    model: config.ModelSpec
    sparsity: float
    task: str
    validation: float
    folder: str
    train: int
    image_size: int
    fixed_size: bool = False
    smaller: config.ModelSpec | None = None
    no_smaller: str = ""
    backends: tuple[str, ...] = ("dense",)
    seed: int = 0
    notes: tuple[str, ...] = ()
    overrides: tuple[str, ...] = ()


def build(request: Request, variant: Variant) -> config.Experiment:
    """The experiment of one variant.

    Raises:
        UserError: an override that does not fit.
    """
    recipe = experiment_file.load_recipe("try")
    assert isinstance(recipe, config.Recipe)
    epochs = variant.epochs_of(request.train, recipe.batch_size)
    size = pixels(request, variant)
    task = {"name": request.task, "validation": request.validation}
    title = request.model.title
    preprocess = {"image_size": size, "crop": "center"}
    upstream = {"task": task, "preprocess": preprocess}
    tuning = {"base": "try", "name": "try", "epochs": epochs}
    bench = BENCH | {"backends": list(request.backends)}
    images = min(RECALIBRATION_IMAGES, request.train)

    def seeded(*methods: Mapping[str, Any], pruned: bool) -> dict[str, Any]:
        sparsities = [request.sparsity] if pruned else []
        return {"methods": list(methods), "sparsities": sparsities, "seeds": [request.seed]}

    def made(arm: str, method: str) -> dict[str, str]:
        return {"name": f"checkpoint:{arm}/{method}", "label": title}

    rival = request.smaller.title if request.smaller else ""
    rivals = [_rival(rival, request.smaller.model_dump(mode="json"))] if request.smaller else []
    continued = [_rival(rival, {**made(FIRST, rival), "label": rival})] if request.smaller else []
    pruning = [{"name": name, "options": options} for name, options in METHODS.items()]
    tuned = {"name": "given", "label": ONE_SHOT_TUNED, "model": made(ONE_SHOT, "magnitude")}
    arms = [
        {
            "name": FIRST,
            "upstream": {"models": [request.model.model_dump(mode="json")], **upstream},
            "recipe": tuning,
            "prune": seeded({"name": "dense"}, *rivals, pruned=False),
            "bench": bench,
        },
        {
            "name": ONE_SHOT,
            "upstream": {"models": [made(FIRST, "dense")], **upstream},
            "recipe": {"base": "one-shot", "keep_dense": list(recipe.keep_dense)},
            "prune": seeded({"name": "magnitude", "options": BY_LAYER}, pruned=True)
            | {"recalibrate_bn": {"images": images}},
            "bench": bench,
        },
        {
            "name": SECOND,
            "upstream": {"models": [made(FIRST, "dense")], **upstream},
            "recipe": tuning,
            "prune": seeded(*pruning, tuned, *continued, pruned=True),
            "bench": bench,
        },
        {
            "name": FROZEN,
            "upstream": {
                "models": [request.model.model_dump(mode="json")],
                "preprocess": preprocess,
            },
            "recipe": "one-shot",
            "prune": seeded({"name": "dense"}, pruned=False),
            "transfer": {
                "tasks": [task],
                "modes": ["linear"],
                "linear": "model-linear",
                "preprocess": preprocess,
            },
            "bench": bench,
        },
    ]
    raw = {
        "name": "try",
        "title": f"{title} on {request.folder}, pruned to {100 * request.sparsity:.4g} %",
        "answer": _answer(request),
        "arms": arms,
    }
    found = experiment_file.build(raw, _of_trained_arms(request.overrides))
    told = store.digest(found.model_dump(mode="json", exclude={"name", "title"}))[:8]
    name = f"try-{store.slug(Path(title).name)}-{variant.name}-{told}"
    return found.model_copy(update={"name": name, "notes": _notes(request, variant, found)})


def pixels(request: Request, variant: Variant) -> int:
    """Of a variant's images: never more than the model was trained on."""
    return request.image_size if request.fixed_size else min(request.image_size, variant.image_size)


def distinct(request: Request) -> tuple[Variant, ...]:
    """The variants that differ for this request, shortest first."""
    recipe = experiment_file.load_recipe("try")
    assert isinstance(recipe, config.Recipe)
    seen: dict[tuple[int, int], Variant] = {}
    for variant in VARIANTS:
        key = (pixels(request, variant), variant.epochs_of(request.train, recipe.batch_size))
        seen.setdefault(key, variant)
    return tuple(seen.values())


def seconds_of(text: str) -> float:
    """`90s`, `30m`, `2h` or `1h30m` in seconds.

    Raises:
        UserError: anything else, or nothing.
    """
    found = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m(?:in)?)?(?:(\d+)s)?", text.strip().lower())
    hours, minutes, seconds = (int(group or 0) for group in found.groups()) if found else (0, 0, 0)
    total = 3600 * hours + 60 * minutes + seconds
    if not total:
        raise UserError(
            f"--budget {text} cannot be read.", hint="Write 90s, 30m, 2h or 1h30m, above zero."
        )
    return float(total)


def longest(times: Mapping[str, float], budget: float | None) -> str:
    """The name of the longest variant that fits.

    Args:
        times: name → seconds, shortest variant first.
        budget: in seconds; None takes the default variant.

    Raises:
        UserError: not even the shortest one fits.
    """
    if budget is None:
        return DEFAULT if DEFAULT in times else list(times)[-1]
    fitting = [name for name, seconds in times.items() if seconds <= budget]
    if not fitting:
        shortest, seconds = next(iter(times.items()))
        raise UserError(
            f"Nothing fits a budget of {duration(budget)}.",
            f"The shortest variant, {shortest}, takes about {duration(seconds)} on this machine.",
            f"Give --budget {math.ceil(1.2 * seconds / 60)}m, or fewer images.",
        )
    return fitting[-1]


def duration(seconds: float) -> str:
    """Seconds as people say them: `40 s`, `12 min`, `2 h 05 min`."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def row_of(arm: str, method: str) -> str:
    """What people call the runs of a method in an arm."""
    titles = {
        (FIRST, "dense"): DENSE,
        (SECOND, "dense"): CONTINUED,
        (ONE_SHOT, "magnitude"): "one-shot, not fine-tuned",
        (FROZEN, "dense"): "linear only",
    }
    return titles.get((arm, method), method)


def _of_trained_arms(overrides: Sequence[str]) -> list[str]:
    """`recipe.…` changes both fine-tunings alike, and not the arms that train nothing."""
    found: list[str] = []
    for text in overrides:
        own = text.startswith("recipe")
        found += [f"arms.{place}.{text}" for place in (0, 2)] if own else [text]
    return found


def _rival(name: str, model: Mapping[str, Any]) -> dict[str, Any]:
    return {"name": "dense", "label": name, "model": dict(model)}


def _answer(request: Request) -> dict[str, Any]:
    rows = [
        (FIRST, "dense", "upstream"),
        (SECOND, "dense", "upstream"),
        *((SECOND, method, "upstream") for method in (*METHODS, ONE_SHOT_TUNED)),
        (ONE_SHOT, "magnitude", "upstream"),
        (FROZEN, "dense", "linear-lbfgs"),
    ]
    if request.smaller:
        rows.append((SECOND, request.smaller.title, "upstream"))
    left_out = [] if request.smaller else [f"a smaller dense model: {request.no_smaller}"]
    return {
        "headline": HEADLINE,
        "text": TEXT,
        "reference": CONTINUED,
        "candidates": [*METHODS, ONE_SHOT_TUNED],
        "rows": [
            {"title": row_of(arm, method), "arm": arm, "method": method, "mode": mode}
            for arm, method, mode in rows
        ],
        "left_out": left_out,
    }


def _notes(request: Request, variant: Variant, made: config.Experiment) -> str:
    lengths = [
        f"{arm.recipe.epochs} epochs" if arm.recipe.steps is None else f"{arm.recipe.steps} steps"
        for arm in made.arms
        if arm.name in (FIRST, SECOND)
    ]
    size = made.arms[0].upstream.preprocess.image_size
    said = (
        f"{HEADLINE}. {request.folder}: training images to learn from, validation images to "
        "recommend by, test images for the errors alone, in a frozen split. Variant "
        f"{variant.name}: {size} px, two fine-tunings of {' and '.join(lengths)}; the second one "
        "prunes, and the dense model goes through it too. One seed."
    )
    return " ".join([said, *request.notes])


def times_by_row(
    runs: Sequence[tuple[str, str, float]], titles: Sequence[str] = ()
) -> dict[str, float]:
    """Seconds by row.

    Args:
        runs: (arm, method, seconds).
        titles: rows in the order to show; others follow.
    """
    total: dict[str, float] = dict.fromkeys(titles, 0.0)
    for arm, method, seconds in runs:
        row = row_of(arm, method)
        total[row] = total.get(row, 0.0) + seconds
    return {row: seconds for row, seconds in total.items() if seconds}
