"""A tokenizer is trained as any model is: it learns, continues to the bit, and is the same on two processes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from spheregen.data import TrainingBatches, open_source
from spheregen.errors import ConfigError, ModelFileError, SphereGenError, TrainingError
from spheregen.family.representation.network import RepresentationAutoencoder, unfold
from spheregen.folders.model_folder import load_any_model, load_model
from spheregen.folders.tokenizers import open_tokenizer
from spheregen.training import run as runs
from spheregen.training.feeding import image_options
from spheregen.training.recipe import Recipe, load_recipe
from spheregen.training.trainer import train
from tests.random_networks import import_or_skip, random_images
from tests.training.runs import Messages, StopAt, assert_same_run, log, weights

NAME = "rae-debug"
PLAIN = ("model.latent_channels=null", "loss.noise=0")
ADVERSARIAL = (
    "loss.adversarial=0.3",
    "loss.adversarial_start=0.5",
    "loss.critic_lead=0.2",
    "loss.critic_width=4",
)
JUDGED = (*ADVERSARIAL, "loss.critic_features=true")
SHORT = ("train.steps=20", "train.checkpoint_every=5", "train.preview_every=0", "train.log_every=1")


@pytest.fixture(autouse=True)
def _few_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "CALIBRATION_IMAGES", 100)


def recipe(*overrides: str, init: str | None = None) -> Recipe:
    return load_recipe(NAME, overrides, init=init)


def run(folder: Path, *overrides: str, init: Path | None = None, **options: Any) -> Path:
    train(recipe(*overrides, init=None if init is None else str(init)), folder, device="cpu", **options)
    return folder


def first_images(count: int) -> Tensor:
    """The first ones in the order of a run."""
    source = open_source("digits", split="train")
    batches = TrainingBatches(source, image_options(recipe()), batch_size=16, steps=40, seed=recipe().train.seed)
    return torch.cat([batches.batch(step).inputs for step in range(-(-count // 16))])


def opened(folder: Path) -> RepresentationAutoencoder:
    tokenizer = open_tokenizer(folder).tokenizer
    assert isinstance(tokenizer, RepresentationAutoencoder)
    return tokenizer


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run, whose statistics are of all that the trainer looks at."""
    return run(tmp_path_factory.mktemp("whole") / "run")


def test_a_run_learns_and_its_folder_is_a_tokenizer(whole: Path) -> None:
    entries = log(whole)
    assert entries[-1]["loss"] < 0.7 * entries[0]["loss"]
    assert {"l1", "perceptual", "latent_coverage", "image_deviation", "grad_norm"} <= entries[0].keys()
    assert "critic" not in entries[0]
    tokenizer = opened(whole)
    images = random_images(2, 8, 1)
    assert tokenizer.encode(images).shape == (2, 4, 32)
    assert tokenizer.decode(tokenizer.encode(images)).shape == images.shape
    config = json.loads((whole / "config.json").read_text())
    assert config["model_class"] == "RepresentationAutoencoder" and config["sampling"] == {}
    assert config["training"]["perceptual"] == "builtin" and len(config["training"]["encoder"]) == 16
    assert "recipe rae-debug, 40 steps of 16 images" in (whole / "README.md").read_text()
    with pytest.raises(ModelFileError, match="not a generator"):
        load_model(whole)


def test_previews_show_originals_and_reconstructions(whole: Path) -> None:
    pictures = sorted((whole / "previews").iterdir())
    assert [path.name for path in pictures] == ["step-000000020.png", "step-000000040.png"]
    with Image.open(pictures[-1]) as picture:
        text = str(picture.info["rows"])  # type: ignore[attr-defined,unused-ignore]
        assert text.startswith("1: originals; 2: reconstructions; 3: ") and "noise of 1 on" in text
        assert picture.height > 3 * picture.width / 10


@pytest.mark.parametrize("values", [PLAIN, (*JUDGED, "train.micro_batch=8")], ids=["own tokens", "projected, judged"])
def test_an_interrupted_run_continues_to_the_bit(tmp_path: Path, values: tuple[str, ...]) -> None:
    reference, folder = run(tmp_path / "whole", *SHORT, *values), tmp_path / "run"
    for stop in (2, 8, 12):  # before the first checkpoint, in the lead of the critic, in the game
        with pytest.raises(KeyboardInterrupt):
            run(folder, *SHORT, *values, reporter=StopAt(stop))
    run(folder, *SHORT, *values)
    assert_same_run(folder, reference)
    assert (folder / "config.json").read_bytes() == (reference / "config.json").read_bytes()
    # latents are standard on the images of the run, with the averaged weights of the end, which no batch ever saw
    rows = unfold(opened(folder).encode(first_images(100)), 2, 2).flatten(0, 1).double()
    assert float(rows.mean(0).abs().max()) < 1e-3
    variance = rows.var(0, correction=0)
    assert float(variance.max()) < 1.001
    assert float(variance.median()) > 0.99 and float(variance.min()) > 0.5  # faint channels feel what is added


