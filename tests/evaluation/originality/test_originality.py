"""Copies are found however they were disguised, and new images are not taken for copies."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from spheregen.data import ImageOptions, load_all, open_source
from spheregen.errors import DataError
from spheregen.evaluation.features import load_extractor
from spheregen.evaluation.originality import Originality, find_copies
from spheregen.evaluation.originality.match import aligned, score, working_images
from spheregen.evaluation.originality.study import LOWEST_THRESHOLD, _threshold
from tests.evaluation.originality.copies import recoloured, shifted


def scenes(count: int, *, seed: int, size: int = 32) -> Tensor:
    """Made-up photographs: large soft shapes with texture, (n, 3, S, S) uint8."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.zeros(count, 3, size, size)
    for cells, strength in ((3, 1.0), (8, 0.5), (size, 0.15)):
        drawn = torch.randn(count, 3, cells, cells, generator=generator)
        x += strength * functional.interpolate(drawn, (size, size), mode="bicubic")
    return (128 + 50 * x).round().clamp(0, 255).byte()


@pytest.fixture(scope="module")
def train() -> Tensor:
    return scenes(600, seed=0)


@pytest.fixture(scope="module")
def held_out() -> Tensor:
    return scenes(200, seed=1)


def disguises(images: Tensor) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return {
        "exact": images,
        "flipped": images.flip(-1),
        "shifted": shifted(images, "replicate"),
        "wrapped": shifted(images, "wrap"),
        "mirrored at the edge": shifted(images, "reflect"),
        "recoloured": recoloured(images, generator),
        "all at once": shifted(recoloured(images.flip(-1), generator), "replicate"),
    }


@pytest.fixture(scope="module")
def found(train: Tensor, held_out: Tensor) -> Originality:
    samples = scenes(200, seed=2)
    planted = torch.cat([part[place : place + 1] for place, part in enumerate(disguises(train[:7]).values())])
    samples[10:17] = planted
    return find_copies(samples, train, held_out)


def test_all_copies_are_found_and_nothing_else(found: Originality) -> None:
    assert found.flagged.nonzero().flatten().tolist() == list(range(10, 17))
    assert found.samples.index[10:17].tolist() == list(range(7))
    assert found.samples.mirrored[10:17].tolist() == [False, True, False, False, False, False, True]
    assert found.held_out_share <= 0.01
    assert found.share == 7 / 200
    assert any("copies of training images" in warning for warning in found.warnings())


def test_the_findings_are_told(found: Originality) -> None:
    told = found.as_dict()
    json.dumps(told, allow_nan=False)
    assert told["flagged"] == 7
    assert [(copy["sample"], copy["training_image"]) for copy in told["copies"]] == [(10 + i, i) for i in range(7)]
    section = found.section()
    assert section.key == "originality" and len(section.pictures) == 2 and section.plots
    counts = {row[0]: row[1:] for row in section.tables[0].rows}
    assert counts["flagged as copies"] == (7, int((found.held_out.score >= found.threshold).sum()))


def test_new_samples_raise_no_warning(train: Tensor, held_out: Tensor) -> None:
    found = find_copies(scenes(200, seed=5), train, held_out)
    assert found.share <= 0.01
    assert not found.warnings()


def test_smooth_samples_are_no_copies(train: Tensor, held_out: Tensor) -> None:
    """Skies and blur are near everything in pixels."""
    smooth = functional.interpolate(scenes(100, seed=6).float(), (4, 4), mode="area")
    smooth = functional.interpolate(smooth, (32, 32), mode="bicubic").round().clamp(0, 255).byte()
    assert find_copies(smooth, train, held_out).share <= 0.02


def test_features_give_candidates_and_distances(train: Tensor, held_out: Tensor) -> None:
    found = find_copies(train[:20], train, held_out[:50], extractor=load_extractor("own"))
    assert found.features == "own"
    assert found.samples.feature_distance is not None and found.held_out.feature_distance is not None
    assert found.samples.feature_distance.max() < 1e-3 < found.held_out.feature_distance.min()
    assert found.samples.pixel_distance.max() == 0
    assert found.share == 1


def test_copies_among_the_held_out_images_do_not_hide_those_among_samples(train: Tensor, held_out: Tensor) -> None:
    leaked = held_out.clone()
    leaked[:20] = train[100:120]
    found = find_copies(train[:5], train, leaked)
    assert found.threshold == find_copies(train[:5], train, held_out).threshold == LOWEST_THRESHOLD
    assert found.share == 1
    assert found.held_out_share == pytest.approx(0.1, abs=0.005)
    assert any("splits share images" in warning for warning in found.warnings())


def test_the_threshold_rises_where_everything_is_alike() -> None:
    assert _threshold(torch.full((100,), 0.1)) == LOWEST_THRESHOLD
    alike = torch.sigmoid(1.5 + 0.6 * torch.randn(20_000, generator=torch.Generator().manual_seed(0)))
    share = float((alike >= _threshold(alike)).double().mean())
    assert share == pytest.approx(0.005, abs=0.002)


def test_grey_and_large_images(train: Tensor) -> None:
    grey = scenes(60, seed=7, size=96)[:, :1]
    found = find_copies(
        torch.cat([grey[:3], scenes(5, seed=8, size=96)[:, :1]]), grey, scenes(20, seed=9, size=96)[:, :1]
    )
    assert found.flagged.tolist() == [True] * 3 + [False] * 5
    assert working_images(grey).shape == (60, 1, 64, 64)


def test_the_score_ignores_linear_colour_maps_and_knows_strangers(train: Tensor, held_out: Tensor) -> None:
    dark = (0.5 * train.float() + 30).round().byte()
    share, shift = aligned(dark[:50], train[:50])
    assert share.min() > 0.98
    assert score(dark[:50], train[:50], shift).min() > 0.98
    _, shift = aligned(held_out[:50], train[:50])
    assert score(held_out[:50], train[:50], shift).max() < 0.5


@pytest.mark.parametrize(
    ("samples", "held_out", "said"),
    [
        (torch.zeros(3, 3, 16, 16), torch.zeros(9, 3, 16, 16, dtype=torch.uint8), "samples are float32"),
        (torch.zeros(3, 1, 16, 16, dtype=torch.uint8), torch.zeros(9, 3, 16, 16, dtype=torch.uint8), "one size"),
        (torch.zeros(3, 3, 16, 16, dtype=torch.uint8), torch.zeros(3, 3, 16, 16, dtype=torch.uint8), "4 or more"),
    ],
)
def test_impossible_images_are_one_line(samples: Tensor, held_out: Tensor, said: str) -> None:
    with pytest.raises(DataError, match=said):
        find_copies(samples, torch.zeros(8, 3, 16, 16, dtype=torch.uint8), held_out)


def test_cifar10_copies_are_found_and_held_out_images_pass(shared: Path) -> None:
    """The issue's bar on real photographs, at a tenth of the training set."""
    options = ImageOptions(image_size=32)
    folder = shared / "data" / "cifar10"
    train = load_all(open_source(folder), options, limit=5000).images
    unseen = load_all(open_source(folder, split="test"), options, limit=700).images
    samples, held_out = unseen[:350].clone(), unseen[350:]
    kinds = list(disguises(train[:28]).values())
    for place in range(28):
        samples[10 * place] = kinds[place % 7][place]
    found = find_copies(samples, train, held_out)
    assert found.flagged[: 10 * 28 : 10].all()
    assert found.samples.index[: 10 * 28 : 10].tolist() == list(range(28))
    assert found.held_out_share <= 0.01
    assert int(found.flagged.sum()) - 28 <= 3
