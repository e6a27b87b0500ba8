"""What the study cost in time, and after how many tasks a pruned model has paid back."""

from __future__ import annotations

from collections.abc import Iterator

from sparse_transfer.report import hours
from sparse_transfer.report.cells import Column, Table, duration, with_values
from sparse_transfer.report.html import Part, Section
from sparse_transfer.report.material import Material
from sparse_transfer.store import slug

COLUMNS = (
    Column("stage_title", "transfer", choice=True),
    Column("model", "model", choice=True),
    Column("method", "method", choice=True),
    Column("sparsity", "sparsity, %", "sparsity", choice=True),
    Column("upstream", "upstream, per checkpoint", "duration", "mean over upstream seeds"),
    Column("extra", "more than dense upstream", "duration"),
    Column("per_task", "per task", "duration", "mean over tasks and seeds"),
    Column("saving", "saved per task", "duration", "dense − own; interval over tasks"),
    Column("n_tasks", "tasks", "count"),
    Column("seeds", "seeds", "count"),
    Column("pays_back", "pays back"),
)
NAMES = {
    "prune": "upstream",
    "evaluate": "scoring on further test sets",
    "tune": "search of learning rates",
    "linear": "linear probes",
    "few_shot": "few-shot curves",
    "online": "linear with the backbone recomputed",
    "full": "full fine-tuning",
    "bench": "measuring latency",
}


def section(material: Material) -> Section | None:
    """Where runs recorded their time; imported results have none."""
    costs = material.facts["costs"]
    if not costs:
        return None
    return Section.of(
        "cost",
        "What the study cost",
        "Wall-clock of whole runs on this machine: reading images, training and scoring. A pruned "
        "model pays back where the time it saves on tasks outweighs what it cost more upstream; a "
        "saving counts where its interval over tasks lies above zero.",
        _parts(material),
    )


def _parts(material: Material) -> Iterator[Part]:
    costs = material.facts["costs"]
    cells = hours.by_cell(costs)
    arms = list(dict.fromkeys(cells["arm"]))
    for arm in arms:
        own = cells[cells["arm"] == arm].copy()
        own["stage_title"] = [hours.STAGES.get(stage, stage) for stage in own["stage"]]
        own = own.sort_values(["stage", "model", "sparsity", "method"], kind="stable")
        columns = with_values(own, COLUMNS)
        if own["model"].nunique() == 1:
            columns = tuple(column for column in columns if column.key != "model")
        sums = hours.total([row for row in costs if row["arm"] == arm])
        remark = f"All runs together took {duration(sum(sums.values()))}: "
        remark += ", ".join(f"{NAMES.get(s, s)} {duration(t)}" for s, t in sums.items()) + "."
        notes = (
            "A run that was interrupted counts from its last start, and features that were kept "
            "from an earlier run cost nothing again.",
        )
        table = Table(
            f"cost-{slug(arm)}", "Time and break-even", own, columns, remark, notes,
            material.held(arm),
        )  # fmt: skip
        yield Part(arm if len(arms) > 1 else "", (), (table,))
