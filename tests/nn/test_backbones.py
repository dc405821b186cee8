"""The frozen networks: sizes, loading of the published files' names, and the file that ships with the package."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from spheregen.errors import ConfigError, ModelFileError
from spheregen.nn.backbones import convnext, feature_net, vgg16
from spheregen.nn.backbones.convnext import ConvNeXt, load_convnext_small
from spheregen.nn.backbones.feature_net import ASSET, WIDTHS, FeatureNet, load_feature_net
from spheregen.nn.backbones.state import load_renamed, read_torch_state
from spheregen.nn.backbones.vgg16 import Vgg16Features, load_vgg16


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Such small work is slower on two threads, far slower when other programs keep the cores busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def parameter_count(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


def random_state(net: nn.Module, names: Mapping[str, str]) -> dict[str, torch.Tensor]:
    """Random tensors of the network's shapes under the published names."""
    return {names[name]: torch.randn(tensor.shape) * 0.05 for name, tensor in net.state_dict().items()}


# --- FeatureNet -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("height", "width"), [(16, 16), (32, 32), (64, 48), (37, 21)])
def test_feature_net_shapes(height: int, width: int) -> None:
    net = FeatureNet()
    images = torch.rand(2, 3, height, width)
    shapes = [tuple(x.shape) for x in net.features(images)]
    assert shapes == [(2, w, height >> depth, width >> depth) for depth, w in enumerate(WIDTHS)]
    assert net(images).shape == (2, 10)


@pytest.mark.parametrize("shape", [(2, 1, 32, 32), (2, 3, 4, 32), (3, 32, 32)])
def test_feature_net_refuses_other_images(shape: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="at least 8, not"):
        FeatureNet()(torch.rand(shape))


def test_feature_net_is_cheap() -> None:
    net = FeatureNet()
    multiply_adds = 0

    def count(module: nn.Conv2d, _: object, out: torch.Tensor) -> None:
        nonlocal multiply_adds
        multiply_adds += out[0].numel() * module.weight[0].numel()

    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(count)
    net(torch.rand(1, 3, 32, 32))
    assert multiply_adds <= 25e6
    assert parameter_count(net) <= 0.95e6


def test_folding_changes_nothing() -> None:
    torch.manual_seed(0)
    net = FeatureNet(batch_norm=True)
    for _ in range(3):
        net(torch.rand(16, 3, 32, 32))  # moves the running statistics
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    net.eval()
    plain = net.fold()
    assert not any(isinstance(module, nn.BatchNorm2d) for module in plain.modules())
    images = torch.rand(4, 3, 32, 32)
    torch.testing.assert_close(plain(images), net(images), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(plain.fold()(images), plain(images))


def test_shipped_file_is_small_and_describes_itself() -> None:
    assert ASSET.stat().st_size <= 2 * 1024**2
    with safe_open(ASSET, framework="pt") as file:
        metadata = file.metadata()
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.float16}  # noqa: SIM118
    assert metadata["data"] == "CIFAR-10 train split"
    assert float(metadata["test_accuracy"]) >= 0.85
    assert "train_feature_net.py" in metadata["command"]


def test_shipped_file_classifies_cifar10(shared: Path) -> None:
    file = shared / "data" / "cifar10" / "test-00000-of-00001.parquet"
    if not file.is_file():
        pytest.skip(f"needs {file}, which is absent")
    table = pq.read_table(file).slice(0, 2000)
    arrays = []
    for cell in table.column("image").to_pylist():
        with Image.open(io.BytesIO(cell["bytes"])) as picture:
            arrays.append(np.asarray(picture.convert("RGB")))
    images = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).float() / 255
    labels = torch.tensor(table.column("label").to_pylist())
    net = load_feature_net()
    assert not net.training
    with torch.inference_mode():
        classes = torch.cat([net(batch).argmax(1) for batch in images.split(500)])
    assert (classes == labels).float().mean().item() >= 0.85


def test_feature_net_file_errors(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="is missing"):
        load_feature_net(tmp_path / "none.safetensors")
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"not a safetensors file")
    with pytest.raises(ModelFileError, match="cannot read"):
        load_feature_net(broken)
    other = tmp_path / "other.safetensors"
    save_file({"weight": torch.zeros(3)}, other)
    with pytest.raises(ModelFileError, match="another network"):
        load_feature_net(other)


