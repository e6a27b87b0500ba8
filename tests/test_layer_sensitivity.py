from __future__ import annotations

import copy
import dataclasses
import json

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from scipy.special import softmax
from sklearn.metrics import log_loss
from torch.nn.utils.prune import l1_unstructured

from sparse_transfer import data, inputs, models, signals
from sparse_transfer import layer_sensitivity as ls
from sparse_transfer.config import ModelSpec, TaskRef
from sparse_transfer.errors import StopRequested, UserError
from sparse_transfer.stages.context import Context


@pytest.fixture
def context(tmp_path) -> Context:
    return Context(Accelerator(cpu=True), None, tmp_path)


def narrow(classes: int = 10) -> models.LoadedModel:
    spec = ModelSpec(
        name="resnet20_cifar",
        weights="random",
        kwargs={"channels": [4, 4, 8]},
        pretrained_cfg={"crop_mode": "squash"},
    )
    return models.build(spec, num_classes=classes, image_size=32, seed=0)


@pytest.mark.parametrize("sparsity", ls.LEVELS)
def test_one_layer_keeps_its_largest_weights_and_gets_the_others_back(sparsity):
    weight = torch.nn.Parameter(torch.randn(8, 5, 3, 3).to(memory_format=torch.channels_last))
    before = weight.detach().clone()
    keep = round((1 - sparsity) * weight.numel())
    with ls.pruned_alone(weight, sparsity) as is_changed:
        kept = weight.detach() != 0
        assert is_changed and int(kept.sum()) == keep
        assert torch.equal(weight.detach()[kept], before[kept])
        assert before[kept].abs().min() >= before[~kept].abs().max()
    assert torch.equal(weight.detach(), before)


def test_a_layer_that_is_sparser_already_is_left_alone():
    weight = torch.nn.Parameter(torch.zeros(10, 10))
    with torch.no_grad():
        weight[0] = 1.0
    with ls.pruned_alone(weight, 0.9) as is_changed:
        assert not is_changed
    with ls.pruned_alone(weight, 0.95) as is_changed:
        assert is_changed and int(weight.count_nonzero()) == 5
    assert int(weight.count_nonzero()) == 10


def test_the_score_is_scikit_learns():
    generator = np.random.default_rng(0)
    logits, labels = generator.normal(size=(40, 3)), generator.integers(0, 3, 40)
    accuracy, loss = ls.score(logits, labels)
    assert accuracy == (logits.argmax(1) == labels).mean()
    assert loss == pytest.approx(log_loss(labels, softmax(logits, axis=1), labels=[0, 1, 2]))
    assert np.isfinite(ls.score(np.full((2, 3), np.nan), np.array([0, 1]))[1])


def test_the_probe_tells_separable_classes_and_knows_what_it_never_saw():
    x = np.repeat(np.eye(3), 20, axis=0) + np.random.default_rng(0).normal(0, 0.01, (60, 3))
    y = np.repeat([0, 2, 3], 20)
    out = ls.fit_probe(x, y, 5)(x)
    assert (out.argmax(1) == y).all() and (out[:, [1, 4]] == ls.ABSENT).all()
    with pytest.raises(UserError, match="two classes"):
        ls.fit_probe(x[:5], y[:5], 5)


def test_a_change_is_what_torchs_own_pruning_of_that_layer_gives(context):
    loaded = narrow()
    found = ls.measure(loaded, "digits", context, judge="head", images=60)
    task = data.open_task(TaskRef(name="digits"), data_root=None, cache=context.cache)
    transform = inputs.transform(ls.own_preprocess(loaded), loaded, task, context.cache)
    images = transform.images(task.test, context.cache)
    rows = ls._some(len(images), 60, "test")
    x, labels = data.batch(images, rows), images.labels[rows]

    def accuracy(model: torch.nn.Module) -> float:
        with torch.inference_mode():
            return float((model.eval()(x).argmax(1) == labels).float().mean())

    assert found.accuracy == pytest.approx(accuracy(loaded.model))
    for layer in ("conv1", "layer2.0.conv1", "fc"):
        for level in ls.LEVELS:
            model = copy.deepcopy(loaded.model)
            l1_unstructured(model.get_submodule(layer), "weight", amount=level)
            change = accuracy(model) - accuracy(loaded.model)
            assert found.layers[layer][level].accuracy == pytest.approx(change, abs=1e-6)


@pytest.mark.parametrize(("classes", "judge"), [(10, "head"), (7, "probe")])
def test_the_network_is_left_as_it_was_and_nothing_is_measured_twice(context, classes, judge):
    def measured(loaded: models.LoadedModel) -> ls.Sensitivity:
        return ls.measure(loaded, "digits", context, judge=judge, images=60)

    loaded = narrow(classes)
    before = {name: tensor.clone() for name, tensor in loaded.model.state_dict().items()}
    found = measured(loaded)
    assert found.judged_by == judge and found.images == 60 and found.available > 60
    assert ("fc" in found.layers) == (judge == "head") and "conv1" in found.layers
    after = loaded.model.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    json.dumps(found.to_json())
    # stored: the second time no layer is run, and the numbers are the same
    file = next((context.cache / "sensitivity").glob("*.json"))
    stored = file.read_text()
    again = measured(narrow(classes))
    assert again == found and file.read_text() == stored


