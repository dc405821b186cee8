"""An image is the same to the last bit alone and with others, outside of training."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from spheregen.nn.alone import Conv2d, SiLU, gelu, silu
from spheregen.nn.linear import linear
from tests.export.members import MEMBERS
from tests.factories import rand


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 7, 8, 12, 15])
def test_few_rows_are_summed_as_many_are(rows: int) -> None:
    layer, x = linear(512, 96), rand(40, 512)
    with torch.no_grad():
        assert torch.equal(layer(x[:rows]), layer(x)[:rows])
        assert torch.equal(layer(x[None, :rows]), layer(x[None])[:, :rows])


@pytest.mark.parametrize("mode", ["zeros", "reflect"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_one_image_is_convolved_as_many_are(mode: str, layout: torch.memory_format) -> None:
    layer = Conv2d(16, 48, 3, padding=1, padding_mode=mode)
    x = rand(8, 16, 8, 8).contiguous(memory_format=layout)
    with torch.no_grad():
        assert torch.equal(layer(x[:1]), layer(x)[:1])


@pytest.mark.parametrize("function", [SiLU(), silu, gelu, functools.partial(gelu, approximate="tanh")])
def test_the_last_numbers_of_an_activation_are_computed_as_the_others(function: Callable[[Tensor], Tensor]) -> None:
    x = 4 * rand(200, 6, 4) - 2
    with torch.no_grad():
        assert torch.equal(torch.cat([function(each) for each in x.split(1)]), function(x))


def test_training_goes_its_own_way() -> None:
    layer, x = linear(8, 4), rand(1, 8).requires_grad_()
    made = layer(x)
    assert torch.equal(made, functional.linear(x, layer.weight, layer.bias))
    made.sum().backward()
    assert x.grad is not None and torch.equal(x.grad, layer.weight.sum(0, keepdim=True).detach())


@pytest.mark.parametrize("name", MEMBERS)
def test_an_image_is_the_same_alone_and_with_others(name: str) -> None:
    pipe = MEMBERS[name]()
    options = {"steps": 2, "prior": "sphere"}  # whose points are the same, too
    together = pipe.generate(5, **options)
    assert torch.equal(pipe.generate(1, seed=3, **options).tensor, together.tensor[3:4])
    images = list(together.tensor)
    assert torch.equal(pipe.encode(images[3]), pipe.encode(images)[3:4])
