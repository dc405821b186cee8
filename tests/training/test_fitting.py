"""What fits into memory: limits of the machine, micro-batches, and what a warning advises."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch

from spheregen.distributed import World
from spheregen.errors import ConfigError
from spheregen.training import fitting as module
from spheregen.training.fitting import (
    choose_micro_batch,
    explain_fit,
    fits_warning,
    largest_micro_batch,
    micro_batches,
    readable,
    try_micro_batch,
)
from spheregen.training.memory import estimate_memory
from spheregen.training.recipe import Recipe, load_recipe
from spheregen.training.step import TrainingStep
from spheregen.training.systems.autoencoder import AutoencoderSystem

CPU = torch.device("cpu")


def recipe(*settings: str) -> Recipe:
    return load_recipe("debug", settings)


def test_micro_batches_are_halves() -> None:
    assert micro_batches(16) == [16, 8, 4, 2, 1]
    assert micro_batches(6) == [6, 3, 2, 1]
    assert micro_batches(1) == [1]


def test_the_largest_micro_batch_that_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    exact = estimate_memory(recipe(), precision="float32", micro_batch=4).total
    common = {"precision": "float32", "device_type": "cpu"}
    monkeypatch.setattr(module, "rough_total", lambda _: float("inf"))
    assert largest_micro_batch(recipe(), available=int(exact / 0.9) + 1, **common) == 4
    assert largest_micro_batch(recipe(), available=int(exact / 0.9) - 10, **common) == 2
    assert largest_micro_batch(recipe(), available=10**12, **common) == 16
    assert largest_micro_batch(recipe(), available=1, **common) == 1
    monkeypatch.setattr(module, "available_memory", lambda _: int(exact / 0.9) + 1)
    assert choose_micro_batch(recipe(), CPU, "float32", World()) == 4
    monkeypatch.setattr(module, "available_memory", lambda _: None)
    assert choose_micro_batch(recipe(), CPU, "float32", World()) == 16


@pytest.mark.parametrize("name", ["debug", "cifar10-laptop", "flowers-laptop", "digits"])
def test_the_rough_bound_is_above_the_estimate(name: str) -> None:
    changed = load_recipe(name, ["perceptual=none"])
    found = estimate_memory(changed, precision="float32", device_type="cuda")
    assert module.rough_total(changed) > found.total


def test_a_warning_names_what_helps(monkeypatch: pytest.MonkeyPatch) -> None:
    size = "{width: 32, depth: 2, heads: 2}"
    brief = ("loss.pixel_consistency=0", "loss.latent_consistency=0", "model.encoder_mixer_depth=0")
    base = recipe(f"model.encoder={size}", f"model.decoder={size}", "train.batch_size=64", *brief)
    gpu = torch.device("cuda")  # it need not be here
    estimate = estimate_memory(base, precision="float32", device_type="cuda")

    def explain(available: float) -> str | None:
        return explain_fit(base, "float32", "cuda", 1, None, int(available))

    assert explain(2 * estimate.total) is None
    text = explain(estimate.total * 0.8)
    assert text is not None and "\n" not in text
    assert f"about {readable(estimate.total)}" in text
    for option in ("train.micro_batch=", "train.recompute=true", "train.precision=bf16"):
        assert option in text
    least = dataclasses.replace(estimate, activations=0, temporary=0, overlap=0).total
    assert "train.parallel=fsdp with" in str(explain(least * 0.7))
    assert "a smaller model" in str(explain(1000))

    monkeypatch.setattr(module, "available_memory", lambda _: 10**13)
    assert fits_warning(base, gpu, "float32", World(), None) is None
    monkeypatch.setattr(module, "available_memory", lambda _: 10**5)
    assert "a smaller model" in str(fits_warning(base, gpu, "float32", World(), None))
    monkeypatch.setattr(module, "available_memory", lambda _: None)
    assert fits_warning(base, gpu, "float32", World(), None) is None


def new_step() -> TrainingStep:
    changed = recipe()
    return TrainingStep(AutoencoderSystem(changed, None), changed, device=CPU, precision="float32")


def failing_above(step: TrainingStep, limit: int) -> Callable[..., Any]:
    backward = step.backward

    def fake(batch: Any, draws: Any) -> Any:
        if len(batch.inputs) > limit:
            raise torch.OutOfMemoryError("too much")
        return backward(batch, draws)

    return fake


def test_trying_halves_until_it_fits_and_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    step = new_step()
    before = {name: tensor.clone() for name, tensor in step.model.state_dict().items()}
    monkeypatch.setattr(step, "backward", failing_above(step, 5))
    state = torch.get_rng_state()
    assert try_micro_batch(step) == step.micro_batch == 4
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(tensor, before[name]) for name, tensor in step.model.state_dict().items())
    assert all(parameter.grad is None for parameter in step.model.parameters())
    monkeypatch.setattr(step, "backward", failing_above(step, 0))
    with pytest.raises(ConfigError, match="not even one image"):
        try_micro_batch(step)
