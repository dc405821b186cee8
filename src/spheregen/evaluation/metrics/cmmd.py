"""CMMD: a kernel distance of CLIP embeddings (Jayasumana et al. 2024, arXiv 2401.09603).

1000 (mean k(x, x') + mean k(y, y') - 2 mean k(x, y)) with k(x, y) = exp(-|x - y|^2 / (2 * 10^2)) on embeddings of unit
norm. The means run over all pairs, an image with itself included: the biased estimate, as the authors' program has it,
though the paper prints the unbiased one. It is never below 0, and too high by 1000 (1 - mean k) / N for each set.
"""

from __future__ import annotations

import torch
from torch import Tensor

from spheregen.errors import DataError
from spheregen.evaluation.metrics.exact import block_pairs, check_count, check_pair, exact_blocks, squared_distances
from spheregen.evaluation.rows import Rows

WIDTH = 10.0
SCALE = 1000.0
_NORM_SLACK = 1e-2  # embeddings in bfloat16 are still of unit norm


def cmmd(samples: Rows, reference: Rows) -> float:
    """The distance of two sets of embeddings (N, D) and (N', D) of unit norm.

    Raises:
        DataError: no images, embeddings of another width or norm, or NaN.
    """
    check_pair(samples, reference)
    for rows, name in ((samples, "samples"), (reference, "reference images")):
        check_count(rows, 1, "CMMD", name)
        _check_norms(rows, name)
    within = _mean_within(samples) + _mean_within(reference)
    return SCALE * max(0.0, within - 2 * _mean_between(samples, reference))


def _check_norms(rows: Rows, name: str) -> None:
    for part, block in exact_blocks(rows):
        norms = torch.linalg.vector_norm(block, dim=1)
        wrong = (norms - 1).abs() > _NORM_SLACK
        if bool(wrong.any()):
            first = int(wrong.nonzero()[0, 0])
            raise DataError(
                f"CMMD needs embeddings of unit norm, but that of image {part.start + first} of the {name} has norm "
                f"{float(norms[first]):.4g}; use the CLIP features"
            )


def _mean_within(rows: Rows) -> float:
    """The mean of k(x, x') - 1 over all pairs of one set."""
    total = 0.0
    for part, x, other, y in block_pairs(rows):
        squared = squared_distances(x, y)
        if part == other:
            squared.fill_diagonal_(0)
            total += _kernel_sum(squared)
        else:
            total += 2 * _kernel_sum(squared)
    return total / rows.shape[0] ** 2


def _mean_between(a: Rows, b: Rows) -> float:
    """The mean of k(x, y) - 1 over all pairs of two sets."""
    total = sum(_kernel_sum(squared_distances(x, y)) for _, x, _, y in block_pairs(a, b))
    return total / (a.shape[0] * b.shape[0])


def _kernel_sum(squared: Tensor) -> float:
    """The sum of k - 1, in place: k of unit vectors is above 0.98, and the ones cancel in the end."""
    return float(squared.mul_(-1 / (2 * WIDTH**2)).expm1_().sum())
