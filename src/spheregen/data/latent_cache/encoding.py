"""From decoded images to latents on the CPU, one batch in flight: a GPU encodes while the one before is written."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from spheregen.data.batches import to_device
from spheregen.data.decoding import DecodedChunk
from spheregen.data.images import to_model_range
from spheregen.data.latent_cache.index import CachePlan
from spheregen.data.latent_cache.shards import TORCH_DTYPES, EncodedBatch
from spheregen.data.order import Integers
from spheregen.devices import autocast
from spheregen.errors import DataError, SphereGenError

if TYPE_CHECKING:
    from spheregen.models.protocol import Tokenizer


def encode_chunks(
    tokenizer: Tokenizer, chunks: Iterable[DecodedChunk], plan: CachePlan, device: torch.device
) -> Generator[EncodedBatch, None, None]:
    """The latents of each chunk of images, in order; each view goes through the tokenizer by itself.

    Raises:
        DataError: a latent is not finite; names the image.
        SphereGenError: a batch does not fit into memory.
    """
    flying: _Flight | None = None
    for chunk in chunks:
        following = _Flight(tokenizer, chunk, plan, device)
        if flying is not None:
            yield flying.land()
        flying = following
    if flying is not None:
        yield flying.land()


class _Flight:
    """A batch on its way to the device, through the tokenizer and back."""

    def __init__(self, tokenizer: Tokenizer, chunk: DecodedChunk, plan: CachePlan, device: torch.device) -> None:
        broken = {image.index for image in chunk.bad}
        good = np.array([index not in broken for index in chunk.indices.tolist()], dtype=np.bool_)
        self._chunk = chunk
        self._plan = plan
        self._indices: Integers = chunk.indices[good]
        images = torch.from_numpy(chunk.images if good.all() else chunk.images[good])
        try:
            latents, moments = _encode(tokenizer, to_device(images, device), plan, device)
        except torch.OutOfMemoryError as error:
            raise SphereGenError(
                f"a batch of {len(images)} images does not fit into the memory of {device}; use a smaller --batch-size"
            ) from error
        on_cuda = device.type == "cuda"  # copies go into pinned memory there, and nobody waits for them yet
        self._latents = latents.to("cpu", non_blocking=on_cuda)
        self._moments = moments.to("cpu", non_blocking=on_cuda)
        self._arrival: torch.cuda.Event | None = None
        if on_cuda:
            self._arrival = torch.cuda.Event()
            self._arrival.record(torch.cuda.current_stream(device))

    def land(self) -> EncodedBatch:
        """Wait for it."""
        if self._arrival is not None:
            self._arrival.synchronize()
        if not bool(torch.isfinite(self._moments).all()):
            finite = torch.isfinite(self._latents).flatten(1).all(dim=1)
            which = f"image {int(self._indices[int((~finite).nonzero()[0, 0])])}" if not finite.all() else "an image"
            raise DataError(
                f"the tokenizer {self._plan.tokenizer_name} gives NaN, infinite or huge latents for {which} of "
                f"{self._plan.source_name}; look at that image, or encode in --precision float32"
            )
        return EncodedBatch(indices=self._indices, latents=self._latents, moments=self._moments, bad=self._chunk.bad)


@torch.inference_mode()
def _encode(tokenizer: Tokenizer, pixels: Tensor, plan: CachePlan, device: torch.device) -> tuple[Tensor, Tensor]:
    """Images uint8 (n, C, S, S) -> latents (n, views, N, d) as they are stored, and their moments (2, d) in float64."""
    wanted = (len(pixels), plan.views, *plan.latent_shape)
    dtype = TORCH_DTYPES[plan.dtype]
    if len(pixels) == 0:  # all images of the batch are bad
        return torch.empty(wanted, dtype=dtype), torch.zeros(2, wanted[-1], dtype=torch.float64)
    images = to_model_range(pixels)
    with autocast(device, plan.precision):
        views = [tokenizer.encode(x) for x in (images, images.flip(-1))[: plan.views]]
    latents = torch.stack([view.to(dtype) for view in views], dim=1)
    if latents.shape != wanted:
        found = tuple(latents.shape[2:])
        raise SphereGenError(f"the tokenizer gives latents {found}, not {plan.latent_shape} as it says; correct it")
    return latents, torch.stack([_moments(view) for view in latents.unbind(1)]).sum(0)


def _moments(latents: Tensor) -> Tensor:
    """Sum and sum of squares (2, d) in float64 of the channels of latents (n, N, d)."""
    if latents.device.type == "mps":  # which has no float64
        latents = latents.cpu()
    wide = latents.flatten(0, 1).double()
    total = wide.sum(0)
    return torch.stack([total, wide.square_().sum(0)])
