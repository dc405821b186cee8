"""Sphere Encoder 2 trains with all of its losses: exactly when interrupted, alike in processes and micro-batches."""

from __future__ import annotations

import json
import signal
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import spheregen as sg
from spheregen.errors import ConfigError
from spheregen.family.registry import cost_of
from spheregen.folders.tokenizers import open_tokenizer
from spheregen.networks.encoders import published_name
from spheregen.training.estimate import estimate_memory, step_cost
from spheregen.training.frozen import blank_of_folder
from spheregen.training.recipe import load_recipe
from spheregen.training.trainer import train
from tests.folders.published_2 import DINO
from tests.processes import Started, command, world
from tests.random_networks import import_or_skip
from tests.training.runs import assert_same_run, interrupted, log, run, wait_for_a_checkpoint

STEPS = 20
SETTINGS = (
    f"train.steps={STEPS}",
    "train.batch_size=12",
    "train.log_every=1",
    "train.preview_every=0",
    "train.checkpoint_every=6",
    "train.fit_prior=false",
    "loss.score={width: 16, margin: 8, depth: 1, heads: 2, start: 0.1, ramp: [0.2, 0.4], calibration_steps: 6, "
    "balance_steps: 8, lr: 0.001}",
    "loss.frechet={start: 0.3, keeps_generated: true}",
    "loss.frechet_features=0.1",
    "loss.frechet_judge=0.1",
    "loss.judge_seed=24",
    "loss.judge={layers: [1]}",
    "loss.features={layers: [0, 1]}",
)


def settings(*more: str) -> list[str]:
    return [*SETTINGS, *more]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(tmp_path_factory.mktemp("alone") / "run", *SETTINGS, recipe="se2-debug")


def start(count: int, folder: Path, *more: str) -> list[Started]:
    arguments = ["train", "se2-debug", "--out", str(folder), "--device", "cpu"]
    arguments += [part for setting in settings(*more) for part in ("--set", setting)]
    return world(count, command, arguments)


