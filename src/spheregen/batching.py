"""The number of images that go through a network at once, found by what memory there is."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
from torch import nn

from spheregen.devices import available_memory
from spheregen.errors import SphereGenError
from spheregen.protocol import SphereGenerator

Result = TypeVar("Result")
_MOST = 512  # larger batches are no faster anywhere
_CACHED = 4 << 20  # bytes of a layer's output beyond which a CPU gets slower, not faster
_CACHED_NARROW = 16 << 20  # the same in bf16: processors that are fast in it have larger caches, and want more rows
_SHARE = 0.5  # of the free memory, which others use too
_COPIES = 6  # activations of the widest layer that are alive at a time, generously
_WIDEST: weakref.WeakKeyDictionary[nn.Module, int] = weakref.WeakKeyDictionary()


def images_at_once(model: SphereGenerator, device: torch.device, *, guided: bool = False) -> int:
    """Return how many images to send through a network at once; at least 1.

    As many as surely fit into half of the free memory; on a CPU no more than its caches like. Under guidance half of
    them, since condition and null class go together. A generator that is no module is thought to need no memory.
    """
    if not isinstance(model, nn.Module):
        return _MOST
    numbers = _widest(model)
    layer = max(4, model.dtype.itemsize) * numbers  # bytes of an image, some of them float32 in any model
    count = _MOST
    if (available := available_memory(device)) is not None:
        count = min(count, int(_SHARE * available / (_COPIES * layer + 4 * torch.Size(model.image_shape).numel() * 4)))
    if device.type == "cpu":
        narrow = model.dtype.itemsize < 4
        count = min(count, (_CACHED_NARROW if narrow else _CACHED) // (model.dtype.itemsize * numbers))
    return max(1, count // 2 if guided else count)


def _widest(model: SphereGenerator) -> int:
    """Numbers of one image in the largest output of a layer: of the generating network, encoder, decoder or tokenizer.

    Linears act on tokens. A convolution that is no patch embedding may act on all pixels, as the last ones of a
    convolutional tokenizer do; for those further inside that is too much, which only makes batches smaller.
    """
    assert isinstance(model, nn.Module)
    if model in _WIDEST:
        return _WIDEST[model]
    _, height, width = model.image_shape
    tokens = max(model.latent_shape[0], getattr(model.config, "longest", 0))  # of a refiner, its own
    numbers = [1]
    for layer in model.modules():
        if isinstance(layer, nn.Linear):
            numbers.append(layer.out_features * tokens)
        elif isinstance(layer, nn.Conv2d) and layer.stride == (1, 1) and layer.kernel_size != (1, 1):
            numbers.append(layer.out_channels * height * width)
    _WIDEST[model] = max(numbers)
    return _WIDEST[model]


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
