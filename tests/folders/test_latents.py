"""Published latent denoisers and representation autoencoders become model folders."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from typer.testing import CliRunner

import spheregen as sg
from spheregen.cli.main import app
from spheregen.errors import ConfigError, ModelFileError
from spheregen.family.representation.published import MAEDecoder, MAEDecoderConfig, published_names
from spheregen.family.sphere_latent_encoder.network import LatentDenoiser, LatentDenoiserConfig
from spheregen.folders.tokenizers import open_tokenizer
from spheregen.nn.block import BlockOptions
from spheregen.nn.positions import sinusoids
from spheregen.nn.sizes import TransformerSize
from tests.folders.published import refuses
from tests.random_networks import import_or_skip, shake

convert = sg.interop.convert_sphere_latent
NAMES = {
    "embed.": "x_embedder.proj.", "trunk.labels.table.": "y_embedder.embedding_table.", "trunk.positions": "pos_embed",
    "trunk.blocks.": "blocks.", "attention.qkv": "attn.qkv", "attention.out": "attn.proj", "mlp.hidden": "mlp.fc1",
    "mlp.out": "mlp.fc2", "output.modulation.linear": "final_layer.adaLN_modulation.1",
    "modulation.linear": "adaLN_modulation.1", "project.": "final_layer.linear.",
}  # fmt: skip
HEADS = {"heads": 2}


@pytest.fixture(scope="module")
def denoiser() -> LatentDenoiser:
    tokens, channels = open_tokenizer("digits").tokenizer.latent_shape
    config = LatentDenoiserConfig(
        image_size=8,
        image_channels=1,
        tokens=tokens,
        channels=channels,
        size=TransformerSize(width=16, depth=2, heads=2),
        blocks=BlockOptions(norm="layer", mlp="gelu", rotary=False),
        num_classes=10,
    )
    torch.manual_seed(0)
    made = LatentDenoiser(config).eval()
    shake(made, std=0.1)
    return made


def published(model: LatentDenoiser) -> dict[str, Tensor]:
    state = {}
    for name, tensor in model.state_dict().items():
        theirs = name
        for ours, of_sit in NAMES.items():
            theirs = theirs.replace(ours, of_sit)
        state[theirs] = tensor[:, :, None, None].clone() if theirs == "x_embedder.proj.weight" else tensor.clone()
    return state


def write(folder: Path, state: dict[str, Tensor]) -> Path:
    torch.save(
        {"model": state, "ema": {name: each + 0.0 for name, each in state.items()}, "args": None}, folder / "w.pt"
    )
    return folder / "w.pt"


@torch.no_grad()
def test_a_sit_becomes_a_denoiser_with_its_tokenizer(denoiser: LatentDenoiser, tmp_path: Path) -> None:
    path = write(tmp_path, published(denoiser))
    arguments = ["convert", "sphere-latent-encoder", "--weights", str(path), "--set", "tokenizer=digits"]
    done = CliRunner().invoke(app, [*arguments, "--set", "heads=2", "--out", str(tmp_path / "out")])
    assert done.exit_code == 0 and "EMA weights" in done.output, done.output
    model: Any = sg.load(tmp_path / "out")
    points, labels = torch.randn(3, *model.latent_shape), torch.tensor([0, 4, 9])
    torch.testing.assert_close(model.predict(points, labels), denoiser(points, labels))
    assert sg.Pipeline.from_pretrained(tmp_path / "out", device="cpu", quiet=True).generate(2).tensor.shape == (
        2,
        1,
        8,
        8,
    )


@torch.no_grad()
def test_a_constant_time_goes_into_the_classes(denoiser: LatentDenoiser, tmp_path: Path) -> None:
    state = published(denoiser)
    weights = [torch.randn(16, 256), torch.randn(16), torch.randn(16, 16), torch.randn(16)]
    names = [f"t_embedder.mlp.{layer}.{kind}" for layer in (0, 2) for kind in ("weight", "bias")]
    found = convert(
        write(tmp_path, state | dict(zip(names, weights, strict=True))),
        tmp_path / "out",
        tokenizer="digits",
        options={**HEADS, "time": 0.5},
    )
    hidden = functional.silu(functional.linear(sinusoids(torch.tensor([0.5])), *weights[:2]))
    expected = state["y_embedder.embedding_table.weight"] + functional.linear(hidden, *weights[2:])
    table = sg.load(tmp_path / "out").denoiser.trunk.labels.table.weight  # type: ignore[union-attr]
    torch.testing.assert_close(table.detach(), expected)
    assert found.assumed["time"] == 0.5 and found.assumed["max_angle"] == 85


@torch.no_grad()
def test_other_names_are_taken_by_shape_and_order_and_it_says_so(denoiser: LatentDenoiser, tmp_path: Path) -> None:
    state = {re.sub(r"x_embedder|final_layer", "mine", name): each for name, each in published(denoiser).items()}
    found = convert(write(tmp_path, state), tmp_path / "out", tokenizer="digits", options=HEADS)
    assert "shapes and order" in found.assumed["names"]
    model: Any = sg.load(tmp_path / "out")
    points, labels = torch.randn(2, *model.latent_shape), torch.tensor([1, 2])
    torch.testing.assert_close(model.predict(points, labels), denoiser(points, labels))


def test_foreign_denoisers_are_refused(denoiser: LatentDenoiser, tmp_path: Path) -> None:
    state = published(denoiser)
    out, path = tmp_path / "out", tmp_path / "w.pt"
    more = {**state, "head.weight": torch.zeros(3, 3), "x_embedder.proj.weight": torch.zeros(1)}
    for spoilt, words in ((more, "no tensor of the shape"), ({"a": torch.zeros(1)}, "no SiT denoiser")):
        write(tmp_path, spoilt)
        refuses(ModelFileError, lambda: convert(path, out, tokenizer="digits", options=HEADS), words)
    write(tmp_path, state)
    refuses(ConfigError, lambda: convert(path, out, tokenizer="digits"), "heads")
    refuses(ConfigError, lambda: convert(path, out, tokenizer="digits", options={"head": 2}), "unknown option")
    path.write_bytes(path.read_bytes()[:1000])
    refuses(ModelFileError, lambda: convert(path, out, tokenizer="digits", options=HEADS), "w.pt")
    assert not out.exists()


OF_DIFFUSERS = {
    ".attention.attention.query.": ".attention.to_q.", ".attention.attention.key.": ".attention.to_k.",
    ".attention.attention.value.": ".attention.to_v.", ".attention.output.dense.": ".attention.to_out.0.",
}  # fmt: skip


@torch.no_grad()
def test_an_rae_under_both_maps_of_names(tmp_path: Path) -> None:
    transformers = import_or_skip("transformers")
    config = transformers.Dinov2WithRegistersConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=224, patch_size=14, intermediate_size=32
    )
    torch.manual_seed(0)
    transformers.Dinov2WithRegistersModel(config).save_pretrained(tmp_path / "encoder")
    decoder = MAEDecoder(MAEDecoderConfig(hidden=16, mlp=24, layers=2, heads=2, patch=2, grid=16, channels_in=16))
    shake(decoder, std=0.1)
    state = {theirs: decoder.state_dict()[mine] for mine, theirs in published_names(decoder).items()}
    of_diffusers = state
    for ours, theirs in OF_DIFFUSERS.items():
        of_diffusers = {f"{name.replace(ours, theirs)}": each for name, each in of_diffusers.items()}
    mean, variance = torch.randn(16, 16, 16), torch.rand(16, 16, 16) + 0.1
    deviation = (variance + 1e-5).sqrt() - 1e-5
    files = {
        "authors": (state, {"mean": mean, "var": variance}),
        "diffusers": (
            {f"decoder.{name}": each for name, each in of_diffusers.items()},
            {"latents_mean": mean, "latents_std": deviation},
        ),
    }
    images, made = torch.rand(2, 3, 32, 32) * 2 - 1, []
    for name, (weights, statistics) in files.items():
        folder = tmp_path / name
        folder.mkdir()
        torch.save(weights, folder / "model.pt")
        torch.save(statistics, folder / "stat.pt")
        arguments = ["--weights", str(folder), "--set", f"encoder={tmp_path / 'encoder'}", "--set", "heads=2"]
        done = CliRunner().invoke(app, ["convert", "rae", *arguments, "--out", str(tmp_path / f"{name}-out")])
        assert done.exit_code == 0, done.output
        tokenizer = open_tokenizer(tmp_path / f"{name}-out").tokenizer
        latents = tokenizer.encode(images)
        made.append((latents, tokenizer.decode(latents)))
    for ours, theirs in zip(*made, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_options_of_other_formats_are_refused(tmp_path: Path) -> None:
    for form, option, words in (
        ("rae", ["--decoder-only"], "sphere-encoder-2"),
        ("sphere-encoder", ["--set", "tokenizer=digits"], "sphere-latent-encoder"),
        ("sphere-latent-encoder", [], "tokenizer=FOLDER"),
        ("sphere-encoder-3", [], "did you mean"),
    ):
        done = CliRunner().invoke(app, ["convert", form, "--weights", "w", *option, "--out", str(tmp_path / "o")])
        assert done.exit_code != 0 and words in str(done.exception or done.output)
