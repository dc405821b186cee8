"""Originality: samples beside their nearest training images, in pixels and in features.

Real images that the generator never saw are the yardstick: the memorisation study of the Sphere Encoder (Yue et al.
2026, arXiv 2602.15030), with a verdict on each image.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from spheregen.data.grids import labelled_sheet
from spheregen.errors import DataError
from spheregen.evaluation.images import spread
from spheregen.evaluation.originality.match import Matches, TrainingSet
from spheregen.evaluation.report.parts import Plot, Section, Series, Sheet, Table
from spheregen.measure.features import FeatureExtractor

LOWEST_THRESHOLD = 0.8
"""Of CIFAR-10's test images, a thirtieth of which has near-duplicates among the training images, 0.5 % reach it.
Exact, mirrored, shifted and recoloured copies have 0.92 at least; most softened and recompressed ones reach it."""
FEWEST = 4
"""Held-out images from which a threshold can follow."""
QUANTILES = (0.01, 0.1, 0.5, 0.9, 0.99)
_FAMILIAR = 0.6  # median score of held-out images from which on copies are hard to tell from new images
_CHANCE = 0.005  # share of ordinary held-out images above the threshold
_LEAKED = 0.01  # share of flagged held-out images that false alarms can account for
_LISTED = 1000
_BINS = 60
_NAMES = {
    "score": "share explained",
    "pixel_distance": "distance in pixels (levels of 0..255)",
    "feature_distance": "distance in features",
}


@dataclass(frozen=True, kw_only=True, eq=False)
class Originality:
    """Findings of the comparison."""

    figures: dict[str, Any]
    """Plain values, for JSON: `samples`, `training_images`, `held_out` (counts), `features` (the network, or None), the
    `threshold` of the score from which on an image is called a copy, how many samples are (`flagged`, `share`) and how
    many held-out images would be (`held_out_flagged`, `held_out_share`: false alarms, and true copies among them),
    quantiles of each measure, and the worst thousand `copies`."""
    measures: Mapping[str, tuple[Tensor, Tensor]]
    """(n,) and (m,) float64: `score`, `pixel_distance` and, with features, `feature_distance` of samples and held-out
    images; see `Matches`."""
    sheets: tuple[Image.Image, Image.Image]
    """Samples beside their nearest training images: the most suspicious ones, and some evenly spread over all."""

    def warnings(self) -> tuple[str, ...]:
        """Return what speaks against the model or the figures."""
        found = self.figures
        samples, others, typical = found["share"], found["held_out_share"], found["score"]["held_out"]["50%"]
        pooled = (found["flagged"] + found["held_out_flagged"]) / (found["samples"] + found["held_out"])
        error = math.sqrt(pooled * (1 - pooled) * (1 / found["samples"] + 1 / found["held_out"]))
        slack = 2.33 * math.sqrt(_LEAKED / found["held_out"])
        checks = {
            f"{samples:.1%} of the samples look like copies of training images, {others:.1%} of held-out images do": (
                samples - others > 2.33 * error  # beyond chance at 1 %, and so below
            ),
            f"{others:.1%} of the held-out images are copies of training images: the splits share images": (
                others > _LEAKED + slack
            ),
            f"training images explain {typical:.0%} of an ordinary held-out image: only near-perfect copies are told": (
                typical > _FAMILIAR
            ),
        }
        return tuple(text for text, holds in checks.items() if holds)

    def section(self) -> Section:
        """Return the findings as a part of a page."""
        found = self.figures
        whose = {"samples": "samples", "held_out": "held-out images"}
        rows = [(_NAMES[name], of, *found[name][key].values()) for name in self.measures for key, of in whose.items()]
        counts = [
            ("images", found["samples"], found["held_out"]),
            ("flagged as copies", found["flagged"], found["held_out_flagged"]),
            ("share", found["share"], found["held_out_share"]),
        ]
        quantiles = ("measure", "of", *found["score"]["samples"])
        titles = ("The most suspicious samples", "Samples evenly spread over all")
        return Section(
            key="originality",
            title="Originality",
            text=(
                f"Each sample was compared with its likeliest originals among {found['training_images']} training "
                "images. The score is the share of the steps in brightness from pixel to pixel that the original "
                "explains, mirrored or not, under the best shift, change of colours and softening: 1 is a copy, and "
                f"from {found['threshold']:.3f} on an image is flagged. Held-out real images are the yardstick.",
            ),
            warnings=self.warnings(),
            tables=(
                Table(title="Copies of training images", header=("", *whose.values()), rows=tuple(counts)),
                Table(title="How near the training set comes: quantiles", header=quantiles, rows=tuple(rows)),
            ),
            plots=tuple(_histogram(_NAMES[name], *pair) for name, pair in self.measures.items()),
            sheets=tuple(Sheet(image=image, title=title) for image, title in zip(self.sheets, titles, strict=True)),
        )


@torch.no_grad()
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
    network, from features; each is then compared closely. The score from which on an image is called a copy follows
    from the middle half of the held-out images, so that copies among them do not raise it.

    Args:
        samples: (n, C, H, W) uint8.
        train: (N, C, H, W) uint8, the images that the generator has seen.
        held_out: (m, C, H, W) uint8, m at least 4: real images of the same kind that it has not seen.
        extractor: looks in features as well.
        device: computes; the CPU by default.

    Raises:
        DataError: images of another type or of different shapes, or too few.
    """
    _check(samples, train, held_out)
    known = TrainingSet(train, extractor, device or torch.device("cpu"))
    mine, real = known.match(samples), known.match(held_out)
    limit = threshold(real.score)
    pairs = {name: (getattr(mine, name), getattr(real, name)) for name in _NAMES}
    measures = {name: pair for name, pair in pairs.items() if pair[0] is not None}
    order = mine.score.argsort(descending=True, stable=True)
    flagged, held_out_flagged = (of.score >= limit for of in (mine, real))
    figures = {
        "samples": len(samples),
        "training_images": len(train),
        "held_out": len(held_out),
        "features": None if extractor is None else extractor.info.name,
        "threshold": limit,
        "flagged": int(flagged.sum()),
        "share": float(flagged.double().mean()),
        "held_out_flagged": int(held_out_flagged.sum()),
        "held_out_share": float(held_out_flagged.double().mean()),
        **{name: {"samples": _quantiles(a), "held_out": _quantiles(b)} for name, (a, b) in measures.items()},
        "copies": [
            {
                "sample": place,
                "training_image": int(mine.index[place]),
                "score": float(mine.score[place]),
                "mirrored": bool(mine.mirrored[place]),
            }
            for place in sorted(order[:_LISTED][flagged[order[:_LISTED]]].tolist())
        ],
    }
    sheets = (_sheet(samples, train, mine, order[:24]), _sheet(samples, train, mine, spread(12, len(samples))))
    return Originality(figures=figures, measures=measures, sheets=sheets)


