"""Parquet in the layouts that people have."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from spheregen.data import ImageOptions, load_all, open_source
from spheregen.data.names import LABEL_NAMES
from spheregen.errors import DataError
from tests.data.kinds import labels_of

OPTIONS = ImageOptions(image_size=4, channels=1)
SHARED = Path(__file__).parents[3] / "shared" / "data"


def png(value: int) -> bytes:
    file = io.BytesIO()
    Image.new("L", (4, 4), value).save(file, "PNG")
    return file.getvalue()


def write(
    path: Path,
    images: list[Any],
    labels: Any = None,
    *,
    struct: bool = True,
    names: list[str] | None = None,
    image: str = "image",
    label: str = "label",
    rows: int = 3,
) -> Path:
    """A parquet file with row groups of `rows` rows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if struct:
        kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        column = pa.array([None if data is None else {"bytes": data, "path": "x.png"} for data in images], type=kind)
    else:
        column = pa.array(images, type=pa.binary())
    columns = {image: column}
    if labels is not None:
        columns[label] = pa.array(labels) if isinstance(labels, list) else labels
    table = pa.table(columns)
    if names is not None:
        features = {"image": {"_type": "Image"}, label: {"names": names, "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path, row_group_size=rows)
    return path


@pytest.mark.parametrize("struct", [True, False])
def test_both_layouts(tmp_path: Path, struct: bool) -> None:
    path = write(tmp_path / "a.parquet", [png(i) for i in range(8)], [1, 0] * 4, struct=struct, names=["no", "yes"])
    source = open_source(path)
    loaded = load_all(source, OPTIONS)
    assert loaded.images[:, 0, 0, 0].tolist() == list(range(8))
    assert loaded.labels is not None and loaded.labels.tolist() == [1, 0] * 4
    assert (source.class_names, source.describe(5)) == (("no", "yes"), f"{path} row 5")


def test_splits_are_told_by_names_and_agree_about_classes(tmp_path: Path) -> None:
    write(tmp_path / "train-00000-of-00002.parquet", [png(0), png(1)], ["bee", "dog"])
    write(tmp_path / "train-00001-of-00002.parquet", [png(2)], ["ant"], struct=False)
    test_file = write(tmp_path / "validation-00000-of-00001.parquet", [png(3), png(4)], ["dog", "cat"])
    train, held_out = open_source(tmp_path), open_source(tmp_path, split="val")
    assert train.class_names == held_out.class_names == ("ant", "bee", "cat", "dog")
    assert (labels_of(train), labels_of(held_out)) == ([1, 3, 0], [3, 2])
    assert load_all(train, OPTIONS).images[:, 0, 0, 0].tolist() == [0, 1, 2]
    assert train.describe(2).endswith("train-00001-of-00002.parquet row 0")
    assert len(open_source(tmp_path, split="all")) == 5
    assert train.fingerprint != held_out.fingerprint
    assert open_source(test_file).split == "validation"  # naming it is choosing it
    with pytest.raises(DataError, match="choose one of train, validation, all"):
        open_source(tmp_path, split="test")


@pytest.mark.parametrize("column", LABEL_NAMES)
def test_labels_of_any_kind(tmp_path: Path, column: str) -> None:
    cases: list[tuple[Any, list[str] | None, tuple[str, ...], list[int]]] = [
        ([7, 10, 7], None, ("7", "10"), [0, 1, 0]),
        (["b", "b", "a"], ["a", "b", "c"], ("a", "b", "c"), [1, 1, 0]),
        (pa.array(["b", "a", "c"]).dictionary_encode(), None, ("a", "b", "c"), [1, 0, 2]),
        (pa.array([0, 1, 1], pa.uint8()), None, ("0", "1"), [0, 1, 1]),
    ]
    for labels, names, classes, expected in cases:
        source = open_source(write(tmp_path / "x.parquet", [png(0)] * 3, labels, names=names, label=column))
        assert (source.class_names, labels_of(source)) == (classes, expected)


def test_without_labels_and_in_a_data_folder(tmp_path: Path) -> None:
    write(tmp_path / "data" / "train.parquet", [png(1)], image="img")
    source = open_source(tmp_path)
    assert (source.labels, source.class_names) == (None, ())
    assert load_all(source, OPTIONS).images.float().mean() == 1
    for column, values in (("target", [png(1), png(2)]), ("labels", [[1], [2, 3]]), ("class", [0.5, 1.5])):
        assert open_source(write(tmp_path / "x.parquet", [png(0)] * 2, values, label=column)).labels is None


def test_bad_labels(tmp_path: Path) -> None:
    cases: list[tuple[list[Any], list[str] | None, str]] = [
        ([0, 2, 1], ["a", "b"], r"x\.parquet row 1"), ([0, -1, 1], ["a", "b"], "row 1"),
        ([0, 1, None], ["a", "b"], "row 2"), (["a", "c", "a"], ["a", "b"], "row 1"), ([0.5, 1.5, 1.0], None, "double"),
    ]  # fmt: skip
    for labels, names, words in cases:
        with pytest.raises(DataError, match=words):
            open_source(write(tmp_path / "x.parquet", [png(0)] * 3, labels, names=names))


def test_bad_rows_are_named(tmp_path: Path) -> None:
    source = open_source(write(tmp_path / "x.parquet", [png(0), None, png(2), b"junk", png(4), png(5)[:40], b""]))
    with pytest.raises(DataError, match=r"x\.parquet row 1: the image is empty .*4 of 7"):
        load_all(source, OPTIONS)
    assert load_all(source, OPTIONS, on_error="skip").images[:, 0, 0, 0].tolist() == [0, 2, 4]


def test_broken_files(tmp_path: Path) -> None:
    path = write(tmp_path / "x.parquet", [bytes(np.random.default_rng(i).bytes(4000)) for i in range(6)])
    whole = path.read_bytes()
    path.write_bytes(whole[:-200])
    with pytest.raises(DataError, match=r"x\.parquet: not a readable parquet") as caught:
        open_source(path)
    assert "\n" not in str(caught.value)
    path.write_bytes(b"")
    with pytest.raises(DataError, match=r"x\.parquet: not a readable parquet"):
        open_source(tmp_path)
    path.write_bytes(b"PAR1" + bytes(9000) + whole[9004:])  # a sound footer, pages overwritten
    with pytest.raises(DataError, match=r"x\.parquet"):
        load_all(open_source(path), OPTIONS)
    for table, word in (
        ({"picture": [1], "label": [0]}, "it has picture"), ({"image": ["a.png"]}, "string"),
        ({"image": pa.array([], pa.binary())}, "0 rows"),
    ):  # fmt: skip
        pq.write_table(pa.table(table), path)
        with pytest.raises(DataError, match=word):
            open_source(path)


def test_files_that_disagree(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", [png(0)], [0], names=["x"])
    write(tmp_path / "b.parquet", [png(0)], [0], names=["y"])
    with pytest.raises(DataError, match="make them agree"):
        open_source(tmp_path)
    write(tmp_path / "b.parquet", [png(0)])
    with pytest.raises(DataError, match="same label column"):
        open_source(tmp_path)


def test_empty_row_groups_and_little_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    schema = pa.schema([("image", pa.binary())])
    values = iter(range(10))
    with pq.ParquetWriter(tmp_path / "a.parquet", schema) as writer:
        for size in (0, 2, 0, 3, 1, 0):
            writer.write_table(pa.table({"image": pa.array([png(next(values)) for _ in range(size)], pa.binary())}))
    write(tmp_path / "b.parquet", [png(6), png(7)], struct=False, rows=1)
    for limit in ("FITS_IN_MEMORY", "_HELD_BYTES"):
        monkeypatch.setattr(f"spheregen.data.source.{limit}", 1)  # each row group pushes the one before out
    source = open_source(tmp_path)
    order = [7, 0, 3, 5, 6, 2, 1, 4, 7, 7]
    assert [source.read(i).getpixel((0, 0)) for i in order] == order
