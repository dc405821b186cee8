"""Published checkpoints of every kind become our model; foreign and broken ones are refused in one line.

The published layout is written here a second time, from the golden files' names, as the inverse of what is tested.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from spheregen.errors import ConfigError, ModelFileError, SphereGenError
from spheregen.interop.sphere_encoder import autoencoder_config, load_sphere_encoder
from spheregen.models.autoencoder import AutoencoderConfig, SphereAutoencoder
from spheregen.models.sizes import TransformerSize

SIZE = TransformerSize(width=16, depth=2, heads=2, in_context_start=1)
INSIDE_BLOCKS = {
    "attention_norm": "norm1",
    "mlp_norm": "norm2",
    "attention.qkv": "attn.qkv",
    "attention.out": "attn.proj",
    "mlp.gate_value": "mlp.w12",
    "mlp.out": "mlp.w3",
    "modulation.linear": "adaLN_modulation.1",
}
INSIDE_MIXERS = {
    "token_norm": "norm1",
    "channel_norm": "norm2",
    "token_mlp": "tok_mixer.mix",
    "channel_mlp": "chn_mixer.mix",
    "token_gain": "alpha1",
    "channel_gain": "alpha2",
    "norm": "norm",
}
PARTS = {
    "encoder.patches.patches": "encoder.x_embedder.0",
    "encoder.patches.mix": "encoder.x_embedder.1",
    "encoder.project": "encoder.ffn.linear",
    "decoder.head.linear": "decoder.ffn.linear",
    "decoder.head.smooth": "decoder.out.2",
    "decoder.head.up": "decoder.out.4",
    **{
        f"{part}.{ours}": f"{part}.{theirs}"
        for part in ("encoder", "decoder")
        for ours, theirs in (
            ("trunk.labels.table", "y_embedder.embedding_table"),
            ("trunk.positions", "pos_embed"),
            ("trunk.context", "inctx_embed"),
            ("trunk.context_positions", "inctx_pos_embed"),
            ("output.norm", "ffn.norm"),
            ("output.modulation.linear", "ffn.adaLN_modulation.1"),
        )
    },
}


def model_of(**options: Any) -> SphereAutoencoder:
    defaults: dict[str, Any] = {
        "image_size": 8,
        "patch_size": 4,
        "encoder": SIZE,
        "decoder": SIZE,
        "latent_channels": 4,
        "num_classes": 3,
        "encoder_mixer_depth": 1,
        "decoder_mixer_depth": 2,
    }
    torch.manual_seed(0)
    model = SphereAutoencoder(AutoencoderConfig(**{**defaults, **options}))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def published_name(name: str, config: AutoencoderConfig) -> str:
    module, _, leaf = name.rpartition(".")
    pieces = name.split(".")
    if pieces[1:3] == ["trunk", "blocks"]:
        inside = ".".join(pieces[4:-1])
        return f"{pieces[0]}.blocks.{pieces[3]}.{INSIDE_BLOCKS[inside]}.{leaf}"
    if pieces[1] == "mixer":
        start = "encoder.out" if pieces[0] == "encoder" else "decoder.x_embedder.1"
        index = 4 if pieces[2] == "blocks" else 2
        path = [*pieces[2:index], INSIDE_MIXERS[pieces[index]], *pieces[index + 1 :]]
        return ".".join([start, *path])
    if module == "decoder.embed":
        return f"decoder.x_embedder.{'0.' if config.decoder_mixer_depth else ''}{leaf}"
    return PARTS[name] if name in PARTS else f"{PARTS[module]}.{leaf}"


def published_state(model: SphereAutoencoder) -> dict[str, Tensor]:
    state = {published_name(name, model.config): tensor.clone() for name, tensor in model.state_dict().items()}
    state["encoder.x_embedder.1.weight"] = state["encoder.x_embedder.1.weight"][:, :, None, None].contiguous()
    return state


def published_config(model: SphereAutoencoder) -> dict[str, Any]:
    """The constructor's arguments, as golden folders hold them."""
    config = model.config
    return {
        "input_size": config.image_size,
        "patch_size": config.patch,
        "vit_enc_model_size": "mine",
        "vit_dec_model_size": "mine",
        "token_channels": config.channels,
        "num_classes": config.num_classes,
        "pixel_head_type": config.pixel_head,
        "vit_enc_latent_mlp_mixer_depth": config.encoder_mixer_depth,
        "vit_dec_latent_mlp_mixer_depth": config.decoder_mixer_depth,
        "affine_latent_mlp_mixer": config.mixer_affine,
        "in_context_size": config.in_context_tokens,
        "noise_sigma_max_angle": config.max_angle,
        "sizes": {"mine": {"width": 16, "layers": 2, "heads": 2, "in_context_start": 1}},
    }


