"""Our own autoencoder as a tokenizer."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from spheregen.family.sphere_encoder.network import SphereAutoencoder, SphereTokenizer
from spheregen.protocol import Tokenizer
from tests.factories import tiny_autoencoder
from tests.random_networks import random_images


def model(**options: Any) -> SphereAutoencoder:
    return tiny_autoencoder(**{"patch_size": 2, "latent_channels": 3, "num_classes": 0, **options})


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
