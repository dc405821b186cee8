"""Published checkpoints of every kind become our model; foreign and broken ones are refused in one line."""

from __future__ import annotations

import dataclasses
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from spheregen.errors import ConfigError, ModelFileError
from spheregen.interop import convert_sphere_encoder
from spheregen.interop.sphere_encoder import autoencoder_config, load_sphere_encoder
from spheregen.model_folder import load_model
from spheregen.models.autoencoder import AutoencoderConfig, SphereAutoencoder
from tests.interop.published import (
    OTHER,
    SIZE,
    assert_same,
    model_of,
    published_config,
    published_state,
    refuses,
    untold,
    weight_file,
    write,
)

# architectures --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("head", "classes"), [("linear", 3), ("conv", 0)])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"encoder_mixer_depth": 0, "decoder_mixer_depth": 0},
        {"encoder_mixer_depth": 0},
        {"decoder_mixer_depth": 0},
        {"in_context_tokens": 2},
        {"mixer_affine": False},
        {"mixer_affine": False, "encoder_mixer_depth": 0, "in_context_tokens": 3},
        {"max_angle": 80.0},
        {"spherify_decoder_blocks": True},
        {"encoder": OTHER, "latent_channels": 7},
        {"decoder": OTHER, "in_context_tokens": 1},
        {"patch_size": 2},
        {"image_size": 32, "patch_size": 8, "encoder_mixer_depth": 0},
        {"image_size": 32, "patch_size": 16, "decoder_mixer_depth": 0},
    ],
    ids=str,
)
def test_every_architecture_loads(head: str, classes: int, options: dict[str, Any], tmp_path: Path) -> None:
    model = model_of(pixel_head=head, num_classes=classes, **options)
    assert_same(load_sphere_encoder(write(tmp_path, model)), model)
    (tmp_path / "config.json").unlink()
    assert_same(load_sphere_encoder(tmp_path, options=untold(model)), model)
    convert_sphere_encoder(tmp_path, tmp_path / "converted", options=untold(model))
    assert_same(load_model(tmp_path / "converted").model, model)


def test_the_published_names_of_a_model_without_mixers() -> None:
    names = published_state(model_of(encoder_mixer_depth=0, decoder_mixer_depth=0)).keys()
    assert "decoder.x_embedder.weight" in names
    assert not any(name.startswith(("encoder.out", "decoder.x_embedder.0")) for name in names)


def test_spherified_models_load(tmp_path: Path) -> None:
    model = model_of(spherify_decoder_blocks=True)
    assert_same(load_sphere_encoder(write(tmp_path, model, spherify_model=True)), model)


def test_halved_models_load(tmp_path: Path) -> None:
    model = model_of()
    sizes = {"mine": {"width": 16, "layers": 4, "heads": 2, "in_context_start": 1}}
    assert_same(load_sphere_encoder(write(tmp_path, model, halve_model_size=True, sizes=sizes)), model)
    config = autoencoder_config({**published_config(model), "vit_enc_model_size": "base", "halve_model_size": True})
    assert (config.encoder_size.width, config.encoder_size.depth) == (768, 6)


# files ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ema", [False, True])
def test_training_checkpoints(ema: bool, tmp_path: Path) -> None:
    raw, averaged = model_of(), model_of()
    with torch.no_grad():
        averaged.decoder.head.smooth.bias.add_(0.3)  # type: ignore[union-attr]
    write(tmp_path, raw)
    (tmp_path / "weights.safetensors").unlink()
    tables = {f"{part}.{name}": torch.randn(4, 8) for part in ("encoder", "decoder") for name in ("rope", "inctx_rope")}
    checkpoint = {
        "model": published_state(raw),
        "ema_model": {**published_state(averaged), **tables},
        "epoch": 7,
    }
    torch.save(checkpoint, tmp_path / "ep7.pth")
    expected = averaged if ema else raw
    assert_same(load_sphere_encoder(tmp_path, ema=ema), expected)
    assert_same(load_sphere_encoder(tmp_path / "ep7.pth", ema=ema), expected)  # its configuration lies beside it
    assert_same(load_sphere_encoder(str(tmp_path / "ep7.pth"), published_config(raw), ema=ema), expected)
    assert_same(load_sphere_encoder(tmp_path / "ep7.pth", tmp_path / "config.json", ema=ema), expected)


