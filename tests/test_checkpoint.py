from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

import sparse_transfer
from sparse_transfer import checkpoint, models
from sparse_transfer.config import ModelSpec
from sparse_transfer.errors import UserError
from sparse_transfer.pruning.layers import prunable
from sparse_transfer.pruning.masks import Masks
from sparse_transfer.pruning.structured.graph import trace
from sparse_transfer.store import file_digest

ARCHITECTURES = {
    "resnet18": {"channels": [16, 32, 64, 128]},
    "test_vit": {},
    "mobilenetv2_050": {"pad_type": "same", "bn_eps": 1e-3},
    "resnet20_cifar": {"channels": [4, 8, 16]},
    "vgg19_cifar": {"channels": [4, 4, 8, 8, 8]},
}


def pruned(name: str = "resnet20_cifar", sparsity: float = 0.8):
    """A model with random weights and random masks, batch norms made distinct."""
    spec = ModelSpec(name=name, weights="random", kwargs=ARCHITECTURES[name])
    loaded = models.build(spec, num_classes=7, image_size=32, seed=0)
    generator = torch.Generator().manual_seed(1)
    masks = Masks(
        {
            layer: torch.rand(weight.shape, generator=generator) >= sparsity
            for layer, weight in prunable(loaded.model, ["first_conv", "head"]).items()
        }
    )
    masks.apply(loaded.model.named_parameters())
    for buffer_name, buffer in loaded.model.named_buffers():
        if buffer_name.endswith("running_mean"):
            buffer.normal_(generator=generator)
    return loaded, masks


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    loaded, masks = pruned()
    checkpoint.save(tmp_path / "ckpt", loaded, loaded.model, masks, {"method": "gmp"})
    return tmp_path / "ckpt"


def edit(path: Path, change) -> None:
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))


@pytest.fixture(scope="module")
def opened_elsewhere(tmp_path_factory: pytest.TempPathFactory):
    """Every architecture saved here, and its outputs as fresh processes compute them.

    One process never imports this package and opens what says `opens_with: timm`; the other opens
    everything through `sparse_transfer.load`, and our own architectures once more through timm.
    """
    root = tmp_path_factory.mktemp("checkpoints")
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    save_file({"images": images}, root / "images.safetensors")
    expected = {}
    for name in ARCHITECTURES:
        loaded, masks = pruned(name)
        folder = root / loaded.opens_with / name
        checkpoint.save(folder, loaded, loaded.model, masks, {})
        with torch.no_grad():
            expected[name] = loaded.model.eval()(images)
    common = f"""
import sys, torch
from pathlib import Path
from safetensors.torch import load_file, save_file
torch.set_num_threads({torch.get_num_threads()})
root = Path({str(root)!r})
images = load_file(root / "images.safetensors")["images"]
def outputs(folders, opener):
    with torch.no_grad():
        return {{f.name: opener(f).eval()(images) for f in folders}}
"""
    with_timm = (
        "import timm\ndef opener(f): return timm.create_model(f'local-dir:{f}', pretrained=True)"
    )
    programs = {
        "plain timm": f"""{with_timm}
result = outputs(sorted(root.glob("timm/*")), opener)
assert not any(name.startswith("sparse_transfer") for name in sys.modules)""",
        "ours": f"""import sparse_transfer
assert "timm" not in sys.modules
result = outputs(sorted(root.glob("*/*")), lambda f: sparse_transfer.load(f).model)
{with_timm}
through_timm = outputs(sorted(root.glob("sparse_transfer/*")), opener)
result |= {{f"{{name}} through timm": output for name, output in through_timm.items()}}""",
    }
    found = {}
    for title, program in programs.items():
        target = root / "outputs.safetensors"
        code = f"{common}\n{program}\nsave_file(result, {str(target)!r})"
        subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
        found[title] = load_file(target)
    return expected, found


def test_fresh_processes_compute_the_same_bits(opened_elsewhere):
    expected, found = opened_elsewhere
    ours = {"resnet20_cifar", "vgg19_cifar"}
    assert set(found["plain timm"]) == set(ARCHITECTURES) - ours
    assert set(found["ours"]) == set(ARCHITECTURES) | {f"{name} through timm" for name in ours}
    for outputs in found.values():
        for name, output in outputs.items():
            assert torch.equal(output, expected[name.removesuffix(" through timm")]), name


def test_importing_the_package_does_not_import_torch():
    code = "import sys, sparse_transfer; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    assert sparse_transfer.load is checkpoint.load
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        _ = sparse_transfer.lod