def test_the_layer_that_decides_is_named_first(context):
    """All of the accuracy hangs on the head; every other layer is far sparser than 95 %."""
    loaded = narrow()
    model = loaded.model
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 4:
                kept = weight.flatten().abs().argmax()
                value = weight.flatten()[kept].item()
                weight.zero_().view(-1)[kept] = value
    found = ls.measure(loaded, "digits", context, judge="head", images=40)
    others = [change for layer, c in found.layers.items() if layer != "fc" for change in c.values()]
    assert all(change == ls.Change(0.0, 0.0) for change in others)
    assert found.layers["fc"][0.95].loss != 0


def made(accuracy: float = 0.9, **changes: float) -> ls.Sensitivity:
    layers = {n: {level: ls.Change(c, -c) for level in ls.LEVELS} for n, c in changes.items()}
    return ls.Sensitivity("digits", "head", 200, 400, accuracy, 0.11, layers)


def test_the_sentence_names_three_and_says_what_matter_means():
    text = made(a=-0.01, b=-0.3, c=0.02, d=-0.2, e=-0.1).sentence()
    assert text.startswith("What matter most: b (-30.0 points), d (-20.0 points), e (-10.0 points)")
    assert "80, 90 and 95 %, averaged" in text and "0.50 points" in text
    assert made(a=-0.1, b=0.0).sentence().startswith("What matters most: a (-10.0 points) (")
    assert made(a=0.0, b=0.0).sentence().startswith("No layer matters by itself")


@pytest.mark.parametrize("accuracy", [0.05, 0.11, 0.15])
def test_a_network_at_chance_level_is_not_said_to_have_layers_that_do_not_matter(accuracy):
    text = made(accuracy, a=0.0, b=-0.01).sentence()
    assert "no better than chance" in text and "11.0%" in text
    assert "No layer matters" not in text and "matters most" not in text


def test_a_head_of_as_many_classes_judges_only_the_task_that_it_is_recorded_for(context, caplog):
    plain = narrow()
    assert ls.measure(plain, "digits", context, images=20).judged_by == "probe"
    assert "--judge head" in caplog.text
    task = data.open_task(TaskRef(name="digits"), data_root=None, cache=context.cache)
    recorded = {
        "digits": ("digits", task.classes),
        "shapes": ("shapes", [f"shape {number}" for number in range(10)]),
        "numbers of another": ("shapes", task.classes),
    }
    judges = {
        name: ls.measure(
            dataclasses.replace(plain, trained_on=models.trained_on(*given)), "digits", context,
            images=20,
        ).judged_by
        for name, given in recorded.items()
    }  # fmt: skip
    # digits calls its classes 0 … 9, as does any task without names
    assert judges == {"digits": "head", "shapes": "probe", "numbers of another": "probe"}
    with pytest.raises(UserError, match="tells 7 classes apart"):
        ls.measure(narrow(7), "digits", context, judge="head", images=20)


def test_class_names_that_agree_tell_that_a_task_is_another_part_of_the_same():
    names = ("cat", "dog")
    assert ls.is_trained_on(models.trained_on("pets", names), "pets_v2", names)
    assert not ls.is_trained_on(models.trained_on("pets", names), "pets_v2", ("dog", "cat"))
    assert not ls.is_trained_on(models.trained_on("x", ("0", "1")), "y", ("0", "1"))
    assert ls.is_trained_on(models.trained_on("x", ("0", "1")), "x", ("0", "1"))
    assert not ls.is_trained_on(None, "pets", names)


def test_a_stop_keeps_what_is_finished(context, monkeypatch):
    calls = []

    def stop_later() -> None:
        calls.append(None)
        if len(calls) > 40:
            raise StopRequested("SIGTERM")

    loaded = narrow()
    monkeypatch.setattr(signals, "raise_if_stopped", stop_later)
    with pytest.raises(StopRequested):
        ls.measure(loaded, "digits", context, judge="head", images=40)
    file = next((context.cache / "sensitivity").glob("*.json"))
    finished = json.loads(file.read_text())
    assert 0 < len(finished) < len(ls.prunable(loaded.model))
    monkeypatch.undo()
    found = ls.measure(loaded, "digits", context, judge="head", images=40)
    for layer, changes in finished.items():
        assert [[c.accuracy, c.loss] for c in found.layers[layer].values()] == changes


def test_undefined_outputs_are_refused(context):
    loaded = narrow()
    torch.nn.init.constant_(loaded.model.fc.bias, float("nan"))
    with pytest.raises(UserError, match="not finite"):
        ls.measure(loaded, "digits", context, judge="head", images=10)
