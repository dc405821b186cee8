"""Statistics count what is there, the same for every kind of source."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from spheregen.data import contact_sheet, open_source, source_statistics
from spheregen.errors import ConfigError, DataError
from tests.data.kinds import CLASSES, all_kinds, contents, picture, write_folder


def test_the_same_for_every_kind(tmp_path: Path) -> None:
    for kind, where in all_kinds(tmp_path, contents()).items():
        found = source_statistics(open_source(where))
        assert (found.count, found.examined, found.bad, found.duplicates) == (23, 23, (), 0), kind
        assert (found.class_names, found.class_counts, found.balance) == (CLASSES, (8, 8, 7), 7 / 8)
        assert found.width is not None and found.height is not None
        assert (found.width.smallest, found.width.median, found.height.largest) == (6, 6, 5)
        assert (found.formats, found.modes, found.grey, found.transparent) == ({"PNG": 23}, {"RGB": 23}, 0, 0)
        assert json.loads(json.dumps(found.as_dict()))["count"] == 23
        sheet = contact_sheet(open_source(where), tile=16)
        assert sheet.width > 8 * 18 and sheet.height > 3 * 18  # a named row for each class


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    files = {"a/0.png": picture(0), "a/1.png": picture(0), "a/2.png": picture(1, (40, 30)), "b/3.png": b"no"}
    folder = write_folder(tmp_path / "mixed", files | {"b/4.png": b""})
    Image.new("L", (9, 9), 7).save(folder / "b" / "5.png")
    Image.new("RGB", (9, 9), (5, 5, 5)).save(folder / "b" / "6.bmp")
    Image.new("RGBA", (20, 10), (5, 9, 5, 100)).save(folder / "b" / "7.png")
    Image.new("RGBA", (20, 10), (5, 9, 5, 255)).save(folder / "b" / "8.png")
    return folder


@pytest.mark.parametrize("workers", [0, 1])
def test_what_differs_is_counted(mixed: Path, workers: int) -> None:
    seen: list[tuple[int, int]] = []
    found = source_statistics(open_source(mixed), workers=workers, progress=lambda *done: seen.append(done))
    assert seen[-1] == (9, 9)
    assert [Path(image.where).name for image in found.bad] == ["3.png", "4.png"]
    assert "not an image" in found.bad[0].reason
    assert (found.grey, found.transparent, found.duplicates) == (2, 1, 1)
    assert [[Path(p).name for p in pair] for pair in found.duplicate_pairs] == [["0.png", "1.png"]]
    assert found.modes == {"RGB": 4, "RGBA": 2, "L": 1}
    assert found.formats == {"PNG": 6, "BMP": 1}
    assert found.width is not None
    assert (found.width.smallest, found.width.median, found.width.largest) == (6, 9, 40)
    assert (found.image_size, found.channels) == (5, 3)
    assert contact_sheet(open_source(mixed), bad=found.bad).mode == "RGB"


def test_suggestions(tmp_path: Path) -> None:
    digits = source_statistics(open_source("digits"), limit=50)
    assert (digits.image_size, digits.channels, digits.count, digits.examined) == (8, 1, 1400, 50)
    assert sum(digits.class_counts) == 1400
    files = {f"{i}.png": picture(i, (70 + i, 300)) for i in range(5)}
    found = source_statistics(open_source(write_folder(tmp_path, files)))
    assert (found.image_size, found.class_names, found.balance) == (64, (), None)
    assert contact_sheet(open_source(tmp_path)).size == (3 * 66 + 2, 2 * 66 + 2)


def test_nothing_can_be_read(tmp_path: Path) -> None:
    source = open_source(write_folder(tmp_path, {"a.png": b"x", "b.png": b""}))
    found = source_statistics(source)
    assert (len(found.bad), found.width, found.image_size, found.duplicates) == (2, None, None, 0)
    with pytest.raises(DataError, match="none of the images"):
        contact_sheet(source)
    for bad in ({"limit": 0}, {"workers": -1}):
        with pytest.raises(ConfigError):
            source_statistics(source, **bad)  # type: ignore[arg-type]
