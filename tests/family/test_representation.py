"""Our own representation autoencoder: shapes of every combination, exact statistics, folders that need no other."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from spheregen.errors import ConfigError, ModelFileError, SphereGenError
from spheregen.family.representation.network import (
    Projection,
    RepresentationAutoencoder,
    RepresentationConfig,
    TokenCodec,
    with_architecture,
)
from spheregen.folders.model_folder import ModelInfo, load_model, save_model
from spheregen.folders.tokenizers import open_tokenizer, save_tokenizer
from spheregen.networks.encoders import EncoderConfig, build_encoder
from spheregen.networks.normaliser import measure
from spheregen.nn.block import BlockOptions
from spheregen.nn.sizes import TransformerSize
from spheregen.protocol import Tokenizer
from tests.random_networks import import_or_skip, random_images, shake

SMALL = TransformerSize(width=16, depth=1, heads=2)
FEATURES = EncoderConfig(kind="feature_net", stage=2)


def config(**values: Any) -> RepresentationConfig:
    return RepresentationConfig(**{"image_size": 16, "encoder": FEATURES, "decoder": SMALL, **values})


def tokenizer(**values: Any) -> RepresentationAutoencoder:
    """With the real FeatureNet and random weights elsewhere."""
    chosen = config(**values)
    codec = TokenCodec(chosen)
    shake(codec)
    return RepresentationAutoencoder(build_encoder(chosen.encoder, pretrained=True), codec)


# 16 px: 8x8 tokens of 48 channels
VARIANTS: dict[str, tuple[dict[str, Any], tuple[int, int]]] = {
    "plain": ({}, (64, 48)),
    "packed": ({"pack": 4}, (4, 768)),
    "projected": ({"latent_channels": 5}, (64, 5)),
    "packed and projected": ({"latent_channels": 5, "pack": 2}, (16, 20)),
    "finer decoder": ({"patch_size": 1, "pack": 2}, (16, 192)),
    "coarser decoder": ({"patch_size": 8, "latent_channels": 3}, (64, 3)),
    "conv head, tanh": ({"pixel_head": "conv", "output_activation": "tanh"}, (64, 48)),
    "other blocks": ({"blocks": BlockOptions(norm="layer", mlp="gelu", qk_norm=True)}, (64, 48)),
    "grey": ({"image_channels": 1}, (64, 48)),
    "enlarged": ({"encoder": EncoderConfig(kind="feature_net", stage=4, input_size=32)}, (16, 160)),
}


@pytest.mark.parametrize(("values", "shape"), VARIANTS.values(), ids=VARIANTS.keys())
def test_every_variant_is_a_tokenizer(values: dict[str, Any], shape: tuple[int, int]) -> None:
    codec = tokenizer(**values)
    assert isinstance(codec, Tokenizer)
    channels = values.get("image_channels", 3)
    assert codec.image_shape == (channels, 16, 16)
    assert codec.latent_shape == shape == (codec.config.tokens, codec.config.channels)
    images = random_images(3, 16, channels)
    latents = codec.encode(images)
    decoded = codec.decode(latents)
    assert latents.shape == (3, *shape) and decoded.shape == images.shape
    assert latents.dtype == decoded.dtype == torch.float32 and codec.dtype == torch.float32
    assert float(decoded.abs().max()) <= 1
    for row in range(3):  # a sample does not depend on its batch
        torch.testing.assert_close(codec.encode(images[row : row + 1])[0], latents[row], rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match=r"takes \(B, "):
        codec.encode(images[..., :8])
    with pytest.raises(ValueError, match=r"takes \(B, "):
        codec.decode(latents[:, :1, :1])


def test_a_latent_token_decodes_where_its_image_was() -> None:
    """Without attention, changing a latent token changes the pixels of its own square only."""
    for values in ({"pack": 2}, {"pack": 2, "patch_size": 1}, {"pack": 2, "patch_size": 4}):
        codec = tokenizer(**values)
        for block in codec.codec.decoder.trunk.blocks:
            nn.init.zeros_(block.attention.out.weight)  # type: ignore[union-attr,arg-type]
        nn.init.dirac_(codec.codec.decoder.head.smooth.weight)  # the last convolution looks at neighbours
        latents = torch.zeros(1, *codec.latent_shape)
        changed = latents.clone()
        changed[0, 6] = 0.5  # row 1, column 2 of 4x4
        difference = (codec.codec.decode(changed) - codec.codec.decode(latents)).abs().amax(dim=(0, 1))
        assert float(difference[4:8, 8:12].min()) > 0
        difference[4:8, 8:12] = 0
        assert float(difference.max()) == 0


def correlated(count: int = 64) -> tuple[Tensor, Tensor]:
    """Tokens (B, E, D) of mean 0 and variance 1, and their correlations."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn((count, 8, 6), generator=generator) @ torch.randn((6, 6), generator=generator)
    rows = x.flatten(0, 1).double()
    rows = (rows - rows.mean(0)) / rows.std(0, correction=0)
    return rows.float().view_as(x), (rows.T @ rows / len(rows)).float()


