"""The Frechet distance of two normal distributions (Dowson and Landau 1982), FID for Inception's features.

Heusel et al. 2017, arXiv 1706.08500: |m1 - m2|^2 + tr S1 + tr S2 - 2 tr (S1 S2)^(1/2).

The last trace equals the sum of the singular values of F1^T F2 for any factors S = F F^T, since (S1 S2) and
(F1^T F2)(F1^T F2)^T share their eigenvalues other than 0. This way no square root is taken of what rounding left where
an eigenvalue should be 0: with fewer images than features such roots add up to errors that show in a FID.
"""

from __future__ import annotations

import torch
from torch import Tensor

from spheregen.errors import DataError
from spheregen.evaluation.metrics.exact import exact
from spheregen.evaluation.metrics.moments import Gaussian

_NEGATIVE = 1e-3  # of the largest eigenvalue: more is not rounding, not even that of files in half precision


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """How far `a` and `b` are apart; 0 for equal ones, symmetric, in squared units of the features.

    Sets of fewer images look farther apart than they are, so compare only figures of the same number of images.

    Raises:
        DataError: they differ in width, or one holds NaN, or a matrix that is no covariance.
    """
    if a.dim != b.dim:
        raise DataError(
            f"one distribution has {a.dim} features and the other {b.dim}; compute both with the same feature network"
        )
    factor_a, factor_b = _factor(a), _factor(b)
    apart = (exact(a.mean).to(factor_a.device) - exact(b.mean).to(factor_a.device)).square().sum()
    shared = torch.linalg.svdvals(factor_a.T @ factor_b.to(factor_a.device)).sum()
    spread = sum(float(exact(gaussian.covariance).trace()) for gaussian in (a, b))
    return max(0.0, float(apart) + spread - 2 * float(shared))


def _factor(gaussian: Gaussian) -> Tensor:
    """F (D, R) with F F^T the covariance; R is D, or N-1 where fewer images than that can have filled no more.

    Raises:
        DataError: NaN, wrong shape, or clearly negative eigenvalues.
    """
    mean, covariance = exact(gaussian.mean), exact(gaussian.covariance)
    if covariance.shape != (gaussian.dim, gaussian.dim):
        raise DataError(
            f"a mean of {gaussian.dim} features came with a covariance of shape {tuple(covariance.shape)}; "
            "take both from one file"
        )
    if not bool(mean.isfinite().all() and covariance.isfinite().all()):
        raise DataError("the mean or covariance of the features holds NaN or infinite numbers; compute it afresh")
    values, vectors = torch.linalg.eigh((covariance + covariance.T) / 2)  # ascending
    if float(values[0]) < -_NEGATIVE * float(values[-1].clamp_min(0)):
        raise DataError(
            f"a covariance has the eigenvalue {float(values[0]):.3g} and so is none; compute the statistics afresh"
        )
    rank = gaussian.dim if gaussian.count is None else min(gaussian.dim, gaussian.count - 1)
    values, vectors = values[gaussian.dim - rank :], vectors[:, gaussian.dim - rank :]
    factor: Tensor = vectors * values.clamp_min(0).sqrt()
    return factor
