"""The refiner's network, and a generator with a refiner behind it."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from spheregen.errors import ConfigError
from spheregen.family.sphere_encoder.network import AutoencoderConfig, SphereAutoencoder
from spheregen.family.sphere_flow.network import FlowRefiner, FlowRefinerConfig, RefinedGenerator
from spheregen.nn.sizes import TransformerSize
from spheregen.protocol import Context, SphereGenerator
from tests.sampling.latent_generator import latent_generator

SMALL = TransformerSize(width=16, depth=1, heads=2)
CONFIG = FlowRefinerConfig(image_size=8, patch_size=4, size=SMALL, num_classes=3)


def autoencoder(classes: int = 3, patch: int = 4) -> SphereAutoencoder:
    config = AutoencoderConfig(
        image_size=8,
        patch_size=patch,
        encoder=SMALL,
        decoder=dataclasses.replace(SMALL, width=24),
        latent_channels=6,
        num_classes=classes,
        encoder_mixer_depth=1,
        decoder_mixer_depth=1,
        output_init="xavier",
    )
    torch.manual_seed(1)
    return SphereAutoencoder(config).eval()


def awake(refiner: FlowRefiner) -> FlowRefiner:
    """The same with weights that are not zero, so that every input counts."""
    torch.manual_seed(2)
    for parameter in refiner.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.2)
    return refiner.eval()


def refined(source: SphereGenerator | None = None, **changes: object) -> RefinedGenerator:
    source = source or autoencoder()
    config = dataclasses.replace(CONFIG, **changes).completed(source.latent_shape, source.token_width)  # type: ignore[arg-type]
    return RefinedGenerator(source, awake(FlowRefiner(config)))


def inputs(count: int = 2) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, Context]:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(count, 3, 8, 8, generator=generator)
    context = Context(torch.randn(count, 4, 6, generator=generator), torch.randn(count, 4, 24, generator=generator))
    return x, torch.linspace(0.1, 0.8, count), torch.arange(count) % 3, context


@pytest.mark.parametrize("context", ["add", "tokens"])
def test_it_predicts_images_from_all_that_it_sees(context: str) -> None:
    network = refined(context=context).refiner
    x, times, labels, told = inputs()
    base = network(x, times, labels, told)
    assert base.shape == x.shape
    changed = {
        "image": network(x + 1, times, labels, told),
        "time": network(x, times + 0.1, labels, told),
        "class": network(x, times, labels + 1, told),
        "latent": network(x, times, labels, Context(told.latent + 1, told.tokens)),
        "decoder": network(x, times, labels, Context(told.latent, told.tokens.flip(-1))),  # type: ignore[union-attr]
    }
    for name, other in changed.items():
        assert not torch.allclose(base, other, atol=1e-4), name


def test_without_context_it_needs_none() -> None:
    network = refined(latent_channels=0, decoder_width=0)
    x, times, labels, told = inputs()
    assert network.config.context_tokens == 0
    assert torch.equal(network.refiner(x, times, labels), network.refiner(x, times, labels, told))
    with pytest.raises(ValueError, match="give its context"):
        refined().refiner(x, times, labels)


def test_as_a_generator_it_is_the_one_in_front() -> None:
    source = autoencoder()
    model = refined(source)
    assert isinstance(model, SphereGenerator)
    x, labels = torch.rand(2, 3, 8, 8) * 2 - 1, torch.tensor([0, 2])
    v = source.encode(x, labels)
    assert torch.equal(model.encode(x, labels), v)
    assert torch.equal(model.decode(v, model.condition(labels)), source.decode(v, source.condition(labels)))
    assert torch.equal(model.decode(v), source.decode(v))
    assert torch.equal(model(x, labels), source(x, labels))
    for name in ("alpha_max", "start_angle", "prior", "latent_shape", "image_shape", "guidance_places"):
        assert getattr(model, name) == getattr(source, name)
    assert model.refiner is not None and source.refiner is None
    prediction, context = model.predict_with_context(v, labels)
    assert torch.equal(prediction, source.predict(v, labels))
    assert context is not None and context.tokens is not None and context.tokens.shape == (2, 4, 24)
    rows = model.condition(torch.tensor([2, 0, 1]))
    assert torch.equal(model.decode(v, rows[torch.tensor([1, 0])]), source.decode(v, labels))


@pytest.mark.parametrize(("front", "behind"), [(0, 3), (3, 0), (0, 0)])
def test_either_may_be_unconditional(front: int, behind: int) -> None:
    model = refined(autoencoder(front), num_classes=behind)
    assert model.num_classes == max(front, behind)
    labels = torch.tensor([1, 2]) if model.num_classes else None
    v = model.encode(torch.zeros(2, 3, 8, 8), labels)
    condition = model.condition(labels)
    prediction, context = model.predict_with_context(v, condition)
    assert model.refined(prediction, torch.zeros(2), condition, context).shape == (2, 3, 8, 8)
    null = model.condition(None)
    assert model.refined(prediction, torch.zeros(2), null, context).shape == (2, 3, 8, 8)


def test_a_latent_denoiser_can_stand_in_front() -> None:
    source = latent_generator()
    classes, (channels, size, _) = source.num_classes, source.image_shape
    model = refined(source, image_size=size, image_channels=channels, num_classes=classes)
    assert model.config.decoder_width == 0
    v = model.prior.project(torch.randn(2, *model.latent_shape))
    prediction, context = model.predict_with_context(v)
    assert context is not None and context.tokens is None
    image = model.to_image(prediction)
    assert model.refined(image, torch.zeros(2), None, context).shape == image.shape


def test_what_does_not_fit_is_refused() -> None:
    source = autoencoder()
    with pytest.raises(ConfigError, match="complete"):
        FlowRefiner(CONFIG)
    with pytest.raises(ConfigError, match="latent_channels is 5"):
        refined(source, latent_channels=5)
    with pytest.raises(ConfigError, match="images of shape"):
        refined(source, image_size=16)
    with pytest.raises(ConfigError, match="5 classes"):
        refined(source, num_classes=5)
    x, times, labels, told = inputs()
    with pytest.raises(ValueError, match="takes"):
        refined(source).refiner(x[..., :4], times, labels, told)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rho": 1.5}, "rho"),
        ({"patch_size": 3}, "does not divide"),
        ({"image_size": 40, "patch_size": None}, "no default patch"),
        ({"image_channels": 2}, "RGB"),
        ({"num_classes": -1}, "negative"),
        ({"context_tokens": 5}, "square"),
        ({"context": "ad"}, "add"),
        ({"context_tokens": 0, "latent_channels": 4}, "no channels"),
        ({"size": "bse"}, "base"),
    ],
)
def test_impossible_configurations(changes: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        dataclasses.replace(CONFIG, **changes)  # type: ignore[arg-type]
