"""Own and ConvNeXt features, and what all networks have in common."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from spheregen.errors import ConfigError, ModelFileError
from spheregen.evaluation.features import FeatureExtractor, load_extractor
from spheregen.evaluation.features.convnext import ConvNeXtFeatures, load_convnext
from spheregen.evaluation.features.custom import CustomFeatures
from spheregen.evaluation.features.network import full_float32
from spheregen.evaluation.features.own import SCALES, load_own
from spheregen.losses.perceptual_weights import CONVNEXT_SMALL
from spheregen.model_folder import weights_hash
from spheregen.nn.backbones import convnext
from spheregen.nn.backbones.convnext import ConvNeXt
from spheregen.nn.backbones.feature_net import WIDTHS, load_feature_net
from tests.evaluation.features.conftest import random_images

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def small_convnext() -> ConvNeXtFeatures:
    torch.manual_seed(0)
    net = ConvNeXt(depths=(1, 1), widths=(8, 16), classes=10)
    for stage in net.stages:
        nn.init.ones_(stage[0].scale)  # type: ignore[index]
    return ConvNeXtFeatures(net, CPU)


@pytest.fixture(scope="module")
def own() -> FeatureExtractor:
    return load_own(None, CPU)


@pytest.fixture(params=["own", "small_convnext"])
def network(request: pytest.FixtureRequest) -> FeatureExtractor:
    made: FeatureExtractor = request.getfixturevalue(request.param)
    return made


# --- in common --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("channels", "height", "width"), [(3, 32, 32), (1, 8, 8), (3, 64, 48), (1, 250, 250)])
def test_shapes_and_types(network: FeatureExtractor, channels: int, height: int, width: int) -> None:
    seen = network(random_images(3, channels, height, width))
    assert seen.features.shape == (3, network.info.dim)
    assert seen.logits is not None
    assert seen.logits.shape == (3, network.info.classes)
    assert seen.features.dtype == seen.logits.dtype == torch.float32
    assert not seen.features.requires_grad


def test_same_batch_same_bits(network: FeatureExtractor) -> None:
    images = random_images(5)
    first = network(images)
    with torch.autocast("cpu", torch.bfloat16):  # what the caller has on does not matter
        second = network(images.clone())
    assert torch.equal(first.features, second.features)
    assert first.logits is not None
    assert second.logits is not None
    assert torch.equal(first.logits, second.logits)


def test_features_do_not_depend_on_the_batch(network: FeatureExtractor) -> None:
    images = random_images(6)
    together = network(images).features
    apart = torch.cat([network(part).features for part in images.split([1, 3, 2])])
    torch.testing.assert_close(together, apart, rtol=1e-5, atol=1e-5)


def test_grey_is_repeated(network: FeatureExtractor) -> None:
    grey = random_images(3, 1)
    assert torch.equal(network(grey).features, network(grey.repeat(1, 3, 1, 1)).features)


def test_images_are_not_changed_and_told_apart(network: FeatureExtractor) -> None:
    images = random_images(4)
    kept = images.clone()
    features = network(images).features
    assert torch.equal(images, kept)
    assert torch.pdist(features).min() > 1e-3


def test_other_images_are_refused(network: FeatureExtractor) -> None:
    with pytest.raises(ConfigError, match="uint8, not float32"):
        network(torch.rand(2, 3, 32, 32))


def test_moving_returns_the_network(network: FeatureExtractor) -> None:
    before = network(random_images(2)).features
    assert network.to(CPU) is network
    assert torch.equal(network(random_images(2)).features, before)


def test_info_is_plain_values_in_one_line_each(network: FeatureExtractor) -> None:
    values = network.info.as_dict()
    assert all(isinstance(value, str | int | bool) for value in values.values())
    assert "\n" not in "".join(map(str, values.values()))
    assert len(network.info.weights) == 16
    assert int(network.info.weights, 16) >= 0


def test_full_float32_leaves_no_trace() -> None:
    backends = torch.backends
    with full_float32(CPU):
        assert backends.cudnn.conv.fp32_precision == "ieee"  # type: ignore[attr-defined]
        assert backends.cuda.matmul.fp32_precision == "ieee"
    before = (backends.cudnn.conv.fp32_precision, backends.cuda.matmul.fp32_precision)  # type: ignore[attr-defined]

    def fail() -> None:
        with full_float32(CPU):
            raise KeyError

    backends.cudnn.benchmark = True
    try:
        with pytest.raises(KeyError):
            fail()
        assert backends.cudnn.benchmark
    finally:
        backends.cudnn.benchmark = False
    after = (backends.cudnn.conv.fp32_precision, backends.cuda.matmul.fp32_precision)  # type: ignore[attr-defined]
    assert after == before


def test_the_hash_is_of_names_types_shapes_and_bytes() -> None:
    state = {"a": torch.arange(6.0).view(2, 3), "b": torch.zeros((), dtype=torch.bfloat16)}
    known = weights_hash(state)
    assert known == weights_hash(dict(reversed(state.items())))
    assert known == weights_hash({**state, "a": state["a"].T.contiguous().T})  # another layout in memory
    assert known == weights_hash({name: nn.Parameter(tensor) for name, tensor in state.items()})
    others = [
        {**state, "a": state["a"].view(3, 2)},
        {**state, "a": state["a"] + 1e-6},
        {**state, "b": torch.zeros((), dtype=torch.float16)},
        {"a": state["a"], "c": state["b"]},
        {"a": state["a"]},
    ]
    assert len({known, *map(weights_hash, others)}) == 1 + len(others)


# --- own --------------------------------------------------------------------------------------------------------


def test_own_says_that_it_is_not_fid(own: FeatureExtractor) -> None:
    assert own.info.name == "own"
    assert own.info.distance == "FD-own"
    assert "not FID" in own.info.title


def test_own_logits_are_the_networks(own: FeatureExtractor) -> None:
    images = random_images(4)
    expected = load_feature_net()(images.float() / 255).detach()
    found = own(images).logits
    assert found is not None
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_own_resizes_to_32_pixels(own: FeatureExtractor) -> None:
    large = random_images(2, height=96)
    shrunk = nn.functional.interpolate(large.float(), size=(32, 32), mode="bilinear", antialias=True)
    expected = load_feature_net()(shrunk / 255).detach()
    found = own(large).logits
    assert found is not None
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_own_features_are_the_stages_by_their_scales(own: FeatureExtractor) -> None:
    images = random_images(3)
    stages = load_feature_net().features(images.float() / 255)
    scaled = [stage.detach().mean(dim=(2, 3)) / scale for stage, scale in zip(stages, SCALES, strict=True)]
    torch.testing.assert_close(own(images).features, torch.cat(scaled, dim=1), rtol=1e-5, atol=1e-5)


def test_own_stages_vary_alike_on_photographs(own: FeatureExtractor, shared: Path) -> None:
    file = shared / "data" / "cifar10" / "test-00000-of-00001.parquet"
    if not file.is_file():
        pytest.skip(f"needs {file}, which is absent")
    cells = pq.read_table(file).slice(0, 512).column("image").to_pylist()
    arrays = [np.asarray(Image.open(io.BytesIO(cell["bytes"])).convert("RGB")) for cell in cells]
    images = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2)
    variances = torch.cat([own(part).features for part in images.split(128)]).var(dim=0)
    for stage in variances.split(WIDTHS):
        assert stage.sum().item() == pytest.approx(80, rel=0.15)


def test_own_weights_of_another_file(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="is missing"):
        load_extractor("own", weights=tmp_path / "none.safetensors")


# --- ConvNeXt ---------------------------------------------------------------------------------------------------


def test_convnext_features_are_what_the_classifier_sees(small_convnext: ConvNeXtFeatures) -> None:
    images = random_images(2, height=224)
    net = small_convnext.net
    mean = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)
    seen = small_convnext(images)
    assert seen.logits is not None
    torch.testing.assert_close(seen.logits, net.classifier(seen.features), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(seen.logits, net((images.float() / 255 - mean) / std), rtol=1e-4, atol=1e-4)


def write_convnext(path: Path) -> None:
    """The published file's names and shapes, each tensor of one stored number."""
    with torch.device("meta"):
        net = ConvNeXt()
    names = convnext.torchvision_names()
    state = {names[name]: torch.full((1,), 0.01).expand(tensor.shape) for name, tensor in net.state_dict().items()}
    torch.save(state, path)


