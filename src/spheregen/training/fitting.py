"""What memory there is, the micro-batch that fits into it, and what helps where a run does not fit."""

from __future__ import annotations

import math
import os
from typing import Any

import torch

from spheregen.devices import available_memory
from spheregen.distributed import World
from spheregen.errors import ConfigError
from spheregen.training.memory import estimate_memory, images_per_process
from spheregen.training.recipe import AutoencoderRecipe, Recipe, RepresentationRecipe, SphereFlowRecipe
from spheregen.training.step import TrainingStep
from spheregen.training.synthetic import synthetic_batch
from spheregen.training.tracing import keep_random_state

SAFE_SHARE = 0.9
"""The part of the available memory that an estimate may fill."""
_ROUGH_WIDTHS = 80  # floats kept for each token and block, in widths: well above what is measured (25 to 40)


def micro_batches(share: int) -> list[int]:
    """The sizes that are tried: the share, and it divided by 2, 4, 8, ... rounded up, down to 1."""
    sizes = [share]
    while sizes[-1] > 1:
        sizes.append(-(-share // 2 ** len(sizes)))
    return sizes


def largest_micro_batch(
    recipe: Recipe, *, precision: str, world_size: int = 1, device_type: str = "cpu", available: int
) -> int:
    """The largest micro-batch whose estimate fits into 90 % of `available` bytes; 1 where none does."""
    share = images_per_process(recipe, world_size)
    room = SAFE_SHARE * available
    if rough_total(recipe) < room / 2:
        return share
    for count in micro_batches(share):
        estimate = estimate_memory(
            recipe, precision=precision, world_size=world_size, micro_batch=count, device_type=device_type
        )
        if estimate.total <= room:
            return count
    return 1


def choose_micro_batch(recipe: Recipe, device: torch.device, precision: str, world: World) -> int:
    """`train.micro_batch=auto`: the largest that fits on every process's device; all processes must call it together.

    Where the memory is not known, the whole share. On CUDA `try_micro_batch` can put the choice to the test.
    """
    available = _own_memory(device, world)
    count = images_per_process(recipe, world.size)
    if available is not None:
        count = largest_micro_batch(
            recipe, precision=precision, world_size=world.size, device_type=device.type, available=available
        )
    return int(min(world.gather_objects(count)))


def _own_memory(device: torch.device, world: World) -> int | None:
    """What is available to this process, if its kin on the same CPU take as much."""
    available = available_memory(device)
    if available is not None and device.type == "cpu" and world.size > 1:
        available //= int(os.environ.get("LOCAL_WORLD_SIZE", world.size))
    return available


def try_micro_batch(step: TrainingStep) -> int:
    """Halve `step.micro_batch` until a forward and a backward pass of it fits on its GPU; weights stay as they are.

    Returns:
        The micro-batch, which is set in `step` too. Several processes agree on the smallest; each must call this.

    Raises:
        ConfigError: not even a single image fits.
    """
    device = step.device
    while True:
        fits = True
        with keep_random_state():
            try:
                batch, draws = synthetic_batch(step, step.micro_batch)
                step.backward(batch, draws)
            except torch.OutOfMemoryError:
                fits = False
        step.optimizer.zero_grad()
        if device.type == "cuda":
            torch.cuda.empty_cache()
        if all(step.world.gather_objects(fits)):
            return int(step.micro_batch)
        if step.micro_batch == 1:
            raise ConfigError(
                "not even one image at a time fits into the GPU's memory; set train.recompute=true, start more "
                "processes with train.parallel=fsdp, or choose a smaller model"
            )
        step.micro_batch = -(-step.micro_batch // 2)


def fits_warning(
    recipe: Recipe, device: torch.device, precision: str, world: World, micro_batch: int | None
) -> str | None:
    """One line when a run is not likely to fit into memory: what it needs, what there is, and which option helps.

    None when it fits, or when the available memory is not known. It costs nothing for runs that are far from the limit.

    Args:
        recipe: the run.
        device, precision: of this process.
        world: the processes that share each batch.
        micro_batch: images of one pass; None for the whole share.
    """
    available = _own_memory(device, world)
    if available is None or rough_total(recipe) < SAFE_SHARE * available / 2:
        return None
    return explain_fit(recipe, precision, device.type, world.size, micro_batch, available)


def explain_fit(
    recipe: Recipe, precision: str, device_type: str, world_size: int, micro_batch: int | None, available: int
) -> str | None:
    """The text of `fits_warning` for so many available bytes."""

    def needs(changed: Recipe = recipe, **options: Any) -> int:
        values = {"precision": precision, "world_size": world_size, "micro_batch": micro_batch, **options}
        return estimate_memory(changed, device_type=device_type, **values).total

    def with_train(**values: Any) -> Recipe:
        return recipe.model_copy(update={"train": recipe.train.model_copy(update=values)})

    needed, room = needs(), SAFE_SHARE * available
    if needed <= room:
        return None
    remedies = []
    smaller = largest_micro_batch(
        recipe, precision=precision, world_size=world_size, device_type=device_type, available=available
    )
    if smaller < (micro_batch or recipe.train.batch_size // world_size):
        remedies.append((f"train.micro_batch={smaller}", needs(micro_batch=smaller)))
    if not recipe.train.recompute:
        remedies.append(("train.recompute=true", needs(with_train(recompute=True))))
    if precision == "float32" and device_type == "cuda":
        remedies.append(("train.precision=bf16", needs(precision="bf16")))
    helping = [(option, size) for option, size in remedies if size <= room]
    if not helping:
        sharded = with_train(parallel="fsdp", recompute=True)
        for processes in (2, 4, 8, 16, 32, 64):
            if processes <= world_size and recipe.train.parallel == "fsdp":
                continue
            if recipe.train.batch_size % processes:
                break
            size = needs(sharded, world_size=processes, micro_batch=1)
            if size <= room:
                helping = [
                    (f"train.parallel=fsdp with {processes} processes, train.recompute=true, train.micro_batch=1", size)
                ]
                break
    if helping:
        cure = " or ".join(f"{option} (about {readable(size)})" for option, size in helping)
    else:
        least = needs(with_train(recompute=True), micro_batch=1)
        cure = f"a smaller model (one image at a time with train.recompute=true still takes {readable(least)})"
    return (
        f"this run needs about {readable(needed)} of memory and {readable(available)} are available; "
        f"it may fail or swap. What helps: {cure}"
    )


def rough_total(recipe: Recipe) -> float:
    """A quick upper bound of the bytes of a run, for telling at no cost that it is far from any limit.

    Four copies of the weights and their gradients, and for each token and block more than any precision keeps. Under a
    published perceptual network, or a frozen encoder of any size, this bound says nothing.
    """
    if isinstance(recipe, RepresentationRecipe | SphereFlowRecipe):
        return math.inf
    if not isinstance(recipe, AutoencoderRecipe):
        return 4 * _rough_numbers(recipe)
    config = recipe.model
    if recipe.loss.needs_perceptual and recipe.perceptual in ("auto", "published"):
        return math.inf
    weights = kept = 0.0
    tokens = config.tokens + config.in_context_tokens
    for size, calls in ((config.encoder_size, 2), (config.decoder_size, 2)):
        weights += size.depth * 20 * size.width**2
        kept += calls * (size.depth + 4) * tokens * size.width * _ROUGH_WIDTHS
    mixers = (config.encoder_mixer_depth + config.decoder_mixer_depth) * (tokens**2 * 2 + tokens * config.channels * 8)
    pixels = 64 * config.image_channels * config.image_size**2 * 8
    kept += 8 * mixers + pixels
    return 4 * (6 * weights + recipe.train.batch_size * kept)


def _rough_numbers(recipe: Recipe) -> float:
    """The same in numbers for a denoiser, whose two calls see every token of a latent."""
    config = recipe.model
    weights = kept = 0.0
    for size in recipe.model.transformers:
        weights += size.depth * 20 * size.width**2
        kept += 3 * (size.depth + 4) * config.tokens * (size.width + config.channels) * _ROUGH_WIDTHS
    return 6 * weights + recipe.train.batch_size * kept


def readable(size: float) -> str:
    """Bytes for people: `512 MiB`, `7.3 GiB`."""
    if abs(size) < 1000 << 20:
        return f"{size / 2**20:.3g} MiB"
    gib = size / 2**30
    return f"{gib:.1f} GiB" if gib < 100 else f"{gib:.0f} GiB"
