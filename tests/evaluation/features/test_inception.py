"""Inception features from both kinds of file."""

from __future__ import annotations

import hashlib
import warnings
import zipfile
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from spheregen.errors import ModelFileError
from spheregen.evaluation.features import inception as module
from spheregen.evaluation.features import load_extractor
from spheregen.evaluation.features.inception import (
    PYTORCH_FID,
    STYLEGAN3,
    TORCH_FIDELITY,
    InceptionFeatures,
    ScriptedInceptionFeatures,
    load_inception,
)
from spheregen.evaluation.features.preprocessing import tf1_bilinear
from spheregen.nn.backbones.inception import FidInception
from spheregen.weights import WeightFile
from tests.evaluation.features.conftest import random_images

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


@pytest.fixture(scope="module")
def extractor(file: Path) -> InceptionFeatures:
    made = load_inception(file, CPU)
    assert isinstance(made, InceptionFeatures)
    return made


# --- tensors ----------------------------------------------------------------------------------------------------


def test_what_it_says(extractor: InceptionFeatures) -> None:
    info = extractor.info
    assert (info.name, info.distance, info.dim, info.classes) == ("inception", "FID", 2048, 1008)
    assert "299 px as TensorFlow 1 does" in info.preprocessing
    assert not info.normalised
    assert info.title.endswith("weights of a file that is not the published one")


def test_features_and_logits_are_the_networks(extractor: InceptionFeatures) -> None:
    images = random_images(2, height=24, width=40)
    seen = extractor(images)
    net = random_network().eval()
    with torch.no_grad():
        features = net(tf1_bilinear(images, 299) / 128 - 1)
    torch.testing.assert_close(seen.features, features, rtol=1e-3, atol=1e-4)
    assert seen.logits is not None
    torch.testing.assert_close(seen.logits, seen.features @ net.fc.weight.detach().T, rtol=1e-4, atol=1e-4)


def test_the_network_sees_299_pixels_within_its_range(extractor: InceptionFeatures) -> None:
    seen: list[Tensor] = []
    handle = extractor.net.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    black_and_white = torch.zeros(2, 1, 1, 1, dtype=torch.uint8)
    black_and_white[1] = 255
    extractor(black_and_white)
    handle.remove()
    assert seen[0].shape == (2, 3, 299, 299)
    assert seen[0][0].unique().tolist() == [-1.0]
    assert seen[0][1].unique().tolist() == [127 / 128]


def test_same_bits_and_no_dependence_on_the_batch(extractor: InceptionFeatures) -> None:
    images = random_images(3)
    first, again = extractor(images), extractor(images)
    assert torch.equal(first.features, again.features)
    scale = first.features.abs().max()
    apart = torch.cat([extractor(part).features for part in images.split([1, 2])])
    torch.testing.assert_close(first.features / scale, apart / scale, rtol=0, atol=1e-5)


def test_grey_is_repeated(extractor: InceptionFeatures) -> None:
    grey = random_images(1, 1)
    assert torch.equal(extractor(grey).features, extractor(grey.repeat(1, 3, 1, 1)).features)


def test_both_layouts_have_one_hash(extractor: InceptionFeatures, file: Path, tmp_path: Path) -> None:
    state = torch.load(file, weights_only=True)
    state["Conv2d_1a_3x3.bn.num_batches_tracked"] = torch.tensor(3)
    torch.save(state, tmp_path / "other.pth")
    assert load_inception(tmp_path / "other.pth", CPU).info.weights == extractor.info.weights
    state["fc.bias"][0] += 1
    torch.save(state, tmp_path / "another.pth")
    assert load_inception(tmp_path / "another.pth", CPU).info.weights != extractor.info.weights


# --- where the file lies ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [PYTORCH_FID.name, TORCH_FIDELITY.name])
def test_published_files_are_found_by_name(
    name: str, file: Path, no_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_weights.mkdir(parents=True)
    place = no_weights / name
    place.write_bytes(file.read_bytes())
    with pytest.raises(ModelFileError, match=r"has SHA-256 \w{8}\.\.\., not 6726825d\.\.\. of the published file"):
        load_inception(None, CPU)
    start = hashlib.sha256(file.read_bytes()).hexdigest()[:8]  # as if these were the published weights
    files = [WeightFile(name=each.name, url=each.url, sha256_start=start) for each in (PYTORCH_FID, TORCH_FIDELITY)]
    monkeypatch.setattr(module, "FILES", files)
    monkeypatch.setattr(module, "_HASH", start)
    assert load_inception(None, CPU).info.title == "Inception-v3 of 2015-12-05"


def test_names_and_addresses_agree() -> None:
    for file in (PYTORCH_FID, TORCH_FIDELITY, STYLEGAN3):
        assert file.url.endswith(f"/{file.name}")
        assert not file.sha256_start or f"-{file.sha256_start}." in file.name


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"none\.pth of the feature network inception are missing") as caught:
        load_extractor(f"inception={tmp_path / 'none.pth'}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"not a file of weights", b"PK\x05\x06" + bytes(18)])
def test_broken_files_are_one_line(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "broken.pth"
    file.write_bytes(content)
    with pytest.raises(ModelFileError, match=r"cannot read the weight file .*broken\.pth") as caught:
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


class NarrowStub(nn.Module):
    def forward(self, img: torch.Tensor, return_features: bool = False, no_output_bias: bool = False) -> torch.Tensor:
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
    assert isinstance(made, ScriptedInceptionFeatures)
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


def test_torchscript_with_open_output_runs_once(tmp_path: Path) -> None:
    made = load_inception(write_script(OpenStub(), tmp_path / "script.pt"), CPU)
    assert isinstance(made, ScriptedInceptionFeatures)
    calls: list[object] = []
    inner = made._chances
    made._chances = lambda images: calls.append(images) or inner(images)  # type: ignore
    made(random_images(2))
    assert not calls


def test_torchscript_is_found_by_name(no_weights: Path) -> None:
    no_weights.mkdir(parents=True)
    write_script(OpenStub(), no_weights / STYLEGAN3.name)
    assert isinstance(load_inception(None, CPU), ScriptedInceptionFeatures)


@pytest.mark.parametrize(
    ("stub", "words"),
    [(OtherStub, r"no TorchScript of StyleGAN3's Inception \(.+\)"), (NarrowStub, r"it gives features \(2, 3\)")],
)
def test_other_torchscripts_are_refused(stub: type[nn.Module], words: str, tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=words) as caught:
        load_inception(write_script(stub(), tmp_path / "other.pt"), CPU)
    assert "\n" not in str(caught.value)


def test_a_broken_torchscript_is_one_line(tmp_path: Path) -> None:
    file = tmp_path / "broken.pt"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("broken/code/__torch__.py", "nonsense")
    with pytest.raises(ModelFileError, match="cannot read the TorchScript") as caught:
        load_inception(file, CPU)
    assert "\n" not in str(caught.value)
