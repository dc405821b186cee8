"""The arithmetic in which a network runs fastest on this device, and the reason: `float32`, or `bf16` products."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from typing import cast

import torch
from torch import nn

from spheregen.devices import has_instructions
from spheregen.measure.remembered import recall, remember
from spheregen.measure.timing import PeakMeter

NARROW = 90
"""A network whose matrices are narrower than this spends its time beside its products, which bf16 makes no faster."""
PAYS = 1.5
"""bf16 must multiply so many times as fast as float32, for it converts on the way in and out."""
NAMES = ("float32", "bf16")
MEASURED = "product-speeds.json"
"""In the cache folder: what was measured on this machine."""
_SIDE, _TURNS = 512, 15  # of the products that are timed: a second where bf16 is slow


@dataclass(frozen=True)
class Precision:
    """An arithmetic and the reason for it."""

    name: str
    """`float32` or `bf16`."""
    reason: str = ""
    """In a few words; empty where it was asked for."""

    @property
    def because(self) -> str:
        """The reason as the end of a sentence."""
        return f" ({self.reason})" if self.reason else ""


def choose_precision(asked: str, device: torch.device, model: nn.Module | None = None) -> Precision:
    """Return the precision for a network on a device; `auto` takes bf16 where that is fast.

    A CPU says so by its instruction set; where that tells too little, products of both types are timed, once for this
    machine.

    Args:
        asked: `float32`, `bf16` or `auto`.
        device: where the network runs.
        model: the network, which may be on the meta device; None: one that is wide enough.
    """
    if asked != "auto":
        return Precision(asked)
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return Precision("bf16", "this GPU has it")
        return Precision("float32", "this GPU has no bf16 units")
    if device.type != "cpu":
        return Precision("float32", f"bf16 is not tried on {device.type}")
    if model is not None and (width := mean_width(model)) < NARROW:
        return Precision("float32", f"a network of width {width:.0f} is no faster in bf16")
    return _of_processor()


def mean_width(model: nn.Module) -> float:
    """Return the smaller side of a network's matrices and kernels, a mean over all their numbers."""
    sides = [(each.numel(), min(len(each), each[0].numel())) for each in model.parameters() if each.ndim > 1]
    return sum(count * side for count, side in sides) / max(1, sum(count for count, _ in sides))


def _of_processor() -> Precision:
    if has_instructions("amx_tile"):
        return Precision("bf16", "this processor has AMX")
    if platform.machine().lower() in ("x86_64", "amd64") and has_instructions("avx512_bf16") is False:
        return Precision("float32", "this processor has no bf16 units")
    full, half = product_speeds()
    ratio = half / full
    return Precision("bf16" if ratio >= PAYS else "float32", f"bf16 products run {ratio:.2g} times as fast here")


def product_speeds() -> tuple[float, float]:
    """Return the operations a second of products in float32 and in bf16, as this machine was measured first."""
    known = tuple(recall(MEASURED, name) for name in NAMES)
    if None in known:
        known = measured_speeds()
        for name, speed in zip(NAMES, known, strict=True):
            remember(MEASURED, name, speed)
    return cast(tuple[float, float], known)


def measured_speeds() -> tuple[float, float]:
    """Time products in float32 and in bf16 in turns, and return the operations a second of the quickest of both."""
    meters = [PeakMeter(torch.device("cpu"), precision, sizes=(_SIDE,)) for precision in NAMES]
    for _ in range(_TURNS):
        for meter in meters:
            meter.sample()
    full, half = (meter.result(min).flops for meter in meters)
    return full, half
