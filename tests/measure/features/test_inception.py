"""Inception features from both kinds of file."""

from __future__ import annotations

import hashlib
import warnings
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

from spheregen.errors import ModelFileError
from spheregen.measure.features import inception as module
from spheregen.measure.features import load_extractor
from spheregen.measure.features.inception import (
    PYTORCH_FID,
    TORCH_FIDELITY,
    load_inception,
)
from spheregen.measure.features.preprocessing import tf1_bilinear
from spheregen.networks.backbones.inception import FidInception
from spheregen.networks.weights import WeightFile
from tests.measure.features.conftest import random_images

CPU = torch.device("cpu")


def random_network() -> FidInception:
    torch.manual_seed(0)
    net = FidInception()
    for name, tensor in net.state_dict().items():
        if name.endswith("conv.weight"):
            nn.init.kaiming_normal_(tensor)
        elif name.endswith("running_mean"):
            tensor.normal_(0, 0.1)
    nn.init.normal_(net.fc.weight, std=0.05)
    nn.init.normal_(net.fc.bias)
    return net


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights in pytorch-fid's layout."""
    path = tmp_path_factory.mktemp("inception") / "random.pth"
    torch.save(random_network().state_dict(), path)
    return path


def test_features_and_logits_are_the_networks_at_299_pixels(file: Path) -> None:
    extractor = load_inception(file, CPU)
    info = extractor.info
    assert (info.name, info.distance, info.dim, info.classes) == ("inception", "FID", 2048, 1008)
    assert "not the published one" in info.title and not info.normalised
    images = random_images(1, 1, height=24, width=40)
    seen = extractor(images)
    net = extractor.net  # type: ignore[attr-defined]
    with torch.no_grad():
        features = net(tf1_bilinear(images.repeat(1, 3, 1, 1), 299) / 128 - 1)
    torch.testing.assert_close(seen.features, features, rtol=1e-3, atol=1e-4)
    assert seen.logits is not None
    torch.testing.assert_close(seen.logits, seen.features @ net.fc.weight.detach().T, rtol=1e-4, atol=1e-4)


def test_published_files_are_found_by_name_and_checked(
    file: Path, no_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_weights.mkdir(parents=True)
    (no_weights / TORCH_FIDELITY.name).write_bytes(file.read_bytes())
    with pytest.raises(ModelFileError, match="not 6726825d"):
        load_inception(None, CPU)  # before the weights are read
    start = hashlib.sha256(file.read_bytes()).hexdigest()[:8]  # as if these were the published weights
    files = [WeightFile(name=each.name, url=each.url, sha256_start=start) for each in (PYTORCH_FID, TORCH_FIDELITY)]
    monkeypatch.setattr(module, "FILES", files)
    monkeypatch.setattr(module, "_HASH", start)
    assert load_inception(None, CPU).info.title == "Inception-v3 of 2015-12-05"


@pytest.mark.parametrize("content", [b"", b"PK\x05\x06" + bytes(18), None, "nonsense", "other"])
def test_broken_and_missing_files_are_one_line(content: bytes | str | None, tmp_path: Path) -> None:
    file = tmp_path / "broken.pth"
    if content == "other":
        write_script(OtherStub(), file)
    elif content == "nonsense":
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("broken/code/__torch__.py", "nonsense")
    elif isinstance(content, bytes):
        file.write_bytes(content)
    with pytest.raises(ModelFileError, match=r"broken\.pth") as caught:
        load_inception(file, CPU)
    assert "\n" not in str(caught.value)


# --- TorchScript ------------------------------------------------------------------------------------------------


class OpenStub(nn.Module):
    """StyleGAN3's interface with a tiny network behind it; the last layer lies open as `output`."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Linear(3, 2048)
        self.output = nn.Linear(2048, 1008)

    def forward(self, img: torch.Tensor, return_features: bool = False, no_output_bias: bool = False) -> torch.Tensor:
        assert img.dtype == torch.uint8
        features: torch.Tensor = self.layers((img.float() / 128 - 1).mean(dim=[2, 3]))
        if return_features:
            return features
        logits = torch.nn.functional.linear(features, self.output.weight)
        return (logits if no_output_bias else logits + self.output.bias).softmax(dim=1)


class ClosedStub(OpenStub):
    """The same with the last layer somewhere else, and something that looks like it."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(2048, 1008)

    def forward(self, img: torch.Tensor, return_features: bool = False, no_output_bias: bool = False) -> torch.Tensor:
        features: torch.Tensor = self.layers((img.float() / 128 - 1).mean(dim=[2, 3]))
        if return_features:
            return features
        logits = torch.nn.functional.linear(features, self.last.weight)
        return (logits if no_output_bias else logits + self.last.bias).softmax(dim=1)


class OtherStub(nn.Module):
    def forward(self, img: torch.Tensor) -> torch.Tensor:
        return img.float().mean(dim=[2, 3])


def write_script(net: nn.Module, path: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # this torch would like another format
        torch.jit.script(net).save(path)
    return path


@pytest.mark.parametrize("stub", [OpenStub, ClosedStub])
def test_torchscript_gives_features_and_logits_of_its_probabilities(stub: type[OpenStub], tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = stub().eval()
    # The name of the file tells nothing, its contents do.
    made = load_extractor("inception", weights=write_script(net, tmp_path / "weights.pth"))
    assert made.info.title == "Inception-v3 of 2015-12-05 (StyleGAN3's TorchScript)"
    assert (made.info.distance, made.info.dim, made.info.classes) == ("FID", 2048, 1008)
    images = random_images(5)
    seen = made(images)
    with torch.no_grad():
        torch.testing.assert_close(seen.features, net(images, return_features=True), rtol=1e-5, atol=1e-6)
        assert seen.logits is not None
        torch.testing.assert_close(seen.logits.softmax(1), net(images, no_output_bias=True), rtol=1e-4, atol=1e-8)
    again = made(images)
    assert again.logits is not None
    assert torch.equal(seen.features, again.features)
    assert torch.equal(seen.logits, again.logits)
    grey = random_images(2, 1)
    assert torch.equal(made(grey).features, made(grey.repeat(1, 3, 1, 1)).features)
