"""A folder of pictures and a cache of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from spheregen.data import ImageSource, open_source
from tests.data.kinds import contents, write_folder
from tests.data.latent_cache.toys import Pixels, encode


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """23 pictures in three classes."""
    return write_folder(tmp_path / "pictures", contents())


@pytest.fixture
def source(pictures: Path) -> ImageSource:
    return open_source(pictures)


@pytest.fixture
def encoded(source: ImageSource, tmp_path: Path) -> Path:
    """All of them as pixels in both views, in four shards."""
    encode(Pixels(), source, tmp_path / "cache")
    return tmp_path / "cache"
