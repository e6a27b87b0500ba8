"""configs/paper: the study's experiments, and an index whose commands and figures are right."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer

from sparse_transfer import config, expansion, experiment_file, identity
from sparse_transfer.__main__ import app
from sparse_transfer.imports.results import METRICS

FOLDER = Path(__file__).parents[1] / "configs" / "paper"
INDEX = (FOLDER / "INDEX.md").read_text(encoding="utf-8")
CONFIGS = sorted(path.stem for path in FOLDER.glob("*.yaml"))
WAYS = {"from raw data", "runnable", "not reproducible here"}
MACS = {"resnet50": 4.09e9, "mobilenetv1": 0.57e9}
TRAIN, TEST, EPOCHS, SUSTAINED = 271_018, 117_177, 150, 10e12


def rows() -> list[list[str]]:
    lines = [line for line in INDEX.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[1:]]


def commands() -> list[str]:
    blocks = re.findall(r"```sh\n(.*?)```", INDEX, flags=re.DOTALL)
    inline = re.findall(r"`(sparse-transfer [^`]*)`", INDEX)
    found = [line.strip() for block in blocks for line in block.splitlines() if line.strip()]
    return list(dict.fromkeys(found + inline))


def test_every_row_has_one_of_three_ways_and_says_how():
    assert len(rows()) > 15
    for title, way, how, hours in rows():
        assert title and way in WAYS and how
        assert (hours == "") == (way == "not reproducible here"), title


def test_every_figure_from_raw_data_names_the_command():
    for title, way, how, _ in rows():
        assert way != "from raw data" or "`sparse-transfer report paper`" in how, title
    assert any("import-results" in command for command in commands())


@pytest.mark.parametrize("line", [c for c in commands() if c != "sparse-transfer import"])
def test_every_command_parses_and_its_names_exist(line: str):
    _, verb, *arguments = shlex.split(line)
    command = typer.main.get_command(app).commands[verb]  # type: ignore[attr-defined]
    found = command.make_context(verb, list(arguments))
    if verb in ("run", "cp", "check") and found.params["name"] != "CONFIG":
        assert found.params["name"] in experiment_file.config_names()


def test_every_config_of_the_folder_is_in_the_index():
    assert {name for name in CONFIGS if f"run {name} " in INDEX} == set(CONFIGS)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_configs_are_the_studys_protocol(name: str):
    experiment = experiment_file.load(name)
    mode, _ = name.split("-")
    for arm in experiment.arms:
        assert arm.transfer is not None and arm.transfer.modes == (mode,)
        assert {task.name for task in arm.transfer.tasks} == set(METRICS)
        assert arm.transfer.preprocess == config.Preprocess(
            image_size=224, crop="center", resize=256
        )
        profile = arm.transfer.linear if mode == "linear" else arm.transfer.full
        assert profile is not None and profile.name == f"paper-{mode}"
    seeds = {arm.transfer.seeds for arm in experiment.arms if arm.transfer}
    assert seeds == {(21, 51, 81, 111, 141) if mode == "linear" else (21, 51, 81)}


@pytest.mark.parametrize("name", CONFIGS)
def test_the_gpu_hours_follow_from_the_stated_formula(name: str):
    experiment = experiment_file.load(name)
    mode, network = name.split("-")
    checkpoints = {arm.upstream.models[0].name for arm in experiment.arms}
    for arm in experiment.arms:
        checkpoints |= {method.model.name for method in arm.prune.methods if method.model}
    assert len(checkpoints) == (20 if network == "resnet50" else 10)
    forward = 2 * MACS[network]
    if mode == "linear":
        operations = len(checkpoints) * (TRAIN + TEST) * forward
    else:
        operations = len(checkpoints) * 3 * EPOCHS * TRAIN * 3 * forward
    stated = [float(row[3]) for row in rows() if f"run {name} --data-root" in row[2]]
    digits = 1 if mode == "linear" else 0
    assert stated and set(stated) == {round(operations / SUSTAINED / 3600, digits)}


def test_the_gpu_hours_of_what_is_no_config_of_its_own():
    forward = 2 * MACS["resnet50"] * 20 / SUSTAINED / 3600
    hours = {row[0]: row[3] for row in rows()}
    upstream = hours["Upstream accuracy: ImageNet, ReaL, ImageNet-V2"]
    assert float(upstream) == round(110_000 * forward, 1)
    online = hours["Training time saved in linear transfer"]
    assert float(online) == round(5 * EPOCHS * TRAIN * forward)


def test_the_online_mode_is_a_change_of_two_fields():
    row = next(row for row in rows() if row[0].startswith("Training time"))
    changes = re.findall(r"--set (\S+)", row[2])
    arm = experiment_file.load("linear-resnet50", changes).arms[0]
    assert arm.transfer is not None and arm.transfer.modes == ("linear-online",)
    assert arm.transfer.online is not None and arm.transfer.online.name == "paper-linear-online"


@pytest.mark.parametrize("name", CONFIGS)
def test_the_dense_model_is_transferred_once_for_all_arms(name: str, monkeypatch):
    """All arms share it; the label of a checkpoint may be a rounding of its sparsity."""
    monkeypatch.setattr(identity, "content_hash", lambda spec: spec.name)
    one_task = experiment_file.load(name, ["transfer.tasks=[dtd]"])
    made = expansion.make(one_task, lambda ref: f"hash of {ref.name}")
    dense = [run for run in made.runs if run.stage == "prune" and run.subject.method == "dense"]
    assert len(dense) == 1
    given = [run for run in made.runs if run.stage == "prune" and run.subject.method != "dense"]
    assert len(given) == (19 if "resnet50" in name else 9)
