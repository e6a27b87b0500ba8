"""Write the whole report: page, tables, figures, summary; sections appear where there is data."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, cast

import pandas as pd

from sparse_transfer.predictions import Predictions
from sparse_transfer.report import cost_tables, layers, provenance, tables
from sparse_transfer.report import figures as draw
from sparse_transfer.report.cells import Table, slug
from sparse_transfer.report.colours import assign
from sparse_transfer.report.figures import Drawing
from sparse_transfer.report.html import Part, Section, page
from sparse_transfer.report.tables import CELL, Group
from sparse_transfer.report.terminal import markdown
from sparse_transfer.report.verdict import sentences
from sparse_transfer.statistics import GROUP, Comparison, compare, contrast
from sparse_transfer.store import read_json, replacing, write_json

LIST = "files.json"  # what the last report wrote, so that a new one leaves nothing stale
LoadPredictions = Callable[[Mapping[str, Any]], Predictions]
INTERVALS = ("low", "high", "mde")


@dataclass(frozen=True)
class Report:
    """A report that is not written yet.

    Attributes:
        facts: as given, with every key filled in.
        verdict: paragraphs.
        sections: of the page.
        summary: the tables that the terminal and the Markdown summary show.
        methods: every method's name.
    """

    facts: dict[str, Any]
    verdict: list[str]
    sections: list[Section]
    summary: list[Table]
    methods: list[str]

    @property
    def drawings(self) -> list[Drawing]:
        """Every figure."""
        return [one for section in self.sections for part in section.parts for one in part.drawings]

    @property
    def tables(self) -> list[Table]:
        """Every table."""
        return [one for section in self.sections for part in section.parts for one in part.tables]


def write(
    frame: pd.DataFrame,
    bench: pd.DataFrame,
    facts: Mapping[str, Any],
    predictions: LoadPredictions | None,
    out: Path,
) -> Path:
    """Build the report of an experiment and write it into a folder.

    Args, return value and errors: see `build` and `save`.
    """
    return save(build(frame, bench, facts, predictions), out)


def build(
    frame: pd.DataFrame,
    bench: pd.DataFrame,
    facts: Mapping[str, Any],
    predictions: LoadPredictions | None,
) -> Report:
    """Compute everything that a report shows.

    Args:
        frame: the results, one row per evaluation; may be empty.
        bench: latency measurements, one row per checkpoint and backend; may be empty.
        facts: what is not in the frames, all optional: `title`, `experiment`, `notes` (str);
            `labels` (list of str; one that starts with `demo` withholds intervals and verdicts);
            `contrasts` (pairs of methods declared in advance);
            `held_fixed` (arm → list of lines); `layers` (see `layers.by_layer`); `skipped`
            (task → reason → count); `failures` (dicts, see `provenance.FAILURE_COLUMNS`);
            `versions`, `machine` (name → value).
        predictions: loads the stored predictions of a row, for intervals over test examples; None,
            or rows without the column `predictions`, go without them.

    Raises:
        UserError: a value that is no number, a result that occurs twice, unreadable predictions.
    """
    known = _with_defaults(facts)
    is_demo = any(str(label).lower().startswith("demo") for label in known["labels"])
    measured = cost_tables.measurements(bench) if len(bench) else pd.DataFrame()
    comparison, contrasts = None, pd.DataFrame()
    groups: list[Group] = []
    if len(frame):
        frame = _typed(frame)
        load = None if is_demo or not _has_predictions(frame) else predictions
        comparison = compare(frame, predictions=load, allow_unequal=True)
        contrasts = _contrasts(frame, known["contrasts"])
        if is_demo:
            comparison, contrasts = _without_intervals(comparison), pd.DataFrame()
        groups = tables.groups(comparison.methods, frame)
    verdict = sentences(
        groups,
        comparison,
        contrasts,
        measured,
        is_demo=is_demo,
        failures=len(known["failures"]),
    )
    made = _Maker(frame, measured, known, groups, comparison, contrasts)
    sections = [section for section in made.sections() if section]
    summary = [table for section in sections[:1] for part in section.parts for table in part.tables]
    if not groups:
        summary = []
    return Report(known, verdict, sections, summary, made.methods())


def save(report: Report, out: Path) -> Path:
    """Write index.html, summary.md, a CSV per table and figure, an SVG per figure.

    Files that an earlier report left in the folder and this one does not have are removed.

    Returns:
        The path of index.html.

    Raises:
        UserError: the folder cannot be written.
    """
    before = read_json(out / LIST) if (out / LIST).is_file() else []
    written = ["index.html", "summary.md"]
    text = page(report.facts, report.verdict, report.sections, report.methods)
    _write_text(out / "index.html", text)
    head = (report.facts["title"], report.facts["notes"], report.facts["labels"])
    _write_text(out / "summary.md", markdown(*head, report.verdict, report.summary))
    for table in report.tables:
        table.save(out / f"{table.name}.csv")
        written.append(f"{table.name}.csv")
    for drawing in report.drawings:
        _write_text(out / f"{drawing.name}.svg", drawing.file)
        _write_text(out / f"{drawing.name}.csv", drawing.data.to_csv(index=False))
        written += [f"{drawing.name}.svg", f"{drawing.name}.csv"]
    for name in set(map(str, before)) - set(written):
        if Path(name).name == name:  # never outside the folder, whatever the list says
            (out / name).unlink(missing_ok=True)
    write_json(out / LIST, written)
    return out / "index.html"


class _Maker:
    """Puts tables and figures into sections."""

    def __init__(
        self,
        frame: pd.DataFrame,
        measured: pd.DataFrame,
        facts: Mapping[str, Any],
        groups: Sequence[Group],
        comparison: Comparison | None,
        contrasts: pd.DataFrame,
    ) -> None:
        self.frame, self.measured, self.facts = frame, measured, facts
        self.groups, self.comparison, self.contrasts = groups, comparison, contrasts
        self.layers = layers.by_layer(facts["layers"]) if facts["layers"] else pd.DataFrame()
        self.looks = assign(self.methods())
        self.places = list(dict.fromkeys((group.arm, group.model) for group in groups))
        models = [arm for arm, _ in self.places]
        self.slugs = {
            place: slug(place[0], place[1] if models.count(place[0]) > 1 else "")
            for place in self.places
        }

    def methods(self) -> list[str]:
        """Every method that appears anywhere."""
        named = [one["method"] for one in (self.frame, self.measured, self.layers) if len(one)]
        return sorted({str(method) for column in named for method in column})

    def sections(self) -> Iterator[Section]:
        if self.comparison is not None:
            yield from self._results(self.comparison)
        yield Section.of(
            "bought",
            "What pruning buys",
            "Theoretical ratios count multiply-accumulates with zeros skipped; measured ratios are "
            "wall-clock and hold for the stated backend only.",
            self._bought(),
        )
        yield Section.of(
            "inside",
            "Inside the networks",
            "Where the remaining weights are, and which channels are gone.",
            self._inside(),
        )
        yield Section.of("missing", "Failed and skipped", "", [Part(tables=self._missing())])
        yield Section.of("provenance", "Provenance", "", [Part(tables=self._provenance())])

    def _results(self, comparison: Comparison) -> Iterator[Section]:
        yield Section.of(
            "summary",
            "What pruning costs",
            "The relative error increase of a task is (sparse error − dense error) / dense error; "
            "positive is worse. The headline is its mean over tasks, the mean of ratios.",
            [
                Part(self._title(place), (), tuple(self._summary(place, comparison)))
                for place in self.places
            ],
        )
        yield Section.of(
            "increase",
            "Relative error increase by sparsity",
            "",
            [
                Part(self._title(place), tuple(self._increase(place, comparison)))
                for place in self.places
            ],
        )
        yield Section.of(
            "tasks",
            "Task by task",
            "",
            [part for place in self.places for part in self._task_parts(place, comparison)],
        )

    def _title(self, place: tuple[str, str]) -> str:
        return " · ".join(place) if len(self.places) > 1 else ""

    def _of(self, place: tuple[str, str]) -> list[Group]:
        return [group for group in self.groups if (group.arm, group.model) == place]

    def _held(self, arm: str, mode: str = "") -> str:
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
        others = [name for name in ("linear", "full") if mode and not mode.startswith(name)]
        kept = [line for line in map(str, lines) if line.partition(":")[0].lower() not in others]
        return " ".join(f"{line.rstrip('.;')}." for line in kept)

    def _summary(self, place: tuple[str, str], comparison: Comparison) -> Iterator[Table]:
        upstream = self.frame[self.frame["mode"] == "upstream"]
        by_cell = upstream.groupby(["arm", "model", *CELL])["value"].mean().to_dict()
        means = cast("dict[tuple[Any, ...], float]", by_cell)
        groups = self._of(place)
        transfer = [group for group in groups if group.mode != "upstream"]
        for group in transfer or groups:
            yield tables.summary_table(
                group,
                comparison,
                self.contrasts,
                means,
                self.measured,
                self._held(group.arm, group.mode),
            )
        parts = [group.of(self.contrasts) for group in groups if len(self.contrasts)]
        if any(len(part) for part in parts):
            yield tables.contrast_table(
                pd.concat(parts),
                name=self.slugs[place],
                title="Methods against each other",
                held_fixed=self._held(place[0]),
            )

    def _increase(self, place: tuple[str, str], comparison: Comparison) -> Iterator[Drawing]:
        groups = self._of(place)
        rows = pd.concat([group.of(comparison.methods) for group in groups])
        rows = rows[~rows["is_dense"] & rows["mor"].notna()]
        groups = [group for group in groups if len(group.of(rows))]
        limits = _shared_limits(groups, rows) if groups else {}
        for group in groups:
            own = group.of(rows)
            data = own[[*CELL, "mor", "low", "high", "n_tasks", "n_seeds", "interval_over"]]
            data = data.rename(columns={"mor": "increase"})
            over = [text for text in own["interval_over"].unique() if text]
            bars = f" Bars: 95 % interval over {' and '.join(over)}." if over else ""
            tasks, seeds = int(own["n_tasks"].max()), int(own["n_seeds"].max())
            count = f"{tasks} task{'s' if tasks != 1 else ''} × "
            count += f"{seeds} upstream seed{'s' if seeds != 1 else ''}"
            yield draw.increase_by_sparsity(
                data,
                self.looks,
                name=f"increase-{group.name}",
                title=group.title,
                caption=f"Mean of ratios, {count}.{bars}",
                limits=limits[group.name],
            )

    def _task_parts(self, place: tuple[str, str], comparison: Comparison) -> Iterator[Part]:
        groups = [group for group in self._of(place) if group.mode != "upstream"]
        rows = [group.of(comparison.tasks) for group in groups if len(comparison.tasks)]
        order = _easiest_first(pd.concat(rows)) if rows else []
        dots = [self._dots(group, comparison, order) for group in groups]
        heat = [self._heat(group, comparison, order) for group in groups]
        yield Part(self._title(place), tuple(one for one in dots if one))
        yield Part("", tuple(one for one in heat if one), (self._task_table(place, comparison),))

    def _dots(self, group: Group, comparison: Comparison, order: list[str]) -> Drawing | None:
        own = group.of(comparison.tasks)
        if own.empty:
            return None
        seeds = int(own["n_seeds"].max())
        mean = f", mean of {seeds} upstream seeds" if seeds > 1 else ""
        return draw.accuracy_by_task(
            own[[*CELL, "task", "value", "value_sd", "n_test", "n_seeds"]],
            self.looks,
            tasks=order,
            name=f"accuracy-{group.name}",
            title=group.title,
            caption=f"Each task's own metric{mean}. The upright line is the dense model.",
        )

    def _heat(self, group: Group, comparison: Comparison, order: list[str]) -> Drawing | None:
        own = group.of(comparison.tasks)
        own = own[~own["is_dense"] & own["r"].notna()] if len(own) else own
        if own.empty:
            return None
        shown = own[[*CELL, "task", "r", "examples_low", "examples_high"]]
        return draw.heat_map(
            shown.rename(columns={"r": "increase"}),
            tasks=order,
            name=f"heat-{group.name}",
            title=group.title,
            caption="Relative error increase, task × method; blue is better than dense.",
        )

    def _task_table(self, place: tuple[str, str], comparison: Comparison) -> Table:
        rows = pd.concat([group.of(comparison.tasks) for group in self._of(place)])
        return tables.task_table(
            rows,
            self.frame,
            name=self.slugs[place],
            title="Accuracy, errors and relative error increase",
            held_fixed=self._held(place[0]),
        )

    def _bought(self) -> Iterator[Part]:
        for place in self.places:
            yield Part(self._title(place), tuple(self._pareto_macs(place)))
        arms = list(dict.fromkeys(arm for arm, _ in self.places))
        if len(self.measured):
            arms += [arm for arm in dict.fromkeys(self.measured["arm"]) if arm not in arms]
            for arm in arms:
                drawings = tuple(self._pareto_time(arm))
                held = self._held(arm)
                table = cost_tables.speedup_table(self.measured, arm=arm, held_fixed=held)
                title = f"{arm}: measured time" if len(arms) > 1 else ""
                yield Part(title, drawings, (table,) if len(table.frame) else ())

    def _pareto_macs(self, place: tuple[str, str]) -> Iterator[Drawing]:
        for group, rows in self._errors(self._of(place)):
            own = rows.assign(cost=rows["mac_ratio"].where(~rows["is_dense"], 1.0))
            own = own[own["cost"] > 0]
            if own["cost"].nunique() > 1:
                yield draw.pareto(
                    own[["model", *CELL, "cost", "error"]],
                    self.looks,
                    name=f"macs-{group.name}",
                    title=f"{group.title}: error against MACs",
                    caption="Theoretical cost; the dashed line is the front of what nothing beats.",
                    unit="MACs with zeros skipped, share of dense",
                )

    def _pareto_time(self, arm: str) -> Iterator[Drawing]:
        """Error against time, all models of the arm: a smaller dense model is a rival of zeros.

        With one model, a backend that does not use zeros has nothing to show here.
        """
        own = self.measured[self.measured["arm"] == arm]
        if own["model"].nunique() < 2:
            own = own[own["uses_zeros"]]
        errors: dict[str, list[pd.DataFrame]] = {}
        for group, rows in self._errors([group for group in self.groups if group.arm == arm]):
            errors.setdefault(group.title, []).append(rows)
        for number, (key, part) in enumerate(own.groupby(cost_tables.REGIME, sort=False)):
            words = cost_tables.regime(dict(zip(cost_tables.REGIME, key, strict=True)))
            seconds = part.set_index(["model", *CELL])["seconds"].rename("cost")
            for title, parts in errors.items():
                timed = pd.concat(parts).join(seconds, on=["model", *CELL], how="inner")
                if len(timed) > 1:
                    timed = timed.assign(cost=1000 * timed["cost"])
                    yield draw.pareto(
                        timed[["model", *CELL, "cost", "error"]],
                        self.looks,
                        name=slug("time", arm, title, key[0], number),
                        title=f"{title}: error against measured time",
                        caption=f"Measured: {words}; median, mean over upstream seeds.",
                        unit=f"ms per batch ({words})",
                    )

    def _errors(self, groups: Sequence[Group]) -> Iterator[tuple[Group, pd.DataFrame]]:
        """Mean error over tasks by method, where all of them have the same number of tasks."""
        if self.comparison is None:
            return
        modes = {group.mode for group in groups}
        # The second probe checks the first one; it would only repeat these figures.
        left_out = {"upstream"} | ({"linear-lbfgs"} if "linear-sgd" in modes else set())
        for group in [g for g in groups if g.mode not in left_out] or groups:
            rows = group.of(self.comparison.methods)
            rows = rows[rows["mean_value"].notna()]
            rows = rows[rows["n_tasks"] == rows["n_tasks"].max()]
            yield group, rows.assign(error=1 - rows["mean_value"])

    def _inside(self) -> Iterator[Part]:
        if self.layers.empty:
            return
        arms = list(dict.fromkeys(self.layers["arm"]))
        for arm in arms:
            title = arm if len(arms) > 1 else ""
            yield Part(
                title,
                layers.drawings(self.layers, self.looks, arm=arm),
                (layers.table(self.layers, arm=arm),),
            )

    def _missing(self) -> tuple[Table, ...]:
        failures, skipped = self.facts["failures"], self.facts["skipped"]
        found = [provenance.failures_table(failures)] if failures else []
        made = provenance.skipped_table(skipped)
        return (*found, made) if made else tuple(found)

    def _provenance(self) -> tuple[Table, ...]:
        origin = provenance.origin_table(self.facts)
        runs = [provenance.runs_table(self.frame)] if len(self.frame) else []
        return (origin, *runs) if origin else tuple(runs)


def _easiest_first(tasks: pd.DataFrame) -> list[str]:
    """Tasks by falling accuracy of the dense model (of all, where there is none), over modes."""
    dense = tasks[tasks["is_dense"]]
    rows = dense if len(dense) else tasks
    order = rows.groupby("task")["value"].mean().sort_values(ascending=False).index.tolist()
    return [*order, *(task for task in tasks["task"].unique() if task not in order)]


def _shared_limits(groups: Sequence[Group], rows: pd.DataFrame) -> dict[str, tuple[float, float]]:
    """The axis of each group: shared where that leaves every panel readable, else its own."""
    columns = ["mor", "low", "high"]
    own = {g.name: draw.common_limits(g.of(rows)[columns].to_numpy().ravel()) for g in groups}
    spans = [high - low for low, high in own.values()]
    if max(spans) > 2 * min(spans):
        return own
    return dict.fromkeys(own, draw.common_limits(rows[columns].to_numpy().ravel(), margin=0.05))


def _with_defaults(facts: Mapping[str, Any]) -> dict[str, Any]:
    experiment = str(facts.get("experiment") or "results")
    defaults: dict[str, Any] = {
        "experiment": experiment,
        "title": experiment,
        "notes": "",
        "labels": (),
        "held_fixed": {},
        "contrasts": [],
        "layers": (),
        "skipped": {},
        "failures": (),
        "versions": {},
        "machine": {},
    }
    given = {name: facts[name] for name in defaults if facts.get(name)}
    return defaults | given


def _typed(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame with missing group columns as `compare` fills them, so that rows can be matched."""
    frame = frame.copy()
    for name in GROUP:
        frame[name] = frame[name].astype(object).where(frame[name].notna(), "")
    frame["sparsity"] = frame["sparsity"].fillna(0.0).astype(float)
    for name in ("top1", "n_test", "mac_ratio", "measured_sparsity"):
        if name not in frame:
            frame[name] = float("nan")
    return frame


