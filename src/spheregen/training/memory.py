"""The memory that a training run or sampling takes, told before it starts.

It is not computed from formulas that drift away from the code. The real model and the real loss run forward and
backward on torch's meta device (see `tracing`). Depth and micro-batch enter affinely, so that a few shallow traces tell
about deep models.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn

from spheregen.distributed import World
from spheregen.models.blank import blank_generator
from spheregen.models.flow_refiner import RefinedGenerator
from spheregen.nn.block import blocks_of
from spheregen.training.optimizer import parameter_groups, tags_by_name
from spheregen.training.recipe import Recipe
from spheregen.training.systems import stand_in_system
from spheregen.training.tracing import AsOnDevice, LiveBytes, OnMeta

CPU_RESERVE = 128 << 20
"""What the C library was measured to keep of small blocks that were freed, 60 to 210 MiB, if a pass takes as much."""


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes that one process of a training run holds at its peak."""

    micro_batch: int
    """Images of one pass in this process."""
    weights: int
    gradients: int
    moments: int
    """The optimiser's: two numbers a weight under AdamW, one where Muon rules."""
    average: int
    """The averaged weights."""
    frozen: int
    """The frozen networks that the loss needs, perceptual ones."""
    activations: int
    """What the forward pass leaves for the backward pass."""
    temporary: int
    """What a pass holds for a moment beyond that."""
    gathered: int
    """Weights and gradients of the blocks that a sharded model gathers at one time; 0 where nothing is sharded."""
    overlap: int
    """To subtract: a batch in one piece frees its activations while its gradients appear."""
    data: int
    """The decoded data set, where it is kept in memory that is this device's; 0 where its size is not known."""
    reserve: int
    """What a CPU's allocator keeps of small blocks that were freed."""
    activations_per_image: int
    """How much an image more or less in a pass changes `activations` and `temporary`."""

    @property
    def total(self) -> int:
        """All of it."""
        held = self.weights + self.gradients + self.moments + self.average + self.frozen + self.gathered + self.data
        return held + self.activations + self.temporary + self.reserve - self.overlap

    def as_dict(self) -> dict[str, int]:
        """The estimate as plain numbers, in bytes."""
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
    """The peak memory of one process, without allocating it.

    Compiled blocks need less than this; a CUDA context and the fragmentation of freed memory come on top.

    Args:
        recipe: the run; `train.recompute`, `train.parallel` and the optimiser count, `train.micro_batch` where
            `micro_batch` is None.
        precision: `float32` or `bf16`, see `devices.choose_precision`.
        world_size: processes that share each batch.
        micro_batch: images of one pass; None takes the recipe's, and the whole share for None or `auto` there.
        device_type: `cpu`, `cuda` or `mps`.
        images: size of the data set, for its cache.

    Raises:
        ConfigError: the processes cannot share the batch equally.
    """
    share = images_per_process(recipe, world_size)
    asked = micro_batch if micro_batch is not None else recipe.train.micro_batch
    count = min(asked, share) if isinstance(asked, int) else share
    kept, peak, slope = _activations(recipe, precision, device_type)(count, share)
    return _assemble(recipe, world_size, count, share, kept, peak, slope, device_type, images)


def estimate_sampling_memory(
    config: Any, batch: int, *, dtype: torch.dtype = torch.float32, device_type: str = "cpu", front: Any = None
) -> dict[str, int]:
    """Bytes of generating `batch` images at a time without guidance: `weights`, `activations` and their `total`.

    A tokenizer is left out: the bytes are those of the denoiser alone.

    Args:
        config: the architecture.
        batch: images of one pass.
        dtype: of the weights and of all arithmetic.
        device_type: `cpu`, `cuda` or `mps`.
        front: of a refiner, the architecture of the generator in front of it.
    """
    from spheregen.sampling.loop import sample
    from spheregen.sampling.refinement import Refinement, Rough, refine_samples

    def shallow(config: Any) -> Any:
        # a block's activations go when it is done, so two blocks tell about any number
        return None if config is None else _shallow(config, [min(size.depth, 2) for size in config.transformers])

    with OnMeta():
        whole = cast(nn.Module, blank_generator(config, front))
        weights = _bytes([*whole.parameters(), *whole.buffers()])
        model = blank_generator(shallow(config), shallow(front)).to(dtype).eval()
        noise = torch.empty(batch, *model.latent_shape, dtype=dtype)
        labels = torch.empty(batch, dtype=torch.int64) if config.num_classes else None
        with LiveBytes() as live, AsOnDevice("float32", device_type):
            if isinstance(model, RefinedGenerator):
                rough = Rough(model)
                samples = sample(rough, noise, labels, steps=2, step_noise=noise)
                refine_samples(rough, samples, labels, Refinement(2), torch.empty_like(samples.images))
            else:
                sample(model, noise, labels, steps=2, step_noise=noise)
    weights = weights * dtype.itemsize // 4
    return {"batch": batch, "weights": weights, "activations": live.peak, "total": weights + live.peak}


def images_per_process(recipe: Recipe, world_size: int) -> int:
    """Images of a batch that fall to one process."""
    rows = World(size=world_size).share(recipe.train.batch_size)
    return int(rows.stop - rows.start)


