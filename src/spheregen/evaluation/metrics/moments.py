"""Mean and covariance of features, summed up batch by batch.

Legend: N images, D features.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from spheregen.errors import DataError
from spheregen.evaluation.metrics.exact import exact, exact_blocks
from spheregen.evaluation.rows import Rows


@dataclass(frozen=True)
class Gaussian:
    """The normal distribution that stands for a set of features; reference files hold one."""

    mean: Tensor
    """(D,) float64."""
    covariance: Tensor
    """(D, D) float64, divided by N-1."""
    count: int | None = None
    """N, where it is known: published files do not say. Its rank is at most N-1, which makes distances more exact."""

    @property
    def dim(self) -> int:
        """D."""
        return self.mean.shape[0]


class Moments:
    """Count, mean and scatter of features, in float64; stable for features with a mean far from 0.

    Parts join by the pairwise formula of Chan, Golub and LeVeque (1983): each batch is centred on its own mean before
    its squares are summed, so nothing large is ever subtracted from something large. Batches on any device are taken;
    the sums stay on that of the first one.
    """

    def __init__(self) -> None:
        self.count = 0
        """N so far."""
        self._mean = torch.zeros(0, dtype=torch.float64)
        self._scatter = torch.zeros(0, 0, dtype=torch.float64)

    def update(self, features: Tensor) -> None:
        """Take in one batch (n, D).

        Raises:
            DataError: the batch has another width than those before.
        """
        features = exact(features)
        if not len(features):
            return
        mean = features.mean(dim=0)
        centred = features - mean
        self._join(len(features), mean, centred.T @ centred)

    def merge(self, other: Moments) -> None:
        """Take in what another one has summed up, from another process for example.

        Raises:
            DataError: it saw features of another width.
        """
        if other.count:
            self._join(other.count, other._mean, other._scatter)

    @property
    def mean(self) -> Tensor:
        """(D,) float64.

        Raises:
            DataError: nothing was taken in.
        """
        if not self.count:
            raise DataError("a mean needs at least 1 image, not 0; give more images")
        return self._mean

    @property
    def covariance(self) -> Tensor:
        """(D, D) float64, unbiased: the scatter over N-1.

        Raises:
            DataError: fewer than two images.
        """
        if self.count < 2:
            raise DataError(f"a covariance needs at least 2 images, not {self.count}; give more images")
        return self._scatter / (self.count - 1)

    @property
    def gaussian(self) -> Gaussian:
        """Mean, covariance and count.

        Raises:
            DataError: fewer than two images.
        """
        return Gaussian(mean=self.mean, covariance=self.covariance, count=self.count)

    def _join(self, count: int, mean: Tensor, scatter: Tensor) -> None:
        if not self.count:
            self.count, self._mean, self._scatter = count, mean.clone(), scatter.clone()
            return
        if mean.shape != self._mean.shape:
            raise DataError(
                f"features of width {mean.shape[0]} follow features of width {self._mean.shape[0]}; "
                "compute all with the same feature network"
            )
        device = self._mean.device
        total = self.count + count
        step = mean.to(device) - self._mean
        self._scatter += scatter.to(device)
        self._scatter.addr_(step, step, alpha=self.count * count / total)
        self._mean = self._mean + step * (count / total)  # a new tensor: Gaussians hold the old one
        self.count = total


def moments(rows: Rows) -> Moments:
    """The moments of all rows.

    Raises:
        DataError: a number is not finite.
    """
    found = Moments()
    for _, block in exact_blocks(rows):
        found.update(block)
    return found
