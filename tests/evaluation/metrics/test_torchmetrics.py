"""The metrics equal torchmetrics' on the same images and the same feature network (its import takes seconds)."""

from __future__ import annotations

import importlib
import warnings
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from spheregen.data import ImageOptions, load_all, open_source
from spheregen.evaluation.fidelity import ssim
from spheregen.evaluation.metrics import frechet_distance, inception_score, kernel_distance, moments
from spheregen.nn.backbones.feature_net import load_feature_net


def torchmetrics(module: str) -> ModuleType:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return importlib.import_module(f"torchmetrics.{module}")
        except Exception as error:  # it fails as a whole where an optional package of its own is broken
            pytest.skip(f"torchmetrics cannot be imported: {error}")


class RandomNetwork(nn.Module):
    """Features (B, 12) of 8-bit images (B, 3, H, W) by random convolutions, in float64."""

    num_features = 12

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.kernels = nn.Parameter(torch.randn(12, 3, 5, 5, generator=generator, dtype=torch.float64) / 4)

    def forward(self, images: Tensor) -> Tensor:
        maps = nn.functional.conv2d(images.double() / 127.5 - 1, self.kernels, stride=4)
        return maps.tanh().mean(dim=(2, 3)) * 4


class ShippedNetwork(nn.Module):
    """The package's own feature network: its last stage, or its logits."""

    num_features = 160

    def __init__(self, *, logits: bool = False) -> None:
        super().__init__()
        self.net = load_feature_net()
        self.logits = logits

    def forward(self, images: Tensor) -> Tensor:
        images = images.float() / 255
        found = self.net(images) if self.logits else self.net.features(images)[-1].mean(dim=(2, 3))
        return found.double()


def drawn(count: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 4, 4, generator=generator) ** (1 + 0.3 * seed)
    return nn.functional.interpolate(coarse, size=(24, 24), mode="bilinear").mul(255).to(torch.uint8)


@pytest.fixture(params=["drawn", "photographs"])
def images(request: pytest.FixtureRequest) -> tuple[Tensor, Tensor]:
    """Samples and reference, 8 bits."""
    if request.param == "drawn":
        return drawn(300, 0), drawn(300, 1)
    folder: Path = request.getfixturevalue("shared") / "data" / "cifar10"
    if not folder.is_dir():
        pytest.skip(f"needs {folder}, which is absent")
    loaded = load_all(open_source(str(folder), split="test"), ImageOptions(image_size=32), limit=600).images
    return loaded[:300] // 16 * 16, loaded[300:]


def network(images: Tensor) -> nn.Module:
    return (RandomNetwork() if images.shape[-1] == 24 else ShippedNetwork()).requires_grad_(False)


def test_frechet_distance(images: tuple[Tensor, Tensor]) -> None:
    net = network(images[0])
    theirs = torchmetrics("image.fid").FrechetInceptionDistance(feature=net)
    theirs.update(images[1], real=True)
    theirs.update(images[0], real=False)
    a, b = (moments(net(part)).gaussian for part in images)
    bar = 1e-6 * float(a.covariance.trace() + b.covariance.trace())
    assert abs(frechet_distance(a, b) - float(theirs.compute())) <= bar


def test_kernel_distance(images: tuple[Tensor, Tensor]) -> None:
    """One subset that is everything, since the draws differ."""
    net = network(images[0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it keeps all features
        theirs = torchmetrics("image.kid").KernelInceptionDistance(feature=net, subsets=1, subset_size=300)
    theirs.update(images[1], real=True)
    theirs.update(images[0], real=False)
    found = kernel_distance(net(images[0]), net(images[1]), subsets=1, size=300)
    assert found.value == pytest.approx(float(theirs.compute()[0]), rel=1e-6)


def test_inception_score(images: tuple[Tensor, Tensor]) -> None:
    """One split, since theirs are shuffled."""
    shipped = images[0].shape[-1] == 32
    net = ShippedNetwork(logits=True) if shipped else RandomNetwork()
    net.requires_grad_(False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = torchmetrics("image.inception").InceptionScore(feature=net, splits=1)
    theirs.update(images[0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the deviation of one split
        expected = float(theirs.compute()[0])
    assert inception_score(net(images[0]), splits=1).value == pytest.approx(expected, rel=1e-6)


def test_ssim(images: tuple[Tensor, Tensor]) -> None:
    """Theirs pads the images; what it has 5 px inside is the part where the window fits."""
    measure = torchmetrics("functional.image").structural_similarity_index_measure
    x, y = (part[:8].double() / 255 for part in images)
    for other in (y, (x + 0.05 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)):
        _, places = measure(x, other, data_range=1.0, reduction="none", return_full_image=True)
        expected = places[..., 5:-5, 5:-5].flatten(1).mean(1)
        torch.testing.assert_close(ssim(x, other), expected, rtol=1e-6, atol=1e-9)
