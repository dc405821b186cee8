"""From images to their likeliest originals: candidates by thumbnails, pixels and features, then a close look at each.

The score of an image is the share of its brightness steps (differences between neighbouring pixels, in every channel)
that a linear map of a training image's steps explains, mirrored or not, at the best of a few shifts. Steps rather than
pixels, since natural images agree in their large smooth parts by chance: of CIFAR-10's held-out images a tenth reach
0.8 in pixels, and 0.3 in steps.

Legend: n images, N training images, P pairs, J candidates of an image, C channels, H x W pixels, M shift range.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from spheregen.measure.features import FeatureExtractor

WORKING_SIZE, PIXEL_SIZE, THUMBNAIL = 64, 32, 16
"""Pixels of the larger side at which images are compared, distances in pixels taken, and candidates sought."""
CANDIDATES = 8
"""Training images by thumbnail for an image, and as many for its mirror image."""
_ROUNDING = 1 / 6  # variance of a step that rounding to 8 bits alone makes: steps as small as this explain nothing
_RIDGE = 1e-3  # of the mean variance of the explaining steps: colours and their blur are nearly dependent
_QUERIES, _ROWS, _PAIR_NUMBERS = 1024, 4096, 1 << 20  # held at a time


@dataclass(frozen=True, kw_only=True, eq=False)
class Matches:
    """For each of n images the training image that it most likely copies, and how near the training set comes."""

    score: Tensor
    """(n,) float64 in [0, 1]: the share of the image's brightness steps that its match explains."""
    index: Tensor
    """(n,) int64: the match's place in the training set."""
    mirrored: Tensor
    """(n,) bool: the match fits mirrored."""
    pixel_distance: Tensor
    """(n,) float64: to the nearest training image at 32 pixels or less, root mean square in levels of 0..255."""
    pixel_index: Tensor
    """(n,) int64: which one that is."""
    feature_distance: Tensor | None = None
    """(n,) float64: Euclidean, to the nearest in features; None without features."""
    feature_index: Tensor | None = None
    """(n,) int64: which one that is."""


