"""Carrying out a plan: order, skipping, failures, shares, selection, disks that are full.

The stages are stubs; `test_main.py` runs the real ones.
"""

from __future__ import annotations

import errno
import json
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sparse_transfer import execute, expansion, experiment_file, plan, signals, store
from sparse_transfer.devices import accelerator
from sparse_transfer.errors import StopRequested, UserError
from sparse_transfer.stages.context import Context
from sparse_transfer.store import Store
from tests.test_plan import raw, split_hash


class Stages:
    """Stands for all stages: records what was done, and fails where it is told to."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.fails: dict[str, BaseException] = {}
        self.result: dict[str, Any] = {"rows": []}

    def run(self, run: plan.Run, parents: dict[str, Path], out: Path, context: Context) -> dict:
        assert all((folder / "result.json").is_file() for folder in parents.values())
        assert not (out / "result.json").exists(), "finished before it was done"
        self.done.append(run.id)
        for text, error in self.fails.items():
            if text in f"{run.stage} {run.title}":
                raise error
        (out / "resume.safetensors").write_text("of the last epoch")
        return dict(self.result)


@pytest.fixture
def stages(monkeypatch: pytest.MonkeyPatch) -> Stages:
    made = Stages()
    monkeypatch.setattr(execute, "import_module", lambda name: SimpleNamespace(run=made.run))
    monkeypatch.setattr(execute, "_POLL_SECONDS", 0.01)
    return made


def study(**changes: Any) -> plan.Plan:
    return expansion.make(experiment_file.build(raw(**changes)), split_hash)


def context(tmp_path: Path, debug: bool = False) -> Context:
    return Context(accelerator(), None, tmp_path / "cache", debug=debug)


def carry_out(made: plan.Plan, tmp_path: Path, **options: Any) -> execute.Outcome:
    return execute.execute(made, Store(tmp_path), context(tmp_path), **options)


def folder(tmp_path: Path, run: plan.Run) -> Path:
    return tmp_path / run.stage / run.id


def test_every_run_is_done_once_and_a_second_time_skipped(tmp_path: Path, stages: Stages):
    made = study()
    first = carry_out(made, tmp_path)
    assert stages.done == [run.id for run in made.runs] == [run.id for run in first.finished]
    assert not list(tmp_path.glob("*/*/resume.*"))
    second = carry_out(made, tmp_path)
    assert len(stages.done) == len(made.runs)
    assert second.skipped == list(made.runs) and not second.finished


def test_a_failure_is_a_row_and_only_its_children_wait(tmp_path: Path, stages: Stages):
    made = study()
    stages.fails["prune net gmp"] = UserError("No luck.", "Truly.")
    outcome = carry_out(made, tmp_path)
    (failed,) = outcome.failed
    record = json.loads((folder(tmp_path, failed) / "failure.json").read_text())
    assert record["error"] == "No luck.\nTruly." and record["expected"]
    assert {run.stage for run in outcome.blocked} == {"linear", "full", "bench"}
    assert all(failed in run.parents.values() for run in outcome.blocked)
    assert len(outcome.finished) + 1 + len(outcome.blocked) == len(made.runs)
    assert stages.done.count(failed.id) == 1
    stages.fails.clear()
    again = carry_out(made, tmp_path)
    assert again.finished == [failed, *outcome.blocked] and not again.blocked
    assert not (folder(tmp_path, failed) / "failure.json").exists()


def test_a_failed_run_that_two_arms_share_is_tried_once(tmp_path: Path, stages: Stages):
    body = raw()
    name = body.pop("name")
    other = body | {"prune": {"methods": ["gmp"], "sparsities": [0.8]}, "name": "b"}
    other["upstream"] = body["upstream"] | {
        "models": [body["upstream"]["models"][0] | {"label": "elsewhere"}]
    }
    both = {"name": name, "arms": [body | {"name": "a"}, other]}
    stages.fails["dense"] = UserError("no")
    outcome = carry_out(expansion.make(experiment_file.build(both), split_hash), tmp_path)
    assert len(outcome.failed) == 1
    assert stages.done.count(outcome.failed[0].id) == 1


def test_an_unexpected_error_keeps_its_traceback_on_file(tmp_path: Path, stages: Stages):
    stages.fails["prune net dense"] = ZeroDivisionError("oh")
    (failed,) = carry_out(study(transfer=None, bench=None), tmp_path).failed
    record = json.loads((folder(tmp_path, failed) / "failure.json").read_text())
    assert record["error"] == "ZeroDivisionError: oh" and not record["expected"]
    assert "Traceback" in record["traceback"]
    with pytest.raises(ZeroDivisionError):
        execute.execute(study(), Store(tmp_path), context(tmp_path, debug=True))


def test_a_result_that_is_no_number_fails_its_run_alone(tmp_path: Path, stages: Stages):
    made = study(transfer=None, bench=None)
    stages.result = {"accuracy": float("nan")}
    outcome = carry_out(made, tmp_path)
    assert len(outcome.failed) == len(made.runs)
    assert not list(tmp_path.glob("*/*/result.json"))


def test_what_a_stage_leaves_unfinished_is_not_finished(tmp_path: Path, stages: Stages):
    made = study(transfer=None, bench=None)
    stages.fails["prune"] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        carry_out(made, tmp_path)
    first = made.runs[0]
    assert Store(tmp_path).status("prune", first.id) == "partial"
    (folder(tmp_path, first) / "checkpoint").mkdir()
    (folder(tmp_path, first) / ".result.json.1.tmp").write_text('{"half')
    (folder(tmp_path, first) / "manifest.json").write_text('{"cut o')
    stages.fails.clear()
    assert first in carry_out(made, tmp_path).finished


@pytest.mark.parametrize("name", ["manifest.json", "result.json"])
def test_a_full_disk_leaves_nothing_that_looks_finished(
    tmp_path: Path, stages: Stages, monkeypatch: pytest.MonkeyPatch, name: str
):
    made, write_text = study(transfer=None, bench=None), Path.write_text

    def full(path: Path, text: str, **options: Any) -> int:
        if name in path.name:
            write_text(path, text[:5])
            raise OSError(errno.ENOSPC, "No space left on device")
        return write_text(path, text, **options)

    monkeypatch.setattr(Path, "write_text", full)
    if name == "manifest.json":  # not even the start can be noted
        with pytest.raises(UserError, match="disk is full"):
            carry_out(made, tmp_path)
    else:
        outcome = carry_out(made, tmp_path)
        assert outcome.failed == list(made.runs)
        assert "disk is full" in str(store.read_json(next(tmp_path.glob("*/*/failure.json"))))
    assert not list(tmp_path.glob("*/*/result.json")) and not list(tmp_path.glob("*/*/.*tmp"))
    monkeypatch.setattr(Path, "write_text", write_text)
    assert carry_out(made, tmp_path).finished == list(made.runs)


def test_a_results_folder_that_cannot_be_made_is_said(tmp_path: Path, stages: Stages):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be made"):
        carry_out(study(), tmp_path / "file")


def test_only_takes_a_run_and_the_parents_it_needs(tmp_path: Path, stages: Stages):
    made = study()
    run = next(r for r in made.runs if r.stage == "full" and r.subject.method == "gmp")
    outcome = carry_out(made, tmp_path, only=[run.id[:6]])
    done = {(r.stage, r.subject.method) for r in outcome.finished}
    assert done == {("prune", "dense"), ("tune", "dense"), ("prune", "gmp"), ("full", "gmp")}
    with pytest.raises(UserError, match="starts with zz"):
        carry_out(made, tmp_path, only=["zz"])


def test_a_stage_alone_does_not_do_its_parents(tmp_path: Path, stages: Stages):
    made = study()
    outcome = carry_out(made, tmp_path, stages=["linear"])
    assert len(outcome.blocked) == 2 and not stages.done
    assert len(carry_out(made, tmp_path, stages=["prune"]).finished) == 2
    outcome = carry_out(made, tmp_path, stages=["linear"])
    assert {run.stage for run in outcome.finished} == {"linear"} and not outcome.blocked


@pytest.mark.parametrize("of", [1, 2, 3, 7])
def test_shares_partition_the_plan(of: int):
    made = study(prune__seeds=[0, 1, 2], prune__sparsities=[0.5, 0.8])
    owners = [[execute.Shard(i, of).owns(run) for i in range(of)] for run in made.runs]
    assert all(sum(owner) == 1 for owner in owners)
    if of == 2:
        assert all(any(owner[i] for owner in owners) for i in range(of))


def test_shares_in_parallel_do_each_run_once(tmp_path: Path, stages: Stages):
    """All `full` runs need the one tuned learning rate, whoever owns it."""
    made = study(prune__seeds=[0, 1, 2])
    outcomes: list[execute.Outcome] = []
    threads = [
        threading.Thread(
            target=lambda i=i: outcomes.append(carry_out(made, tmp_path, shard=execute.Shard(i, 3)))
        )
        for i in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(outcomes) == 3 and not any(o.failed or o.blocked for o in outcomes)
    assert sorted(stages.done) == sorted(run.id for run in made.runs)


def test_one_share_alone_does_the_parent_it_needs(tmp_path: Path, stages: Stages):
    made = study(prune__seeds=[0, 1, 2])
    tune = next(run for run in made.runs if run.stage == "tune")
    share = next(s for i in range(2) if not (s := execute.Shard(i, 2)).owns(tune))
    outcome = carry_out(made, tmp_path, shard=share)
    assert not outcome.blocked and stages.done.count(tune.id) == 1


@pytest.mark.parametrize("text", ["2/2", "1", "a/b", "-1/2", "0/0", "1/2/3"])
def test_a_share_is_i_of_n(text: str):
    with pytest.raises(UserError, match="i/n"):
        execute.Shard.parse(text)


def test_forget_takes_what_was_chosen_and_nothing_else(tmp_path: Path, stages: Stages):
    made = study()
    carry_out(made, tmp_path)
    execute.forget(made, Store(tmp_path), ["linear"], [], None)
    outcome = carry_out(made, tmp_path)
    assert {run.stage for run in outcome.finished} == {"linear"} and len(outcome.finished) == 2
    run = made.runs[0]
    execute.forget(made, Store(tmp_path), [], [run.id], None)
    assert carry_out(made, tmp_path).finished == [run]
    execute.forget(made, Store(tmp_path), [], [], execute.Shard(0, 1))
    assert carry_out(made, tmp_path).finished == list(made.runs)


def test_forget_leaves_a_run_that_another_process_works_on(tmp_path: Path, stages: Stages):
    made = study(transfer=None, bench=None)
    carry_out(made, tmp_path)
    run = made.runs[0]
    with Store(tmp_path).claim(run.stage, run.id), pytest.raises(UserError, match="Another"):
        execute.forget(made, Store(tmp_path), [], [], None)
    assert Store(tmp_path).status(run.stage, run.id) == "finished"


def test_a_signal_stops_before_the_next_run_whatever_its_stage(
    tmp_path: Path, stages: Stages, monkeypatch: pytest.MonkeyPatch
):
    """Linear runs have no training loop that would notice it."""
    made, run_stage = study(), stages.run

    def signalled(run: plan.Run, *rest: Any) -> dict:
        if run.stage == "linear":
            monkeypatch.setattr(signals, "_received", [15])
        return run_stage(run, *rest)

    monkeypatch.setattr(execute, "import_module", lambda name: SimpleNamespace(run=signalled))
    with pytest.raises(StopRequested, match="SIGTERM"):
        carry_out(made, tmp_path)
    assert len(list((tmp_path / "linear").glob("*/result.json"))) == 1, "what is begun is finished"
    monkeypatch.setattr(signals, "_received", [])
    monkeypatch.setattr(execute, "import_module", lambda name: SimpleNamespace(run=run_stage))
    assert not carry_out(made, tmp_path).blocked
    assert sorted(stages.done) == sorted(run.id for run in made.runs)


def test_the_manifest_says_what_ran_and_where(tmp_path: Path, stages: Stages):
    stages.result = {"rows": [], "manifest": {"dtype": "fp32"}}
    made = study()
    carry_out(made, tmp_path)
    for run in made.runs:
        manifest = store.read_json(folder(tmp_path, run) / "manifest.json")
        assert store.digest(manifest["identity"])[:16] == run.id == manifest["id"]
        assert manifest["dtype"] == "fp32" and manifest["seconds"] >= 0
        assert manifest["peak_memory_bytes"] > 1e6 and manifest["processes"] == 1
        assert {role: facts["id"] for role, facts in manifest["parents"].items()} == {
            role: parent.id for role, parent in run.parents.items()
        }
        assert "manifest" not in store.read_json(folder(tmp_path, run) / "result.json")
