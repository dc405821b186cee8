"""The degradations that restorations are measured on.

The six of `SP3` are those that the literature takes (SP3, arXiv 2606.16396; method.md, section 5), the others ours.
Deviations of noise are on the scale of images in [-1, 1], twice that of pixels in [0, 1]; noise comes after the
operator, on hidden pixels too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from spheregen import restoration
from spheregen.errors import ConfigError, did_you_mean
from spheregen.restoration import Operator


@dataclass(frozen=True)
class Task:
    """A degradation of images of any size."""

    operator: Callable[[int], Operator]
    """By the side S of the images."""
    noise: float
    """Deviation, on [-1, 1]; 0 of what rounds."""


def _blur(size: int) -> Operator:
    return restoration.Blur(restoration.gaussian_kernel(3.0 if size >= 256 else 1.0, 61))


SP3: Mapping[str, Task] = MappingProxyType(
    {
        "box": Task(lambda size: restoration.Mask(restoration.box_mask(size)), 0.05),
        "brush": Task(lambda size: restoration.Mask(restoration.brush_mask(size)), 0.05),
        "random": Task(lambda size: restoration.Mask(restoration.random_mask(size)), 0.01),
        "denoise": Task(lambda size: restoration.Denoise(), 0.2),
        "superres": Task(lambda size: restoration.Subsample(4 if size >= 256 else 2), 0.05),
        "deblur": Task(_blur, 0.05),
    }
)
TASKS: Mapping[str, Task] = MappingProxyType(
    {
        **SP3,
        "decolour": Task(lambda size: restoration.Grey(), 0.05),
        "dejpeg": Task(lambda size: restoration.Jpeg(10), 0.0),
    }
)
PROTOCOLS: Mapping[str, Mapping[str, Task]] = MappingProxyType({"sp3": SP3})
NOISE_SCALE = "images in [-1, 1]"


def tasks_of(protocol: str | None) -> Mapping[str, Task]:
    """Return the tasks of a protocol; None: all that there are.

    Raises:
        ConfigError: an unknown protocol.
    """
    if protocol is None:
        return TASKS
    if protocol not in PROTOCOLS:
        raise ConfigError(
            f"unknown protocol {protocol!r}{did_you_mean(protocol, PROTOCOLS)}; use {', '.join(PROTOCOLS)}, or none"
        )
    return PROTOCOLS[protocol]


def choose_tasks(names: Sequence[str], channels: int, known: Iterable[str] = TASKS) -> tuple[str, ...]:
    """Return the known tasks of these names in their order; `all` are all for images of so many channels.

    Raises:
        ConfigError: an unknown name, or colours of grey images.
    """
    choices = (*known, "all")
    for name in names:
        if name not in choices:
            raise ConfigError(f"unknown task {name!r}{did_you_mean(name, choices)}; use {', '.join(choices)}")
    if "decolour" in names and channels != 3:
        raise ConfigError("colours can be found by a model of colour images alone, and this one's are grey")
    possible = [name for name in choices[:-1] if name != "decolour" or channels == 3]
    return tuple(name for name in possible if "all" in names or name in names)
