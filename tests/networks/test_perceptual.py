"""The perceptual losses: distances, gradients, order of distortions, and finding and fetching of weight files."""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

from spheregen.networks import weights as weight_files
from spheregen.networks.backbones import convnext
from spheregen.networks.backbones.convnext import ConvNeXt
from spheregen.networks.backbones.vgg16 import STAGE_WIDTHS, Vgg16Features
from spheregen.networks.perceptual import (
    CONVNEXT_SMALL,
    LPIPS_VGG,
    PUBLISHED_FILES,
    VGG16,
    BuiltinPerceptual,
    PerceptualLoss,
    PublishedPerceptual,
    WeightFile,
    available_provider,
    find_weights,
    load_perceptual,
)


def _benchmark() -> ModuleType:
    folder = str(Path(__file__).resolve().parents[2] / "benchmarks")
    sys.path.insert(0, folder)  # where its neighbours are, as for a script
    try:
        return importlib.import_module("perceptual_order")
    finally:
        sys.path.remove(folder)


order = _benchmark()
SMALL = 16  # VGG16 is costly: the smallest side it takes will do


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Such small work is slower on two threads, far slower when other programs keep the cores busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def procedural_images(count: int, size: int = 32) -> torch.Tensor:
    """Pictures of textured discs on a shaded ground, (count, 3, size, size) in [0, 1]: edges, textures, flat areas."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.rand(count, *shape, 1, 1, generator=generator)

    axis = torch.linspace(0, 1, size)
    y, x = axis.view(1, 1, -1, 1), axis.view(1, 1, 1, -1)
    images = draw(3) + (draw(3) - 0.5) * x + (draw(3) - 0.5) * y
    for _ in range(4):
        distance = ((x - draw(1)).square() + (y - draw(1)).square()).sqrt()
        inside = ((0.1 + 0.25 * draw(1) - distance) * size).clamp(0, 1)
        angle, waves = 2 * math.pi * draw(1), 20 + 50 * draw(1)
        texture = 0.15 * torch.sin(waves * (x * angle.cos() + y * angle.sin()))
        images = images + inside * (draw(3) + texture - images)
    return images.clamp(0, 1)


@pytest.fixture(scope="module")
def builtin() -> BuiltinPerceptual:
    return BuiltinPerceptual()


@pytest.fixture(scope="module")
def published() -> PublishedPerceptual:
    """Random weights; the classifier is a tiny one and sees 64 px."""
    torch.manual_seed(0)
    weights = [torch.rand(1, width, 1, 1) for width in STAGE_WIDTHS]
    classifier = ConvNeXt(depths=(1, 1), widths=(8, 8), classes=10)
    nn.init.ones_(classifier.stages[0][0].scale)  # type: ignore[index]
    loss = PublishedPerceptual(Vgg16Features(), weights, classifier)
    loss.logit_size = 64
    return loss


@pytest.fixture(params=["builtin", "published"])
def loss(request: pytest.FixtureRequest) -> PerceptualLoss:
    made: PerceptualLoss = request.getfixturevalue(request.param)
    assert made.name == request.param
    return made


# --- properties of both providers -------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [SMALL, 37])
def test_distance_is_zero_on_equal_images_and_symmetric(loss: PerceptualLoss, size: int) -> None:
    images = procedural_images(6, size)
    a, b = loss.features(images[:3]), loss.features(images[3:])
    assert torch.equal(loss.distance(a, a), torch.zeros(3))
    assert torch.equal(loss.distance(a, b), loss.distance(b, a))
    assert (loss.distance(a, b) > 0).all()


def test_gradient_reaches_the_images_and_not_the_weights(loss: PerceptualLoss) -> None:
    images = procedural_images(4, SMALL)
    moving = images[:2].clone().requires_grad_()
    loss(moving, images[2:]).backward()
    assert moving.grad is not None
    assert torch.isfinite(moving.grad).all()
    assert (moving.grad.flatten(1).norm(dim=1) > 0).all()
    assert all(not p.requires_grad and p.grad is None for p in loss.parameters())
    nn.ModuleList([loss]).train()
    assert not any(module.training for module in loss.modules())


def test_gradient_is_finite_at_equal_and_at_flat_images(loss: PerceptualLoss) -> None:
    images = torch.cat([torch.zeros(1, 3, SMALL, SMALL), torch.ones(1, 3, SMALL, SMALL), procedural_images(1, SMALL)])
    moving = images.clone().requires_grad_()
    loss(moving, images).backward()
    assert moving.grad is not None
    assert torch.isfinite(moving.grad).all()


# --- the published distance -------------------------------------------------------------------------------------


def test_published_distance_equals_its_equations(published: PublishedPerceptual) -> None:
    """LPIPS and the logits' error written out once more, pixel by pixel formulas included."""
    a, b = procedural_images(4, SMALL).split(2)
    shift = torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1)
    scale = torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1)
    mean = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)
    lpips = torch.zeros(2)
    maps = [published.vgg16((2 * x - 1 - shift) / scale) for x in (a, b)]
    for weight, x, y in zip(published.channel_weights, *maps, strict=True):
        units = [m / (m.square().sum(1, keepdim=True) + 1e-10).sqrt() for m in (x, y)]
        lpips += nn.functional.conv2d((units[0] - units[1]) ** 2, weight).mean(dim=(1, 2, 3))
    large = [nn.functional.interpolate(x, size=(64, 64), mode="bilinear", antialias=True) for x in (a, b)]
    logits = [published.convnext((x - mean) / std) for x in large]
    expected = (lpips + 0.1 * (logits[0] - logits[1]).square().mean(1)) / 1.1
    found = published.distance(published.features(a), published.features(b))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


