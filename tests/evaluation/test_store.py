"""Features on disk: whole chunks or none, whatever happens."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from spheregen.errors import SphereGenError
from spheregen.evaluation.store import DONE, Column, FeatureStore

COLUMNS = {"features": Column(3), "pixels": Column(2, "uint8", 5)}


def store(folder: Path, **plan: int) -> FeatureStore:
    made = FeatureStore(folder, plan or {"a": 1}, count=10, chunk=4, columns=COLUMNS)
    made.create()
    return made


def arrays(chunk: int) -> dict[str, torch.Tensor]:
    count = 2 if chunk == 2 else 4
    return {
        "features": torch.arange(3.0 * count).view(count, 3) + 100 * chunk,
        "pixels": torch.full((count, 2), chunk, dtype=torch.uint8),
    }


def test_a_store_gives_back_what_was_written_in_any_order(tmp_path: Path) -> None:
    made = store(tmp_path)
    assert made.missing() == [0, 1, 2]
    for chunk in (2, 0, 1):
        made.write(chunk, arrays(chunk))
    assert made.missing() == []
    whole = torch.cat([arrays(chunk)["features"] for chunk in range(3)])
    rows = made.rows("features")
    assert rows.shape == (10, 3)
    assert torch.equal(rows[0:10], whole)
    assert torch.equal(rows[3:7], whole[3:7])
    assert rows[4:4].shape == (0, 3)
    pixels = made.rows("pixels")
    assert pixels.shape == (5, 2)
    assert pixels[0:5].dtype == torch.uint8
    assert pixels[0:5].tolist() == [[0, 0]] * 4 + [[1, 1]]


def test_chunks_of_zeros_are_told_from_chunks_that_are_not_there(tmp_path: Path) -> None:
    made = store(tmp_path)
    made.write(0, {"features": torch.zeros(4, 3), "pixels": torch.zeros(4, 2, dtype=torch.uint8)})
    assert store(tmp_path).missing() == [1, 2]


def test_a_chunk_whose_bytes_are_not_those_that_were_written_is_missing(tmp_path: Path) -> None:
    made = store(tmp_path)
    for chunk in range(3):
        made.write(chunk, arrays(chunk))
    path = made.rows("features").path
    data = bytearray(path.read_bytes())
    data[3 * 4 * 5] ^= 1
    path.write_bytes(data)
    assert store(tmp_path).missing() == [1]


def test_a_shortened_file_loses_only_what_it_held(tmp_path: Path) -> None:
    made = store(tmp_path)
    for chunk in range(3):
        made.write(chunk, arrays(chunk))
    path = made.rows("features").path
    path.write_bytes(path.read_bytes()[:-5])
    assert store(tmp_path).missing() == [2]
    (made.folder / DONE).write_bytes(b"")
    assert store(tmp_path).missing() == [0, 1, 2]


def test_every_plan_has_a_store_of_its_own(tmp_path: Path) -> None:
    one, other = store(tmp_path, a=1), store(tmp_path, a=2)
    one.write(0, arrays(0))
    assert other.missing() == [0, 1, 2]
    assert one.folder != other.folder


def test_a_folder_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SphereGenError, match="cannot write features"):
        store(tmp_path / "file")
