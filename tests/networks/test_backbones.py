"""The frozen networks: what they compute, loading of the published files' names, and the file of the package."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import torch
from torch import nn

from spheregen.errors import ConfigError, ModelFileError
from spheregen.networks.backbones import convnext, vgg16
from spheregen.networks.backbones.convnext import ConvNeXt, load_convnext_small
from spheregen.networks.backbones.inception import FidInception, load_inception
from spheregen.networks.backbones.state import load_renamed, read_torch_state
from spheregen.networks.backbones.vgg16 import Vgg16Features, load_vgg16


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


# FeatureNet


# VGG16 and ConvNeXt


def test_vgg16_equals_the_sequence_that_the_names_count() -> None:
    """`features.N` numbers a plain sequence of convolutions, ReLUs and poolings; run that and compare."""
    torch.manual_seed(0)
    with torch.device("meta"):
        blank = Vgg16Features()
    assert parameter_count(blank) == 14_714_688
    state = random_state(blank, {name: name for name in blank.state_dict()})
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
    with pytest.raises(ConfigError, match=str(vgg16.MIN_SIZE)):
        net(torch.rand(1, 3, 8, 8))


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
    seen = []
    for module in net.modules():
        if isinstance(module, nn.LayerNorm):
            module.register_forward_hook(lambda _, __, out: seen.append(out.dtype))
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert torch.isfinite(net(images)).all()
    assert set(seen) == {torch.float32}  # norms stay wide


def test_convnext_small_loads_strictly() -> None:
    with torch.device("meta"):
        net = ConvNeXt()
    assert parameter_count(net) == 50_223_688
    names = convnext.torchvision_names()
    # One stored number per tensor: the shapes of the real file without its 200 MB.
    state = {names[name]: torch.full((1,), 0.01).expand(tensor.shape) for name, tensor in net.state_dict().items()}
    assert state["features.5.26.block.3.weight"].shape == (1536, 384)
    assert state["features.2.1.weight"].shape == (192, 96, 2, 2)
    assert not load_convnext_small(state).training
    changed = {**state, "features.9.weight": torch.zeros(1), "features.0.1.bias": torch.zeros(7)}
    del changed["features.1.0.layer_scale"]
    with pytest.raises(ModelFileError, match="layer_scale") as caught:
        load_convnext_small(changed)
    assert all(name in str(caught.value) for name in ("features.9.weight", "features.0.1.bias (7,), not (96,)"))
    assert "\n" not in str(caught.value)


# Inception


def randomise(net: nn.Module) -> None:
    """Weights that keep a signal alive through all layers, and statistics other than 0 and 1."""
    for name, tensor in net.state_dict().items():
        if name.endswith("conv.weight"):
            nn.init.kaiming_normal_(tensor)
        elif name.endswith("running_var"):
            tensor.uniform_(0.5, 1.5)
        elif name.startswith("fc."):
            tensor.normal_(0.0, 0.02)
        elif "bn." in name:
            tensor.normal_(1.0 if name.endswith("bn.weight") else 0.0, 0.1)


@pytest.fixture(scope="module")
def inception() -> FidInception:
    torch.manual_seed(0)
    with torch.device("meta"):
        net = FidInception()
    net.to_empty(device="cpu")
    randomise(net)
    return net.eval()


def test_inception_has_the_published_size_and_positions(inception: FidInception) -> None:
    assert parameter_count(inception) == 23_850_960
    assert len(inception.state_dict()) == 94 * 5 + 2
    shapes: dict[str, tuple[int, ...]] = {}
    expected = {"Conv2d_4a_3x3": (192, 71, 71), "Mixed_5b": (256, 35, 35), "Mixed_5d": (288, 35, 35)}
    expected |= {"Mixed_6a": (768, 17, 17), "Mixed_6e": (768, 17, 17), "Mixed_7a": (1280, 8, 8)}
    hooks = [
        getattr(inception, name).register_forward_hook(
            lambda _, __, out, name=name: shapes.update({name: tuple(out.shape[1:])})
        )
        for name in expected
    ]
    with torch.no_grad():
        features = inception(torch.rand(1, 3, 299, 299) * 2 - 1)
    for hook in hooks:
        hook.remove()
    assert shapes == expected
    assert features.shape == (1, 2048)
    assert features.min() >= 0 and features.std() > 1e-3  # means of what a ReLU lets through
    # the logits leave the bias out
    torch.testing.assert_close(inception.logits(features), inception.fc(features) - inception.fc.bias)


def test_inception_files_are_read_strictly(inception: FidInception) -> None:
    state = dict(inception.state_dict())
    for name in [name for name in state if name.endswith("running_var")]:  # as batch norms of torch save themselves
        state[name.replace("running_var", "num_batches_tracked")] = torch.tensor(0)
    loaded = load_inception(state)
    assert not loaded.training
    for name, tensor in inception.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    del state["fc.bias"]
    with pytest.raises(ModelFileError, match=r"fc\.bias.*fc\.weight \(1000, 2048\)"):
        load_inception({**state, "fc.weight": torch.zeros(1000, 2048)})


# files


class _Evil:
    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (Path("never-made"),))


def test_weight_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = Path("w.pth")
    with pytest.raises(ModelFileError, match="is missing"):
        read_torch_state(path)
    for content in ([1, 2, 3], {"a": _Evil()}, None):
        path.write_bytes(b"half a download") if content is None else torch.save(content, path)
        with pytest.raises(ModelFileError, match=r"w\.pth") as caught:
            read_torch_state(path)
        assert "\n" not in str(caught.value)
    assert not Path("never-made").exists()
    torch.save({"a": torch.ones(2)}, path)
    assert torch.equal(read_torch_state(path)["a"], torch.ones(2))
