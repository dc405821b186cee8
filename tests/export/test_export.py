"""Exported folders: what is in them, when they are replaced, and the command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from spheregen.cli.main import app
from spheregen.errors import ConfigError
from spheregen.export import Runner, export_model, folder
from spheregen.export.graphs import graphs_of
from spheregen.export.page import find_runtime
from tests.export.members import convolutional
from tests.factories import tiny_model_folder


@pytest.fixture
def one_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exports of one small graph, which take a second."""
    monkeypatch.setattr(folder, "graphs_of", lambda model: {"place": graphs_of(model)["place"]})


def spoken(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["export", *arguments])


def test_programs_of_torch_need_no_library_of_ours(one_graph: None, tmp_path: Path) -> None:
    pipe = convolutional()
    made = export_model(pipe, tmp_path / "out", "torch")
    assert made.manifest["parity"]["place"]["largest"] == 0
    place = torch.export.load(tmp_path / "out" / "place.pt2").module()
    latents, noise = torch.randn(5, 1, 24), torch.randn(5, 1, 24)
    angles = torch.linspace(0, 1.5, 5)
    model = pipe.model
    expected = model.prior.perturb(model.prior.project(latents), noise, angles)
    assert torch.equal(place(latents=latents, noise=noise, turn=angles), expected)
    saved = b"".join(path.read_bytes() for path in (tmp_path / "out").iterdir())
    assert str(Path(folder.__file__).parent.parent).encode() not in saved


def test_a_folder_is_replaced_if_an_export_made_it(one_graph: None, tmp_path: Path) -> None:
    pipe, out = convolutional(), tmp_path / "out"
    export_model(pipe, out, "torch")
    (out / "notes.txt").write_text("mine")
    (out / "gone.pt2").write_text("of an export before")
    manifest = json.loads((out / "manifest.json").read_text())
    (out / "manifest.json").write_text(json.dumps({**manifest, "files": [*manifest["files"], "gone.pt2"]}))
    export_model(pipe, out, "torch")
    assert {path.name for path in out.iterdir()} == {"notes.txt", "manifest.json", "place.pt2", "README.md"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]

    other = tmp_path / "other"
    other.mkdir()
    (other / "place.pt2").write_text("mine")
    with pytest.raises(ConfigError, match="overwrite"):
        export_model(pipe, other, "torch")
    assert (other / "place.pt2").read_text() == "mine" and len(list(other.iterdir())) == 1
    export_model(pipe, other, "torch", overwrite=True)
    assert (other / "place.pt2").read_bytes() != b"mine" and (other / "manifest.json").is_file()


def test_what_fails_leaves_nothing(one_graph: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("in the middle")

    monkeypatch.setattr(folder, "_parity_torch", broken)
    with pytest.raises(RuntimeError, match="in the middle"):
        export_model(convolutional(), tmp_path / "out", "torch")
    assert not list(tmp_path.iterdir())


def test_a_pipeline_stays_as_it_was(one_graph: None, tmp_path: Path) -> None:
    pipe = convolutional().to("cpu", dtype="float64")
    before = pipe.generate(2).tensor
    export_model(pipe, tmp_path / "out", "torch")
    assert pipe.dtype == torch.float64
    assert torch.equal(pipe.generate(2).tensor, before)


def test_impossible_wishes_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = tiny_model_folder(tmp_path / "model")
    for arguments, named in (
        (("--to", "onxx"), "did you mean 'onnx'"),
        (("--precision", "int4"), "int8"),
        (("--to", "torch", "--precision", "int8"), "float32"),
        (("--to", "onnx", "--runtime", "x"), "--to web"),
        (("--out", str(model)), "model folder"),
        (("--out", str(model / "config.json")), "is a file"),
        (("--to", "web"), "npm install onnxruntime-web"),
        (("--to", "web", "--runtime", str(tmp_path)), "npm install onnxruntime-web"),
    ):
        done = spoken(str(model), *arguments)
        assert isinstance(done.exception, ConfigError), arguments
        assert named in str(done.exception)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_the_runtime_is_found_above(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "node_modules" / "onnxruntime-web"
    (package / "dist").mkdir(parents=True)
    (package / "package.json").write_text('{"name": "onnxruntime-web", "version": "1.30.0"}')
    below = tmp_path / "a" / "b"
    below.mkdir(parents=True)
    monkeypatch.chdir(below)
    with pytest.raises(ConfigError, match=r"dist/ort\.webgpu"):
        find_runtime()
    for name in ("ort.webgpu.min.mjs", "ort.wasm.min.mjs"):
        (package / "dist" / name).touch()
    for name in ("ort-wasm-simd-threaded.asyncify", "ort-wasm-simd-threaded"):
        (package / "dist" / f"{name}.mjs").touch()
        (package / "dist" / f"{name}.wasm").touch()
    assert find_runtime().folder == package
    assert find_runtime(tmp_path).version == "1.30.0"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_command_exports_small_weights(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript", reason="exports need onnxscript")
    pytest.importorskip("onnxruntime", reason="exports run by onnxruntime")
    out, model = tmp_path / "small", tmp_path / "model"
    convolutional().save_pretrained(model)
    done = spoken(str(model), "--precision", "int8", "--out", str(out), "--json")
    assert done.exit_code == 0, done.exception
    told = json.loads(done.stdout)
    assert {"one step", "as sampled", "there and back"} == told["parity"].keys()
    assert all(each["psnr"] > 30 for each in told["parity"].values())
    assert told["bytes"] == sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    runner = Runner(out)
    assert len(runner.generate(2).images) == 2
    assert np.isfinite(runner.generate(2).array).all()