def test_a_projection_learns_as_a_batch_norm_over_all_the_data_would() -> None:
    tokens, correlation = correlated()
    projection = Projection(6, 4)
    projection.correlation.copy_(correlation)
    weight = projection.weight.detach().clone().requires_grad_()
    target = torch.randn(tokens.shape[0], 8, 4, generator=torch.Generator().manual_seed(1))
    raw = tokens @ weight.T
    reference = (raw - raw.mean((0, 1))) * torch.rsqrt(raw.var((0, 1), correction=0) + 1e-5)
    (reference - target).square().mean().backward()
    (projection(tokens) - target).square().mean().backward()
    torch.testing.assert_close(projection(tokens), reference, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(projection.weight.grad, weight.grad, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"image_size": 1}, "at least 2 pixels"),
        ({"image_channels": 2}, "image_channels is 3"),
        ({"pack": 0}, "pack is at least 1"),
        ({"pack": 3}, "does not divide the encoder's 8x8 tokens"),
        ({"latent_channels": 0}, "latent_channels is at least 1"),
        ({"latent_channels": 49}, "at most 48"),
        ({"patch_size": 3}, "does not divide an image"),
        ({"image_size": 24, "patch_size": 3}, "neither a multiple nor a part"),
        ({"encoder": EncoderConfig(kind="feature_net", stage=1, input_size=12)}, "set patch_size"),
        ({"encoder": EncoderConfig(kind="feature_net", stage=4), "image_size": 12}, "multiple of 8"),
        ({"image_size": 8, "patch_size": 8, "pixel_head": "conv"}, "at least 2x2"),
        ({"pixel_head": "cnov"}, "did you mean 'conv'"),
        ({"decoder": "bsae"}, "did you mean 'base'"),
    ],
)
def test_impossible_configurations_are_one_line(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        config(**values)
    assert "\n" not in str(caught.value)


def test_a_folder_gives_the_same_tokenizer_without_the_encoder_s_own_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    codec = tokenizer(latent_channels=5, pack=2)
    images = random_images(2, 16)
    codec.codec.set_statistics(measure([codec.encoder(images)]), torch.eye(48) * 0.5 + 0.5)
    save_model(tmp_path / "a", codec, ModelInfo(), title="mine")
    save_tokenizer(codec, tmp_path / "b")

    def refuse(*_: object) -> None:
        raise AssertionError("the encoder's weights are in the folder")

    monkeypatch.setattr("spheregen.networks.encoders.load_feature_net", refuse)
    for name in ("a", "b"):
        opened = open_tokenizer(tmp_path / name).tokenizer
        assert isinstance(opened, RepresentationAutoencoder) and opened.config == codec.config
        assert torch.equal(opened.encode(images), codec.encode(images))
        assert torch.equal(opened.decode(codec.encode(images)), codec.decode(codec.encode(images)))
        assert not any(module.training for module in opened.modules())
    assert open_tokenizer(tmp_path / "a").fingerprint == open_tokenizer(tmp_path / "b").fingerprint
    text = (tmp_path / "a" / "README.md").read_text()
    assert all(words in text for words in ("FeatureNet, stage 2, frozen", "16 tokens of 20 channels", "2510.11690"))
    with pytest.raises(ModelFileError, match=r"holds a tokenizer .* not a generator") as caught:
        load_model(tmp_path / "a")
    assert "\n" not in str(caught.value)


def test_a_broken_folder_is_told(tmp_path: Path) -> None:
    save_model(tmp_path, tokenizer(), ModelInfo())
    values = json.loads((tmp_path / "config.json").read_text())
    values["architecture"]["encoder"]["stage"] = 9
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(ModelFileError, match=r"describes no possible model: .*1 to 4"):
        open_tokenizer(tmp_path)
    values["architecture"]["encoder"]["stage"] = 3
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(ModelFileError, match="does not fit"):
        open_tokenizer(tmp_path)


def test_half_types_keep_statistics_and_projection_wide() -> None:
    codec = tokenizer(latent_channels=5)
    images = random_images(2, 16)
    wide = codec.encode(images)
    decoded = codec.decode(wide)
    codec.to(torch.bfloat16)
    assert codec.dtype == torch.bfloat16
    assert {t.dtype for t in (*codec.codec.normaliser.buffers(), *codec.codec.projection.state_dict().values())} == {  # type: ignore[union-attr]
        torch.float32
    }
    latents = codec.encode(images)
    assert latents.dtype == torch.float32
    assert float((latents - wide).abs().mean()) < 0.05 * float(wide.abs().mean())
    assert float((codec.decode(wide) - decoded).abs().mean()) < 0.05


def test_a_network_of_transformers_as_the_encoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    transformers = import_or_skip("transformers")
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "patch_size": 4, "image_size": 20}
    net = transformers.Dinov2WithRegistersModel(transformers.Dinov2WithRegistersConfig(**sizes, num_register_tokens=2))
    shake(net)
    net.save_pretrained(tmp_path / "net")
    encoder = EncoderConfig(kind="transformers", source=str(tmp_path / "net"), input_size=16)
    chosen = config(encoder=encoder, image_size=20, patch_size=5, pack=2)  # nothing is read until it is needed
    assert (chosen.encoder_grid, chosen.encoder_channels) == (4, 32)
    assert (chosen.tokens, chosen.channels, chosen.decoder_grid) == (4, 128, 4)
    assert with_architecture(encoder).config is not None
    assert hash(with_architecture(encoder)) == hash(dataclasses.replace(encoder))  # recipes are keys of caches
    with pytest.raises(ConfigError, match="does not divide the encoder's 4x4"):
        TokenCodec(config(encoder=encoder, image_size=20, patch_size=5, pack=3))
    built = build_encoder(encoder, pretrained=True)
    codec = TokenCodec(dataclasses.replace(chosen, encoder=built.config))
    shake(codec)
    ours = RepresentationAutoencoder(built, codec)
    save_model(tmp_path / "model", ours, ModelInfo())
    (tmp_path / "net").rename(tmp_path / "gone")
    again = open_tokenizer(tmp_path / "model").tokenizer
    images = random_images(2, 20)
    assert torch.equal(again.encode(images), ours.encode(images))
    assert torch.equal(again.decode(again.encode(images)), ours.decode(ours.encode(images)))


def test_an_encoder_that_is_nowhere(tmp_path: Path) -> None:
    import_or_skip("transformers")
    missing = config(encoder=EncoderConfig(kind="transformers", source=str(tmp_path / "none")))
    with pytest.raises(SphereGenError, match="there is no folder") as caught:
        TokenCodec(missing)
    assert "\n" not in str(caught.value)
