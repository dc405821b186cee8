"""The judge of digits tells good samples from class means and from copies; PSNR is what its definition says."""

from __future__ import annotations

import pytest
import torch

from spheregen.data import ImageOptions, load_all, open_source
from spheregen.evaluation.fidelity import psnr

pytest.importorskip("sklearn", reason="the digits judge needs scikit-learn")

from spheregen.evaluation.digits import DigitJudge


@pytest.fixture(scope="module")
def judge() -> DigitJudge:
    return DigitJudge()


def real(split: str) -> tuple[torch.Tensor, torch.Tensor]:
    loaded = load_all(open_source("digits", split=split), ImageOptions(image_size=8, channels=1))
    assert loaded.labels is not None
    return loaded.images / 255, loaded.labels


def test_real_digits_score_as_real(judge: DigitJudge) -> None:
    images, labels = real("test")
    score = judge.score(images, labels)
    assert score.accuracy == judge.real_accuracy > 0.95
    assert score.deviation_ratio == pytest.approx(1, abs=0.1)
    assert score.distance_ratio == pytest.approx(1)


def test_copies_class_means_noise_and_wrong_labels_are_told_apart(judge: DigitJudge) -> None:
    images, labels = real("train")
    copies = judge.score(images, labels)
    assert copies.accuracy > 0.99 and copies.distance_ratio < 0.01
    means = torch.stack([images[labels == digit].mean(0) for digit in range(10)])[labels]
    assert judge.score(means, labels).deviation_ratio < 0.01
    assert judge.score(images, (labels + 1) % 10).accuracy < 0.05
    noise = torch.rand(images.shape, generator=torch.Generator().manual_seed(0))
    assert judge.score(noise, labels).distance_ratio > 1.4


def test_psnr() -> None:
    reference = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 0.5
    shifted = reference.clone()
    shifted[1] += 0.1
    values = psnr(shifted, reference)
    assert values[0] == 100
    assert values[1].item() == pytest.approx(20, abs=1e-4)
    assert values.shape == (3,)
