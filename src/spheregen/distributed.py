"""Several processes that work as one: their ranks, collectives, shards, and how one that fails ends all.

One process needs no launcher. Several are started by `torchrun`, on one machine or many; every helper here answers in
a single process too, at no cost. Results depend on the global batch, never on the number of processes.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from spheregen.errors import ConfigError, SphereGenError, TrainingError

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

Backend = Literal["auto", "gloo", "nccl"]
Parallel = Literal["auto", "ddp", "fsdp"]

_FAILURE = "spheregen/failure"  # key in the processes' common store
_TIMEOUT = datetime.timedelta(minutes=30)  # how long a process waits for another before both give up
_PATIENCE_SECONDS = 5.0  # how long a process whose peer is gone waits for the peer's reason
_FAREWELL_SECONDS = 0.2


@dataclass(frozen=True)
class World:
    """This process's place among all that work together."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0  # its number on its own machine, which chooses its GPU

    @property
    def is_first(self) -> bool:
        """This process writes files and talks to the user."""
        return self.rank == 0

    def share(self, count: int) -> slice:
        """Return this process's consecutive rows of a global batch of `count`.

        Raises:
            ConfigError: the processes cannot share it equally.
        """
        if count % self.size:
            raise ConfigError(
                f"a batch of {count} images cannot be shared equally by {self.size} processes; set train.batch_size "
                f"to a multiple of {self.size} or start another number of processes"
            )
        each = count // self.size
        return slice(self.rank * each, (self.rank + 1) * each)

    def mean(self, values: Tensor) -> Tensor:
        """Return the mean of a tensor over all processes; every process gets the same bits."""
        return values if self.size == 1 else self._reduced(values, dist.ReduceOp.SUM) / self.size

    def largest(self, values: Tensor) -> Tensor:
        """Return the largest value over all processes, element by element."""
        return values if self.size == 1 else self._reduced(values, dist.ReduceOp.MAX)

    def gather(self, rows: Tensor) -> Tensor:
        """Return the rows (b, ...) of all processes, in their order, as (size * b, ...)."""
        if self.size == 1:
            return rows
        home = rows.device
        if home.type == "cuda" and dist.get_backend() == "gloo":  # which gathers from the CPU alone
            rows = rows.cpu()
        parts = [torch.empty_like(rows) for _ in range(self.size)]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts).to(home)

    def gather_objects(self, value: Any) -> list[Any]:
        """Return every process's value, in their order. Values are pickled, among these processes only."""
        values = [value] * self.size
        if self.size > 1:
            dist.all_gather_object(values, value)
        return values

    def wait_for_all(self) -> None:
        """Go on when every process is here."""
        if self.size > 1:
            dist.barrier()

    def _reduced(self, values: Tensor, operation: Any) -> Tensor:
        result = values.clone()
        dist.all_reduce(result, operation)
        return result


def is_first_process() -> bool:
    """Tell whether this process talks to the user: the only one, or the first that `torchrun` started."""
    return os.environ.get("RANK", "0") == "0"


@contextlib.contextmanager
def joined_world(device: str, backend: Backend = "auto") -> Iterator[World]:
    """Join the processes that `torchrun` started, and leave them at the end; alone where there is no launcher.

    If this process fails, the others learn why: their own error becomes a `TrainingError` that quotes it. A process
    that is killed ends the others too, as soon as they next wait for it.

    Args:
        device: `auto` or a torch device; decides between gloo and nccl where `backend` is `auto`.

    Raises:
        ConfigError: the backend does not exist here.
        TrainingError: another process failed.
    """
    wanted = int(os.environ.get("WORLD_SIZE", "1"))
    if wanted > 1 and not dist.is_available():
        raise ConfigError(f"torchrun started {wanted} processes, but this torch has no distributed package")
    ours = not (dist.is_available() and dist.is_initialized())
    if ours and wanted == 1:
        yield World()
        return
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    if ours:
        on_gpu = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
        _start(choose_backend(backend, on_gpu=on_gpu), on_gpu, local_rank)
    world = World(dist.get_rank(), dist.get_world_size(), local_rank)
    try:
        yield world
    except BaseException as error:
        if isinstance(error, (SphereGenError, KeyboardInterrupt)) or not _is_broken_connection(error):
            _publish_failure(world, error)
            raise
        raise TrainingError(_failure_elsewhere(error)) from error
    finally:
        if ours:
            with contextlib.suppress(Exception):  # the connection may be what broke
                _leave()


