"""The decoder of a masked autoencoder: its published size, and where each number goes. That it computes what others'
do is shown in test_published_rae.py."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from spheregen.errors import ConfigError
from spheregen.evaluation.cost import count_flops, count_parameters
from spheregen.nn.tags import DECAY, NO_DECAY, tags_of
from spheregen.tokenizers.mae import MAEDecoder, MAEDecoderConfig
from tests.tokenizers import shake

TINY = MAEDecoderConfig(hidden=16, mlp=24, layers=2, heads=2, patch=2, grid=3, channels_in=5)
PUBLISHED = MAEDecoderConfig(hidden=1152, mlp=4096, layers=28, heads=16, patch=16, grid=16, channels_in=768)


def decoder(config: MAEDecoderConfig = TINY) -> MAEDecoder:
    made = MAEDecoder(config)
    shake(made)
    return made.eval()


def test_the_published_decoder_has_its_published_size_and_cost() -> None:
    with torch.device("meta"):
        network, tokens = MAEDecoder(PUBLISHED), torch.empty(1, 256, 768)
    assert PUBLISHED.image_size == 256 and PUBLISHED.tokens == 256
    assert count_parameters(network) == pytest.approx(415e6, rel=0.01)
    assert count_flops(network, tokens) == pytest.approx(213e9, rel=0.01)
    assert network(tokens).shape == (1, 3, 256, 256)


@pytest.mark.parametrize("channels", [1, 3])
def test_patches_are_laid_out_by_row_then_column_with_the_channel_fastest(channels: int) -> None:
    config = dataclasses.replace(TINY, image_channels=channels)
    network = decoder(config)
    with torch.no_grad():
        network.predict.weight.zero_()
        network.predict.bias.copy_(torch.arange(4 * channels).float())
        images = network(torch.randn(2, 9, 5))
    assert images.shape == (2, channels, 6, 6)
    for row, column, channel in [(0, 0, 0), (0, 1, 0), (1, 0, channels - 1), (5, 4, 0)]:
        expected = ((row % 2) * 2 + column % 2) * channels + channel
        assert bool((images[:, channel, row, column] == expected).all())


def test_tokens_are_row_major() -> None:
    """With attention silenced a token reaches its own patch alone."""
    network = decoder()
    with torch.no_grad():
        for block in network.blocks:
            block.get_parameter("out.weight").zero_()
        tokens = torch.randn(1, 9, 5)
        moved = tokens.clone()
        moved[:, 5] += 1  # row 1, column 2
        change = (network(moved) - network(tokens)).abs().amax(dim=(0, 1))
    place = torch.zeros(6, 6, dtype=torch.bool)
    place[2:4, 4:6] = True
    assert bool((change[place] > 0).all()) and bool((change[~place] == 0).all())


def test_images_do_not_depend_on_their_batch_and_half_types_come_close() -> None:
    network, tokens = decoder(), torch.randn(3, 9, 5, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        whole = network(tokens)
        torch.testing.assert_close(torch.cat([network(each) for each in tokens.split(1)]), whole)
        torch.testing.assert_close(decoder().double()(tokens.double()).float(), whole, rtol=1e-4, atol=1e-4)
        narrow = network.bfloat16()
        assert narrow.dtype == torch.bfloat16
        assert (narrow(tokens).float() - whole).std() < 0.05 * whole.std()


def test_it_can_be_trained() -> None:
    network = MAEDecoder(TINY)
    network(torch.randn(2, 9, 5)).square().mean().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and bool(parameter.grad.isfinite().all()), name
        assert len(tags_of(parameter) & {DECAY, NO_DECAY}) == 1, name
    assert "positions" in network.state_dict() and bool((network.positions[:, 0] == 0).all())


@pytest.mark.parametrize(
    ("change", "message"),
    [({"hidden": 18}, "multiple of 4"), ({"heads": 3}, "multiple of 4 and of its 3 heads"), ({"grid": 0}, "grid of")],
)
def test_impossible_sizes(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(TINY, **change)


def test_it_is_read_from_a_file() -> None:
    adapter = TypeAdapter(MAEDecoderConfig)
    assert adapter.validate_python(dataclasses.asdict(TINY)) == TINY
    with pytest.raises(ValidationError, match="Unexpected keyword"):
        adapter.validate_python({**dataclasses.asdict(TINY), "depth": 2})
