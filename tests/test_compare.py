"""Own results beside imported ones, from files and images to the report, with everything made."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pandas as pd
import pytest
import torch

from sparse_transfer import side_by_side
from sparse_transfer.config import Preprocess
from sparse_transfer.store import Store
from tests.made_images import picture
from tests.test_main import call

TASKS = ("stripes", "spots")


@pytest.fixture(scope="module")
def workplace(tmp_path_factory) -> Path:
    """Two made tasks, and the runs folder with a pruned test_resnet and its dense parent."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("compare")
    for number, task in enumerate(TASKS):
        for part, count in (("train", 6), ("test", 8)):
            for label in ("a", "b"):
                place = folder / task / part / label
                place.mkdir(parents=True)
                for image in range(count):
                    seed = 1000 * number + 100 * (part == "test") + 10 * image + (label == "b")
                    picture(seed, (40, 40)).save(place / f"{image}.png")
        (folder / "tasks").mkdir(exist_ok=True)
        card = f"name: {task}\nfolder: {task}\nmetric: top1\n"
        (folder / "tasks" / f"{task}.yaml").write_text(card)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        code = call(
            "prune", "test_resnet", "--weights", "random", "--task", "stripes", "--method",
            "magnitude", "--sparsity", "0.6", "--image-size", "32", "--crop", "none",
            "--recipe", "one-shot",
        )  # fmt: skip
        assert code == 0
    return folder


