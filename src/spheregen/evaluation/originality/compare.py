"""From images to their most likely originals: candidates by thumbnails and features, then a close look at each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from spheregen.evaluation.originality.match import aligned, is_small, score
from spheregen.evaluation.originality.search import most_alike, nearest, pixel_rows, thumbnails
from spheregen.evaluation.rows import Rows

CANDIDATES = 8
"""Training images by thumbnail for an image."""
FEATURE_CANDIDATES = 3
CLOSE_LOOKS = 4
"""Candidates of an image that get the full comparison, those whose brightness steps agree best."""
_PAIR_NUMBERS = {"cpu": 1 << 18}
"""Numbers of the pairs of images that are compared at a time: on a CPU as many as its cache holds."""


@dataclass(frozen=True, eq=False)
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
    feature_distance: Tensor | None
    """(n,) float64: Euclidean, to the nearest in features; None without features."""
    feature_index: Tensor | None
    """(n,) int64: which one that is."""

    def __len__(self) -> int:
        """n."""
        return len(self.score)


class TrainingSet:
    """Training images, ready to be compared with.

    Args:
        images: (N, C, H, W) uint8 of working size, on the CPU.
        features: (N, D), or None.
        device: computes.
    """

    def __init__(self, images: Tensor, features: Rows | None, device: torch.device) -> None:
        self.images, self.features, self.device = images, features, device
        self.pixels = pixel_rows(images)
        self.thumbnails = thumbnails(images, device)

    def match(self, images: Tensor, features: Rows | None) -> Matches:
        """Compare images (n, C, H, W) uint8 of working size, with features (n, D) where the training set has them."""
        distance, pixel = nearest(pixel_rows(images), self.pixels, 1, self.device)
        levels = distance / self.pixels.shape[1] ** 0.5
        index, mirrored = self._candidates(images)
        index = torch.cat([index, pixel], dim=1)
        mirrored = torch.cat([mirrored, torch.zeros_like(pixel, dtype=torch.bool)], dim=1)
        far = near = None
        if features is not None and self.features is not None:
            far, near = nearest(features, self.features, FEATURE_CANDIDATES, self.device)
            plain = torch.zeros_like(near, dtype=torch.bool)
            index, mirrored = torch.cat([index, near, near], dim=1), torch.cat([mirrored, plain, ~plain], dim=1)
        block = max(1, _PAIR_NUMBERS.get(self.device.type, 1 << 22) // (index.shape[1] * images[0].numel()))
        looked = [
            self._look(*part)
            for part in zip(images.split(block), index.split(block), mirrored.split(block), strict=True)
        ]
        best, place, turn = (torch.cat(parts) for parts in zip(*looked, strict=True))
        return Matches(
            score=best,
            index=place,
            mirrored=turn,
            pixel_distance=levels,
            pixel_index=pixel[:, 0],
            feature_distance=far,
            feature_index=None if near is None else near[:, 0],
        )

    def _candidates(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Places (n, k) and mirroring (n, k) of the training images whose thumbnails are most alike."""
        k = min(CANDIDATES * (4 if is_small(images) else 1), len(self.images))
        values, places, turns = [], [], []
        for mirrored in (False, True):
            for view in _views(images.flip(-1) if mirrored else images):
                value, place = most_alike(thumbnails(view, self.device), self.thumbnails, k)
                values.append(value)
                places.append(place)
                turns.append(torch.full_like(place, mirrored, dtype=torch.bool))
        best = torch.cat(values, dim=1).topk(k, dim=1).indices
        return torch.cat(places, dim=1).gather(1, best), torch.cat(turns, dim=1).gather(1, best)

    def _look(self, images: Tensor, index: Tensor, mirrored: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Score, place and mirroring of the best of J candidates (b, J) of images (b, C, H, W)."""
        wanted = images.to(self.device).repeat_interleave(index.shape[1], dim=0)
        agreement, shift = aligned(wanted, self._originals(index, mirrored))
        looks = min(CLOSE_LOOKS, index.shape[1])
        chosen = agreement.view(index.shape).topk(looks, dim=1).indices
        shift = shift.view(index.shape).gather(1, chosen).flatten()
        chosen = chosen.cpu()
        index, mirrored = index.gather(1, chosen), mirrored.gather(1, chosen)
        wanted = images.to(self.device).repeat_interleave(looks, dim=0)
        scores = score(wanted, self._originals(index, mirrored), shift).view(index.shape)
        best = scores.max(dim=1, keepdim=True)
        return best.values[:, 0], index.gather(1, best.indices)[:, 0], mirrored.gather(1, best.indices)[:, 0]

    def _originals(self, index: Tensor, mirrored: Tensor) -> Tensor:
        """Training images at places (b, J), mirrored where said, (b * J, C, H, W) on the device."""
        found = self.images[index.flatten()].to(self.device)
        return torch.where(mirrored.flatten().to(self.device)[:, None, None, None], found.flip(-1), found)


def _views(images: Tensor) -> Iterator[Tensor]:
    """Images of which one must be alike: small ones also shifted by a pixel, which is far for their thumbnails."""
    yield images
    if not is_small(images):
        return
    height, width = images.shape[-2:]
    padded = functional.pad(images.float(), (1, 1, 1, 1), mode="replicate").to(images.dtype)
    for row in range(3):
        for column in range(3):
            if (row, column) != (1, 1):
                yield padded[..., row : row + height, column : column + width]