# --- VGG16 ------------------------------------------------------------------------------------------------------


def test_vgg16_has_the_published_size() -> None:
    with torch.device("meta"):
        net = Vgg16Features()
    assert parameter_count(net) == 14_714_688
    names = vgg16.torchvision_names()
    places = sorted({int(name.split(".")[1]) for name in names.values()})
    assert places == [0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28]
    assert len(names) == 26


def vgg16_state() -> dict[str, torch.Tensor]:
    with torch.device("meta"):
        net = Vgg16Features()
    return random_state(net, vgg16.torchvision_names())


def test_vgg16_equals_the_sequence_that_the_names_count() -> None:
    """`features.N` numbers a plain sequence of convolutions, ReLUs and poolings; run that and compare."""
    torch.manual_seed(0)
    state = vgg16_state()
    net = load_vgg16({**state, "classifier.0.weight": torch.zeros(1)})
    assert not net.training
    images = torch.randn(2, 3, 32, 24)
    expected = []
    x = images
    convolutions = {int(name.split(".")[1]) for name in state}
    for place in range(30):
        if place in convolutions:
            x = nn.functional.conv2d(x, state[f"features.{place}.weight"], state[f"features.{place}.bias"], padding=1)
        elif place - 1 in convolutions:
            x = x.relu()
            if place in (3, 8, 15, 22, 29):
                expected.append(x)
        else:
            x = nn.functional.max_pool2d(x, 2)
    with torch.inference_mode():
        maps = net(images)
    assert [tuple(m.shape[1:]) for m in maps] == [(64, 32, 24), (128, 16, 12), (256, 8, 6), (512, 4, 3), (512, 2, 1)]
    for mine, theirs in zip(maps, expected, strict=True):
        torch.testing.assert_close(mine, theirs)
    with pytest.raises(ConfigError, match="at least 16"):
        net(torch.rand(1, 3, 8, 8))


def test_vgg16_loads_strictly() -> None:
    state = {name: tensor[:0] for name, tensor in vgg16_state().items()}
    with pytest.raises(ModelFileError, match=r"'features.0.weight' is of shape \(0, 3, 3, 3\)"):
        load_vgg16(state)
    state = vgg16_state()
    with pytest.raises(ModelFileError, match=r"1 unexpected tensors such as 'head.weight'"):
        load_vgg16({**state, "head.weight": torch.zeros(1)})
    del state["features.28.bias"]
    with pytest.raises(ModelFileError, match=r"1 missing tensors such as 'features.28.bias'") as caught:
        load_vgg16(state)
    assert "\n" not in str(caught.value)


# --- ConvNeXt ---------------------------------------------------------------------------------------------------


def test_convnext_small_has_the_published_size() -> None:
    with torch.device("meta"):
        net = ConvNeXt()
    assert parameter_count(net) == 50_223_688
    names = convnext.torchvision_names()
    assert names.keys() == net.state_dict().keys()
    shapes = {names[name]: tuple(tensor.shape) for name, tensor in net.state_dict().items()}
    assert shapes["features.0.0.weight"] == (96, 3, 4, 4)
    assert shapes["features.0.1.bias"] == (96,)
    assert shapes["features.1.2.block.0.weight"] == (96, 1, 7, 7)
    assert shapes["features.1.2.block.2.weight"] == (96,)
    assert shapes["features.2.0.weight"] == (96,)
    assert shapes["features.2.1.weight"] == (192, 96, 2, 2)
    assert shapes["features.5.26.block.3.weight"] == (1536, 384)
    assert shapes["features.5.26.block.5.weight"] == (384, 1536)
    assert shapes["features.7.0.layer_scale"] == (768, 1, 1)
    assert shapes["classifier.0.weight"] == (768,)
    assert shapes["classifier.2.weight"] == (1000, 768)


