"""The latent denoiser and the generator that it makes with a tokenizer."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from spheregen.conditioning import mixture
from spheregen.errors import ConfigError
from spheregen.family.sphere_latent_encoder.network import LatentDenoiser, LatentDenoiserConfig, LatentGenerator
from spheregen.nn.block import BlockOptions
from spheregen.nn.sizes import TransformerSize
from spheregen.protocol import Tokenizer
from spheregen.sampling import sample
from spheregen.sphere import scale_noise
from tests.factories import shaken

SIZE = TransformerSize(width=16, depth=2, heads=2)
CHOICES = [
    BlockOptions(),
    BlockOptions(norm="layer", mlp="gelu", qk_norm=True, rotary=False),
    BlockOptions(mlp="gelu", qk_norm=True),
    BlockOptions(norm="layer", rotary=False),
]


def config(**changes: object) -> LatentDenoiserConfig:
    values: dict[str, object] = {"image_size": 8, "tokens": 4, "channels": 3, "size": SIZE, "num_classes": 5}
    return LatentDenoiserConfig(**values | changes)  # type: ignore[arg-type]


def trained(made: LatentDenoiserConfig) -> LatentDenoiser:
    """With weights that are nowhere zero."""
    return shaken(LatentDenoiser(made))


class Patches(nn.Module):
    """A tokenizer whose tokens are the means of patches of 4 x 4 pixels."""

    image_shape = (3, 8, 8)
    latent_shape = (4, 3)
    dtype = torch.float32

    def __init__(self) -> None:
        super().__init__()
        self.decodes = 0

    def encode(self, images: Tensor) -> Tensor:
        return nn.functional.avg_pool2d(images, 4).flatten(2).transpose(1, 2)

    def decode(self, latents: Tensor) -> Tensor:
        self.decodes += 1
        small = latents.transpose(1, 2).unflatten(2, (2, 2))
        return nn.functional.interpolate(small, scale_factor=4).clamp(-1, 1)


def points(count: int = 6) -> Tensor:
    return torch.randn(count, 4, 3, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("options", CHOICES, ids=lambda o: f"{o.norm}-{o.mlp}-{o.qk_norm}-{o.rotary}")
@pytest.mark.parametrize("classes", [0, 5])
def test_every_kind_of_block_learns(options: BlockOptions, classes: int) -> None:
    model = trained(config(blocks=options, num_classes=classes)).train()
    labels = torch.tensor([0, 1, 2, 3, 4, 5]) if classes else None
    out = model(points(), labels)
    assert out.shape == (6, 4, 3)
    out.square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and bool(parameter.grad.abs().sum() > 0), name


def test_labels_are_ids_mixtures_or_nothing() -> None:
    model, labels = trained(config()), torch.tensor([0, 4, 5, 1, 1, 2])
    torch.testing.assert_close(model(points(), mixture(labels, 5)), model(points(), labels))
    torch.testing.assert_close(model(points(), None), model(points(), torch.full((6,), 5)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens": 5}, "square number"),
        ({"channels": 0}, "channels"),
        ({"max_angle": 90}, "max_angle"),
        ({"size": "huuge"}, "did you mean 'huge'"),
        ({"prior": "cube"}, "prior"),
        ({"num_classes": -1}, "num_classes"),
        ({"image_channels": 2}, "image_channels"),
    ],
)
def test_impossible_models_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config(**changes)


def test_the_generator_answers_to_the_protocol_and_decodes_once() -> None:
    tokenizer = Patches()
    assert isinstance(tokenizer, Tokenizer)
    model = LatentGenerator(trained(config()), tokenizer)
    samples = sample(model, points(), torch.arange(6), steps=4, schedule="decay", step_noise=points())
    assert tokenizer.decodes == 1
    assert samples.images.shape == (6, 3, 8, 8)
    # G on the noisy sphere, again and again
    v = model.prior.project(points())
    z = model.denoiser(v, torch.arange(6))
    for r in (3 / 4, 2 / 4, 1 / 4):
        angle = scale_noise(math.radians(model.alpha_max), r).item()
        z = model.denoiser(model.prior.perturb(model.prior.project(z), points(), angle), torch.arange(6))
    torch.testing.assert_close(samples.images, tokenizer.decode(z))
