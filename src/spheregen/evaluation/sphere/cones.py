"""Where random points lie relative to the noise cones of the data, in which the decoder was trained.

Training shows the decoder points within about alpha_max degrees of some latent of the data. Generation starts from
random points. In high L these lie near 90 degrees from every latent: the angle of a pair has a deviation of only
57.3 / sqrt(L) degrees, so that even the nearest of very many latents is a few deviations closer and no more. (Diagnosis
of Sphere Encoder 2, arXiv 2610.02208.)

Angles in degrees.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from spheregen.evaluation.sphere.angle_law import AngleLaw
from spheregen.evaluation.sphere.codec import Codec, Starts
from spheregen.evaluation.sphere.pairs import nearest_angles
from spheregen.sphere import angle_between, sigma_to_angle


@dataclass(frozen=True)
class Spread:
    """How angles are distributed."""

    mean: float
    least: float
    p5: float
    median: float
    p95: float
    largest: float


@dataclass(frozen=True, kw_only=True)
class ConeStudy:
    """Random points, and the latents of samples made from them, against the latents of data."""

    max_angle: float
    """alpha_max = atan(sigma_max)."""
    count: int
    """Latents of data."""
    random_to_data: Tensor
    """(m,) float64: from each random point to the nearest latent of data."""
    expected_random: float
    """The median of that, were the latents uniform."""
    random_in_cones: float
    """The share of random points within max_angle of some latent of data."""
    random_to_mean: float
    """The mean angle from random points to the mean direction of the latents; 90 in every case, up to chance."""
    samples_to_data: Tensor
    """(m,) float64: from the latents of one-step samples, E(D(random)), to the nearest latent of data."""
    samples_in_cones: float
    """The share of those within max_angle of some latent of data."""
    samples_to_start: float
    """The mean angle between a random point and the latent of its sample."""
    data_to_data: Tensor
    """(n,) float64: from each latent of data to the nearest other."""


@torch.no_grad()
def cone_study(codec: Codec, random: Starts, data: Tensor, data_to_data: Tensor) -> ConeStudy:
    """Compare random points with latents of data (n, *latent_shape), whose nearest others are known already."""
    flat = data.flatten(1)
    max_angle = sigma_to_angle(codec.model.sigma_max)
    samples = codec.around(random.latents, random.labels)
    random_to_data = nearest_angles(random.latents.flatten(1), flat)
    samples_to_data = nearest_angles(samples.flatten(1), flat)
    middle = flat.mean(dim=0, dtype=torch.float64).to(flat.dtype).expand(len(random.latents), -1)
    return ConeStudy(
        max_angle=max_angle,
        count=len(flat),
        random_to_data=random_to_data,
        expected_random=AngleLaw(flat.shape[1]).median_nearest(len(flat)),
        random_in_cones=_share(random_to_data <= max_angle),
        random_to_mean=float(angle_between(random.latents.flatten(1), middle).double().mean()),
        samples_to_data=samples_to_data,
        samples_in_cones=_share(samples_to_data <= max_angle),
        samples_to_start=float(angle_between(samples, random.latents).double().mean()),
        data_to_data=data_to_data,
    )


def spread(angles: Tensor) -> Spread:
    """The distribution of angles (n,) in a few numbers."""
    levels = torch.tensor([0.0, 0.05, 0.5, 0.95, 1.0], dtype=torch.float64)
    return Spread(float(angles.double().mean()), *torch.quantile(angles.double(), levels).tolist())


def _share(inside: Tensor) -> float:
    return float(inside.double().mean())
