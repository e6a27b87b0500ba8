"""What an experiment's runs found, gathered for the report.

`run` records which runs belong to an experiment (`runs/experiments/NAME.json`); `collect` reads
their results, so a report needs neither the data nor the models.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparse_transfer import evaluation, plugins
from sparse_transfer.errors import UserError, unknown_name
from sparse_transfer.predictions import Predictions
from sparse_transfer.store import Store, read_json, write_json

if TYPE_CHECKING:
    import pandas as pd

    from sparse_transfer.config import Answer, Arm
    from sparse_transfer.plan import Plan, Run


@dataclass(frozen=True)
class Results:
    """The arguments of `report.write`."""

    frame: pd.DataFrame
    bench: pd.DataFrame
    facts: dict[str, Any]
    predictions: Callable[[Any], Predictions]


def save(plan: Plan, store: Store) -> None:
    """Record which runs an experiment consists of; an earlier record of its name is replaced."""
    arms = {}
    for arm in plan.experiment.arms:
        runs = plan.arms[arm.name]
        arms[arm.name] = {
            "recipe": arm.recipe.name,
            "held_fixed": held_fixed(arm),
            "runs": [
                {
                    "stage": run.stage,
                    "id": run.id,
                    "title": run.title,
                    **asdict(run.subject),
                    **_task(run),
                }
                for run in runs
            ],
        }
    write_json(
        record_path(store, plan.experiment.name),
        {
            "experiment": plan.experiment.name,
            "title": plan.experiment.title or plan.experiment.name,
            "notes": plan.experiment.notes,
            "contrasts": plan.experiment.contrasts,
            "demo": plan.experiment.demo,
            "answer": _plain_answer(plan.experiment.answer),
            "arms": arms,
            "unavailable": [
                {"arm": item.arm, "what": item.what, "error": str(item.error)}
                for item in plan.unavailable
            ],
        },
    )


def collect(store: Store, name: str | None) -> Results:
    """Read the results of an experiment.

    Args:
        store: where they are.
        name: of the experiment; None takes the one recorded last.

    Raises:
        UserError: there is no such experiment, or it has no result and no failure yet.
    """
    import pandas as pd

    record = read_json(_recorded(store, name))
    rows: list[dict[str, Any]] = []
    bench: list[dict[str, Any]] = []
    layers: list[dict[str, Any]] = []
    costs: list[dict[str, Any]] = []
    failures: list[dict[str, Any]] = []
    skipped: dict[str, dict[str, int]] = {}
    finished = 0
    versions: dict[str, str] = {}
    machine: dict[str, Any] = {}
    raw: dict[str, list[str]] = {}
    learned: dict[tuple[str, ...], list[float]] = {}
    references: dict[str, str] = {}
    few_shot: list[dict[str, Any]] = []
    class_names: dict[str, list[str]] = {}
    for arm_name, arm in record["arms"].items():
        macs: dict[str, tuple[float, float]] = {}
        for run in arm["runs"]:
            folder = store.folder(run["stage"], run["id"])
            subject = {
                "arm": arm_name,
                "model": run["model"],
                "method": run["method"],
                "sparsity": run["sparsity"],
                "upstream_seed": run["seed"],
            }
            status = store.status(run["stage"], run["id"])
            if status == "failed":
                error = read_json(folder / "failure.json")["error"]
                failures.append(
                    {"stage": run["stage"], "run": run["id"], "task": run.get("task"), **subject}
                    | {"error": error}
                )
            if status != "finished":
                continue
            finished += 1
            result = read_json(folder / "result.json")
            manifest = read_json(folder / "manifest.json")
            versions.update(manifest["versions"])
            machine = {
                **manifest["machine"],
                "device": manifest["device"],
                "threads": manifest["threads"],
            }
            shared = {"stage": run["stage"], "run": run["id"], **subject, "recipe": arm["recipe"]}
            if (seconds := result.get("cost", {}).get("seconds")) is not None:
                task = {"task": run.get("task", "")}
                costs.append({"stage": run["stage"], **subject, **task, "seconds": seconds})
            if run["stage"] == "prune":
                if not run["sparsity"] and (found := result["measured_sparsity"]):
                    learned.setdefault(_method(subject), []).append(found)
                macs[run["id"]] = (result["macs"], result["macs_dense"])
                layers += [{**subject, **layer} for layer in result["layers"]]
                if line := result.get("raw"):
                    raw.setdefault(arm_name, []).append(f"{run['title']} {line}")
            checkpoint = manifest["parents"].get("checkpoint", {"id": run["id"]})["id"]
            for row in result.get("rows", ()):
                rows.append({**shared, **_flat(row, folder), "checkpoint": checkpoint})
                references[row["task"]] = run.get("reference", run.get("task", row["task"]))
            few_shot += _few_shot_rows(subject, result)
            class_names |= result.get("class_names", {})
            bench += [
                {**shared, **row, "checkpoint": checkpoint} for row in result.get("bench", ())
            ]
            failures += [
                {"stage": "bench", "run": run["id"], **subject, "error": f"not measured: {reason}"}
                for reason in result.get("unavailable", ())
            ]
            for task, reasons in result.get("skipped", {}).items():
                skipped.setdefault(task, {}).update(reasons)
        _add_mac_ratio([*rows, *bench], arm_name, arm["runs"], macs)
    failures += [
        {
            "stage": "data",
            "run": "",
            "arm": item["arm"],
            "task": item["what"].partition("task ")[2],
            "error": item["error"],
        }
        for item in record["unavailable"]
    ]
    if not finished and not failures:
        raise UserError(
            f"There is nothing to report of `{record['experiment']}` yet.",
            f"No run of it is finished in {store.root}.",
            f"`sparse-transfer run {record['experiment']}` does them.",
        )
    for part in (rows, bench, layers, costs, failures, few_shot):
        _name_learned_sparsities(part, learned)
    frame = pd.DataFrame(rows)
    statuses = {
        run["id"]: store.status(run["stage"], run["id"])
        for arm in record["arms"].values()
        for run in arm["runs"]
    }
    total = len(statuses)
    unfinished = total - list(statuses.values()).count("finished")
    facts = {
        "experiment": record["experiment"],
        "title": record["title"],
        "notes": record["notes"],
        "labels": [
            *(["demo: no intervals"] if record["demo"] else []),
            *([f"partial: {unfinished} of {total} runs are not finished"] if unfinished else []),
        ],
        "held_fixed": {
            name: [*arm["held_fixed"], *_before_recalibration(raw.get(name, []))]
            for name, arm in record["arms"].items()
        },
        "contrasts": [tuple(pair) for pair in record["contrasts"]],
        "answer": record.get("answer"),
        "layers": layers,
        "few_shot": few_shot,
        "class_names": class_names,
        "costs": costs,
        "skipped": skipped,
        "references": references,
        "failures": failures,
        "versions": versions,
        "machine": machine or {"system": platform.system()},
    }
    return Results(
        frame,
        pd.DataFrame(bench),
        facts,
        stored_predictions(store),
    )


def stored_predictions(store: Store) -> Callable[[Any], Predictions]:
    """What loads the predictions of a row of the results frame."""
    return lambda row: Predictions.load(store.root / row["predictions"])


def _plain_answer(answer: Answer | None) -> dict[str, Any] | None:
    return answer.model_dump(mode="json") if answer else None


def _few_shot_rows(subject: dict[str, Any], result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row per shots and draw of a few-shot run; none of any other run."""
    points = result.get("few_shot", ())
    names = ("task", "metric", "n_test", "split_hash", "image_size", "c", "left_out")
    return [
        {
            **subject,
            **{name: result[name] for name in names},
            **{name: point[name] for name in ("shots", "draw", "images", "value")},
            "short_classes": result["short_classes"].get(str(point["shots"]), []),
        }
        for point in points
    ]


