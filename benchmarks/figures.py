"""The figures that benchmarks of samples share: class accuracy, Frechet distances, coverage, nearness to training.

Everything is measured against the images of one data set with the classes of a model: `train` images are the reference,
`test` images the measure of what is possible.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

import spheregen as sg
from spheregen.data import image_grid, save_png
from spheregen.evaluation.classifier import make_classifier
from spheregen.evaluation.images import open_real, take
from spheregen.measure.features import FEATURE_BATCH, FeatureExtractor, load_extractor
from spheregen.measure.metrics import frechet_distance, gaussian, manifold

REFERENCE, HELD_OUT = 10_000, 2_000
"""Images at most, evenly spread."""


@dataclass(frozen=True)
class _Seen:
    own: Tensor
    classifier: Tensor
    classes: Tensor
    pixels: Tensor


class Figures:
    """Scores samples of a model of `data`; the classifier that judges them is kept in `cache`."""

    def __init__(self, pipe: sg.Pipeline, data: str, cache: Path) -> None:
        names, how = pipe.info.class_names, pipe.image_options
        train, test = (open_real(data, split, how, class_names=names) for split in ("train", "test"))
        self._classifier = make_classifier(train, cache, held_out=test, class_names=names)
        self._own: FeatureExtractor = load_extractor("own")
        self._train = self._see(take(train.thinned(REFERENCE), min(len(train), REFERENCE)))
        held_out = test.thinned(HELD_OUT)
        images = take(held_out, len(held_out))
        self._test = self._see(images)
        self.accuracy = float(self._classifier.info.accuracy or 0)
        self._nearest = self._distance(self._test.pixels)

    def _see(self, images: Tensor) -> _Seen:
        own = [self._own(part).features for part in images.split(FEATURE_BATCH)]
        found = [self._classifier(part) for part in images.split(FEATURE_BATCH)]
        logits = [one.logits for one in found if one.logits is not None]
        pixels = torch.nn.functional.adaptive_avg_pool2d(images.float(), 16).flatten(1)
        return _Seen(torch.cat(own), torch.cat([one.features for one in found]), torch.cat(logits).argmax(1), pixels)

    def _distance(self, pixels: Tensor) -> float:
        return float(torch.cdist(pixels, self._train.pixels).min(1).values.median())

    def held_out(self) -> dict[str, float]:
        """The figures of the held-out images themselves."""
        return {"right": self.accuracy, **self._row(self._test), "nearest": 1.0}

    def of(self, images: Tensor, labels: Sequence[int] | Tensor) -> dict[str, float]:
        """The figures of uint8 samples (B, C, S, S).

        `right`: how often the classifier sees what was asked; `nearest`: the median distance at 16 px to the nearest
        training image, over that of held-out images: far below 1 are copies.
        """
        seen = self._see(images)
        right = float((seen.classes == torch.as_tensor(labels)).float().mean())
        return {"right": right, **self._row(seen), "nearest": self._distance(seen.pixels) / self._nearest}

    def _row(self, seen: _Seen) -> dict[str, float]:
        found = manifold(seen.own[:REFERENCE], self._train.own)
        return {
            "fd_own": frechet_distance(gaussian(seen.own), gaussian(self._train.own)),
            "fd_classifier": frechet_distance(gaussian(seen.classifier), gaussian(self._train.classifier)),
            "precision": found.precision,
            "recall": found.recall,
        }


def sheet(images: Tensor, labels: Sequence[int], path: Path, *, rows: int = 4, most: int = 16) -> None:
    """Save a sheet of images in [0, 1]: a column for each class, of 16 at most."""
    shown = sorted(set(labels))[:most]
    places = [[i for i, label in enumerate(labels) if label == one][:rows] for one in shown]
    order = [column[row] for row in range(rows) for column in places]
    save_png(image_grid(images[order], columns=len(shown), scale=1 if images.shape[-1] >= 64 else 2, pad=1), path)


def keep(path: Path, row: dict[str, object]) -> None:
    """Append a row to a file of JSON lines, and print it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
    print("  ".join(f"{k}={v:.3f}" if isinstance(v, float) else f"{k}={v}" for k, v in row.items()), flush=True)
