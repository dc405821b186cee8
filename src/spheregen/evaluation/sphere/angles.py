"""How fast the image changes as its latent turns away: decode(rotate(v, u, a)) for a from 0 to 90 degrees.

Legend: n latents v of data, each with one random direction u orthogonal to it; A angles. Source of the question: the
diagnosis of Sphere Encoder 2 (arXiv 2610.02208), that an image must say something at 90 degrees, where random points
lie.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from spheregen.data.grids import to_uint8
from spheregen.evaluation.features.base import FeatureExtractor
from spheregen.evaluation.sphere.codec import Codec, Starts, gaussian
from spheregen.sphere import rotate

ANGLES = tuple(float(angle) for angle in range(0, 95, 5))
_STREAM = 11  # of the random directions
_AT_ONCE = 64  # images in one pass through the feature network


@dataclass(frozen=True, kw_only=True)
class AngleCurve:
    """A distance between the image at 0 degrees and the one at each angle."""

    mean: tuple[float, ...]
    """Over the latents, one value for each angle; the first is 0."""
    std: tuple[float, ...]
    """Between the latents."""
    unrelated: float
    """The same distance between two unrelated real images, on average."""
    half_angle: float | None
    """Where the mean first reaches half of its value at 90 degrees; None if nothing changes."""


@dataclass(frozen=True, kw_only=True)
class AngleStudy:
    """What turning a latent does to its image."""

    angles: tuple[float, ...]
    count: int
    """Latents that were turned."""
    pixels: AngleCurve
    """Root mean square of the difference of images on [0, 1]."""
    features: AngleCurve | None
    """Euclidean distance of features; None without a feature network."""
    strip: Tensor
    """(rows, A, C, S, S) uint8: some latents on their way."""


@torch.no_grad()
def angle_study(
    codec: Codec,
    start: Starts,
    real: Tensor,
    *,
    extractor: FeatureExtractor | None = None,
    seed: int = 0,
    angles: Sequence[float] = ANGLES,
    shown: int = 6,
) -> AngleStudy:
    """Turn latents and look.

    Args:
        start: the latents of data.
        real: (m, C, S, S) uint8 unrelated real images, m at least 2, to compare distances with.
        shown: latents in the picture strip.
    """
    directions = gaussian(len(start.latents), tuple(start.latents.shape[1:]), seed, _STREAM).to(start.latents.dtype)
    pixels, features, strip = [], [], []
    first = codec.decode(start.latents, start.labels)
    first_features = _features(extractor, first)
    for angle in angles:
        images = first if angle == 0 else codec.decode(rotate(start.latents, directions, angle), start.labels)
        pixels.append(_rms(images, first))
        if first_features is not None:
            turned = _features(extractor, images)
            assert turned is not None
            features.append((turned - first_features).norm(dim=1))
        strip.append(to_uint8(images[:shown]))
    real_features = _features(extractor, real)
    unrelated = _rms(real / 255, (real / 255).roll(1, dims=0))
    return AngleStudy(
        angles=tuple(angles),
        count=len(start.latents),
        pixels=_curve(angles, pixels, unrelated),
        features=None
        if real_features is None
        else _curve(angles, features, (real_features - real_features.roll(1, dims=0)).norm(dim=1)),
        strip=torch.stack(strip, dim=1),
    )


def half_angle(angles: Sequence[float], values: Sequence[float]) -> float | None:
    """Where a curve, straight between its points, first reaches half of its last value."""
    half = values[-1] / 2
    if half <= 0:
        return None
    for place in range(1, len(values)):
        low, high = values[place - 1], values[place]
        if high >= half:
            share = (half - low) / (high - low) if high > low else 0.0
            return angles[place - 1] + max(0.0, share) * (angles[place] - angles[place - 1])
    return None


def _curve(angles: Sequence[float], distances: Sequence[Tensor], unrelated: Tensor) -> AngleCurve:
    mean = tuple(float(values.mean()) for values in distances)
    return AngleCurve(
        mean=mean,
        std=tuple(float(values.std(correction=0)) for values in distances),
        unrelated=float(unrelated.mean()),
        half_angle=half_angle(angles, mean),
    )


def _rms(images: Tensor, reference: Tensor) -> Tensor:
    return (images.double() - reference.double()).square().flatten(1).mean(1).sqrt()


def _features(extractor: FeatureExtractor | None, images: Tensor) -> Tensor | None:
    if extractor is None:
        return None
    eight_bit = images if images.dtype == torch.uint8 else to_uint8(images)
    return torch.cat([extractor(part).features.cpu().double() for part in eight_bit.split(_AT_ONCE)])
