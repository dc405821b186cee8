"""Frozen encoders: our FeatureNet, and tiny random networks of transformers in folders."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter
from torch import nn
from torch.nn import functional

from spheregen.errors import ConfigError, ModelFileError, SphereGenError
from spheregen.networks.encoders import EncoderConfig, FrozenEncoder, build_encoder
from spheregen.networks.frozen import IMAGENET_MEAN, IMAGENET_STD
from tests.fake_hub import NO_NETWORK, FakeHub
from tests.random_networks import import_or_skip, random_images, shake

SIGHT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 4}
SEEN = {**SIGHT, "intermediate_size": 48, "image_size": 12}
TEXT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24, "vocab_size": 50}
TEXT |= {"max_position_embeddings": 8, "bos_token_id": 48, "eos_token_id": 49, "pad_token_id": 47}
NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "dinov2": ("Dinov2", {**SIGHT, "image_size": 20}),
    "dinov2 with registers": ("Dinov2WithRegisters", {**SIGHT, "image_size": 20, "num_register_tokens": 3}),
    "dinov3": ("DINOv3ViT", {**SIGHT, "intermediate_size": 48, "num_register_tokens": 2}),
    "vit": ("ViT", SEEN),
    "siglip": ("SiglipVision", SEEN),
    "clip": ("CLIPVision", SEEN),
    "siglip with text": ("Siglip", {"vision_config": SEEN, "text_config": TEXT}),
    "clip with text": ("CLIP", {"vision_config": SEEN, "text_config": TEXT, "projection_dim": 8}),
}
DROPPED = {"dinov2": 1, "dinov2 with registers": 4, "dinov3": 3, "vit": 1, "siglip": 0, "clip": 1}
LAST_NORMS = {"dinov2": "layernorm", "dinov3": "norm", "vit": "layernorm", "siglip": "post_layernorm"}
HALF = (0.5, 0.5, 0.5)
CLIP = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
INPUTS = {"vit": (HALF, HALF), "siglip": (HALF, HALF), "clip": CLIP}
FEATURES = EncoderConfig(kind="feature_net", stage=3)


def build(kind: str) -> Any:
    """A random network of transformers."""
    transformers = import_or_skip("transformers")
    name, options = NETWORKS[kind]
    net = getattr(transformers, f"{name}Model")(getattr(transformers, f"{name}Config")(**options))
    shake(net)
    return net.eval()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder of each network."""
    base = tmp_path_factory.mktemp("encoders")
    for kind in NETWORKS:
        build(kind).save_pretrained(base / kind)
    return {kind: base / kind for kind in NETWORKS}


def loaded(folder: Path, **options: Any) -> FrozenEncoder:
    return build_encoder(EncoderConfig(kind="transformers", source=str(folder), **options), pretrained=True)


