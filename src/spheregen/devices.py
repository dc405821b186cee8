"""Where and in which arithmetic the networks run, and what memory there is."""

from __future__ import annotations

import contextlib
import functools
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from spheregen.errors import ConfigError

_lock = threading.Lock()
_inside = 0  # contexts of `own_defaults`, in all threads
_callers = torch.float32
_READ_SECONDS = 0.2  # reading what the system tells takes half as long as a small network takes for an image


@contextlib.contextmanager
def own_defaults() -> Iterator[None]:
    """Compute as torch does by itself, whatever `torch.set_default_dtype` and `set_default_device` say; or decorate.

    The default type belongs to the whole process: other threads of the caller see float32 as long as this lasts. The
    default device is that of a thread.
    """
    global _inside, _callers
    with _lock:
        if not _inside:
            _callers = torch.get_default_dtype()
            torch.set_default_dtype(torch.float32)
        _inside += 1
    try:
        with contextlib.nullcontext() if torch.get_default_device().type == "cpu" else torch.device("cpu"):
            yield
    finally:
        with _lock:
            _inside -= 1
            if not _inside:
                torch.set_default_dtype(_callers)


def choose_device(name: str | torch.device = "auto") -> torch.device:
    """Return a device, by name too; `auto` takes CUDA, then Apple's GPU, then the CPU.

    Raises:
        ConfigError: the device does not exist here.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, TypeError) as error:
        reason = str(error).splitlines()[0].split(": ")[0].split(", ")[0]  # torch goes on with a list of all devices
        raise ConfigError(f"device {str(name)!r} is not available here ({reason}); use auto or cpu") from error
    return device


@functools.cache
def has_instructions(name: str) -> bool | None:
    """Return whether the processor has instructions, by torch's name of them; None where torch cannot tell."""
    asked = getattr(torch.cpu, f"_is_{name}_supported", None)
    return None if asked is None else bool(asked())


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager[object]:
    """Return the autocast context of a precision; weights stay float32."""
    if precision == "float32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, torch.bfloat16)


def available_memory(device: torch.device) -> int | None:
    """Return the bytes that a process can still take on a device; None where the system does not tell.

    CUDA: what is free on the GPU, and what this process keeps in reserve. CPU: what Linux calls available, within the
    limits of the container or batch job, read again after a fifth of a second.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if device.type == "mps":
        return int(torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory())
    return _memory_of_system(int(time.monotonic() / _READ_SECONDS)) if device.type == "cpu" else None


@functools.lru_cache(maxsize=1)
def _memory_of_system(_: int) -> int | None:
    limits = list(_memory_limits())
    return max(0, min(limits)) if limits else None


def _memory_limits(root: Path = Path("/")) -> Iterator[int]:
    """Yield the bytes that the system and each control group (versions 2 and 1) leave to this process."""
    system = _numbers(root / "proc/meminfo")
    if "MemAvailable:" in system:
        yield system["MemAvailable:"] << 10
    groups = root / "sys/fs/cgroup"
    own = ""
    with contextlib.suppress(OSError, IndexError):
        own = (root / "proc/self/cgroup").read_text().split("0::/")[1].splitlines()[0]
    for folder, limit, usage in (
        (groups, "memory.max", "memory.current"),
        (groups / own, "memory.max", "memory.current"),
        (groups / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
    ):
        with contextlib.suppress(OSError, ValueError):  # no such file, or "max"
            allowed, used = (int((folder / name).read_text()) for name in (limit, usage))
            counted = _numbers(folder / "memory.stat")  # caches of files would be given up
            cached = counted.get("inactive_file", counted.get("total_inactive_file", 0))
            if allowed < 1 << 60:
                yield allowed - used + cached


def _numbers(path: Path) -> dict[str, int]:
    """Read a file of lines `NAME NUMBER ...`; nothing where there is none."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        return {line.split()[0]: int(line.split()[1]) for line in path.read_text().splitlines()}
    return {}
