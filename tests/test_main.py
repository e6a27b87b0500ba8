"""The command line, end to end on a study of seconds; what users type wrong; real kills."""

import dis
import inspect
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
import typer
from safetensors.torch import load_file

from sparse_transfer.__main__ import app, main
from sparse_transfer.commands.catalogue import LISTS

TINY = str(Path(__file__).with_name("tiny.yaml"))
ONE_RUN = ["--set", "transfer=null", "--set", "bench=null", "--set", "prune.seeds=[0]"]


def call(*arguments: str) -> int:
    """Run a command in this process; its exit code."""
    before, sys.argv = sys.argv, ["sparse-transfer", *arguments]
    try:
        main()
    except SystemExit as stop:
        return int(stop.code or 0)
    finally:
        sys.argv = before
    return 0


PRELOADED = [
    "accelerate", "pandas", "pyarrow.parquet", "sparse_transfer.__main__",
    "sparse_transfer.execute", "sparse_transfer.stages.prune",
]  # fmt: skip


class Started:
    """A command in a process of its own, forked from a server that has imported everything.

    A new interpreter would spend most of such a test importing torch and timm.
    """

    def __init__(self, log: Path, *arguments: str) -> None:
        server = multiprocessing.get_context("forkserver")
        server.set_forkserver_preload(PRELOADED)
        self._log = log
        self._process = server.Process(target=_command, args=(arguments, log), daemon=True)
        self._process.start()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self) -> tuple[int, str]:
        """Its exit code (minus the signal that killed it) and what it printed."""
        self._process.join(300)
        output = self._log.read_text(encoding="utf-8")
        assert self._process.exitcode is not None, output
        return self._process.exitcode, output


def _command(arguments: tuple[str, ...], log: Path) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    torch.set_num_threads(1)
    sys.argv = ["sparse-transfer", *arguments]
    main()


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """The runs folder of the tiny study, done once."""
    runs = tmp_path_factory.mktemp("runs")
    torch.set_num_threads(1)
    assert call("run", TINY, "--runs", str(runs)) == 0
    return runs


def test_the_study_ends_with_a_report(finished: Path):
    report = finished / "report" / "tiny"
    page = (report / "index.html").read_text(encoding="utf-8")
    assert "tiny-net" in page and "gmp" in page
    assert page.count('<img src="data:image/jpeg;base64,') > 0  # newly failing test images
    assert list(report.glob("*.csv")) and (report / "summary.md").is_file()


def test_every_stage_left_manifest_result_and_predictions(finished: Path):
    folders = {stage: list((finished / stage).iterdir()) for stage in ("prune", "linear", "full")}
    assert [len(found) for found in folders.values()] == [4, 4, 8]
    for folder in [*folders["prune"], *folders["linear"], *folders["full"]]:
        manifest = json.loads((folder / "manifest.json").read_text())
        for key in ("identity", "config", "versions", "device", "threads", "processes", "dtype",
                    "seeds", "transform", "split_hash", "mask_hash", "seconds",
                    "peak_memory_bytes"):  # fmt: skip
            assert key in manifest, key
        assert list((folder / "predictions").glob("*.parquet"))
        assert not list(folder.glob("resume*")) and not list(folder.glob(".*tmp"))


def test_the_sparse_checkpoints_are_sparse_and_the_dense_ones_have_no_mask(finished: Path):
    kinds = []
    for folder in (finished / "prune").iterdir():
        record = json.loads((folder / "checkpoint" / "sparsity.json").read_text())
        kinds.append(record["sparsity"]["prunable"])
        assert (folder / "checkpoint" / "mask.safetensors").exists() == (kinds[-1] is not None)
    assert sorted(kinds, key=str) == [0.5, 0.5, None, None]


def test_the_mask_is_the_same_after_full_fine_tuning(finished: Path):
    masks = {}
    for stage in ("prune", "full"):
        for path in (finished / stage).glob("*/manifest.json"):
            manifest = json.loads(path.read_text())
            subject = manifest["subject"]
            masks.setdefault((subject["method"], subject["seed"]), set()).add(manifest["mask_hash"])
    assert masks and all(len(found) == 1 for found in masks.values())
    assert masks["gmp", 0] != masks["gmp", 1] and masks["dense", 0] == {None}


def test_a_second_run_does_nothing(finished: Path, capsys):
    before = {path: path.stat().st_mtime_ns for path in finished.glob("*/*/result.json")}
    assert call("run", TINY, "--runs", str(finished)) == 0
    assert "0 runs done, 19 finished before" in capsys.readouterr().err
    assert before == {path: path.stat().st_mtime_ns for path in finished.glob("*/*/result.json")}


def test_plan_lists_status_and_json(finished: Path, capsys):
    assert call("plan", TINY, "--runs", str(finished), "--json", "--no-estimate") == 0
    rows = json.loads(capsys.readouterr().out)["runs"]
    assert len(rows) == 19 and {row["status"] for row in rows} == {"finished"}
    changed = ["--set", "recipe.steps=13", "--set", "prune.seeds=[0]"]
    assert call("plan", TINY, "--runs", str(finished), "--json", *changed) == 0
    rows = json.loads(capsys.readouterr().out)["runs"]
    assert {row["status"] for row in rows} == {"new"}
    assert all(row["seconds"] > 0 and row["bytes"] > 0 for row in rows)


