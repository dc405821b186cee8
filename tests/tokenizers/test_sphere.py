"""Our own autoencoder as a tokenizer."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from spheregen.errors import ConfigError
from spheregen.models.autoencoder import AutoencoderConfig, SphereAutoencoder
from spheregen.models.protocol import Tokenizer
from spheregen.models.sizes import TransformerSize
from spheregen.tokenizers.sphere import SphereTokenizer
from tests.tokenizers import random_images, shake

SIZE = TransformerSize(width=16, depth=1, heads=2, in_context_start=0)


def model(**options: object) -> SphereAutoencoder:
    config = AutoencoderConfig(
        image_size=8,
        patch_size=2,
        encoder=SIZE,
        decoder=SIZE,
        latent_channels=3,
        **options,  # type: ignore[arg-type]
    )
    made = SphereAutoencoder(config)
    shake(made)
    return made


@pytest.mark.parametrize("classes", [0, 4])
@pytest.mark.parametrize("channels", [1, 3])
def test_it_answers_to_the_protocol_under_the_null_class(classes: int, channels: int) -> None:
    network = model(num_classes=classes, image_channels=channels)
    tokenizer = SphereTokenizer(network)
    assert isinstance(tokenizer, Tokenizer)
    assert (tokenizer.image_shape, tokenizer.latent_shape) == ((channels, 8, 8), (16, 3))
    assert tokenizer.dtype == torch.float32
    images = random_images(3, 8, channels)
    with torch.no_grad():
        z = tokenizer.encode(images)
        null = torch.full((3,), classes) if classes else None
        torch.testing.assert_close(z, network.encode(images, null))
        assert z.shape == (3, 16, 3)
        torch.testing.assert_close(z.square().mean(dim=(1, 2)), torch.ones(3), rtol=1e-3, atol=0)
        decoded = tokenizer.decode(z)
        torch.testing.assert_close(decoded, network.decode(z, null), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(tokenizer.decode(7 * z), decoded, rtol=1e-3, atol=1e-3)
    assert decoded.shape == images.shape and decoded.abs().max() <= 1


def test_it_stays_frozen() -> None:
    holder = nn.ModuleList([SphereTokenizer(model())]).train()
    assert not any(module.training for module in holder[0].modules())
    assert not any(parameter.requires_grad for parameter in holder.parameters())


def test_half_types_come_out_wide() -> None:
    tokenizer = SphereTokenizer(model()).bfloat16()
    assert tokenizer.dtype == torch.bfloat16
    z = tokenizer.encode(random_images(2, 8))
    assert z.dtype == tokenizer.decode(z).dtype == torch.float32


def test_what_does_not_fit() -> None:
    with pytest.raises(ConfigError, match="prior 'gaussian' is no tokenizer"):
        SphereTokenizer(model(prior="gaussian"))
    tokenizer = SphereTokenizer(model())
    with pytest.raises(ValueError, match=r"takes \(B, 3, 8, 8\)"):
        tokenizer.encode(random_images(1, 4))
    with pytest.raises(ValueError, match=r"takes \(B, 16, 3\)"):
        tokenizer.decode(torch.zeros(1, 4, 3))