def test_opening_gives_back_what_was_saved(tmp_path: Path):
    loaded, masks = pruned()
    facts = {"method": "gmp", "target": 0.8, "parents": ["abc"]}
    checkpoint.save(tmp_path / "c", loaded, loaded.model, masks, facts)
    opened = checkpoint.open_checkpoint(tmp_path / "c")
    assert opened.facts == facts
    assert opened.masks is not None and opened.masks.digest() == masks.digest()
    assert list(opened.masks) == list(masks)
    assert opened.loaded.title == loaded.title and opened.loaded.declared_sparse
    assert opened.loaded.spec == loaded.spec
    for (one, x), (other, y) in zip(
        loaded.model.state_dict().items(), opened.model.state_dict().items(), strict=True
    ):
        assert one == other and torch.equal(x, y)


def test_the_record_counts(tmp_path: Path):
    loaded, masks = pruned()
    checkpoint.save(tmp_path / "c", loaded, loaded.model, masks, {})
    record = json.loads((tmp_path / "c" / "sparsity.json").read_text())
    sparsity = record["sparsity"]
    assert record["opens_with"] == "sparse_transfer"
    assert record["mask_digest"] == masks.digest()
    assert sparsity["prunable"] == masks.sparsity()
    parameters = sum(p.numel() for p in loaded.model.parameters())
    assert sparsity["all_parameters"] == (masks.total - masks.kept()) / parameters
    assert 0 < sparsity["all_parameters"] < sparsity["prunable"]
    for name, mask in masks.items():
        layer = sparsity["layers"][name]
        assert (layer["weights"], layer["kept"]) == (mask.numel(), int(mask.sum()))


def test_a_dense_checkpoint_has_no_mask_whatever_zeros_it_holds(tmp_path: Path):
    loaded, _ = pruned()
    checkpoint.save(tmp_path / "c", loaded, loaded.model, None, {"method": "dense"})
    assert not (tmp_path / "c" / "mask.safetensors").exists()
    opened = checkpoint.open_checkpoint(tmp_path / "c")
    assert opened.masks is None and not opened.loaded.declared_sparse
    record = json.loads((tmp_path / "c" / "sparsity.json").read_text())["sparsity"]
    assert record["prunable"] is None and record["all_parameters"] == 0 and record["zeros"] > 0


def test_a_new_head_and_a_new_transform_are_on_record(tmp_path: Path):
    loaded, masks = pruned()
    models.new_head(loaded.model, 3, seed=0)
    loaded = models.with_transform(loaded, mean=(0.1, 0.2, 0.3), crop_pct=1.0)
    checkpoint.save(tmp_path / "c", loaded, loaded.model, masks, {})
    config = json.loads((tmp_path / "c" / "config.json").read_text())
    assert config["num_classes"] == config["pretrained_cfg"]["num_classes"] == 3
    assert config["pretrained_cfg"]["mean"] == [0.1, 0.2, 0.3]
    opened = checkpoint.open_checkpoint(tmp_path / "c")
    assert opened.loaded.spec["pretrained_cfg"]["mean"] == [0.1, 0.2, 0.3]
    assert opened.model(torch.randn(2, 3, 32, 32)).shape == (2, 3)


def test_a_checkpoint_is_a_model_of_the_next_experiment(saved: Path):
    spec = ModelSpec(name=f"local-dir:{saved}")
    again = models.build(spec, num_classes=7, image_size=32, seed=5)
    assert again.declared_sparse
    for name, tensor in checkpoint.open_checkpoint(saved).model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], tensor)


def test_saving_refuses_weights_that_are_not_zero(tmp_path: Path):
    loaded, masks = pruned()
    with torch.no_grad():
        loaded.model.get_parameter(next(iter(masks))).fill_(1.0)
    with pytest.raises(AssertionError, match="are not zero"):
        checkpoint.save(tmp_path / "c", loaded, loaded.model, masks, {})
    assert list(tmp_path.iterdir()) == []


def test_saving_again_replaces_and_leaves_nothing_else(saved: Path):
    loaded, _ = pruned()
    checkpoint.save(saved, loaded, loaded.model, None, {})
    names = sorted(path.name for path in saved.iterdir())
    assert names == ["config.json", "model.safetensors", "sparsity.json"]
    assert [path.name for path in saved.parent.iterdir()] == ["ckpt"]


@pytest.mark.parametrize("name", ["model.safetensors", "mask.safetensors"])
def test_truncated_files_are_refused(saved: Path, name):
    path = saved / name
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(UserError, match="cut off or damaged") as caught:
        checkpoint.open_checkpoint(saved)
    assert name in str(caught.value)


@pytest.mark.parametrize("name", ["model.safetensors", "mask.safetensors", "sparsity.json"])
def test_missing_files_are_named(saved: Path, name):
    (saved / name).unlink()
    with pytest.raises(UserError, match=f"{name}.*is missing"):
        checkpoint.open_checkpoint(saved)


