"""One optimiser step: the same result on one process or many, in one piece or in micro-batches, up to rounding.

Nothing here waits for the device: what a step measures stays there until somebody reads it.
"""

from __future__ import annotations

import contextlib
import inspect
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils._triton import has_triton

from spheregen.data import Batch
from spheregen.devices import autocast
from spheregen.distributed import World, shard, whole
from spheregen.losses.terms import LossTerms
from spheregen.nn.block import blocks_of, compile_blocks
from spheregen.sampling.seeds import derived_seed
from spheregen.training.ema import EMA
from spheregen.training.optimizer import Optimizers, tags_by_name
from spheregen.training.recipe import Recipe
from spheregen.training.systems import Draws, System

# The buffers are fixed tables, and running statistics of each process's own: nothing to exchange in each step. torch
# 2.13 renamed the option.
_DDP_OPTIONS = inspect.signature(DistributedDataParallel.__init__).parameters
_NO_BUFFERS: dict[str, Any] = {
    "forward_sync_buffers" if "forward_sync_buffers" in _DDP_OPTIONS else "broadcast_buffers": False
}
COMPILE_FROM_STEPS = 200  # shorter runs do not win back the minute that compiling takes


@dataclass(frozen=True)
class StepResult:
    """What a step measured, on the device."""

    values: Mapping[str, Tensor]
    """`loss`, its terms and `grad_norm`: means over the global batch, the same on every process."""
    observed: Mapping[str, Sequence[Tensor]]
    """What the loss observed in this process, a tensor for each micro-batch; see `LossTerms`."""