def _method(row: Mapping[str, Any]) -> tuple[str, ...]:
    return row["arm"], row["model"], row["method"]


def _name_learned_sparsities(
    rows: list[dict[str, Any]], learned: Mapping[tuple[str, ...], list[float]]
) -> None:
    """A method without a target stands in the tables at the mean of what its seeds learned."""
    for row in rows:
        if "method" in row and (found := learned.get(_method(row))):
            row["sparsity"] = round(sum(found) / len(found), 3)


def held_fixed(arm: Arm) -> list[str]:
    """What all rows of an arm share, in words, one fact per line."""
    transfer = arm.transfer
    lines = _upstream_held_fixed(arm)
    if transfer:
        size = transfer.preprocess
        crop = "central crop" if size.crop == "center" else "whole image squeezed"
        lines.append(
            f"Transfer at {size.image_size} px ({crop}, interpolation: {size.interpolation}), "
            f"transfer seeds {', '.join(map(str, transfer.seeds))}; relative error increase: mean "
            "of ratios over tasks."
        )
        if "linear" in transfer.modes:
            lines.append(
                f"Linear: profile {transfer.linear.name}; backbone frozen in eval mode, cached "
                "features; SGD head, last epoch; logistic regression with C chosen on a part of "
                "train."
            )
        if transfer.few_shot:
            few = transfer.few_shot
            lines.append(
                f"Few-shot: frozen features as of profile {transfer.linear.name}; logistic "
                f"regression with C {few.c:g} at every number of shots; {few.draws} nested draws, "
                "the same for all models."
            )
        if "linear-online" in transfer.modes and transfer.online:
            online = transfer.online
            lines.append(
                f"Linear-online: profile {online.name}; backbone frozen in eval mode, recomputed "
                f"each step on augmented images ({online.augment}); lr {online.optimizer.lr:g}; "
                "last epoch."
            )
        if "full" in transfer.modes and transfer.full:
            full = transfer.full
            has_dense = arm.prune.dense or any(m.name == "dense" for m in arm.prune.methods)
            chooser = "dense model" if has_dense else "first checkpoint"
            rate = (
                f"learning rate chosen on the {chooser}'s validation part, shared by all methods"
                if full.lr_grid
                else "learning rate of the task card"
                if full.card_lr
                else f"lr {full.optimizer.lr:g}"
            )
            lines.append(
                f"Full: profile {full.name}; mask fixed, new dense head, BN {full.bn}; {rate}; "
                "last epoch."
            )
    return lines


