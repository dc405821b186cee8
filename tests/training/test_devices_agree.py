"""What a GPU computes is what the CPU does, and a step on it never makes the host wait. On a CPU the same tests run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from spheregen.pipeline import Pipeline
from spheregen.tensors import load_tensors
from spheregen.training import load_recipe, train
from spheregen.training.estimate import synthetic_batch
from spheregen.training.frozen import build_objective, estimate_objective
from spheregen.training.hooks import RunView
from spheregen.training.step import TrainingStep

CUDA = pytest.param(
    "cuda",
    marks=[pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")],
)
devices = pytest.mark.parametrize("device", ["cpu", CUDA])


@devices
@pytest.mark.parametrize("name", ["debug", "conv-debug", "flow-debug"])
def test_steps_compute_what_the_cpu_does(device: str, name: str) -> None:
    recipe = load_recipe(name, ["train.batch_size=8"])
    losses = []
    for place in ("cpu", device):
        step = TrainingStep(build_objective(recipe), recipe, device=torch.device(place), precision="float32", total=100)
        batch, noise = synthetic_batch(step, 8)
        losses.append([step(batch, noise, 1e-3).values["loss"].item() for _ in range(3)])
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    assert losses[0][0] != losses[0][-1]


@devices
@pytest.mark.parametrize("name", ["debug", "conv-debug", "rae-debug", "flow-debug"])
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_a_step_never_makes_the_host_wait(device: str, name: str, precision: str) -> None:
    recipe = load_recipe(name, ["train.batch_size=8", "train.micro_batch=4"])
    place = torch.device(device)
    step = TrainingStep(estimate_objective(recipe), recipe, device=place, precision=precision, micro_batch=4, total=100)
    batch, noise = synthetic_batch(step, 8)
    step(batch, noise, 1e-3)  # makes what is made once
    try:
        if device == "cuda":
            torch.cuda.set_sync_debug_mode("error")
        result = step(batch, noise, 1e-3)
    finally:
        if device == "cuda":
            torch.cuda.set_sync_debug_mode("default")
    assert result.values["loss"].isfinite() and result.values["loss"].device.type == device


@devices
@pytest.mark.parametrize("steps", [1, 3])
def test_images_of_seeds_are_the_same(device: str, steps: int) -> None:
    ways = [Pipeline.from_pretrained("digits", device=place, dtype="float32", quiet=True) for place in ("cpu", device)]
    here, there = (pipe.generate(6, steps=steps, guidance=1.3, seed=5).tensor for pipe in ways)
    torch.testing.assert_close(there, here, atol=1e-4, rtol=0)


class Stop:
    """A hook that ends a run after two steps, as a crash would."""

    every = 2

    def after_step(self, run: RunView, step: int) -> None:
        if step == 2:
            raise RuntimeError("stopped")


@devices
def test_a_run_continues_where_it_was_stopped(device: str, tmp_path: Path) -> None:
    recipe = load_recipe("debug", ["train.steps=4", "train.checkpoint_every=1", "train.preview_every=2"])
    whole = train(recipe, tmp_path / "whole", device=device)
    with pytest.raises(RuntimeError, match="stopped"):
        train(recipe, tmp_path / "parts", device=device, hooks=[Stop()])
    again = train(recipe, tmp_path / "parts", device=device)
    assert 0 < again.steps_done_now < 4
    weights = [load_tensors(run.folder / "model.safetensors") for run in (whole, again)]
    for name, tensor in weights[0].items():
        # a GPU may add up gradients in another order
        torch.testing.assert_close(weights[1][name], tensor, atol=0 if device == "cpu" else 1e-4, rtol=0)
