"""The transform of a run, resolved: which statistics, which interpolation; and images under it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import Tensor

from sparse_transfer import config, data
from sparse_transfer.errors import UserError
from sparse_transfer.images import Augment, Images, Interpolation, Stats, batch, statistics
from sparse_transfer.seeds import derive

if TYPE_CHECKING:
    from sparse_transfer.models import LoadedModel

IMAGENET: Stats = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@dataclass(frozen=True)
class Transform:
    """Everything between a decoded image and the tensor a model sees.

    Attributes:
        preprocess: size and crop.
        mean, std: per channel, of values in [0, 1].
        interpolation: of every resize.
        normalise: whose statistics `mean` and `std` are.
    """

    preprocess: config.Preprocess
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: Interpolation
    normalise: Literal["model", "imagenet", "dataset"]

    def facts(self) -> dict[str, Any]:
        """For the manifest."""
        return {**asdict(self), "preprocess": self.preprocess.model_dump(mode="json")}

    def images(self, split: data.Split, cache: Path, augment: Augment = "none") -> Images:
        """The usable images of a split under this transform."""
        stats = (self.mean, self.std)
        return Images(
            split, self.preprocess, stats, cache, augment, interpolation=self.interpolation
        )


def transform(
    preprocess: config.Preprocess,
    loaded: LoadedModel,
    task: data.Task | None,
    cache: Path,
    profile: config.LinearProfile | config.OnlineProfile | config.FullProfile | None = None,
    layout: str | None = None,
) -> Transform:
    """Resolve `model`, `imagenet`, `dataset`, `paper`; a profile's choice goes before the arm's.

    Args:
        layout: the foreign layout that the weights were imported from. The study resized images
            bilinearly for all weights but RigL's, which were trained on bicubic ones: `paper`.

    Raises:
        UserError: the statistics of a data set are asked for and there is none.
    """
    normalise = (profile.normalise if profile else None) or preprocess.normalise
    interpolation = (profile.interpolation if profile else None) or preprocess.interpolation
    own = loaded.spec["pretrained_cfg"]
    if interpolation == "paper":
        interpolation = "bicubic" if layout == "rigl" else "bilinear"
    elif interpolation == "model":
        interpolation = own["interpolation"]
    if interpolation not in ("bilinear", "bicubic"):
        raise UserError(
            f"{loaded.title} asks for {interpolation} interpolation.",
            "Images are resized by bilinear or bicubic interpolation here.",
            "Set preprocess.interpolation to one of them.",
        )
    resize = cast(Interpolation, interpolation)
    if normalise == "imagenet":
        mean, std = IMAGENET
    elif normalise == "model":
        mean, std = tuple(own["mean"]), tuple(own["std"])
    else:
        mean, std = _dataset_statistics(task, preprocess, resize, cache)
    return Transform(preprocess, mean, std, resize, normalise)


def _dataset_statistics(
    task: data.Task | None, preprocess: config.Preprocess, interpolation: Interpolation, cache: Path
) -> Stats:
    """The card's statistics, or those of the training part where the card has none."""
    if task is None:
        raise UserError("normalise: dataset needs a task.", hint="Use `model` or `imagenet`.")
    if task.card.mean is not None and task.card.std is not None:
        return task.card.mean, task.card.std
    unit = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    return statistics(Images(task.train, preprocess, unit, cache, interpolation=interpolation))


class AugmentedImages:
    """Images as the training loop takes them; the augmentation is a function of the run's seed."""

    def __init__(self, images: Images, seed: int) -> None:
        self._images, self._seed = images, seed
        self.labels = torch.as_tensor(images.labels)

    def __len__(self) -> int:
        return len(self._images)

    def batch(self, indices: Tensor, epoch: int) -> Tensor:
        """(b, 3, S, S) float32, augmented and normalised."""
        return batch(self._images, indices.numpy(), train=True, seed=self._seed, epoch=epoch)

    def examples(self, step: int, number: int, count: int) -> tuple[Tensor, Tensor]:
        """`count` random images and their labels (all, if there are fewer), augmented.

        A function of the seed and the arguments: what methods look at beside the training.
        """
        generator = torch.Generator().manual_seed(derive(self._seed, "examples", step, number))
        indices = torch.randperm(len(self), generator=generator)[:count]
        return self.batch(indices, step), self.labels[indices]
