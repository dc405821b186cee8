"""DINOv2, DINOv3 and CLIP features, with tiny random networks in folders."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from spheregen import external
from spheregen.errors import ConfigError, ModelFileError, SphereGenError
from spheregen.evaluation.features import FeatureExtractor, load_extractor
from spheregen.evaluation.features.preprocessing import CLIP_MEAN, CLIP_STD, IMAGENET_MEAN, IMAGENET_STD
from tests.evaluation.features.conftest import random_images
from tests.fake_hub import FakeHub

CPU = torch.device("cpu")
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
KINDS = ("dinov2", "dinov2 with registers", "dinov3", "clip", "clip without text")


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
    elif kind == "clip":
        net = t.CLIPModel(t.CLIPConfig(vision_config=sight, text_config=text, projection_dim=24))
    else:
        net = t.CLIPVisionModelWithProjection(t.CLIPVisionConfig(**sight))
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
        elif name == "clip":
            expected = functional.normalize(net(pixel_values=pixels).image_embeds, dim=1)
        else:
            expected = net(pixel_values=pixels).pooler_output
    seen = made(images)
    assert seen.logits is None
    torch.testing.assert_close(seen.features, expected, rtol=1e-4, atol=1e-4)
    assert torch.pdist(seen.features).min() > 1e-3


def test_bits_batches_and_grey(case: tuple[str, FeatureExtractor]) -> None:
    _, made = case
    images = random_images(4, 1)
    first = made(images).features
    assert first.dtype == torch.float32
    assert torch.equal(made(images).features, first)
    assert torch.equal(made(images.repeat(1, 3, 1, 1)).features, first)
    apart = torch.cat([made(part).features for part in images.split([1, 3])])
    torch.testing.assert_close(apart, first, rtol=1e-5, atol=1e-5)


def test_clip_has_unit_norm(folders: dict[str, Path]) -> None:
    features = load_extractor(f"clip={folders['clip']}")(random_images(3)).features
    torch.testing.assert_close(features.norm(dim=1), torch.ones(3))


def test_loading_is_quiet_and_restores_the_logging(folders: dict[str, Path], capfd: pytest.CaptureFixture[str]) -> None:
    logging = import_transformers().utils.logging
    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    load_extractor("clip", weights=folders["clip"])
    assert capfd.readouterr() == ("", "")
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before


# --- errors -----------------------------------------------------------------------------------------------------


def refused(name: str, weights: Path | str | None) -> str:
    with pytest.raises(ModelFileError) as caught:
        load_extractor(name, weights=weights)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_another_network_is_refused(folders: dict[str, Path]) -> None:
    message = refused("clip", folders["dinov2"])
    assert "is of model_type 'dinov2', but clip takes clip or clip_vision_model" in message


def test_incomplete_folders_are_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    assert "has no config.json" in refused("dinov2", tmp_path)
    config = tmp_path / "config.json"
    config.write_text("[]")
    assert "is no object" in refused("dinov2", tmp_path)
    config.write_text("{}")
    assert "names no model_type" in refused("dinov2", tmp_path)
    config.write_text((folders["dinov2"] / "config.json").read_text())
    assert "cannot be loaded" in refused("dinov2", tmp_path)
    assert "is a file; give the folder" in refused("dinov2", config)
    torch.save(build("dinov2").state_dict(), tmp_path / "pytorch_model.bin")
    assert "cannot be loaded" in refused("dinov2", tmp_path)  # safetensors alone
    state = load_file(folders["dinov2"] / "model.safetensors")
    del state["layernorm.weight"]
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert "lacks 1 tensors of dinov2, such as layernorm.weight" in refused("dinov2", tmp_path)


def test_code_of_a_repository_is_not_run(folders: dict[str, Path], tmp_path: Path) -> None:
    config = json.loads((folders["dinov2"] / "config.json").read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config", "AutoModel": "mine.Model"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "mine.py").write_text("raise SystemExit('run')")
    assert "is of model_type 'mine'" in refused("dinov2", tmp_path)


def test_patches_must_divide_the_size(tmp_path: Path) -> None:
    t = import_transformers()
    t.Dinov2Model(t.Dinov2Config(**SMALL, image_size=30, patch_size=15)).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="patches of 15 px, which do not divide 224 px"):
        load_extractor("dinov2", weights=tmp_path)


@pytest.mark.parametrize("text", ["nothing", "/no/such/folder", "a/b/c"])
def test_what_is_neither_a_folder_nor_on_the_hub(text: str) -> None:
    import_transformers()
    assert f"there is no folder {text}" in refused("dinov3", text)


def test_without_transformers_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(SphereGenError, match=r'pip install "spheregen\[encoders\]"') as caught:
        load_extractor("dinov2")
    assert "\n" not in str(caught.value)


# --- the Hub ----------------------------------------------------------------------------------------------------


def test_the_network_of_the_literature_is_asked_for(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    t = import_transformers()
    hub = FakeHub(folders["dinov2"])
    asked: list[tuple[str, str]] = []

    def from_pretrained(place: str, *, revision: str, **options: Any) -> Any:
        asked.append((place, revision))
        assert options["use_safetensors"]
        assert not options["trust_remote_code"]
        return build("dinov2"), {"missing_keys": []}

    monkeypatch.setattr(external, "import_hub", lambda *_: hub)
    monkeypatch.setattr(t.Dinov2Model, "from_pretrained", from_pretrained)
    assert "(facebook/dinov2-large)" in load_extractor("dinov2").info.title
    load_extractor("dinov2", weights="me/mine@v1")
    assert hub.asked == [("facebook/dinov2-large", None), ("me/mine", "v1")]
    assert asked == [("facebook/dinov2-large", "main"), ("me/mine", "v1")]


def test_without_a_network_what_was_fetched_before_is_used(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    import_transformers()
    monkeypatch.setattr(external, "import_hub", lambda *_: FakeHub(None))
    monkeypatch.setattr(external, "find_downloaded", lambda *_: None)
    message = refused("dinov2", None)
    assert "facebook/dinov2-large for the feature network dinov2: the Hugging Face Hub cannot be reached" in message
    assert "dinov2=/path/to/folder" in message
    monkeypatch.setattr(external, "find_downloaded", lambda *_: folders["dinov2"])
    assert load_extractor("dinov2").info.dim == 32
