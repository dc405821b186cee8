"""Runs that tests of training share: how they are made, stopped, read and compared."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from spheregen.family.objective import Objective
from spheregen.family.recipe import Recipe
from spheregen.progress import QuietReporter
from spheregen.training.checkpoint import latest_checkpoint
from spheregen.training.estimate import synthetic_batch
from spheregen.training.recipe import load_recipe
from spheregen.training.step import TrainingStep
from spheregen.training.trainer import train
from tests.processes import Started


class StopAt(QuietReporter):
    """Stops the run as Ctrl-C would, after a number of steps."""

    def __init__(self, step: int) -> None:
        self.stop_step = step

    def step(self, done: int, metrics: Mapping[str, float] | None) -> None:
        if done == self.stop_step:
            raise KeyboardInterrupt


class Messages(QuietReporter):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def message(self, text: str) -> None:
        self.lines.append(text)


def run(folder: Path, *overrides: str, recipe: str = "debug", data: Path | None = None, **options: Any) -> Path:
    train(load_recipe(recipe, overrides, data=data and str(data)), folder, device="cpu", **options)
    return folder


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


def log(folder: Path) -> list[dict[str, float]]:
    entries = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in entry.items() if k != "images_per_second"} for entry in entries]


def assert_same_run(a: Path, b: Path) -> None:
    ours, theirs = weights(a), weights(b)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert log(a) == log(b)
    last_a, last_b = (latest_checkpoint(folder) for folder in (a, b))
    assert last_a is not None and last_b is not None
    state_a, state_b = load_file(last_a.path), load_file(last_b.path)
    assert state_a.keys() == state_b.keys()
    assert all(torch.equal(state_a[name], state_b[name]) for name in state_a)


def interrupted(folder: Path, *overrides: str, stop: int, **options: Any) -> Path:
    with pytest.raises(KeyboardInterrupt):
        run(folder, *overrides, reporter=StopAt(stop), **options)
    return folder


def counted_flops(objective: Objective, recipe: Recipe) -> float:
    """Of a step for one image; with attention, and without gradients of the first inputs."""
    step = TrainingStep(objective, recipe, device=torch.device("cpu"), precision="float32")
    batch, noise = synthetic_batch(step, 16)
    with FlopCounterMode(display=False) as counter:
        step.backward(batch, noise)
    return float(counter.get_total_flops()) / 16


def wait_for_a_checkpoint(folder: Path, process: Started) -> None:
    deadline = time.monotonic() + 300
    while not list(folder.glob("state/step-*.safetensors")) and process.poll() is None:
        assert time.monotonic() < deadline, "no checkpoint appeared"
        time.sleep(0.001)
