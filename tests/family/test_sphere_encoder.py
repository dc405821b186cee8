"""The spherical autoencoder, over all its variants."""

from __future__ import annotations

import copy
import functools
from typing import Any

import pytest
import torch
from torch import Tensor

from spheregen.errors import ConfigError
from spheregen.family.sphere_encoder.network import AutoencoderConfig, SphereAutoencoder
from spheregen.nn.sizes import TransformerSize
from spheregen.prior import GAUSSIAN, SPHERE
from spheregen.sphere import spherify
from tests.factories import shaken

ENCODER = TransformerSize(width=16, depth=2, heads=2, in_context_start=1)
DECODER = TransformerSize(width=24, depth=2, heads=2, in_context_start=0)
VARIANTS = [  # each pair of choices at least once
    pytest.param(
        {
            "pixel_head": head,
            "encoder_mixer_depth": mixer,
            "decoder_mixer_depth": mixer,
            "num_classes": classes,
            "in_context_tokens": context,
            "output_activation": activation,
            "image_channels": channels,
        },
        id=f"{head}-mixer{mixer}-classes{classes}-context{context}-{activation}-{channels}",
    )
    for head, mixer, classes, context, activation, channels in (
        ("linear", 0, 0, 0, "tanh", 1),
        ("linear", 0, 3, 2, "none", 3),
        ("linear", 2, 0, 2, "none", 1),
        ("linear", 2, 3, 0, "tanh", 3),
        ("conv", 0, 0, 2, "tanh", 3),
        ("conv", 0, 3, 0, "none", 1),
        ("conv", 2, 0, 0, "none", 3),
        ("conv", 2, 3, 2, "tanh", 1),
    )
]


def config_of(**options: Any) -> AutoencoderConfig:
    defaults: dict[str, Any] = {
        "image_size": 8,
        "patch_size": 4,
        "encoder": ENCODER,
        "decoder": DECODER,
        "latent_channels": 4,
        "encoder_mixer_depth": 1,
        "decoder_mixer_depth": 1,
    }
    return AutoencoderConfig(**{**defaults, **options})


def model_of(**options: Any) -> SphereAutoencoder:
    torch.manual_seed(0)
    return shaken(SphereAutoencoder(config_of(**options)))


@functools.cache
def _built(options: tuple[tuple[str, Any], ...]) -> SphereAutoencoder:
    return model_of(**dict(options))


def variant_of(options: dict[str, Any]) -> SphereAutoencoder:
    """A model that several tests share; they leave its weights alone."""
    return _built(tuple(options.items()))


def images_of(model: SphereAutoencoder, batch: int = 3) -> Tensor:
    config = model.config
    shape = (batch, config.image_channels, config.image_size, config.image_size)
    return torch.rand(shape, generator=torch.Generator().manual_seed(2)) * 2 - 1


def labels_of(model: SphereAutoencoder, batch: int = 3) -> Tensor | None:
    return torch.arange(batch) % model.num_classes if model.num_classes else None