def test_another_mask_is_refused(saved: Path):
    _, other = pruned(sparsity=0.5)
    checkpoint._write_masks(saved / "mask.safetensors", other)
    with pytest.raises(UserError, match="digest of its mask differs"):
        checkpoint.open_checkpoint(saved)


def change_weights(folder: Path, change) -> None:
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def test_weights_where_the_mask_is_are_refused(saved: Path):
    masks = checkpoint.open_checkpoint(saved).masks
    assert masks is not None
    name = next(iter(masks))
    change_weights(saved, lambda state: state[name].add_(1.0))
    wrong = masks[name].numel() - int(masks[name].sum())
    with pytest.raises(UserError, match=f"{wrong} weights of {name} are not zero"):
        checkpoint.open_checkpoint(saved)


def test_more_zeros_than_claimed_are_refused(saved: Path):
    change_weights(saved, lambda state: state["layer1.0.conv1.weight"].zero_())
    with pytest.raises(UserError, match="144 zeros of 144 .* while the record claims"):
        checkpoint.open_checkpoint(saved)


def test_a_claim_that_is_not_so_is_refused(saved: Path):
    edit(saved / "sparsity.json", lambda r: r["sparsity"].update(prunable=0.95))
    with pytest.raises(UserError, match=r"measured sparsity.*claimed 0\.9500"):
        checkpoint.open_checkpoint(saved)


def test_other_kept_weights_are_refused(saved: Path):
    change_weights(saved, lambda state: state["fc.bias"].add_(1.0))
    with pytest.raises(UserError, match="SHA-256 differs"):
        checkpoint.open_checkpoint(saved)
    digest = file_digest(saved / "model.safetensors")
    edit(saved / "sparsity.json", lambda r: r.update(weights_digest=digest))
    checkpoint.open_checkpoint(saved)


def test_a_mask_for_another_model_is_refused(saved: Path):
    other = Masks({"elsewhere.weight": torch.ones(3, dtype=torch.bool)})
    checkpoint._write_masks(saved / "mask.safetensors", other)
    edit(saved / "sparsity.json", lambda r: r.update(mask_digest=other.digest()))
    with pytest.raises(UserError, match="elsewhere.weight that the model does not have"):
        checkpoint.open_checkpoint(saved)


def test_a_later_format_is_refused(saved: Path):
    edit(saved / "sparsity.json", lambda r: r.update(format=99))
    with pytest.raises(UserError, match="has format 99.*reads 1 and 2"):
        checkpoint.open_checkpoint(saved)


def test_a_folder_that_is_none_says_so(tmp_path: Path):
    with pytest.raises(UserError, match="no config.json"):
        checkpoint.open_checkpoint(tmp_path)
    with pytest.raises(UserError, match="no such folder"):
        sparse_transfer.load(tmp_path / "nowhere")


SHRUNK = {"resnet18_cifar": {"channels": [6, 8, 10, 12]}, "test_resnet": {}, "test_vit": {}}


def shrunk(name: str = "resnet18_cifar", every: int = 3, source: models.LoadedModel | None = None):
    """A model that lost every third channel of each group, its batch norms made distinct."""
    if source is None:
        spec = ModelSpec(name=name, weights="random", kwargs=SHRUNK[name])
        source = models.build(spec, num_classes=7, image_size=32, seed=0)
        generator = torch.Generator().manual_seed(1)
        for buffer_name, buffer in source.model.named_buffers():
            if buffer_name.endswith("running_mean"):
                buffer.normal_(generator=generator)
    graph = trace(source.model, image_size=32)
    alive = {n: torch.arange(a.numel()) % every != 0 for n, a in graph.all_alive().items()}
    plan = graph.plan(alive)
    plan.apply(source.model)
    return source, plan


@pytest.fixture
def small(tmp_path: Path) -> Path:
    loaded, plan = shrunk()
    checkpoint.save(tmp_path / "small", loaded, loaded.model, None, {"method": "x"}, plan)
    return tmp_path / "small"


@pytest.mark.parametrize("name", list(SHRUNK))
def test_a_shrunk_checkpoint_opens_without_tracing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
):
    loaded, plan = shrunk(name)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = loaded.model.eval()(images)
    checkpoint.save(tmp_path / "c", loaded, loaded.model, None, {}, plan)
    monkeypatch.setitem(sys.modules, "torch_pruning", None)  # cannot be imported
    opened = checkpoint.open_checkpoint(tmp_path / "c")
    with torch.no_grad():
        assert torch.equal(opened.model.eval()(images), expected)
    assert opened.loaded.shrink == plan and opened.masks is None
    assert opened.loaded.opens_with == "sparse_transfer"
    record = json.loads((tmp_path / "c" / "sparsity.json").read_text())
    assert record["format"] == 2 and record["opens_with"] == "sparse_transfer"
    assert record["shrink_digest"] == plan.digest()


