"""The Inception Score (Salimans et al. 2016, arXiv 1606.03498): clear classes in each image, many classes in all.

exp(mean over images of KL(p(class | image) || mean p(class))), for each of several parts of the images.

Legend: N images, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch

from spheregen.errors import ConfigError
from spheregen.evaluation.metrics.exact import check_count, exact_blocks
from spheregen.evaluation.rows import Rows


@dataclass(frozen=True)
class Score:
    """Inception Score over splits, between 1 and the number of classes."""

    value: float
    """Mean over splits."""
    deviation: float
    """Population standard deviation over splits, what the literature prints after the value; 0 for one split."""


def inception_score(logits: Rows, splits: int = 10) -> Score:
    """The score of images by the class logits (N, K) of a classifier.

    Split i holds the images from i * N // splits up to (i + 1) * N // splits, in the order given, as in the authors'
    program: all images count, and where `splits` does not divide N some splits have one image more. So sorted images,
    class by class, score low; and small splits score low, for which the literature takes 10 splits of 5000.

    Raises:
        ConfigError: no splits.
        DataError: fewer images than splits, or NaN.
    """
    if splits < 1:
        raise ConfigError(f"an Inception Score takes at least 1 split, not {splits}")
    count, classes = logits.shape
    metric = f"an Inception Score of {splits} splits"
    check_count(logits, splits, metric, cure="give more images, or lower the number of splits")
    bounds = [i * count // splits for i in range(splits + 1)]
    sizes = torch.tensor([stop - start for start, stop in pairwise(bounds)], dtype=torch.float64)
    clarity = torch.zeros(splits, dtype=torch.float64)  # sums over images and classes of p log p
    marginal = torch.zeros(splits, classes, dtype=torch.float64)  # sums over images of p
    for part, block in exact_blocks(logits):
        log_p = block.log_softmax(dim=1)
        p = log_p.exp()
        for split, (start, stop) in enumerate(pairwise(bounds)):
            here = slice(max(start, part.start) - part.start, min(stop, part.stop) - part.start)
            if here.start < here.stop:
                clarity[split] += (p[here] * log_p[here]).sum().cpu()
                marginal[split] += p[here].sum(dim=0).cpu()
    mean = marginal / sizes[:, None]
    scores = (clarity / sizes - torch.xlogy(mean, mean).sum(dim=1)).exp()
    return Score(value=float(scores.mean()), deviation=float(scores.std(correction=0)))
