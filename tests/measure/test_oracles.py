"""The metrics equal scipy's, torchmetrics' and prdc's on the same features (importing torchmetrics takes seconds)."""

from __future__ import annotations

import importlib
import warnings
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from spheregen.data import ImageOptions, load_all, open_source
from spheregen.measure.features import load_extractor
from spheregen.measure.fidelity import ssim
from spheregen.measure.metrics import frechet_distance, gaussian, inception_score, kernel_distance, manifold
from tests.measure.test_metrics import Pair, random_features

COUNT = 300


def torchmetrics(module: str) -> ModuleType:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return importlib.import_module(f"torchmetrics.{module}")
        except Exception as error:  # it fails as a whole where an optional package of its own is broken
            pytest.skip(f"torchmetrics cannot be imported: {error}")


class Lookup(nn.Module):
    """Features by number: "images" are (B, 3, 1, 1) uint8 whose first two values are the row of a table."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.num_features = table.shape[1]
        self.table = nn.Parameter(table, requires_grad=False)

    def forward(self, images: Tensor) -> Tensor:
        return self.table[images[:, 0, 0, 0].long() * 256 + images[:, 1, 0, 0].long()]


def numbered(start: int, stop: int) -> Tensor:
    rows = torch.arange(start, stop)
    return torch.stack([rows // 256, rows % 256, rows * 0], dim=1).to(torch.uint8).view(-1, 3, 1, 1)


@pytest.fixture(scope="module", params=["random", "images"])
def pair(request: pytest.FixtureRequest) -> Pair:
    """Features of samples and reference, (300, D) float64: random ones, and of digits by our own extractor."""
    if request.param == "random":
        return random_features(COUNT, 24, 0).double(), random_features(COUNT, 24, 1, 1.1).double()
    loaded = load_all(open_source("digits"), ImageOptions(image_size=8, channels=1), limit=2 * COUNT).images
    images = torch.cat([loaded[:COUNT] // 64 * 64, loaded[COUNT:]]).to(torch.uint8)
    extractor = load_extractor("own")
    features = torch.cat([extractor(part).features[:, -160:].double() for part in images.split(100)])
    return features[:COUNT], features[COUNT:]


@pytest.fixture(scope="module")
def network(pair: Pair) -> Lookup:
    return Lookup(torch.cat(pair))


def test_the_frechet_distance(pair: Pair, network: Lookup) -> None:
    """At most 1e-6 of the two traces together."""
    a, b = (gaussian(features) for features in pair)
    bar = 1e-6 * float(a.covariance.trace() + b.covariance.trace())
    linalg = pytest.importorskip("scipy.linalg")
    root = linalg.sqrtm(a.covariance.numpy() @ b.covariance.numpy()).trace().real
    scipys = float((a.mean - b.mean).square().sum() + a.covariance.trace() + b.covariance.trace()) - 2 * root
    assert abs(frechet_distance(a, b) - scipys) <= bar
    theirs = torchmetrics("image.fid").FrechetInceptionDistance(feature=network)
    theirs.update(numbered(COUNT, 2 * COUNT), real=True)
    theirs.update(numbered(0, COUNT), real=False)
    assert abs(frechet_distance(a, b) - float(theirs.compute())) <= bar


def test_the_kernel_distance(pair: Pair, network: Lookup) -> None:
    """One subset that is everything, since the draws differ."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it keeps all features
        kid = torchmetrics("image.kid").KernelInceptionDistance
        theirs = kid(feature=network, subsets=1, subset_size=COUNT)
    theirs.update(numbered(COUNT, 2 * COUNT), real=True)
    theirs.update(numbered(0, COUNT), real=False)
    found = kernel_distance(*pair, subsets=1, size=COUNT)
    assert found.value == pytest.approx(float(theirs.compute()[0]), rel=1e-6)


def test_the_inception_score(pair: Pair, network: Lookup) -> None:
    """One split, since theirs are shuffled; features are as good as logits."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it keeps all features, and the deviation of one split
        theirs = torchmetrics("image.inception").InceptionScore(feature=network, splits=1)
        theirs.update(numbered(0, COUNT))
        expected = float(theirs.compute()[0])
    assert inception_score(pair[0], splits=1).value == pytest.approx(expected, rel=1e-6)


def test_ssim() -> None:
    """Theirs pads the images; what it has 5 px inside is the part where the window fits."""
    measure = torchmetrics("functional.image").structural_similarity_index_measure
    generator = torch.Generator().manual_seed(0)
    x, y = torch.rand(2, 4, 3, 24, 24, generator=generator, dtype=torch.float64)
    for other in (y, (x + 0.05 * y).clamp(0, 1)):
        _, places = measure(x, other, data_range=1.0, reduction="none", return_full_image=True)
        expected = places[..., 5:-5, 5:-5].flatten(1).mean(1)
        torch.testing.assert_close(ssim(x, other), expected, rtol=1e-6, atol=1e-9)


def test_the_manifold_equals_prdcs(pair: Pair, capsys: pytest.CaptureFixture[str]) -> None:
    prdc = pytest.importorskip("prdc")
    samples, reference = (x.numpy() for x in pair)
    near, wide = (prdc.compute_prdc(reference, samples, k) for k in (3, 5))
    found = manifold(*pair)
    assert found.precision == pytest.approx(near["precision"], abs=1e-9)
    assert found.recall == pytest.approx(near["recall"], abs=1e-9)
    assert found.density == pytest.approx(wide["density"], abs=1e-9)
    assert found.coverage == pytest.approx(wide["coverage"], abs=1e-9)
