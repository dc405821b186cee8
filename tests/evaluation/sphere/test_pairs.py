"""All pairs by blocks against all pairs at once."""

from __future__ import annotations

import pytest
import torch

from spheregen.errors import DataError
from spheregen.evaluation.sphere import pairs as module
from spheregen.evaluation.sphere.pairs import nearest_angles, survey_pairs
from spheregen.sphere import angle_between
from tests.evaluation.sphere.toys import generator, uniform


@pytest.fixture
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK", 64)


@pytest.mark.usefixtures("_small_blocks")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_blocks_equal_the_whole(dtype: torch.dtype) -> None:
    points = torch.randn(203, 7, generator=generator(1), dtype=dtype) * 3
    labels = torch.randint(0, 4, (203,), generator=generator(2))
    labels[labels == 3] = 0
    labels[5] = 3  # a class of one
    found = survey_pairs(points, labels, 4)
    unit = torch.nn.functional.normalize(points.double(), dim=1)
    first, second = torch.triu_indices(203, 203, 1)
    cosines = (unit @ unit.T).clamp(-1, 1)
    angles = torch.rad2deg(torch.acos(cosines))
    each = angles[first, second]
    close = 1e-4 if dtype == torch.float32 else 1e-7
    assert found.pairs == len(each) == int(found.histogram.sum())
    assert found.mean_angle == pytest.approx(float(each.mean()), abs=close)
    assert found.angle_std == pytest.approx(float(each.std(correction=0)), abs=close)
    assert found.mean_square_cosine == pytest.approx(float(cosines[first, second].square().mean()), rel=close)
    assert found.resultant == pytest.approx(float(unit.mean(dim=0).norm()), rel=close)
    assert found.largest_cosine == pytest.approx(float(cosines[first, second].abs().max()), abs=1e-6)
    a, b = found.largest_pair
    assert float(cosines[a, b].abs()) == pytest.approx(found.largest_cosine, abs=1e-6)
    below = found.histogram.cumsum(0).double() / found.pairs
    assert float(below[9000 - 1]) == pytest.approx(float((each < 90).double().mean()), abs=1e-3)
    nearest = angles.clone().fill_diagonal_(999).min(dim=1).values
    assert torch.allclose(found.nearest, nearest, rtol=0, atol=close * 10)
    assert found.class_angles is not None and found.class_square_cosines is not None
    for one in range(4):
        for other in range(4):
            chosen = angles[labels == one][:, labels == other]
            if one == other:
                chosen = chosen[tuple(torch.triu_indices(len(chosen), len(chosen), 1))]
            if len(chosen):
                assert float(found.class_angles[one, other]) == pytest.approx(float(chosen.mean()), abs=close)
    assert bool(found.class_angles[3, 3].isnan()) and bool(found.class_square_cosines[3].isnan())


def test_only_directions_count() -> None:
    points = uniform(50, 5, 3)
    scales = torch.rand(50, 1, generator=generator(4)) + 0.1
    one, other = survey_pairs(points), survey_pairs(points * scales)
    assert one.mean_angle == pytest.approx(other.mean_angle, abs=1e-4)
    assert one.largest_pair == other.largest_pair


def test_twins_and_opposites() -> None:
    points = uniform(40, 16, 5)
    points[7] = points[31]
    found = survey_pairs(points)
    assert found.largest_pair == (7, 31) and found.largest_cosine == pytest.approx(1)
    assert float(found.nearest[7]) == float(found.nearest[31]) == 0
    points[7] = -points[31]
    found = survey_pairs(points)
    assert found.largest_pair == (7, 31) and found.largest_cosine == pytest.approx(1)
    assert float(found.nearest[7]) > 10


def test_two_points() -> None:
    found = survey_pairs(torch.tensor([[1.0, 0.0], [1.0, 1.0]]))
    assert found.mean_angle == pytest.approx(45, abs=1e-4) and found.angle_std == pytest.approx(0, abs=1e-2)
    assert int(found.histogram.sum()) == 1 and found.nearest.tolist() == pytest.approx([45, 45], abs=1e-4)


@pytest.mark.usefixtures("_small_blocks")
def test_nearest_of_others() -> None:
    points, reference = uniform(130, 6, 6), uniform(200, 6, 7)
    every = torch.stack([angle_between(points, other.expand_as(points)) for other in reference])
    assert torch.allclose(nearest_angles(points, reference), every.min(dim=0).values.double(), rtol=0, atol=1e-4)
    assert float(nearest_angles(reference[:1], reference)) == 0


@pytest.mark.parametrize(
    ("points", "words"),
    [
        (torch.zeros(5, 4), "point 0 has no direction"),
        (torch.tensor([[1.0, 0], [torch.nan, 1]]), "point 1 has no direction"),
        (torch.ones(1, 4), "n at least 2"),
        (torch.ones(5, 1), "L at least 2"),
        (torch.ones(5, 2, 2), r"give \(n, L\)"),
    ],
)
def test_points_that_cannot_be(points: torch.Tensor, words: str) -> None:
    with pytest.raises(DataError, match=words):
        survey_pairs(points)