def test_a_bare_state_dictionary(tmp_path: Path) -> None:
    model = model_of()
    for zipped in (True, False):
        torch.save(published_state(model), tmp_path / "weights.pth", _use_new_zipfile_serialization=zipped)
        assert_same(load_sphere_encoder(tmp_path, published_config(model)), model)
    refuses(
        ModelFileError,
        lambda: load_sphere_encoder(tmp_path, published_config(model), ema=True),
        "weights.pth",
        "without ema",
    )


class Evil:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.write_text, (self.path, "executed"))


@pytest.mark.parametrize("place", ["model", "extra", "whole", "weight"])
@pytest.mark.parametrize("container", ["zip", "legacy", "pickle"])
def test_code_in_a_pickle_is_refused_and_not_executed(place: str, container: str, tmp_path: Path) -> None:
    model, proof = model_of(), tmp_path / "proof"
    evil = Evil(proof)
    content: Any = {
        "model": {"model": evil},
        "extra": {"model": published_state(model), "args": evil},
        "whole": evil,
        "weight": {"model": {**published_state(model), "encoder.pos_embed": evil}},
    }[place]
    path = tmp_path / "evil.pth"
    if container == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=container == "zip")
    for call in (
        lambda: load_sphere_encoder(path, published_config(model)),
        lambda: convert_sphere_encoder(path, tmp_path / "out", options=untold(model)),
    ):
        message = refuses(ModelFileError, call, "evil.pth", "nothing of it was executed")
        assert "weights_only" not in message  # torch recommends to switch its protection off
    assert not proof.exists()
    assert not (tmp_path / "out").exists()
    if container == "zip":
        torch.load(path, weights_only=False)
        assert proof.exists()  # it would have been


@pytest.mark.parametrize("content", [b"", b"garbage" * 100, b"\x80\x02]q\x00."])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_broken_weights_are_refused(content: bytes, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"broken{suffix}"
    path.write_bytes(content)
    refuses(ModelFileError, lambda: load_sphere_encoder(path, published_config(model_of())), "broken")


@pytest.mark.parametrize("name", ["cut.pth", "cut.safetensors"])
def test_truncated_weights_are_refused(name: str, tmp_path: Path) -> None:
    model = model_of()
    path = weight_file(tmp_path, model, name)
    whole = path.read_bytes()
    for length in [1, 7, 8, 100, *range(1000, len(whole), len(whole) // 10), len(whole) - 1]:
        path.write_bytes(whole[:length])
        refuses(ModelFileError, lambda: load_sphere_encoder(path, options=untold(model)), name)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda tensor: tensor.to(torch.int8), "int8"),
        (lambda tensor: tensor.to(torch.complex64), "complex64"),
        (lambda tensor: tensor > 0, "bool"),
        (lambda tensor: tensor.to(torch.float8_e4m3fn), "float8"),
        (lambda tensor: tensor.to_sparse(), "sparse"),
        (lambda tensor: torch.ones(1).expand(tensor.shape), "expanded"),
        (lambda tensor: torch.empty(1, 10**15, 0), "empty"),
        (lambda tensor: tensor.to("meta"), "no numbers"),
        (lambda tensor: tensor.clone().fill_(float("nan")), "NaN"),
        (lambda tensor: tensor.clone().fill_(float("inf")), "infinite"),
        (lambda tensor: tensor.double() * 1e300, "infinite"),
        (lambda tensor: tensor.tolist(), "a list"),
        (lambda tensor: {"weight": tensor}, "a dict"),
        (lambda tensor: None, "a NoneType"),
    ],
)
def test_weights_that_are_no_dense_numbers_are_refused(spoil: Any, reason: str, tmp_path: Path) -> None:
    model = model_of()
    state: dict[str, Any] = dict(published_state(model))
    state["decoder.ffn.linear.weight"] = spoil(state["decoder.ffn.linear.weight"])
    torch.save({"model": state, "epoch": 1}, tmp_path / "odd.pth")
    refuses(
        ModelFileError,
        lambda: load_sphere_encoder(tmp_path / "odd.pth", options=untold(model)),
        "odd.pth",
        "decoder.ffn.linear.weight",
        reason,
    )


