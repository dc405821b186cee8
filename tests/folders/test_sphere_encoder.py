"""Published checkpoints of every kind become our model; foreign and broken ones are refused in one line."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import spheregen as sg
from spheregen import restoration
from spheregen.cli.main import app
from spheregen.errors import ConfigError, ModelFileError
from spheregen.folders.model_folder import load_model
from tests.folders.published import (
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

load, convert = sg.interop.load_sphere_encoder, sg.interop.convert_sphere_encoder


# architectures


@pytest.mark.parametrize(
    "options",
    [
        {"pixel_head": "linear"},
        {"encoder_mixer_depth": 0, "decoder_mixer_depth": 0, "num_classes": 0},
        {"encoder_mixer_depth": 0, "spherify_decoder_blocks": True},
        {"decoder_mixer_depth": 0, "image_size": 16, "patch_size": 8, "pixel_head": "linear", "num_classes": 0},
        {"mixer_affine": False, "in_context_tokens": 3, "max_angle": 80.0},
        {"encoder": OTHER, "latent_channels": 7, "num_classes": 0},
        {"decoder": OTHER, "in_context_tokens": 1, "patch_size": 2},
    ],
    ids=str,
)
def test_every_architecture_loads(options: dict[str, Any], tmp_path: Path) -> None:
    model = model_of(**{"pixel_head": "conv", "num_classes": 3, **options})
    assert_same(load(write(tmp_path, model)), model)
    (tmp_path / "config.json").unlink()
    convert(tmp_path, tmp_path / "converted", options=untold(model))  # the shapes tell the rest
    assert_same(load_model(tmp_path / "converted").model, model)


# files


@pytest.mark.parametrize("ema", [False, True])
def test_training_checkpoints(ema: bool, tmp_path: Path) -> None:
    raw, averaged = model_of(), model_of()
    with torch.no_grad():
        averaged.decoder.head.smooth.bias.add_(0.3)  # type: ignore[union-attr]
    write(tmp_path, raw)
    (tmp_path / "weights.safetensors").unlink()
    tables = {f"{part}.{name}": torch.randn(4, 8) for part in ("encoder", "decoder") for name in ("rope", "inctx_rope")}
    states = {"model": published_state(raw), "ema_model": {**published_state(averaged), **tables}}
    torch.save({**states, "epoch": 7}, tmp_path / "ep7.pth")
    expected = averaged if ema else raw
    assert_same(load(tmp_path, ema=ema), expected)  # its configuration lies beside it
    assert_same(load(str(tmp_path / "ep7.pth"), tmp_path / "config.json", ema=ema), expected)
    del states["model" if ema else "ema_model"]
    torch.save(states, tmp_path / "ep7.pth")
    refuses(ModelFileError, lambda: load(tmp_path, ema=not ema), "--ema")


def test_the_faces_of_sp3_are_converted_by_the_command_and_restore(tmp_path: Path) -> None:
    # CelebA at 128 px without classes, under the names of the published Sphere Encoder, as a training writes it
    model = model_of(image_size=128, patch_size=8, num_classes=0, pixel_head="conv", latent_channels=6)
    state = {f"module.{name}": each for name, each in published_state(model).items()}
    torch.save({"model": state, "epoch": 199}, tmp_path / "ep199.pth")
    (tmp_path / "cfg.json").write_text(json.dumps({**published_config(model), "image_size": 128, "dataset": "celeba"}))
    arguments = ["--weights", tmp_path / "ep199.pth", "--config", tmp_path / "cfg.json", "--out", tmp_path / "faces"]
    done = CliRunner().invoke(app, ["convert", "sphere-encoder", *map(str, arguments)])
    assert done.exit_code == 0, done.output
    assert_same(load_model(tmp_path / "faces").model, model)
    pipe = sg.Pipeline.from_pretrained(tmp_path / "faces", device="cpu", quiet=True)
    images = torch.rand(1, 3, 128, 128) * 2 - 1
    restored = pipe.restore(images, restoration.Denoise(), noise=0.2, steps=2, seed=0)
    assert restored.tensor.shape == images.shape


def test_a_bare_state_dictionary_of_shared_and_transposed_tensors(tmp_path: Path) -> None:
    model = model_of()
    state: dict[str, Any] = dict(published_state(model))
    for name in ("encoder.pos_embed", "decoder.pos_embed"):
        state[name] = state["encoder.pos_embed"]
    weight = state["decoder.ffn.linear.weight"]
    state["decoder.ffn.linear.weight"] = nn.Parameter(weight.T.contiguous().T)
    torch.save(state, tmp_path / "weights.pth", _use_new_zipfile_serialization=False)
    assert_same(load(tmp_path, published_config(model)), model)
    refuses(ModelFileError, lambda: load(tmp_path, published_config(model), ema=True), "without EMA")


class Evil:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.write_text, (self.path, "executed"))


@pytest.mark.parametrize(
    ("place", "container"),
    [("model", "zip"), ("extra", "zip"), ("whole", "legacy"), ("whole", "pickle"), ("weight", "legacy")],
)
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
    message = refuses(ModelFileError, lambda: convert(path, tmp_path / "out", options=untold(model)), "evil.pth",
                      "nothing of it was executed")  # fmt: skip
    assert "weights_only" not in message  # torch recommends to switch its protection off
    assert not proof.exists()
    assert not (tmp_path / "out").exists()
    if container == "zip":
        torch.load(path, weights_only=False)
        assert proof.exists()  # it would have been


def test_truncated_and_broken_weights_are_refused(tmp_path: Path) -> None:
    model = model_of()
    for name in ("cut.pth", "cut.safetensors"):
        path = weight_file(tmp_path, model, name)
        whole = path.read_bytes()
        cuts = (whole[:length] for length in [0, 1, 8, 100, len(whole) // 2, len(whole) - 1])
        for content in (*cuts, b"garbage" * 100, b"\x80\x02]q\x00."):
            path.write_bytes(content)
            refuses(ModelFileError, lambda path=path: load(path, options=untold(model)), name)


def test_weights_that_are_no_dense_numbers_are_refused(tmp_path: Path) -> None:
    model, key = model_of(), "decoder.ffn.linear.weight"
    state: dict[str, Any] = dict(published_state(model))
    tensor = state[key]
    for spoilt in (
        tensor.to(torch.int8), tensor.to_sparse(), torch.ones(1).expand(10**7, 10**7), torch.empty(1, 10**15, 0),
        tensor.to("meta"), tensor.clone().fill_(float("nan")), tensor.double() * 1e300, tensor.tolist(), None,
    ):  # fmt: skip
        torch.save({"model": state | {key: spoilt}, "epoch": 1}, tmp_path / "odd.pth")
        refuses(ModelFileError, lambda: load(tmp_path / "odd.pth", options=untold(model)), "odd.pth", key)


def test_other_content_is_refused(tmp_path: Path) -> None:
    model = model_of()
    state: dict[Any, Any] = dict(published_state(model))
    path = tmp_path / "other.pth"
    for content, reason in (
        ({**state, "module.encoder.pos_embed": state["encoder.pos_embed"]}, "encoder.pos_embed is there twice"),
        ({**state, 5: torch.zeros(1)}, "5"),
        ({**state, "two\nlines": torch.zeros(1)}, r"two\nlines"),
        ({"conv_in.weight": torch.zeros(4, 4)}, "conv_in.weight"),
        ({name: value for name, value in state.items() if name.startswith("encoder")}, "decoder.pos_embed"),
        ({name: value for name, value in state.items() if "decoder.blocks.0." not in name}, "decoder.blocks.0."),
        (model.state_dict(), "a SphereGen model already"),
        ({"model": {}}, "no whole Sphere Encoder"),
        ({"model": {"a": 1}}, "no dense"),
        ([1, 2], "a list"),
    ):
        torch.save(content, path)
        refuses(ModelFileError, lambda: load(path, options=untold(model)), "other.pth", reason)


@pytest.mark.parametrize("seed", range(3))
def test_shapes_at_random_are_one_line_errors(seed: int, tmp_path: Path) -> None:
    """Tensors with axes swapped, added, removed or resized: never a traceback, never a model."""
    generator = torch.Generator().manual_seed(seed)
    model = model_of(in_context_tokens=1)
    state = published_state(model)
    names = list(state)
    for _ in range(3):
        name = names[int(torch.randint(len(names), (), generator=generator))]
        axes = int(torch.randint(0, 5, (), generator=generator))
        state[name] = torch.zeros([int(torch.randint(1, 6, (), generator=generator)) for _ in range(axes)])
    torch.save(state, tmp_path / "w.pth")
    refuses((ModelFileError, ConfigError), lambda: load(tmp_path / "w.pth", options=untold(model)))


@pytest.mark.parametrize(("prefix", "inner"), [("module.", False), ("_orig_mod.", True), ("module._orig_mod.", False)])
def test_prefixes_of_wrappers_gains_without_an_axis_and_other_types(prefix: str, inner: bool, tmp_path: Path) -> None:
    model, dtype = model_of(), torch.bfloat16 if inner else torch.float64
    state = {name: tensor.to(dtype) for name, tensor in published_state(model).items()}
    state |= {name: tensor.reshape(()) for name, tensor in state.items() if name.endswith(("alpha1", "alpha2"))}
    # encoder and decoder wrapped one by one, or both together
    state = {name.replace(".", f".{prefix}", 1) if inner else prefix + name: tensor for name, tensor in state.items()}
    loaded = load(write(tmp_path, model, state))
    assert all(tensor.dtype == torch.float32 for tensor in loaded.state_dict().values())
    model.load_state_dict({name: tensor.to(dtype).float() for name, tensor in model.state_dict().items()})
    assert_same(loaded, model)


# configurations


def test_what_shapes_cannot_tell_is_asked_for_in_one_line(tmp_path: Path) -> None:
    model = model_of(decoder=OTHER, in_context_tokens=2)
    path, needed = weight_file(tmp_path, model), untold(model)
    message = refuses(ConfigError, lambda: load(path), "weights.safetensors", "--set", *needed)
    assert "width 16, 2 blocks" in message and "width 24, 3 blocks" in message
    for name in needed:
        given = {other: value for other, value in needed.items() if other != name}
        refuses(ConfigError, lambda given=given: load(path, options=given), name)
    assert_same(load(path, options=needed), model)


def test_options_that_contradict_the_weights_are_refused(tmp_path: Path) -> None:
    model = model_of(decoder=OTHER, in_context_tokens=2)
    path, kinds = weight_file(tmp_path, model), (ConfigError, ModelFileError)
    changes: list[tuple[dict[str, Any], str]] = [
        ({"input_size": 16}, "input_size is 16"), ({"image_size": 16}, "input_size is 16"),
        ({"patch_size": 2}, "patch_size is 2"), ({"latent_resolution": 4}, "patch_size is 2"),
        ({"token_channels": 5}, "token_channels is 5"), ({"compression_ratio": 3.0}, "encoder.ffn.linear.weight"),
        ({"num_classes": 10}, "num_classes is 10"), ({"cond_generator": False}, "num_classes is 0"),
        ({"pixel_head_type": "conv"}, "pixel_head_type is conv"), ({"vit_enc_model_size": "base"}, "encoder.blocks.0"),
        ({"vit_enc_latent_mlp_mixer_depth": 4}, "vit_enc_latent_mlp_mixer_depth is 4"),
        ({"affine_latent_mlp_mixer": False}, "affine_latent_mlp_mixer is False"),
    ]  # fmt: skip
    for change, named in changes:
        options = published_config(model)
        refuses(kinds, lambda c=change, o=options: load(path, o, options=c), "weights.safetensors", named)


def test_impossible_values_are_refused(tmp_path: Path) -> None:
    path = weight_file(tmp_path, model := model_of())
    changes: list[tuple[dict[str, Any], str]] = [
        ({"num_classes": "ten"}, "num_classes"), ({"patch_size": 2.5}, "patch_size"),
        ({"spherify_model": 7}, "spherify_model"), ({"noise_sigma_max_angle": "80 degrees"}, "noise_sigma_max_angle"),
        ({"noise_sigma_max_angle": float("nan")}, "max_angle"), ({"vit_enc_heads": 3}, "3 heads"),
        ({"sizes": {"mine": {"width": "wide"}}}, "sizes.mine.width"),
        ({"noise_sigma_max_angel": 80}, "did you mean 'noise_sigma_max_angle'"),
    ]  # fmt: skip
    for change, named in changes:
        refuses(ConfigError, lambda c=change: load(path, published_config(model), options=c), named)


def test_missing_files_are_refused(tmp_path: Path) -> None:
    refuses(ModelFileError, lambda: load(tmp_path / "nothing"), "no checkpoint at", "nothing")
    refuses(ModelFileError, lambda: load(tmp_path), "found none")
    write(tmp_path, model := model_of())
    for text in ("{", "[]", "[" * 100_000, "\xff"):
        (tmp_path / "config.json").write_text(text, encoding="latin-1")
        refuses(ModelFileError, lambda: load(tmp_path), "config.json")
    refuses(ModelFileError, lambda: load(tmp_path, tmp_path / "gone.json"), "gone.json")
    torch.save(published_state(model), tmp_path / "second.pth")
    refuses(ModelFileError, lambda: load(tmp_path), "second.pth, weights.safetensors")


# conversion


def test_a_converted_folder_says_where_it_comes_from(tmp_path: Path) -> None:
    model = model_of()
    state = published_state(model)
    torch.save({"model": state, "ema_model": state, "epoch": 7}, tmp_path / "ep7.pth")
    settings: dict[str, Any] = {"options": untold(model), "class_names": ["a", "b", "c"], "sampling": {"steps": 2}}
    result = convert(tmp_path / "ep7.pth", tmp_path / "out", ema=True, **settings)
    loaded = load_model(tmp_path / "out")
    assert_same(loaded.model, model)
    assert (loaded.info.class_names, loaded.info.sampling) == (("a", "b", "c"), {"steps": 2})
    source = "ep7.pth (published Sphere Encoder checkpoint, arXiv 2602.15030, EMA weights, epoch 7)"
    assert loaded.info.provenance["source"] == source
    card = (tmp_path / "out" / "README.md").read_text()
    assert source in card and "license: other" in card and "non-commercial" in card
    assert (result.weights, result.epoch) == ("ema_model", 7)
    assert result.config == loaded.model.config
    assert result.parameters == sum(tensor.numel() for tensor in model.state_dict().values())
    assert "vit_enc_model_size" in result.inferred
    assert result.assumed == {"spherify_model": False}
    told = convert(tmp_path / "ep7.pth", tmp_path / "told", config=published_config(model))
    assert (told.inferred, told.assumed) == ((), {})


def test_licence_type_and_that_nothing_is_overwritten(tmp_path: Path) -> None:
    path = weight_file(tmp_path, model := model_of(), "model.safetensors")
    convert(path, tmp_path / "half", options=untold(model), licence=" cc-by-nc-4.0\n", dtype="bfloat16")
    loaded = load_model(tmp_path / "half")
    assert loaded.info.provenance["license"] == "cc-by-nc-4.0"
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], tensor.bfloat16())
    before = path.read_bytes()
    for out in (tmp_path, path):
        refuses(ConfigError, lambda out=out: convert(path, out, options=untold(model)), "choose")
    assert path.read_bytes() == before
    for wrong in ({"dtype": "bfloat"}, {"class_names": ["a"]}, {"options": {"noise_angle": 80}}):
        arguments: dict[str, Any] = {"options": untold(model), **wrong}
        refuses(ConfigError, lambda arguments=arguments: convert(path, tmp_path / "out", **arguments))
    assert not (tmp_path / "out").exists()