def test_convnext_is_read_from_a_file_and_checked_in_a_folder(tmp_path: Path, no_weights: Path) -> None:
    file = tmp_path / "mine" / CONVNEXT_SMALL.name
    file.parent.mkdir()
    write_convnext(file)
    made = load_convnext(file, CPU)
    assert (made.info.name, made.info.distance) == ("convnext", "FD-ConvNeXt")
    assert (made.info.dim, made.info.classes) == (768, 1000)
    with pytest.raises(ModelFileError, match=r"has SHA-256 \w{8}\.\.\., not 0c510722") as caught:
        load_convnext(file.parent, CPU)  # found under the published name, and not the published file
    assert "\n" not in str(caught.value)


# --- a module of the user's own ---------------------------------------------------------------------------------


class Means(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))
        self.dropout = nn.Dropout(0.5)

    def forward(self, images: Tensor) -> Tensor:
        means: Tensor = self.dropout(images.double().mean(dim=(2, 3)) * self.scale)
        return means


def test_custom_modules_are_frozen_and_probed() -> None:
    made = CustomFeatures(Means(), "net:make", CPU)
    assert made.info.dim == 3
    assert made.info.weights == weights_hash({"scale": torch.ones(3)})
    images = random_images(2)
    seen = made(images)
    assert seen.logits is None
    assert seen.features.dtype == torch.float32
    torch.testing.assert_close(seen.features, images.float().mean(dim=(2, 3)))  # no dropout
