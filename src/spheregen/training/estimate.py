"""Operations, memory and time of a training step, told before the run.

One forward pass of a few images on the meta device, where nothing is allocated, counts the operations of a step and the
activations that it keeps; weights, moments and EMA follow from the parameters. The rest are rules of thumb, named here;
a run whose memory does not suffice all the same goes on with smaller micro-batches (`step`).
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import statistics
import time
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from spheregen.conditioning import text_labels
from spheregen.data import Batch
from spheregen.devices import available_memory
from spheregen.distributed import World
from spheregen.family.objective import Objective
from spheregen.family.recipe import Recipe
from spheregen.family.registry import member_of
from spheregen.measure.timing import PeakMeter, seconds_of
from spheregen.nn.block import Block, blocks_of
from spheregen.nn.uninitialised import weightless
from spheregen.noise import BatchNoise
from spheregen.training.frozen import estimate_objective
from spheregen.training.optimizer import Optimizer, tags_by_name
from spheregen.training.step import TrainingStep

LONG_RUN = 200
"""Steps from which a run is worth a second of estimates and of measuring the machine's peak."""
SAFE_SHARE = 0.9
"""The part of the available memory that an estimate may fill."""
EFFICIENCY = 0.4
"""Operations of a training step by those of square matrix products in the same time, where nothing is measured."""
PASSING = 1.4
"""What a pass holds at its peak, as a multiple of the activations that it keeps for the backward pass."""
HALF = 0.6
"""The share of activations that is left under bf16; norms and losses stay float32."""
TRACED = 8  # images of the pass that is counted
BLOCK_TENSORS = 35
"""Activations of a transformer block, as a multiple of its input."""


def keep_random_state() -> AbstractContextManager[Any]:
    """Put back torch's random states, of the CPU and of the GPUs in use, at the end."""
    return torch.random.fork_rng(range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ())


def readable(size: float) -> str:
    """Return bytes for people: `512 MiB`, `7.3 GiB`."""
    if abs(size) < 1000 << 20:
        return f"{size / 2**20:.3g} MiB"
    gib = size / 2**30
    return f"{gib:.1f} GiB" if gib < 100 else f"{gib:.0f} GiB"


def random_batch(
    objective: Objective, config: Any, count: int, device: torch.device | str, progress: float = 1.0
) -> tuple[Tensor, Tensor | None, BatchNoise]:
    """Return `count` inputs that look like data, labels (None without classes) and random numbers.

    Inputs are images (C, S, S) of 256 levels in [-1, 1], or Gaussian latents (N, d).

    Args:
        progress: the share of the run that is done, 0 to 1.
    """
    generator, shape = torch.Generator().manual_seed(0), member_of(config).input_shape(config)
    if len(shape) == 3:
        inputs = torch.randint(256, (count, *shape), generator=generator, dtype=torch.uint8).float() / 127.5 - 1
    else:
        inputs = torch.randn(count, *shape, generator=generator)
    labels = random_labels(config, count, generator)
    noise: BatchNoise = objective.draw(count, generator, progress=progress)
    return inputs.to(device), None if labels is None else labels.to(device), noise.each(lambda each: each.to(device))


def random_labels(config: Any, count: int, generator: torch.Generator | None = None) -> Tensor | None:
    """Return labels of `count` samples: class ids, or vectors of texts; None of an unconditional model."""
    if classes := getattr(config, "num_classes", 0):
        return torch.randint(classes, (count,), generator=generator)
    if width := getattr(config, "text_width", 0):
        return text_labels(functional.normalize(torch.randn(count, width, generator=generator), dim=1))
    return None


def synthetic_batch(step: TrainingStep, count: int) -> tuple[Batch, BatchNoise]:
    """Return the same as a batch of a step, on its device."""
    inputs, labels, noise = random_batch(step.objective, step.recipe.model, count, step.device)
    return Batch(inputs=inputs, labels=labels, indices=torch.arange(count), step=0), noise


# what a step takes


@dataclass(frozen=True)
class StepCost:
    """What a training step takes, whatever its batch; sizes are bytes of float32."""

    flops_per_image: float
    """Operations in linears and convolutions, forward and backward, a mean over the phases of the run."""
    activations_per_image: int
    """Kept for the backward pass, in the phase that keeps most."""
    parameters: int
    stored: int
    """Parameters, fixed tables and statistics."""
    moments: int
    """The optimiser's: two numbers a weight under AdamW, one where Muon rules."""
    frozen: int
    """The frozen networks that the loss needs, and what learns beside the model."""


