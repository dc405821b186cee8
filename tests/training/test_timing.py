"""Estimates of time: what they are made of, and that calibrating changes nothing."""

from __future__ import annotations

import json

import pytest
import torch

from spheregen.training import timing as module
from spheregen.training.recipe import Recipe, load_recipe
from spheregen.training.systems import build_system
from spheregen.training.timing import estimate_time, flops_per_image

CPU = torch.device("cpu")


def recipe(*settings: str) -> Recipe:
    return load_recipe("debug", settings)


def test_time_of_a_model_that_is_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    state = torch.get_rng_state()
    found = estimate_time(recipe(), None, CPU, "float32", budget=1.0)
    assert torch.equal(state, torch.get_rng_state())
    assert found.steps == 40
    assert found.hours == pytest.approx(40 * found.seconds_per_step / 3600)
    assert found.hours_per_1000_images_epoch == pytest.approx(1000 / 16 * found.seconds_per_step / 3600)
    assert found.seconds_per_step > 0 and found.mfu > 0
    assert json.loads(json.dumps(found.as_dict()))["method"] == found.method


def test_time_of_a_model_that_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "available_memory", lambda _: 1)
    epochs = recipe("train.epochs=2")
    found = estimate_time(epochs, None, CPU, "float32", budget=0.5)
    assert "block" in found.method
    assert found.steps is None and found.hours is None
    assert found.seconds_per_step == pytest.approx(16 * flops_per_image(epochs) / (found.mfu * found.peak_flops))
    assert estimate_time(epochs, 160, CPU, "float32", budget=0.5).steps == 20


def test_operations_are_those_of_the_system() -> None:
    changed = recipe("perceptual=builtin")
    assert flops_per_image(changed) == build_system(changed).flops_per_image()
