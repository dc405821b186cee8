"""Pairs of feature sets that the metrics are held against their oracles on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from spheregen.data import ImageOptions, load_all, open_source
from spheregen.nn.backbones.feature_net import load_feature_net

Pair = tuple[Tensor, Tensor]
KINDS = ("random", "few", "shifted", "photographs")


def random_features(count: int, dim: int, seed: int, scale: float = 1.0) -> Tensor:
    """Features (count, dim) float32 with a decaying spectrum in directions that depend on `dim` alone."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(dim, dim, generator=torch.Generator().manual_seed(dim)) * torch.logspace(0, -3, dim)
    return scale * torch.randn(count, dim, generator=generator) @ directions.T + 0.3


class Stored:
    """Rows that can only be sliced, as those of a file; it notes the largest slice that was asked for."""

    def __init__(self, rows: Tensor) -> None:
        self._rows = rows
        self.shape = tuple(rows.shape)
        self.largest = 0

    def __getitem__(self, part: slice) -> Tensor:
        assert isinstance(part, slice) and part.step is None
        assert 0 <= part.start < part.stop <= len(self._rows)
        self.largest = max(self.largest, part.stop - part.start)
        return self._rows[part]


@pytest.fixture(scope="session")
def photographs(shared: Path) -> Pair:
    """Features of 500 photographs, brightened and blurred, and of 600 others as they are; (N, 160)."""
    folder = shared / "data" / "cifar10"
    if not folder.is_dir():
        pytest.skip(f"needs {folder}, which is absent")
    source = open_source(str(folder), split="test")
    images = load_all(source, ImageOptions(image_size=32), limit=1100).images / 255
    images[:500] = torch.nn.functional.avg_pool2d(images[:500], 3, 1, 1, count_include_pad=False).mul(1.1).clamp(0, 1)
    net = load_feature_net()
    with torch.inference_mode():
        features = torch.cat([net.features(batch)[-1].mean(dim=(2, 3)) for batch in images.split(100)]).clone()
    return features[:500], features[500:]


@pytest.fixture(params=KINDS)
def pair(request: pytest.FixtureRequest) -> Pair:
    """Samples and reference (N, D), (N', D), float32."""
    if request.param == "photographs":
        found: Pair = request.getfixturevalue("photographs")
        return found
    if request.param == "few":  # fewer images than features
        return random_features(60, 96, 0), random_features(50, 96, 1, 1.2)
    shift = 300 if request.param == "shifted" else 0
    return random_features(400, 24, 2) + shift, random_features(300, 24, 3, 1.1) + shift


@pytest.fixture
def rotation() -> Tensor:
    """An orthogonal matrix (24, 24) float64."""
    square = torch.randn(24, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    found: Tensor = torch.linalg.qr(square).Q
    return found
