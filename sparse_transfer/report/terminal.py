"""The report in a terminal (rich) and as a Markdown file: verdict, summary tables, failures."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console, Group
from rich.padding import Padding
from rich.table import Table as RichTable
from rich.text import Text

from sparse_transfer.report.cells import Table


def print_report(
    title: str,
    verdict: Sequence[str],
    tables: Sequence[Table],
    console: Console,
    closing: Sequence[str] = (),
) -> None:
    """Print title, verdict, tables and the closing sentences.

    `console` decides on colour (it respects NO_COLOR).
    """
    console.print()
    console.print(Text(title, style="bold"))
    for sentence in verdict:
        console.print(Padding(Text(sentence), (0, 0, 1, 0)))
    for table in tables:
        console.print(rich_table(table))
    for sentence in closing:
        console.print(Padding(Text(sentence), (0, 0, 1, 0)))
    console.print(Text("What was held fixed, and every table and figure, is in the page.", "dim"))


# The columns that fit eighty characters, with short headings; the page and the CSV have them all.
_SHORT = {
    "mode_title": "mode",
    "method": "method",
    "sparsity": "sparsity",
    "upstream": "upstream",
    "first": "first",
    "second": "second",
    "mean_value": "accuracy %",
    "mor": "rel. error %",
    "difference": "difference %",
    "coverage": "tasks×seeds",
    "verdict_short": "verdict",
    "row": "row",
    "errors": "wrong",
    "n_test": "of",
    "error": "error %",
    "points": "points",
    "per_image": "ms",
    "packed": "MB",
}

_WITH_INTERVAL = ("mor", "difference", "points")


def rich_table(table: Table) -> Group:
    """One table with its footnotes, as something rich prints: its most important columns."""
    drawn = RichTable(
        title=table.title,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    keys = [column.key for column in table.columns]
    shown = [place for place, key in enumerate(keys) if key in _SHORT]
    if {"mean_value", "mor"} <= set(keys):  # accuracies speak where there is no reference
        shown.remove(keys.index("mean_value"))
    if "difference" in keys:  # a contrast: its mode and the two names need the room
        shown.remove(keys.index("coverage"))
    for column in (table.columns[place] for place in shown):
        justify = "right" if column.numeric else "left"
        drawn.add_column(_SHORT[column.key], justify=justify, no_wrap=column.key in _WITH_INTERVAL)
    for row in table.rows:
        drawn.add_row(
            *(
                Text(
                    row[place].plain
                    if table.columns[place].key in _WITH_INTERVAL
                    else row[place].text
                )
                for place in shown
            )
        )
    notes = [Text(line, style="dim") for line in table.notes]
    return Group(drawn, *notes, Text(""))


def markdown(
    title: str,
    notes: str,
    labels: Sequence[str],
    verdict: Sequence[str],
    tables: Sequence[Table],
    closing: Sequence[str] = (),
) -> str:
    """The summary as Markdown, for a pull request or a note."""
    parts = [f"# {title}"]
    if labels:
        parts.append(" · ".join(f"**{_plain(label)}**" for label in labels))
    if notes:
        parts.append(_plain(notes))
    parts += [_plain(sentence) for sentence in verdict]
    for table in tables:
        parts += [f"## {_plain(table.title)}", _markdown_table(table)]
        parts += [_plain(note) for note in table.notes]
        if table.held_fixed:
            parts.append(f"Held fixed: {_plain(table.held_fixed)}")
    parts += [f"- {_plain(sentence)}" for sentence in closing]
    return "\n\n".join(parts) + "\n"


def _markdown_table(table: Table) -> str:
    head = "| " + " | ".join(_plain(column.title) for column in table.columns) + " |"
    rule = "|" + "|".join("---:" if column.numeric else "---" for column in table.columns) + "|"
    rows = ["| " + " | ".join(_plain(cell.plain) for cell in row) + " |" for row in table.rows]
    return "\n".join([head, rule, *rows])


def _plain(text: str) -> str:
    """Text that cannot break out of its place in Markdown."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
