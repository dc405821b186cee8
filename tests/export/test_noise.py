"""The noise of a seed without torch is that of torch."""

from __future__ import annotations

import numpy as np
import pytest

from spheregen.errors import ConfigError
from spheregen.export.noise import gaussians, refinement_noise
from spheregen.sampling import refinement_noise as theirs_of_flows
from spheregen.sampling.seeds import gaussians as theirs


@pytest.mark.parametrize("seed", [0, 1, 12345, 2**32 - 1, 2**32, 2**40 + 7, 2**63 - 1])
@pytest.mark.parametrize("shape", [(1, 3), (3, 5), (4, 4), (1, 17), (2, 9), (7, 33), (64, 12)])
def test_every_draw_of_a_seed_is_that_of_torch(seed: int, shape: tuple[int, ...]) -> None:
    for ours, other in zip(gaussians(seed, shape, 3), theirs(seed, shape, 3), strict=True):
        assert ours.dtype == np.float32
        assert np.abs(ours - other.numpy()).max() < 2e-6


def test_the_noise_of_flows_is_that_of_torch() -> None:
    seeds = [0, 3, 2**50]
    assert np.abs(refinement_noise(seeds, (3, 8, 8)) - theirs_of_flows(seeds, (3, 8, 8)).numpy()).max() < 2e-6


@pytest.mark.parametrize("seed", [-1, 2**63])
def test_impossible_seeds_are_refused(seed: int) -> None:
    with pytest.raises(ConfigError, match="seed"):
        gaussians(seed, (4,))
