"""The bar for detection: 20 of 2000 points in 512 dimensions within 30 degrees of one direction, 95 of 100 found."""

from __future__ import annotations

import torch

from spheregen.evaluation.sphere.uniformity import uniformity_test
from tests.evaluation.sphere.toys import cap_angles, generator, planted


def test_a_huddle_of_one_percent_is_found() -> None:
    """Half of the draws uniform in the cap (nearly all at its rim), half at all angles alike."""
    found = 0
    for draw in range(100):
        everywhere = 30 * torch.rand(20, generator=generator(draw))
        angles = cap_angles(20, 512, 30.0, draw) if draw % 2 else everywhere
        found += uniformity_test(planted(2000, 512, angles, draw), level=0.01).rejected
    assert found >= 95
