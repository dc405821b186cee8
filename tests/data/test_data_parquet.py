"""Parquet in the layouts that people have."""

from __future__ import annotations

import io
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from spheregen.data import ImageOptions, TrainingBatches, load_all, open_source
from spheregen.errors import DataError

OPTIONS = ImageOptions(image_size=4, channels=1)
SHARED = Path(__file__).parents[3] / "shared" / "data"


def png(value: int) -> bytes:
    file = io.BytesIO()
    Image.new("L", (4, 4), value).save(file, "PNG")
    return file.getvalue()


def write(
    path: Path,
    images: list[Any],
    labels: list[Any] | None = None,
    *,
    struct: bool = True,
    names: list[str] | None = None,
    image: str = "image",
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
        columns["label"] = pa.array(labels)
    table = pa.table(columns)
    if names is not None:
        features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path, row_group_size=rows)
    return path


@pytest.mark.parametrize("struct", [True, False])
def test_both_layouts(tmp_path: Path, struct: bool) -> None:
    path = write(tmp_path / "a.parquet", [png(i) for i in range(8)], [1, 0] * 4, struct=struct, names=["no", "yes"])
    source = open_source(path)
    assert len(source) == 8
    assert source.class_names == ("no", "yes")
    loaded = load_all(source, OPTIONS)
    assert loaded.images[:, 0, 0, 0].tolist() == list(range(8))
    assert loaded.labels is not None
    assert loaded.labels.dtype == torch.int64
    assert loaded.labels.tolist() == [1, 0] * 4
    assert source.describe(5) == f"{path} row 5"
    with pytest.raises(IndexError):
        source.read(8)


def test_string_labels_are_numbered_in_sorted_order_over_all_splits(tmp_path: Path) -> None:
    write(tmp_path / "train-00000-of-00002.parquet", [png(0), png(1)], ["bee", "dog"])
    write(tmp_path / "train-00001-of-00002.parquet", [png(2)], ["ant"], struct=False)
    write(tmp_path / "test-00000-of-00001.parquet", [png(3), png(4)], ["dog", "cat"])
    train, test = open_source(tmp_path), open_source(tmp_path, split="test")
    assert train.class_names == test.class_names == ("ant", "bee", "cat", "dog")
    assert train.labels is not None
    assert train.labels.tolist() == [1, 3, 0]
    assert test.labels is not None
    assert test.labels.tolist() == [3, 2]
    assert load_all(train, OPTIONS).images[:, 0, 0, 0].tolist() == [0, 1, 2]
    assert train.describe(2).endswith("train-00001-of-00002.parquet row 0")
    assert len(open_source(tmp_path, split="all")) == 5
    assert train.fingerprint != test.fingerprint


def test_integer_labels_without_names(tmp_path: Path) -> None:
    source = open_source(write(tmp_path / "x.parquet", [png(0)] * 3, [7, 10, 7]))
    assert source.class_names == ("7", "10")
    assert source.labels is not None
    assert source.labels.tolist() == [0, 1, 0]


def test_string_labels_with_names(tmp_path: Path) -> None:
    source = open_source(write(tmp_path / "x.parquet", [png(0)] * 2, ["b", "b"], names=["a", "b"]))
    assert source.class_names == ("a", "b")
    assert source.labels is not None
    assert source.labels.tolist() == [1, 1]


def test_without_labels_and_in_a_data_folder(tmp_path: Path) -> None:
    write(tmp_path / "data" / "train.parquet", [png(1)], image="img")
    source = open_source(tmp_path)
    assert (source.labels, source.class_names) == (None, ())
    assert load_all(source, OPTIONS).images.float().mean() == 1


def test_splits_of_files(tmp_path: Path) -> None:
    write(tmp_path / "train-00000-of-00001.parquet", [png(1)])
    write(tmp_path / "validation-00000-of-00001.parquet", [png(2)])
    assert open_source(tmp_path, split="val").split == "validation"
    with pytest.raises(DataError, match="choose one of train, validation, all"):
        open_source(tmp_path, split="test")
    assert open_source(tmp_path / "validation-00000-of-00001.parquet").split == "validation"  # naming it is choosing it
    plain = write(tmp_path / "sub" / "cats.parquet", [png(1)])
    with pytest.raises(DataError, match="not divided into splits"):
        open_source(plain, split="test")


