"""Runs with the options of the ablations: they learn, continue to the bit, and save the statistics of their weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import spheregen as sg
from spheregen.data import TrainingBatches, open_source
from spheregen.family.sphere_encoder.network import SphereAutoencoder
from spheregen.folders.model_folder import load_model
from spheregen.training import preview
from spheregen.training import run as runs
from spheregen.training.feeding import image_options
from spheregen.training.hooks import RunView
from spheregen.training.recipe import load_recipe
from spheregen.training.trainer import train
from tests.training.runs import Messages, assert_same_run, interrupted, log, run, weights
from tests.training.test_distributed import run as run_processes

MEAN, VARIANCE = "encoder.norm.running_mean", "encoder.norm.running_variance"
OPTIONS = ("loss.uniformity=0.1", "model.latent_norm=batch", "model.prior=gaussian", "train.micro_batch=8")
SHORT = ("train.steps=16", "train.checkpoint_every=5", "train.preview_every=0")


@pytest.fixture(autouse=True)
def _few_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "CALIBRATION_IMAGES", 100)


@torch.no_grad()
def measured(model: SphereAutoencoder, images: int = 100) -> tuple[Tensor, Tensor]:
    """Mean and variance of what reaches the norm, of the first batches of the debug recipe."""
    recipe = load_recipe("debug")
    source = open_source("digits", split="train")
    batches = TrainingBatches(source, image_options(recipe), batch_size=16, steps=40, seed=recipe.train.seed)
    parts = [batches.batch(step) for step in range(-(-images // 16))]
    norm, model.encoder.norm = model.encoder.norm, None
    labels = [part.labels if model.num_classes else None for part in parts]
    z = torch.cat([model.encoder(part.inputs, own) for part, own in zip(parts, labels, strict=True)])
    model.encoder.norm = norm
    rows = z.flatten(0, 1).double()
    return rows.mean(0), rows.var(0, correction=0)


def assert_calibrated(model: SphereAutoencoder) -> None:
    norm = model.encoder.norm
    assert norm is not None
    for ours, expected in zip((norm.running_mean, norm.running_variance), measured(model), strict=True):
        torch.testing.assert_close(ours.double(), expected, rtol=1e-5, atol=1e-6)


def test_the_options_learn_continue_to_the_bit_and_sample(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", *SHORT, *OPTIONS)
    entries = log(whole)
    assert entries[-1]["loss"] < 0.97 * entries[0]["loss"] and "uniformity" in entries[0]
    folder = interrupted(tmp_path / "run", *SHORT, *OPTIONS, stop=12)
    run(folder, *SHORT, *OPTIONS)
    assert_same_run(folder, whole)
    images = sg.Pipeline.from_pretrained(whole, device="cpu", quiet=True).generate(3, steps=3).tensor
    assert images.shape == (3, 1, 8, 8) and bool(images.isfinite().all())
    # saved statistics are those of the saved weights
    assert_calibrated(load_model(whole).model)
    state = load_file(whole / "state" / "step-000000016.safetensors")
    for name in (MEAN, VARIANCE):
        assert torch.equal(state[f"average.{name}"], weights(whole)[name])
        assert not torch.equal(state[f"model.{name}"], weights(whole)[name])  # which ran along with other weights


def test_previews_and_hooks_see_a_calibrated_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    class Hook:
        every = 7

        def after_step(self, view: RunView, step: int) -> Mapping[str, float] | None:
            assert isinstance(view.model, SphereAutoencoder)
            assert_calibrated(view.model)
            seen.append(step)
            return None

    calls: list[Any] = []
    real = preview.preview_rows

    def rows(model: SphereAutoencoder, *arguments: Any) -> Any:
        assert_calibrated(model)
        calls.append(1)
        return real(model, *arguments)

    monkeypatch.setattr(preview, "preview_rows", rows)
    run(tmp_path / "run", "model.latent_norm=batch", "model.num_classes=0", "train.steps=21", hooks=(Hook(),))
    assert seen == [7, 14, 21] and len(calls) == 2


def test_two_processes_measure_the_same_statistics(tmp_path: Path) -> None:
    """Each encodes its rows of the batches; the saved statistics are of all."""
    before = "import spheregen.training.run as run\nrun.CALIBRATION_IMAGES = 100\n"
    folder = run_processes(2, tmp_path / "run", "model.latent_norm=batch", "train.steps=5", before=before)
    assert_calibrated(load_model(folder).model)


def test_fine_tuning_into_and_out_of_the_options(tmp_path: Path) -> None:
    norm = run(tmp_path / "norm", "model.latent_norm=batch", "train.steps=5")
    messages = Messages()
    plain = tmp_path / "plain"
    train(load_recipe("debug", ["train.steps=5"], init=str(norm)), plain, device="cpu", reporter=messages)
    assert any("latent_norm batch -> none" in line for line in messages.lines)
    assert MEAN not in weights(plain)
    back = tmp_path / "back"
    settings = ["train.steps=5", "model.latent_norm=batch", "model.prior=gaussian"]
    train(load_recipe("debug", settings, init=str(plain)), back, device="cpu", reporter=messages)
    assert any("prior sphere -> gaussian" in line for line in messages.lines)
    assert_calibrated(load_model(back).model)
