"""LPIPS equals its equations and comes from the published files alone; SSIM equals others' in `test_oracles`."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from spheregen.errors import ConfigError, ModelFileError
from spheregen.measure.fidelity import Lpips, find_lpips, psnr, ssim
from spheregen.networks.backbones.vgg16 import STAGE_WIDTHS, Vgg16Features
from spheregen.networks.perceptual import LPIPS_VGG, VGG16


def random_images(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def test_other_images_are_refused(lpips: Lpips) -> None:
    for measure, least in ((ssim, 11), (lpips, 16)):
        with pytest.raises(ConfigError, match=f"{least} px"):
            measure(torch.zeros(1, 3, least - 1, 32), torch.zeros(1, 3, least - 1, 32))
        with pytest.raises(ConfigError, match="one shape"):
            measure(torch.zeros(1, 3, 16, 16), torch.zeros(2, 3, 16, 16))
    with pytest.raises(ConfigError, match="colour or grey"):
        lpips(torch.zeros(1, 2, 16, 16), torch.zeros(1, 2, 16, 16))


def test_psnr_is_at_most_100_and_10_per_factor_of_ten() -> None:
    x = random_images(1, 3, 8, 8) * 0.5
    assert float(psnr(x, x)) == 100
    assert float(psnr(x + 0.1, x) - psnr(x + 0.1 * math.sqrt(10), x)) == pytest.approx(10, abs=1e-4)


@pytest.fixture(scope="module")
def lpips() -> Lpips:
    torch.manual_seed(0)
    return Lpips(Vgg16Features(), [torch.rand(1, width, 1, 1) for width in STAGE_WIDTHS])


def test_lpips_equals_its_equations(lpips: Lpips) -> None:
    x, y = random_images(2, 3, 20, 24), random_images(2, 3, 20, 24, seed=1)
    shift = torch.tensor([-0.030, -0.088, -0.188]).view(3, 1, 1)
    scale = torch.tensor([0.458, 0.448, 0.450]).view(3, 1, 1)
    expected = torch.zeros(2, dtype=torch.float64)
    with torch.no_grad():
        maps = [lpips.vgg16((2 * z - 1 - shift) / scale) for z in (x, y)]
    for weight, a, b in zip(lpips.channel_weights, *maps, strict=True):
        a, b = (z.double() / (z.double().square().sum(1, keepdim=True) + 1e-10).sqrt() for z in (a, b))
        expected += (weight * (a - b) ** 2).sum(1).mean((1, 2))
    found = lpips(x, y)
    assert found.shape == (2,) and found.dtype == torch.float64
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-8)
    assert lpips(x, x).tolist() == [0, 0] and not found.requires_grad


def test_lpips_is_found_or_not_and_never_fetched(lpips: Lpips, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SPHEREGEN_WEIGHTS", raising=False)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("no download")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    assert find_lpips() is None
    assert find_lpips(tmp_path) is None
    torch.save(lpips.vgg16.state_dict(), tmp_path / VGG16.name)
    assert find_lpips(tmp_path) is None
    weights = {f"lin{stage}.model.1.weight": weight.data for stage, weight in enumerate(lpips.channel_weights)}
    torch.save(weights, tmp_path / LPIPS_VGG.name)
    found = find_lpips(tmp_path)
    assert found is not None
    x, y = random_images(1, 3, 16, 16), random_images(1, 3, 16, 16, seed=1)
    assert torch.equal(found(x, y), lpips(x, y))
    torch.save({"lin0.model.1.weight": weights["lin0.model.1.weight"]}, tmp_path / LPIPS_VGG.name)
    with pytest.raises(ModelFileError, match="does not hold LPIPS's weights"):
        find_lpips(tmp_path)