def threshold(scores: Tensor) -> float:
    """Return the score that 0.5 % of ordinary held-out images reach, by the middle half of them; 0.8 at least.

    Logits of the scores are taken for normal. The extremes are left out, for they are where a data set's own
    near-duplicates lie: a tenth of the test images of a data set may be copies of training images.
    """
    logits = torch.logit(scores.double(), eps=1e-6)
    middle, upper = torch.quantile(logits, torch.tensor([0.5, 0.75], dtype=torch.float64)).tolist()
    reached = middle + NormalDist().inv_cdf(1 - _CHANCE) * (upper - middle) / NormalDist().inv_cdf(0.75)
    return max(LOWEST_THRESHOLD, 1 / (1 + math.exp(-reached)))


def _quantiles(values: Tensor) -> dict[str, float]:
    found = torch.quantile(values.double(), torch.tensor(QUANTILES, dtype=torch.float64)).tolist()
    return {f"{share:.0%}": value for share, value in zip(QUANTILES, found, strict=True)}


def _histogram(name: str, samples: Tensor, held_out: Tensor) -> Plot:
    """Shares of the images in equal bins over both."""
    both = torch.cat([samples, held_out])
    low, high = float(both.min()), max(float(both.max()), float(both.min()) + 1e-6)
    middles = tuple((low + (high - low) * (torch.arange(_BINS, dtype=torch.float64) + 0.5) / _BINS).tolist())
    series = tuple(
        Series(name=title, x=middles, y=tuple((torch.histc(x, _BINS, low, high) / len(x)).tolist()), kind="step")
        for title, x in (("samples", samples), ("held-out images", held_out))
    )
    return Plot(title=name.capitalize(), x_label=name, y_label="share of images", series=series)


def _sheet(samples: Tensor, train: Tensor, found: Matches, places: Tensor) -> Image.Image:
    """Samples at places (p,), each beside its match, the nearest in pixels and, if there, in features."""
    columns = ["sample", "match", "nearest in pixels", *(["in features"] if found.feature_index is not None else [])]
    rows: list[list[Tensor | None]] = []
    notes: list[list[str]] = []
    for place in places.tolist():
        match, near = train[found.index[place]], [found.pixel_index[place]]
        near += [] if found.feature_index is None else [found.feature_index[place]]
        shown = [samples[place], match.flip(-1) if found.mirrored[place] else match, *(train[one] for one in near)]
        rows.append([image[None] for image in shown])
        notes.append(
            [f"{place}: {float(found.score[place]):.3f}", *(str(int(of)) for of in (found.index[place], *near))]
        )
    scale = max(1, round(96 / samples.shape[-1]))
    return labelled_sheet(rows, [""] * len(rows), columns, notes=notes, scale=scale, pad=0)


def _check(samples: Tensor, train: Tensor, held_out: Tensor) -> None:
    kinds = [f"{of.dtype} {tuple(of.shape)}".removeprefix("torch.") for of in (samples, train, held_out)]
    alike = all(of.dtype == torch.uint8 and of.shape[1:] == train.shape[1:] for of in (samples, train, held_out))
    if not alike or min(train.shape[-2:]) < 6 or not len(samples) or not len(train) or len(held_out) < FEWEST:
        raise DataError(
            f"samples, training and held-out images cannot be compared ({', '.join(kinds)}); bring all to uint8 of one "
            f"size from 6 px on, and give {FEWEST} or more held-out ones"
        )
