"""The code in docs/extending.md works as written; the commands of the README parse."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import typer

from sparse_transfer import cards
from sparse_transfer.__main__ import app
from sparse_transfer.imports import results, storage
from sparse_transfer.predictions import Predictions
from sparse_transfer.pruning.driver import Pruner
from sparse_transfer.pruning.layers import prunable

ROOT = Path(__file__).resolve().parents[1]


def block(title: str) -> dict:
    """The names that the Python block below a heading of docs/extending.md defines."""
    text = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    code = text.partition(f"## {title}\n")[2].partition("```python\n")[2].partition("```")[0]
    names: dict = {}
    exec(code, names)  # noqa: S102 - our own documentation
    return names


def test_the_pruner_prunes():
    method = block("A pruner")["Method"]
    model = timm.create_model("test_resnet")
    layers = prunable(model, ["head"])
    pruner = Pruner(
        model, method=method(method.Options()), sparsity=0.6, layers=layers, total_steps=8,
        steps_per_epoch=4, seed=0,
    )  # fmt: skip
    pruner.bind(torch.optim.SGD(model.parameters(), 0.1))
    pruner.start()
    seen = []
    for step in range(1, 9):
        pruner.after_backward(step)
        pruner.after_step(step)
        seen.append(round(pruner.summary()["measured_sparsity"], 3))
    pruner.finish()
    assert seen == [0, 0, 0, 0.3, 0.3, 0.6, 0.6, 0.6]


def test_the_metric_counts_the_five_best():
    metric = block("A metric")["METRIC"]
    logits = np.tile(np.arange(8.0), (3, 1))
    made = Predictions.from_logits(np.array(["a", "b", "c"]), np.array([7, 3, 2]), logits)
    assert metric.compute(made, 8) == pytest.approx(2 / 3)


@pytest.mark.filterwarnings("ignore")
def test_the_backend_agrees():
    backend = block("A backend")["Backend"]()
    model, example = timm.create_model("test_resnet").eval(), torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(
            backend.prepare(model, example)(example), model(example), rtol=1e-4, atol=1e-4
        )


METRICS = {"top1": "top-1", "mean_per_class": "mean per class"}


@pytest.mark.parametrize("name", results.METRICS)
def test_the_table_of_tasks_says_what_the_cards_say(name):
    text = (ROOT / "docs" / "tasks.md").read_text(encoding="utf-8")
    (line,) = [line for line in text.splitlines() if line.startswith(f"| `{name}` |")]
    title, classes, train, test, metric, _, ways = [cell.strip() for cell in line.split("|")[2:-1]]
    card = cards.card(name)
    assert card.sizes
    wanted = "not verified" if card.sizes.train is None else f"{card.sizes.train:,}"
    assert (title, classes, train, test) == (
        card.title, f"{card.classes}", wanted, f"{card.sizes.test:,}"
    )  # fmt: skip
    assert metric == METRICS[card.metric]
    kinds = {source.kind for source in card.sources}
    fetched = {"torchvision" for source in card.sources if source.download}
    assert ways == (", ".join(["Hub"] * ("hub" in kinds) + sorted(fetched)) or "by hand")


def test_the_layout_renames():
    layout = block("A layout of others' checkpoints")["LAYOUT"]
    own = timm.create_model("test_resnet").state_dict()
    head = {name: name.replace("fc.", "head.") for name in own if name.startswith("fc.")}
    stored = storage.plain({head.get(n, f"backbone.{n}"): tensor for n, tensor in own.items()})
    translated = layout.translate(stored, "test_resnet")
    assert layout.marks(stored) and list(translated.state) == list(own)


def commands() -> list[str]:
    text = (ROOT / "README.md").read_text(encoding="utf-8").replace("\\\n", " ")
    code = "\n".join(re.findall(r"```sh\n(.*?)```", text, flags=re.DOTALL))
    found = re.findall(r"(?:sparse-transfer|-m sparse_transfer) ([^'#\n]+)", code)
    return [re.sub(r"<[^>]*>", "x", line).strip() for line in found]


def test_the_readme_has_commands():
    assert len(commands()) > 10


@pytest.mark.parametrize("line", commands())
def test_every_command_of_the_readme_parses(line):
    verb, *arguments = shlex.split(line)
    command = typer.main.get_command(app).commands[verb]  # type: ignore[attr-defined]
    command.make_context(verb, arguments)


def test_the_example_is_whole_small_and_says_where_its_numbers_come_from():
    folder = ROOT / "docs" / "study"
    page = (folder / "index.html").read_text(encoding="utf-8")
    for link in re.findall(r'href="([^"#:]+)"', page):
        assert (folder / link).is_file(), link
    assert sum(path.stat().st_size for path in folder.iterdir()) < 3_000_000
    assert "imported: declared, not verified" in page
    source = (folder / "README.md").read_text(encoding="utf-8")
    assert "2111.13445" in source and "IST-DASLab/sparse-imagenet-transfer" in source
    assert "\nstudy:" in (ROOT / "Makefile").read_text(encoding="utf-8")