def test_shared_and_transposed_tensors_and_parameters_are_read(tmp_path: Path) -> None:
    model = model_of()
    state: dict[str, Any] = dict(published_state(model))
    for name in ("encoder.pos_embed", "decoder.pos_embed"):
        state[name] = state["encoder.pos_embed"]
    weight = state["decoder.ffn.linear.weight"]
    state["decoder.ffn.linear.weight"] = nn.Parameter(weight.T.contiguous().T)
    torch.save({"model": state}, tmp_path / "weights.pth")
    assert_same(load_sphere_encoder(tmp_path, options=untold(model)), model)


def test_a_key_twice_and_keys_that_are_no_names(tmp_path: Path) -> None:
    model = model_of()
    state: dict[Any, Any] = dict(published_state(model))
    torch.save({**state, "module.encoder.pos_embed": state["encoder.pos_embed"]}, tmp_path / "a.pth")
    refuses(ModelFileError, lambda: load_sphere_encoder(tmp_path / "a.pth"), "encoder.pos_embed twice")
    torch.save({**state, 5: torch.zeros(1)}, tmp_path / "b.pth")
    refuses(ModelFileError, lambda: load_sphere_encoder(tmp_path / "b.pth"), "b.pth", "'5'")
    torch.save({"model": {}}, tmp_path / "c.pth")
    refuses(ModelFileError, lambda: load_sphere_encoder(tmp_path / "c.pth"), "c.pth", "empty")


FOREIGN = {
    "ViT": ["cls_token", "pos_embed", "patch_embed.proj.weight", "blocks.0.attn.qkv.weight", "head.weight"],
    "UNet": ["conv_in.weight", "down_blocks.0.resnets.0.conv1.weight", "mid_block.attentions.0.proj.weight"],
    "VAE": ["encoder.conv_in.weight", "decoder.conv_in.weight", "quant_conv.weight"],
}


@pytest.mark.parametrize("kind", FOREIGN)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_checkpoints_of_other_models_are_refused(kind: str, suffix: str, tmp_path: Path) -> None:
    state = {name: torch.randn(4, 4) for name in FOREIGN[kind]}
    path = tmp_path / f"foreign{suffix}"
    if suffix == ".pth":
        torch.save(state, path)
    else:
        save_file(state, path)
    for config in (None, published_config(model_of())):
        refuses(
            ModelFileError,
            lambda config=config: load_sphere_encoder(path, config),
            "holds no Sphere Encoder",
            f"none of its {len(state)} keys",
            FOREIGN[kind][0],
        )


def test_names_with_line_ends_stay_on_one_line(tmp_path: Path) -> None:
    model = model_of()
    torch.save({**published_state(model), "two\nlines": torch.zeros(1)}, tmp_path / "a.pth")
    refuses(ModelFileError, lambda: load_sphere_encoder(tmp_path / "a.pth", options=untold(model)), r"two\nlines")
    torch.save({"two\nlines": torch.zeros(1)}, tmp_path / "b.pth")
    refuses(ModelFileError, lambda: load_sphere_encoder(tmp_path / "b.pth"), "no Sphere Encoder")


def test_models_of_ours_and_halves_of_models_are_refused(tmp_path: Path) -> None:
    model = model_of()
    path = tmp_path / "model.safetensors"
    save_file(model.state_dict(), path)
    refuses(ModelFileError, lambda: load_sphere_encoder(path), "a SphereGen model already")
    save_file({name: value for name, value in published_state(model).items() if name.startswith("encoder")}, path)
    refuses(ModelFileError, lambda: load_sphere_encoder(path), "lacks the whole decoder")


@pytest.mark.parametrize("content", [[1, 2], {"epoch": 3}, {"model": {"a": 1}}, {"model": None}, 5])
def test_other_pickles_are_refused(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "other.pth")
    refuses(ModelFileError, lambda: load_sphere_encoder(tmp_path / "other.pth", published_config(model_of())), "other")