def test_fingerprint_follows_the_labels(tmp_path: Path) -> None:
    prints = {
        open_source(write(tmp_path / "x.parquet", [png(0)] * 2, labels, names=["a", "b"])).fingerprint
        for labels in ([0, 1], [1, 0], [0, 1], [1, 1])
    }
    assert len(prints) == 3


@pytest.mark.parametrize(
    ("labels", "names", "words"),
    [
        ([0, 2, 1], ["a", "b"], r"x\.parquet row 1: the label 2"),
        ([0, -1, 1], ["a", "b"], "row 1: the label -1"),
        ([0, 1, None], ["a", "b"], "row 2: the label is null"),
        (["a", "c", "a"], ["a", "b"], "row 1: the label 'c'"),
        ([0.5, 1.5, 1.0], None, "double"),
    ],
)
def test_bad_labels(tmp_path: Path, labels: list[Any], names: list[str] | None, words: str) -> None:
    with pytest.raises(DataError, match=words):
        open_source(write(tmp_path / "x.parquet", [png(0)] * 3, labels, names=names))


def test_bad_rows_are_named_or_skipped(tmp_path: Path) -> None:
    images = [png(0), None, png(2), b"junk", png(4), png(5)[:40], b""]
    for struct in (True, False):
        source = open_source(write(tmp_path / "x.parquet", images, struct=struct))
        with pytest.raises(DataError, match=r"x\.parquet row 1: the image is empty .*4 of 7"):
            load_all(source, OPTIONS)
        loaded = load_all(source, OPTIONS, on_error="skip")
        assert loaded.images[:, 0, 0, 0].tolist() == [0, 2, 4]
        assert len(loaded.skipped) == 4


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
    pq.write_table(pa.table({"picture": [1], "label": [0]}), path)
    with pytest.raises(DataError, match="no image column; it has picture, label"):
        open_source(path)
    pq.write_table(pa.table({"image": ["a.png"]}), path)
    with pytest.raises(DataError, match="is string"):
        open_source(path)
    write(path, [])
    with pytest.raises(DataError, match="0 rows"):
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
        monkeypatch.setattr(f"spheregen.data.sources.{limit}", 1)  # each row group pushes the one before out
    source = open_source(tmp_path)
    order = [7, 0, 3, 5, 6, 2, 1, 4, 7, 7]
    assert [source.read(i).getpixel((0, 0)) for i in order] == order


def test_a_source_can_be_sent_to_another_process(tmp_path: Path) -> None:
    source = open_source(write(tmp_path / "x.parquet", [png(i) for i in range(5)]))
    source.read(4)
    assert pickle.loads(pickle.dumps(source)).read(3).getpixel((0, 0)) == 3
    source.release()
    assert source.read(2).getpixel((0, 0)) == 2


@pytest.mark.skipif(not (SHARED / "cifar10").is_dir(), reason="../shared/data/cifar10 is not on this machine")
def test_cifar10() -> None:
    train, test = open_source(SHARED / "cifar10"), open_source(SHARED / "cifar10", split="test")
    assert (len(train), len(test)) == (50_000, 10_000)
    assert train.class_names == test.class_names
    assert (train.class_names[0], train.class_names[9]) == ("airplane", "truck")
    assert test.labels is not None
    assert test.labels.bincount().tolist() == [1000] * 10
    loaded = load_all(test, ImageOptions(image_size=32), limit=300)
    assert loaded.images.shape == (300, 3, 32, 32)
    assert 100 < loaded.images.float().mean() < 140


@pytest.mark.skipif(not (SHARED / "flowers12").is_dir(), reason="../shared/data/flowers12 is not on this machine")
def test_flowers() -> None:
    source = open_source(SHARED / "flowers12", split="test")
    assert len(source.class_names) == 12
    batches = TrainingBatches(source, ImageOptions(image_size=32), batch_size=4, steps=2, cache_bytes=0)
    assert [batch.inputs.shape for batch in batches] == [(4, 3, 32, 32)] * 2