def losses(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def assert_close(a: Path, b: Path, within: float = 1e-4) -> None:
    for ours, theirs in zip(losses(a), losses(b), strict=True):
        for name in ours:
            if name.startswith(("loss", "distance", "perceptual", "latent_cons", "score", "frechet", "denoiser")):
                assert ours[name] == pytest.approx(theirs[name], abs=within), (name, ours["step"])


def test_all_terms_are_there_and_fade_in(alone: Path) -> None:
    entries = log(alone)
    terms = {"distance", "perceptual", "latent_consistency", "score_matching", "denoiser_real", "denoiser_fake"}
    assert terms | {"frechet_encoder", "frechet_features", "frechet_judge"} <= entries[0].keys()
    assert entries[0]["score_matching"] == entries[0]["denoiser_real"] == entries[0]["frechet_judge"] == 0
    assert entries[2]["denoiser_real"] > 0 and entries[2]["score_matching"] == 0
    assert entries[-1]["score_matching"] > 0 and entries[-1]["frechet_judge"] == pytest.approx(1, abs=0.1)
    assert entries[-1]["distance"] < entries[0]["distance"]
    names = load_file(alone / "model.safetensors").keys()
    assert names and not any("score" in name or "frechet" in name for name in names)
    state = load_file(alone / "state" / f"step-{STEPS:09d}.safetensors").keys()
    for part in (
        "network.score.real.0",
        "network.score.scales.0.mean",
        "network.score.strengths",
        "moment.0|0|exp_avg",
    ):
        assert any(name.startswith(f"beside.{part}") for name in state), part
    pipe = sg.Pipeline.from_pretrained(alone, device="cpu", quiet=True)
    assert pipe.generate(2, seed=1).settings["guidance"] == 0


def test_an_interrupted_run_goes_on_to_the_bit(alone: Path, tmp_path: Path) -> None:
    folder = interrupted(tmp_path / "run", *SETTINGS, stop=10, recipe="se2-debug")
    assert_same_run(run(folder, *SETTINGS, recipe="se2-debug"), alone)


def test_a_killed_run_goes_on_to_the_bit(alone: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    (process,) = start(1, folder)
    wait_for_a_checkpoint(folder, process)
    process.send_signal(signal.SIGKILL)
    process.finish()
    (process,) = start(1, folder)
    assert process.finish()[0] == 0
    assert_same_run(folder, alone)


def test_micro_batches_change_nothing_but_rounding(alone: Path, tmp_path: Path) -> None:
    assert_close(run(tmp_path / "run", *settings("train.micro_batch=5"), recipe="se2-debug"), alone)


@pytest.mark.parametrize("more", [(), ("train.micro_batch=4",), ("train.parallel=fsdp",)], ids=str)
def test_two_processes_train_as_one(more: Sequence[str], alone: Path, tmp_path: Path) -> None:
    for code, _, messages in [process.finish() for process in start(2, tmp_path / "run", *more)]:
        assert code == 0, messages
    assert_close(tmp_path / "run", alone)


def test_behind_a_frozen_encoder(tmp_path: Path) -> None:
    frozen = ("model.pretrained={kind: feature_net, stage: 3}", "model.latent_channels=null", "model.patch_size=null")
    folder = run(tmp_path / "run", *settings(*frozen), recipe="se2-debug")
    model = sg.load(folder)
    assert model.latent_shape == (4, 96)
    state = load_file(folder / "state" / f"step-{STEPS:09d}.safetensors")
    assert not any("frozen" in name for name in state)  # no part of EMA and checkpoints
    own = interrupted(tmp_path / "again", *settings(*frozen), stop=10, recipe="se2-debug")
    assert_same_run(run(own, *settings(*frozen), recipe="se2-debug"), folder)
    adapted = settings(*frozen[:1], "model.latent_channels=8", "model.patch_size=null", "train.steps=2")
    assert sg.load(run(tmp_path / "adapted", *adapted, recipe="se2-debug")).latent_shape == (4, 8)


def test_parts_of_a_frozen_encoder_learn(tmp_path: Path) -> None:
    transformers = import_or_skip("transformers")
    torch.manual_seed(0)
    architecture = {key: value for key, value in DINO.items() if key != "model_type"}
    transformers.DINOv3ViTModel(transformers.DINOv3ViTConfig(**architecture)).save_pretrained(tmp_path / "dino")
    seen = {"kind": "transformers", "source": str(tmp_path / "dino"), "config": DINO, "input_size": 32}
    more = (
        f"model.pretrained={json.dumps({**seen, 'final_norm': True})}",
        "model.latent_channels=null",
        "model.patch_size=null",
        "model.trained_blocks=1",
        "model.trained_norms=true",
        "loss.frechet={start: 0.3, pool: cls}",
        "loss.judge_seed=0",
        "train.steps=8",
        "train.batch_size=4",
    )
    folder = run(tmp_path / "run", *settings(*more), recipe="se2-debug")
    before, after = (load_file(path / "model.safetensors") for path in (tmp_path / "dino", folder))
    moved = set()
    for name, tensor in before.items():
        if not torch.equal(after[f"encoder.frozen.network.net.{published_name('dinov3_vit', name)}"], tensor):
            moved.add(published_name("dinov3_vit", name))
    assert "norm.weight" in moved and "layer.0.norm1.weight" in moved and "layer.1.mlp.up_proj.weight" in moved
    assert not {"layer.0.mlp.up_proj.weight", "embeddings.patch_embeddings.weight"} & moved
    again = interrupted(tmp_path / "again", *settings(*more), stop=6, recipe="se2-debug")
    assert_same_run(run(again, *settings(*more), recipe="se2-debug"), folder)
    with pytest.raises(ConfigError, match="2 blocks"):
        run(tmp_path / "other", *settings(*more, "model.trained_blocks=3"), recipe="se2-debug")
    with pytest.raises(ConfigError, match="frozen encoder"):
        load_recipe("se2-debug", settings("model.trained_norms=true"))


def test_estimates_and_fine_tuning(alone: Path, tmp_path: Path) -> None:
    recipe = load_recipe("se2-debug", SETTINGS)
    assert step_cost(recipe).flops_per_image > 0
    plain = load_recipe("se2-debug", settings("loss.score_matching=0", "loss.frechet_features=0"))
    assert estimate_memory(recipe, precision="float32").frozen > estimate_memory(plain, precision="float32").frozen
    tuned = load_recipe("se2-debug", settings("train.steps=1", "loss.score_matching=0"), init=str(alone))
    train(tuned, tmp_path / "tuned", device="cpu")
    assert log(tmp_path / "tuned")[0]["distance"] < log(alone)[0]["distance"]
    assert torch.cuda.is_initialized() is False


CODED = """
kind: sphere-encoder-2-coded
data: {source: digits}
tokenizer: digits
model: {image_size: 8, image_channels: 1, latent_tokens: TOKENS, latent_channels: CHANNELS, num_classes: 10,
  decoder: {width: 32, depth: 2, heads: 2}}
perceptual: builtin
optimizer: {lr: 1.0e-3, scale_lr: false}
train: {steps: 12, batch_size: 8, log_every: 1, checkpoint_every: 5, preview_every: 0, ema: 0.5}
"""


def test_behind_the_encoder_of_a_tokenizer(tmp_path: Path) -> None:
    tokens, channels = open_tokenizer("digits").tokenizer.latent_shape
    recipe = tmp_path / "coded.yaml"
    recipe.write_text(CODED.replace("TOKENS", str(tokens)).replace("CHANNELS", str(channels)))
    whole = run(tmp_path / "whole", recipe=str(recipe))
    again = run(interrupted(tmp_path / "again", stop=7, recipe=str(recipe)), recipe=str(recipe))
    assert_same_run(again, whole)
    assert (whole / "tokenizer" / "config.json").is_file()
    model = sg.load(whole)
    images = torch.rand(2, 1, 8, 8) * 2 - 1
    codes = open_tokenizer("digits").tokenizer.encode(images)
    torch.testing.assert_close(model.encode(images), model.prior.project(codes))
    pipe = sg.Pipeline.from_pretrained(whole, device="cpu", quiet=True)
    assert pipe.generate(2, labels=3, steps=2, guidance=5.0).tensor.shape == (2, 1, 8, 8)
    pipe.save_pretrained(tmp_path / "copy")
    assert torch.equal(sg.load(tmp_path / "copy").encode(images), model.encode(images))
    loaded = load_recipe(str(recipe))
    assert estimate_memory(loaded, precision="float32").total > 0
    assert cost_of(blank_of_folder(whole)).parts.keys() == {"encoder", "decoder"}
    wrong = load_recipe(str(recipe), ["model.latent_channels=3"])
    with pytest.raises(ConfigError, match="the tokenizer's are"):
        train(wrong, tmp_path / "wrong", device="cpu")
