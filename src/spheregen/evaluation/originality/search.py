"""Nearest training images: which could be the original of an image, and how near the nearest is.

Blocks keep the memory bounded: a block of training images meets all queries, and the best so far are kept.

Legend: n queries, N training images, D numbers of each, k neighbours.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from spheregen.evaluation.originality.match import luma, reduced
from spheregen.evaluation.rows import Rows

THUMBNAIL = 16
PIXEL_SIZE = 32
"""Pixels of the larger side at which pixel distances are taken; larger images are reduced."""
_QUERIES, _TRAIN = 1024, 4096
_PRODUCTS = 1 << 25
"""Products that are held at a time."""


def thumbnails(images: Tensor, device: torch.device) -> Tensor:
    """Brightness of images (B, C, H, W) uint8 at 16 pixels, softened, without mean and of norm 1: (B, D) float32.

    Their products are correlations that hardly change under a shift by a pixel, a change of colours or compression.
    """
    made = [_thumbnails(part.to(device)) for part in images.split(_TRAIN)]
    return torch.cat(made)


def _thumbnails(images: Tensor) -> Tensor:
    grey = luma(images)
    height, width = min(THUMBNAIL, grey.shape[-2]), min(THUMBNAIL, grey.shape[-1])
    small = functional.adaptive_avg_pool2d(grey, (height, width))
    kernel = small.new_tensor([1.0, 2.0, 1.0]) / 4
    small = functional.pad(small, (1, 1, 1, 1), mode="replicate")
    small = functional.conv2d(functional.conv2d(small, kernel.view(1, 1, 3, 1)), kernel.view(1, 1, 1, 3)).flatten(1)
    small = small - small.mean(1, keepdim=True)
    unit: Tensor = small / small.norm(dim=1, keepdim=True).clamp_min(1e-3)
    return unit


def most_alike(queries: Tensor, train: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Products and places of the k training rows of the largest product, (n, k) each on the CPU; rows have norm 1."""
    block = max(1, min(_QUERIES, _PRODUCTS // len(train)))
    found = [(part @ train.T).topk(k, dim=1) for part in queries.split(block)]
    return torch.cat([part.values.cpu() for part in found]), torch.cat([part.indices.cpu() for part in found])


def nearest(queries: Rows, train: Rows, k: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """The k nearest rows in the Euclidean sense.

    Returns:
        Distances of the nearest (n,) float64, exact to the last digits of float32 differences, and places (n, k) int64,
        nearest first; both on the CPU.
    """
    count, k = queries.shape[0], min(k, train.shape[0])
    best = torch.full((count, k), math.inf, device=device)
    place = torch.zeros((count, k), dtype=torch.int64, device=device)
    for start in range(0, train.shape[0], _TRAIN):
        rows = _numbers(train[start : min(start + _TRAIN, train.shape[0])], device)
        squares = rows.square().sum(1) / 2
        for first in range(0, count, _QUERIES):
            part = slice(first, min(first + _QUERIES, count))
            # Half the squared distance, but for the query's own norm, which orders nothing.
            distance = squares - _numbers(queries[part], device) @ rows.T
            found = distance.topk(min(k, len(rows)), dim=1, largest=False)
            values = torch.cat([best[part], found.values], dim=1)
            places = torch.cat([place[part], found.indices + start], dim=1)
            order = values.topk(k, dim=1, largest=False)
            best[part], place[part] = order.values, places.gather(1, order.indices)
    place = place.cpu()
    return _distances(queries, train, place[:, 0]), place


def _distances(queries: Rows, train: Rows, place: Tensor) -> Tensor:
    """Distances of pairs from their differences: products lose the digits of near pairs."""
    found = torch.empty(len(place), dtype=torch.float64)
    order = place.argsort()  # a file is read in order, block by block
    for part in order.split(_QUERIES):
        rows = torch.cat([train[index : index + 1] for index in place[part].tolist()])
        asked = torch.cat([queries[index : index + 1] for index in part.tolist()])
        found[part] = (asked.double() - rows.double()).square().sum(1).sqrt()
    return found


def _numbers(rows: Tensor, device: torch.device) -> Tensor:
    return rows.to(device).float()


def pixel_rows(images: Tensor) -> Tensor:
    """Images (B, C, H, W) uint8 as rows of uint8 numbers, reduced to 32 pixels."""
    return reduced(images, PIXEL_SIZE).flatten(1)