@pytest.fixture
def here(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(workplace)
    return workplace


def sparse_checkpoint(folder: Path) -> Path:
    for path in (folder / "runs" / "prune").glob("*/manifest.json"):
        if json.loads(path.read_text())["subject"]["method"] == "magnitude":
            return (path.parent / "checkpoint").relative_to(folder)
    raise AssertionError("no pruned checkpoint")


def published(folder: Path, dense: dict[str, float], name: str = "theirs") -> None:
    """Import results of two methods and of a dense model of the accuracies given."""
    lines = ["dset,model,sparsity,seed,val_acc"]
    for task, value in dense.items():
        lines += [f"{task},Dense,0,seed_1,{value}", f"{task},STR,0.6,seed_1,{value - 0.01}"]
        lines += [f"{task},magnitude,0.61,seed_1,{value - 0.02}"]
    path = folder / "linear_theirs.csv"
    path.write_text("\n".join(lines) + "\n")
    options = [word for task in dense for word in ("--task", task)]
    code = call(
        "import-results", str(path), "--name", name, "--architecture", "test_resnet", *options
    )
    assert code == 0


def own_dense(folder: Path) -> dict[str, float]:
    found = {}
    for path in (folder / "runs" / "linear").glob("*/result.json"):
        manifest = json.loads((path.parent / "manifest.json").read_text())
        for row in json.loads(path.read_text())["rows"]:
            if manifest["subject"]["method"] == "dense" and row["mode"] == "linear-sgd":
                found[row["task"]] = row["metrics"]["top1"]["value"]
    return found


def compared(folder: Path, name: str, *more: str) -> int:
    return call("compare", str(sparse_checkpoint(folder)), "--with", name, *more)


def report(folder: Path, name: str) -> Path:
    (found,) = (folder / "runs" / "report").glob(f"compare-*-with-{name}")
    return found


def test_dense_models_that_disagree_stand_side_by_side(here: Path, capsys):
    published(here, {"stripes": 0.999, "spots": 0.999, "pets": 0.9})
    assert compared(here, "theirs") == 0
    assert "not here: pets" in capsys.readouterr().err
    made = report(here, "theirs")
    table = pd.read_csv(made / "beside.csv").set_index("task")
    assert list(table.loc[list(TASKS), "verdict"]) == ["protocol drift"] * 2
    assert table["own_dense"].isna()["pets"] and table.loc["pets", "published_dense"] == 0.9
    page = (made / "index.html").read_text(encoding="utf-8")
    assert "protocol drift" in page and "declared, not verified" in page
    summaries = {path.name: pd.read_csv(path) for path in made.glob("summary-*.csv")}
    methods = [set(table["method"]) - {"dense"} for table in summaries.values()]
    text = (made / "summary.md").read_text(encoding="utf-8")
    titles = re.findall("^## (.*Linear probe.*)$", text, re.MULTILINE)
    assert len(titles) == len(set(titles)) > 1, titles
    assert all(t.startswith("own results") != ("(imported)" in t) for t in titles), titles
    assert str(here) not in re.findall("^# (.*)$", text, re.MULTILINE)[0]
    assert "magnitude" in text.splitlines()[0] and "beside theirs" in text.splitlines()[0]
    assert {"magnitude"} in methods
    assert {"STR (imported)", "magnitude (imported)"} in methods


def test_dense_models_that_agree_share_a_ranking(here: Path, capsys):
    published(here, {task: 0.9 for task in TASKS}, "first")
    assert compared(here, "first") == 0  # runs it, if no other test has
    dense = own_dense(here)
    assert set(dense) == set(TASKS)
    published(here, {task: value + 0.009 for task, value in dense.items()}, "close")
    capsys.readouterr()
    assert compared(here, "close") == 0
    assert "0 runs done" in capsys.readouterr().err
    made = report(here, "close")
    table = pd.read_csv(made / "beside.csv")
    assert set(table["verdict"]) == {"within one point"}
    assert table["difference"].to_numpy() == pytest.approx([-0.009, -0.009])
    summary = pd.read_csv(next(made.glob("summary-*linear-sgd.csv")))
    assert set(summary["method"]) == {
        "dense", "magnitude", "STR (imported)", "magnitude (imported)",
    }  # fmt: skip
    assert set(summary.loc[summary["method"] != "dense", "n_tasks"]) == {2}
    marks = summary.set_index("method")["origin"].fillna("")
    assert marks["magnitude"] == "" and "not verified" in marks["STR (imported)"]
    # each side is compared with its own dense model
    expected = sum(0.01 / (1 - dense[task] - 0.009) for task in TASKS) / 2
    mor = summary.set_index("method")["mor"]
    assert mor["STR (imported)"] == pytest.approx(expected)


def test_what_cannot_be_compared_is_said_before_anything_runs(here: Path, capsys):
    before = len(list((here / "runs").glob("*/*/result.json")))
    checks = {
        ("paper",): "import-results linear_transfer_results.txt",
        ("nothing",): "no imported set named 'nothing'",
    }
    for arguments, words in checks.items():
        assert compared(here, *arguments) == 2
        assert words in capsys.readouterr().err
    published(here, {"pets": 0.9}, "far")
    assert compared(here, "far") == 2
    printed = capsys.readouterr().err
    assert "No task of the imported set far is here" in printed
    assert "check --tasks" in printed and "in tasks/" not in printed  # such a card is refused
    published(here, {task: 0.9 for task in TASKS}, "near")
    for more, words in [
        (("--tasks", "stripe"), "stripe"),
        (("--tasks", "digits"), "It holds spots, stripes"),
        (("--tasks", ","), "names no task"),
        (("--profile", "papre"), "papre-linear"),
        (("--architecture", "resnet50"), "no results of resnet50"),
    ]:
        assert compared(here, "near", *more) == 2
        assert words in capsys.readouterr().err
    assert len(list((here / "runs").glob("*/*/result.json"))) == before


def test_without_its_experiment_the_dense_parent_must_be_named(here: Path, tmp_path, capsys):
    published(here, {task: 0.9 for task in TASKS}, "near")
    copied = tmp_path / "runs"
    (copied / "imported").mkdir(parents=True)
    (here / "runs" / "imported" / "near").rename(copied / "imported" / "near")
    assert compared(here, "near", "--runs", str(copied)) == 2
    assert "--dense" in capsys.readouterr().err
    assert Store(copied).status("linear", "x") == "new"


def test_the_request_is_the_papers_protocol(here: Path):
    published(here, {task: 0.9 for task in TASKS}, "near")
    asked = side_by_side.request(
        Store(here / "runs"), checkpoint=sparse_checkpoint(here), dense=None, imported="near",
        tasks="spots", modes=["linear", "full"], profile="paper", architecture=None,
        seeds="21,51", overrides=["title=Mine"], data_root=None, cache=here / "cache",
    )  # fmt: skip
    assert asked.absent == {"stripes": "not asked for"}
    (arm,) = asked.experiment.arms
    transfer = arm.transfer
    assert transfer is not None and transfer.full is not None
    assert (transfer.linear.name, transfer.full.name) == ("paper-linear", "paper-full")
    assert transfer.preprocess == Preprocess(image_size=224, crop="center", resize=256)
    assert transfer.seeds == (21, 51) and [task.name for task in transfer.tasks] == ["spots"]
    assert arm.upstream.models[0].title == "test_resnet" and arm.prune.dense
    assert asked.experiment.title == "Mine" and asked.experiment.name.startswith("compare-")
    assert asked.experiment.name.endswith("-with-near")


def test_an_unknown_report_lists_the_imported_sets(here: Path, tmp_path, capsys):
    published(here, {task: 0.9 for task in TASKS}, "listed")
    runs = here / "runs"
    assert call("report", "nosuch", "--runs", str(runs)) == 2
    assert "Imported sets:" in (printed := capsys.readouterr().err) and "listed" in printed
    (tmp_path / "new" / "imported").mkdir(parents=True)
    (runs / "imported" / "listed").rename(tmp_path / "new" / "imported" / "listed")
    assert call("report", "--runs", str(tmp_path / "new")) == 2
    assert "sparse-transfer report listed" in capsys.readouterr().err
