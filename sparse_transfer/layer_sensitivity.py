"""How much accuracy a task loses when one layer alone is pruned: which layers matter.

Each layer in turn keeps the largest weights of a share (20, 10 and 5 %) by magnitude, everything
else stays as it is, nothing is trained and no batch-norm statistics are recomputed; then the layer
gets its weights back. A layer that is sparser than that already loses nothing by definition, and
is not run.

Where the model's classifier is recorded to be the task's, or is asked for, the model is judged by
its own outputs. Else by a logistic regression on the pooled features, fitted once, on training
images of the intact network, and held fixed: what is measured is how far the features move for the
decision that was fitted to them, and the classifier itself is left out. Equal numbers of classes
are no proof that the classifier is the task's. Of a network at chance level nothing is said.

What is finished is kept in the cache layer by layer, so a stopped measurement goes on.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
from scipy.special import log_softmax
from torch import Tensor, nn

from sparse_transfer import config, data, features, inputs, models, signals, store
from sparse_transfer.cost import evaluating
from sparse_transfer.errors import UserError
from sparse_transfer.images import Images
from sparse_transfer.models import LoadedModel
from sparse_transfer.pruning.layers import prunable
from sparse_transfer.seeds import derive
from sparse_transfer.stages.context import Context
from sparse_transfer.stages.evaluate import check_head

log = logging.getLogger(__name__)

LEVELS = (0.8, 0.9, 0.95)
TRAIN_FACTOR = 4  # images that a probe is fitted on, over those it is judged by
ABSENT = -50.0  # log-probability of a class that the probe never saw
VERSION = 1

Judge = Literal["auto", "head", "probe"]


@dataclass(frozen=True)
class Change:
    """What pruning one layer to one level did.

    Attributes:
        accuracy: of the damaged network minus that of the intact one, in [-1, 1].
        loss: the same difference of the mean cross-entropy.
    """

    accuracy: float
    loss: float


@dataclass(frozen=True)
class Sensitivity:
    """The changes by layer.

    Attributes:
        judged_by: `head` or `probe`.
        images: test images that were looked at, of `available`.
        accuracy: of the intact network on them.
        chance: the share of the commonest class among them.
        layers: path → level → change.
    """

    task: str
    judged_by: str
    images: int
    available: int
    accuracy: float
    chance: float
    layers: dict[str, dict[float, Change]]

    def ranked(self) -> list[str]:
        """Layers by accuracy lost, averaged over levels; ties by the rise of the loss."""

        def harm(layer: str) -> tuple[float, float]:
            changes = self.layers[layer].values()
            return (
                sum(change.accuracy for change in changes) / len(changes),
                -sum(change.loss for change in changes) / len(changes),
            )

        return sorted(self.layers, key=harm)

    def is_chance(self) -> bool:
        """Whether the intact network is within two standard errors of guessing one class."""
        error = (self.chance * (1 - self.chance) / self.images) ** 0.5
        return self.accuracy <= self.chance + 2 * error

    def sentence(self) -> str:
        """The three layers that matter, and what that means; or that nothing can be said."""
        if self.is_chance():
            return (
                f"Which layers matter cannot be said: intact, the network is no better than chance "
                f"on {self.task} ({self.accuracy:.1%}; the commonest of the classes is "
                f"{self.chance:.1%} of the {self.images} images)."
            )
        worst = []
        for layer in self.ranked()[:3]:
            mean = np.mean([change.accuracy for change in self.layers[layer].values()])
            if mean < 0:
                worst.append(f"{layer} ({100 * mean:+.1f} points)")
        meaning = (
            "accuracy lost when this layer alone is magnitude-pruned to 80, 90 and 95 %, averaged; "
            f"on {self.images} test images of {self.task} one image is {100 / self.images:.2f} "
            "points"
        )
        if not worst:
            return f"No layer matters by itself: none of them costs an image ({meaning})."
        subject = "Layer that matters" if len(worst) == 1 else "Layers that matter"
        return f"{subject} most: {', '.join(worst)} ({meaning})."

    def accuracy_changes(self) -> dict[str, dict[float, float]]:
        """Change of accuracy by layer and level."""
        return {
            layer: {level: change.accuracy for level, change in changes.items()}
            for layer, changes in self.layers.items()
        }

    def setting(self) -> str:
        """What the changes were measured with, in words."""
        judge = {
            "head": "its own classifier",
            "probe": "a logistic regression on its features, fitted once and held fixed, since "
            "its classifier is not known to be this task's",
        }
        return (
            f"Intact, the network is right on {self.accuracy:.1%} of {self.images} of "
            f"{self.available} test images of {self.task}, judged by {judge[self.judged_by]}."
        )

    def to_json(self) -> dict[str, Any]:
        """For programs, sentences included."""
        return asdict(self) | {"setting": self.setting(), "sentence": self.sentence()}


def measure(
    loaded: LoadedModel,
    task_name: str,
    context: Context,
    *,
    judge: Judge = "auto",
    images: int = 200,
    batch_size: int = 32,
) -> Sensitivity:
    """Prune each layer alone and see what it costs.

    Args:
        loaded: the network, in any mode; left as it was.
        task_name: a task card.
        judge: the network's own head, a probe, or the head where it is recorded to be the task's.
        images: at most this many test images, chosen at random (the same ones each time).

    Raises:
        UserError: the task or its data is not there, the network cannot take its images, or its
            head is asked for and has another number of classes.
        StopRequested: a signal came; what is finished is in the cache.
    """
    task = data.open_task(
        config.TaskRef(name=task_name), data_root=context.data_root, cache=context.cache
    )
    model = loaded.model
    transform = inputs.transform(own_preprocess(loaded), loaded, task, context.cache)
    test = transform.images(task.test, context.cache)
    chosen = _some(len(test), images, "test")
    labels = np.asarray(test.labels)[chosen]
    judged_by = _judged_by(loaded, task, judge)
    outputs = _outputs(model, task, transform, judged_by, images, batch_size, context)

    intact = outputs(test, chosen)
    if not np.isfinite(intact).all():
        raise UserError(
            f"The outputs of {loaded.title} on {task.card.name} are not finite numbers.",
            "Its weights hold infinite or undefined values, or are of another network.",
            "Check the file with `sparse-transfer import`.",
        )
    accuracy, loss = score(intact, labels)
    paths = [name.removesuffix(".weight") for name in _judged(model, judged_by)]
    key = {
        "version": VERSION,
        "weights": features.weights_digest(model),
        "structure": features.structure_digest(model),
        "images": test.key,
        "chosen": [int(row) for row in chosen],
        "stats": [list(transform.mean), list(transform.std)],
        "judged_by": judged_by,
        "fitted_on": [task.split_hash, TRAIN_FACTOR * images] if judged_by == "probe" else None,
    }
    file = context.cache / "sensitivity" / f"{store.digest(key)}.json"
    found: dict[str, list[list[float]]] = store.read_json(file) if file.is_file() else {}
    for done, path in enumerate(paths):
        context.progress.update("layers pruned alone", done, len(paths))
        if path in found:
            continue
        changes = []
        for level in LEVELS:
            signals.raise_if_stopped()
            weight = model.get_parameter(f"{path}.weight")
            with pruned_alone(weight, level) as is_changed:
                after = score(outputs(test, chosen), labels) if is_changed else (accuracy, loss)
            changes.append([after[0] - accuracy, after[1] - loss])
        found[path] = changes
        file.parent.mkdir(parents=True, exist_ok=True)
        store.write_json(file, found)
    context.progress.done()
    return Sensitivity(
        task.card.name,
        judged_by,
        len(chosen),
        len(test),
        accuracy,
        float(np.bincount(labels).max() / len(labels)),
        {
            path: {level: Change(*c) for level, c in zip(LEVELS, found[path], strict=True)}
            for path in paths
        },
    )


@contextmanager
def pruned_alone(weight: Tensor, sparsity: float) -> Iterator[bool]:
    """Zero all but the largest weights for the length of a block; says whether that changes any.

    round((1 - sparsity) n) weights are kept, at least one; of equal ones those that come first.
    """
    flat = weight.detach().flatten()
    keep = max(1, round((1 - sparsity) * flat.numel()))
    if int(flat.count_nonzero()) <= keep:
        yield False
        return
    before = weight.detach().clone()
    order = torch.argsort(flat.abs(), descending=True, stable=True)
    with torch.no_grad():
        mask = torch.zeros_like(flat, dtype=torch.bool)
        mask[order[:keep]] = True
        weight.mul_(mask.view(weight.shape))
    try:
        yield True
    finally:
        with torch.no_grad():
            weight.copy_(before)


def score(logits: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """(accuracy, mean cross-entropy) of (n, classes) logits; undefined ones decide nothing."""
    logits = np.nan_to_num(logits.astype(np.float64), nan=0.0, posinf=1e6, neginf=-1e6)
    accuracy = float((logits.argmax(1) == labels).mean())
    chances = log_softmax(logits, axis=1)
    return accuracy, float(-chances[np.arange(len(labels)), labels].mean())


def own_preprocess(loaded: LoadedModel) -> config.Preprocess:
    """The transform that the model was trained with, as an experiment would write it."""
    own = loaded.spec["pretrained_cfg"]
    size = own["input_size"][-1]
    if own.get("crop_mode") == "squash":
        return config.Preprocess(image_size=size, crop="none")
    return config.Preprocess(image_size=size, resize=round(size / (own.get("crop_pct") or 1.0)))


def _judged(model: nn.Module, judged_by: str) -> list[str]:
    """The weights that can change the outcome; features do not see the classifier."""
    return list(prunable(model, ["head"] if judged_by == "probe" else []))


def is_trained_on(
    recorded: Mapping[str, Any] | None, task_name: str, classes: Sequence[str]
) -> bool:
    """Whether a classifier is recorded to tell these classes apart, in this order.

    That is so for the task itself, and for another one whose classes have the same names (a further
    test set), unless these are mere numbers.

    Args:
        recorded: from `models.trained_on`; None where nothing is known.
    """
    if recorded is None or recorded["classes"] != store.digest(list(classes)):
        return False
    return recorded["name"] == task_name or not all(name.isdecimal() for name in classes)


def _judged_by(loaded: LoadedModel, task: data.Task, judge: Judge) -> Literal["head", "probe"]:
    """The judge that was asked for, or the head where it is known to be the task's."""
    name, own = task.card.name, models.model_classes(loaded.model)
    if judge == "head":
        check_head(own, name, len(task.classes))
    if judge != "auto":
        return judge
    if own != len(task.classes):
        return "probe"
    if is_trained_on(loaded.trained_on, name, task.classes):
        return "head"
    log.warning(
        "the classifier has %d classes, as %s has, but is not recorded to be trained on it, so a "
        "probe judges; --judge head takes it nevertheless",
        own,
        name,
    )
    return "probe"


