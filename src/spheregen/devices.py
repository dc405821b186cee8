"""Where and in which arithmetic the networks run, and what memory there is."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch

from spheregen.errors import ConfigError


def choose_device(name: str | torch.device = "auto") -> torch.device:
    """A device, by name too; `auto` takes CUDA, then Apple's GPU, then the CPU.

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
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0].split(": ")[0].split(", ")[0]  # torch goes on with a list of all devices
        raise ConfigError(f"device {str(name)!r} is not available here ({reason}); use auto or cpu") from error
    return device


def choose_precision(name: str, device: torch.device) -> str:
    """`float32` or `bf16`; `auto` takes bf16 on a GPU that has it.

    On CPUs without units for bf16 it is far slower than float32, so there it must be asked for.
    """
    if name != "auto":
        return name
    return "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "float32"


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager[object]:
    """The autocast context of a precision; weights stay float32."""
    if precision == "float32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, torch.bfloat16)


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
