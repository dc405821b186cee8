"""Blocks that attend to the tokens of texts, in every transformer that follows texts."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
import torch

from spheregen.conditioning import text_labels
from spheregen.errors import ConfigError
from spheregen.family import (
    LatentDenoiser,
    LatentDenoiserConfig,
    LatentGenerator,
    SphereEncoder2,
    SphereEncoder2Config,
)
from spheregen.family.sphere_encoder.network import AutoencoderConfig, SphereTokenizer
from spheregen.networks.text import NgramEncoder
from spheregen.protocol import SphereGenerator
from spheregen.sampling import mix_conditions
from tests.factories import SIZE, shaken, tiny_autoencoder

TOKENS = 3
WIDTH = 16 * (1 + TOKENS)


def denoiser() -> SphereGenerator:
    tokenizer = SphereTokenizer(tiny_autoencoder(num_classes=0))
    tokens, channels = tokenizer.latent_shape
    config = LatentDenoiserConfig(
        image_size=8, tokens=tokens, channels=channels, size=SIZE, text_width=WIDTH, text_tokens=TOKENS
    )
    torch.manual_seed(0)
    return LatentGenerator(shaken(LatentDenoiser(config)), tokenizer)


def second() -> SphereGenerator:
    torch.manual_seed(0)
    config = SphereEncoder2Config(
        image_size=8, patch_size=4, encoder=SIZE, decoder=SIZE, latent_channels=4, text_width=WIDTH, text_tokens=TOKENS
    )
    return shaken(SphereEncoder2(config))


MODELS: Mapping[str, Callable[[], SphereGenerator]] = {
    "autoencoder": lambda: tiny_autoencoder(num_classes=0, text_width=WIDTH, text_tokens=TOKENS, in_context_tokens=1),
    "denoiser": denoiser,
    "second": second,
}


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> SphereGenerator:
    return MODELS[request.param]()


def labels(*texts: str) -> torch.Tensor:
    told = torch.tensor([bool(text) for text in texts])
    return text_labels(NgramEncoder(WIDTH, TOKENS).encode(texts), told)


def points(model: SphereGenerator, count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return model.prior.project(torch.randn(count, *model.latent_shape, generator=generator))


@torch.no_grad()
def test_tokens_count_beside_the_vector_of_a_text(model: SphereGenerator) -> None:
    told = labels("red cup", "red cup", "red cup")
    told[1, 16:-1] = labels("blue tree")[0, 16:-1]  # the vector of one text with the tokens of another
    told[2, 16:-1] = told[0, 16:-1].view(TOKENS, 16)[[1, 0, 2]].flatten()
    found = model.predict(points(model, 1).expand(3, *model.latent_shape), told, 0.5)
    assert (found[1] - found[0]).abs().max() > 1e-3
    torch.testing.assert_close(found[2], found[0], atol=1e-5, rtol=0)  # their order does not


@torch.no_grad()
def test_a_text_gives_the_same_whatever_is_beside_it(model: SphereGenerator) -> None:
    texts = ("a red cup", "", "blue")
    together = model.predict(points(model, 3), labels(*texts), 0.5)
    for row, (text, point) in enumerate(zip(texts, points(model, 3), strict=True)):
        torch.testing.assert_close(model.predict(point[None], labels(text), 0.5)[0], together[row], atol=1e-5, rtol=0)
    null = model.predict(points(model, 3), None, 0.5)
    torch.testing.assert_close(null[1], together[1], atol=1e-5, rtol=0)
    assert (null[0] - together[0]).abs().max() > 1e-3


@torch.no_grad()
def test_conditions_with_tokens_drop_guide_and_mix(model: SphereGenerator) -> None:
    of = model.condition(labels("a red cup", "a tree"))
    here = points(model, 2)
    dropped = model.predict(here, of.dropped(torch.tensor([True, True])), 0.5)
    torch.testing.assert_close(dropped, model.predict(here, None, 0.5), atol=1e-5, rtol=0)
    against = of.against(model.condition(labels("blue"))).with_null()
    both = model.predict(torch.cat([here, here]), against, 0.5)
    torch.testing.assert_close(both[2:], model.predict(here, labels("blue", "blue"), 0.5), atol=1e-5, rtol=0)
    ends = (
        mix_conditions(of[:1], of[1:], torch.tensor([0.0]), "slerp"),
        mix_conditions(of[:1], of[1:], torch.tensor([1.0])),
    )
    for end, row in zip(ends, (slice(0, 1), slice(1, 2)), strict=True):
        torch.testing.assert_close(
            model.predict(here[:1], end, 0.5), model.predict(here[:1], of[row], 0.5), atol=1e-4, rtol=0
        )


def test_gradients_reach_all_that_reads_texts(model: SphereGenerator) -> None:
    model.predict(points(model, 2), labels("a red cup", "a tree"), 0.5).square().sum().backward()
    read = [name for name, each in model.named_parameters() if "text_attention" in name or "token_table" in name]
    told = [name for name in read if not name.startswith("encoder.")]
    assert told and all(model.get_parameter(name).grad is not None for name in told)


def test_impossible_numbers_of_tokens_are_refused() -> None:
    for given in ({"text_width": 65, "text_tokens": 3}, {"text_tokens": 3}, {"text_width": 64, "text_tokens": -1}):
        with pytest.raises(ConfigError, match="text_"):
            AutoencoderConfig(image_size=8, patch_size=4, encoder=SIZE, decoder=SIZE, latent_channels=4, **given)
    with pytest.raises(ConfigError, match="4"):
        NgramEncoder(66, TOKENS)
