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
from spheregen.evaluation.originality import Originality, find_copies
from spheregen.evaluation.originality.study import LOWEST_THRESHOLD

MOVES = [(down, right) for down in (-1, 0, 1) for right in (-1, 0, 1) if (down, right) != (0, 0)]


def scenes(count: int, *, seed: int, size: int = 32) -> Tensor:
    """Made-up photographs: large soft shapes with texture, (n, 3, S, S) uint8."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.zeros(count, 3, size, size)
    for cells, strength in ((3, 1.0), (8, 0.5), (size, 0.15)):
        drawn = torch.randn(count, 3, cells, cells, generator=generator)
        x += strength * functional.interpolate(drawn, (size, size), mode="bicubic")
    return (128 + 50 * x).round().clamp(0, 255).byte()


def shifted(images: Tensor) -> Tensor:
    """Images (n, C, S, S) uint8, each moved by a pixel; edges are repeated."""
    size = images.shape[-1]
    wide = functional.pad(images.float(), (1, 1, 1, 1), mode="replicate")
    moves = [MOVES[number % len(MOVES)] for number in range(len(images))]
    moved = [one[:, 1 - d : 1 - d + size, 1 - r : 1 - r + size] for one, (d, r) in zip(wide, moves, strict=True)]
    return torch.stack(moved).byte()


def recoloured(images: Tensor) -> Tensor:
    """Colour images of another brightness, contrast and hue."""
    x = images.float() * 0.88
    mean = x.mean((1, 2, 3), keepdim=True)
    mix = torch.tensor([[0.9, 0.1, 0.0], [0.0, 0.9, 0.1], [0.1, 0.0, 0.9]])
    return torch.einsum("ij,njhw->nihw", mix, mean + 1.12 * (x - mean)).round().clamp(0, 255).byte()


def softened(images: Tensor) -> Tensor:
    x = images.float()
    return (0.6 * x + 0.4 * functional.avg_pool2d(x, 3, 1, 1, count_include_pad=False)).byte()


def disguised(images: Tensor) -> Tensor:
    """Six images, each a copy in another way."""
    ways = (images, images.flip(-1), shifted(images), recoloured(images), softened(images))
    parts = [way[place : place + 1] for place, way in enumerate(ways)]
    return torch.cat([*parts, shifted(recoloured(images[5:6].flip(-1)))])


@pytest.fixture(scope="module")
def train() -> Tensor:
    return scenes(160, seed=0)


@pytest.fixture(scope="module")
def held_out() -> Tensor:
    return scenes(100, seed=1)


@pytest.fixture(scope="module")
def found(train: Tensor, held_out: Tensor) -> Originality:
    samples = scenes(100, seed=2)
    samples[10:16] = disguised(train[:6])
    return find_copies(samples, train, held_out)


def test_all_copies_are_found_and_nothing_else(found: Originality) -> None:
    told = found.figures
    json.dumps(told, allow_nan=False)
    assert [(copy["sample"], copy["training_image"]) for copy in told["copies"]] == [(10 + i, i) for i in range(6)]
    assert [copy["mirrored"] for copy in told["copies"]] == [False, True, False, False, False, True]
    assert (told["flagged"], told["share"]) == (6, 0.06) and told["held_out_share"] <= 0.01
    assert any("copies of training images" in warning for warning in found.warnings())
    section = found.section()
    assert len(section.sheets) == 2 and len(section.plots) == 2


def test_new_and_smooth_samples_are_no_copies(train: Tensor, held_out: Tensor) -> None:
    found = find_copies(scenes(100, seed=5), train, held_out)
    assert found.figures["share"] <= 0.01 and not found.warnings()
    smooth = functional.interpolate(scenes(60, seed=6).float(), (4, 4), mode="area")  # near everything in pixels
    smooth = functional.interpolate(smooth, (32, 32), mode="bicubic").round().clamp(0, 255).byte()
    assert find_copies(smooth, train, held_out).figures["share"] <= 0.02


def test_copies_among_the_held_out_images_do_not_hide_those_among_samples(train: Tensor, held_out: Tensor) -> None:
    leaked = held_out.clone()
    leaked[:10] = train[100:110]
    found = find_copies(train[:5], train, leaked)
    assert found.figures["threshold"] == LOWEST_THRESHOLD and found.figures["share"] == 1
    assert found.figures["held_out_share"] == pytest.approx(0.1)
    assert any("splits share images" in warning for warning in found.warnings())


@pytest.mark.parametrize(
    "held_out", [torch.zeros(9, 3, 16, 16), torch.zeros(9, 1, 16, 16).byte(), torch.zeros(3, 3, 16, 16).byte()]
)
def test_impossible_images_are_refused(held_out: Tensor) -> None:
    train = torch.zeros(8, 3, 16, 16, dtype=torch.uint8)
    with pytest.raises(DataError, match=r"uint8 of one size.*4 or more"):
        find_copies(train, train, held_out)


def test_cifar10_copies_are_found_and_held_out_images_pass(shared: Path) -> None:
    """On real photographs, at a fiftieth of the training set."""
    options, folder = ImageOptions(image_size=32), shared / "data" / "cifar10"
    train = load_all(open_source(folder), options, limit=500).images
    unseen = load_all(open_source(folder, split="test"), options, limit=150).images
    samples, held_out = unseen[:100].clone(), unseen[100:]
    for start in range(0, 12, 6):
        samples[8 * start : 8 * start + 6] = disguised(train[start : start + 6])
    planted = [8 * start + place for start in range(0, 12, 6) for place in range(6)]
    found = find_copies(samples, train, held_out)
    copies = {copy["sample"]: copy["training_image"] for copy in found.figures["copies"]}
    strict = [(sample, original) for original, sample in enumerate(planted) if original % 6 != 4]  # softened: most
    assert all(copies.get(sample) == original for sample, original in strict)
    assert found.figures["held_out_share"] <= 0.01 and len(copies) <= len(planted) + 3