class TrainingStep:
    """A recipe's model, its average and its optimiser on this device, and what one step does to them.

    Args:
        system: what is trained; its model is moved to the device, and sharded under `train.parallel=fsdp`.
        recipe: how it is trained.
        device, precision: see `devices`.
        world: the processes that share each batch.
        micro_batch: images of one pass in this process; None for all of its share.
        total: steps of the run, which decide whether compiling pays, and what share of it is done.
    """

    def __init__(
        self,
        system: System,
        recipe: Recipe,
        *,
        device: torch.device,
        precision: str,
        world: World | None = None,
        micro_batch: int | None = None,
        total: int = 0,
    ) -> None:
        self.system, self.recipe, self.device, self.precision = system, recipe, device, precision
        self.world = world or World()
        self.total = total
        self.rows = self.world.share(recipe.train.batch_size)
        self.micro_batch = min(micro_batch or self.rows.stop - self.rows.start, self.rows.stop - self.rows.start)
        self.sharded = recipe.train.parallel == "fsdp" and self.world.size > 1
        self.compiled = compiles(recipe, device, total)
        system.to(device)
        self.model = system.model
        self.average = EMA(self.model, recipe.train.ema)
        tags = tags_by_name(self.model)
        for block in blocks_of(self.model):
            block.recompute = recipe.train.recompute
        if self.compiled:
            # nobody asked for it under `auto`: a block that does not compile runs as it is
            torch._dynamo.config.suppress_errors = recipe.train.compile == "auto"
            compile_blocks(self.model)
        self._loss: nn.Module = _Loss(system)
        if self.sharded:
            shard([*system.shards(self.model), self._loss], device)
            shard(system.shards(self.average.model), device)
        self.model.to(device)
        self.average.model.to(device)
        if self.world.size > 1 and not self.sharded:
            # of kernels with one channel, whose strides are a matter of taste; nothing is slower for it
            warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
            resting = any(learner.begin > 0 or learner.end < 1 for learner in recipe.learners)
            self._loss = DistributedDataParallel(
                self._loss, gradient_as_bucket_view=True, find_unused_parameters=resting, **_NO_BUFFERS
            )
        self.optimizer = Optimizers(self.model, tags, recipe.learners)
        self.model.train()

    def draw(self, step: int) -> Draws:
        """The random numbers of this process's rows in a step, on the CPU."""
        train = self.recipe.train
        generator = torch.Generator().manual_seed(step_seed(train.seed, step, "noise"))
        progress = step / self.total if self.total else 0.0
        return self.system.draw(train.batch_size, generator, self.rows, progress=progress)

    def __call__(self, batch: Batch, draws: Draws, lr: float | Mapping[str, float]) -> StepResult:
        """One step on this process's rows; every process must take it together.

        Args:
            batch: images and labels, on the device or not.
            draws: of `draw(batch.step)`, on the device or not.
            lr: the learning rate of all learners, or of each one that learns in this step.
        """
        torch.manual_seed(step_seed(self.recipe.train.seed, batch.step, "network"))
        result = self.backward(batch, draws)
        rates = dict.fromkeys(self.optimizer.learners, lr) if isinstance(lr, float) else lr
        norm = self.optimizer.step(rates)
        self.average.update(self.model)
        return StepResult(values={**result.values, "grad_norm": whole(norm)}, observed=result.observed)

    def backward(self, batch: Batch, draws: Draws) -> StepResult:
        """Gradients of the global batch, by passes of `micro_batch` images."""
        count = batch.inputs.shape[0]
        names: list[str] = []
        sums: Tensor | None = None
        observed: list[Mapping[str, Tensor]] = []
        for start in range(0, count, self.micro_batch):
            part = slice(start, min(start + self.micro_batch, count))
            inputs = batch.inputs[part].to(self.device, non_blocking=True)
            labels = None if batch.labels is None else batch.labels[part].to(self.device, non_blocking=True)
            share = (part.stop - part.start) / count
            with self._talking(part.stop == count):
                with autocast(self.device, self.precision):
                    loss: LossTerms = self._loss(inputs, labels, draws[part])
                (loss.total * share).backward()
            names = ["loss", *loss.terms]
            values = torch.stack([loss.total.detach(), *loss.terms.values()]) * share
            sums = values if sums is None else sums + values
            observed.append(loss.observed)
        assert sums is not None
        means = dict(zip(names, self.world.mean(sums).unbind(), strict=True))
        return StepResult(values=means, observed={name: [part[name] for part in observed] for name in observed[0]})

    def settle(self, batch: Batch, draws: Draws) -> None:
        """Bring the exchange of gradients into its final order, so that a continued run sums as an uninterrupted one.

        DDP orders its buckets by the first backward pass; with three processes or more the order decides rounding.
        """
        if self.world.size > 2 and not self.sharded:
            running = {name: buffer.clone() for name, buffer in self.model.named_buffers()}
            for _ in range(2):
                self.backward(batch, draws)
                self.optimizer.zero_grad()
            for name, buffer in self.model.named_buffers():
                buffer.copy_(running[name])

    def calibrate(self, batches: Iterable[Batch]) -> None:
        """Measure the statistics that the averaged model needs of the data; every process must call it together.

        Args:
            batches: this process's rows of each; the statistics are of all processes' rows together.
        """
        parts = micro_batches(batches, self.micro_batch, self.device)
        self.system.calibrate(self.average.model, parts, self.world.gather_objects)

    def _talking(self, is_last: bool) -> contextlib.AbstractContextManager[object]:
        """Exchange gradients in the last micro-batch only."""
        if isinstance(self._loss, DistributedDataParallel) and not is_last:
            return self._loss.no_sync()
        if self.sharded:
            self._loss.set_requires_gradient_sync(is_last)  # type: ignore[operator]
        return contextlib.nullcontext()


def compiles(recipe: Recipe, device: torch.device, total: int) -> bool:
    """Whether a run of `total` steps compiles its blocks."""
    if recipe.train.compile != "auto":
        return recipe.train.compile
    return device.type == "cuda" and total >= COMPILE_FROM_STEPS and has_triton()


def micro_batches(batches: Iterable[Batch], size: int, device: torch.device) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Inputs and labels of batches on the device, at most `size` samples at a time."""
    for batch in batches:
        for start in range(0, batch.inputs.shape[0], size):
            part = slice(start, start + size)
            labels = None if batch.labels is None else batch.labels[part].to(device)
            yield batch.inputs[part].to(device), labels


def step_seed(seed: int, step: int, stream: str) -> int:
    """The seed of one stream of randomness in one step: 63 well-mixed bits."""
    return derived_seed(seed, step, stream)


class _Loss(nn.Module):
    """A system's loss as the module that DDP and FSDP want to wrap; frozen networks stay outside."""

    def __init__(self, system: System) -> None:
        super().__init__()
        self.model = system.model
        self._loss = system.loss

    def forward(self, inputs: Tensor, labels: Tensor | None, draws: Draws) -> LossTerms:
        return self._loss(inputs, labels, draws)