def test_the_critic_is_in_the_checkpoint_and_not_in_the_folder(tmp_path: Path) -> None:
    folder = run(tmp_path / "run", *SHORT, *ADVERSARIAL)
    state = load_file(folder / "state" / "step-000000020.safetensors")
    assert any(name.startswith("model.critic.") for name in state)
    assert not any("encoder" in name for name in state)  # the frozen network is in no checkpoint
    kept = weights(folder)
    assert {name.partition(".")[0] for name in kept} == {"encoder", "codec"}
    entries = log(folder)
    assert [bool(entry["critic"]) for entry in entries] == [step >= 6 for step in range(20)]
    assert [bool(entry["adversarial"]) for entry in entries] == [step >= 10 for step in range(20)]


def test_a_folder_that_the_run_did_not_finish_is_written_again(tmp_path: Path) -> None:
    settings = (*SHORT, "train.steps=2")
    folder = run(tmp_path / "run", *settings)
    before = {name: tensor.clone() for name, tensor in weights(folder).items()}  # the file is mapped
    (folder / "model.safetensors").write_bytes(b"half of it")
    run(folder, *settings)
    assert all(torch.equal(before[name], tensor) for name, tensor in weights(folder).items())
    stamp = (folder / "model.safetensors").stat().st_mtime_ns
    run(folder, *settings)
    assert (folder / "model.safetensors").stat().st_mtime_ns == stamp


def test_another_encoder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = (*SHORT, "train.steps=2")
    folder = run(tmp_path / "run", *settings)
    monkeypatch.setattr("spheregen.training.frozen.build_encoder", lambda config, pretrained: _random_encoder(config))
    with pytest.raises(TrainingError, match=r"encoder: [0-9a-f]{16} -> [0-9a-f]{16}"):
        run(folder, *settings)


def _random_encoder(config: Any) -> Any:
    from spheregen.networks.encoders import build_encoder

    return build_encoder(config, pretrained=False)


# fine-tuning


def test_fine_tuning_starts_where_the_tokenizer_was(whole: Path, tmp_path: Path) -> None:
    messages = Messages()
    still = run(tmp_path / "still", "train.steps=1", "optimizer.lr=1e-30", init=whole, reporter=messages)
    told = [line for line in messages.lines if line.startswith(f"from {whole}: ")]
    assert len(told) == 1 and "kept" in told[0]
    kept, base = weights(still), weights(whole)
    measured = {"codec.normaliser.mean", "codec.normaliser.std", "codec.projection.correlation"}
    assert {name for name in base if not torch.equal(kept[name], base[name])} == measured
    info = load_any_model(still).info
    assert "recipe rae-debug" in info.provenance["base_model"]


def test_what_does_not_fit_is_fresh_and_what_cannot_fit_is_refused(whole: Path, tmp_path: Path) -> None:
    messages = Messages()
    run(tmp_path / "other", *SHORT, "train.steps=1", "model.latent_channels=4", init=whole, reporter=messages)
    assert any("fresh" in line and "decoder.embed" in line for line in messages.lines)
    with pytest.raises(ConfigError, match="16 wide"):
        run(tmp_path / "wide", "model.decoder={width: 32, depth: 1, heads: 2}", init=whole)
    digits = tmp_path / "digits"
    train(load_recipe("debug", ["train.steps=1", "train.preview_every=0"]), digits, device="cpu")
    with pytest.raises(ConfigError, match="of another kind than the recipe rae-debug"):
        run(tmp_path / "kind", init=digits)


# estimates


def test_one_line_for_an_encoder_that_is_nowhere(tmp_path: Path) -> None:
    import_or_skip("transformers")
    source = f"model.encoder={{kind: transformers, source: {tmp_path}/none}}"
    with pytest.raises(SphereGenError, match="there is no folder") as caught:
        run(tmp_path / "run", source)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()
