"""Parameters and operations: the published tables, and layers by hand."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import nn

from spheregen.family import registry
from spheregen.family.sphere_encoder.network import AutoencoderConfig, SphereAutoencoder
from spheregen.measure.cost import Cost, count_flops
from spheregen.nn.sizes import TransformerSize


def published(size: str | TransformerSize, **options: Any) -> AutoencoderConfig:
    defaults: dict[str, Any] = {
        "image_size": 256,
        "latent_resolution": "high",
        "encoder": size,
        "decoder": size,
        "compression": 1.5,
    }
    return AutoencoderConfig(**{**defaults, **options})


CIFAR = published(
    "base",
    image_size=32,
    num_classes=10,
    pixel_head="conv",
    encoder_mixer_depth=2,
    decoder_mixer_depth=2,
)
FLOWERS = published("large", num_classes=102)
TABLE = {
    "cifar-10": (CIFAR, 129.8, 134.0, 43.9, 46.4),
    "oxford-flowers": (FLOWERS, 466.7, 482.2, 624, 671),
}


@functools.cache
def cost_of(config: AutoencoderConfig) -> Cost:
    with torch.device("meta"):
        return registry.cost_of(SphereAutoencoder(config))


@pytest.mark.parametrize("name", TABLE)
def test_the_published_table(name: str) -> None:
    config, encoder_params, decoder_params, encoder_gflops, decoder_gflops = TABLE[name]
    cost = cost_of(config)
    assert cost.parts["encoder"].params / 1e6 == pytest.approx(encoder_params, rel=1e-3)
    assert cost.parts["decoder"].params / 1e6 == pytest.approx(decoder_params, rel=1e-3)
    assert cost.parts["encoder"].gflops == pytest.approx(encoder_gflops, rel=1e-2)
    assert cost.parts["decoder"].gflops == pytest.approx(decoder_gflops, rel=1e-2)


def test_the_published_generation_cost() -> None:
    cost = cost_of(FLOWERS)
    for guided, totals in ((False, (1965, 4554, 7144)), (True, (3932, 9118, 14300))):
        for steps, total in zip((2, 4, 6), totals, strict=True):
            assert cost.generation_gflops(steps, guided=guided) == pytest.approx(total, rel=1e-2)
    assert cost.as_dict()["generation_gflops"]["guided"]["4"] == cost.generation_gflops(4, guided=True)
    assert cost.generation_gflops(1) == cost.parts["decoder"].gflops


@pytest.mark.parametrize(
    ("layer", "shape", "multiply_adds"),
    [
        (nn.Linear(5, 7), (3, 4, 5), 3 * 4 * 5 * 7),
        (nn.Conv2d(4, 6, 3, padding=1), (2, 4, 5, 5), 2 * 25 * 6 * 4 * 9),
        (nn.Conv2d(4, 6, 3, padding=1, groups=2), (1, 4, 5, 5), 25 * 6 * 2 * 9),
        # a transposed convolution meets each input position with its whole kernel
        (nn.ConvTranspose2d(4, 6, 4, stride=2, padding=1), (2, 4, 5, 5), 2 * 25 * 4 * 6 * 16),
        (nn.ConvTranspose2d(4, 6, 3, padding=1, groups=2), (1, 4, 5, 5), 25 * 4 * 3 * 9),
    ],
    ids=str,
)
def test_layers_by_hand(layer: nn.Module, shape: tuple[int, ...], multiply_adds: int) -> None:
    assert count_flops(layer, torch.zeros(shape)) == 2 * multiply_adds
    with pytest.raises(RuntimeError):
        count_flops(layer, torch.zeros(2, 11))
    assert not layer._forward_hooks  # nothing is left behind