def test_transfer_and_bench_of_a_finished_checkpoint(finished: Path, tmp_path, capsys):
    folders = {}
    for path in sorted((finished / "prune").glob("*/manifest.json")):
        manifest = json.loads(path.read_text())
        folders[manifest["subject"]["method"]] = path.parent / "checkpoint"
    sparse, dense = str(folders["gmp"]), str(folders["dense"])
    card = tmp_path / "small.yaml"
    card.write_text("name: small\nbuiltin: textures\n")
    code = call(
        "transfer", sparse, "--dense", dense, "--task", str(card), "--runs", str(tmp_path / "r"),
        "--crop", "none",
    )  # fmt: skip
    assert code == 0 and list((tmp_path / "r" / "report").glob("*/index.html"))
    capsys.readouterr()
    code = call(
        "bench", sparse, "--dense", dense, "--repeats", "6", "--batch-size", "2", "--json"
    )  # fmt: skip
    (row,) = json.loads(capsys.readouterr().out)
    assert code == 0 and row["median_s"] > 0 and row["uses_zeros"] == "does not use zeros"


def test_a_gpu_that_is_not_there_is_refused_before_anything_is_opened(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert call("bench", "nowhere", "--device", "cuda") == 2
    assert "--device cuda cannot be used" in capsys.readouterr().err


def test_prune_prints_the_checkpoint(tmp_path, capsys):
    code = call(
        "prune", "test_resnet", "--weights", "random", "--task", "textures", "--method",
        "magnitude", "--sparsity", "0.6", "--recalibrate-bn", "50", "--image-size", "32",
        "--crop", "none", "--runs", str(tmp_path), "--recipe", "one-shot",
    )  # fmt: skip
    out = capsys.readouterr().out
    printed = [line.split(": ") for line in out.splitlines() if line.endswith("/checkpoint")]
    assert code == 0 and len(printed) == 2
    assert "sparsity 60.00 %" in out and out.count("upstream accuracy") == 2
    zeros = {}
    for title, folder in printed:
        weights = load_file(Path(folder) / "model.safetensors")
        kernels = [value for value in weights.values() if value.ndim > 1]
        zeros[title] = max((value == 0).float().mean().item() for value in kernels)
    assert zeros["test_resnet magnitude 0.6 s0"] > 0.5 and zeros["test_resnet dense s0"] == 0


def test_a_failed_run_is_a_row_and_the_plan_goes_on(tmp_path, capsys):
    diverging = ["--set", "recipe.optimizer.lr=1e30", "--set", "bench=null"]
    code = call("run", TINY, "--runs", str(tmp_path), *diverging, "--set", "prune.seeds=[0]")
    assert code == 1
    assert "2 failed" in capsys.readouterr().err
    assert "diverged" in (tmp_path / "report" / "tiny" / "index.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGUSR1])
def test_a_killed_training_resumes_bit_identically(tmp_path, how):
    longer = ["--set", "recipe.steps=60", "--set", "prune.dense=false", *ONE_RUN]
    arguments = ["run", TINY, "--stage", "prune", "--threads", "1", *longer]
    straight = Started(tmp_path / "1.log", *arguments, "--runs", str(tmp_path / "straight"))
    arguments += ["--runs", str(tmp_path / "killed")]
    process = Started(tmp_path / "2.log", *arguments)
    deadline = time.monotonic() + 240
    while not (found := list((tmp_path / "killed").glob("prune/*/resume.safetensors"))):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process.pid, how)
    code, output = process.wait()
    assert code == (-9 if how == signal.SIGKILL else 75), output
    assert found[0].is_file() and not list((tmp_path / "killed").glob("prune/*/result.json"))
    for running in (Started(tmp_path / "3.log", *arguments), straight):
        code, output = running.wait()
        assert code == 0, output
    for name in ("model", "mask"):
        a, b = (
            load_file(next((tmp_path / folder).glob(f"prune/*/checkpoint/{name}.safetensors")))
            for folder in ("straight", "killed")
        )
        assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_two_processes_share_a_plan(tmp_path):
    arguments = ["run", TINY, "--runs", str(tmp_path), "--stage", "prune"]
    both = [Started(tmp_path / str(i), *arguments, "--shard", f"{i}/2") for i in range(2)]
    codes, outputs = zip(*(process.wait() for process in both), strict=True)
    assert codes == (0, 0), outputs
    assert len(list(tmp_path.glob("prune/*/result.json"))) == 4
    done = sum(output.count("] prune tiny-net") for output in outputs)
    assert done == 4, outputs


WRONG = {
    ("run", "quickstat"): "Did you mean quickstart",
    ("run", "quickstart", "--stage", "prun"): "Did you mean prune",
    ("run", "quickstart", "--shard", "4/4"): "i/n",
    ("run", "quickstart", "--only", "zzzz"): "starts with zzzz",
    ("ls", "pruner"): "Did you mean pruners",
    ("show", "fgpg"): "fggp",
    ("cp", "quickstart", TINY): "exists already",
    ("check", "quickstart", "--set", "prune.sparsities=[0.9999999]"): "",
    ("check", "quickstart", "--set", "prune.methods=[gpm]"): "gmp",
    ("check", "quickstart", "--set", "transfer.tasks=[digit]"): "digits",
    (
        "check",
        "quickstart",
        "--set",
        "upstream.models=[{name: resnet19, weights: random}]",
    ): "resnet1",
    ("check", "quickstart", "--set", "recipe.steps=3"): "",
    ("transfer", "/nowhere", "--task", "digits"): "no such folder",
    ("bench", "/nowhere"): "/nowhere",
    ("report", "--runs", "/nowhere"): "no experiment",
    ("prune", "resnet18", "--task", "shapes", "--kwarg", "x"): "name=value",
    ("nonsense",): "nonsense",
    ("run", "quickstart", "--no-such-flag"): "no-such-flag",
}


@pytest.mark.parametrize("arguments", WRONG, ids=" ".join)
def test_wrong_input_is_explained_with_exit_code_2(arguments, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert call(*arguments) == 2
    shown = capsys.readouterr().err
    assert WRONG[arguments] in shown and "Traceback" not in shown and shown.strip()


def verbs() -> dict:
    command = typer.main.get_command(app)
    return dict(command.commands)  # type: ignore[attr-defined]


@pytest.mark.parametrize("verb", verbs())
def test_every_verb_shows_two_examples_that_parse(verb):
    command = verbs()[verb]
    lines = [line.strip() for line in (command.epilog or "").splitlines()]
    examples = [line for line in lines if line.startswith("sparse-transfer ")]
    assert len(examples) >= 2
    for example in examples:
        _, name, *arguments = example.split()
        assert name == verb
        command.make_context(verb, arguments)


@pytest.mark.parametrize("verb", verbs())
def test_every_option_of_a_verb_is_read_by_it(verb):
    """What each does is tested where it is done; one that nobody reads would do nothing."""
    command = verbs()[verb]
    instructions = dis.get_instructions(inspect.unwrap(command.callback))
    read = {item.argval for item in instructions if item.opname.startswith("LOAD")}
    options = {parameter.name for parameter in command.params} - {"help"}
    assert options and options <= read, options - read


@pytest.mark.parametrize("what", LISTS)
def test_ls_gives_every_thing_one_line(what, capsys):
    assert call("ls", what, "--json") == 0
    rows = json.loads(capsys.readouterr().out)
    assert rows and all(row["name"] and row["summary"] for row in rows)


def test_light_verbs_import_no_torch(tmp_path):
    code = (
        "import sys; from sparse_transfer.__main__ import main\n"
        "try: main()\nexcept SystemExit: pass\n"
        "print([m for m in ('torch', 'timm', 'datasets', 'sklearn') if m in sys.modules])"
    )
    for arguments in (["--help"], ["ls", "tasks"], ["show", "quickstart"], ["ls", "models"]):
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True
        )
        assert done.stdout.splitlines()[-1] == "[]", arguments


def test_cp_gives_a_file_that_loads(tmp_path, capsys):
    target = tmp_path / "mine.yaml"
    assert call("cp", "quickstart", str(target)) == 0
    assert call("plan", str(target), "--no-estimate", "--runs", str(tmp_path / "r")) == 0
    assert "gmp" in capsys.readouterr().out


def test_what_lost_channels_is_transferred_and_timed_as_a_smaller_network(tmp_path, capsys):
    runs = tmp_path / "runs"
    common = ["--runs", str(runs), "--threads", "1"]
    code = call(
        "prune", "test_resnet", "--weights", "random", "--task", "textures", "--method",
        "structured", "--sparsity", "0.4", "--image-size", "32", "--crop", "none",
        "--recipe", "one-shot", *common,
    )  # fmt: skip
    out = capsys.readouterr().out
    dense, small = (line.split(": ")[1] for line in out.splitlines() if "/checkpoint" in line)
    assert code == 0 and "times fewer MACs" in out
    modes = ["--mode", "linear", "--mode", "full", "--full", "demo-full"]
    modes += ["--set", "transfer.full.steps=8"]
    assert call("transfer", small, "--dense", dense, "--task", "digits", *modes, *common) == 0
    (report,) = runs.glob("report/transfer-*")
    tables = [pd.read_csv(path).set_index("method") for path in report.glob("**/summary-*.csv")]
    assert len(tables) == 3
    for found in tables:
        assert found["sparsity"]["dense"] == 0 and 0.4 <= found["sparsity"]["structured"] < 0.5
        assert 0.4 <= found["measured_sparsity"]["structured"] < 0.5
    capsys.readouterr()
    assert call("bench", small, "--dense", dense, "--repeats", "6", "--threads", "1") == 0
    said = capsys.readouterr().out
    assert "does not use zeros" not in said and "smaller" in said
