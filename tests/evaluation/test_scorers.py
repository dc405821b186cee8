"""The scorer of digits tells good samples from class means and from copies."""

from __future__ import annotations

import pytest
import torch

from spheregen.data import ImageOptions, load_all, open_source

pytest.importorskip("sklearn", reason="the scorer of digits needs scikit-learn")

from spheregen.evaluation.scorers import DigitScorer


@pytest.fixture(scope="module")
def scorer() -> DigitScorer:
    return DigitScorer()


def real() -> tuple[torch.Tensor, torch.Tensor]:
    loaded = load_all(open_source("digits"), ImageOptions(image_size=8, channels=1))
    assert loaded.labels is not None
    return loaded.images / 255, loaded.labels


def test_copies_class_means_noise_and_wrong_labels_are_told_apart(scorer: DigitScorer) -> None:
    images, labels = real()
    assert scorer.real_accuracy > 0.95
    copies = scorer.figures(images, labels)
    assert copies["accuracy"] > 0.99 and copies["distance_ratio"] < 0.01
    means = torch.stack([images[labels == digit].mean(0) for digit in range(10)])[labels]
    assert scorer.figures(means, labels)["deviation_ratio"] < 0.01
    assert scorer.figures(images, (labels + 1) % 10)["accuracy"] < 0.05
    noise = torch.rand(images.shape, generator=torch.Generator().manual_seed(0))
    assert scorer.figures(noise, labels)["distance_ratio"] > 1.4
