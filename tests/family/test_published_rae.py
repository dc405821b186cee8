"""The published representation autoencoder: it computes what diffusers' does, and its files are read strictly."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter
from torch import Tensor

from spheregen.errors import ConfigError, ModelFileError
from spheregen.family.representation.published import (
    ENCODER,
    MAEDecoder,
    MAEDecoderConfig,
    PublishedRAE,
    PublishedRAEConfig,
    published_names,
    read_published_rae,
)
from spheregen.networks.encoders import EncoderConfig, FrozenEncoder, build_encoder
from spheregen.networks.frozen import IMAGENET_MEAN, IMAGENET_STD
from spheregen.networks.normaliser import Normaliser
from spheregen.protocol import Tokenizer
from tests.random_networks import import_or_skip, random_images, shake

SIZES = MAEDecoderConfig(hidden=16, mlp=24, layers=2, heads=2, patch=8, grid=4, channels_in=160)
SIGHT = EncoderConfig(kind="feature_net", stage=4)  # 32 px: 4x4 tokens of 160


@pytest.fixture
def encoder() -> FrozenEncoder:
    return build_encoder(SIGHT, pretrained=True)


def decoder() -> MAEDecoder:
    made = MAEDecoder(SIZES)
    shake(made, std=0.1)
    return made


def statistics(*shape: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return {
        "mean": torch.randn((160, *shape), generator=generator),
        "var": torch.rand((160, *shape), generator=generator),
    }


def published(made: MAEDecoder) -> dict[str, Tensor]:
    state = made.state_dict()
    return {theirs: state[mine] for mine, theirs in published_names(made).items()}


def write(folder: Path, model: object, stats: object) -> Path:
    torch.save(model, folder / "model.pt")
    torch.save(stats, folder / "stat.pt")
    return folder


# --- what it computes -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def theirs() -> Any:
    """A tiny AutoencoderRAE of diffusers with random weights: 64 px images, seen at 56, 4x4 tokens of 64."""
    import_or_skip("transformers")
    diffusers = import_or_skip("diffusers")
    generator = torch.Generator().manual_seed(5)
    model = diffusers.AutoencoderRAE(
        encoder_hidden_size=64,
        encoder_num_hidden_layers=2,
        encoder_input_size=56,
        decoder_hidden_size=32,
        decoder_num_hidden_layers=3,
        decoder_num_attention_heads=4,
        decoder_intermediate_size=48,
        latents_mean=torch.randn((64, 4, 4), generator=generator),
        latents_std=torch.rand((64, 4, 4), generator=generator) + 0.5,
    )
    shake(model, std=0.1)
    return model.eval()


def published_files_of(model: Any, folder: Path) -> Path:
    """The files that the authors of RAE would have published of it."""
    attention = {"to_q": "attention.query", "to_k": "attention.key", "to_v": "attention.value"}
    state = {"decoder_pos_embed": model.decoder.decoder_pos_embed}
    for name, tensor in model.decoder.state_dict().items():
        for here, there in {**attention, "to_out.0": "output.dense"}.items():
            name = name.replace(f".attention.{here}.", f".attention.{there}.")
        state[name] = tensor
    deviation = model._latents_std.double() + 1e-5  # diffusers adds to the deviation, the authors to the variance
    return write(folder, state, {"mean": model._latents_mean, "var": (deviation.square() - 1e-5)})


def test_it_is_diffusers_own(theirs: Any, tmp_path: Path) -> None:
    """The same random weights give the same latents and images, read from the authors' layout of files."""
    config = EncoderConfig(
        kind="transformers", config=theirs.encoder.config.to_dict(), input_size=56, antialias=ENCODER.antialias
    )
    seeing = build_encoder(config, pretrained=False)
    seeing.network.net.load_state_dict(theirs.encoder.state_dict())
    ours = read_published_rae(published_files_of(theirs, tmp_path), encoder=seeing, heads=4)
    assert (ours.image_shape, ours.latent_shape) == ((3, 64, 64), (16, 64))
    images = random_images(3, 64)
    with torch.no_grad():
        expected = theirs.encode((images + 1) / 2).latent
        latents = ours.encode(images)
        torch.testing.assert_close(latents, expected.flatten(2).transpose(1, 2), rtol=1e-5, atol=1e-5)
        decoded = ours.decode(latents)
        theirs_decoded = 2 * theirs.decode(expected).sample - 1
    assert 0.2 < (theirs_decoded.abs() < 1).float().mean() < 1  # some of it is clamped, much is not
    torch.testing.assert_close(decoded, theirs_decoded.clamp(-1, 1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(), (4, 4)])
def test_it_answers_to_the_protocol(shape: tuple[int, ...], encoder: FrozenEncoder, tmp_path: Path) -> None:
    network, stats = decoder(), statistics(*shape)
    rae = read_published_rae(write(tmp_path, published(network), stats), encoder=encoder, heads=2)
    assert isinstance(rae, Tokenizer)
    assert (rae.image_shape, rae.latent_shape, rae.dtype) == ((3, 32, 32), (16, 160), torch.float32)
    images = random_images(2, 32)
    z, raw = rae.encode(images), encoder(images)
    for row, column in [(0, 0), (1, 2)]:
        mean, variance = (stats[name][(slice(None), row, column)[: 1 + len(shape)]] for name in ("mean", "var"))
        expected = (raw[:, 4 * row + column] - mean) / (variance + 1e-5).sqrt()
        torch.testing.assert_close(z[:, 4 * row + column], expected)
    decoded = rae.decode(z)
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in (IMAGENET_MEAN, IMAGENET_STD))
    with torch.no_grad():
        expected = (2 * (network(raw) * std + mean) - 1).clamp(-1, 1)
    torch.testing.assert_close(decoded, expected, rtol=1e-3, atol=1e-4)
    assert decoded.dtype == torch.float32 and decoded.is_contiguous()
    narrow = rae.bfloat16()
    assert narrow.dtype == torch.bfloat16 and narrow.encode(images).dtype == torch.float32
    assert (narrow.decode(z) - decoded).abs().mean() < 0.05
    assert narrow.normaliser.mean.dtype == torch.float32