# --- what they compute ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", NETWORKS)
def test_tokens_follow_the_definition(kind: str, folders: dict[str, Path]) -> None:
    """Patch tokens of the network itself, its last norm without gain and shift; at a size it was not made for."""
    size = 24
    encoder = loaded(folders[kind])
    family = kind.removesuffix(" with text")
    images = random_images(2, size)
    net = build(kind)
    net = getattr(net, "vision_model", net)
    mean, std = INPUTS.get(family, (IMAGENET_MEAN, IMAGENET_STD))
    pixels = ((images + 1) / 2 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    if family != "clip":
        norm = getattr(net, LAST_NORMS[family.split()[0]])
        nn.init.ones_(norm.weight)
        nn.init.zeros_(norm.bias)
    options = {"interpolate_pos_encoding": True} if family in ("vit", "siglip", "clip") else {}
    with torch.no_grad():
        expected = net(pixel_values=pixels, **options).last_hidden_state[:, DROPPED[family] :]
        if family == "clip":
            expected = functional.layer_norm(expected, (32,), eps=1e-5)
        tokens = encoder(images)
    assert encoder.grid_of(size) == size // 4
    assert tokens.shape == (2, (size // 4) ** 2, 32)
    assert (encoder.channels, encoder.dtype) == (32, torch.float32)
    torch.testing.assert_close(tokens, expected, rtol=1e-4, atol=1e-4)
    assert (tokens[0] - tokens[1]).abs().mean() > 1e-3


@pytest.mark.parametrize("kind", NETWORKS)
def test_it_is_built_again_without_its_source(kind: str, folders: dict[str, Path], tmp_path: Path) -> None:
    first = loaded(folders[kind], input_size=24)
    text = json.dumps(dataclasses.asdict(dataclasses.replace(first.config, source=str(tmp_path / "gone"))))
    config = TypeAdapter(EncoderConfig).validate_json(text)
    again = build_encoder(config, pretrained=False)
    again.load_state_dict(first.state_dict())
    images = random_images(2, 16)
    assert again(images).equal(first(images))
    assert dataclasses.replace(again.config, source=None) == dataclasses.replace(first.config, source=None)
    assert not any("text" in name or "pool" in name or "head" in name for name in first.state_dict())


@pytest.mark.parametrize("kind", NETWORKS)
def test_weights_are_saved_under_the_names_of_files(kind: str, folders: dict[str, Path]) -> None:
    """Those inside transformers change from version to version, those of its files do not."""
    from safetensors.torch import load_file

    file = load_file(folders[kind] / "model.safetensors")
    file = {name.removeprefix("vision_model."): tensor for name, tensor in file.items()}
    state = loaded(folders[kind]).state_dict(prefix="deep.")
    assert all(name.startswith("deep.network.net.") for name in state)
    saved = {name.removeprefix("deep.network.net."): tensor for name, tensor in state.items()}
    assert all(file[name].equal(tensor) for name, tensor in saved.items())
    left_out = ("text_model.", "pooler.", "head.", "visual_projection", "text_projection", "logit_")
    family = kind.removesuffix(" with text").split()[0]
    norm = LAST_NORMS.get(family, "post_layernorm")
    assert {name for name in file if not name.startswith((*left_out, f"{norm}."))} == saved.keys()


@pytest.mark.parametrize("kind", ["feature_net", "dinov3"])
def test_grey_half_types_and_gradients(kind: str, folders: dict[str, Path]) -> None:
    encoder = build_encoder(FEATURES, pretrained=True) if kind == "feature_net" else loaded(folders[kind])
    grey = random_images(2, 12, channels=1).requires_grad_()
    tokens = encoder(grey)
    torch.testing.assert_close(tokens, encoder(grey.repeat(1, 3, 1, 1)))
    tokens.square().sum().backward()
    assert grey.grad is not None and grey.grad.abs().sum() > 0
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    wide = encoder.double()(grey.detach().double())
    assert wide.dtype == torch.float64
    torch.testing.assert_close(wide.float(), tokens.detach(), rtol=1e-3, atol=1e-3)
    narrow = encoder.bfloat16()(grey.detach())
    assert (encoder.dtype, narrow.dtype) == (torch.bfloat16, torch.float32)
    assert (narrow - tokens.detach()).std() < 0.1 * tokens.std()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "feature_net"}, "stage of a feature_net is 1 to 4"),
        ({"kind": "feature_net", "stage": 5}, "stage of a feature_net is 1 to 4"),
        ({"kind": "feature_net", "stage": 3, "mean": (0, 0, 0), "std": (1, 1, 1)}, "has its own architecture"),
        ({"kind": "feature_nets", "stage": 3}, "did you mean 'feature_net'"),
        ({"kind": "transformers"}, "has a source"),
        ({"kind": "transformers", "source": "a/b", "stage": 3}, "and no stage"),
        ({"kind": "transformers", "source": "a/b", "mean": (0, 0, 0)}, "belong together"),
        ({"kind": "transformers", "source": "a/b", "mean": (0, 0, 0), "std": (1, 0, 1)}, "belong together"),
        ({"kind": "transformers", "source": "a/b", "input_size": 0}, "number of pixels"),
    ],
)
def test_impossible_configurations(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        EncoderConfig(**options)


def refused(source: Path | str, **options: Any) -> str:
    with pytest.raises(ModelFileError) as caught:
        build_encoder(EncoderConfig(kind="transformers", source=str(source), **options), pretrained=True)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_folders_that_hold_no_encoder(folders: dict[str, Path], tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    assert "has no config.json" in refused(tmp_path)
    config = tmp_path / "config.json"
    for text, message in [("[]", "no object"), ("{", "cannot be read"), ("{}", "is of model_type 'None'")]:
        config.write_text(text)
        assert message in refused(tmp_path)
    config.write_text('{"model_type": "bert", "auto_map": {"AutoModel": "mine.Model"}}')
    (tmp_path / "mine.py").write_text("raise SystemExit('run')")
    assert "is of model_type 'bert'" in refused(tmp_path)
    config.write_text((folders["vit"] / "config.json").read_text())
    torch.save(build("vit").state_dict(), tmp_path / "pytorch_model.bin")
    assert "cannot be built" in refused(tmp_path)  # safetensors alone
    state = load_file(folders["vit"] / "model.safetensors")
    del state["layernorm.weight"]
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert "lacks 1 tensors, such as layernorm.weight" in refused(tmp_path)
    assert "is a file; give the folder" in refused(config)
    assert "there is no folder /no/such/folder" in refused("/no/such/folder")


def test_what_is_needed_to_build(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nothing to load an encoder from"):
        build_encoder(EncoderConfig(kind="transformers", config={"model_type": "vit"}), pretrained=True)
    with pytest.raises(ConfigError, match="architecture of the encoder is not known"):
        build_encoder(EncoderConfig(kind="transformers", source="a/b"), pretrained=False)
    with pytest.raises(ModelFileError, match="missing"):
        build_encoder(dataclasses.replace(FEATURES, source=str(tmp_path / "none.safetensors")), pretrained=True)


def test_without_transformers_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(SphereGenError, match=r'pip install "spheregen\[encoders\]"') as caught:
        build_encoder(EncoderConfig(kind="transformers", source="a/b"), pretrained=True)
    assert "\n" not in str(caught.value)


def test_without_a_network_what_was_fetched_before_is_used(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    FakeHub(monkeypatch, tmp_path).error = NO_NETWORK
    shutil.copytree(folders["vit"], tmp_path / "me" / "mine")
    encoder = build_encoder(EncoderConfig(kind="transformers", source="me/mine"), pretrained=True)
    assert encoder.channels == 32 and encoder.config.source == "me/mine"
