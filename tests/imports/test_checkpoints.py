from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils.prune import l1_unstructured

import sparse_transfer
from sparse_transfer import models, plugins
from sparse_transfer.config import ModelSpec
from sparse_transfer.errors import UserError
from sparse_transfer.imports.checkpoints import TOLERANCE, Imported, convert, sparsities
from tests.imports import foreign_files as foreign

IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def imported(state, tmp_path: Path, architecture: str = "resnet18", **options) -> Imported:
    path = tmp_path / "foreign.pth"
    torch.save(state, path)
    if "resnet" in architecture:
        options.setdefault("kwargs", foreign.NARROW)
    return convert(path, architecture, **options)


def same_function(found: Imported, original, images=IMAGES) -> bool:
    with torch.inference_mode():
        ours, theirs = found.loaded.model.eval()(images), original(images)
    return torch.allclose(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("noise", [False, True])
def test_acdc_wrapped_layers_with_prefix_and_nesting(tmp_path, noise):
    model = foreign.network()
    masks = foreign.prune(model, 0.8, skip=("conv1", "fc"))
    state = foreign.wrapped(model.state_dict(), masks, noise)
    content = {"epoch": 9, "model_state_dict": {f"module.{n}": t for n, t in state.items()}}
    found = imported(content, tmp_path, sparse=0.8)
    assert found.layout == "acdc" and same_function(found, model)
    assert found.masks is not None and set(found.masks) == set(masks)
    assert all(torch.equal(found.masks[name], mask) for name, mask in masks.items())
    assert found.loaded.spec["pretrained_cfg"]["interpolation"] == "bilinear"
    assert found.loaded.spec["pretrained_cfg"]["crop_pct"] == 0.875


def test_layers_wrapped_twice_are_unwrapped(tmp_path):
    model = foreign.network()
    masks = foreign.prune(model, 0.5)
    once = foreign.wrapped(model.state_dict(), masks)
    twice = {name.replace("._layer.", "._layer._layer."): t for name, t in once.items()}
    found = imported(twice, tmp_path, sparse=0.5)
    assert found.layout == "acdc" and same_function(found, model)


def test_rigl_pads_asymmetrically_and_resizes_bicubically(tmp_path):
    ours = foreign.network("resnet50_rigl")
    masks = foreign.prune(ours, 0.9)
    found = imported(foreign.rigl(ours.state_dict()), tmp_path, "resnet50", sparse=0.9)
    assert found.layout == "rigl" and found.loaded.spec["architecture"] == "resnet50_rigl"
    assert found.loaded.opens_with == "sparse_transfer"
    assert found.loaded.spec["pretrained_cfg"]["interpolation"] == "bicubic"
    assert found.masks is not None and found.masks.kept() == sum(
        int(m.sum()) for m in masks.values()
    )
    assert same_function(found, ours)
    # the network it would be under torchvision's padding is another one
    symmetric = foreign.network("resnet50")
    symmetric.load_state_dict(ours.state_dict())
    assert not same_function(found, symmetric)


def test_rigl_is_a_resnet50_and_nothing_else(tmp_path):
    state = foreign.rigl(foreign.network("resnet50_rigl").state_dict())
    for layout in ("auto", "rigl"):
        with pytest.raises(UserError, match="Say --arch resnet50"):
            imported(state, tmp_path, "resnet18", layout=layout)
    with pytest.raises(UserError, match="does not fit the layout timm") as error:
        imported(state, tmp_path, "resnet18", layout="timm")
    assert "initial_conv.conv.weight" in error.value.why


def test_str_weights_are_the_thresholded_ones_and_the_head_is_linear(tmp_path):
    model = foreign.network()
    model.fc.bias.data.zero_()
    masks = foreign.prune(model, 0.8)
    state = foreign.soft_thresholds(model.state_dict(), list(masks), s=-3.0)
    found = imported({"state_dict": state}, tmp_path)  # the thresholds declare it sparse
    assert found.layout == "str" and same_function(found, model)
    assert found.loaded.model.fc.weight.ndim == 2 and not found.loaded.model.fc.bias.any()
    assert found.masks is not None and set(found.masks) == set(masks)
    for name, mask in masks.items():
        assert torch.equal(found.masks[name], mask), name
    assert found.facts["imported"]["claimed_sparsity"] is None and found.facts["method"] == "str"


def test_the_dense_conversion_of_str_is_known_by_its_head(tmp_path):
    model = foreign.network()
    model.fc.bias.data.zero_()
    foreign.prune(model, 0.8)
    state = model.state_dict()
    state["fc.weight"] = state["fc.weight"][:, :, None, None]
    del state["fc.bias"]
    found = imported(state, tmp_path, sparse=0.8)
    assert found.layout == "str" and same_function(found, model)


@pytest.mark.parametrize("form", ["distiller", "amc"])
def test_the_mobilenet_of_the_projects_is_timms_with_relu(tmp_path, form):
    state, forward = foreign.mobilenet(form)
    images = 3 * torch.randn(2, 3, 32, 32)
    found = imported(state, tmp_path, "mobilenet")
    assert found.layout == "woodfisher" and same_function(found, forward, images)
    assert found.masks is None and found.facts["method"] == "dense"
    assert found.loaded.opens_with == "timm" and found.loaded.spec["model_args"] == {
        "act_layer": "relu"
    }


def test_str_and_acdc_mobilenets_are_told_from_woodfishers(tmp_path):
    state, _ = foreign.mobilenet("distiller")
    thresholds = state | {"model.1.3.sparseThreshold": torch.full((1, 1), -5.0)}
    thresholds["fc.weight"] = state["fc.weight"][:, :, None, None]
    assert imported(thresholds, tmp_path, "mobilenetv1").layout == "str"
    mask = {"model.1.3.weight": torch.rand(64, 32, 1, 1) < 0.5}
    found = imported(foreign.wrapped(state, mask), tmp_path, "mobilenetv1_100")
    assert found.layout == "acdc" and found.masks is not None
    assert list(found.masks) == ["blocks.0.0.conv_pw.weight"]


def test_the_vector_of_masks_of_mfac(tmp_path):
    model = foreign.network()
    named = [
        n for n, p in model.named_parameters() if "conv" in n and p.ndim > 1 or n == "fc.weight"
    ]
    masks = {n: torch.rand_like(model.get_parameter(n)) < 0.1 for n in named}
    vector = torch.cat([masks[name].flatten() for name in named])
    content = {"model": model.state_dict(), "mask": vector}
    found = imported(content, tmp_path, sparse=0.9)
    assert found.layout == "woodfisher" and found.masks is not None
    assert all(torch.equal(found.masks[name], masks[name]) for name in named)
    assert not any("downsample" in name for name in found.masks)
    with pytest.raises(UserError, match="cannot be assigned"):
        imported({"model": model.state_dict(), "mask": vector[1:]}, tmp_path)


def test_pairs_of_torch_prune(tmp_path):
    model = foreign.network()
    masks = foreign.prune(model, 0.7, skip=("conv1",))
    found = imported(foreign.pairs(model.state_dict(), masks), tmp_path)
    assert found.layout == "torch-prune" and same_function(found, model)
    assert found.masks is not None and abs(found.masks.sparsity() - 0.7) < 1e-3


def test_pairs_as_torch_itself_stores_them(tmp_path):
    model = foreign.network()
    plain = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            l1_unstructured(module, "weight", amount=0.6)
    found = imported(model.state_dict(), tmp_path, sparse=0.6)
    assert found.layout == "torch-prune" and same_function(found, model)
    for name, mask in found.masks.items():
        assert torch.equal(found.loaded.model.get_parameter(name), plain[name] * mask)


@pytest.mark.parametrize("prefix", ["", "module.", "module._orig_mod."])
def test_plain_dense_weights_under_the_names_of_timm_and_torchvision(tmp_path, prefix):
    model = foreign.network()
    state = {prefix + name: tensor.half() for name, tensor in model.state_dict().items()}
    found = imported(state, tmp_path)
    assert found.layout == "timm" and found.masks is None and not found.loaded.declared_sparse
    assert {p.dtype for p in found.loaded.model.parameters()} == {torch.float32}
    assert same_function(found, model.half().float())
    named = imported(state, tmp_path, layout="torchvision")
    assert named.layout == "torchvision"
    assert named.loaded.spec["pretrained_cfg"]["crop_pct"] == 0.875


def test_torchvision_networks_keep_their_names_and_function(tmp_path):
    torch.manual_seed(0)
    original = torchvision.models.squeezenet1_1(num_classes=6).eval()
    found = imported(original.state_dict(), tmp_path, "squeezenet1_1")  # timm has none
    assert found.layout == "torchvision" and same_function(found, original)
    assert found.loaded.spec["architecture"] == "torchvision_squeezenet1_1"


def test_any_timm_network_in_its_plain_layout(tmp_path):
    original = timm.create_model("test_vit", num_classes=3).eval()
    found = imported(original.state_dict(), tmp_path, "test_vit")
    size = original.pretrained_cfg["input_size"][-1]
    assert same_function(found, original, torch.randn(1, 3, size, size))


def test_undeclared_zeros_are_asked_about_and_either_answer_is_taken(tmp_path):
    model = foreign.network()
    foreign.prune(model, 0.9)
    with pytest.raises(UserError, match="does not say whether it is sparse") as error:
        imported(model.state_dict(), tmp_path)
    assert "--dense" in error.value.hint and "--sparse 0.9" in error.value.hint
    assert imported(model.state_dict(), tmp_path, dense=True).masks is None
    found = imported(model.state_dict(), tmp_path, sparse=0.9)
    assert found.masks is not None and abs(found.masks.sparsity() - 0.9) < 1e-3


def test_a_layer_without_zeros_has_no_mask_and_the_claim_may_count_it_or_not(tmp_path):
    model = foreign.network()
    foreign.prune(model, 0.9, skip=("conv1",))  # a seventh of the weights
    found = imported(model.state_dict(), tmp_path, sparse=0.9)
    assert found.masks is not None and "conv1.weight" not in found.masks
    everything = next(share for words, share in found.counts.items() if words.startswith("all "))
    assert everything < 0.9 - 5 * TOLERANCE
    assert imported(model.state_dict(), tmp_path, sparse=round(everything, 3)).masks is not None


def test_the_ways_of_counting_are_what_their_words_say():
    model = nn.Sequential(nn.Conv2d(1, 2, 2, bias=False), nn.Flatten(), nn.Linear(2, 3))
    with torch.no_grad():
        model[0].weight.fill_(1.0)[0].zero_()  # 4 of 8; the linear layer has 6 weights, 3 biases
        model[2].weight.fill_(1.0)
    model.get_classifier = lambda: model[2]
    masks = sparse_transfer.pruning.masks.Masks({"0.weight": model[0].weight != 0})
    assert sparsities(model, masks) == {
        "the 1 layers with zeros": 0.5,
        "all 2 convolutions and linear layers": 4 / 14,
        "all of them but the classifier": 0.5,
        "all parameters": 4 / 17,
    }


def test_a_wrong_claim_is_refused_with_what_was_measured(tmp_path):
    model = foreign.network()
    masks = foreign.prune(model, 0.8)
    for state in (model.state_dict(), foreign.wrapped(model.state_dict(), masks)):
        with pytest.raises(UserError, match="not as sparse as claimed") as error:
            imported(state, tmp_path, sparse=0.9)
        assert "80." in error.value.why and "--sparse 0.8" in error.value.hint
    with pytest.raises(UserError, match="declared dense, and is not"):
        imported(foreign.wrapped(model.state_dict(), masks), tmp_path, dense=True)
    with pytest.raises(UserError, match="declared sparse, and is not"):
        imported(foreign.network().state_dict(), tmp_path, sparse=0.9)


def test_the_zeros_of_a_few_small_layers_are_no_evidence_of_a_claim(tmp_path):
    model = foreign.network()
    layers = [n for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    foreign.prune(model, 0.9, skip=tuple(name for name in layers if name != "layer1.0.conv1"))
    with pytest.raises(UserError, match="not as sparse as claimed") as error:
        imported(model.state_dict(), tmp_path, sparse=0.9)
    for words in ("the 1 layers with zeros", "all 22 convolutions", "but the classifier", "all p"):
        assert words in error.value.why
    assert "hold only" in error.value.why and "--sparse 0.9" not in error.value.hint


def test_zeros_beside_stored_masks_are_asked_about_and_held_where_declared(tmp_path):
    model = foreign.network()
    masks = foreign.prune(model, 0.9)
    stored = {"conv1.weight": masks["conv1.weight"]}
    state = foreign.wrapped(model.state_dict(), stored)
    with pytest.raises(UserError, match="does not say whether it is sparse") as error:
        imported(state, tmp_path)
    assert "1 layers" in error.value.why and "--sparse 0.9" in error.value.hint
    assert "--dense" not in error.value.hint  # its masks contradict that
    found = imported(state, tmp_path, sparse=0.9)
    assert found.masks is not None and set(found.masks) == set(masks)
    assert all(torch.equal(found.masks[name], mask) for name, mask in masks.items())


@pytest.mark.parametrize("form", ["wrapped", "str"])
def test_a_method_is_named_only_where_the_layout_belongs_to_one(tmp_path, form):
    model = foreign.network()
    masks = foreign.prune(model, 0.8)
    if form == "wrapped":  # WoodFisher, AC/DC and the transfer study all write this
        found = imported(foreign.wrapped(model.state_dict(), masks), tmp_path)
    else:
        found = imported(foreign.soft_thresholds(model.state_dict(), list(masks), -3.0), tmp_path)
    expected = {"wrapped": ("acdc", "imported"), "str": ("str", "str")}[form]
    assert (found.layout, found.facts["method"]) == expected


def test_masks_that_were_made_after_loading_are_all_ones_and_say_nothing(tmp_path):
    model = foreign.network()
    masks = {name: torch.ones_like(mask) for name, mask in foreign.prune(model, 0.9).items()}
    state = foreign.wrapped(model.state_dict(), masks)
    with pytest.raises(UserError, match="does not say"):
        imported(state, tmp_path)
    found = imported(state, tmp_path, sparse=0.9)
    assert found.masks is not None and abs(found.masks.sparsity() - 0.9) < 1e-3


def test_a_file_that_fits_nothing_is_told_the_nearest_layout_and_the_first_differences(tmp_path):
    state = foreign.network().state_dict()
    state["fc2.weight"] = torch.zeros(5, 5)
    del state["bn1.weight"]
    state["conv1.weight"] = torch.zeros(64, 3, 3, 3)
    with pytest.raises(UserError, match="fits no layout with --arch resnet18") as error:
        imported(state, tmp_path)
    assert "nearest is timm" in error.value.why and "3 differences" in error.value.why
    for part in ("1 missing: bn1.weight (64,)", "1 unexpected: fc2.weight (5, 5)"):
        assert part in error.value.why
    assert "conv1.weight (64, 3, 3, 3), expected (64, 3, 7, 7)" in error.value.why
    with pytest.raises(UserError, match="layout named 'acdd'"):
        imported(state, tmp_path, layout="acdd")


def test_a_mask_without_its_weight_is_refused(tmp_path):
    model = foreign.network()
    state = foreign.wrapped(model.state_dict(), foreign.prune(model, 0.5))
    state["layer9._weight_mask"] = torch.ones(3)
    with pytest.raises(UserError, match=r"mask of layer9\.weight does not fit"):
        imported(state, tmp_path)


@pytest.mark.parametrize(("claim", "hint"), [(90, "--sparse 0.9"), (1.0, ""), (-0.1, "")])
def test_a_claim_is_a_share(tmp_path, claim, hint):
    with pytest.raises(UserError, match="outside") as error:
        imported(foreign.network().state_dict(), tmp_path, sparse=claim)
    assert hint in error.value.hint
    with pytest.raises(UserError, match="exclude"):
        imported({}, tmp_path, sparse=0.5, dense=True)


def test_files_of_objects_are_refused_and_unknown_architectures_named(tmp_path):
    torch.save(foreign.network(), tmp_path / "model.pth")
    with pytest.raises(UserError, match="plain weights"):
        convert(tmp_path / "model.pth", "resnet18")
    with pytest.raises(UserError, match="no model named") as error:
        convert(tmp_path / "model.pth", "squeezenet1_2")
    assert "squeezenet1_1" in error.value.hint


def test_the_saved_checkpoint_is_opened_verified_and_never_overwritten_unasked(tmp_path):
    model = foreign.network("resnet50_rigl")
    foreign.prune(model, 0.9)
    found = imported(
        foreign.rigl(model.state_dict()),
        tmp_path,
        "resnet50",
        sparse=0.9,
        pretrained_cfg={"mean": [0.5, 0.5, 0.5]},
    )
    folder = tmp_path / "out" / "checkpoint"
    found.save(folder)
    opened = sparse_transfer.load(folder)
    assert opened.masks is not None and opened.masks.digest() == found.masks.digest()
    with torch.inference_mode():
        assert torch.equal(opened.model.eval()(IMAGES), found.loaded.model.eval()(IMAGES))
    assert opened.loaded.opens_with == "sparse_transfer"
    transform = opened.loaded.spec["pretrained_cfg"]
    assert transform["mean"] == [0.5, 0.5, 0.5] and transform["interpolation"] == "bicubic"
    facts = json.loads((folder / "sparsity.json").read_text())["facts"]["imported"]
    assert facts["layout"] == "rigl" and facts["claimed_sparsity"] == 0.9
    assert len(facts["sha256"]) == 64 and facts["file"] == "foreign.pth"
    with pytest.raises(UserError, match="exists already"):
        found.save(folder)
    found.save(folder, replace_existing=True)
    with pytest.raises(UserError, match="no checkpoint of this program"):
        found.save(tmp_path, replace_existing=True)


def test_renaming_the_file_changes_no_content_hash(tmp_path):
    model = foreign.network()
    foreign.prune(model, 0.9)
    torch.save(model.state_dict(), tmp_path / "one.pth")
    shutil.copy(tmp_path / "one.pth", tmp_path / "other.pth")

    def digest(name: str, **options) -> str | None:
        found = convert(tmp_path / f"{name}.pth", "resnet18", kwargs=foreign.NARROW, **options)
        folder = tmp_path / "checkpoints" / "-".join([name, *options])
        found.save(folder)
        assert found.facts["imported"]["file"] == f"{name}.pth"
        return models.content_hash(ModelSpec(name=f"local-dir:{folder}"))

    one = digest("one", sparse=0.9)
    assert one == digest("other", sparse=0.9) != digest("other", dense=True)
    # the layout decides how images are resized
    assert one != digest("other", sparse=0.9, layout="torchvision")


def test_every_layout_is_listed_with_a_line():
    names = plugins.names("layout")
    assert names == ["acdc", "rigl", "str", "timm", "torch-prune", "torchvision", "woodfisher"]
    for name in names:
        layout = plugins.load("layout", name)
        assert ":" in plugins.summary("layout", name) and layout.precedence >= 1


@pytest.mark.real
def test_the_pruned_squeezenet_has_the_published_counts(shared, tmp_path):
    path = shared / "data/weights/squeezenet1_0.deepcompression_in1k_sparse67.safetensors"
    with pytest.raises(UserError, match=r"66\.58%"):
        convert(path, "squeezenet1_0")
    found = convert(path, "squeezenet1_0", sparse=0.6658)
    assert found.masks is not None and found.masks.total == 1_244_448 and len(found.masks) == 26
    assert round(found.masks.sparsity(), 4) == 0.6658
    found.save(tmp_path / "squeezenet")
    assert models.model_classes(sparse_transfer.load(tmp_path / "squeezenet").model) == 1000


@pytest.mark.parametrize("ending", [".pt", ".bin", ".ckpt", ".pth.tar"])
def test_the_usual_endings_of_torch_files_are_read(tmp_path, ending):
    model = foreign.network()
    torch.save({"epoch": 3, "state_dict": model.state_dict()}, tmp_path / f"w{ending}")
    assert same_function(convert(tmp_path / f"w{ending}", "resnet18", kwargs=foreign.NARROW), model)


def test_a_checkpoint_with_a_bad_transform_is_refused(tmp_path):
    with pytest.raises(UserError, match="pretrained_cfg entry named 'meen'"):
        imported(foreign.network().state_dict(), tmp_path, pretrained_cfg={"meen": [0, 0, 0]})


def test_safetensors_are_read_too(tmp_path):
    model = foreign.network()
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    found = convert(tmp_path / "w.safetensors", "resnet18", kwargs=foreign.NARROW)
    assert same_function(found, model)
