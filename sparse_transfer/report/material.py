"""What every section of a report is made from, put together once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import pandas as pd

from sparse_transfer.originals import Found
from sparse_transfer.predictions import Predictions
from sparse_transfer.report import layers
from sparse_transfer.report.colours import Looks, assign
from sparse_transfer.report.tables import Group
from sparse_transfer.statistics import Comparison
from sparse_transfer.store import slug

LoadPredictions = Callable[[Mapping[str, Any]], Predictions]
LoadImages = Callable[[str, Sequence[str]], Found]
Place = tuple[str, str]


def is_at(frame: pd.DataFrame, place: Place) -> pd.Series:
    """Which rows belong to an arm and upstream model."""
    return (frame["arm"] == place[0]) & (frame["model"] == place[1])


@dataclass(frozen=True)
class Material:
    """Results, statistics and facts of one report.

    Attributes:
        frame: the results, one row per evaluation; may be empty.
        measured: rows of `cost_tables.measurements`; may be empty.
        facts: see `write.build`, every key filled in.
        groups: what may be compared with each other.
        comparison: None where there are no results.
        contrasts: rows of `statistics.contrast`; may be empty.
        predictions: loads the stored predictions of a row of `frame`; None where none are stored,
            and in a demo.
        further: rows of upstream checkpoints on further test sets, which no comparison joins;
            may be empty.
        images: finds test images of a task by their ids; None where nobody knows a place.
    """

    frame: pd.DataFrame
    measured: pd.DataFrame
    facts: Mapping[str, Any]
    groups: Sequence[Group]
    comparison: Comparison | None
    contrasts: pd.DataFrame
    predictions: LoadPredictions | None = None
    further: pd.DataFrame = field(default_factory=pd.DataFrame)
    images: LoadImages | None = None

    @property
    def is_demo(self) -> bool:
        """Whether intervals and verdicts are withheld."""
        return any(str(label).lower().startswith("demo") for label in self.facts["labels"])

    @cached_property
    def layers(self) -> pd.DataFrame:
        """Rows of `layers.by_layer`; may be empty."""
        return layers.by_layer(self.facts["layers"]) if self.facts["layers"] else pd.DataFrame()

    @cached_property
    def few_shot(self) -> pd.DataFrame:
        """One row per model, task, shots and draw of the few-shot runs; may be empty."""
        return pd.DataFrame(self.facts["few_shot"])

    @cached_property
    def methods(self) -> list[str]:
        """Every method that appears anywhere."""
        frames = (self.frame, self.measured, self.layers, self.few_shot)
        named = [one["method"] for one in frames if len(one)]
        return sorted({str(method) for column in named for method in column})

    @cached_property
    def looks(self) -> Looks:
        """Colour and mark of every method."""
        return assign(self.methods)

    @cached_property
    def places(self) -> list[Place]:
        """Pairs of arm and upstream model, in the order of the results."""
        return list(dict.fromkeys((group.arm, group.model) for group in self.groups))

    @cached_property
    def slugs(self) -> dict[Place, str]:
        """A name for files, by place."""
        arms = [arm for arm, _ in self.places]
        return {
            place: slug(place[0], place[1] if arms.count(place[0]) > 1 else "")
            for place in self.places
        }

    def title(self, place: Place) -> str:
        """The heading of a place; empty where there is only one."""
        return " · ".join(place) if len(self.places) > 1 else ""

    def of(self, place: Place) -> list[Group]:
        """The groups of a place."""
        return [group for group in self.groups if (group.arm, group.model) == place]

    def held(self, arm: str, mode: str = "") -> str:
        """What was held fixed in an arm; of one mode, without what concerns the other modes."""
        lines = self.facts["held_fixed"].get(arm, ())
        if isinstance(lines, str):
            return lines
        if not lines and len(self.frame):  # at least what the rows themselves say
            own = self.frame[self.frame["arm"] == arm]
            lines = [
                f"{words} {', '.join(f'{value}' for value in own[name].unique() if value != '')}"
                for name, words in (
                    ("recipe", "recipe"),
                    ("profile", "profile"),
                    ("image_size", "px"),
                )
                if own[name].ne("").any()
            ]
        own = "linear" if mode in ("linear-sgd", "linear-lbfgs") else mode
        modes = ("linear", "few-shot", "linear-online", "full")
        others = [name for name in modes if mode and name != own]
        kept = [line for line in map(str, lines) if line.partition(":")[0].lower() not in others]
        return " ".join(f"{line.rstrip('.;')}." for line in kept)