def test_a_checkpoint_without_ema_weights(tmp_path: Path) -> None:
    model = model_of()
    torch.save({"model": published_state(model), "ema_model": None, "epoch": 1}, tmp_path / "a.pth")
    assert_same(load_sphere_encoder(tmp_path / "a.pth", published_config(model)), model)
    refuses(
        ModelFileError,
        lambda: load_sphere_encoder(tmp_path / "a.pth", published_config(model), ema=True),
        "holds no ema_model",
    )
    torch.save({"ema_model": published_state(model)}, tmp_path / "b.pth")
    assert_same(load_sphere_encoder(tmp_path / "b.pth", published_config(model), ema=True), model)
    refuses(
        ModelFileError,
        lambda: load_sphere_encoder(tmp_path / "b.pth", published_config(model)),
        "holds no model",
        "--ema",
    )


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
@pytest.mark.parametrize("inner", [False, True])
def test_prefixes_of_wrappers(prefix: str, inner: bool, tmp_path: Path) -> None:
    model = model_of()
    state = published_state(model)
    if inner:  # encoder and decoder wrapped one by one
        state = {name.replace(".", f".{prefix}", 1): tensor for name, tensor in state.items()}
    else:
        state = {prefix + name: tensor for name, tensor in state.items()}
    assert_same(load_sphere_encoder(write(tmp_path, model, state)), model)


def test_gains_without_an_axis(tmp_path: Path) -> None:
    model = model_of()
    state = published_state(model)
    scalars = [name for name in state if name.endswith(("alpha1", "alpha2"))]
    assert len(scalars) == 6
    state.update({name: state[name].reshape(()) for name in scalars})
    assert_same(load_sphere_encoder(write(tmp_path, model, state)), model)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_weights_of_other_types(dtype: torch.dtype, tmp_path: Path) -> None:
    model = model_of()
    state = {name: tensor.to(dtype) for name, tensor in published_state(model).items()}
    loaded = load_sphere_encoder(write(tmp_path, model, state))
    assert all(tensor.dtype == torch.float32 for tensor in loaded.state_dict().values())
    model.load_state_dict({name: tensor.to(dtype).float() for name, tensor in model.state_dict().items()})
    assert_same(loaded, model)


# configurations -------------------------------------------------------------------------------------------------------


def training_options(model: SphereAutoencoder) -> dict[str, Any]:
    """The same model in the words of the training options (cfg.json)."""
    options = published_config(model)
    for name in ("input_size", "patch_size", "token_channels"):
        del options[name]
    return {
        **options,
        "image_size": 8,
        "latent_resolution": 2,  # the grid
        "compression_ratio": 12.0,  # 3 * 8 * 8 / (4 * 4)
        "cond_generator": model.num_classes > 0,
        "num_classes": 3,  # counts the data set's classes, conditional or not
        "halve_model_size": False,
        "spherify_model": False,
        "lr": 1e-4,
        "batch_size": 256,
        "dataset_name": "cifar-10",
    }


@pytest.mark.parametrize("classes", [0, 3])
def test_training_options_as_the_configuration(classes: int, tmp_path: Path) -> None:
    model = model_of(num_classes=classes)
    write(tmp_path, model)
    (tmp_path / "config.json").unlink()
    (tmp_path / "cfg.json").write_text(json.dumps(training_options(model)))
    loaded = load_sphere_encoder(tmp_path)
    assert loaded.num_classes == classes
    assert_same(loaded, model)


def test_the_published_imagenet_options() -> None:
    config = autoencoder_config(
        {
            "image_size": 256,
            "latent_resolution": 32,
            "compression_ratio": 3.0,
            "cond_generator": True,
            "num_classes": 1000,
            "vit_enc_model_size": "large",
            "vit_dec_model_size": "xlarge",
            "vit_enc_latent_mlp_mixer_depth": 4,
            "vit_dec_latent_mlp_mixer_depth": 0,
            "pixel_head_type": "linear",
            "noise_sigma_max_angle": 85,
        }
    )
    expected = AutoencoderConfig(
        image_size=256,
        patch_size=8,
        encoder="large",
        decoder="xlarge",
        compression=3.0,
        num_classes=1000,
        encoder_mixer_depth=4,
        decoder_mixer_depth=0,
        max_angle=85.0,
    )
    assert dataclasses.asdict(config) == dataclasses.asdict(expected)
    assert (config.tokens, config.channels) == (1024, 64)


