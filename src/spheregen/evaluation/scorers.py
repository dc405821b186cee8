"""Quick scores of samples: of digits by a classifier that never saw this package, of others by a Frechet distance."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from spheregen.data import ImageOptions, load_all, open_source, to_uint8
from spheregen.errors import SphereGenError
from spheregen.evaluation.images import RealImages, take
from spheregen.folders.card import ModelInfo
from spheregen.measure.features import FEATURE_BATCH, load_extractor
from spheregen.measure.metrics import Gaussian, Moments, frechet_distance

GAMMA = 0.256  # scikit-learn's textbook setting for these digits, moved from pixel values 0..16 to [0, 1]
REFERENCE_IMAGES = 10_000
Array = npt.NDArray[np.float64]


class Scorer(Protocol):
    """Scores samples of one kind of image."""

    def figures(self, images: Tensor, labels: Tensor) -> dict[str, float]:
        """Return named figures of images (B, C, S, S) in [0, 1] that were asked to show `labels` (B,)."""


def find_scorer(
    info: ModelInfo, image_shape: tuple[int, int, int], data: RealImages | None = None, device: str = "cpu"
) -> Scorer | None:
    """Return the scorer of a model's samples: by the data that is given, else by what it was trained on, else None.

    Raises:
        SphereGenError: there is one, but the package that it needs is not installed.
    """
    if data is not None:
        return FrechetScorer(data, torch.device(device))
    if info.training.get("data") == "digits" and image_shape == (1, 8, 8):
        return DigitScorer()
    return None


class FrechetScorer:
    """The Frechet distance to real images under the package's own network: a quick look, see `evaluate` for figures.

    Args:
        data: what to compare with; at most 10 000 images of it.
        device: where the network runs.
    """

    def __init__(self, data: RealImages, device: torch.device) -> None:
        self._extractor = load_extractor("own", device=device)
        some = RealImages(data.source, data.options, limit=REFERENCE_IMAGES, workers=data.workers)
        self._reference = self._gaussian(take(some, len(some)))

    def figures(self, images: Tensor, labels: Tensor) -> dict[str, float]:
        """Return the distance of images (B, C, S, S) in [0, 1], B at least 2."""
        return {"fd_own": frechet_distance(self._gaussian(to_uint8(images)), self._reference)}

    def _gaussian(self, images: Tensor) -> Gaussian:
        moments = Moments()
        for part in images.split(FEATURE_BATCH):
            moments.update(self._extractor(part).features.cpu())
        return moments.gaussian


class DigitScorer:
    """Scores samples of digits by scikit-learn's support vector classifier on 8x8 grey digits in [0, 1].

    It learns from the first 1400 real digits, as the generator does; the other 397 are held out.

    Raises:
        SphereGenError: scikit-learn is not installed.
    """

    def __init__(self) -> None:
        try:
            from sklearn.svm import SVC
        except ImportError as error:
            raise SphereGenError('scoring digits needs scikit-learn: pip install "spheregen[demo]"') from error
        self.train, self.train_labels = _real("train")
        held_out, held_out_labels = _real("test")
        self.classifier: Any = SVC(gamma=GAMMA).fit(self.train, self.train_labels)
        self.real_accuracy = float(self.classifier.score(held_out, held_out_labels))
        """The classifier's accuracy on held-out real digits."""
        self.real_deviation = _deviation(self.train, self.train_labels)
        self.real_distance = float(np.median(_nearest(held_out, self.train)))

    def figures(self, images: Tensor, labels: Tensor) -> dict[str, float]:
        """Score images (B, 1, 8, 8) in [0, 1] that were asked to show `labels` (B,).

        Returns:
            `accuracy`: the share of samples in which the classifier sees the digit that was asked for.
            `deviation_ratio`: pixel deviation within a class, relative to real digits: near 0 for class means, 1 for
            full variety. `distance_ratio`: median distance to the nearest training digit, relative to that of held-out
            real digits: near 0 for copies.
        """
        flat, asked = _flat(images), labels.cpu().numpy()
        return {
            "accuracy": float(np.mean(self.classifier.predict(flat) == asked)),
            "deviation_ratio": _deviation(flat, asked) / self.real_deviation,
            "distance_ratio": float(np.median(_nearest(flat, self.train))) / self.real_distance,
        }


def _real(split: str) -> tuple[Array, npt.NDArray[np.int64]]:
    loaded = load_all(open_source("digits", split=split), ImageOptions(image_size=8, channels=1))
    assert loaded.labels is not None
    return _flat(loaded.images / 255), loaded.labels.numpy()


def _flat(images: Tensor) -> Array:
    return images.flatten(1).to(torch.float64).cpu().numpy()


def _deviation(flat: Array, labels: npt.NDArray[np.int64]) -> float:
    """Return the standard deviation of a pixel within a class, averaged over pixels and classes."""
    return float(np.mean([flat[labels == label].std(axis=0).mean() for label in np.unique(labels)]))


def _nearest(flat: Array, reference: Array) -> Array:
    """Return the Euclidean distance of each row to its nearest reference."""
    squared = (flat**2).sum(1)[:, None] + (reference**2).sum(1) - 2 * flat @ reference.T
    distances: Array = np.sqrt(np.maximum(squared, 0).min(axis=1))
    return distances
