"""What a linear keeps of its weights between calls is what they are now."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from spheregen.nn.linear import PaddedLinear, linear, prepared
from tests.factories import rand

LAYERS = {
    "plain": lambda: linear(24, 16),
    "padded": lambda: prepared(PaddedLinear(24, 10, parts=2, pad_outputs=3)),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", LAYERS)
def test_a_change_of_weights_is_seen(name: str, dtype: torch.dtype) -> None:
    layer, x = LAYERS[name]().to(dtype), rand(20, 24).to(dtype)

    def check() -> None:
        learned = layer(x.clone().requires_grad_())  # which keeps nothing
        for mode in (torch.no_grad, torch.inference_mode):
            with mode():
                torch.testing.assert_close(layer(x), learned.detach(), rtol=0.02, atol=0.02)

    layer.requires_grad_(False)
    check()
    layer.bias.add_(1)
    check()
    layer.load_state_dict({name: rand(*value.shape, seed=1).to(dtype) for name, value in layer.state_dict().items()})
    check()
    layer.weight = nn.Parameter(rand(*layer.weight.shape, seed=2).to(dtype), requires_grad=False)
    check()
    other = copy.deepcopy(layer)
    other.weight.zero_()
    assert not torch.equal(other(x), layer(x))
    layer.to(torch.float64)
    with torch.no_grad():
        assert layer(x.double()).dtype == torch.float64


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_weights_that_learn_are_used_as_they_are(name: str, fused: bool) -> None:
    layer, x = LAYERS[name](), rand(20, 24)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1, fused=fused)
    for _ in range(3):
        layer(x).sum().backward()
        optimizer.step()
        learned = layer(x)
        with torch.no_grad():
            torch.testing.assert_close(layer(x), learned)


def test_weights_made_in_inference_mode_are_used_as_they_are() -> None:
    with torch.inference_mode():
        layer, x = LAYERS["padded"](), rand(20, 24)
        before = layer(x)
        layer.weight.zero_()
        assert not torch.equal(before, layer(x)) and not layer(x).any()