def write(folder: Path, model: SphereAutoencoder, state: dict[str, Tensor] | None = None, **options: Any) -> Path:
    (folder / "config.json").write_text(json.dumps({**published_config(model), **options}))
    save_file(published_state(model) if state is None else state, folder / "weights.safetensors")
    return folder


@torch.no_grad()
def assert_same(loaded: SphereAutoencoder, model: SphereAutoencoder) -> None:
    assert not loaded.training
    images = torch.rand((3, 3, 8, 8), generator=torch.Generator().manual_seed(2)) * 2 - 1
    for labels in (None, torch.tensor([0, 1, 2])) if model.num_classes else (None,):
        v = model.encode(images, labels)
        assert torch.equal(loaded.encode(images, labels), v)
        assert torch.equal(loaded.decode(v, labels), model.decode(v, labels))
    assert model.decode(v).std() > 0.01
    assert loaded.sigma_max == model.sigma_max


def refuses(kind: type[SphereGenError], call: Any, *reasons: str) -> None:
    with pytest.raises(kind) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    for reason in reasons:
        assert reason in message


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
        {"max_angle": 80.0},
    ],
    ids=str,
)
def test_every_architecture_loads(head: str, classes: int, options: dict[str, Any], tmp_path: Path) -> None:
    model = model_of(pixel_head=head, num_classes=classes, **options)
    assert_same(load_sphere_encoder(write(tmp_path, model)), model)


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
    torch.save(published_state(model), tmp_path / "weights.pth")
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


@pytest.mark.parametrize("place", ["model", "extra", "whole"])
def test_code_in_a_pickle_is_refused_and_not_executed(place: str, tmp_path: Path) -> None:
    model, proof = model_of(), tmp_path / "proof"
    evil = Evil(proof)
    content: Any = {
        "model": {"model": evil},
        "extra": {"model": published_state(model), "args": evil},
        "whole": evil,
    }[place]
    torch.save(content, tmp_path / "evil.pth")
    refuses(ModelFileError, lambda: load_sphere_encoder(tmp_path / "evil.pth", published_config(model)), "evil.pth")
    assert not proof.exists()


@pytest.mark.parametrize("content", [b"", b"garbage" * 100, b"\x80\x02]q\x00."])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_broken_weights_are_refused(content: bytes, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"broken{suffix}"
    path.write_bytes(content)
    refuses(ModelFileError, lambda: load_sphere_encoder(path, published_config(model_of())), "broken")


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


def test_bfloat16_weights(tmp_path: Path) -> None:
    model = model_of()
    state = {name: tensor.bfloat16() for name, tensor in published_state(model).items()}
    loaded = load_sphere_encoder(write(tmp_path, model, state))
    assert all(tensor.dtype == torch.float32 for tensor in loaded.state_dict().values())
    model.load_state_dict({name: tensor.bfloat16().float() for name, tensor in model.state_dict().items()})
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


def test_missing_and_unexpected_weights_are_listed(tmp_path: Path) -> None:
    model = model_of()
    state = published_state(model)
    del state["encoder.blocks.0.norm1.weight"]
    state["encoder.discriminator.weight"] = torch.zeros(1)
    state["decoder.ffn.linear.bias"] = torch.zeros(7)
    write(tmp_path, model, state)
    refuses(
        ModelFileError,
        lambda: load_sphere_encoder(tmp_path),
        "weights.safetensors",
        "missing: encoder.trunk.blocks.0.attention_norm.weight",
        "unexpected: encoder.discriminator.weight",
        "other shape: decoder.head.linear.bias (7,) instead of (48,)",
    )


def test_missing_files_are_refused(tmp_path: Path) -> None:
    model = model_of()
    refuses(ModelFileError, lambda: load_sphere_encoder(tmp_path / "nothing"), "no checkpoint at", "nothing")
    refuses(ModelFileError, lambda: load_sphere_encoder(tmp_path), "found none")
    write(tmp_path, model)
    (tmp_path / "config.json").write_text("{")
    refuses(ModelFileError, lambda: load_sphere_encoder(tmp_path), "config.json")
    (tmp_path / "config.json").write_text("[]")
    refuses(ModelFileError, lambda: load_sphere_encoder(tmp_path), "config.json")
    (tmp_path / "config.json").unlink()
    refuses(ModelFileError, lambda: load_sphere_encoder(tmp_path), "no config.json or cfg.json")
    refuses(ModelFileError, lambda: load_sphere_encoder(tmp_path, tmp_path / "gone.json"), "gone.json")
    torch.save(published_state(model), tmp_path / "second.pth")
    refuses(ModelFileError, lambda: load_sphere_encoder(tmp_path), "second.pth, weights.safetensors")
