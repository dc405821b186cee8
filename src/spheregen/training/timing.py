"""The time that a training run takes on this device, from a short calibration."""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
from dataclasses import dataclass
from typing import Any

import torch

from spheregen.devices import available_memory
from spheregen.evaluation.peak import PeakMeter, synchronize
from spheregen.nn.block import Block
from spheregen.training.fitting import SAFE_SHARE, rough_total
from spheregen.training.memory import estimate_memory, images_per_process
from spheregen.training.recipe import Recipe
from spheregen.training.step import TrainingStep
from spheregen.training.synthetic import synthetic_batch
from spheregen.training.systems import stand_in_system
from spheregen.training.tracing import OnMeta, keep_random_state


@dataclass(frozen=True)
class TimeEstimate:
    """How long a run takes on this device, from a short calibration."""

    seconds_per_step: float
    steps: int | None
    """Steps of the run; None where the recipe counts epochs and the size of the data set is not known."""
    hours: float | None
    """Of the whole run, without previews and checkpoints; None where `steps` is."""
    hours_per_1000_images_epoch: float
    """An epoch over 1000 images: multiply by the thousands of images and the epochs."""
    mfu: float
    """Operations of the run by those of square matrix products in the same time, 0 to 1."""
    peak_flops: float
    """The measured peak, in operations per second."""
    method: str
    """How it was found, in words."""

    def as_dict(self) -> dict[str, Any]:
        """The estimate as plain values."""
        return dataclasses.asdict(self)


def estimate_time(
    recipe: Recipe,
    images: int | None,
    device: torch.device,
    precision: str,
    *,
    world_size: int = 1,
    budget: float = 10.0,
) -> TimeEstimate:
    """Time a small part of the run and infer the rest; other processes are taken to be as fast and talking as free.

    Where the model fits and is quick enough, a few passes of it; else one of its transformer blocks, whose efficiency
    is taken for all. Blocks are not compiled for it, so a run that compiles is quicker.

    Args:
        images: size of the data set; None where it is not known.
        device, precision: of the run.
        world_size: processes that share each batch.
        budget: seconds to spend, about.
    """
    begun = time.perf_counter()
    with keep_random_state():
        meter = PeakMeter(device, precision, sizes=(512, 1024, 2048), max_seconds=budget / 20)
        meter.sample()
        peak = meter.result().flops
        flops = flops_per_image(recipe)
        share = images_per_process(recipe, world_size)
        left = budget - (time.perf_counter() - begun)
        guess = flops / (0.3 * peak)  # seconds an image
        available = available_memory(device)
        alone = recipe.model_copy(update={"train": recipe.train.model_copy(update={"parallel": "ddp"})})

        def fits(count: int) -> bool:
            needed = estimate_memory(alone, precision=precision, micro_batch=count, device_type=device.type).total
            return available is None or needed <= SAFE_SHARE * available

        count = max(1, min(share, int(left / 5 / guess)))
        if rough_total(recipe) > (available or math.inf) / 2:
            while count > 1 and not fits(count):
                count = -(-count // 2)
            model_fits = fits(count)
        else:
            model_fits = True
        if guess * count * 4 < left and model_fits:
            per_image, fixed = _time_model(recipe, device, precision, count, left, meter)
            method = f"passes of {count} of {share} images through the whole model"
        else:
            rate = _block_rate(recipe, device, precision, peak, left, meter)
            per_image, fixed = flops / rate, 0.0
            method = "one transformer block of the recipe's width, whose efficiency was taken for the whole model"
        peak = meter.result().flops
    seconds = share * per_image + fixed
    steps = recipe.train.steps if images is None else recipe.total_steps(images)
    return TimeEstimate(
        seconds_per_step=seconds,
        steps=steps,
        hours=None if steps is None else steps * seconds / 3600,
        hours_per_1000_images_epoch=1000 / recipe.train.batch_size * seconds / 3600,
        mfu=share * flops / seconds / peak,
        peak_flops=peak,
        method=method,
    )


def flops_per_image(recipe: Recipe) -> float:
    """Operations of a training step for one image, by `evaluation.cost`'s convention, the perceptual networks included.

    Nothing is allocated.
    """
    with OnMeta():
        return stand_in_system(recipe).flops_per_image()


def _time_model(
    recipe: Recipe, device: torch.device, precision: str, count: int, budget: float, meter: PeakMeter
) -> tuple[float, float]:
    """Seconds of forward and backward for an image, and of what a step takes beside them."""
    begun = time.perf_counter()
    train = recipe.train.model_copy(update={"micro_batch": count, "compile": False})
    changed = recipe.model_copy(update={"train": train})
    system = stand_in_system(changed)
    step = TrainingStep(system, changed, device=device, precision=precision, micro_batch=count)
    batch, draws = synthetic_batch(step, count)
    passes: list[float] = []
    wholes: list[float] = []
    while len(wholes) < 2 or (len(wholes) < 6 and time.perf_counter() - begun < budget * 0.7):
        meter.sample()
        start = time.perf_counter()
        step.backward(batch, draws)
        synchronize(device)
        middle = time.perf_counter()
        step.optimizer.zero_grad()
        step(batch, draws, 0.0)
        synchronize(device)
        passes.append(middle - start)
        wholes.append(time.perf_counter() - middle)
    a_pass, whole = statistics.median(passes[1:]), statistics.median(wholes[1:])  # the first ones warm up
    return a_pass / count, max(0.0, whole - a_pass)


def _block_rate(
    recipe: Recipe, device: torch.device, precision: str, peak: float, budget: float, meter: PeakMeter
) -> float:
    """Operations per second of one of the blocks' forward and backward pass; `peak` says how many images are enough."""
    from spheregen.devices import autocast
    from spheregen.evaluation.cost import count_flops
    from spheregen.nn.positions import AxialRotary

    size, config = recipe.model.transformers[-1], recipe.model
    block = Block(size.width, size.heads, conditional=config.num_classes > 0).to(device)
    block.recompute = recipe.train.recompute
    rotary = AxialRotary(config.grid, size.width // size.heads).to(device)
    condition = torch.randn(1, size.width, device=device) if config.num_classes else None
    x = torch.randn(1, config.tokens, size.width, device=device, requires_grad=True)
    flops = 3 * count_flops(block, x, rotary, condition)
    count = max(1, min(64, int(budget / 6 / (flops / (0.3 * peak)))))
    x = x.detach().expand(count, -1, -1).contiguous().requires_grad_()
    if condition is not None:
        condition = condition.expand(count, -1).contiguous()
    begun = time.perf_counter()
    times: list[float] = []
    while len(times) < 2 or (len(times) < 6 and time.perf_counter() - begun < budget * 0.7):
        meter.sample()
        start = time.perf_counter()
        with autocast(device, precision):
            out = block(x, rotary, condition)
        out.float().square().mean().backward()
        synchronize(device)
        times.append(time.perf_counter() - start)
    return flops * count / statistics.median(times[1:])
