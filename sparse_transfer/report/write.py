"""Write the whole report: page, tables, figures, summary; sections appear where there is data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import pandas as pd

from sparse_transfer.report import answer, cost_tables, imported, tables
from sparse_transfer.report.canvas import Drawing
from sparse_transfer.report.cells import Table
from sparse_transfer.report.html import Section, page
from sparse_transfer.report.latex import latex
from sparse_transfer.report.material import LoadImages, LoadPredictions, Material
from sparse_transfer.report.sections import ALL
from sparse_transfer.report.tables import MOST_METHODS, Group
from sparse_transfer.report.terminal import markdown
from sparse_transfer.report.verdict import sentences
from sparse_transfer.statistics import GROUP, Comparison, compare, contrast
from sparse_transfer.store import read_json, replacing, write_json

LIST = "files.json"  # what the last report wrote, so that a new one leaves nothing stale
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
        closing: what the terminal and the Markdown summary end in.
    """

    facts: dict[str, Any]
    verdict: list[str]
    sections: list[Section]
    summary: list[Table]
    methods: list[str]
    closing: tuple[str, ...] = ()

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
    images: LoadImages | None = None,
) -> Path:
    """Build the report of an experiment and write it into a folder.

    Args, return value and errors: see `build` and `save`.
    """
    return save(build(frame, bench, facts, predictions, images), out)


def build(
    frame: pd.DataFrame,
    bench: pd.DataFrame,
    facts: Mapping[str, Any],
    predictions: LoadPredictions | None,
    images: LoadImages | None = None,
) -> Report:
    """Compute everything that a report shows.

    Args:
        frame: the results, one row per evaluation; may be empty.
        bench: latency measurements, one row per checkpoint and backend; may be empty.
        facts: what is not in the frames, all optional: `title`, `experiment`, `notes` (str);
            `labels` (list of str; one that starts with `demo` withholds intervals and verdicts);
            `contrasts` (pairs of methods declared in advance); `answer` (see `config.Answer`);
            `held_fixed` (arm → list of lines); `layers` (see `layers.by_layer`); `costs` (see
            `hours.by_cell`); `few_shot` (rows, see `statistics.few_shot_curves`); `class_names`
            (task → names by class index); `skipped` (task → reason → count);
            `failures` (dicts, see `provenance.FAILURE_COLUMNS`);
            `imported` ("all" or "some" rows are: they are marked), `left_out` (dicts, see
            `imported.LEFT_OUT`), `drift` (dicts, see `imported.DRIFT`);
            `versions`, `machine` (name → value).
        predictions: loads the stored predictions of a row, for intervals over test examples; None,
            or rows without the column `predictions`, go without them.
        images: finds test images, to show some that newly fail.

    Raises:
        UserError: a value that is no number, a result that occurs twice, unreadable predictions.
    """
    known = _with_defaults(facts)
    if len(frame) and frame["method"].nunique() > MOST_METHODS:
        words = f"more than {MOST_METHODS} methods: only pairs named in `contrasts` are compared"
        known["labels"] = [*known["labels"], words]
    is_demo = any(str(label).lower().startswith("demo") for label in known["labels"])
    measured = cost_tables.measurements(bench) if len(bench) else pd.DataFrame()
    comparison, contrasts, load = None, pd.DataFrame(), None
    groups: list[Group] = []
    further = pd.DataFrame()
    if len(frame):
        frame, further = _apart(_typed(frame))
        load = None if is_demo or not _has_predictions(frame) else predictions
        comparison = compare(frame, predictions=load, allow_unequal=True)
        contrasts = _contrasts(frame, known["contrasts"])
        if is_demo:
            comparison, contrasts = _without_intervals(comparison), pd.DataFrame()
        groups = tables.groups(comparison.methods, frame)
    material = Material(
        frame,
        measured,
        known,
        groups,
        comparison,
        contrasts,
        predictions=load,
        further=further,
        images=images,
    )
    verdict = sentences(material)
    sections = [made for section in ALL if (made := section(material))]
    sections = [imported.marked(section, known["imported"]) for section in sections]
    summary = [
        _headed(table, part.title, known["imported"])
        for section in sections
        if section.name == ("answer" if known["answer"] else "summary")
        for part in section.parts
        for table in part.tables
        if not table.folded
    ]
    if not known["answer"]:
        return Report(known, verdict, sections, summary, material.methods)
    rows = answer.rows(material)
    verdict, closing = answer.headline(material, rows), answer.sentences(material, rows)
    return Report(known, verdict, sections, summary, material.methods, tuple(closing))


