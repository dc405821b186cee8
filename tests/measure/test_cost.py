"""Parameters and operations: the published tables, and counts by hand."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import nn

from spheregen.family import registry
from spheregen.family.sphere_encoder.network import AutoencoderConfig, SphereAutoencoder
from spheregen.measure.cost import Cost, count_flops, count_parameters
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
FACES = published("large")
FLOWERS = published("large", num_classes=102)
TABLE = {
    "cifar-10": (CIFAR, 129.8, 134.0, 43.9, 46.4),
    "animal-faces": (FACES, 313.3, 328.8, 624, 671),
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


@pytest.mark.parametrize(
    ("config", "guided", "totals"),
    [(FACES, False, (1965, 4554, 7144)), (FLOWERS, True, (3932, 9118, 14300))],
    ids=["animal-faces", "oxford-flowers"],
)
def test_the_published_generation_cost(config: AutoencoderConfig, guided: bool, totals: tuple[int, ...]) -> None:
    cost = cost_of(config)
    for steps, total in zip((2, 4, 6), totals, strict=True):
        assert cost.generation_gflops(steps, guided=guided) == pytest.approx(total, rel=1e-2)
    table = cost.as_dict()["generation_gflops"]["guided" if guided else "unguided"]
    assert table["4"] == cost.generation_gflops(4, guided=guided)
    assert cost.generation_gflops(1) == cost.parts["decoder"].gflops


def hand_count(config: AutoencoderConfig) -> tuple[int, int]:
    """Multiply-adds of encoder and decoder, term by term."""
    n, d, p, c, s = config.tokens, config.channels, config.patch, config.image_channels, config.image_size

    def blocks(size: TransformerSize) -> int:
        w, context = size.width, config.in_context_tokens
        hidden = int(w * 4 * 2 / 3)
        total = 0
        for index in range(size.depth):
            tokens = n + (context if context and index >= size.in_context_start else 0)
            total += tokens * (w * 3 * w + w * w + w * 2 * hidden + hidden * w)
            total += w * 6 * w if config.num_classes else 0
        return total + (w * 2 * w if config.num_classes else 0)

    def mixer(channels: int, depth: int) -> int:
        return depth * (2 * channels * n * n + 2 * n * channels * 2 * channels)

    w = config.encoder_size.width
    encoder = n * c * p * p * w + n * w * w + blocks(config.encoder_size) + n * w * d
    encoder += mixer(d, config.encoder_mixer_depth)
    w = config.decoder_size.width
    decoder = n * d * w + mixer(w, config.decoder_mixer_depth) + blocks(config.decoder_size)
    if config.pixel_head == "linear":
        decoder += n * w * c * p * p + s * s * c * c * 9
    else:
        decoder += n * w * 32 + n * 32 * 32 * 9 + n * 32 * c * (p + 2) ** 2
    return encoder, decoder


@pytest.mark.parametrize(
    ("head", "classes", "mixer", "context", "channels"),
    [("linear", 0, 0, 0, 3), ("linear", 3, 2, 2, 1), ("conv", 3, 2, 0, 3), ("conv", 0, 0, 2, 1)],
)
def test_a_tiny_model_by_hand(head: str, classes: int, mixer: int, context: int, channels: int) -> None:
    config = AutoencoderConfig(
        image_size=8,
        patch_size=4,
        image_channels=channels,
        encoder=TransformerSize(width=16, depth=2, heads=2, in_context_start=1),
        decoder=TransformerSize(width=24, depth=1, heads=2),
        latent_channels=5,
        num_classes=classes,
        encoder_mixer_depth=mixer,
        decoder_mixer_depth=mixer,
        pixel_head=head,  # type: ignore[arg-type]
        in_context_tokens=context,
    )
    cost = cost_of(config)
    encoder, decoder = hand_count(config)
    assert cost.parts["encoder"].gflops * 1e9 == pytest.approx(2 * encoder)
    assert cost.parts["decoder"].gflops * 1e9 == pytest.approx(2 * decoder)
    with torch.device("meta"):
        model = SphereAutoencoder(config)
    for part, network, width in (("encoder", model.encoder, 16), ("decoder", model.decoder, 24)):
        learned = sum(parameter.numel() for parameter in network.parameters())
        assert cost.parts[part].params == count_parameters(network) == learned + 4 * width  # and the position table


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
