"""A member of the family is a record and a recipe: nothing else in the library has to know of it; this one is another
network for the loss of the Sphere Encoder."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest
import torch
import yaml
from torch import Tensor, nn
from typer.testing import CliRunner

import spheregen as sg
from spheregen.cli.main import app
from spheregen.data import ImageOptions, open_source
from spheregen.errors import ConfigError
from spheregen.evaluation.evaluator import Evaluator, evaluate, make_references
from spheregen.evaluation.images import RealImages
from spheregen.evaluation.protocol import EvaluationOptions
from spheregen.family import registry
from spheregen.family.sphere_encoder.member import ImageAutoencoderRecipe, autoencoder_member
from spheregen.family.sphere_encoder.network import ImageAutoencoder
from spheregen.nn.linear import tag_layer
from spheregen.prior import PriorName
from spheregen.training.bench import bench
from spheregen.training.estimate import estimate_memory
from spheregen.training.recipe import load_recipe
from spheregen.training.trainer import train
from tests.evaluation.stubs import TinyFeatures
from tests.training.runs import StopAt, assert_same_run, log

CPU = torch.device("cpu")


@dataclass(frozen=True)
class ToyConfig:
    image_size: int = 8
    image_channels: int = 1
    num_classes: int = 0
    tokens: int = 4
    channels: int = 8
    max_angle: float = 60.0
    prior: PriorName = "sphere"


class Part(nn.Module):
    def __init__(self, inputs: tuple[int, ...], outputs: tuple[int, ...]) -> None:
        super().__init__()
        self.layer, self.shape = nn.Linear(math.prod(inputs), math.prod(outputs)), outputs
        tag_layer(self.layer)

    def embed_labels(self, labels: object) -> None:
        return None

    def forward(self, x: Tensor, labels: object = None) -> Tensor:
        return self.layer(x.flatten(1)).unflatten(1, self.shape)  # type: ignore[no-any-return]


class Toy(ImageAutoencoder):
    def __init__(self, config: ToyConfig) -> None:
        image, latent = (config.image_channels, config.image_size, config.image_size), (config.tokens, config.channels)
        super().__init__(config, Part(image, latent), Part(latent, image))


class ToyRecipe(ImageAutoencoderRecipe):
    kind: Literal["toy"] = "toy"
    model: ToyConfig = ToyConfig()
    perceptual: Literal["none"] = "none"


TOY = autoencoder_member(Toy, kind="toy", title="A toy", config=ToyConfig, recipe=ToyRecipe)


@pytest.fixture(autouse=True, scope="module")
def _registered() -> Iterator[None]:
    registry.register(TOY)
    yield
    registry.unregister("toy")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    train = {"steps": 30, "batch_size": 16, "log_every": 5, "checkpoint_every": 10, "preview_every": 15, "ema": 0.5}
    values = {
        "kind": "toy",
        "data": {"source": "digits"},
        "optimizer": {"lr": 0.03, "scale_lr": False},
        "train": train,
    }
    path = tmp_path_factory.mktemp("toy") / "toy.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.fixture(scope="module")
def whole(recipe: Path) -> Path:
    train(load_recipe(recipe), recipe.parent / "run", device="cpu")
    return recipe.parent / "run"


@pytest.mark.parametrize("kind", [kind for kind, _, _ in registry._LISTED])
def test_the_list_tells_what_the_records_say(kind: str) -> None:
    entry = registry._ENTRIES[kind]
    assert entry.load().kind == kind
    assert entry.load().network.__name__ == entry.network


def test_it_trains_and_resumes_to_the_bit(whole: Path, recipe: Path, tmp_path: Path) -> None:
    entries = log(whole)
    assert entries[-1]["loss"] < 0.7 * entries[0]["loss"] and len(list((whole / "previews").iterdir())) == 2
    with pytest.raises(KeyboardInterrupt):
        train(load_recipe(recipe), tmp_path / "run", device="cpu", reporter=StopAt(17))
    train(load_recipe(recipe), tmp_path / "run", device="cpu")
    assert_same_run(tmp_path / "run", whole)
    tuned = load_recipe(recipe, ["train.steps=1", "train.preview_every=0"], init=str(whole))
    train(tuned, tmp_path / "tuned", device="cpu")
    assert log(tmp_path / "tuned")[0]["loss"] < entries[0]["loss"]


def test_it_is_saved_loaded_sampled_and_edited(whole: Path, tmp_path: Path) -> None:
    pipe = sg.Pipeline.from_pretrained(whole, device="cpu", quiet=True)
    pipe.save_pretrained(tmp_path / "copy")
    copy = sg.Pipeline.from_pretrained(tmp_path / "copy", device="cpu", quiet=True)
    assert isinstance(copy.model, Toy) and copy.fingerprint == pipe.fingerprint
    for steps in (1, 4):
        images = pipe.generate(3, steps=steps, seed=2).tensor
        assert images.shape == (3, 1, 8, 8) and torch.equal(copy.generate(3, steps=steps, seed=2).tensor, images)
    edited = pipe.edit(images)
    assert edited.tensor.shape == images.shape and "A toy" in (tmp_path / "copy" / "README.md").read_text()
    assert pipe.reconstruct(images).shape == images.shape


def test_it_is_evaluated(whole: Path, tmp_path: Path) -> None:
    digits = RealImages(open_source("digits"), ImageOptions(image_size=8, channels=1))
    extractors = {"tiny": TinyFeatures(64)}
    references, _ = make_references(digits, extractors, {}, tmp_path)
    pipe = sg.Pipeline.from_pretrained(whole, device="cpu", quiet=True)
    result, _ = evaluate(pipe, EvaluationOptions(count=100), Evaluator(extractors, references, tmp_path))
    assert result["metrics"]["tiny"]["figures"]["frechet"] > 0


def test_it_is_measured(whole: Path, recipe: Path) -> None:
    loaded = load_recipe(recipe)
    pixels, numbers = 64, 32
    cost = registry.cost_of(registry.blank_model(loaded.model))
    assert cost.generation_gflops(4) == pytest.approx(7 * 2e-9 * pixels * numbers)
    rows = bench(loaded, device=CPU, precisions=["float32"], repeats=1, peak_sizes=(64,)).rows
    assert [row.what for row in rows] == ["sample", "sample", "train"]
    assert estimate_memory(loaded, precision="float32").gradients == 4 * (2 * pixels * numbers + pixels + numbers)
    for target in (recipe, whole):
        done = CliRunner().invoke(app, ["info", str(target), "--device", "cpu", "--json"])
        assert done.exit_code == 0, done.output
        assert json.loads(done.stdout)["image_size"] == 8


def test_two_members_cannot_share_a_name() -> None:
    with pytest.raises(ConfigError, match="toy"):
        registry.register(TOY)
    with pytest.raises(ConfigError, match="did you mean 'toy'"):
        registry.member_of_kind("toys")
