"""The results of a name: an experiment's, an imported set's, or one's own beside imported ones.

RUNS/beside/EXPERIMENT.json    the imported set that `compare` put an experiment beside
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparse_transfer import record
from sparse_transfer.errors import UserError, unknown_name
from sparse_transfer.store import Store, read_json, write_json

if TYPE_CHECKING:
    import pandas as pd


def collect(store: Store, name: str | None) -> record.Results:
    """Read what a report of `name` shows.

    Args:
        store: where the results are.
        name: of a recorded experiment or an imported set; None takes the last experiment.

    Raises:
        UserError: nothing has that name, two things have it, or there is nothing to report yet.
    """
    from sparse_transfer.imports import sets

    if name is not None and name in sets.names(store.root):
        refuse_clash(store, name, is_recorded=record.record_path(store, name).is_file())
        return _imported(store, name)
    _refuse_unknown(store, name)
    results = record.collect(store, name)
    noted = store.root / "beside" / f"{results.facts['experiment']}.json"
    return _beside(store, results, read_json(noted)) if noted.is_file() else results


def refuse_clash(store: Store, name: str, *, is_recorded: bool = True) -> None:
    """Raise a UserError where an imported set has the name of an experiment."""
    from sparse_transfer.imports import sets

    if is_recorded and name in sets.names(store.root):
        raise UserError(
            f"Both an experiment and an imported set are named {name} in {store.root}.",
            "Their reports would stand in one folder.",
            f"Import the files under another --name and remove {store.root / 'imported' / name}, "
            "or give the experiment another `name`.",
        )


def _refuse_unknown(store: Store, name: str | None) -> None:
    """Where there are imported sets, an unknown name may have meant one: they are listed, too."""
    from sparse_transfer.imports import sets

    experiments = [path.stem for path in (store.root / "experiments").glob("*.json")]
    imported = sets.names(store.root)
    if not imported or (name is None and experiments):
        return
    if name is None:
        raise UserError(
            f"There is no experiment in {store.root}.",
            f"Imported sets: {', '.join(imported)}.",
            f"Name one: `sparse-transfer report {imported[0]}`.",
        )
    if name.removesuffix(".yaml") not in experiments and Path(name).stem not in experiments:
        error = unknown_name("experiment or imported set", name, [*experiments, *imported])
        raise UserError(error.what, f"Imported sets: {', '.join(imported)}.", error.hint)


def put_beside(store: Store, experiment: str, imported: str, absent: Mapping[str, str]) -> None:
    """Note that the report of an experiment is to show an imported set beside it.

    Args:
        experiment, imported: their names.
        absent: imported tasks that are not run here → why.
    """
    write_json(
        store.root / "beside" / f"{experiment}.json", {"imported": imported, "absent": dict(absent)}
    )


def _imported(store: Store, name: str) -> record.Results:
    import pandas as pd

    from sparse_transfer.imports import coverage, sets
    from sparse_transfer.imports.results import ORIGIN

    frame, noted = sets.load(store.root, name)
    kept, gaps = coverage.complete(frame)
    coverage.refuse_empty(kept, gaps)
    files = ", ".join(source["file"] for source in noted["sources"])
    facts = {
        "experiment": name,
        "title": f"{name} ({ORIGIN})",
        "notes": f"Read from {files} on {noted['imported'][:10]}. Sparsities, splits, metrics and "
        "training are what the files or their source declare.",
        "labels": [ORIGIN],
        "held_fixed": {"imported": ["what the source of the files declares"]},
        "left_out": [asdict(gap) for gap in gaps],
        "imported": "all",
    }
    return record.Results(kept, pd.DataFrame(), facts, record.stored_predictions(store))


def _beside(store: Store, own: record.Results, noted: Mapping[str, Any]) -> record.Results:
    from sparse_transfer.imports import beside, coverage, sets
    from sparse_transfer.imports.results import ORIGIN

    name = noted["imported"]
    kept, gaps = coverage.complete(sets.load(store.root, name)[0])
    joined = beside.join(own.frame, kept, name, noted["absent"])
    labels = [*own.facts["labels"], f"{name} is {ORIGIN}"]
    labels += [f"{mode}: protocol drift, no shared ranking" for mode in joined.drifted]
    held = dict(own.facts["held_fixed"])
    for arm in set(joined.frame["arm"]) - set(held):
        held[arm] = [_held_fixed(arm, name)]
    facts = {
        **own.facts,
        "labels": labels,
        "held_fixed": held,
        "drift": _records(joined.drift),
        "left_out": [asdict(gap) for gap in gaps],
        "imported": "some",
    }
    return record.Results(joined.frame, own.bench, facts, own.predictions)


def _held_fixed(arm: str, name: str) -> str:
    if arm.startswith(name):
        return "what the source of the imported files declares; not ranked with own results"
    return "as in the other results of this experiment"


def _records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(key): value for key, value in row.items()} for row in frame.to_dict("records")]
