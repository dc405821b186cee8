"""The runner makes the images of `Pipeline`, for every generator of the family; torch is not needed for it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import spheregen as sg
from spheregen.errors import ConfigError, ModelFileError
from spheregen.export import Runner, RunnerOutput, export_model, folder
from spheregen.export.folder import manifest_of
from spheregen.export.graphs import Graph, graphs_of
from spheregen.family import registry
from tests.export.members import MEMBERS, convolutional, texts

pytest.importorskip("onnxscript", reason="exports need onnxscript")
runtime = pytest.importorskip("onnxruntime", reason="exports run by onnxruntime")
CLOSE, UNDRAWN = 2e-5, 1e-3
"""Largest difference of images in [0, 1]; of those whose noise was found by inverses of factors of small columns."""


class Program:
    """A graph as torch runs it, in place of a session of onnxruntime."""

    def __init__(self, graph: Graph) -> None:
        self.module = graph.module

    def run(self, _: None, feeds: Mapping[str, Any]) -> list[Any]:
        with torch.no_grad():
            made = self.module(**{name: torch.from_numpy(value) for name, value in feeds.items()})
        return [each.numpy() for each in (made if isinstance(made, tuple) else (made,))]


def runner_in_torch(pipe: sg.Pipeline, folder: Path) -> Runner:
    """A runner on graphs that were not exported, which takes no time; those of onnxruntime are the same, see below."""
    (folder / "manifest.json").write_text(json.dumps(manifest_of(pipe, "tiny", "float32")))
    runner, graphs = Runner(folder), graphs_of(pipe.model)
    runner._graphs._sessions = {name: Program(graph) for name, graph in graphs.items()}
    runner._graphs._inputs = {name: set(graph.inputs) for name, graph in graphs.items()}
    return runner


def test_every_generator_is_tried() -> None:
    tried = {registry.member_of(make().model).kind for make in MEMBERS.values()}
    aside = {"sphere-encoder-2-coded", *(member.kind for member in registry.members() if not member.generates)}
    assert {member.kind for member in registry.members()} - aside <= tried


@pytest.mark.parametrize("name", MEMBERS)
def test_the_same_seeds_make_the_same_images(name: str, tmp_path: Path) -> None:
    pipe = MEMBERS[name]()
    runner = runner_in_torch(pipe, tmp_path)
    classes, fitted = pipe.classes.count, pipe.model.fitted is not None
    photos = pipe.generate(3).images
    target: dict[str, Any] = {"labels": "dog"} if classes else {}

    def same(ours: RunnerOutput | np.ndarray[Any, Any], theirs: Any, within: float = CLOSE) -> None:
        made = ours.array if isinstance(ours, RunnerOutput) else ours
        tensor = theirs.tensor if isinstance(theirs, sg.PipelineOutput) else theirs
        assert np.abs(made - tensor.numpy()).max() < within

    loops: list[dict[str, Any]] = [
        {"steps": 1},
        {"steps": 3, "share_noise": False, "schedule": "decay"},
        {"steps": 3, "schedule": [0.5, 0.2], "strength": 0.7},
        {"steps": 3, "schedule": "angle", "loop_angle": 30.0},
        {"start_angle": 40.0},
    ]
    loops += [{"guidance": 2.0, "guidance_at": "latent", "steps": 3}, {"labels": "cat"}] if classes else []
    loops += [{"temperature": 0.7, "prior_angle": 20.0, "prior": "fitted"}, {"prior": "sphere"}] if fitted else []
    for options in loops:
        same(runner.generate(3, seed=2**33, **options), pipe.generate(3, seed=2**33, **options))
    ours, theirs = runner.generate(4), pipe.generate(4)
    same(ours, theirs)
    assert (ours.seeds, ours.labels) == (theirs.seeds, theirs.labels)
    same(runner.generate(seeds=[3, 1]), pipe.generate(seeds=[3, 1]))

    codes = pipe.encode(photos)
    same(runner.encode(photos), codes)
    same(runner.decode(codes.numpy()), pipe.decode(codes))
    same(runner.reconstruct(photos, **target), pipe.reconstruct(photos, **target))
    priors: list[dict[str, Any]] = [{"prior": "sphere"}, {"prior": "fitted"}] if fitted else [{}]
    for prior in priors:
        within = UNDRAWN if prior == {"prior": "fitted"} else CLOSE
        same(runner.edit(photos, **target, **prior), pipe.edit(photos, **target, **prior), within)
        how = {"seed": 9, **target, **prior}
        same(runner.vary(photos[0], 3, **how), pipe.vary(photos[0], 3, **how), within)
        for steps in (1, 3):
            how = {"steps": steps, **prior}
            same(runner.interpolate([0, 5], 4, **how), pipe.interpolate([0, 5], 4, **how))
            corners = [0, 5, 3, photos[0]]
            same(runner.interpolate(corners, 3, **how), pipe.interpolate(corners, 3, **how))
    same(runner.edit(photos, start_angle=35.0, steps=2), pipe.edit(photos, start_angle=35.0, steps=2))

    # alone as together
    assert np.abs(runner.generate(20).array[17] - runner.generate(1, seed=17).array[0]).max() < 1e-4
    assert runner.kept(photos).shape == (3,)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("autoencoder", "decoder"),
        ("autoencoder", "encoder"),
        ("latent-denoiser", "decoder"),
        ("sphere-flow", "refiner"),
        ("sphere-encoder-2", "decoder"),
        ("sphere-encoder-2", "encoder"),
        ("sphere-encoder-2", "away"),
    ],
)
def test_the_networks_of_every_member_are_the_same_in_onnxruntime(name: str, part: str) -> None:
    graph = graphs_of(MEMBERS[name]().model)[part]
    inputs = {key: torch.cat([each, each.flip(0), each[:1]]) for key, each in graph.inputs.items()}
    (wanted,) = Program(graph).run(None, {key: each.numpy() for key, each in inputs.items()})
    session = runtime.InferenceSession(folder.as_onnx(graph).SerializeToString(), providers=["CPUExecutionProvider"])
    made = session.run(None, {key: each.numpy() for key, each in inputs.items()})[0]
    assert np.abs(made - wanted).max() < 1e-5 * max(1, np.abs(wanted).max())


WITHOUT_TORCH = """
import json, sys
sys.modules["torch"] = None  # an import of it fails
from spheregen.export import Runner
runner = Runner(sys.argv[1])
found = runner.generate(2, seed=7)
photo = found.images[0]
outputs = [found, runner.edit(photo, "dog"), runner.interpolate([1, photo], 2)]
made = [*(each.array for each in outputs), runner.reconstruct(photo)]
print(json.dumps([each.tolist() for each in made]))
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_an_export_of_a_classy_model_without_torch_and_in_small(tmp_path: Path) -> None:
    pipe = convolutional()
    exported = export_model(pipe, tmp_path / "whole")
    assert max(each["largest"] for each in exported.manifest["parity"].values()) < 1e-5
    command = [sys.executable, "-W", "error", "-c", WITHOUT_TORCH, str(tmp_path / "whole")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    generated, edited, between, rebuilt = (np.array(each) for each in json.loads(done.stdout))
    theirs = pipe.generate(2, seed=7)
    assert np.abs(generated - theirs.tensor.numpy()).max() < 5e-5
    photo = theirs.images[0]
    assert np.abs(rebuilt - pipe.reconstruct(photo).numpy()).max() < 5e-3  # by way of 8 bits
    assert np.abs(edited - pipe.edit(photo, "dog").tensor.numpy()).max() < 5e-2
    assert between.shape == (2, 1, 16, 16)

    runner = Runner(tmp_path / "whole")
    manifest = runner.manifest
    assert (manifest["license"], manifest["class_names"]) == ("CC0-1.0", ["cat", "dog", "horse"])
    assert manifest["image_shape"] == [1, 16, 16] and manifest["sampling"]["prior"] == "fitted"
    assert manifest["graphs"]["decoder"]["inputs"]["latents"] == ["batch", 1, 24]
    for call in (
        lambda: runner.generate(2, labels="bird"),
        lambda: runner.generate(2, stepz=3),
        lambda: runner.generate(2, steps=0),
        lambda: runner.generate(2, steps=2.5),
        lambda: runner.generate(2, guidance=float("nan")),
        lambda: runner.generate(2, prior="sphere", temperature=2.0),
        lambda: runner.generate(2, schedule="linear"),
        lambda: runner.generate(2, schedule=[1.0, 1.0], steps=2),
        lambda: runner.generate(0),
        lambda: runner.generate(2, seed=-1),
        lambda: runner.edit(photo, guidance=2.0),
        lambda: runner.decode(np.zeros((1, 2, 2), np.float32)),
        lambda: runner.interpolate([1, 2, 3]),
        lambda: runner.vary(photo, angle=200.0),
        lambda: runner.reconstruct(np.zeros((4, 4, 7), np.uint8)),
        lambda: runner.reconstruct(np.full((4, 4), 9.0)),
    ):
        with pytest.raises(ConfigError):
            call()

    graph = tmp_path / "whole" / "decoder.onnx"
    graph.write_bytes(graph.read_bytes()[:-1] + b"\0")
    with pytest.raises(ModelFileError, match=r"decoder\.onnx"):
        Runner(tmp_path / "whole")


PROMPTS_WITHOUT_TORCH = """
import json, sys
sys.modules["torch"] = None
from spheregen.export import Runner
found = Runner(sys.argv[1]).generate(2, seed=7, prompt=["a red cup", "number 3"])
print(json.dumps([found.array.tolist(), found.prompts]))
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_an_exported_model_follows_prompts(tmp_path: Path) -> None:
    pipe = texts()
    exported = export_model(pipe, tmp_path / "out")
    assert min(each["psnr"] for each in exported.manifest["parity"].values()) > 80
    runner = Runner(tmp_path / "out")
    photo = pipe.generate(1, prompt="number 5").images[0]
    two = ["number 1", "a red cup"]

    def same(ours: Any, theirs: Any) -> None:
        made = ours.array if isinstance(ours, RunnerOutput) else ours
        assert np.abs(made - getattr(theirs, "tensor", theirs).numpy()).max() < 2e-4

    for options in (
        {},
        {"prompt": "a red cup", "steps": 3},
        {"labels": two, "guidance": 2.0, "negative_prompt": "number 2"},
        {"prompt": ["", "number 6"], "prior": "sphere"},
    ):
        same(runner.generate(2, seed=3, **options), pipe.generate(2, seed=3, **options))
    same(runner.encode(photo, "number 1"), pipe.encode(photo, "number 1"))
    same(runner.reconstruct(photo, prompt="number 1"), pipe.reconstruct(photo, prompt="number 1"))
    for prior in ("fitted", "sphere"):
        how: Any = {"prompt": "number 1", "prior": prior}
        same(runner.edit(photo, **how), pipe.edit(photo, **how))
        same(runner.vary(photo, 3, **how), pipe.vary(photo, 3, **how))
        same(runner.interpolate([4, 9], 3, **how), pipe.interpolate([4, 9], 3, **how))
        how["prompt"] = two
        same(runner.interpolate([4, 4], 3, **how), pipe.interpolate([4, 4], 3, class_path="lerp", **how))

    command = [sys.executable, "-W", "error", "-c", PROMPTS_WITHOUT_TORCH, str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    made, prompts = json.loads(done.stdout)
    same(np.array(made), pipe.generate(2, seed=7, prompt=["a red cup", "number 3"]))
    assert prompts == ["a red cup", "number 3"]
    for wrong in ({"prompt": "a", "labels": "b"}, {"prompt": ["a"]}, {"prompt": [1, 2]}, {"labels": 3}):
        with pytest.raises(ConfigError):
            runner.generate(2, **wrong)
    manifest = tmp_path / "out" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"ngrams"', '"some/encoder"'))
    with pytest.raises(ConfigError, match="some/encoder"):
        Runner(tmp_path / "out").generate(prompt="a")


def test_a_folder_that_is_none_is_told(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"manifest\.json"):
        Runner(tmp_path)
    for text in ("", "[]", "{}", '{"format": 1, "graphs": {}}', '{"format": 99, "graphs": {}}', "[" * 100_000):
        (tmp_path / "manifest.json").write_text(text)
        with pytest.raises(ModelFileError, match="export"):
            Runner(tmp_path)
