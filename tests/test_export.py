"""export on the command line: packed files and ONNX graphs, and what reads them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from sparse_transfer import checkpoint, latency, models, onnx_export
from sparse_transfer.errors import UserError
from tests.test_checkpoint import pruned
from tests.test_main import call


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    loaded, masks = pruned(sparsity=0.9)
    facts = {"method": "gmp", "trained_on": models.trained_on("toys", list("abcdefg"))}
    checkpoint.save(tmp_path / "ckpt", loaded, loaded.model, masks, facts)
    return tmp_path / "ckpt"


def test_a_packed_file_goes_through_the_verbs(folder: Path, tmp_path: Path, capsys):
    assert call("export", str(folder), "--to", "packed", "--json") == 0
    said = json.loads(capsys.readouterr().out)
    file = Path(said["path"])
    assert file == tmp_path / "ckpt.packed" and said["bytes"] == file.stat().st_size
    assert call("inspect", str(file), "--json") == 0
    assert call("bench", str(file), "--repeats", "6", "--batch-size", "1") == 0
    capsys.readouterr()
    assert call("transfer", str(file), "--task", "shapes") == 2
    assert "sparse-transfer import" in capsys.readouterr().err
    back = tmp_path / "back"
    assert call("import", str(file), "--out", str(back)) == 0
    assert call("import", str(file), "--out", str(back)) == 2
    assert "say --force" in capsys.readouterr().err
    assert call("import", str(file), "--out", str(back), "--force") == 0
    assert call("import", str(file), "--arch", "resnet18", "--out", str(back), "--force") == 2
    assert "describes itself" in capsys.readouterr().err
    for path in folder.iterdir():
        assert (back / path.name).read_bytes() == path.read_bytes()


def test_refusals_name_what_to_do(folder: Path, tmp_path: Path, capsys):
    def refused(*arguments: str) -> str:
        assert call(*arguments) == 2
        return " ".join(capsys.readouterr().err.split())

    there = tmp_path / "there"
    there.write_text("mine")
    export = ("export", str(folder), "--to", "packed", "--out", str(there))
    assert "exists already" in refused(*export) and there.read_text() == "mine"
    assert call(*export, "--force") == 0
    assert checkpoint.load(there).masks is not None
    assert "packed already" in refused("export", str(there), "--to", "packed")
    assert "There is no such folder" in refused("export", str(tmp_path / "no"), "--to", "onnx")
    assert "belongs to --to onnx" in refused(
        "export", str(folder), "--to", "packed", "--image-size", "32"
    )
    (folder / "sparsity.json").unlink()
    assert "sparsity.json is missing" in refused("export", str(folder), "--to", "packed")
    assert "with --arch" in refused("import", str(folder / "model.safetensors"))


def test_missing_packages_are_named(folder: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(onnx_export, "missing", lambda *_: "onnx not installed: pip install it")
    opened = checkpoint.open_checkpoint(folder)
    with pytest.raises(UserError, match="onnx not installed"):
        onnx_export.write(opened.model, 32, tmp_path / "x.onnx", {})
    assert not (tmp_path / "x.onnx").exists()


@pytest.fixture
def onnxruntime():
    if reason := onnx_export.missing(onnx_export.NEEDED, "onnxruntime"):
        pytest.skip(reason)
    import onnxruntime

    return onnxruntime


def test_an_onnx_file_computes_the_same_for_any_number_of_images(
    folder: Path, tmp_path: Path, onnxruntime, capsys
):
    opened = checkpoint.open_checkpoint(folder)
    assert call("export", str(folder), "--to", "packed") == 0
    assert call("export", str(tmp_path / "ckpt.packed"), "--to", "onnx") == 0
    assert "batch norms folded" in capsys.readouterr().out
    session = onnxruntime.InferenceSession(
        str(tmp_path / "ckpt.onnx"), providers=["CPUExecutionProvider"]
    )
    assert [entry.name for entry in session.get_inputs()] == ["images"]
    images = torch.randn(7, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = opened.model.eval()(images)
    (found,) = session.run(["logits"], {"images": images.numpy()})
    assert latency.relative_error(torch.from_numpy(found), expected) < 1e-5
    said = session.get_modelmeta().custom_metadata_map
    assert json.loads(said["class_names"]) == list("abcdefg") and said["task"] == "toys"
    assert float(said["sparsity"]) == pytest.approx(0.9, abs=0.01)
    assert said["architecture"] == "resnet20_cifar" and json.loads(said["image_size"]) == 32


def test_a_graph_that_disagrees_is_not_kept(folder: Path, tmp_path: Path, onnxruntime, monkeypatch):
    model = checkpoint.open_checkpoint(folder).model
    genuine = onnx_export.graph

    def wrong(folded, example, **more):
        for parameter in folded.parameters():
            parameter.data.mul_(1.01)
        return genuine(folded, example, **more)

    monkeypatch.setattr(onnx_export, "graph", wrong)
    with pytest.raises(UserError, match="differ from PyTorch's"):
        onnx_export.write(model, 32, tmp_path / "x.onnx", {})
    assert not list(tmp_path.glob("*x.onnx*"))
