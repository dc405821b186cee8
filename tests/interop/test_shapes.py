"""What shapes tell of a configuration, what they do not, and what happens where a given value contradicts them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from spheregen.errors import ConfigError, ModelFileError
from spheregen.interop.sphere_encoder import autoencoder_config, load_sphere_encoder
from spheregen.interop.sphere_encoder_shapes import KNOWN_OPTIONS, PUBLISHED_SIZES, Shapes, complete, read_shapes
from spheregen.models.autoencoder import AutoencoderConfig, SphereAutoencoder
from spheregen.models.sizes import SIZES, TransformerSize
from tests.interop.published import (
    OTHER,
    assert_same,
    model_of,
    published_config,
    published_state,
    refuses,
    untold,
    weight_file,
    write,
)


def shapes_of(model: SphereAutoencoder) -> Shapes:
    return read_shapes({name: tuple(value.shape) for name, value in published_state(model).items()}, "w.pth")


@pytest.fixture
def weights(tmp_path: Path) -> tuple[SphereAutoencoder, Path]:
    """A conditional model with in-context tokens and two sizes that nobody published, and its bare weights."""
    model = model_of(decoder=OTHER, in_context_tokens=2, max_angle=80.0)
    return model, weight_file(tmp_path, model)


# inference ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("in_context", [0, 4])
@pytest.mark.parametrize("name", PUBLISHED_SIZES)
def test_published_sizes_are_recognised(name: str, in_context: int) -> None:
    decoder = "small" if name != "small" else "base"
    expected = AutoencoderConfig(
        image_size=64, patch_size=8, encoder=name, decoder=decoder, latent_channels=96, in_context_tokens=in_context
    )
    with torch.device("meta"):
        model = SphereAutoencoder(expected)
    options, inferred = complete({"noise_sigma_max_angle": 85}, shapes_of(model), "w.pth")
    assert autoencoder_config(options) == expected
    assert {"vit_enc_model_size", "vit_dec_model_size", "token_channels", "input_size"} <= set(inferred)
    assert "halve_model_size" not in inferred


@pytest.mark.parametrize(
    "told", [{}, {"halve_model_size": True}, {"halve_model_size": True, "vit_enc_model_size": "base"}]
)
def test_halved_sizes_are_recognised(told: dict[str, Any]) -> None:
    half = dataclasses.replace(SIZES["base"], depth=6)
    expected = AutoencoderConfig(image_size=32, encoder=half, decoder=half, latent_channels=8)
    with torch.device("meta"):
        shapes = shapes_of(SphereAutoencoder(expected))
    options, inferred = complete({"noise_sigma_max_angle": 85, **told}, shapes, "w.pth")
    config = autoencoder_config(options)
    assert (config.encoder, config.decoder) == (half, half)
    assert ("halve_model_size" in inferred) == (not told)
    refuses(ConfigError, lambda: complete({"vit_enc_model_size": "base", "halve_model_size": False}, shapes, "w.pth"),
            "vit_enc_model_size 'base' has 12 blocks but the weights show 6")  # fmt: skip


def test_what_shapes_cannot_tell_is_asked_for_in_one_line(weights: tuple[SphereAutoencoder, Path]) -> None:
    model, path = weights
    needed = untold(model)
    message = refuses(ConfigError, lambda: load_sphere_encoder(path), "weights.safetensors", "--set", *needed)
    assert "width 16, 2 blocks" in message and "width 24, 3 blocks" in message
    for name in needed:
        given = {other: value for other, value in needed.items() if other != name}
        message = refuses(ConfigError, lambda given=given: load_sphere_encoder(path, options=given), name)
        assert not any(other in message for other in given)
    assert_same(load_sphere_encoder(path, options=needed), model)


def test_a_size_of_ours_is_not_guessed_from_its_shape() -> None:
    """Others may have the same width and depth with other heads."""
    shapes = shapes_of(model_of(encoder="nano", decoder="nano"))
    refuses(ConfigError, lambda: complete({"noise_sigma_max_angle": 85}, shapes, "w.pth"), "vit_enc_heads")
    named = {"noise_sigma_max_angle": 85, "vit_enc_model_size": "nano", "vit_dec_model_size": "nano"}
    assert autoencoder_config(complete(named, shapes, "w.pth")[0]).encoder_size == SIZES["nano"]


@pytest.mark.parametrize("form", ["constructor", "training"])
def test_every_field_that_shapes_tell_may_be_left_out(form: str, tmp_path: Path) -> None:
    model = model_of(decoder=OTHER, mixer_affine=False, pixel_head="conv")
    options = published_config(model)
    if form == "training":
        options |= {"image_size": 8, "latent_resolution": 2, "compression_ratio": 12.0, "cond_generator": True}
        del options["input_size"], options["patch_size"], options["token_channels"]
    shapes = shapes_of(model)
    whole, inferred = complete(options, shapes, "w.pth")
    assert autoencoder_config(whole) == dataclasses.replace(model.config, latent_channels=4)
    assert inferred == ()
    for field in options.keys() - {"noise_sigma_max_angle", "sizes", "vit_enc_model_size", "vit_dec_model_size"}:
        for lacking in ({name: value for name, value in options.items() if name != field}, {**options, field: None}):
            assert complete(lacking, shapes, "w.pth")[0] == whole
    write(tmp_path, model)
    (tmp_path / "config.json").write_text(json.dumps({"noise_sigma_max_angle": 85}))
    assert_same(load_sphere_encoder(tmp_path, options={"vit_enc_heads": 2, "vit_dec_heads": 3}), model)


@pytest.mark.parametrize("told", [{}, {"cond_generator": False}, {"cond_generator": None, "num_classes": None}])
def test_the_class_count_of_training_options_is_the_data_sets(told: dict[str, Any], tmp_path: Path) -> None:
    model = model_of(num_classes=0)
    options = {**published_config(model), "image_size": 8, "num_classes": 1000, **told}
    loaded = load_sphere_encoder(write(tmp_path, model), options)
    assert loaded.num_classes == 0
    assert_same(loaded, model)


# contradictions -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "reasons"),
    [
        ({"input_size": 16}, ["input_size is 16", "show 8"]),
        ({"image_size": 16}, ["image_size is 16", "show 8"]),
        ({"patch_size": 2}, ["patch_size is 2", "show 4"]),
        ({"latent_resolution": 4}, ["latent_resolution is 4", "show 2"]),
        ({"token_channels": 5}, ["token_channels is 5", "show 4"]),
        ({"compression_ratio": 3.0}, ["compression_ratio is 3", "show 12 (4 channels)"]),
        ({"num_classes": 10}, ["num_classes is 10", "show 3"]),
        ({"num_classes": 0}, ["cond_generator is False (num_classes 0)", "show 3 classes"]),
        ({"cond_generator": False}, ["cond_generator is False", "show 3 classes"]),
        ({"pixel_head_type": "conv"}, ["pixel_head_type is conv", "show linear"]),
        ({"in_context_size": 0}, ["in_context_size is 0", "show 2"]),
        ({"vit_enc_latent_mlp_mixer_depth": 4}, ["vit_enc_latent_mlp_mixer_depth is 4", "show 1"]),
        ({"vit_dec_latent_mlp_mixer_depth": 0}, ["vit_dec_latent_mlp_mixer_depth is 0", "show 2"]),
        ({"affine_latent_mlp_mixer": False}, ["affine_latent_mlp_mixer is False", "show True"]),
        ({"vit_enc_model_size": "base"}, ["vit_enc_model_size 'base' is 768 wide", "show 16", "12 blocks", "show 2"]),
        ({"patch_size": 2, "num_classes": 4}, ["patch_size is 2", "num_classes is 4"]),
    ],
    ids=str,
)
def test_contradictions_name_both(
    change: dict[str, Any], reasons: list[str], weights: tuple[SphereAutoencoder, Path]
) -> None:
    model, path = weights
    config = published_config(model)
    refuses(ConfigError, lambda: load_sphere_encoder(path, config, options=change), "weights.safetensors", *reasons)
    refuses(ConfigError, lambda: load_sphere_encoder(path, options=change), *reasons)


@pytest.mark.parametrize(
    "wrong",
    [
        {"input_size": 16},
        {"image_size": 16, "latent_resolution": 1},
        {"token_channels": 99},
        {"compression_ratio": 99.0},
        {"num_classes": 7, "cond_generator": False},
        {"noise_sigma_max_angle": 10},
    ],
    ids=str,
)
def test_options_win_over_the_configuration(wrong: dict[str, Any], weights: tuple[SphereAutoencoder, Path]) -> None:
    model, path = weights
    config = {**published_config(model), **wrong}
    right = {
        "image_size": 8,
        "latent_resolution": 2,
        "token_channels": 4,
        "num_classes": 3,
        "noise_sigma_max_angle": 80,
    }
    assert_same(load_sphere_encoder(path, config, options=right), model)


@pytest.mark.parametrize(
    ("change", "reasons"),
    [
        ({"num_classes": "ten"}, ["num_classes", "a whole number", "'ten'"]),
        ({"patch_size": 2.5}, ["patch_size", "a whole number"]),
        ({"latent_resolution": "high"}, ["latent_resolution", "a whole number", "'high'"]),
        ({"token_channels": float("nan")}, ["token_channels", "a whole number"]),
        ({"spherify_model": "yes"}, ["spherify_model", "true or false"]),
        ({"halve_model_size": 2}, ["halve_model_size", "true or false"]),
        ({"affine_latent_mlp_mixer": "no"}, ["affine_latent_mlp_mixer", "true or false"]),
        ({"noise_sigma_max_angle": "80 degrees"}, ["noise_sigma_max_angle", "a number"]),
        ({"noise_sigma_max_angle": 90}, ["max_angle lies between 0 and 90"]),
        ({"noise_sigma_max_angle": float("nan")}, ["max_angle lies between 0 and 90"]),
        ({"vit_enc_heads": 3}, ["3 heads do not divide a width of 16"]),
        ({"vit_dec_in_context_start": 3}, ["decoder", "only 3 blocks"]),
        ({"spherify_model": True}, ["spherify_decoder_blocks with in_context_tokens"]),
        ({"sizes": 5}, ["sizes is 5"]),
        ({"sizes": {"mine": 5}}, ["'mine' is 5"]),
        ({"sizes": {"mine": {"width": "wide"}}}, ["width of size 'mine'", "a whole number"]),
    ],
    ids=str,
)
def test_values_of_the_wrong_kind_are_refused(
    change: dict[str, Any], reasons: list[str], weights: tuple[SphereAutoencoder, Path]
) -> None:
    model, path = weights
    refuses(ConfigError, lambda: load_sphere_encoder(path, published_config(model), options=change), *reasons)


def test_partial_sizes_are_completed(weights: tuple[SphereAutoencoder, Path]) -> None:
    model, path = weights
    sizes = {"mine": {"heads": 2, "in_context_start": 1}, "other": {"heads": 3, "in_context_start": 2, "layers": 3}}
    assert_same(load_sphere_encoder(path, published_config(model), options={"sizes": sizes}), model)
    wrong = {"sizes": {"mine": {"layers": 7, "width": 32}, "other": {"width": None}}}
    refuses(ConfigError, lambda: load_sphere_encoder(path, published_config(model), options=wrong),
            "'mine' is 32 wide but the weights show 16", "'mine' has 7 blocks but the weights show 2")  # fmt: skip


# damaged files --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gone", "reason"),
    [
        ("encoder.x_embedder.0.", "does not tell the patch size: it lacks encoder.x_embedder.0.weight"),
        ("decoder.blocks.0.", "lacks decoder.blocks.0.*"),
        ("decoder.blocks.", "lacks decoder.blocks.*"),
        ("decoder.x_embedder.1.blocks.0.", "lacks decoder.x_embedder.1.blocks.0.*"),
    ],
)
def test_holes_are_named(gone: str, reason: str, tmp_path: Path) -> None:
    model = model_of()
    state = {name: value for name, value in published_state(model).items() if not name.startswith(gone)}
    torch.save(state, tmp_path / "w.pth")
    refuses(ModelFileError, lambda: load_sphere_encoder(tmp_path / "w.pth", options=untold(model)), "w.pth", reason)


def test_a_grid_that_is_not_square_is_refused(tmp_path: Path) -> None:
    state = published_state(model_of())
    torch.save({**state, "encoder.pos_embed": torch.zeros(1, 5, 16)}, tmp_path / "w.pth")
    refuses(ModelFileError, lambda: load_sphere_encoder(tmp_path / "w.pth"), "5 tokens", "square")


@pytest.mark.parametrize("seed", range(20))
def test_shapes_at_random_are_one_line_errors(seed: int, tmp_path: Path) -> None:
    """Names of ours with axes swapped, added, removed or resized: never a traceback, never a model."""
    generator = torch.Generator().manual_seed(seed)
    model = model_of(in_context_tokens=1)
    state = published_state(model)
    names = list(state)
    for _ in range(3):
        name = names[int(torch.randint(len(names), (), generator=generator))]
        axes = int(torch.randint(0, 5, (), generator=generator))
        state[name] = torch.zeros([int(torch.randint(1, 6, (), generator=generator)) for _ in range(axes)])
    torch.save(state, tmp_path / "w.pth")
    refuses((ModelFileError, ConfigError), lambda: load_sphere_encoder(tmp_path / "w.pth", options=untold(model)))


def test_the_names_of_our_own_options_are_known() -> None:
    model = model_of(encoder=TransformerSize(width=16, depth=2, heads=1), in_context_tokens=1)
    assert set(untold(model)) | set(published_config(model)) <= set(KNOWN_OPTIONS)