# --- the builtin distance ---------------------------------------------------------------------------------------


def _check_order(builtin: BuiltinPerceptual, images: torch.Tensor) -> None:
    rows = {row.name: row for row in order.measure(builtin, images)}
    for kind, strengths in (
        ("blur {:g} px", order.BLURS),
        ("noise {:g}", order.NOISES),
        ("shift {:g} px", order.SHIFTS),
    ):
        means = [rows[kind.format(strength)].distance for strength in strengths]
        assert means[0] > 0, kind
        assert means == sorted(means), kind
    for sigma in (1.0, 2.0):
        blurred, noisy = rows[f"blur {sigma:g} px"], rows[f"noise of the MSE of blur {sigma:g} px"]
        assert noisy.mse == pytest.approx(blurred.mse, rel=0.05)
        assert noisy.distance < blurred.distance


def test_builtin_distance_has_the_gradients_of_its_formula(builtin: BuiltinPerceptual) -> None:
    x, y = (torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(seed)) for seed in range(2))
    x.requires_grad_()
    y.requires_grad_()
    a, b = builtin.features(x), builtin.features(y)
    weights = [0.276, 0.172, 0.157, 0.165]
    expected = sum(w * (u - v).square().sum(1).mean((1, 2)) for w, u, v in zip(weights, a, b, strict=True))
    ours = builtin.distance(a, b)
    torch.testing.assert_close(ours, expected)
    grads = (torch.autograd.grad(each.sum(), (x, y), retain_graph=True) for each in (ours, expected))
    for by_hand, by_formula in zip(*grads, strict=True):
        torch.testing.assert_close(by_hand, by_formula)


def test_builtin_orders_distortions_of_drawn_images(builtin: BuiltinPerceptual) -> None:
    _check_order(builtin, procedural_images(16))


# --- choice of the provider -------------------------------------------------------------------------------------


def write_published_files(folder: Path) -> None:
    """The three files under their published names and keys, each tensor of one stored number."""
    folder.mkdir(parents=True, exist_ok=True)
    with torch.device("meta"):
        nets: list[tuple[WeightFile, nn.Module, dict[str, str]]] = [
            (VGG16, Vgg16Features(), {name: name for name in Vgg16Features().state_dict()}),
            (CONVNEXT_SMALL, ConvNeXt(), convnext.torchvision_names()),
        ]
    for file, net, names in nets:
        state = {names[name]: torch.full((1,), 0.01).expand(tensor.shape) for name, tensor in net.state_dict().items()}
        torch.save(state, folder / file.name)
    lpips = {f"lin{i}.model.1.weight": torch.rand(1, width, 1, 1) for i, width in enumerate(STAGE_WIDTHS)}
    torch.save(lpips, folder / LPIPS_VGG.name)


def test_auto_without_files_is_builtin_and_never_downloads(no_weights: Path) -> None:
    assert available_provider() == "builtin"
    assert isinstance(load_perceptual(), BuiltinPerceptual)
    assert isinstance(load_perceptual("builtin"), BuiltinPerceptual)


def test_auto_with_files_is_published(no_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "mine"
    write_published_files(folder)
    assert available_provider() == "builtin" and available_provider(folder) == "published"
    monkeypatch.setenv(weight_files.FOLDER_VARIABLE, str(folder))
    assert set(find_weights()) == set(PUBLISHED_FILES)
    assert isinstance(load_perceptual(), PublishedPerceptual)
    (folder / LPIPS_VGG.name).unlink()
    assert available_provider() == "builtin"
