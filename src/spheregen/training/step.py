"""One optimiser step: the same result on one process or many, in one piece or in micro-batches, up to rounding.

Nothing here waits for the device: what a step measures stays there until somebody reads it.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from spheregen.data import Batch
from spheregen.devices import autocast
from spheregen.distributed import World, full_tensor, shard
from spheregen.errors import TrainingError
from spheregen.family.objective import Objective, Part
from spheregen.family.recipe import Recipe
from spheregen.family.terms import LossTerms
from spheregen.nn.block import blocks_of, compile_blocks
from spheregen.noise import BatchNoise
from spheregen.sampling.seeds import derived_seed
from spheregen.training.ema import EMA
from spheregen.training.optimizer import Optimizer, tags_by_name

# The buffers are fixed tables, and running statistics of each process's own: nothing to exchange in each step. torch
# 2.13 renamed the option.
_DDP_OPTIONS = inspect.signature(DistributedDataParallel.__init__).parameters
_NO_BUFFERS: dict[str, Any] = {
    "forward_sync_buffers" if "forward_sync_buffers" in _DDP_OPTIONS else "broadcast_buffers": False
}
T = TypeVar("T")


@dataclass(frozen=True)
class StepResult:
    """What a step measured, on the device."""

    values: Mapping[str, Tensor]
    """`loss`, its terms and `grad_norm`: means over the global batch, the same on every process."""
    observed: Mapping[str, Sequence[Tensor]]
    """What the loss observed in this process, a tensor for each micro-batch; see `LossTerms`."""


class TrainingStep:
    """A recipe's model, its EMA and its optimiser on this device, and what one step does to them.

    Args:
        objective: what is trained; its networks are moved to the device, and its model is sharded under
            `train.parallel=fsdp`.
        recipe: how it is trained.
        device, precision: see `devices`.
        world: the processes that share each batch.
        micro_batch: images of one pass in this process; None for all of its share.
        total: steps of the run, of which a step is a share.
        compiled: compile the transformer blocks.
        tell: told in a line if memory asks for smaller micro-batches.
    """

    def __init__(
        self,
        objective: Objective,
        recipe: Recipe,
        *,
        device: torch.device,
        precision: str,
        world: World | None = None,
        micro_batch: int | None = None,
        total: int = 0,
        compiled: bool = False,
        tell: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.objective, self.recipe, self.device, self.precision = objective, recipe, device, precision
        self.world = objective.world = world or World()
        self.total, self._tell = total, tell
        self.rows = self.world.share(recipe.train.batch_size)
        self.micro_batch = min(micro_batch or self.rows.stop - self.rows.start, self.rows.stop - self.rows.start)
        self.sharded = recipe.train.parallel == "fsdp" and self.world.size > 1
        self.compiled = compiled
        for network in objective.frozen:
            network.to(device)
        self.model = objective.model
        self.ema = EMA(self.model, recipe.train.ema)
        tags = tags_by_name(self.model)
        for block in blocks_of(self.model):
            block.recompute = recipe.train.recompute
        if self.compiled:
            # nobody asked for it under `auto`: a block that does not compile runs as it is
            torch._dynamo.config.suppress_errors = recipe.train.compile == "auto"
            compile_blocks(self.model)
        self._loss: nn.Module = _Loss(objective)
        if self.sharded:
            shard([*sharding_units(self.model), self._loss], device)
            shard(sharding_units(self.ema.model), device)
        self.model.to(device)
        self.ema.model.to(device)
        if objective.beside is not None:
            objective.beside.to(device)
        if self.world.size > 1 and not self.sharded:
            # of kernels with one channel, whose strides are a matter of taste; nothing is slower for it
            warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
            resting = any(group.begin > 0 or group.end < 1 for group in recipe.parameter_groups)
            self._loss = DistributedDataParallel(
                self._loss, gradient_as_bucket_view=True, find_unused_parameters=resting, **_NO_BUFFERS
            )
        self.optimizer = Optimizer(self.model, tags, recipe.parameter_groups)
        self.model.train()

    def draw(self, step: int) -> BatchNoise:
        """Draw the random numbers of this process's rows in a step, on the CPU."""
        train = self.recipe.train
        generator = torch.Generator().manual_seed(derived_seed(train.seed, step, "noise"))
        progress = step / self.total if self.total else 0.0
        noise: BatchNoise = self.objective.draw(train.batch_size, generator, self.rows, progress=progress)
        return noise

    def __call__(self, batch: Batch, noise: BatchNoise, lr: float | Mapping[str, float]) -> StepResult:
        """One step on this process's rows; every process must take it together.

        Args:
            batch: images and labels, on the device or not.
            noise: of `draw(batch.step)`, on the device or not.
            lr: the learning rate of all parameter groups, or of each one that learns in this step.
        """

        def attempt() -> StepResult:
            torch.manual_seed(derived_seed(self.recipe.train.seed, batch.step, "network"))
            return self.backward(batch, noise)

        if self.world.size == 1:
            result = self._back_off(attempt)
        else:
            try:
                result = attempt()
            except RuntimeError as error:  # the others wait for this process's gradients: nobody can go on
                if not _is_out_of_memory(error):
                    raise
                raise TrainingError(
                    f"memory does not suffice for micro-batches of {self.micro_batch}; the same command with --set "
                    f"train.micro_batch={-(-self.micro_batch // 2)} continues from the last checkpoint"
                ) from error
        norm = self.optimizer.step(dict.fromkeys(self.optimizer.groups, lr) if isinstance(lr, float) else lr)
        self.ema.update(self.model)
        parts = self._parts(batch, noise)
        observed = [{name: each[i] for name, each in result.observed.items()} for i in range(len(parts))]
        with autocast(self.device, self.precision):
            beside = self.objective.end_step(parts, observed)
        values = {**result.values, **beside, "grad_norm": full_tensor(norm)}
        return StepResult(values=values, observed=result.observed)

    def backward(self, batch: Batch, noise: BatchNoise) -> StepResult:
        """Gradients of the global batch, by passes of `micro_batch` images."""
        count = batch.inputs.shape[0]
        names: list[str] = []
        sums: Tensor | None = None
        observed: list[Mapping[str, Tensor]] = []
        parts = self._parts(batch, noise)
        with autocast(self.device, self.precision):
            self.objective.begin_step(parts)
        for number, part in enumerate(parts):
            inputs, labels, drawn = part()
            share = len(inputs) / count
            with self._no_sync(number + 1 < len(parts)):
                with autocast(self.device, self.precision):
                    loss: LossTerms = self._loss(inputs, labels, drawn)
                (loss.total * share).backward()
            names = ["loss", *loss.terms]
            values = torch.stack([loss.total.detach(), *loss.terms.values()]) * share
            sums = values if sums is None else sums + values
            observed.append(loss.observed)
        assert sums is not None
        means = dict(zip(names, self.world.mean(sums).unbind(), strict=True))
        return StepResult(values=means, observed={name: [part[name] for part in observed] for name in observed[0]})

    def _parts(self, batch: Batch, noise: BatchNoise) -> list[Callable[[], Part]]:
        """Return what brings each micro-batch to the device."""

        def bring(part: slice) -> Part:
            labels = None if batch.labels is None else batch.labels[part].to(self.device, non_blocking=True)
            return batch.inputs[part].to(self.device, non_blocking=True), labels, noise[part]

        count = batch.inputs.shape[0]
        starts = range(0, count, self.micro_batch)
        return [functools.partial(bring, slice(start, min(start + self.micro_batch, count))) for start in starts]

    def fit(self, batch: Batch, noise: BatchNoise) -> None:
        """Find by trial the micro-batch that fits; weights and random state stay as they are.

        Each process computes one pass by itself, beside room for the optimiser's moments, and all take the smallest
        micro-batch that any of them needs. All processes must call this; not for sharded models.
        """

        def attempt() -> None:
            part = slice(0, self.micro_batch)
            labels = None if batch.labels is None else batch.labels[part].to(self.device)
            room = torch.empty(2 * sum(p.numel() for p in self.model.parameters()), device=self.device)
            with autocast(self.device, self.precision):
                self.objective.begin_step(self._parts(batch, noise)[:1])
                loss = self.objective.loss(batch.inputs[part].to(self.device), labels, noise[part])
            loss.total.backward()
            del room

        self.objective.world = World()  # each process by itself
        with self._buffers_kept(), torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            self._back_off(attempt, agree=lambda failed: any(self.world.gather_objects(failed)))
        self.objective.world = self.world
        self.optimizer.zero_grad()

    def _back_off(self, attempt: Callable[[], T], agree: Callable[[bool], bool] = bool) -> T:
        """Run `attempt`; where memory does not suffice, halve the micro-batch and run it again.

        Args:
            agree: turns "it failed here" into "it failed somewhere", for processes that go on alike; then `attempt`
                may not wait for the others.
        """
        while True:
            result: T | None = None
            failed = False
            try:
                result = attempt()
            except RuntimeError as error:
                if not _is_out_of_memory(error):
                    raise
                failed = True
            if not agree(failed):
                return result  # type: ignore[return-value]
            del result
            self.optimizer.zero_grad()
            if torch.cuda.is_initialized():
                torch.cuda.empty_cache()
            if self.micro_batch == 1:
                raise TrainingError(
                    "not even one image at a time fits into memory; set train.recompute=true, start more processes "
                    "with train.parallel=fsdp, or choose a smaller model"
                )
            self.micro_batch = -(-self.micro_batch // 2)
            self._tell(f"memory does not suffice; going on with micro-batches of {self.micro_batch}: the same result")

    def settle(self, batch: Batch, noise: BatchNoise) -> None:
        """Bring the exchange of gradients into its final order, so that a continued run sums as an uninterrupted one.

        DDP orders its buckets by the first backward pass; with three processes or more the order decides rounding.
        """
        if self.world.size > 2 and not self.sharded:
            with self._buffers_kept():
                for _ in range(2):
                    self.backward(batch, noise)
                    self.optimizer.zero_grad()

    def calibrate(self, batches: Iterable[Batch]) -> None:
        """Measure the statistics that the EMA model needs of the data; every process must call it together.

        Args:
            batches: this process's rows of each; the statistics are of all processes' rows together.
        """
        parts = micro_batches(batches, self.micro_batch, self.device)
        self.objective.calibrate(self.ema.model, parts, self.world.gather_objects)

    @contextlib.contextmanager
    def _buffers_kept(self) -> Iterator[None]:
        """Put back running statistics at the end."""
        running = {name: buffer.clone() for name, buffer in self.model.named_buffers()}
        yield
        for name, buffer in self.model.named_buffers():
            buffer.copy_(running[name])

    def _no_sync(self, more: bool) -> contextlib.AbstractContextManager[object]:
        """Exchange gradients in the last micro-batch alone."""
        if isinstance(self._loss, DistributedDataParallel) and more:
            return self._loss.no_sync()
        if self.sharded:
            self._loss.set_requires_gradient_sync(not more)  # type: ignore[operator]
        return contextlib.nullcontext()


def sharding_units(model: nn.Module) -> list[nn.Module]:
    """Return the modules that are gathered as one when a model is sharded, from the inside out.

    They are the networks that say so by their `gathered_methods`; of a model that has none, its children.
    """
    found = [module for module in model.modules() if hasattr(module, "gathered_methods")]
    return found[::-1] or list(model.children())


def _is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)


def micro_batches(batches: Iterable[Batch], size: int, device: torch.device) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Yield inputs and labels of batches on the device, at most `size` samples at a time."""
    for batch in batches:
        for start in range(0, batch.inputs.shape[0], size):
            part = slice(start, start + size)
            labels = None if batch.labels is None else batch.labels[part].to(device)
            yield batch.inputs[part].to(device), labels


class _Loss(nn.Module):
    """An objective's loss as the module that DDP and FSDP want to wrap; frozen networks stay outside."""

    def __init__(self, objective: Objective) -> None:
        super().__init__()
        self.model = objective.model
        self._loss = objective.loss

    def forward(self, inputs: Tensor, labels: Tensor | None, noise: BatchNoise) -> LossTerms:
        return self._loss(inputs, labels, noise)
