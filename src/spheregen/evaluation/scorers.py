"""Quick scores of samples by classifiers of real images and by Frechet distances."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from spheregen.data import ImageOptions, load_all, open_source, to_uint8
from spheregen.data.embedded import TWINS
from spheregen.errors import SphereGenError
from spheregen.evaluation.classifier import CLASSIFIER, make_classifier
from spheregen.evaluation.images import RealImages, take
from spheregen.folders.card import ModelInfo
from spheregen.measure.features import FEATURE_BATCH, load_extractor
from spheregen.measure.features.classifier import train_classifier
from spheregen.measure.metrics import Gaussian, Moments, frechet_distance
from spheregen.progress import Reporter

GAMMA = 0.256  # scikit-learn's textbook setting for these digits, moved from pixel values 0..16 to [0, 1]
CLASSIFIER_IMAGES, REFERENCE_IMAGES, FEWEST_HELD_OUT = 50_000, 10_000, 200
Array = npt.NDArray[np.floating[Any]]


class Scorer(Protocol):
    """Scores samples of one kind of image."""

    def figures(self, images: Tensor, labels: Tensor | None) -> dict[str, float]:
        """Return named figures of images (B, C, S, S) in [0, 1] that were asked to show `labels` (B,), if any."""


def find_scorer(
    info: ModelInfo,
    image_shape: tuple[int, int, int],
    data: RealImages | None = None,
    device: str = "cpu",
    reporter: Reporter | None = None,
) -> Scorer | None:
    """Return the scorer of a model's samples: by the data that is given, else by what it was trained on, else None.

    Raises:
        SphereGenError: there is one, but the package that it needs is not installed.
    """
    if data is not None:
        return DataScorer(data, info.class_names, device, reporter)
    if info.training.get("data") == "digits" and image_shape == (1, 8, 8) and info.class_names:
        return DigitScorer()
    return None


class DataScorer:
    """What a classifier of real images sees, and Frechet distances to them: a quick look, see `evaluate` for figures.

    Args:
        data: what the classifier learns from, and what to compare with; at most 10 000 images of it.
        class_names: of the model.
        device: where the networks run.
        reporter: told that the classifier learns, which takes a minute.
        held_out: images to compare with instead, if there are at least 200.
    """

    def __init__(
        self,
        data: RealImages,
        class_names: Sequence[str] = (),
        device: torch.device | str = "cpu",
        reporter: Reporter | None = None,
        *,
        held_out: RealImages | None = None,
    ) -> None:
        learned = data.thinned(CLASSIFIER_IMAGES)
        with tempfile.TemporaryDirectory() as folder:
            classifier = make_classifier(
                learned, Path(folder), held_out=held_out, class_names=class_names, device=device, reporter=reporter
            )
        self._extractors = {"own": load_extractor("own", device=device), CLASSIFIER: classifier}
        some = data if held_out is None or len(held_out) < FEWEST_HELD_OUT else held_out
        some = some.thinned(REFERENCE_IMAGES)
        real = take(some, len(some))
        self.compared_with = f"{len(some)} images of {some.source.name}, split {some.source.split}"
        self._references = {name: self._measured(name, real)[0] for name in self._extractors}

    @property
    def real_accuracy(self) -> float | None:
        """The share of held-out real images whose class the classifier sees; None where there are no classes."""
        return self._extractors[CLASSIFIER].info.accuracy

    def figures(self, images: Tensor, labels: Tensor | None) -> dict[str, float]:
        """Return the class accuracy, where there are classes, and distances of images (B, C, S, S) in [0, 1]."""
        found: dict[str, float] = {}
        for name, reference in self._references.items():
            measured, seen = self._measured(name, to_uint8(images))
            if name == CLASSIFIER and self.real_accuracy is not None and labels is not None:
                found["class_accuracy"] = float((seen == labels.cpu()).float().mean())
            found[f"fd_{name}"] = frechet_distance(measured, reference)
        return found

    def _measured(self, name: str, images: Tensor) -> tuple[Gaussian, Tensor]:
        """Return the moments of features, and the classes (n,) that the classifier sees."""
        moments, seen = Moments(), []
        for part in images.split(FEATURE_BATCH):
            made = self._extractors[name](part)
            moments.update(made.features.cpu())
            seen += [made.logits.argmax(dim=1).cpu()] if made.logits is not None else []
        return moments.gaussian, torch.cat(seen) if seen else torch.empty(0)


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

    def figures(self, images: Tensor, labels: Tensor | None) -> dict[str, float]:
        """Score images (B, 1, 8, 8) in [0, 1] that were asked to show `labels` (B,).

        Returns:
            `accuracy`: the share of samples in which the classifier sees the digit that was asked for.
            `deviation_ratio`: pixel deviation within a class, relative to real digits: near 0 for class means, 1 for
            full variety. `distance_ratio`: median distance to the nearest training digit, relative to that of held-out
            real digits: near 0 for copies.
        """
        assert labels is not None
        flat, asked = _flat(images), labels.cpu().numpy()
        return {
            "accuracy": float(np.mean(self.classifier.predict(flat) == asked)),
            "deviation_ratio": _deviation(flat, asked) / self.real_deviation,
            "distance_ratio": float(np.median(_nearest(flat, self.train))) / self.real_distance,
        }


class LetterScorer:
    """Scores samples of the embedded letters by a small classifier that learns from the same typefaces in a minute.

    The typefaces of the other split are held out. Letters whose shapes coincide (`TWINS`) count as one.
    """

    def __init__(self) -> None:
        options = ImageOptions(image_size=32, channels=1)
        (images, labels), (held_out, held_out_labels) = (
            (loaded.images, torch.as_tensor(loaded.labels))
            for loaded in (load_all(open_source("letters", split=split), options) for split in ("train", "test"))
        )
        names = open_source("letters").class_names
        self._one = torch.arange(len(names))
        for group in TWINS:
            self._one[[names.index(letter) for letter in group]] = names.index(group[0])
        self.classifier = train_classifier(images, labels, len(names))
        self.real_accuracy = self._accuracy(held_out, held_out_labels)
        """The classifier's accuracy on held-out typefaces."""
        self.train, self.train_labels = _flat(images / 255).astype(np.float32), labels.numpy()
        real, real_labels = _flat(held_out / 255).astype(np.float32), held_out_labels.numpy()
        self.real_deviation = _deviation(real, real_labels)
        self.real_distance = self._distance(real, real_labels)

    def figures(self, images: Tensor, labels: Tensor | None) -> dict[str, float]:
        """Score images (B, 1, 32, 32) in [0, 1] that were asked to show `labels` (B,).

        Returns:
            As of `DigitScorer`, relative to typefaces that were held out; distances are to training images of the same
            letter.
        """
        assert labels is not None
        flat, asked = _flat(images).astype(np.float32), labels.cpu().numpy()
        return {
            "accuracy": self._accuracy(to_uint8(images), labels.cpu()),
            "deviation_ratio": _deviation(flat, asked) / self.real_deviation,
            "distance_ratio": self._distance(flat, asked) / self.real_distance,
        }

    def _accuracy(self, images: Tensor, labels: Tensor) -> float:
        return float((self._one[self.classifier.classes(images)] == self._one[labels]).float().mean())

    def _distance(self, flat: Array, labels: npt.NDArray[np.int64]) -> float:
        found = [_nearest(flat[labels == label], self.train[self.train_labels == label]) for label in np.unique(labels)]
        return float(np.median(np.concatenate(found)))


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