@functools.lru_cache(maxsize=64)
def step_cost(recipe: Recipe) -> StepCost:
    """Count what a training step takes. Nothing is allocated, and no random state changes."""
    objective = objective_on_meta(recipe)
    objective.model.train()
    for block in blocks_of(objective.model):
        block.recompute = recipe.train.recompute
    groups = Optimizer(objective.model, tags_by_name(objective.model), recipe.parameter_groups).param_groups
    bounds = sorted({0.0, 1.0, *(bound for part in recipe.parameter_groups for bound in (part.begin, part.end))})
    flops, kept = 0.0, 0
    for begin, end in itertools.pairwise(bounds):
        batch = random_batch(objective, recipe.model, TRACED, "meta", progress=end - 1e-9)
        with keep_random_state(), torch.device("meta"):
            counted = _count(objective, *batch)
        flops += (end - begin) * counted[0] / TRACED
        kept = max(kept, counted[1] // TRACED)
    parameters = _bytes(objective.model.parameters())
    return StepCost(
        flops_per_image=flops,
        activations_per_image=kept,
        parameters=parameters,
        stored=parameters + _bytes(objective.model.buffers()),
        moments=sum((1 if group["muon"] else 2) * _bytes(group["params"]) for group in groups),
        # what learns beside the model has gradients and two moments, too
        frozen=sum(_bytes([*network.parameters(), *network.buffers()]) for network in objective.frozen)
        + sum(4 * _bytes(network.parameters()) + _bytes(network.buffers()) for network in _beside(objective)),
    )


def objective_on_meta(recipe: Recipe) -> Objective:
    """Return the objective of a recipe with random frozen networks on the meta device, where nothing is allocated."""
    with keep_random_state(), weightless():
        return estimate_objective(recipe)


def _count(objective: Objective, inputs: Tensor, labels: Tensor | None, noise: BatchNoise) -> tuple[float, int]:
    """Return operations of a step, and bytes that its forward pass keeps for the backward pass."""
    flops, recomputed, saved = 0.0, [0], dict[int, int]()
    networks = nn.ModuleList([objective.model, *objective.frozen, *_beside(objective)])
    weights = {each.untyped_storage()._cdata for each in (*networks.parameters(), *networks.buffers())}

    def count(module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal flops
        if isinstance(module, Block):
            if module.recompute and torch.is_grad_enabled():  # its input alone is kept
                recomputed.append(inputs[0].numel() * inputs[0].element_size())
            return
        numbers = inputs[0].numel() if isinstance(module, nn.ConvTranspose2d) else output.numel()
        # once forward; backward for the weights, and for the input, if they take gradients
        passes = 1 + output.requires_grad * (module.weight.requires_grad + inputs[0].requires_grad)
        flops += 2.0 * numbers * module.weight[0].numel() * passes

    def save(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            saved[storage._cdata] = storage.nbytes()
        return tensor

    layers = (nn.Linear, nn.Conv2d, nn.ConvTranspose2d, Block)
    handles = [each.register_forward_hook(count) for each in networks.modules() if isinstance(each, layers)]
    with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
        objective.loss(inputs, labels, noise)
    for handle in handles:
        handle.remove()
    return flops, sum(saved.values()) + sum(recomputed) + BLOCK_TENSORS * max(recomputed)


def _beside(objective: Objective) -> list[nn.Module]:
    return [] if objective.beside is None else [objective.beside]


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


# memory


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes that one process of a training run holds at its peak, about."""

    micro_batch: int
    """Images of one pass in this process."""
    weights: int
    gradients: int
    moments: int
    ema: int
    frozen: int
    """The frozen networks that the loss needs."""
    activations: int
    """Of a forward and backward pass."""
    data: int
    """The decoded data set, where it is kept in memory that is this device's; 0 where its size is not known."""

    @property
    def total(self) -> int:
        """All of it."""
        return sum(dataclasses.astuple(self)[1:])

    def as_dict(self) -> dict[str, int]:
        """Return the estimate as plain numbers, in bytes."""
        return {**dataclasses.asdict(self), "total": self.total}


def estimate_memory(
    recipe: Recipe,
    *,
    precision: str,
    world_size: int = 1,
    micro_batch: int | None = None,
    device_type: str = "cpu",
    images: int | None = None,
) -> MemoryEstimate:
    """Estimate the peak memory of one process, without allocating it; a CUDA context comes on top.

    Args:
        recipe: the run; `train.recompute`, `train.parallel` and the optimiser count, `train.micro_batch` where
            `micro_batch` is None.
        precision: `float32` or `bf16`, see `measure.precision`.
        world_size: processes that share each batch.
        micro_batch: images of one pass; None takes the recipe's, and the whole share for None or `auto` there.
        device_type: `cpu`, `cuda` or `mps`.
        images: size of the data set, for its cache.

    Raises:
        ConfigError: the processes cannot share the batch equally.
    """
    cost, share = step_cost(recipe), _share(recipe, world_size)
    asked = micro_batch if micro_batch is not None else recipe.train.micro_batch
    count = max(1, min(asked, share)) if isinstance(asked, int) else share
    shards = world_size if recipe.train.parallel == "fsdp" else 1
    decoded = (images or 0) * recipe.model.image_channels * recipe.model.image_size**2
    half = HALF if precision == "bf16" else 1.0
    return MemoryEstimate(
        micro_batch=count,
        weights=cost.stored // shards,
        gradients=cost.parameters // shards,
        moments=cost.moments // shards,
        ema=cost.stored // shards,
        frozen=cost.frozen,
        activations=round(count * cost.activations_per_image * PASSING * half),
        data=decoded if device_type == "cpu" and decoded <= recipe.data.cache_mb << 20 else 0,
    )


def estimate_sampling_memory(config: Any, tokens: int, batch: int, parameters: int) -> dict[str, int]:
    """Estimate the float32 bytes of generating `batch` images at a time: `weights`, `activations` and their `total`.

    Args:
        config: the architecture.
        tokens: of a latent.
        parameters: numbers in all networks.
    """
    widest = max((size.width for size in getattr(config, "transformers", ())), default=0)
    pixels = config.image_channels * config.image_size**2
    activations = 4 * batch * (BLOCK_TENSORS // 2 * tokens * widest + 8 * pixels)
    weights = 4 * parameters
    return {"batch": batch, "weights": weights, "activations": activations, "total": weights + activations}


def largest_micro_batch(
    recipe: Recipe, *, precision: str, world_size: int = 1, device_type: str = "cpu", available: int
) -> int:
    """Return the largest micro-batch whose estimate fits into 90 % of `available` bytes; 0 where none does.

    Tried are a process's share of the batch, its half, its quarter and so on.
    """
    count, how = _share(recipe, world_size), {"world_size": world_size, "device_type": device_type}
    while count:
        needed = estimate_memory(recipe, precision=precision, micro_batch=count, **how).total  # type: ignore[arg-type]
        if needed <= SAFE_SHARE * available:
            break
        count = -(-count // 2) if count > 1 else 0
    return count


def recomputing(recipe: Recipe) -> Recipe:
    """Return the recipe with `train.recompute`."""
    return recipe.model_copy(update={"train": recipe.train.model_copy(update={"recompute": True})})


def memory_warning(
    recipe: Recipe, precision: str, device_type: str, world_size: int, micro_batch: int | None, available: int
) -> str | None:
    """Return a line if a run is not likely to fit into `available` bytes: the need, and the settings that help."""
    how: dict[str, Any] = {"precision": precision, "world_size": world_size, "device_type": device_type}
    needed = estimate_memory(recipe, micro_batch=micro_batch, **how).total
    if needed <= SAFE_SHARE * available:
        return None
    cure = "a smaller model, or several processes with train.parallel=fsdp"
    if smaller := largest_micro_batch(recipe, available=available, **how):
        cure = f"train.micro_batch={smaller}"
    elif smaller := largest_micro_batch(recomputing(recipe), available=available, **how):
        cure = f"train.recompute=true with train.micro_batch={smaller}"
    return (
        f"this run needs about {readable(needed)} of memory and {readable(available)} are available; it may fail or "
        f"swap. What helps: {cure}"
    )


def _share(recipe: Recipe, world_size: int) -> int:
    """Return how many images of a batch fall to one process."""
    return int(World(size=world_size).share(recipe.train.batch_size).stop)


# time


@dataclass(frozen=True)
class TimeEstimate:
    """How long a run takes on this device."""

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
        """Return the estimate as plain values."""
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

    A few steps of the model in smaller batches; of one that is too slow or too large for that, its operations, as fast
    as small models do them. Blocks are not compiled for it, so a run that compiles is quicker.

    Args:
        images: size of the data set; None where it is not known.
        device, precision: of the run.
        world_size: processes that share each batch.
        budget: seconds to spend, about.
    """
    cost, share = step_cost(recipe), _share(recipe, world_size)
    with keep_random_state():
        meter = PeakMeter(device, precision, sizes=(512, 1024, 2048), max_seconds=budget / 20)
        meter.sample()
        guess = cost.flops_per_image / (EFFICIENCY * meter.result().flops)  # seconds an image
        count = max(1, min(share, int(budget / 8 / guess)))
        available = available_memory(device)
        needed = estimate_memory(recipe, precision=precision, micro_batch=count, device_type=device.type).total
        seconds, method = share * guess, f"its operations, at {EFFICIENCY:.0%} of the speed of matrix products"
        if guess * count * 4 < budget and (available is None or needed <= SAFE_SHARE * available):
            method = f"steps of {count} of {share} images"
            train = recipe.train.model_copy(update={"micro_batch": count, "compile": False, "parallel": "ddp"})
            small = recipe.model_copy(update={"train": train})
            step = TrainingStep(estimate_objective(small), small, device=device, precision=precision, micro_batch=count)
            batch, noise = synthetic_batch(step, count)
            begun, times = time.perf_counter(), list[float]()
            while len(times) < 3 or (len(times) < 8 and time.perf_counter() - begun < budget / 2):
                meter.sample()
                times.append(seconds_of(lambda: step(batch, noise, 0.0), device))
            seconds = statistics.median(times[1:]) * share / count  # the first one warms up
        peak = meter.result().flops
    steps = recipe.train.steps if images is None else recipe.total_steps(images)
    return TimeEstimate(
        seconds_per_step=seconds,
        steps=steps,
        hours=None if steps is None else steps * seconds / 3600,
        hours_per_1000_images_epoch=1000 / recipe.train.batch_size * seconds / 3600,
        mfu=share * cost.flops_per_image / seconds / peak,
        peak_flops=peak,
        method=method,
    )
