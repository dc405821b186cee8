"""The bar for false alarms: level 1 %, 2000 uniform points in 512 dimensions, at most 5 rejections in 100 draws."""

from __future__ import annotations

from spheregen.evaluation.sphere.uniformity import uniformity_test
from tests.evaluation.sphere.toys import uniform


def test_uniform_points_are_hardly_ever_rejected() -> None:
    assert sum(uniformity_test(uniform(2000, 512, draw), level=0.01).rejected for draw in range(100)) <= 5