@pytest.mark.parametrize("options", VARIANTS)
class TestEveryVariant:
    @torch.no_grad()
    def test_codes_are_on_the_sphere_and_images_in_range(self, options: dict[str, Any]) -> None:
        model = variant_of(options)
        images, labels = images_of(model), labels_of(model)
        v = model.encode(images, labels)
        assert v.shape == (3, *model.latent_shape) == (3, 4, 4)
        torch.testing.assert_close(v.flatten(1).norm(dim=1), torch.full((3,), 4.0), rtol=1e-5, atol=0)
        decoded = model.decode(5 * v, labels)
        assert decoded.shape == images.shape
        assert decoded.abs().max() <= 1
        assert decoded.std() > 0.01
        torch.testing.assert_close(model(images, labels), model.decode(v, labels))
        if options["output_activation"] == "none":  # decode clamps what training leaves free
            free = 50 * model.decoder(5 * v, labels)
            with_large_head = copy.deepcopy(model)
            last = with_large_head.decoder.head
            last = last.smooth if options["pixel_head"] == "linear" else last.up
            last.weight.mul_(50)
            last.bias.mul_(50)
            torch.testing.assert_close(with_large_head.decoder(5 * v, labels), free, rtol=1e-4, atol=1e-4)
            assert free.abs().max() > 1
            torch.testing.assert_close(with_large_head.decode(5 * v, labels), free.clamp(-1, 1), rtol=1e-4, atol=1e-4)

    @torch.no_grad()
    def test_no_labels_are_the_null_class(self, options: dict[str, Any]) -> None:
        model = variant_of(options)
        images = images_of(model)
        v = model.encode(images)
        if not model.num_classes:
            for call, inputs in ((model.encode, images), (model.decode, v), (model.encode_raw, images)):
                with pytest.raises(ValueError, match="unconditional"):
                    call(inputs, torch.zeros(3, dtype=torch.int64))
            return
        null = torch.full((3,), model.num_classes)
        torch.testing.assert_close(model.encode(images, null), v)
        torch.testing.assert_close(model.decode(v, null), model.decode(v))
        assert not torch.allclose(model.encode(images, labels_of(model)), v, atol=1e-3)
        assert not torch.allclose(model.decode(v, labels_of(model)), model.decode(v), atol=1e-4)

    @torch.no_grad()
    def test_batched_equals_one_by_one(self, options: dict[str, Any]) -> None:
        model = variant_of(options)
        images, labels = images_of(model), labels_of(model)
        v = model.encode(images, labels)
        decoded = model.decode(v, labels)
        for i in range(3):
            label = None if labels is None else labels[i : i + 1]
            torch.testing.assert_close(model.encode(images[i : i + 1], label)[0], v[i], atol=2e-5, rtol=0)
            torch.testing.assert_close(model.decode(v[i : i + 1], label)[0], decoded[i], atol=2e-5, rtol=0)

    def test_gradients_reach_every_parameter(self, options: dict[str, Any]) -> None:
        model = variant_of(options)
        images, labels = images_of(model), labels_of(model)
        if labels is not None:
            labels = torch.tensor([0, 1, model.num_classes])
        v = model.encode(images, labels)
        (model.decoder(v, labels) * images_of(model)).sum().backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
            assert parameter.grad.abs().sum() > 0, name
        model.zero_grad()

    @torch.no_grad()
    def test_a_state_dictionary_is_the_whole_model(self, options: dict[str, Any]) -> None:
        model = variant_of(options)
        torch.manual_seed(9)
        other = SphereAutoencoder(model.config).eval()
        other.load_state_dict(model.state_dict())
        images, labels = images_of(model), labels_of(model)
        assert torch.equal(other(images, labels), model(images, labels))


@torch.no_grad()
def test_bfloat16_is_close_to_float32() -> None:
    model, half = model_of(num_classes=3), model_of(num_classes=3).to(torch.bfloat16)
    images, labels = images_of(model), labels_of(model)
    v, v_half = model.encode(images, labels), half.encode(images, labels)
    assert v_half.dtype == torch.float32  # the networks compute in bfloat16; what is between them is wide
    assert torch.cosine_similarity(v.flatten(1), v_half.flatten(1)).min() > 0.99
    decoded = half.decode(v, labels)
    assert decoded.dtype == torch.float32
    expected = model.decode(v, labels)
    assert (decoded - expected).norm() < 0.15 * expected.norm()
    assert torch.equal(half.decode(v.bfloat16(), labels), decoded)


@torch.no_grad()
def test_spherified_decoder_blocks() -> None:
    """The tokens of a sample are spherified after every block but the last."""
    plain, spherified = (model_of(spherify_decoder_blocks=on, decoder_mixer_depth=0) for on in (False, True))
    v = plain.encode(images_of(plain))
    assert torch.equal(spherified.encode(images_of(plain)), v)
    seen: list[Tensor] = []
    for block in spherified.decoder.trunk.blocks:
        block.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    assert not torch.allclose(spherified.decode(v), plain.decode(v), atol=1e-4)
    norms = [tokens.flatten(1).norm(dim=1) for tokens in seen]
    on_sphere = torch.full((3,), (4 * 24) ** 0.5)
    assert not torch.allclose(norms[0], on_sphere, rtol=1e-3)
    torch.testing.assert_close(norms[1], on_sphere, rtol=1e-4, atol=0)


@torch.no_grad()
def test_in_context_tokens_join_before_their_block_and_leave_before_the_output() -> None:
    size = TransformerSize(width=16, depth=3, heads=2, in_context_start=1)
    for classes in (0, 3):
        model = model_of(encoder=size, in_context_tokens=2, num_classes=classes)
        seen: list[Tensor] = []
        for block in model.encoder.trunk.blocks:
            block.register_forward_pre_hook(lambda _, arguments, seen=seen: seen.append(arguments[0]))
        assert model.encode(images_of(model)).shape == (3, 4, 4)
        assert [tokens.shape[1] for tokens in seen] == [4, 6, 6]
        names = {name for name, _ in model.named_parameters() if "trunk.context" in name}
        kinds = ("context", "context_positions") if not classes else ("context_positions",)
        assert names == {f"{part}.trunk.{kind}" for part in ("encoder", "decoder") for kind in kinds}