def _upstream_held_fixed(arm: Arm) -> list[str]:
    recipe, prune, task = arm.recipe, arm.prune, arm.upstream.task
    pixels = arm.upstream.preprocess.image_size
    if task is None:
        undone = "trained or pruned" if arm.upstream.evaluate else "trained, pruned or scored"
        return [f"Upstream: checkpoints taken as they are, not {undone} here.", *_further(arm)]
    if recipe.steps or recipe.epochs:
        length = f"{recipe.steps} steps" if recipe.steps is not None else f"{recipe.epochs} epochs"
        lines = [
            f"Upstream: recipe {recipe.name}, shared by all rows ({length}, batch "
            f"{recipe.batch_size}, {recipe.optimizer.name} {recipe.optimizer.lr:g}, "
            f"{recipe.schedule.name}, {recipe.precision}), on {task.title} at {pixels} px; last "
            "epoch, nothing selected on test.",
            f"Upstream seeds: {', '.join(map(str, prune.seeds))}; the same seed gives the same "
            "initial weights and data order.",
        ]
    else:
        lines = [f"Upstream: no training (recipe {recipe.name}); {task.title} at {pixels} px."]
    meaning = (
        "the share of the dense model's MACs that went with whole channels"
        if any(plugins.load("pruner", m.name).removes_channels for m in prune.methods)
        else "the share of zeros in the other convolution and linear weights"
    )
    lines.append(
        f"Kept dense for all methods: {', '.join(recipe.keep_dense) or 'nothing'}. Sparsity is "
        f"{meaning}."
    )
    lines += _further(arm)
    if prune.recalibrate_bn:
        lines.append(
            f"Batch-norm statistics of pruned models recomputed on {prune.recalibrate_bn.images} "
            "upstream training images; dense models keep their own."
        )
    return lines


def _further(arm: Arm) -> list[str]:
    if not arm.upstream.evaluate:
        return []
    names = ", ".join(ref.name for ref in arm.upstream.evaluate)
    pixels = arm.upstream.preprocess.image_size
    line = f"Checkpoints are also scored on {names} at {pixels} px, each under its own statistics "
    return [line + "and interpolation."]


def _before_recalibration(lines: list[str]) -> list[str]:
    return [f"Upstream accuracy before BN recalibration: {'; '.join(lines)}."] if lines else []


def _flat(row: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A stored row with its metrics as columns, recomputed where their version is not today's."""
    metrics = row["metrics"]
    if evaluation.outdated(metrics):
        metrics = evaluation.measure(Predictions.load(folder / row["predictions"]), row["classes"])
    values = {name: facts["value"] for name, facts in metrics.items()}
    path = f"{folder.parent.name}/{folder.name}/{row['predictions']}"
    rest = {key: value for key, value in row.items() if key not in ("metrics", "predictions")}
    return {**rest, **values, "value": values[row["metric"]], "predictions": path}


def _add_mac_ratio(
    rows: list[dict[str, Any]],
    arm: str,
    runs: list[dict[str, Any]],
    macs: dict[str, tuple[float, float]],
) -> None:
    """MACs per image with zeros skipped, and as a share of the arm's dense model of that name."""
    dense = {
        run["model"]: macs[run["id"]][1]
        for run in reversed(runs)
        if run["stage"] == "prune" and run["method"] == "dense" and run["id"] in macs
    }
    for row in rows:
        if row["arm"] == arm and row["checkpoint"] in macs:
            own, own_dense = macs[row["checkpoint"]]
            row["macs"] = own
            row["mac_ratio"] = own / dense.get(row["model"], own_dense)


def _task(run: Run) -> dict[str, Any]:
    task = getattr(run.spec, "task", None)
    return {"task": task.title, "reference": task.name} if task else {}


def record_path(store: Store, name: str) -> Path:
    """Where an experiment's runs are recorded."""
    return store.root / "experiments" / f"{name}.json"


def _recorded(store: Store, name: str | None) -> Path:
    known = {path.stem: path for path in (store.root / "experiments").glob("*.json")}
    if not known:
        raise UserError(
            f"There is no experiment in {store.root}.",
            hint="`sparse-transfer run quickstart` makes one.",
        )
    if name is None:
        return max(known.values(), key=lambda path: path.stat().st_mtime)
    name = Path(name).stem if name.endswith(".yaml") else name
    if name not in known:
        raise unknown_name("recorded experiment", name, known)
    return known[name]
