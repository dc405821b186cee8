"""Distances and scores of sets of features, exact and block by block: see each module for its formula and source.

All take rows of features (`spheregen.evaluation.rows.Rows`; a tensor (N, D) is one), sum in float64, and hold a few
thousand rows at a time.
"""

from spheregen.evaluation.metrics.cmmd import cmmd
from spheregen.evaluation.metrics.frechet import frechet_distance
from spheregen.evaluation.metrics.inception_score import Score, inception_score
from spheregen.evaluation.metrics.kernel import KernelDistance, kernel_distance
from spheregen.evaluation.metrics.manifold import Manifold, manifold
from spheregen.evaluation.metrics.moments import Gaussian, Moments, moments

__all__ = [
    "Gaussian",
    "KernelDistance",
    "Manifold",
    "Moments",
    "Score",
    "cmmd",
    "frechet_distance",
    "inception_score",
    "kernel_distance",
    "manifold",
    "moments",
]
