"""Linear probes on frozen features: an SGD head for all seeds at once, and a logistic regression.

Source: `sgd` is the linear recipe of "How Well Do Sparse ImageNet Models Transfer?"
(arXiv 2111.13445); `lbfgs` is the logistic regression of Kornblith et al. 2019 (arXiv 1805.08974)
and CLIP (arXiv 2103.00020). Deviations are stated at each function.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from sparse_transfer import signals
from sparse_transfer.config import LinearProfile
from sparse_transfer.devices import world_size
from sparse_transfer.errors import UserError
from sparse_transfer.seeds import derive
from sparse_transfer.splits import shares

if TYPE_CHECKING:
    from sklearn.linear_model import LogisticRegression

# A class that the training part does not hold gets a logit this far below the row's lowest: its
# probability is 0 in float32, and the log-loss stays finite and the logits fit into float16.
ABSENT = 100.0


@dataclass(frozen=True)
class SgdProbe:
    """What `sgd` found.

    Attributes:
        logits: (seeds, m, classes) float32, of the test rows after the last epoch.
        seeds: the seeds, in the order of the first axis.
        train_loss: (seeds,) float64, cross-entropy of the final head on the training rows.
        seconds: wall time of the training.
    """

    logits: np.ndarray
    seeds: tuple[int, ...]
    train_loss: np.ndarray
    seconds: float


@dataclass(frozen=True)
class LbfgsProbe:
    """What `lbfgs` found.

    Attributes:
        logits: (m, classes) float32, of the test rows.
        c: the inverse regularisation strength that was chosen.
        validation: C → share of right answers on the held-out part of train, ascending in C;
            empty where the grid has one value and nothing was to be chosen.
        validation_images: rows held out to choose C.
        iterations: L-BFGS iterations of the final fit.
        absent_classes: classes without a training row.
        notes: what the solver complained about, each with its C (e.g. no convergence).
        seconds: wall time of the choice and the final fit.
    """

    logits: np.ndarray
    c: float
    validation: Mapping[float, float]
    validation_images: int
    iterations: int
    absent_classes: tuple[int, ...]
    notes: tuple[str, ...]
    seconds: float


def sgd(
    train_x: np.ndarray,
    train_y: np.ndarray,
    test_x: np.ndarray,
    classes: int,
    profile: LinearProfile,
    seeds: Sequence[int],
    *,
    device: torch.device | str = "cpu",
) -> SgdProbe:
    """Train one linear head per seed by SGD, all of them as one batched problem.

    Mean cross-entropy; SGD with momentum (not Nesterov, no dampening) and weight decay on weight
    and bias; batches of a fresh shuffle each epoch, the last partial batch kept; the learning rate
    times `gamma` from each epoch in `milestones` on (counted from 0); the last epoch is reported.
    Features are used as they are, not standardised. Head and order are functions of the seed alone
    (`initial_head`, `epoch_order`), so a seed gives the same head whichever others train beside it,
    up to rounding.

    Where there are no more rows than features the head is kept as W = a·W₀ + XᵀA and A is
    trained, which is the same iteration written in other coordinates (SGD with weight decay never
    leaves that set) and up to four times cheaper. Both forms agree with `nn.Linear` and
    `torch.optim.SGD` to rounding, as long as the recipe itself is stable: with lr·‖x‖² far above
    4·(1 + momentum) it oscillates, and then no two implementations agree digit by digit.

    Args:
        train_x: (n, d) float. train_y: (n,) int in [0, classes). test_x: (m, d) float.
        seeds: transfer seeds, one head each.

    Raises:
        UserError: features that are not finite, labels outside the classes, or no training rows.

    Source: protocol of arXiv 2111.13445 in its code's form (drops after 51 and 101 epochs).
    Deviation: the epoch of best test accuracy is neither looked for nor reported.
    """
    started = time.perf_counter()
    train_x, train_y, test_x = _checked(train_x, train_y, test_x, classes)
    x = _with_ones(train_x, device)
    y = torch.from_numpy(train_y).to(device)
    heads = torch.stack([initial_head(seed, train_x.shape[1], classes) for seed in seeds])
    few_rows = train_x.shape[0] <= train_x.shape[1]
    train = _train_by_rows if few_rows else _train_weights
    with torch.inference_mode():
        heads = train(x, y, heads.to(device), profile, seeds)
        logits = _with_ones(test_x, device) @ heads
        losses = [torch.nn.functional.cross_entropy(x @ head, y).double().item() for head in heads]
    return SgdProbe(
        logits=logits.cpu().numpy(),
        seeds=tuple(seeds),
        train_loss=np.array(losses),
        seconds=time.perf_counter() - started,
    )


def initial_head(seed: int, features: int, classes: int) -> torch.Tensor:
    """The untrained head of a seed, (features + 1, classes) float32, its last row the bias.

    The distribution of a fresh `nn.Linear`: weight and bias uniform in ±1/√features.
    """
    generator = torch.Generator().manual_seed(derive(seed, "probe-head"))
    bound = 1 / math.sqrt(features)
    weight = torch.empty(classes, features).uniform_(-bound, bound, generator=generator)
    bias = torch.empty(classes).uniform_(-bound, bound, generator=generator)
    return torch.cat([weight.T, bias[None]])


def epoch_order(seed: int, epoch: int, rows: int) -> torch.Tensor:
    """The order in which a seed sees the training rows in an epoch, (rows,) int64."""
    generator = torch.Generator().manual_seed(derive(seed, "probe-order", epoch))
    return torch.randperm(rows, generator=generator)


def lbfgs(
    train_x: np.ndarray,
    train_y: np.ndarray,
    test_x: np.ndarray,
    classes: int,
    profile: LinearProfile,
    *,
    seed: int = 0,
) -> LbfgsProbe:
    """Multinomial logistic regression by L-BFGS, its C chosen on a held-out part of train.

    Features are standardised with the mean and deviation of the training rows (a constant feature
    becomes 0). C is the one with most right answers on the stratified `lbfgs_validation` share of
    train, the smaller one on ties, fits along the grid starting from the one before; then all of
    train is fitted from zero. The solver is scikit-learn's with its defaults but for 1000
    iterations, in float64. The result is a function of its arguments; nothing but the held-out
    part depends on `seed`.

    Args:
        train_x: (n, d) float. train_y: (n,) int in [0, classes). test_x: (m, d) float.
        classes: columns of the result; a class that train does not hold gets logits that lie
            `ABSENT` below the lowest of their row. With two classes in train, scikit-learn's one
            decision value z becomes −z/2 and +z/2.

    Raises:
        UserError: features that are not finite, labels outside the classes, fewer than two classes
            in train, or a grid of several C and no class with two rows to choose with.

    Deviation: Kornblith et al. search 45 values of C; the profile's grid is short.
    """
    from sklearn.linear_model import LogisticRegression

    started = time.perf_counter()
    train_x, train_y, test_x = _checked(train_x, train_y, test_x, classes)
    present = np.unique(train_y)
    if len(present) < 2:
        raise UserError(
            "A logistic regression needs at least two classes.",
            f"All {len(train_y)} training images belong to class {present[0]}.",
            "Take more training images of the task.",
        )
    train_x, test_x = _standardised(train_x, test_x)
    validation, held, notes = {}, 0, []
    c = profile.lbfgs_c[0]
    if len(profile.lbfgs_c) > 1:
        is_held = held_out(train_y, profile.lbfgs_validation, seed)
        held = int(is_held.sum())
        validation, notes = _validate(train_x, train_y, is_held, profile.lbfgs_c)
        c = max(validation, key=lambda value: (validation[value], -value))
    final = LogisticRegression(C=c, max_iter=1000)
    notes += _fit(final, train_x, train_y)
    return LbfgsProbe(
        logits=_all_columns(final.decision_function(test_x), present, classes),
        c=c,
        validation=validation,
        validation_images=held,
        iterations=int(final.n_iter_[0]),
        absent_classes=tuple(int(k) for k in np.setdiff1d(np.arange(classes), present)),
        notes=tuple(notes),
        seconds=time.perf_counter() - started,
    )


def held_out(labels: np.ndarray, share: float, seed: int) -> np.ndarray:
    """A stratified part of the rows, (n,) bool: `share` of them to the nearest row, at least one.

    Classes give in proportion to their size, by largest remainder, but every class keeps a row; so
    a class with one row gives none. Which rows those are is a function of the labels and `seed`.

    Raises:
        UserError: no class has two rows.
    """
    names, counts = np.unique(labels, return_counts=True)
    if counts.max() < 2:
        raise UserError(
            "No part of the training images can be held out to choose C.",
            f"Each of the {len(names)} classes has one image.",
            "Give a single value in `lbfgs_c`, or take more training images.",
        )
    total = min(max(1, round(len(labels) * share)), int((counts - 1).sum()))
    generator = torch.Generator().manual_seed(derive(seed, "probe-validation"))
    order = torch.randperm(len(labels), generator=generator).numpy()
    is_held = np.zeros(len(labels), dtype=bool)
    for name, quota in zip(names, shares(counts, total, counts - 1), strict=True):
        is_held[order[labels[order] == name][:quota]] = True
    return is_held


def _train_weights(
    x: torch.Tensor,
    y: torch.Tensor,
    heads: torch.Tensor,
    profile: LinearProfile,
    seeds: Sequence[int],
) -> torch.Tensor:
    """Trained heads, (seeds, d, classes), from rows x (n, d) with a column of ones."""
    velocity = torch.zeros_like(heads)
    # One buffer for every batch: a fresh allocation of this size pays page faults each time.
    gathered = x.new_empty(len(seeds) * min(profile.batch_size, len(x)), x.shape[1])
    for lr, rows in _batches(profile, seeds, len(x)):
        rows = rows.to(x.device)
        batch = gathered[: rows.numel()]
        torch.index_select(x, 0, rows.flatten(), out=batch)
        batch = batch.view(*rows.shape, -1)
        error = _loss_gradient(batch @ heads, y[rows])
        velocity.baddbmm_(batch.mT, error, beta=profile.momentum)
        velocity.add_(heads, alpha=profile.weight_decay)
        heads.add_(velocity, alpha=-lr)
    return heads


def _train_by_rows(
    x: torch.Tensor,
    y: torch.Tensor,
    heads: torch.Tensor,
    profile: LinearProfile,
    seeds: Sequence[int],
) -> torch.Tensor:
    """The same heads as `_train_weights`, kept as scale·heads + xᵀ·shares, for n ≤ d.

    The gradient of a batch is xᵀ·error with errors in the batch's rows alone, so that momentum
    and decay act on `scale` and on `shares` (seeds, n, classes) exactly as on the weights.
    """
    n = len(x)
    gram = x @ x.T
    initial_logits = (x @ heads).flatten(0, 1)
    scale, scale_velocity = 1.0, 0.0
    shares = x.new_zeros(len(seeds), n, heads.shape[2])
    velocity = torch.zeros_like(shares)
    seed_offset = n * torch.arange(len(seeds), device=x.device)[:, None]
    gathered = x.new_empty(len(seeds) * min(profile.batch_size, n), n)
    for lr, rows in _batches(profile, seeds, n):
        rows = rows.to(x.device)
        batch = gathered[: rows.numel()]
        torch.index_select(gram, 0, rows.flatten(), out=batch)
        flat = (rows + seed_offset).flatten()
        logits = torch.baddbmm(
            initial_logits[flat].view(*rows.shape, -1),
            batch.view(*rows.shape, n),
            shares,
            beta=scale,
        )
        error = _loss_gradient(logits, y[rows])
        velocity.mul_(profile.momentum).add_(shares, alpha=profile.weight_decay)
        velocity.flatten(0, 1).index_add_(0, flat, error.flatten(0, 1))
        shares.add_(velocity, alpha=-lr)
        scale_velocity = profile.momentum * scale_velocity + profile.weight_decay * scale
        scale -= lr * scale_velocity
    return torch.baddbmm(heads, x.T.expand(len(seeds), -1, -1), shares, beta=scale)


def _batches(
    profile: LinearProfile, seeds: Sequence[int], rows: int
) -> Iterator[tuple[float, torch.Tensor]]:
    """(learning rate, row indices (seeds, b)) of every step of the training."""
    for epoch in range(profile.epochs):
        if world_size() == 1:
            signals.raise_if_stopped()
        lr = profile.lr * profile.gamma ** sum(epoch >= start for start in profile.milestones)
        order = torch.stack([epoch_order(seed, epoch, rows) for seed in seeds])
        for batch in order.split(profile.batch_size, dim=1):
            yield lr, batch


def _loss_gradient(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Gradient of the mean cross-entropy of each seed's batch with respect to its logits."""
    gradient = torch.softmax(logits, dim=2)
    gradient.scatter_add_(2, labels[..., None], gradient.new_full((*labels.shape, 1), -1.0))
    return gradient.div_(labels.shape[1])