def _has_predictions(frame: pd.DataFrame) -> bool:
    return "predictions" in frame and bool(frame["predictions"].astype(bool).all())


def _contrasts(frame: pd.DataFrame, declared: Sequence[tuple[str, str]]) -> pd.DataFrame:
    """Every pair of pruning methods within each arm, those declared in advance first."""
    parts = []
    for _, rows in frame.groupby("arm", sort=False):
        methods = sorted(set(rows["method"].astype(str)) - {"dense"})
        pairs = [pair for pair in declared if set(pair) <= set(methods)]
        known = {frozenset(pair) for pair in pairs}
        pairs += [p for p in combinations(methods, 2) if frozenset(p) not in known]
        for first, second in pairs:
            own = rows[rows["method"].isin([first, second, "dense"])]
            if (own["method"] == "dense").any():
                own = _dense_rivals_everywhere(own)
                words = "in advance" if frozenset((first, second)) in known else "descriptive"
                part = contrast(own, first, second, allow_unequal=True)
                parts.append(part.assign(declared=words if declared else ""))
    parts = [part for part in parts if len(part)]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def _dense_rivals_everywhere(frame: pd.DataFrame) -> pd.DataFrame:
    """A smaller dense model, which has no sparsity, stands against every sparsity of the others."""
    rival = frame["method"].ne("dense") & frame["sparsity"].eq(0)
    levels = sorted(set(frame.loc[frame["sparsity"] > 0, "sparsity"]))
    if not rival.any() or not levels:
        return frame
    copies = [frame[rival].assign(sparsity=level) for level in levels]
    return pd.concat([frame[~rival], *copies], ignore_index=True)


def _without_intervals(comparison: Comparison) -> Comparison:
    """The comparison of a demo: estimates only, so that nobody reads one seed as evidence."""
    methods = comparison.methods.copy()
    methods[list(INTERVALS)] = float("nan")
    methods["interval_over"] = ""
    methods["verdict"] = ""
    methods["verdict_text"] = ""
    tasks = comparison.tasks.copy()
    tasks[["examples_low", "examples_high"]] = float("nan")
    return Comparison(methods, tasks)


def _write_text(path: Path, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
