"""A look at the pictures: what it sees, and what is said against a data set."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from spheregen.data import open_source, source_statistics
from spheregen.data.statistics import Look, data_warnings, look_at
from spheregen.errors import ConfigError, DataError


def photo(number: int, size: tuple[int, int] = (40, 36)) -> Image.Image:
    """A smooth field of colours."""
    pixels = np.random.default_rng(number).integers(30, 225, (5, 5, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)


def glyph(number: int) -> Image.Image:
    """White strokes on black, 28 px."""
    pixels = np.zeros((28, 28), dtype=np.uint8)
    pixels[4 + number % 8 : 10 + number % 8, 5:22] = 255
    return Image.fromarray(pixels)


def logo(number: int, tone: int = 60) -> Image.Image:
    """A shape of one colour on transparency, 48 px."""
    pixels = np.zeros((48, 48, 4), dtype=np.uint8)
    pixels[12:36, 10 + number % 8 : 30] = (tone, tone, tone + number % 5, 255)
    return Image.fromarray(pixels)


def on_grey(number: int) -> Image.Image:
    """A wide picture whose edges are grey."""
    picture = Image.new("RGB", (150, 40), (120, 130, 140))
    picture.paste(photo(number, (130, 20)), (10, 10))
    return picture


def look(folder: Path, make: Callable[[int], Image.Image], count: int = 3, **options: Any) -> Look:
    for number in range(count):
        make(number).save(folder / f"{number}.png", **options)
    return look_at(open_source(str(folder)))


def test_shape_and_border_whatever_the_orientation(tmp_path: Path) -> None:
    upright = Image.Exif()
    upright[0x0112] = 6  # stored lying, shown standing
    seen = look(tmp_path, on_grey, exif=upright)
    assert seen.lost == pytest.approx(1 - 40 / 150)
    assert seen.torn == 1 and seen.padded and seen.one_border == 1
    found = seen.background(0)
    assert found and found[0] == seen.border == (120, 130, 140)
    assert seen.saturated_on((0, 0, 0)) > 0.7 and seen.saturated_on((9, 9, 9)) == 0


def test_bad_pictures_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"junk")
    with pytest.raises(DataError, match="none of the images"):
        look_at(open_source(str(tmp_path)))
    assert look(tmp_path, photo).saturated == 0
    assert not look_at(open_source("digits"), 5).flips_allowed
    with pytest.raises(ConfigError, match="limit is 0"):
        look_at(open_source("digits"), 0)


def test_warnings(tmp_path: Path) -> None:
    for number in range(8):
        photo(number // 2).save(tmp_path / f"{number}.png")
    (tmp_path / "broken.png").write_bytes(b"junk")
    found = source_statistics(open_source(str(tmp_path)))
    words = ["broken.png", "9 pictures are few", "4 of 9 files are exact copies"]
    assert_warned(words, data_warnings(found))

    found = dataclasses.replace(found, bad=(), duplicates=0, count=5000)
    assert not list(data_warnings(found))
    unbalanced = dataclasses.replace(found, class_names=("cats", "dogs"), class_counts=(4998, 2))
    assert_warned(["alike or be copies: dogs (2)", "unbalanced (2 to 4998 pictures)"], data_warnings(unbalanced))
    names = dataclasses.replace(found, class_names=("a",) * 3000, class_counts=(2,) * 2000 + (1,) * 1000)
    assert_warned(["labels are not used"], data_warnings(names))


def assert_warned(words: list[str], warnings: Any) -> None:
    for word, warning in zip(words, warnings, strict=True):
        assert word in warning and "\n" not in warning