def _with_ones(x: np.ndarray, device: torch.device | str) -> torch.Tensor:
    # The bias is the weight of a feature that is always 1: decay and momentum treat it alike.
    return torch.nn.functional.pad(torch.from_numpy(x), (0, 1), value=1.0).to(device)


def _checked(
    train_x: np.ndarray, train_y: np.ndarray, test_x: np.ndarray, classes: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The arguments as contiguous float32 and int64 arrays, or the error that they deserve."""
    train_x, test_x = (np.ascontiguousarray(x, dtype=np.float32) for x in (train_x, test_x))
    train_y = np.ascontiguousarray(train_y, dtype=np.int64)
    if train_x.ndim != 2 or test_x.ndim != 2 or train_x.shape[1] != test_x.shape[1]:
        raise ValueError(f"feature tables do not fit: {train_x.shape} and {test_x.shape}")
    if train_y.shape != train_x.shape[:1]:
        raise ValueError(f"{train_x.shape[0]} rows have labels of shape {train_y.shape}")
    if not len(train_y):
        raise UserError("A probe needs training images.", "The training part is empty.")
    if train_y.min() < 0 or train_y.max() >= classes:
        raise UserError(
            f"The labels do not fit {classes} classes.",
            f"They lie between {train_y.min()} and {train_y.max()}.",
            "Check the task card's `classes` and its labels.",
        )
    for part, x in (("training", train_x), ("test", test_x)):
        wrong = np.flatnonzero(~np.isfinite(x).all(axis=1))
        if len(wrong):
            raise UserError(
                f"Features are not finite: {len(wrong)} of {len(x)} {part} rows hold NaN or "
                f"infinity.",
                f"The first is row {wrong[0]}.",
                "The model's weights are damaged, or it overflows at this precision: "
                "evaluate it upstream first, and extract with fp32.",
            )
    return train_x, train_y, test_x


def _standardised(train_x: np.ndarray, test_x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both tables in float64, with mean 0 and deviation 1 over the training rows."""
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(train_x.astype(np.float64))
    return (
        np.asarray(scaler.transform(train_x.astype(np.float64))),
        np.asarray(scaler.transform(test_x.astype(np.float64))),
    )


def _validate(
    x: np.ndarray, y: np.ndarray, is_held: np.ndarray, grid: Sequence[float]
) -> tuple[dict[float, float], list[str]]:
    """C → share of right answers on the held-out rows, and what the solver complained about."""
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(max_iter=1000, warm_start=True)
    right, notes = {}, []
    for c in sorted(set(grid)):
        model.set_params(C=c)
        notes += _fit(model, x[~is_held], y[~is_held])
        right[c] = float(np.mean(model.predict(x[is_held]) == y[is_held]))
    return right, notes


def _fit(model: LogisticRegression, x: np.ndarray, y: np.ndarray) -> list[str]:
    """Fit in place; what the solver said about convergence is returned and not printed."""
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.fit(x, y)
    notes = []
    for warning in caught:
        if issubclass(warning.category, ConvergenceWarning):
            first_line = str(warning.message).partition("\n")[0]
            notes.append(f"C={model.C:g}, {len(x)} rows: {first_line}")
        elif "number of unique classes" not in str(warning.message):  # one image of each is meant
            warnings.warn_explicit(
                warning.message, warning.category, warning.filename, warning.lineno
            )
    return notes


def _all_columns(decision: np.ndarray, present: np.ndarray, classes: int) -> np.ndarray:
    """Decision values of the classes in train → (m, classes) float32 logits."""
    if decision.ndim == 1:
        decision = np.stack([-decision / 2, decision / 2], axis=1)
    lowest = decision.min(axis=1, keepdims=True)
    logits = np.repeat(lowest - ABSENT, classes, axis=1)
    logits[:, present] = decision
    return logits.astype(np.float32)
