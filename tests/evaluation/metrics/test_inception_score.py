"""The Inception Score equals its definition for each split, and known values."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from spheregen.errors import ConfigError, DataError
from spheregen.evaluation.metrics import inception_score
from tests.evaluation.metrics.conftest import Stored


def direct(logits: torch.Tensor, splits: int) -> tuple[float, float]:
    """The mean of KL divergences, image by image, as the definition has it."""
    p = logits.double().softmax(1).numpy()
    scores = []
    for part in (p[i * len(p) // splits : (i + 1) * len(p) // splits] for i in range(splits)):
        divergences = (part * (np.log(part) - np.log(part.mean(0)))).sum(1)
        scores.append(np.exp(divergences.mean()))
    return float(np.mean(scores)), float(np.std(scores))


def random_logits(count: int, classes: int, scale: float = 3.0) -> torch.Tensor:
    return scale * torch.randn(count, classes, generator=torch.Generator().manual_seed(count))


@pytest.mark.parametrize(("count", "splits"), [(100, 1), (100, 10), (103, 10), (10, 10), (9001, 4)])
def test_it_equals_the_definition(count: int, splits: int) -> None:
    logits = random_logits(count, 7)
    stored = Stored(logits)
    found = inception_score(stored, splits)
    value, deviation = direct(logits, splits)
    assert found.value == pytest.approx(value, rel=1e-9)
    assert found.deviation == pytest.approx(deviation, rel=1e-6, abs=1e-12)
    assert stored.largest <= 4096


def test_known_values() -> None:
    sure = torch.eye(5).repeat(8, 1) * 1000
    assert inception_score(sure, 4).value == pytest.approx(5)
    assert inception_score(torch.zeros(40, 5), 4).value == pytest.approx(1)
    assert inception_score(sure[:1].repeat(40, 1), 4).value == pytest.approx(1)
    halves = torch.tensor([[0.0, 0.0, -1e4, -1e4], [-1e4, -1e4, 0.0, 0.0]]).repeat(10, 1)  # p log p of p = 0 is 0
    assert inception_score(halves, 1).value == pytest.approx(2)


def test_it_lies_between_one_and_the_number_of_classes_and_ignores_a_shift() -> None:
    logits = random_logits(60, 6)
    found = inception_score(logits, 3)
    assert 1 < found.value < 6
    assert inception_score(logits + 100, 3).value == pytest.approx(found.value, rel=1e-4)
    within = torch.cat([part[torch.randperm(20)] for part in logits.split(20)])  # order counts between splits alone
    assert inception_score(within, 3).value == pytest.approx(found.value, rel=1e-12)


def test_half_precision_logits_are_taken_as_they_are() -> None:
    logits = random_logits(50, 6).half()
    assert inception_score(logits, 5).value == inception_score(logits.double(), 5).value
    assert not math.isnan(inception_score(logits, 5).deviation)


def test_errors() -> None:
    with pytest.raises(ConfigError, match="at least 1 split, not 0"):
        inception_score(torch.zeros(5, 2), 0)
    with pytest.raises(DataError, match="an Inception Score of 10 splits needs at least 10 images, not 5"):
        inception_score(torch.zeros(5, 2))
    with pytest.raises(DataError, match="image 3 hold NaN"):
        inception_score(torch.zeros(20, 2).index_fill(0, torch.tensor(3), torch.inf))