def choose_backend(backend: Backend, *, on_gpu: bool) -> str:
    """Return torch's name of the backend; tensors on the CPU always travel by gloo.

    Raises:
        ConfigError: nccl was asked for where it is not.
    """
    nccl = on_gpu and dist.is_nccl_available()
    if backend == "nccl" and not nccl:
        raise ConfigError("train.backend=nccl needs NVIDIA GPUs; use gloo or auto")
    return "cpu:gloo,cuda:nccl" if nccl and backend != "gloo" else "gloo"


def local_device(device: str, world: World) -> str:
    """Return the device of this process: each takes the GPU of its own number where they may choose."""
    if world.size > 1 and device in ("auto", "cuda") and torch.cuda.is_available():
        return f"cuda:{world.local_rank}"
    return device


def shard(units: Iterable[nn.Module], device: torch.device) -> None:
    """Shard the parameters of modules over all processes by FSDP2 and put them on the device.

    Each unit is gathered and freed as one. They go from the inside out: a unit owns what those before it do not. A unit
    is gathered when it is called, or one of the methods that it lists as `gathered_methods`.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for unit in units:
        fully_shard(unit, mesh=mesh)
        for method in getattr(unit, "gathered_methods", ()):
            register_fsdp_forward_method(unit, method)


def full_tensor(tensor: Tensor) -> Tensor:
    """Gather the shards of a tensor, on every process; all must call it together. Others are returned as they are."""
    sharded = _sharded(tensor)
    return tensor if sharded is None else sharded.full_tensor()


def local(tensor: Tensor) -> Tensor:
    """Return this process's shard, which shares the tensor's memory; others are returned as they are."""
    sharded = _sharded(tensor)
    return tensor if sharded is None else sharded.to_local()


def distribute_like(value: Tensor, reference: Tensor) -> Tensor:
    """Shard and place a full tensor, the same on every process, as `reference` is."""
    value = value.to(reference.device)
    sharded = _sharded(reference)
    if sharded is None:
        return value
    from torch.distributed.tensor import distribute_tensor

    # every process has the full value: nobody sends anything
    return distribute_tensor(value, sharded.device_mesh, sharded.placements, src_data_rank=None)


@torch.no_grad()
def assign(target: Tensor, value: Tensor) -> None:
    """Copy a full tensor, the same on every process, into a perhaps sharded one."""
    target.detach().copy_(distribute_like(value, target))


def _sharded(tensor: Tensor) -> DTensor | None:
    """Return the tensor if it is in shards; told by its method, since the class takes long to import."""
    return cast("DTensor", tensor) if hasattr(tensor, "full_tensor") else None


def _start(backend: str, on_gpu: bool, local_rank: int) -> None:
    if on_gpu:
        if local_rank >= torch.cuda.device_count():
            raise ConfigError(
                f"process {local_rank} of this machine has no GPU of its own: there are {torch.cuda.device_count()}; "
                "start fewer processes or pass --device cpu"
            )
        torch.cuda.set_device(local_rank)
    try:
        dist.init_process_group(backend, timeout=_TIMEOUT)
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"the processes cannot find each other ({reason}); start them by torchrun") from error


def _leave() -> None:
    """End the group of processes when its threads have let go of the last results.

    They need Python's lock for that while they hold one of the group's, for which the group's destructor would wait
    with Python's lock in hand: for ever.
    """
    group = dist.group.WORLD  # alive until they are done, whoever drops the others' references
    dist.destroy_process_group()
    time.sleep(_FAREWELL_SECONDS)  # without Python's lock
    del group


def _is_broken_connection(error: BaseException) -> bool:
    """Tell the echo of another process's end from this one's own fault."""
    signs = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Timed out waiting", "gloo")
    is_echo = isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs)
    return is_echo or isinstance(error, dist.DistError)


def _publish_failure(world: World, error: BaseException) -> None:
    """Tell the others why this process ends."""
    text = " ".join(str(error).split()) or type(error).__name__
    if not isinstance(error, SphereGenError):
        text = f"{type(error).__name__}: {text}"
    with contextlib.suppress(Exception):
        if not _store().check([_FAILURE]):
            _store().set(_FAILURE, f"process {world.rank}: {text}")


def _failure_elsewhere(error: BaseException) -> str:
    """Explain the end of another process, in its own words if it left any."""
    with contextlib.suppress(Exception):
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while time.monotonic() < deadline:
            if _store().check([_FAILURE]):
                return f"stopped because another process failed: {_store().get(_FAILURE).decode()}"
            time.sleep(0.1)
    reason = " ".join(str(error).split())[:200]
    return (
        f"another process of this run died without a word, killed or out of memory ({reason}); see its machine's log. "
        "The same command continues from the last checkpoint"
    )


def _store() -> Any:
    return dist.distributed_c10d._get_default_store()
