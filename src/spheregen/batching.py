"""How many images go through a network at once, found by what memory there is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
from torch import nn

from spheregen.devices import available_memory
from spheregen.errors import SphereGenError
from spheregen.models.protocol import SphereGenerator

Result = TypeVar("Result")
_MOST = {"cpu": 64, "cuda": 512, "mps": 64}  # larger batches are no faster
_SHARE = 0.5  # of the free memory, which others use too
_COPIES = 6  # activations of the widest layer that are alive at a time, generously


def images_at_once(model: SphereGenerator, device: torch.device) -> int:
    """How many images, guided ones too, surely fit into half of the free memory; at least 1."""
    most = _MOST.get(device.type, 64)
    available = available_memory(device)
    if available is None or not isinstance(model, nn.Module):
        return most
    widest = max((layer.out_features for layer in model.modules() if isinstance(layer, nn.Linear)), default=1)
    itemsize = max(4, next(model.parameters()).element_size())
    guided = 2  # condition and null class go together
    pixels = 4 * torch.Size(model.image_shape).numel()
    each = itemsize * guided * (_COPIES * model.latent_shape[0] * widest + pixels)
    return max(1, min(most, int(_SHARE * available / each)))


def in_batches(count: int, size: int, run: Callable[[slice], Result]) -> Iterator[tuple[slice, Result]]:
    """Run `count` samples in parts of at most `size`; on a GPU that is full, in smaller parts from then on.

    Raises:
        SphereGenError: not even one sample at a time fits.
    """
    start = 0
    while start < count:
        part = slice(start, min(start + size, count))
        try:
            result = run(part)
        except torch.OutOfMemoryError as error:
            if part.stop - part.start == 1:
                raise SphereGenError(
                    "not even one image at a time fits into the device's memory; use a smaller model or device=cpu"
                ) from error
            size = -(-(part.stop - part.start) // 2)
            continue
        yield part, result
        start = part.stop