def test_convnext_equals_its_equations() -> None:
    torch.manual_seed(0)
    net = ConvNeXt(depths=(1, 1), widths=(4, 6), classes=5)
    names = convnext.torchvision_names((1, 1))
    state = random_state(net, names)
    load_renamed(net, state, names, "the test")
    images = torch.randn(2, 3, 32, 40)

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:  # (B, C, H, W), written out
        mean = x.mean(dim=1, keepdim=True)
        variance = (x - mean).square().mean(dim=1, keepdim=True)
        gain, bias = (state[f"{name}.{kind}"].view(1, -1, 1, 1) for kind in ("weight", "bias"))
        return (x - mean) / (variance + 1e-6).sqrt() * gain + bias

    def conv(x: torch.Tensor, name: str, **options: int) -> torch.Tensor:
        weight = state[f"{name}.weight"]
        weight = weight if weight.ndim == 4 else weight[:, :, None, None]
        return nn.functional.conv2d(x, weight, state[f"{name}.bias"], **options)

    x = norm(conv(images, "features.0.0", stride=4), "features.0.1")
    for stage, width in ((1, 4), (3, 6)):
        block = f"features.{stage}.0"
        if stage == 3:
            x = conv(norm(x, "features.2.0"), "features.2.1", stride=2)
        y = norm(conv(x, f"{block}.block.0", padding=3, groups=width), f"{block}.block.2")
        y = conv(nn.functional.gelu(conv(y, f"{block}.block.3")), f"{block}.block.5")
        x = x + state[f"{block}.layer_scale"] * y
    pooled = norm(x.mean(dim=(2, 3), keepdim=True), "classifier.0")
    torch.testing.assert_close(net(images), conv(pooled, "classifier.2")[:, :, 0, 0])


def test_convnext_loads_strictly() -> None:
    with torch.device("meta"):
        net = ConvNeXt()
    names = convnext.torchvision_names()
    # One stored number per tensor: the shapes of the real file without its 200 MB.
    state = {names[name]: torch.full((1,), 0.01).expand(tensor.shape) for name, tensor in net.state_dict().items()}
    loaded = load_convnext_small(state)
    assert not loaded.training
    with torch.inference_mode():
        assert loaded(torch.rand(1, 3, 32, 32)).shape == (1, 1000)
    with pytest.raises(ModelFileError, match=r"1 unexpected tensors such as 'features.9.weight'"):
        load_convnext_small({**state, "features.9.weight": torch.zeros(1)})
    del state["features.1.0.layer_scale"]
    with pytest.raises(ModelFileError, match=r"1 missing tensors such as 'features.1.0.layer_scale'"):
        load_convnext_small(state)


def test_norms_stay_in_float32_under_autocast() -> None:
    net = ConvNeXt(depths=(1, 1), widths=(4, 6), classes=5)
    images = torch.rand(2, 3, 32, 32)
    seen = []
    for module in net.modules():
        if isinstance(module, nn.LayerNorm):
            module.register_forward_hook(lambda _, __, out: seen.append(out.dtype))
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        logits = net(images)
    assert set(seen) == {torch.float32}
    assert torch.isfinite(logits).all()


# --- files ------------------------------------------------------------------------------------------------------


def test_weight_file_errors(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="is missing"):
        read_torch_state(tmp_path / "none.pth")
    broken = tmp_path / "broken.pth"
    broken.write_bytes(b"half a download")
    with pytest.raises(ModelFileError, match="cannot read the weight file") as caught:
        read_torch_state(broken)
    assert "\n" not in str(caught.value)
    other = tmp_path / "other.pth"
    torch.save([1, 2, 3], other)
    with pytest.raises(ModelFileError, match="not a table of tensors"):
        read_torch_state(other)
    good = tmp_path / "good.pth"
    torch.save({"a": torch.ones(2)}, good)
    assert torch.equal(read_torch_state(good)["a"], torch.ones(2))


class _Evil:
    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (Path("never-made"),))


def test_code_in_a_weight_file_does_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"a": _Evil()}, tmp_path / "evil.pth")
    with pytest.raises(ModelFileError, match="cannot read"):
        read_torch_state(tmp_path / "evil.pth")
    assert not (tmp_path / "never-made").exists()


def test_the_smallest_sizes_work() -> None:
    side = feature_net.MIN_SIZE
    assert FeatureNet().features(torch.rand(1, 3, side, side))[-1].shape == (1, WIDTHS[-1], 1, 1)
    side = vgg16.MIN_SIZE
    assert Vgg16Features()(torch.rand(1, 3, side, side))[-1].shape == (1, 512, 1, 1)
