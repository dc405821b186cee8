"""Extractors by name, our own and ConvNeXt's features, networks of the user's own, and what all have in common."""

from __future__ import annotations

import sys
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from spheregen.errors import ConfigError, SphereGenError
from spheregen.measure.features import FeatureExtractor, load_extractor, load_extractors
from spheregen.measure.features.networks import OWN_SCALES, convnext_features
from spheregen.networks.backbones.convnext import ConvNeXt
from spheregen.networks.backbones.feature_net import load_feature_net
from tests.measure.features.conftest import random_images

CPU = torch.device("cpu")
Write = Callable[[str], str]


@pytest.fixture(scope="module")
def small_convnext() -> ConvNeXt:
    torch.manual_seed(0)
    net = ConvNeXt(depths=(1, 1), widths=(8, 16), classes=10)
    for stage in net.stages:
        nn.init.ones_(stage[0].scale)  # type: ignore[index]
    return net


@pytest.fixture(scope="module", params=["own", "convnext"])
def network(request: pytest.FixtureRequest, small_convnext: ConvNeXt) -> FeatureExtractor:
    return load_extractor("own") if request.param == "own" else convnext_features(small_convnext, CPU)


# --- In common ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("channels", "height", "width"), [(1, 8, 8), (3, 64, 48)])
def test_shapes_and_types(network: FeatureExtractor, channels: int, height: int, width: int) -> None:
    images = random_images(3, channels, height, width)
    kept = images.clone()
    seen = network(images)
    assert seen.logits is not None
    assert (seen.features.shape, seen.logits.shape) == ((3, network.info.dim), (3, network.info.classes))
    assert seen.features.dtype == seen.logits.dtype == torch.float32
    assert not seen.features.requires_grad
    assert torch.equal(images, kept)
    assert len(network.info.weights) == 16 and all("\n" not in str(each) for each in network.info.as_dict().values())


def test_the_same_batch_gives_the_same_bits_and_each_image_its_own_features(network: FeatureExtractor) -> None:
    images = random_images(6, 1)
    first = network(images)
    with torch.autocast("cpu", torch.bfloat16):  # what the caller has on does not matter
        second = network.to(CPU)(images.repeat(1, 3, 1, 1))
    assert first.logits is not None and second.logits is not None
    assert torch.equal(first.features, second.features) and torch.equal(first.logits, second.logits)
    apart = torch.cat([network(part).features for part in images.split([1, 3, 2])])
    torch.testing.assert_close(first.features, apart, rtol=1e-5, atol=1e-5)
    assert torch.pdist(first.features).min() > 1e-3


# --- Names --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "weights", "named"),
    [
        ("incption", None, "did you mean 'inception'"),
        ("fid=/somewhere", None, "no feature network 'fid'"),
        ("inception=a.pth", "b.pth", "are others"),
        ("inception=", None, "names no weights"),
        ("mine:make", "b.pth", "takes no weights"),
        (":make", None, "module:factory"),
        ("nowhere_at_all:make", None, "No module named 'nowhere_at_all'"),
        ("inception=/a:b=c.pth", None, r"/a:b=c\.pth of"),
        ("own=/none.safetensors", None, "missing"),
    ],
)
def test_bad_names(name: str, weights: str | None, named: str) -> None:
    with pytest.raises(SphereGenError, match=named) as caught:
        load_extractor(name, weights=weights)
    assert "\n" not in str(caught.value)
    assert list(load_extractors(["own"])) == ["own"]
    with pytest.raises(ConfigError, match="own is named twice"):
        load_extractors(["own", "own"])


# --- Our own, and ConvNeXt ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("height", [32, 96])
def test_own_features_are_the_stages_by_their_scales(height: int) -> None:
    own, net = load_extractor("own"), load_feature_net()
    assert (own.info.name, own.info.distance) == ("own", "FD-own") and "not FID" in own.info.title
    images = random_images(3, height=height)
    shrunk = nn.functional.interpolate(images.float(), size=(32, 32), mode="bilinear", antialias=True) / 255
    with torch.no_grad():
        scaled = [s.mean(dim=(2, 3)) / scale for s, scale in zip(net.features(shrunk), OWN_SCALES, strict=True)]
        logits = net(shrunk)
    seen = own(images)
    torch.testing.assert_close(seen.features, torch.cat(scaled, dim=1), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(seen.logits, logits, rtol=1e-4, atol=1e-4)


def test_convnext_features_are_what_the_classifier_sees(small_convnext: ConvNeXt) -> None:
    images = random_images(2, height=224)
    mean = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)
    seen = convnext_features(small_convnext, CPU)(images)
    assert seen.logits is not None
    torch.testing.assert_close(seen.logits, small_convnext.classifier(seen.features), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(seen.logits, small_convnext((images.float() / 255 - mean) / std), rtol=1e-4, atol=1e-4)


# --- Networks of the user's own -----------------------------------------------------------------------------------


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Write a module of a fresh name into the current directory."""
    monkeypatch.chdir(tmp_path)

    def write_module(text: str) -> str:
        name = f"mine_{uuid.uuid4().hex}"
        Path(f"{name}.py").write_text(text)
        return name

    return write_module


def test_a_callable(write: Write) -> None:
    name = f"{write('def make(): return lambda images: images.float().mean(dim=(2, 3))[:, :2]')}:make"
    path = list(sys.path)
    made = load_extractor(name)
    assert sys.path == path
    assert (made.info.name, made.info.distance, made.info.dim, made.info.weights) == (name, f"FD-{name}", 2, "unknown")
    grey = random_images(3, 1)
    assert torch.equal(made(grey).features, grey.float().mean(dim=(2, 3)).expand(-1, 2))
    with pytest.raises(ConfigError, match="uint8"):
        made(torch.rand(1, 3, 8, 8))


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("def make(:", "SyntaxError"),
        ("import nowhere_at_all", "nowhere_at_all"),
        ("def make():\n    raise ValueError('two\\nlines')", "two lines"),
        ("def make(): ...", "NoneType"),
        ("def make():\n    return lambda images: images.nothing", "AttributeError"),
        ("def make():\n    return lambda images: images.float()", r"\(2, 3, 32, 32\)"),
        ("def make():\n    return lambda images: images[:1, 0, 0].float()", r"\(1, 32\)"),
        ("from spheregen.errors import ConfigError\ndef make():\n    raise ConfigError('my words')", "^my words$"),
    ],
)
def test_faults_of_the_users_code_are_one_line(text: str, named: str, write: Write) -> None:
    with pytest.raises(ConfigError, match=named) as caught:
        load_extractor(f"{write(text)}:make")
    assert "\n" not in str(caught.value)
