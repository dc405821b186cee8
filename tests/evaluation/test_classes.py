"""Class accuracy and diversity of samples, on features whose truth is known."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor

from spheregen.errors import DataError
from spheregen.evaluation.classes import Classified, class_figures, class_section

CLASSES, DIM = 4, 12


def clouds(count: int, *, seed: int, spread: float = 1.0) -> tuple[Tensor, Tensor]:
    """Four Gaussian clouds around centres that are easy to tell apart."""
    centres = 6 * torch.randn(CLASSES, DIM, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(count) % CLASSES
    noise = torch.randn(count, DIM, generator=torch.Generator().manual_seed(seed))
    return centres[labels] + spread * noise, labels


def classified(features: Tensor, labels: Tensor) -> Classified:
    """Look at images as a classifier does who knows the centres."""
    centres = clouds(CLASSES, seed=0, spread=0)[0]
    return Classified(features, labels, torch.cdist(features, centres).argmin(dim=1))


def figures_of(samples: Tensor, labels: Tensor) -> dict[str, Any]:
    train, held_out = classified(*clouds(400, seed=1)), classified(*clouds(80, seed=2))
    return class_figures(classified(samples, labels), train, held_out, ("a", "b", "c", "d"))


def test_samples_like_real_images_score_like_them() -> None:
    found = figures_of(*clouds(400, seed=3))
    assert found["accuracy"] == found["real_accuracy"] == 1
    assert found["counts"] == [100] * 4
    for value in found["mean_diversity"].values():
        assert value == pytest.approx(1, abs=0.1)
    assert not class_section(found).warnings
    json.dumps(found)
    rows = class_section(found).tables[0].rows
    assert [row[:3] for row in rows] == [("all", 400, 1), *((name, 100, 1) for name in "abcd")]


def test_wrong_classes_are_seen_where_they_are() -> None:
    samples, labels = clouds(400, seed=3)
    asked = torch.where(labels == 0, 1, labels)  # class 0 was asked to be 1
    asked[:8] = labels[:8]
    found = figures_of(samples, asked)
    assert found["per_class"][2] == found["per_class"][3] == 1
    assert found["confusion"][1][0] == pytest.approx(98 / 198)
    assert [sum(row) for row in found["confusion"]] == pytest.approx([1] * 4)
    found = figures_of(samples, labels[torch.randperm(400, generator=torch.Generator().manual_seed(1))])
    assert found["accuracy"] == pytest.approx(1 / CLASSES, abs=0.1)
    assert any("conditioning is weak" in warning for warning in class_section(found).warnings)


def test_collapse_shows_in_all_three_figures() -> None:
    samples, labels = clouds(400, seed=3)
    few = samples[: 2 * CLASSES].repeat(50, 1)
    mean = figures_of(few, labels)["mean_diversity"]
    assert mean["nearest"] < 1e-6
    assert mean["vendi"] < 0.5
    narrow = figures_of(*clouds(400, seed=3, spread=0.1))["mean_diversity"]
    assert narrow["variance"] == pytest.approx(0.01, rel=0.2)
    assert narrow["nearest"] == pytest.approx(0.1, rel=0.2)
    assert any("varied" in warning for warning in class_section(figures_of(few, labels)).warnings)


@pytest.mark.parametrize(
    ("labels", "said"),
    [(torch.tensor([0, 0, 1, 1, 2, 2, 3]), "class d has 1 samples"), (torch.arange(7), "class names")],
)
def test_too_few_images_of_a_class_are_one_line(labels: Tensor, said: str) -> None:
    with pytest.raises(DataError, match=said):
        figures_of(torch.randn(7, DIM), labels)