class TrainingSet:
    """Training images (N, C, H, W) uint8, ready to be compared with."""

    def __init__(self, images: Tensor, extractor: FeatureExtractor | None, device: torch.device) -> None:
        self.images, self.extractor, self.device = reduced(images, WORKING_SIZE), extractor, device
        self.pixels = reduced(self.images, PIXEL_SIZE).flatten(1)
        self.thumbnails = _thumbnails(self.images)
        self.features = None if extractor is None else self._seen(images)

    def match(self, full: Tensor) -> Matches:
        """Compare images (n, C, H, W) uint8."""
        images = reduced(full, WORKING_SIZE)
        distance, pixel = nearest(reduced(images, PIXEL_SIZE).flatten(1), self.pixels, 1, self.device)
        found: dict[str, Tensor] = {
            "pixel_distance": distance / self.pixels.shape[1] ** 0.5,
            "pixel_index": pixel[:, 0],
        }
        plain, turned = (
            nearest(_thumbnails(view), self.thumbnails, CANDIDATES, self.device)[1]
            for view in (images, images.flip(-1))
        )
        candidates = [(plain, False), (turned, True), (pixel, False)]
        if self.features is not None:
            found["feature_distance"], near = nearest(self._seen(full), self.features, 1, self.device)
            found["feature_index"] = near[:, 0]
            candidates += [(near, False), (near, True)]
        index = torch.cat([place for place, _ in candidates], dim=1)
        mirrored = torch.cat([torch.full_like(place, turn, dtype=torch.bool) for place, turn in candidates], dim=1)
        block = max(1, _PAIR_NUMBERS // (index.shape[1] * images[0].numel()))
        parts = zip(images.split(block), index.split(block), mirrored.split(block), strict=True)
        scores = torch.cat([self._scores(*part) for part in parts])
        best = scores.argmax(dim=1, keepdim=True)
        return Matches(
            score=scores.gather(1, best)[:, 0],
            index=index.gather(1, best)[:, 0],
            mirrored=mirrored.gather(1, best)[:, 0],
            **found,
        )

    def _scores(self, images: Tensor, index: Tensor, mirrored: Tensor) -> Tensor:
        """The scores (b, J) of images (b, C, H, W) against their candidates at places (b, J)."""
        originals = self.images[index.flatten()].to(self.device)
        turn = mirrored.flatten().to(self.device)[:, None, None, None]
        wanted = images.to(self.device).repeat_interleave(index.shape[1], dim=0)
        return score(wanted, torch.where(turn, originals.flip(-1), originals)).view(index.shape)

    def _seen(self, images: Tensor) -> Tensor:
        assert self.extractor is not None
        return torch.cat([self.extractor(part.to(self.device)).features.float().cpu() for part in images.split(256)])


def score(images: Tensor, originals: Tensor) -> Tensor:
    """Return the share of the steps of `images` that steps of `originals` explain: 1 is a copy, strangers are near 0.1.

    Explained by least squares at the best shift: each channel's steps from those of all channels of the original, which
    is any linear change of colours, and of its blurred brightness, which makes softened and sharpened copies.

    Args:
        images, originals: (P, C, H, W) uint8.

    Returns:
        (P,) float64 in [0, 1], on the CPU.
    """
    reach = 1 if min(images.shape[-2:]) < 16 else 2  # M; small images have little to spare
    light = _luma(originals)
    given = _steps(torch.cat([originals.float(), _blurred(light)], dim=1))
    wanted = _steps(images.float())
    height, width = wanted.shape[-2] - 2 * reach, wanted.shape[-1] - 2 * reach
    inner = (..., slice(reach, reach + height), slice(reach, reach + width))
    shift = _best_shift(_steps(_luma(images))[inner][:, 0], _steps(light)[:, 0])
    rows = (shift // (2 * reach + 1))[:, None] + torch.arange(height, device=shift.device)
    columns = (shift % (2 * reach + 1))[:, None] + torch.arange(width, device=shift.device)
    places = (rows[:, :, None] * given.shape[-1] + columns[:, None, :]).flatten(1)[:, None, None]
    source = given.flatten(3).gather(3, places.expand(-1, given.shape[1], 2, -1)).flatten(2)  # (P, C+1, 2 * h * w)
    target = wanted[inner].flatten(2)
    gram = (source @ source.transpose(1, 2)).cpu().double()  # (P, C+1, C+1)
    mixed = (source @ target.transpose(1, 2)).cpu().double()  # (P, C+1, C)
    total = target.square().sum((1, 2)).cpu().double()
    ridge = _RIDGE * gram.diagonal(dim1=1, dim2=2).mean(1) + 1e-6
    weights = torch.linalg.solve(gram + ridge[:, None, None] * torch.eye(gram.shape[1], dtype=torch.float64), mixed)
    explained = 2 * (weights * mixed).sum((1, 2)) - (weights * (gram @ weights)).sum((1, 2))
    shares: Tensor = (explained / (total + _ROUNDING * target[0].numel())).clamp(0, 1)
    return shares


def _best_shift(inner: Tensor, given: Tensor) -> Tensor:
    """The place (P,), row-major, of the window of `given` (P, 2, H, W) that agrees best with `inner` (P, 2, h, w)."""
    height, width = inner.shape[-2:]
    energies = functional.avg_pool2d(given.square().sum(1, keepdim=True), (height, width), 1, divisor_override=1)
    shifts = [(row, column) for row in range(energies.shape[-2]) for column in range(energies.shape[-1])]
    windows = (given[..., row : row + height, column : column + width] for row, column in shifts)
    agreement = torch.stack([(inner * window).sum((1, 2, 3)) for window in windows], dim=1).clamp_min(0)
    return (agreement.square() / energies.flatten(1).clamp_min(1e-6)).argmax(dim=1)


def _steps(images: Tensor) -> Tensor:
    """Differences to the pixel below and to the right: (B, C, H, W) -> (B, C, 2, H-1, W-1)."""
    corner = images[..., :-1, :-1]
    return torch.stack([images[..., 1:, :-1] - corner, images[..., :-1, 1:] - corner], dim=2)


def _luma(images: Tensor) -> Tensor:
    """Brightness (B, 1, H, W) float32 (ITU-R 601) of images (B, C, H, W), C = 1 or 3."""
    if images.shape[1] == 1:
        return images.float()
    weights = torch.tensor([0.299, 0.587, 0.114], device=images.device)
    return torch.einsum("bchw,c->bhw", images.float(), weights)[:, None]


def _blurred(images: Tensor, *, taps: tuple[float, ...] = (1.0, 4.0, 6.0, 4.0, 1.0)) -> Tensor:
    """Images (B, 1, H, W) under a binomial filter in both directions."""
    kernel = images.new_tensor(taps) / sum(taps)
    padded = functional.pad(images, (len(taps) // 2,) * 4, mode="replicate")
    return functional.conv2d(functional.conv2d(padded, kernel.view(1, 1, -1, 1)), kernel.view(1, 1, 1, -1))


def _thumbnails(images: Tensor) -> Tensor:
    """Brightness at 16 pixels, softened, without mean and of norm 1, (B, D) float32: shifts hardly count."""
    made = []
    for part in images.split(_ROWS):
        grey = _luma(part)
        size = (min(THUMBNAIL, grey.shape[-2]), min(THUMBNAIL, grey.shape[-1]))
        small = _blurred(functional.adaptive_avg_pool2d(grey, size), taps=(1.0, 2.0, 1.0)).flatten(1)
        small = small - small.mean(1, keepdim=True)
        made.append(small / small.norm(dim=1, keepdim=True).clamp_min(1e-3))
    return torch.cat(made)


def nearest(queries: Tensor, train: Tensor, k: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """The k nearest rows of `train` (N, D) in the Euclidean sense, block by block.

    Returns:
        Distances to the nearest (n,) float64, taken from differences since products lose the digits of near pairs, and
        places (n, k) int64, nearest first; both on the CPU.
    """
    places, distances = [], []
    for asked in queries.split(_QUERIES):
        mine = asked.to(device).float()
        best = torch.empty(len(asked), 0, device=device)
        place = torch.empty(len(asked), 0, dtype=torch.int64, device=device)
        for start in range(0, len(train), _ROWS):
            rows = train[start : start + _ROWS].to(device).float()
            # half the squared distance, but for the query's own norm, which orders nothing
            found = (rows.square().sum(1) / 2 - mine @ rows.T).topk(min(k, len(rows)), dim=1, largest=False)
            best, place = torch.cat([best, found.values], 1), torch.cat([place, found.indices + start], 1)
            order = best.topk(min(k, best.shape[1]), dim=1, largest=False)
            best, place = order.values, place.gather(1, order.indices)
        places.append(place.cpu())
        distances.append((asked.double() - train[places[-1][:, 0]].double()).square().sum(1).sqrt())
    return torch.cat(distances), torch.cat(places)


def reduced(images: Tensor, size: int) -> Tensor:
    """Images (B, C, H, W) uint8 whose larger side is at most `size` pixels, by averaging areas."""
    height, width = images.shape[-2:]
    if max(height, width) <= size:
        return images
    shape = tuple(max(1, round(side * size / max(height, width))) for side in (height, width))
    parts = images.split(256)
    return torch.cat([functional.interpolate(x.float(), shape, mode="area").round().to(torch.uint8) for x in parts])
