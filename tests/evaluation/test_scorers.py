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


def real(split: str) -> tuple[torch.Tensor, torch.Tensor]:
    loaded = load_all(open_source("digits", split=split), ImageOptions(image_size=8, channels=1))
    assert loaded.labels is not None
    return loaded.images / 255, loaded.labels


def test_real_digits_score_as_real(scorer: DigitScorer) -> None:
    images, labels = real("test")
    score = scorer.score(images, labels)
    assert score.accuracy == scorer.real_accuracy > 0.95
    assert score.deviation_ratio == pytest.approx(1, abs=0.1)
    assert score.distance_ratio == pytest.approx(1)


def test_copies_class_means_noise_and_wrong_labels_are_told_apart(scorer: DigitScorer) -> None:
    images, labels = real("train")
    copies = scorer.score(images, labels)
    assert copies.accuracy > 0.99 and copies.distance_ratio < 0.01
    means = torch.stack([images[labels == digit].mean(0) for digit in range(10)])[labels]
    assert scorer.score(means, labels).deviation_ratio < 0.01
    assert scorer.score(images, (labels + 1) % 10).accuracy < 0.05
    noise = torch.rand(images.shape, generator=torch.Generator().manual_seed(0))
    assert scorer.score(noise, labels).distance_ratio > 1.4