@pytest.mark.parametrize("tokens", [1, 16])
def test_it_is_built_again_from_its_configuration(tokens: int, encoder: FrozenEncoder) -> None:
    normaliser = Normaliser(torch.randn(tokens, 160), torch.rand(tokens, 160) + 0.5)
    rae = PublishedRAE(encoder, normaliser, decoder())
    adapter = TypeAdapter(PublishedRAEConfig)
    again = PublishedRAE.from_config(adapter.validate_json(adapter.dump_json(rae.config)))
    again.load_state_dict(rae.state_dict())
    images = random_images(2, 32)
    assert again.config == rae.config
    assert again.encode(images).equal(rae.encode(images))
    assert again.decode(rae.encode(images)).equal(rae.decode(rae.encode(images)))


def test_wrappers_and_prefixes(encoder: FrozenEncoder, tmp_path: Path) -> None:
    state, stats = published(decoder()), statistics()
    variants = [
        state,
        {"state_dict": state, "epoch": 3},
        {f"module.{name}": tensor for name, tensor in state.items()},
        {"state_dict": {f"module.decoder.{name}": tensor for name, tensor in state.items()}},
        {**{f"decoder.{name}": tensor for name, tensor in state.items()}, "encoder.layernorm.eps": torch.ones(1)},
        {name: tensor for name, tensor in state.items() if name != "decoder_pos_embed"},
        {name: tensor.double() for name, tensor in state.items()},
    ]
    z = torch.randn(1, 16, 160, generator=torch.Generator().manual_seed(0))
    sized = build_encoder(dataclasses.replace(SIGHT, input_size=32), pretrained=True)
    decoded = [
        read_published_rae(write(tmp_path, variant, stats), encoder=sized, heads=2).decode(z) for variant in variants
    ]
    assert all(each.equal(decoded[0]) for each in decoded)


def changed(**changes: Tensor | None) -> dict[str, Tensor]:
    state: dict[str, Tensor | None] = {**published(decoder()), **{k.replace("__", "."): v for k, v in changes.items()}}
    return {name: tensor for name, tensor in state.items() if tensor is not None}


@pytest.mark.parametrize(
    ("model", "stats", "message"),
    [
        (changed(decoder_norm__bias=None), statistics(), "missing: decoder_norm.bias"),
        (changed(mask_token=torch.zeros(1)), statistics(), "unexpected: mask_token"),
        (changed(decoder_norm__bias=torch.zeros(9)), statistics(), r"decoder_norm.bias \(9,\)"),
        (changed(decoder_embed__weight=None), statistics(), "is no decoder of an RAE"),
        (changed(decoder_embed__weight=torch.zeros(3)), statistics(), "is no decoder of an RAE"),
        ([1, 2], statistics(), "not a table of tensors"),
        ({"a": 1}, statistics(), "not a table of tensors"),
        (changed(), {"mean": torch.zeros(160)}, "has no mean and var"),
        (changed(), {"mean": torch.zeros(9), "var": torch.ones(9)}, r"a mean of shape \(9,\)"),
        (changed(), {"mean": torch.zeros(160, 3, 3), "var": torch.ones(160, 3, 3)}, "a mean of shape"),
    ],
)
def test_files_that_do_not_fit(
    model: object, stats: object, message: str, encoder: FrozenEncoder, tmp_path: Path
) -> None:
    with pytest.raises(ModelFileError, match=message) as caught:
        read_published_rae(write(tmp_path, model, stats), encoder=encoder, heads=2)
    assert "\n" not in str(caught.value)


def test_files_that_are_missing_or_broken(encoder: FrozenEncoder, tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"model\.pt is missing"):
        read_published_rae(tmp_path, encoder=encoder)
    (tmp_path / "model.pt").write_bytes(b"no weights")
    with pytest.raises(ModelFileError, match="cannot read the weight file"):
        read_published_rae(tmp_path, encoder=encoder)
    state = published(decoder())
    del state["decoder_pos_embed"]
    with pytest.raises(ModelFileError, match="set the encoder's input_size"):
        read_published_rae(write(tmp_path, state, statistics()), encoder=encoder, heads=2)


def test_parts_that_do_not_fit(encoder: FrozenEncoder) -> None:
    def build(normaliser: Normaliser | None = None, **change: Any) -> PublishedRAE:
        sizes = dataclasses.replace(SIZES, **change)
        return PublishedRAE(encoder, normaliser or Normaliser.identity(sizes.channels_in), MAEDecoder(sizes))

    with pytest.raises(ConfigError, match="4x4 of 160"):
        build(channels_in=96)
    with pytest.raises(ConfigError, match="set the encoder's input_size to 32"):
        build(patch=4)
    with pytest.raises(ConfigError, match="image_channels is 3"):
        build(image_channels=1)
    with pytest.raises(ConfigError, match="latent statistics of the shape"):
        build(Normaliser.identity(160, tokens=9))
    rae = build()
    with pytest.raises(ValueError, match=r"takes \(B, 3, 32, 32\)"):
        rae.encode(random_images(1, 64))
    with pytest.raises(ValueError, match=r"takes \(B, 16, 160\)"):
        rae.decode(torch.zeros(1, 4, 160))