def _assemble(
    recipe: Recipe,
    world_size: int,
    count: int,
    share: int,
    kept: int,
    peak: int,
    slope: int,
    device_type: str,
    images: int | None,
) -> MemoryEstimate:
    sizes = _weights(recipe)
    sharded = recipe.train.parallel == "fsdp" and world_size > 1
    shares = world_size if sharded else 1
    gradients = -(-sizes.weights // shares)
    in_one_piece = count == share and (world_size == 1 or sharded)  # DDP keeps its buckets of gradients
    cache = 0
    if images is not None and device_type == "cpu":
        config = recipe.model
        decoded = images * config.image_channels * config.image_size**2
        cache = decoded if decoded <= recipe.data.cache_mb << 20 else 0
    return MemoryEstimate(
        micro_batch=count,
        weights=-(-sizes.stored // shares),
        gradients=gradients,
        moments=-(-sizes.moments // shares),
        average=-(-sizes.stored // shares),
        frozen=sizes.frozen,
        activations=kept,
        temporary=peak - kept,
        gathered=sizes.gathered if sharded else 0,
        overlap=min(gradients, peak) if in_one_piece else 0,
        data=cache,
        reserve=min(CPU_RESERVE, peak) if device_type == "cpu" else 0,
        activations_per_image=slope,
    )


@dataclass(frozen=True)
class _Weights:
    weights: int  # what learns
    stored: int  # and the fixed tables
    moments: int
    frozen: int
    gathered: int


@functools.lru_cache(maxsize=32)
def _weights(recipe: Recipe) -> _Weights:
    """Bytes of what is there whatever the batch."""
    with OnMeta():
        system = stand_in_system(recipe)
    model = system.model
    tags = tags_by_name(model)
    groups = [
        group
        for learner in recipe.learners
        for group in parameter_groups(
            model, {name: tag for name, tag in tags.items() if name.startswith(learner.prefixes)}, learner.optimizer
        )
    ]
    moments = sum((1 if group["muon"] else 2) * _bytes(group["params"]) for group in groups)
    blocks = [_bytes(block.parameters()) for block in blocks_of(model)]
    learned = _bytes(model.parameters())
    # what is outside of blocks stays gathered while its network works; of blocks there is one, the next, and gradients
    gathered = learned - sum(blocks) + 3 * max(blocks, default=0)
    return _Weights(
        weights=learned,
        stored=learned + _bytes(model.buffers()),
        moments=moments,
        frozen=sum(_bytes([*network.parameters(), *network.buffers()]) for network in system.frozen),
        gathered=gathered,
    )


def _bytes(tensors: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _activations(recipe: Recipe, precision: str, device_type: str) -> Callable[[int, int], tuple[int, int, int]]:
    """A law of (kept, peak, peak per image) for a micro-batch out of a share of that many images."""

    def law(count: int, share: int) -> tuple[int, int, int]:
        small = _deep_trace(recipe, precision, device_type, 1)
        if share == 1:
            return (*small, small[1])
        if count == 1:
            share = 2
        large = _deep_trace(recipe, precision, device_type, share)
        # the peak is the largest of several affine functions, hence convex: its chord errs on the safe side
        part = (count - 1) / (share - 1)
        kept, peak = (round(a + (b - a) * part) for a, b in zip(small, large, strict=True))
        return kept, peak, round((large[1] - small[1]) / (share - 1))

    return law


@functools.lru_cache(maxsize=64)
def _deep_trace(recipe: Recipe, precision: str, device_type: str, count: int) -> tuple[int, int]:
    """Bytes kept after the forward pass and at the peak, from models of one block and of two."""
    sizes = recipe.model.transformers
    depths = [size.depth for size in sizes]

    def trace(*shallow: int) -> tuple[int, int]:
        return _trace(_with_depths(recipe, *shallow), precision, device_type, count)

    if max(depths) <= 2:
        return trace(*depths)
    ones = [1] * len(depths)
    base = trace(*ones)
    if len(set(sizes)) == 1:
        return _line(base, [(trace(*(2 for _ in depths)), depths[0] - 1)])
    deeper = [[1 + (other == place) for other in range(len(depths))] for place in range(len(depths))]
    return _line(base, [(trace(*shallow), depth - 1) for shallow, depth in zip(deeper, depths, strict=True)])


def _line(base: tuple[int, int], more: Sequence[tuple[tuple[int, int], int]]) -> tuple[int, int]:
    kept, peak = (base[i] + sum((other[i] - base[i]) * times for other, times in more) for i in (0, 1))
    return kept, max(kept, peak)


def _with_depths(recipe: Recipe, *depths: int) -> Recipe:
    return recipe.model_copy(update={"model": _shallow(recipe.model, depths)})


def _shallow(config: Any, depths: Sequence[int]) -> Any:
    """The architecture with that many blocks; in-context tokens, if any, are in all but the first."""
    sizes = zip(config.transformers, depths, strict=True)
    return config.with_transformers(
        [dataclasses.replace(size, depth=depth, in_context_start=0) for size, depth in sizes]
    )


def _trace(recipe: Recipe, precision: str, device_type: str, count: int) -> tuple[int, int]:
    """Bytes kept after the forward pass of `count` images, and at the peak of forward and backward.

    Weights and their gradients are left out: they are there before.
    """
    with OnMeta(), torch.enable_grad():
        system = stand_in_system(recipe)
        system.model.train()
        for parameter in system.model.parameters():
            parameter.grad = torch.empty_like(parameter)
        for block in blocks_of(system.model):
            block.recompute = recipe.train.recompute
        with LiveBytes() as live, AsOnDevice(precision, device_type) as device:
            loss = system.loss(*system.blank(count))
            device.forget()
            kept = live.now
            # backward() would suspend the modes, under which blocks that recompute must run again
            torch.autograd.Variable._execution_engine.run_backward(
                (loss.total,), (torch.empty(()),), False, False, (), allow_unreachable=True, accumulate_grad=True
            )
            return kept, live.peak