@pytest.mark.parametrize(
    ("size", "image_channels", "compression", "channels"),
    [(32, 3, 1.5, 8), (256, 3, 1.5, 128), (256, 3, 3.0, 64), (256, 3, None, 128), (32, 3, 1.7, 7), (32, 1, 1.5, 2)],
)
def test_latent_channels_follow_the_compression(
    size: int, image_channels: int, compression: float | None, channels: int
) -> None:
    config = AutoencoderConfig(
        image_size=size, image_channels=image_channels, latent_resolution="high", compression=compression
    )
    numbers = image_channels * size**2
    assert config.channels == channels == int(numbers / config.tokens / (compression or 1.5))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"image_size": 1}, "image_size"),
        ({"image_channels": 4}, "image_channels"),
        ({"image_size": 48, "patch_size": None}, "patch_size"),
        ({"patch_size": 3}, "patch"),
        ({"patch_size": 0}, "patch"),
        ({"compression": 1.5}, "not both"),
        ({"compression": 0.0, "latent_channels": None}, "compression"),
        ({"compression": 50.0, "latent_channels": None}, "no latent channel"),
        ({"latent_channels": 0}, "latent_channels"),
        ({"pixel_head": "conv", "patch_size": 8}, "2x2"),
        *(({name: -1}, name) for name in ("num_classes", "encoder_mixer_depth", "decoder_mixer_depth")),
        ({"in_context_tokens": -1}, "in_context_tokens"),
        *(({"max_angle": angle}, "max_angle") for angle in (0.0, 90.0, float("nan"))),
        ({"encoder": "huuge"}, "'huge'"),
        (
            {"in_context_tokens": 1, "decoder": TransformerSize(width=16, depth=2, heads=2, in_context_start=2)},
            "in_context_start",
        ),
        ({"in_context_tokens": 1, "spherify_decoder_blocks": True}, "spherify_decoder_blocks"),
        *(
            ({name: "tahn"}, name)
            for name in ("latent_resolution", "pixel_head", "output_activation", "decoder_input_init", "output_init")
        ),
        ({"prior": "gausian"}, "'gaussian'"),
        ({"latent_norm": "layer"}, "latent_norm"),
    ],
)
def test_impossible_configurations_are_refused(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        config_of(**options)


def test_gradient_flags_do_not_change_a_bit() -> None:
    """A trained model and the same one loaded for use give the same pictures (torch's matmul may look at the flags)."""
    model = model_of(encoder_mixer_depth=2, decoder_mixer_depth=2).train()
    x = images_of(model)
    with torch.no_grad():
        with_flags = model(x)
        assert torch.equal(model.requires_grad_(False)(x), with_flags)


# prior and latent norm


def test_the_defaults_are_the_published_ones() -> None:
    config = AutoencoderConfig(image_size=32)
    assert (config.prior, config.latent_norm) == ("sphere", "none")
    model = SphereAutoencoder(config_of())
    assert model.prior is SPHERE and model.encoder.norm is None
    assert not any("norm.running" in name for name in model.state_dict())
    same = model_of(latent_norm="batch"), model_of()  # the same random numbers: the norm draws none
    assert all(torch.equal(a, b) for a, b in zip(*(m.parameters() for m in same), strict=True))


@torch.no_grad()
def test_a_gaussian_model_leaves_latents_where_they_are() -> None:
    model, sphere = model_of(prior="gaussian", num_classes=3), model_of(num_classes=3)
    assert model.prior is GAUSSIAN
    images, labels = images_of(model), labels_of(model)
    z = model.encode_raw(images, labels)
    assert torch.equal(model.encode(images, labels), z)
    assert torch.equal(z, sphere.encode_raw(images, labels))
    assert torch.equal(spherify(z), sphere.encode(images, labels))
    assert torch.equal(model(images, labels), model.decode(z, labels))


@torch.no_grad()
def test_a_batch_norm_is_the_last_layer_of_the_encoder() -> None:
    model, plain = model_of(latent_norm="batch", num_classes=3), model_of(num_classes=3)
    images, labels = images_of(model, 5), labels_of(model, 5)
    raw = plain.encode_raw(images, labels)
    fresh = model.encode_raw(images, labels)
    torch.testing.assert_close(fresh, raw / (1 + 1e-5) ** 0.5)  # statistics of nothing yet
    model.train()
    z = model.encoder(images, labels)
    torch.testing.assert_close(z.mean((0, 1)), torch.zeros(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(z.var((0, 1), correction=0), torch.ones(4), atol=1e-2, rtol=0)
    assert not torch.equal(z, model.encoder(images[:3], None if labels is None else labels[:3])[:3])
    model.eval()
    together = model.encode(images, labels)
    alone = [model.encode(images[i : i + 1], None if labels is None else labels[i : i + 1]) for i in range(5)]
    torch.testing.assert_close(torch.cat(alone), together, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(together.flatten(1).norm(dim=1), torch.full((5,), 4.0), rtol=1e-4, atol=0)
