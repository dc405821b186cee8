"""Does a generator copy its training images? Its samples against the training set, beside real images that nobody
copied: the memorisation study of the Sphere Encoder (Yue et al. 2026, arXiv 2602.15030), with a verdict on each image.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from spheregen.errors import DataError
from spheregen.evaluation.features.base import FeatureExtractor
from spheregen.evaluation.originality.compare import Matches, TrainingSet
from spheregen.evaluation.originality.match import working_images
from spheregen.evaluation.report.parts import Section

LOWEST_THRESHOLD = 0.8
"""Of CIFAR-10's test images, a thirtieth of which has near-duplicates among the training images, 0.5 % reach it.
Exact, mirrored, shifted and recoloured copies have 0.92 at least; most softened and recompressed ones reach it."""
FEWEST = 4
"""Held-out images from which a threshold can follow."""
QUANTILES = (0.01, 0.1, 0.5, 0.9, 0.99)
FAMILIAR = 0.6
"""Median score of held-out images from which on copies are hard to tell from new images."""
_CHANCE = 0.005
"""Share of ordinary held-out images above the threshold."""
_LEAKED = 0.01
"""Share of flagged held-out images that false alarms can account for."""
_LISTED = 1000
_BATCH = 256


@dataclass(frozen=True, eq=False)
class Originality:
    """What the comparison found."""

    samples: Matches
    """Of the n samples."""
    held_out: Matches
    """Of the m held-out images."""
    threshold: float
    """Images of this score and more are called copies."""
    train_count: int
    """N."""
    features: str | None
    """The name of the network of the feature distances; None without one."""
    sheet: Image.Image
    """The most suspicious samples, worst first, each beside its nearest training images."""
    others: Image.Image
    """The same of samples evenly spread over all."""

    @property
    def flagged(self) -> Tensor:
        """(n,) bool: which samples are called copies."""
        return self.samples.score >= self.threshold

    @property
    def share(self) -> float:
        """Share of the samples that are called copies."""
        return float(self.flagged.double().mean())

    @property
    def held_out_share(self) -> float:
        """Share of the held-out images that would be called copies: false alarms, and true copies among them."""
        return float((self.held_out.score >= self.threshold).double().mean())

    def as_dict(self) -> dict[str, Any]:
        """The figures as plain values; of the copies the worst thousand."""
        copies = self.flagged.nonzero().flatten()
        worst = copies[self.samples.score[copies].argsort(descending=True, stable=True)][:_LISTED].sort().values
        return {
            "samples": len(self.samples),
            "training_images": self.train_count,
            "held_out": len(self.held_out),
            "features": self.features,
            "threshold": self.threshold,
            "flagged": len(copies),
            "share": self.share,
            "held_out_flagged": int((self.held_out.score >= self.threshold).sum()),
            "held_out_share": self.held_out_share,
            **{name: {"samples": quantiles(mine), "held_out": quantiles(real)} for name, mine, real in self.measures()},
            "copies": [
                {
                    "sample": place,
                    "training_image": int(self.samples.index[place]),
                    "score": float(self.samples.score[place]),
                    "mirrored": bool(self.samples.mirrored[place]),
                }
                for place in worst.tolist()
            ],
        }

    def measures(self) -> list[tuple[str, Tensor, Tensor]]:
        """Name, values of the samples and of the held-out images, of each measure of nearness."""
        found = [
            ("score", self.samples.score, self.held_out.score),
            ("pixel_distance", self.samples.pixel_distance, self.held_out.pixel_distance),
        ]
        mine, real = self.samples.feature_distance, self.held_out.feature_distance
        if mine is not None and real is not None:
            found.append(("feature_distance", mine, real))
        return found

    def warnings(self) -> tuple[str, ...]:
        """What speaks against the model or the figures, in plain words."""
        count, total = int(self.flagged.sum()), len(self.samples)
        real = int((self.held_out.score >= self.threshold).sum())
        found = []
        if _exceeds(count, total, real, len(self.held_out)):
            found.append(
                f"{count} of {total} samples look like copies of training images, and {real} of "
                f"{len(self.held_out)} held-out images do: look at them below"
            )
        most = _LEAKED * len(self.held_out)
        if real > most + 2.33 * math.sqrt(most):  # more than one in a hundred, beyond chance at 1 %
            found.append(
                f"{real} of {len(self.held_out)} held-out images are copies of training images themselves: the splits "
                "share images, so figures on held-out images flatter"
            )
        typical = float(self.held_out.score.median())
        if typical > FAMILIAR:
            found.append(
                f"these images are so small or simple that training images explain {typical:.0%} of an ordinary "
                "held-out one: only near-perfect copies can be told from new images"
            )
        return tuple(found)

    def section(self) -> Section:
        """The findings as a part of a page."""
        from spheregen.evaluation.originality.page import originality_section

        return originality_section(self)


def find_copies(
    samples: Tensor,
    train: Tensor,
    held_out: Tensor,
    *,
    extractor: FeatureExtractor | None = None,
    device: torch.device | None = None,
) -> Originality:
    """Look for each sample's original among the training images.

    Candidates come from softened thumbnails (of the image and of its mirror image), from pixels and, where there is a
    network, from features; each is then compared closely (`match.score`). The score from which on an image is called a
    copy follows from the middle half of the held-out images, so that copies among them do not raise it.

    Args:
        samples: (n, C, H, W) uint8.
        train: (N, C, H, W) uint8, what the generator has seen. Those of more than 64 pixels are reduced to that
            (`working_images`), which a caller may do while reading.
        held_out: (m, C, H, W) uint8, m at least 4: real images of the same kind that it has not seen.
        extractor: looks in features as well.
        device: computes; the CPU by default.

    Raises:
        DataError: images of another type or of different shapes, or too few.
    """
    from spheregen.evaluation.originality.page import sheet

    _check(samples, train, held_out)
    device = device or torch.device("cpu")
    seen = None if extractor is None else [_features(x, extractor, device) for x in (samples, train, held_out)]
    known = TrainingSet(working_images(train), seen[1] if seen else None, device)
    found = known.match(working_images(samples), seen[0] if seen else None)
    real = known.match(working_images(held_out), seen[2] if seen else None)
    order = found.score.argsort(descending=True, stable=True)
    spread = torch.arange(min(len(samples), 12)) * len(samples) // min(len(samples), 12)
    return Originality(
        samples=found,
        held_out=real,
        threshold=_threshold(real.score),
        train_count=len(train),
        features=None if extractor is None else extractor.info.name,
        sheet=sheet(samples, train, found, order[:24]),
        others=sheet(samples, train, found, spread),
    )


def quantiles(values: Tensor) -> dict[str, float]:
    """Quantiles by name, such as `50%`."""
    found = torch.quantile(values.double(), torch.tensor(QUANTILES, dtype=torch.float64)).tolist()
    return {f"{share:.0%}": value for share, value in zip(QUANTILES, found, strict=True)}


def _threshold(scores: Tensor) -> float:
    """The score that 0.5 % of ordinary held-out images reach, by the middle half of them; 0.8 at least.

    Logits of the scores are taken for normal. The extremes are left out, for they are where a data set's own
    near-duplicates lie: a tenth of the test images of a data set may be copies of training images.
    """
    logits = torch.logit(scores.double(), eps=1e-6)
    middle, upper = torch.quantile(logits, torch.tensor([0.5, 0.75], dtype=torch.float64)).tolist()
    deviation = (upper - middle) / NormalDist().inv_cdf(0.75)
    reached = middle + NormalDist().inv_cdf(1 - _CHANCE) * deviation
    return max(LOWEST_THRESHOLD, 1 / (1 + math.exp(-reached)))


def _exceeds(flagged: int, count: int, other_flagged: int, other_count: int) -> bool:
    """Whether a share is larger than another beyond chance: one-sided, pooled, at 1 %."""
    pooled = (flagged + other_flagged) / (count + other_count)
    deviation = math.sqrt(pooled * (1 - pooled) * (1 / count + 1 / other_count))
    return flagged / count - other_flagged / other_count > NormalDist().inv_cdf(0.99) * deviation


@torch.no_grad()
def _features(images: Tensor, extractor: FeatureExtractor, device: torch.device) -> Tensor:
    return torch.cat([extractor(part.to(device)).features.float().cpu() for part in images.split(_BATCH)])


def _check(samples: Tensor, train: Tensor, held_out: Tensor) -> None:
    for name, images, fewest in (
        ("samples", samples, 1),
        ("training images", train, 1),
        ("held-out", held_out, FEWEST),
    ):
        name = name if name != "held-out" else "held-out images"
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
            kind = str(images.dtype).removeprefix("torch.")
            raise DataError(f"the {name} are {kind} {tuple(images.shape)}; give uint8 (N, C, H, W), C = 1 or 3")
        if images.shape[1:] != train.shape[1:]:
            raise DataError(
                f"the {name} have the shape {tuple(images.shape[1:])}, the training images {tuple(train.shape[1:])}; "
                "bring all to one size and number of channels"
            )
        if len(images) < fewest:
            raise DataError(f"there are {len(images)} {name}; the search for copies needs {fewest} or more")
    if min(train.shape[-2:]) < 6:
        raise DataError(f"images of {tuple(train.shape[-2:])} pixels are too small to compare; 6 are needed")