def save(report: Report, out: Path) -> Path:
    """Write index.html, summary.md, CSV and LaTeX of every table, SVG and CSV of every figure.

    Files that an earlier report left in the folder and this one does not have are removed.

    Returns:
        The path of index.html.

    Raises:
        UserError: the folder cannot be written.
    """
    before = read_json(out / LIST) if (out / LIST).is_file() else []
    written = ["index.html", "summary.md"]
    verdict = [*report.verdict, *report.closing]
    text = page(report.facts, verdict, report.sections, report.methods)
    _write_text(out / "index.html", text)
    head = (report.facts["title"], report.facts["notes"], report.facts["labels"])
    _write_text(out / "summary.md", markdown(*head, report.verdict, report.summary, report.closing))
    for table in report.tables:
        table.save(out / f"{table.name}.csv")
        _write_text(out / f"{table.name}.tex", latex(table))
        written += [f"{table.name}.csv", f"{table.name}.tex"]
    for drawing in report.drawings:
        _write_text(out / f"{drawing.name}.svg", drawing.file)
        _write_text(out / f"{drawing.name}.csv", drawing.data.to_csv(index=False))
        written += [f"{drawing.name}.svg", f"{drawing.name}.csv"]
    for name in set(map(str, before)) - set(written):
        if Path(name).name == name:  # never outside the folder, whatever the list says
            (out / name).unlink(missing_ok=True)
    write_json(out / LIST, written)
    return out / "index.html"


def _headed(table: Table, place: str, imported: str) -> Table:
    """A table that stands without its heading: of which arm it is, and whether of own results."""
    if not place:
        return table
    is_own = imported == "some" and "origin" not in table.frame
    return replace(table, title=f"{'own results, ' if is_own else ''}{place}: {table.title}")


def _with_defaults(facts: Mapping[str, Any]) -> dict[str, Any]:
    experiment = str(facts.get("experiment") or "results")
    defaults: dict[str, Any] = {
        "experiment": experiment,
        "title": experiment,
        "notes": "",
        "labels": (),
        "held_fixed": {},
        "contrasts": [],
        "answer": None,
        "layers": (),
        "few_shot": (),
        "class_names": {},
        "costs": (),
        "skipped": {},
        "failures": (),
        "left_out": (),
        "drift": (),
        "imported": "",
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
    for name in ("top1", "n_test", "mac_ratio", "macs", "measured_sparsity"):
        if name not in frame:
            frame[name] = float("nan")
    return frame


def _apart(frame: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """What is compared, and upstream checkpoints on further test sets.

    Their test sets differ from the upstream task's and may even be the same images; a mean over
    them would mean nothing. Where there is nothing else, each is compared on its own.
    """
    is_further = (frame["mode"] == "upstream") & (frame["profile"] == frame["task"])
    if is_further.all():
        return frame, frame
    return frame[~is_further], frame[is_further]


def _has_predictions(frame: pd.DataFrame) -> bool:
    """Whether every row of our own has predictions; imported ones never have."""
    if "predictions" not in frame:
        return False
    own = frame["origin"].isna() if "origin" in frame else pd.Series(True, index=frame.index)
    return bool(own.any() and frame.loc[own, "predictions"].astype(bool).all())


def _contrasts(frame: pd.DataFrame, declared: Sequence[tuple[str, str]]) -> pd.DataFrame:
    """Every pair of pruning methods within each arm, those declared in advance first.

    Where an arm has more than MOST_METHODS, only the declared ones.
    """
    parts = []
    for _, rows in frame.groupby("arm", sort=False):
        methods = sorted(set(rows["method"].astype(str)) - {"dense"})
        pairs = [pair for pair in declared if set(pair) <= set(methods)]
        known = {frozenset(pair) for pair in pairs}
        if len(methods) <= MOST_METHODS:
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
