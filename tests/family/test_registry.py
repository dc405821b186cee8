"""A member of the family is a record and a recipe: nothing else in the library has to know of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

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
from spheregen.family.member import Member
from spheregen.family.objective import Objective
from spheregen.family.recipe import Recipe
from spheregen.family.terms import LossTerms, weighted_total
from spheregen.measure.cost import Cost, part_cost
from spheregen.nn.linear import tag_layer
from spheregen.noise import BatchNoise
from spheregen.protocol import SphereGenerator
from spheregen.training.bench import bench
from spheregen.training.estimate import estimate_memory
from spheregen.training.recipe import load_recipe
from spheregen.training.trainer import train
from tests.evaluation.stubs import TinyFeatures
from tests.training.test_trainer import StopAt, assert_same_run, log

CPU = torch.device("cpu")


@dataclass(frozen=True)
class ToyConfig:
    image_size: int = 8
    image_channels: int = 1
    num_classes: int = 0
    tokens: int = 4
    channels: int = 8


class Toy(SphereGenerator):
    def __init__(self, config: ToyConfig) -> None:
        super().__init__()
        self.config = config
        self.image_shape = (config.image_channels, config.image_size, config.image_size)
        self.latent_shape = (config.tokens, config.channels)
        pixels, numbers = config.image_channels * config.image_size**2, config.tokens * config.channels
        self.encoder, self.decoder = nn.Linear(pixels, numbers), nn.Linear(numbers, pixels)
        tag_layer(self.encoder)
        tag_layer(self.decoder)

    def predict(self, latents: Tensor, labels: Any = None, angle: Any = 0.0) -> Tensor:
        return self.decoder(latents.to(self.dtype).flatten(1)).float().tanh().unflatten(1, self.image_shape)

    def to_latent(self, prediction: Tensor, labels: Any = None) -> Tensor:
        return self.encoder(prediction.to(self.dtype).flatten(1)).float().unflatten(1, self.latent_shape)


class ToyRecipe(Recipe):
    kind: Literal["toy"] = "toy"
    model: ToyConfig = ToyConfig()
    loss: float = 1.0


@dataclass(frozen=True, kw_only=True)
class ToyNoise(BatchNoise):
    noise: Tensor


class ToyObjective(Objective):
    def __init__(self, recipe: ToyRecipe, frozen: Any) -> None:
        torch.manual_seed(recipe.train.seed)
        self.model: Toy = Toy(recipe.model)
        self.facts: dict[str, Any] = {}

    def draw(
        self, batch: int, generator: torch.Generator, rows: slice | None = None, *, progress: float = 0.0
    ) -> ToyNoise:
        return ToyNoise(noise=torch.randn(batch, *self.model.latent_shape, generator=generator)[rows or slice(None)])

    def loss(self, inputs: Tensor, labels: Tensor | None, noise: ToyNoise) -> LossTerms:
        made = self.model.decode(self.model.prior.perturb(self.model.encode(inputs), noise.noise, 0.5))
        return weighted_total({"pixels": (made - inputs).square().mean()}, {"pixels": 1.0})


def toy_cost(model: Toy, cost_of: Any) -> Cost:
    device = model.encoder.weight.device
    parts = {
        name: part_cost(layer, torch.zeros(1, layer.in_features, device=device))
        for name, layer in (("encoder", model.encoder), ("decoder", model.decoder))
    }
    return Cost(parts, lambda steps, guided, place: {"encoder": steps - 1, "decoder": steps})


TOY = Member(
    kind="toy",
    title="A toy",
    config=ToyConfig,
    network=Toy,
    build=Toy,
    recipe=ToyRecipe,
    objective=ToyObjective,
    cost=toy_cost,
)


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