@pytest.mark.parametrize(
    "field",
    [
        "input_size",
        "patch_size",
        "vit_enc_model_size",
        "vit_dec_model_size",
        "token_channels",
        "pixel_head_type",
        "vit_enc_latent_mlp_mixer_depth",
        "vit_dec_latent_mlp_mixer_depth",
        "noise_sigma_max_angle",
    ],
)
def test_a_missing_field_is_named(field: str) -> None:
    options = published_config(model_of())
    del options[field]
    refuses(ConfigError, lambda: autoencoder_config(options), "lacks", field)


@pytest.mark.parametrize("field", ["width", "layers", "heads"])
def test_a_missing_field_of_a_size_is_named(field: str) -> None:
    options = published_config(model_of())
    del options["sizes"]["mine"][field]
    refuses(ConfigError, lambda: autoencoder_config(options), field)


@pytest.mark.parametrize(
    ("change", "reasons"),
    [
        ({"vit_enc_model_size": "colossal"}, ["unknown model size 'colossal'", "base"]),
        ({"pixel_head_type": "deep"}, ["deep"]),
        ({"input_size": 9}, ["does not divide"]),
        ({"spherify_model": True, "in_context_size": 2}, ["spherify_decoder_blocks"]),
    ],
)
def test_impossible_options_are_refused(change: dict[str, Any], reasons: list[str]) -> None:
    refuses(ConfigError, lambda: autoencoder_config({**published_config(model_of()), **change}), *reasons)


def test_missing_and_unexpected_weights_are_listed_by_their_published_names(tmp_path: Path) -> None:
    model = model_of()
    state = published_state(model)
    del state["encoder.blocks.0.norm1.weight"]
    state["encoder.discriminator.weight"] = torch.zeros(1)
    state["decoder.ffn.linear.bias"] = torch.zeros(7)
    state["encoder.x_embedder.1.weight"] = torch.zeros(16, 16, 3, 3)
    write(tmp_path, model, state)
    expected = (
        "weights.safetensors",
        "missing: encoder.blocks.0.norm1.weight",
        "unexpected: encoder.discriminator.weight",
        "other shape: decoder.ffn.linear.bias (7,) instead of (48,)",
        "encoder.x_embedder.1.weight (16, 16, 3, 3) instead of (16, 16, 1, 1)",
    )
    refuses(ModelFileError, lambda: load_sphere_encoder(tmp_path), *expected)
    (tmp_path / "config.json").unlink()
    refuses(ModelFileError, lambda: load_sphere_encoder(tmp_path, options=untold(model)), *expected)


def test_long_lists_are_cut(tmp_path: Path) -> None:
    model = model_of()
    extra = {f"zebra.{number:02}": torch.zeros(1) for number in range(20)}
    write(tmp_path, model, {**published_state(model), **extra})
    message = refuses(ModelFileError, lambda: load_sphere_encoder(tmp_path), "zebra.07 and 12 more")
    assert "zebra.08" not in message


def test_no_weight_can_be_left_out(tmp_path: Path) -> None:
    """Each missing weight is an error that names it, or says what the others show without it."""
    small = dataclasses.replace(SIZE, depth=1, in_context_start=0)
    model = model_of(encoder=small, decoder=small, decoder_mixer_depth=1, in_context_tokens=2)
    path = tmp_path / "weights.pth"
    whole = published_state(model)
    for name in whole:
        torch.save({other: tensor for other, tensor in whole.items() if other != name}, path)
        message = refuses(
            (ModelFileError, ConfigError), lambda: load_sphere_encoder(path, published_config(model)), "weights.pth"
        )
        assert name in message or "the weights show" in message


def test_missing_files_are_refused(tmp_path: Path) -> None:
    model = model_of()
    refuses(ModelFileError, lambda: load_sphere_encoder(tmp_path / "nothing"), "no checkpoint at", "nothing")
    refuses(ModelFileError, lambda: load_sphere_encoder(tmp_path), "found none")
    write(tmp_path, model)
    for text in ("{", "[]", "[" * 100_000, "\xff"):
        (tmp_path / "config.json").write_text(text, encoding="latin-1")
        refuses(ModelFileError, lambda: load_sphere_encoder(tmp_path), "config.json")
    (tmp_path / "config.json").unlink()
    refuses(ModelFileError, lambda: load_sphere_encoder(tmp_path, tmp_path / "gone.json"), "gone.json")
    refuses(ConfigError, lambda: load_sphere_encoder(tmp_path, {"lr": 0.1}), "no option of a Sphere Encoder")
    torch.save(published_state(model), tmp_path / "second.pth")
    refuses(ModelFileError, lambda: load_sphere_encoder(tmp_path), "second.pth, weights.safetensors")