def _outputs(
    model: nn.Module,
    task: data.Task,
    transform: inputs.Transform,
    judged_by: str,
    images: int,
    batch_size: int,
    context: Context,
) -> Callable[[Images, np.ndarray], np.ndarray]:
    """Images and rows → (n, classes) logits, by the head or a probe fitted on intact features."""
    if judged_by == "head":
        return lambda part, rows: _run(model, model, part, rows, batch_size, context)
    train = transform.images(task.train, context.cache)
    rows = _some(len(train), TRAIN_FACTOR * images, "train")

    def pooled(part: Images, chosen: np.ndarray) -> np.ndarray:
        return _run(model, lambda x: models.features(model, x), part, chosen, batch_size, context)

    if not len(rows):
        raise UserError(
            f"{task.card.name} has no training images to fit a probe on.",
            "The classifier is not recorded to be this task's, so it does not judge.",
            "If it is, say --judge head.",
        )
    probe = fit_probe(pooled(train, rows), np.asarray(train.labels)[rows], len(task.classes))
    return lambda part, chosen: probe(pooled(part, chosen))


def fit_probe(x: np.ndarray, y: np.ndarray, classes: int) -> Callable[[np.ndarray], np.ndarray]:
    """A logistic regression on standardised features, as a function to log-probabilities.

    Its C is fixed (0.01): the probe need not be the best one, only the same one for every layer.

    Args:
        x: (n, d) float. y: (n,) int in [0, classes).

    Returns:
        (m, d) features → (m, classes); classes that `y` does not hold get `ABSENT`.

    Raises:
        UserError: `y` holds one class only.
    """
    from sklearn.linear_model import LogisticRegression

    if len(np.unique(y)) < 2:
        raise UserError(
            "A probe needs training images of at least two classes.",
            f"All {len(y)} that were looked at belong to one.",
            "Raise --images.",
        )
    mean, deviation = x.mean(0), x.std(0)
    deviation[deviation == 0] = 1.0
    fitted = LogisticRegression(C=0.01, max_iter=1000).fit((x - mean) / deviation, y)

    def probe(features: np.ndarray) -> np.ndarray:
        out = np.full((len(features), classes), ABSENT)
        out[:, fitted.classes_] = fitted.predict_log_proba((features - mean) / deviation)
        return out

    return probe


def _run(
    model: nn.Module,
    forward: Callable[[Tensor], Tensor],
    part: Images,
    rows: np.ndarray,
    batch_size: int,
    context: Context,
) -> np.ndarray:
    device = context.accelerator.device
    model.to(device)
    outputs = []
    with evaluating(model), torch.inference_mode():
        for start in range(0, len(rows), batch_size):
            signals.raise_if_stopped()
            x = data.batch(part, rows[start : start + batch_size]).to(device)
            outputs.append(forward(x).float().cpu())
    return torch.cat(outputs).numpy()


def _some(count: int, at_most: int, part: str) -> np.ndarray:
    """Sorted rows, at most that many, a function of the numbers and the part's name alone."""
    generator = np.random.default_rng(derive(0, "sensitivity", part))
    return np.sort(generator.permutation(count)[:at_most])