def test_an_unshrunk_checkpoint_is_what_it_was(saved: Path):
    record = json.loads((saved / "sparsity.json").read_text())
    assert record["format"] == 1 and "shrink_digest" not in record
    assert not (saved / "shrink.json").exists()
    assert checkpoint.open_checkpoint(saved).loaded.shrink is None


def test_pruning_goes_on_from_a_shrunk_checkpoint(small: Path, tmp_path: Path):
    spec = ModelSpec(name=f"local-dir:{small}")
    first = models.build(spec, num_classes=None, image_size=32, seed=0)
    assert first.shrink is not None
    again, second = shrunk(every=2, source=first)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = again.model.eval()(images)
    checkpoint.save(tmp_path / "smaller", again, again.model, None, {}, second)
    opened = checkpoint.open_checkpoint(tmp_path / "smaller")
    with torch.no_grad():
        assert torch.equal(opened.model.eval()(images), expected)
    assert opened.loaded.shrink == first.shrink.then(second)
    # fine-tuning removes nothing more, and its checkpoint still knows what is gone
    checkpoint.save(tmp_path / "tuned", opened.loaded, opened.model, None, {})
    assert checkpoint.open_checkpoint(tmp_path / "tuned").loaded.shrink == opened.loaded.shrink


def test_masks_and_shrinking_together(tmp_path: Path):
    loaded, plan = shrunk()
    masks = Masks({n: torch.rand(w.shape) > 0.5 for n, w in prunable(loaded.model).items()})
    masks.apply(loaded.model.named_parameters())
    checkpoint.save(tmp_path / "c", loaded, loaded.model, masks, {}, plan)
    opened = checkpoint.open_checkpoint(tmp_path / "c")
    assert opened.masks is not None and opened.masks.digest() == masks.digest()
    assert opened.loaded.shrink == plan and opened.loaded.declared_sparse


def test_a_new_head_on_a_shrunk_checkpoint(small: Path, tmp_path: Path):
    spec = ModelSpec(name=f"local-dir:{small}")
    loaded = models.build(spec, num_classes=4, image_size=32, seed=0)
    images = torch.randn(2, 3, 32, 32)
    assert loaded.model(images).shape == (2, 4)
    checkpoint.save(tmp_path / "c", loaded, loaded.model, None, {})
    opened = checkpoint.open_checkpoint(tmp_path / "c")
    assert opened.model(images).shape == (2, 4)
    config = json.loads((tmp_path / "c" / "config.json").read_text())
    assert config["num_features"] == opened.model.get_classifier().in_features == 8


def test_plain_timm_stops_at_a_shrunk_checkpoint(tmp_path: Path):
    loaded, plan = shrunk("test_resnet")
    checkpoint.save(tmp_path / "c", loaded, loaded.model, None, {}, plan)
    for classes in ({}, {"num_classes": 3}):
        with pytest.raises(RuntimeError, match="size mismatch"):
            timm.create_model(f"local-dir:{tmp_path / 'c'}", pretrained=True, **classes)


def test_a_missing_or_foreign_plan_is_refused(small: Path, saved: Path):
    text = (small / "shrink.json").read_text()
    (small / "shrink.json").unlink()
    with pytest.raises(UserError, match="shrink.json is missing"):
        checkpoint.open_checkpoint(small)
    with pytest.raises(UserError, match="of another shape"):  # and as a model it does not fit
        models.build(ModelSpec(name=f"local-dir:{small}"), num_classes=7, image_size=32, seed=0)
    (saved / "shrink.json").write_text(text)
    with pytest.raises(UserError, match="its record knows of none"):
        checkpoint.open_checkpoint(saved)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "damaged"),
        ("{}", "digest of its shrink plan differs"),
        ('{"conv1.weight": {"0": {"size": 6, "kept": [0, 9]}}}', "damaged"),
        ('{"conv1.weight": {"0": {"size": 6, "kept": [0, 2]}}}', "digest of its shrink plan"),
    ],
)
def test_a_changed_plan_is_refused(small: Path, content: str, reason: str):
    (small / "shrink.json").write_text(content)
    with pytest.raises(UserError, match=f"is refused[^~]*{reason}"):
        checkpoint.open_checkpoint(small)


def test_the_same_channels_kept_under_other_numbers_are_refused(small: Path):
    def other(stored: dict) -> None:
        cut = stored["bn1.weight"]["0"]
        assert cut["kept"] == [1, 2, 4, 5]
        cut["kept"] = [0, 2, 4, 5]  # the same shapes: only the digest can tell

    edit(small / "shrink.json", other)
    with pytest.raises(UserError, match="digest of its shrink plan differs"):
        checkpoint.open_checkpoint(small)
