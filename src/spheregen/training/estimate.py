"""What a training run needs before it starts: memory, and after a short calibration, time.

Memory is not computed from formulas that drift away from the code. The real model and the real loss run forward and
backward on torch's meta device, which knows shapes but holds no numbers, and every tensor is counted while it lives.
Depth and micro-batch enter affinely, so that a few shallow traces tell about deep models. What the meta device does not
know is put in its place by `_AsOnDevice`: lower precision under autocast, and attention and norms that are fused.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import math
import os
import statistics
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from spheregen.data import Batch
from spheregen.errors import ConfigError
from spheregen.evaluation.peak import PeakMeter, synchronize
from spheregen.losses.autoencoder import AutoencoderDraws
from spheregen.losses.perceptual import (
    BuiltinPerceptual,
    PerceptualLoss,
    PublishedPerceptual,
    available_provider,
)
from spheregen.models.autoencoder import AutoencoderConfig, SphereAutoencoder
from spheregen.models.sizes import TransformerSize
from spheregen.nn.backbones.convnext import ConvNeXt
from spheregen.nn.backbones.feature_net import FeatureNet
from spheregen.nn.backbones.vgg16 import STAGE_WIDTHS, Vgg16Features
from spheregen.nn.block import Block, blocks_of
from spheregen.noise import Radii
from spheregen.training.distributed import World
from spheregen.training.optimizer import parameter_groups, tags_by_name
from spheregen.training.recipe import Recipe
from spheregen.training.step import TrainingStep
from spheregen.training.system import AutoencoderSystem

SAFE_SHARE = 0.9
"""The part of the available memory that an estimate may fill."""
CPU_RESERVE = 128 << 20
"""What the C library was measured to keep of small blocks that were freed, 60 to 210 MiB, if a pass takes as much."""
_ROUGH_WIDTHS = 80  # floats kept for each token and block, in widths: well above what is measured (25 to 40)


# memory


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
    perceptual: int
    """The frozen perceptual networks."""
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
        held = self.weights + self.gradients + self.moments + self.average + self.perceptual + self.gathered + self.data
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
    share = _share(recipe, world_size)
    asked = micro_batch if micro_batch is not None else recipe.train.micro_batch
    count = min(asked, share) if isinstance(asked, int) else share
    kept, peak, slope = _activations(recipe, precision, device_type)(count, share)
    return _assemble(recipe, world_size, count, share, kept, peak, slope, device_type, images)


def _share(recipe: Recipe, world_size: int) -> int:
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
        perceptual=sizes.perceptual,
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
    perceptual: int
    gathered: int


@functools.lru_cache(maxsize=32)
def _weights(recipe: Recipe) -> _Weights:
    """Bytes of what is there whatever the batch."""
    with _Meta():
        model = SphereAutoencoder(recipe.model)
        perceptual = _perceptual(recipe)
    groups = parameter_groups(model, tags_by_name(model), recipe.optimizer)
    moments = sum((1 if group["muon"] else 2) * _bytes(group["params"]) for group in groups)
    blocks = [_bytes(block.parameters()) for block in blocks_of(model)]
    learned = _bytes(model.parameters())
    # what is outside of blocks stays gathered while its network works; of blocks there is one, the next, and gradients
    gathered = learned - sum(blocks) + 3 * max(blocks, default=0)
    return _Weights(
        weights=learned,
        stored=learned + _bytes(model.buffers()),
        moments=moments,
        perceptual=_bytes([*perceptual.parameters(), *perceptual.buffers()]) if perceptual is not None else 0,
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
    encoder, decoder = recipe.model.encoder_size, recipe.model.decoder_size
    depths = (encoder.depth, decoder.depth)

    def trace(*shallow: int) -> tuple[int, int]:
        return _trace(_with_depths(recipe, *shallow), precision, device_type, count)

    if max(depths) <= 2:
        return trace(*depths)
    base = trace(1, 1)
    if encoder == decoder:
        both = trace(2, 2)
        return _line(base, [(both, depths[0] - 1)])
    return _line(base, [(trace(2, 1), depths[0] - 1), (trace(1, 2), depths[1] - 1)])


def _line(base: tuple[int, int], more: Sequence[tuple[tuple[int, int], int]]) -> tuple[int, int]:
    kept, peak = (base[i] + sum((other[i] - base[i]) * times for other, times in more) for i in (0, 1))
    return kept, max(kept, peak)


def _with_depths(recipe: Recipe, encoder: int, decoder: int) -> Recipe:
    """The recipe with that many blocks; in-context tokens, if any, are in all but the first."""

    def shallow(size: TransformerSize, depth: int) -> TransformerSize:
        return dataclasses.replace(size, depth=depth, in_context_start=0)

    config = recipe.model
    changed = dataclasses.replace(
        config, encoder=shallow(config.encoder_size, encoder), decoder=shallow(config.decoder_size, decoder)
    )
    return recipe.model_copy(update={"model": changed})


def _trace(recipe: Recipe, precision: str, device_type: str, count: int) -> tuple[int, int]:
    """Bytes kept after the forward pass of `count` images, and at the peak of forward and backward.

    Weights and their gradients are left out: they are there before.
    """
    config = recipe.model
    with _Meta(), torch.enable_grad():
        system = AutoencoderSystem(recipe, _perceptual(recipe))
        system.model.train()
        for parameter in system.model.parameters():
            parameter.grad = torch.empty_like(parameter)
        for block in blocks_of(system.model):
            block.recompute = recipe.train.recompute
        with _Live() as live, _AsOnDevice(precision, device_type) as device:
            images = torch.empty(count, config.image_channels, config.image_size, config.image_size)
            labels = torch.empty(count, dtype=torch.int64) if config.num_classes else None
            draws = AutoencoderDraws(
                radii=Radii(strong=torch.empty(count), weak=torch.empty(count)),
                direction=torch.empty(count, *system.model.latent_shape),
                dropped=torch.empty(4, count, dtype=torch.bool),
            )
            loss = system.loss(images, labels, draws)
            device.forget()
            kept = live.now
            # backward() would suspend the modes, under which blocks that recompute must run again
            torch.autograd.Variable._execution_engine.run_backward(
                (loss.total,), (torch.empty(()),), False, False, (), allow_unreachable=True, accumulate_grad=True
            )
            return kept, live.peak


def estimate_sampling_memory(
    config: AutoencoderConfig, batch: int, *, dtype: torch.dtype = torch.float32, device_type: str = "cpu"
) -> dict[str, int]:
    """Bytes of generating `batch` images at a time without guidance: `weights`, `activations` and their `total`.

    Args:
        config: the architecture.
        batch: images of one pass.
        dtype: of the weights and of all arithmetic.
        device_type: `cpu`, `cuda` or `mps`.
    """
    from spheregen.sampling.loop import sample

    # a block's activations go when it is done, so two blocks tell about any number
    sizes = (
        dataclasses.replace(size, depth=min(size.depth, 2), in_context_start=0)
        for size in (config.encoder_size, config.decoder_size)
    )
    shallow = dataclasses.replace(config, encoder=next(sizes), decoder=next(sizes))
    with _Meta():
        weights = _bytes([*(whole := SphereAutoencoder(config)).parameters(), *whole.buffers()])
        model = SphereAutoencoder(shallow).to(dtype).eval()
        noise = torch.empty(batch, *model.latent_shape, dtype=dtype)
        labels = torch.empty(batch, dtype=torch.int64) if config.num_classes else None
        with _Live() as live, _AsOnDevice("float32", device_type):
            sample(model, noise, labels, steps=2, step_noise=noise)
    weights = weights * dtype.itemsize // 4
    return {"batch": batch, "weights": weights, "activations": live.peak, "total": weights + live.peak}


def random_perceptual(provider: str = "published") -> PerceptualLoss:
    """The networks of a provider with random weights: as large and as fast as the real ones, and no use otherwise.

    Raises:
        ConfigError: no such provider.
    """
    if provider == "builtin":
        return BuiltinPerceptual(FeatureNet())
    if provider != "published":
        raise ConfigError(f"there are no random networks {provider!r}; use published or builtin")
    return PublishedPerceptual(Vgg16Features(), [torch.rand(1, width, 1, 1) for width in STAGE_WIDTHS], ConvNeXt())


def _perceptual(recipe: Recipe) -> PerceptualLoss | None:
    if not recipe.loss.needs_perceptual or recipe.perceptual == "none":
        return None
    return random_perceptual(available_provider() if recipe.perceptual == "auto" else recipe.perceptual)


class _Live(TorchDispatchMode):
    """Counts the bytes of the tensors that were made under it and still live, each storage once."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = _quick(func, args, kwargs or {})
        if result is None:
            result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, tuple | list) else (result,):
            if isinstance(value, Tensor):
                self._add(value)
        return result

    def _add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return
        size = storage.nbytes()
        self._known.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._remove, key, size)

    def _remove(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


def keep_random_state() -> contextlib.AbstractContextManager[Any]:
    """Put back torch's random states, of the CPU and of the GPUs in use, at the end."""
    return torch.random.fork_rng(range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ())


class _Meta(contextlib.ExitStack):
    """Tensors are made on the meta device, initialising them costs nothing, and no random state changes."""

    def __enter__(self) -> _Meta:
        super().__enter__()
        self.enter_context(keep_random_state())
        self.enter_context(torch.device("meta"))
        self.enter_context(_NoFilling())  # type: ignore[no-untyped-call]
        return self


_aten = torch.ops.aten
_ELEMENTWISE = frozenset(
    {
        *(_aten.mul.Tensor, _aten.add.Tensor, _aten.sub.Tensor, _aten.div.Tensor),
        *(_aten.mul.Scalar, _aten.add.Scalar, _aten.div.Scalar, _aten.pow.Tensor_Scalar),
    }
)
_REDUCTIONS = frozenset([_aten.sum.dim_IntList, _aten.mean.dim])


def _quick(func: Any, args: Any, kwargs: Any) -> Tensor | None:
    """The commonest operations on the meta device; torch's own rules for them are slow. None for any other."""
    if func in _ELEMENTWISE:
        tensors = [value for value in args if isinstance(value, Tensor)]
        if not all(tensor.is_floating_point() for tensor in tensors):
            return None
        dtype = tensors[0].dtype if len(tensors) == 1 else torch.result_type(*tensors)
        sides = itertools.zip_longest(*(reversed(tensor.shape) for tensor in tensors), fillvalue=1)
        shape = [max(side) for side in sides][::-1]
        full = next((tensor for tensor in tensors if list(tensor.shape) == shape), None)
        if full is not None and not full.is_contiguous():
            return torch.empty_like(full, dtype=dtype)  # keeps the order of the axes
        return tensors[0].new_empty(shape, dtype=dtype)
    if func in _REDUCTIONS and len(args) > 1 and args[1] and not kwargs:
        x, dims, keeps = args[0], {dim % args[0].ndim for dim in args[1]}, len(args) > 2 and args[2]
        kept = [1 if dim in dims else side for dim, side in enumerate(x.shape) if keeps or dim not in dims]
        return x.new_empty(kept)  # type: ignore[no-any-return]
    if func is _aten.addmm.default and not kwargs:
        return args[1].new_empty(args[1].shape[0], args[2].shape[1])  # type: ignore[no-any-return]
    return None


class _NoFilling(TorchDispatchMode):
    """Skips what only writes random numbers, for which torch would import much on the meta device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.ops.aten.normal_.default, torch.ops.aten.uniform_.default):
            return args[0]
        return func(*args, **(kwargs or {}))


class _AsOnDevice(TorchFunctionMode):
    """Makes the meta device keep what a real one keeps: autocast's copies, and the inputs of fused operations."""

    _PRODUCTS = (
        functional.linear,
        torch.conv2d,
        torch.conv_transpose2d,
        torch.matmul,
        Tensor.matmul,
        Tensor.__matmul__,
    )

    def __init__(self, precision: str, device_type: str) -> None:
        super().__init__()
        self._low = precision == "bf16"
        self._fused_norms = device_type == "cuda"
        self._copies: dict[int, Tensor] = {}

    def forget(self) -> None:
        """Drop the low-precision copies of weights, as autocast does when it ends."""
        self._copies.clear()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is functional.scaled_dot_product_attention:
            q, k, v = (self._lower(tensor) for tensor in args[:3])
            return _FusedAttention.apply(q, k, v)  # type: ignore[no-untyped-call]
        if self._fused_norms and func is functional.rms_norm:
            weight = args[2] if len(args) > 2 else kwargs.get("weight")
            return _FusedNorm.apply(args[0], weight)  # type: ignore[no-untyped-call]
        if self._low and func in self._PRODUCTS:
            args = tuple(self._lower(value) for value in args)
            kwargs = {name: self._lower(value) for name, value in kwargs.items()}
        return func(*args, **kwargs)

    def _lower(self, value: Any) -> Any:
        if not self._low or not isinstance(value, Tensor) or value.dtype != torch.float32:
            return value
        if not (value.is_leaf and value.requires_grad):
            return value.to(torch.bfloat16)
        if id(value) not in self._copies:
            self._copies[id(value)] = value.to(torch.bfloat16)
        return self._copies[id(value)]


class _FusedAttention(torch.autograd.Function):
    """The memory of flash attention: it keeps its inputs, its output and a number for each query."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = q.transpose(1, 2).new_empty(q.transpose(1, 2).shape).transpose(1, 2)
        ctx.save_for_backward(q, k, v, out, q.new_empty(q.shape[:-1], dtype=torch.float32))
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.empty_like(tensor) for tensor in ctx.saved_tensors[:3])


class _FusedNorm(torch.autograd.Function):
    """The memory of a fused norm: it keeps its input and a number for each row."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight, x.new_empty(x.shape[:-1]))
        return torch.empty_like(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, _ = ctx.saved_tensors
        return torch.empty_like(x), None if weight is None else torch.empty_like(weight)


# what there is, and what fits


def available_memory(device: torch.device) -> int | None:
    """Bytes that a process can still take on a device; None where the system does not tell.

    CUDA: what is free on the GPU, and what this process keeps in reserve. CPU: what Linux calls available, within the
    limit of the container, if any.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if device.type != "cpu":
        return None
    limits = [_meminfo(), *_container_limits()]
    known = [limit for limit in limits if limit is not None]
    return max(0, min(known)) if known else None


def _meminfo(path: Path = Path("/proc/meminfo")) -> int | None:
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in path.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) << 10
    return None


def _container_limits(root: Path = Path("/sys/fs/cgroup")) -> Iterator[int]:
    """What this process's control group leaves; caches of files that it would give up are not counted as used."""
    places = [(root, "memory.max", "memory.current"), *_own_group(root)]
    places.append((root / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"))
    for folder, limit, usage in places:
        with contextlib.suppress(OSError, ValueError):  # no such file, or "max"
            allowed = int((folder / limit).read_text())
            if allowed >= 1 << 60:
                continue
            used = int((folder / usage).read_text())
            cached = 0
            with contextlib.suppress(OSError, ValueError):
                statistics_of = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
                cached = int(statistics_of.get("inactive_file", statistics_of.get("total_inactive_file", 0)))
            yield allowed - used + cached


def _own_group(root: Path) -> Iterator[tuple[Path, str, str]]:
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            number, _, group = line.split(":", 2)
            if number == "0" and group.strip("/"):
                yield root / group.strip("/"), "memory.max", "memory.current"


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
    share = _share(recipe, world_size)
    room = SAFE_SHARE * available
    if _rough_total(recipe) < room / 2:
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
    count = _share(recipe, world.size)
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
    if available is None or _rough_total(recipe) < SAFE_SHARE * available / 2:
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


def _rough_total(recipe: Recipe) -> float:
    """A quick upper bound of the bytes of a run, for telling at no cost that it is far from any limit.

    Four copies of the weights and their gradients, and for each token and block more than any precision keeps. Under a
    published perceptual network this bound says nothing.
    """
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


def readable(size: float) -> str:
    """Bytes for people: `512 MiB`, `7.3 GiB`."""
    if abs(size) < 1000 << 20:
        return f"{size / 2**20:.3g} MiB"
    gib = size / 2**30
    return f"{gib:.1f} GiB" if gib < 100 else f"{gib:.0f} GiB"


# time


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
        share = _share(recipe, world_size)
        left = budget - (time.perf_counter() - begun)
        guess = flops / (0.3 * peak)  # seconds an image
        available = available_memory(device)
        alone = recipe.model_copy(update={"train": recipe.train.model_copy(update={"parallel": "ddp"})})

        def fits(count: int) -> bool:
            needed = estimate_memory(alone, precision=precision, micro_batch=count, device_type=device.type).total
            return available is None or needed <= SAFE_SHARE * available

        count = max(1, min(share, int(left / 5 / guess)))
        if _rough_total(recipe) > (available or math.inf) / 2:
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
    with _Meta():
        return AutoencoderSystem(recipe, _perceptual(recipe)).flops_per_image()


def synthetic_batch(step: TrainingStep, count: int) -> tuple[Batch, AutoencoderDraws]:
    """`count` random pictures of 256 levels in [-1, 1] with labels, and their draws, on the device of `step`."""
    config = step.recipe.model
    generator = torch.Generator().manual_seed(0)
    shape = (count, config.image_channels, config.image_size, config.image_size)
    images = torch.randint(256, shape, generator=generator, dtype=torch.uint8).float() / 127.5 - 1
    labels = torch.randint(config.num_classes, (count,), generator=generator) if config.num_classes else None
    draws = step.system.draw(count, generator).each(lambda tensor: tensor.to(step.device))
    batch = Batch(
        images=images.to(step.device),
        labels=None if labels is None else labels.to(step.device),
        indices=torch.arange(count),
        step=0,
    )
    return batch, draws


def _time_model(
    recipe: Recipe, device: torch.device, precision: str, count: int, budget: float, meter: PeakMeter
) -> tuple[float, float]:
    """Seconds of forward and backward for an image, and of what a step takes beside them."""
    begun = time.perf_counter()
    train = recipe.train.model_copy(update={"micro_batch": count, "compile": False})
    changed = recipe.model_copy(update={"train": train})
    system = AutoencoderSystem(changed, _real_perceptual(recipe))
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


def _real_perceptual(recipe: Recipe) -> PerceptualLoss | None:
    if not recipe.loss.needs_perceptual or recipe.perceptual == "none":
        return None
    return random_perceptual(available_provider() if recipe.perceptual == "auto" else recipe.perceptual)


def _block_rate(
    recipe: Recipe, device: torch.device, precision: str, peak: float, budget: float, meter: PeakMeter
) -> float:
    """Operations per second of a decoder block's forward and backward pass; `peak` says how many images are enough."""
    from spheregen.devices import autocast
    from spheregen.evaluation.cost import count_flops
    from spheregen.nn.positions import AxialRotary

    size, config = recipe.model.decoder_size, recipe.model
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
