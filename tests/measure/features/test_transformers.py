"""DINOv2, DINOv3 and CLIP features, with tiny random networks in folders."""

from __future__ import annotations

import shutil
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from spheregen.errors import SphereGenError
from spheregen.measure.features import FeatureExtractor, load_extractor
from spheregen.measure.features.preprocessing import CLIP_MEAN, CLIP_STD
from spheregen.networks.frozen import IMAGENET_MEAN, IMAGENET_STD
from tests.fake_hub import NO_NETWORK, FakeHub
from tests.measure.features.conftest import random_images

CPU = torch.device("cpu")
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
KINDS = ("dinov2", "dinov2 with registers", "dinov3", "clip")


def import_transformers() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("transformers")


def build(kind: str) -> Any:
    """A random network of transformers."""
    t = import_transformers()
    torch.manual_seed(0)
    sight = {**SMALL, "intermediate_size": 64, "image_size": 42, "patch_size": 14, "projection_dim": 24}
    text = {**SMALL, "intermediate_size": 64, "vocab_size": 50, "max_position_embeddings": 8, "projection_dim": 24}
    text |= {"bos_token_id": 48, "eos_token_id": 49, "pad_token_id": 47}
    if kind == "dinov2":
        net = t.Dinov2Model(t.Dinov2Config(**SMALL, image_size=98, patch_size=14))
    elif kind == "dinov2 with registers":
        net = t.Dinov2WithRegistersModel(t.Dinov2WithRegistersConfig(**SMALL, image_size=98, patch_size=14))
    elif kind == "dinov3":
        net = t.DINOv3ViTModel(t.DINOv3ViTConfig(**SMALL, intermediate_size=64, num_register_tokens=2))
    else:
        net = t.CLIPModel(t.CLIPConfig(vision_config=sight, text_config=text, projection_dim=24))
    for parameter in net.parameters():  # larger than at the start of a training, so that images are told apart
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    return net.eval()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder of each kind."""
    base = tmp_path_factory.mktemp("networks")
    for kind in KINDS:
        build(kind).save_pretrained(base / kind)
    return {kind: base / kind for kind in KINDS}


@pytest.fixture(scope="module", params=KINDS)
def case(request: pytest.FixtureRequest, folders: dict[str, Path]) -> tuple[str, FeatureExtractor]:
    kind: str = request.param
    return kind, load_extractor(kind.split()[0], weights=folders[kind], device=CPU)


def test_what_they_say(case: tuple[str, FeatureExtractor]) -> None:
    kind, made = case
    name = kind.split()[0]
    distance = {"dinov2": "FD-DINOv2", "dinov3": "FD-DINOv3", "clip": "FD-CLIP"}[name]
    assert (made.info.name, made.info.distance) == (name, distance)
    assert (made.info.dim, made.info.normalised) == ((24, True) if name == "clip" else (32, False))
    assert made.info.classes == 0
    assert f"({kind})" in made.info.title  # the folder's name, not its place
    assert ("42 px" if name == "clip" else "224 px") in made.info.preprocessing


def test_features_follow_the_definition(case: tuple[str, FeatureExtractor]) -> None:
    """Resized, normalised and pooled once more, with the network that was saved."""
    kind, made = case
    name = kind.split()[0]
    size, mean, std = (42, CLIP_MEAN, CLIP_STD) if name == "clip" else (224, IMAGENET_MEAN, IMAGENET_STD)
    images = random_images(2, height=size)  # of the size already: the filter is tested elsewhere
    middle, width = (torch.tensor(each).view(3, 1, 1) for each in (mean, std))
    pixels = (images.float() / 255 - middle) / width
    net = build(kind)
    with torch.no_grad():
        if kind == "clip":
            embedded = net.visual_projection(net.vision_model(pixel_values=pixels).pooler_output)
            expected = functional.normalize(embedded, dim=1)
        else:
            expected = net(pixel_values=pixels).pooler_output
    seen = made(images)
    assert seen.logits is None
    torch.testing.assert_close(seen.features, expected, rtol=1e-4, atol=1e-4)
    assert torch.pdist(seen.features).min() > 1e-3
    assert seen.features.dtype == torch.float32
    apart = torch.cat([made(image[None]).features for image in images])
    torch.testing.assert_close(apart, seen.features, rtol=1e-5, atol=1e-5)


# --- errors -----------------------------------------------------------------------------------------------------


def refused(name: str, weights: Path | str | None, named: str) -> None:
    with pytest.raises(SphereGenError, match=named) as caught:
        load_extractor(name, weights=weights)
    assert "\n" not in str(caught.value)


def test_other_and_incomplete_networks_are_refused(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors.torch import load_file, save_file

    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, "transformers", None)
        refused("dinov2", None, r"spheregen\[encoders\]")
    t = import_transformers()
    t.Dinov2Model(t.Dinov2Config(**SMALL, image_size=30, patch_size=15)).save_pretrained(tmp_path / "odd")
    refused("dinov2", tmp_path / "odd", "patches of 15 px")
    refused("clip", folders["dinov2"], "model_type is 'dinov2'")
    refused("dinov3", "/no/such/folder", "/no/such/folder")
    refused("dinov2", tmp_path, "config.json")
    config = tmp_path / "config.json"
    known = (folders["dinov2"] / "config.json").read_text()
    code = '{"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config", "AutoModel": "mine.Model"}}'
    (tmp_path / "mine.py").write_text("raise SystemExit('run')")
    for text, named in (
        (code, "model_type is 'mine'"),
        ("[]", "no object"),
        ("{}", "model_type"),
        (known, "cannot be loaded"),
    ):
        config.write_text(text)
        refused("dinov2", tmp_path, named)
    refused("dinov2", config, "is a file")
    torch.save(build("dinov2").state_dict(), tmp_path / "pytorch_model.bin")
    refused("dinov2", tmp_path, "cannot be loaded")  # safetensors alone
    state = load_file(folders["dinov2"] / "model.safetensors")
    del state["layernorm.weight"]
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    refused("dinov2", tmp_path, "layernorm.weight")


# --- the Hub ----------------------------------------------------------------------------------------------------


def test_networks_come_from_the_hub_or_from_what_was_fetched_before(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = FakeHub(monkeypatch, tmp_path, me__mine=folders["dinov2"])
    hub.repositories["facebook/dinov2-large"] = folders["dinov2"]
    asked: list[tuple[str, str]] = []

    def from_pretrained(place: str, *, revision: str, **options: Any) -> Any:
        asked.append((place, revision))
        assert options["use_safetensors"] and not options["trust_remote_code"]
        return build("dinov2"), {"missing_keys": []}

    with monkeypatch.context() as patched:
        patched.setattr(import_transformers().Dinov2Model, "from_pretrained", from_pretrained)
        assert "(facebook/dinov2-large)" in load_extractor("dinov2").info.title
        load_extractor("dinov2", weights="me/mine@v1")
    assert hub.revisions == [None, "v1"] and asked == [("facebook/dinov2-large", "main"), ("me/mine", "v1")]
    hub.error = NO_NETWORK
    refused("dinov3", None, "dinov3=/path/to/folder")
    shutil.copytree(folders["dinov2"], tmp_path / "facebook/dinov2-large", dirs_exist_ok=True)
    assert load_extractor("dinov2").info.dim == 32
