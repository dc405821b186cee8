"""Networks built without drawing their weights."""

import pytest
import torch
from torch import nn

from spheregen.nn.uninitialised import Uninitialised


def test_the_random_state_is_left_as_it_was():
    before = torch.get_rng_state()
    with Uninitialised():
        nn.Linear(8, 8)
        nn.Conv2d(3, 8, 3)
        nn.Embedding(10, 8)
        nn.MultiheadAttention(8, 2)
        torch.randn(4)
        for initialise in (nn.init.xavier_uniform_, nn.init.kaiming_normal_, nn.init.orthogonal_):
            initialise(torch.ones(4, 4))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("bounds", [(-2.0, 2.0), (1.5, 2.0)], ids=["wide", "narrow"])
@pytest.mark.parametrize("found", [1e9, float("nan")])
def test_a_truncated_normal_ends_whatever_the_memory_held(found, bounds):
    with Uninitialised():
        weight = nn.init.trunc_normal_(
            torch.full((16, 16), found), std=0.02 if bounds[0] < 0 else 1.0, a=bounds[0], b=bounds[1]
        )
    assert ((weight >= bounds[0]) & (weight <= bounds[1])).all()
