"""Where and in which arithmetic the networks run."""

from __future__ import annotations

import contextlib

import torch

from spheregen.errors import ConfigError


def choose_device(name: str = "auto") -> torch.device:
    """A device by name; `auto` takes CUDA, then Apple's GPU, then the CPU.

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
        raise ConfigError(f"device {name!r} is not available here ({reason}); use auto or cpu") from error
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