# conversion -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ema", [False, True])
def test_a_converted_folder_says_where_it_comes_from(ema: bool, tmp_path: Path) -> None:
    model = model_of()
    state = published_state(model)
    torch.save({"model": state, "ema_model": state, "epoch": 7}, tmp_path / "ep7.pth")
    result = convert_sphere_encoder(
        tmp_path / "ep7.pth",
        tmp_path / "out",
        ema=ema,
        options=untold(model),
        class_names=["a", "b", "c"],
        sampling={"steps": 2},
    )
    loaded = load_model(tmp_path / "out")
    assert_same(loaded.model, model)
    assert loaded.info.class_names == ("a", "b", "c")
    assert loaded.info.sampling == {"steps": 2}
    which = "EMA" if ema else "raw"
    source = f"ep7.pth (published Sphere Encoder checkpoint, arXiv 2602.15030, {which} weights, epoch 7)"
    assert loaded.info.provenance["source"] == source
    card = (tmp_path / "out" / "README.md").read_text()
    assert source in card and "license: other" in card and "origin" in card and "non-commercial" in card
    assert (result.weights, result.epoch) == ("ema_model" if ema else "model", 7)
    assert result.config == loaded.model.config
    assert result.parameters == sum(tensor.numel() for tensor in model.state_dict().values())
    assert "vit_enc_model_size" in result.inferred
    assert result.assumed == {"spherify_model": False}
    told = convert_sphere_encoder(tmp_path / "ep7.pth", tmp_path / "told", config=published_config(model))
    assert (told.inferred, told.assumed) == ((), {})


def test_a_licence_that_is_given_is_written(tmp_path: Path) -> None:
    path = weight_file(tmp_path, model := model_of())
    convert_sphere_encoder(path, tmp_path / "out", options=untold(model), licence=" cc-by-nc-4.0\n")
    assert load_model(tmp_path / "out").info.provenance["license"] == "cc-by-nc-4.0"
    assert "license: cc-by-nc-4.0\n" in (tmp_path / "out" / "README.md").read_text()


def test_conversion_to_bfloat16(tmp_path: Path) -> None:
    path = weight_file(tmp_path, model := model_of())
    convert_sphere_encoder(path, tmp_path / "out", options=untold(model), dtype="bfloat16")
    loaded = load_model(tmp_path / "out").model.state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded[name], tensor.bfloat16())


def test_a_conversion_never_overwrites(tmp_path: Path) -> None:
    path = weight_file(tmp_path, model := model_of(), "model.safetensors")
    before = path.read_bytes()
    refuses(ConfigError, lambda: convert_sphere_encoder(path, tmp_path, options=untold(model)), "another folder")
    assert path.read_bytes() == before
    out = tmp_path / "out"
    convert_sphere_encoder(path, out, options=untold(model))
    refuses(ConfigError, lambda: convert_sphere_encoder(path, out, options=untold(model)), "config.json already")
    refuses(ConfigError, lambda: convert_sphere_encoder(path, path, options=untold(model)), "is a file")


@pytest.mark.parametrize(
    ("change", "reasons"),
    [
        ({"dtype": "bfloat"}, ["unknown dtype 'bfloat'", "did you mean 'bfloat16'"]),
        ({"class_names": ["a"]}, ["1 class names for a model of 3 classes"]),
        ({"options": {"noise_angle": 80}}, ["unknown option 'noise_angle'"]),
        ({"options": {"noise_sigma_max_angel": 80}}, ["did you mean 'noise_sigma_max_angle'"]),
    ],
)
def test_bad_arguments_write_nothing(change: dict[str, Any], reasons: list[str], tmp_path: Path) -> None:
    path = weight_file(tmp_path, model := model_of())
    arguments: dict[str, Any] = {"options": untold(model), **change}
    refuses(ConfigError, lambda: convert_sphere_encoder(path, tmp_path / "out", **arguments), *reasons)
    assert not (tmp_path / "out").exists()
