"""Every kind of source gives the same pictures, labels and batches; archives that are wrong say so."""

from __future__ import annotations

import io
import json
import pickle
import tarfile
import time
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import torch
from PIL import Image

from spheregen.data import ImageOptions, TrainingBatches, load_all, open_source
from spheregen.data.names import PackedStrings, member_name
from spheregen.data.patterns import expand_braces
from spheregen.data.remote import cache_folder
from spheregen.errors import DataError
from tests.data.kinds import (
    CLASSES,
    all_kinds,
    contents,
    in_memory,
    parquet_bytes,
    picture,
    tar_bytes,
    write_folder,
    zip_bytes,
)

OPTIONS = ImageOptions(image_size=5)
KINDS = (
    "folder", "zip", "tar", "parquet", "shards", "pattern",
    "remote zip", "remote tar", "remote parquet", "remote pattern", "remote folder",
)  # fmt: skip


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return all_kinds(tmp_path_factory.mktemp("kinds"), contents())


def tar_file(path: Path, files: Mapping[str, bytes], **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(tar_bytes(files, **options))
    return path


def labels_of(source: Any) -> list[int]:
    assert source.labels is not None
    return list(source.labels.tolist())


# --- all alike


@pytest.mark.parametrize("kind", KINDS)
def test_pixels_labels_and_order_are_those_of_the_folder(kinds: dict[str, str], kind: str) -> None:
    expected, source = open_source(kinds["folder"]), open_source(kinds[kind])
    assert source.class_names == expected.class_names == CLASSES
    a, b = load_all(expected, OPTIONS), load_all(source, OPTIONS)
    assert torch.equal(a.images, b.images)
    assert labels_of(source) == labels_of(expected)
    files = contents()
    for i, (name, data) in enumerate(files.items()):
        assert source.read_bytes(i) == data
        if "parquet" not in kind:
            assert source.describe(i).endswith(name)
    first, second = (list(TrainingBatches(s, OPTIONS, batch_size=7, steps=5, flips=True)) for s in (expected, source))
    assert all(torch.equal(x.inputs, y.inputs) for x, y in zip(first, second, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_a_source_survives_a_copy_and_a_release(kinds: dict[str, str], kind: str) -> None:
    source = open_source(kinds[kind])
    data = source.read_bytes(20)
    assert pickle.loads(pickle.dumps(source)).read_bytes(20) == data
    source.release()
    assert source.read_bytes(20) == data
    with pytest.raises(IndexError):
        source.read_bytes(23)


def test_fingerprints_do_not_depend_on_the_place(kinds: dict[str, str]) -> None:
    prints = {kind: open_source(kinds[kind]).fingerprint for kind in KINDS}
    assert prints["remote tar"] == prints["tar"]
    assert prints["remote zip"] == prints["zip"]
    assert prints["remote parquet"] == prints["parquet"]
    assert prints["shards"] == prints["pattern"]
    assert prints["remote pattern"] == prints["remote folder"]
    assert len(set(prints.values())) == 6


@pytest.mark.parametrize("kind", ["tar", "parquet", "remote tar", "remote parquet"])
def test_blocks_cover_the_samples_in_order(kinds: dict[str, str], kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spheregen.data.tars._BLOCK_BYTES", 4096)
    source = open_source(kinds[kind])
    blocks = source.blocks()
    assert blocks is not None
    assert blocks.starts[0] == 0
    assert len(blocks.starts) > 2
    assert [data for k in range(len(blocks.starts)) for data in source.read_block(k)] == list(contents().values())
    assert int(blocks.sizes.sum()) == source.encoded_bytes


def test_slow_is_a_property_of_the_data(kinds: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert not any(open_source(kinds[kind]).random_access_is_slow for kind in KINDS)
    monkeypatch.setattr("spheregen.data.sources.FITS_IN_MEMORY", 100)
    slow = {kind for kind in KINDS if open_source(kinds[kind]).random_access_is_slow}
    assert slow == {"parquet", "remote tar", "remote parquet", "remote pattern", "remote folder"}


# --- names


def test_packed_strings() -> None:
    names = ["", "a/b.png", "é☃", "\udcff.png"]
    packed = PackedStrings.of(names)
    assert [packed[i] for i in range(len(packed))] == names
    with pytest.raises(IndexError):
        _ = packed[4]
    with pytest.raises(IndexError):
        _ = packed[-1]
    assert len(PackedStrings.of([])) == 0


def test_member_names_only_label() -> None:
    assert member_name("/../a/./b.png") == "a/b.png"
    assert member_name("c\\d.png") == "c/d.png"
    assert member_name("__MACOSX/a.png") is None
    assert member_name("a/._b.png") is None
    assert member_name("../") is None


def test_braces() -> None:
    assert expand_braces("a-{08..11}.tar") == ["a-08.tar", "a-09.tar", "a-10.tar", "a-11.tar"]
    assert expand_braces("{a,b}-{0..1}") == ["a-0", "a-1", "b-0", "b-1"]
    assert expand_braces("plain") == ["plain"]
    for wrong in ("a{", "a}", "{3..1}", "{0..9999999}", "{0..999}{0..999}{0..9}"):
        with pytest.raises(DataError):
            expand_braces(wrong)


def test_patterns(tmp_path: Path) -> None:
    for i in range(3):
        tar_file(tmp_path / f"x-{i}.tar", {f"{i}.png": picture(i)})
    assert len(open_source(tmp_path / "x-*.tar")) == 3
    assert len(open_source(f"{tmp_path}/x-{{1..2}}.tar")) == 2
    with pytest.raises(DataError, match=r"x-3\.tar does not exist"):
        open_source(f"{tmp_path}/x-{{1..3}}.tar")
    with pytest.raises(DataError, match="no file matches"):
        open_source(tmp_path / "y*.tar")


# --- zips


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_zip_with_splits_and_a_common_folder(tmp_path: Path, method: int) -> None:
    names = ("flowers/train/rose/1.png", "flowers/test/lily/2.png", "flowers/train/lily/3.png")
    files = {name: picture(i) for i, name in enumerate(names)}
    junk = {"__MACOSX/flowers/._1.png": b"x", "flowers/readme.txt": b"y", "flowers/.hidden/4.png": b"z"}
    (tmp_path / "a.zip").write_bytes(zip_bytes(files | junk, method))
    train, test = open_source(tmp_path / "a.zip"), open_source(tmp_path / "a.zip", split="test")
    assert (train.class_names, labels_of(train)) == (("lily", "rose"), [0, 1])
    assert labels_of(test) == [0]
    assert test.read_bytes(0) == picture(1)
    assert test.describe(0).endswith("a.zip flowers/test/lily/2.png")


def test_zips_that_are_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.zip"
    whole = zip_bytes(contents(6))
    path.write_bytes(whole[:-60])
    with pytest.raises(DataError, match=r"a\.zip: not a readable zip"):
        open_source(path)
    path.write_bytes(b"")
    with pytest.raises(DataError, match="not a readable zip"):
        open_source(path)
    path.write_bytes(zip_bytes({"notes.txt": b"x"}))
    with pytest.raises(DataError, match="no images"):
        open_source(path)
    damaged = bytearray(whole)
    place = whole.index(picture(0)[8:20]) if picture(0)[8:20] in whole else 60
    damaged[place : place + 8] = b"\xff" * 8
    path.write_bytes(bytes(damaged))
    loaded = load_all(open_source(path), OPTIONS, on_error="skip")
    assert len(loaded) == 5
    assert "corrupt in the zip" in loaded.skipped[0]
    damaged = bytearray(whole)
    for header, flags in ((b"PK\x01\x02", 8), (b"PK\x03\x04", 6)):
        damaged[whole.index(header) + flags] |= 1
    path.write_bytes(bytes(damaged))
    with pytest.raises(DataError, match="encrypted"):
        open_source(path)
    path.write_bytes(zip_bytes({"a.png": bytes(10_000)}))
    monkeypatch.setattr("spheregen.data.zips._LARGEST", 9_999)
    with pytest.raises(DataError, match="more than the limit"):
        open_source(path).read_bytes(0)
    path.write_bytes(zip_bytes(contents(3), zipfile.ZIP_LZMA))
    with pytest.raises(DataError, match="method 14"):
        open_source(path).read_bytes(0)


def test_a_zip_that_unpacks_to_more_than_it_says(tmp_path: Path) -> None:
    data = bytearray(zip_bytes({"a.png": bytes(1_000_000)}))
    place = data.index(b"PK\x01\x02") + 24
    data[place : place + 4] = (50).to_bytes(4, "little")
    (tmp_path / "a.zip").write_bytes(bytes(data))
    with pytest.raises(DataError, match="length or checksum"):
        open_source(tmp_path / "a.zip").read_bytes(0)


# --- shards


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_tar_dialects_and_long_names(tmp_path: Path, format: int) -> None:
    long = f"{'d' * 60}/{'e' * 60}/{'f' * 60}.png"
    names = [long, "b/" + "g" * 90 + ".png", "c/\u00fc.png"]
    source = open_source(tar_file(tmp_path / "a.tar", {n: picture(i) for i, n in enumerate(names)}, format=format))
    assert [source.describe(i).split(" ", 1)[1] for i in range(3)] == names
    assert [source.read_bytes(i) for i in range(3)] == [picture(i) for i in range(3)]
    assert source.class_names == tuple(sorted(name.split("/")[0] for name in names))


def test_webdataset_labels(tmp_path: Path) -> None:
    integers = {"0.jpg": picture(0), "0.cls": b"2\n", "1.cls": b"0", "1.txt": b"a caption", "1.png": picture(1)}
    source = open_source(tar_file(tmp_path / "a.tar", integers))
    assert (labels_of(source), source.class_names) == ([2, 0], ("0", "1", "2"))
    (tmp_path / "classes.txt").write_text("cow\nowl\npig\nrat\n")
    assert open_source(tmp_path / "a.tar").class_names == ("cow", "owl", "pig", "rat")
    (tmp_path / "classes.txt").write_text("cow\n")
    with pytest.raises(DataError, match=r"a\.tar: the label '2' of 0\.jpg is not one of the 1 classes"):
        open_source(tmp_path / "a.tar")
    words = {
        "x/0.png": picture(0), "x/0.json": json.dumps({"label": "owl"}).encode(),
        "x/1.mask.png": picture(9), "x/1.png": picture(1), "x/1.json": json.dumps({"class": "cow"}).encode(),
    }  # fmt: skip
    source = open_source(tar_file(tmp_path / "b" / "b.tar", words))
    assert (labels_of(source), source.class_names) == ([1, 0], ("cow", "owl"))
    assert source.read_bytes(1) == picture(1)
    info = {"features": {"label": {"names": ["owl", "cow"]}}}
    (tmp_path / "b" / "dataset_info.json").write_text(json.dumps(info))
    assert labels_of(open_source(tmp_path / "b")) == [0, 1]


def test_shards_of_splits_agree_about_classes(tmp_path: Path) -> None:
    tar_file(tmp_path / "train-0.tar", {"0.png": picture(0), "0.cls": b"ant", "1.png": picture(1), "1.cls": b"bee"})
    tar_file(tmp_path / "test-0.tar", {"2.png": picture(2), "2.cls": b"bee"})
    train, test, both = (open_source(tmp_path, split=split) for split in ("train", "test", "all"))
    assert train.class_names == test.class_names == ("ant", "bee")
    assert (labels_of(train), labels_of(test), len(both)) == ([0, 1], [1], 3)
    with pytest.raises(DataError, match="no split 'val'"):
        open_source(tmp_path, split="val")
    assert len(open_source(tmp_path / "test-0.tar")) == 1  # naming it is choosing it


def test_splits_inside_a_tar_and_flat_tars(tmp_path: Path) -> None:
    files = {"train/a/0.png": picture(0), "train/b/1.png": picture(1), "test/b/2.png": picture(2)}
    path = tar_file(tmp_path / "a.tar", files)
    assert labels_of(open_source(path)) == [0, 1]
    assert labels_of(open_source(path, split="test")) == [1]
    flat = open_source(tar_file(tmp_path / "b.tar", {"img.1.png": picture(0), "img.2.png": picture(1)}))
    assert len(flat) == 2  # a dot in a name does not hide pictures
    assert flat.labels is None


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"0.png": b"x", "0.jpg": b"x", "0.cls": b"1"}, r"a\.tar: the sample 0\.png has 2 images"),
        ({"0.png": b"x", "0.cls": b"1", "1.png": b"x"}, r"a\.tar: the sample 1\.png has no label"),
        ({"0.png": b"x", "0.cls": b"1", "1.png": b"x", "1.cls": b"owl"}, "1.png has a name for its label"),
        ({"0.png": b"x", "0.cls": b"-1"}, "neither an integer from 0 up nor a name"),
        ({"0.png": b"x", "0.json": b"{"}, r"0\.json: not readable as a label"),
        ({"0.png": b"x", "0.json": b'{"label": 1.5}'}, "neither an integer"),
        ({"0.txt": b"x"}, "no images"),
    ],
)
def test_bad_samples(tmp_path: Path, files: dict[str, bytes], words: str) -> None:
    with pytest.raises(DataError, match=words) as caught:
        open_source(tar_file(tmp_path / "a.tar", files))
    assert "\n" not in str(caught.value)


def test_damaged_tars(tmp_path: Path) -> None:
    whole = tar_bytes(contents(4))
    path = tmp_path / "a.tar"
    cuts = (700, len(picture(0)) // 2 + 512, whole.index(b"\0" * 2000), 512 + -(-len(picture(0)) // 512) * 512)
    for cut in cuts:
        path.write_bytes(whole[:cut])
        with pytest.raises(DataError, match=r"a\.tar: truncated"):
            open_source(path)
    path.write_bytes(b"")
    with pytest.raises(DataError, match="truncated"):
        open_source(path)
    path.write_bytes(b"hello" * 500)
    with pytest.raises(DataError, match="not a tar file"):
        open_source(path)
    path.write_bytes(whole[:3] + b"?" + whole[4:])
    with pytest.raises(DataError, match="damaged"):
        open_source(path)
    (tmp_path / "b.tar.gz").write_bytes(b"x")
    with pytest.raises(DataError, match="compressed"):
        open_source(tmp_path / "b.tar.gz")
    path.write_bytes(whole)
    source = open_source(path)
    path.write_bytes(whole[:600])
    with pytest.raises(DataError, match="shorter than it was"):
        source.read_bytes(3)


def test_bad_pictures_in_a_shard_are_skipped(tmp_path: Path) -> None:
    files = {"0.png": picture(0), "1.png": b"junk", "2.png": picture(2)[:50], "3.png": b"", "4.png": picture(4)}
    source = open_source(tar_file(tmp_path / "a.tar", files))
    loaded = load_all(source, OPTIONS, on_error="skip")
    assert loaded.indices.tolist() == [0, 4]
    assert all(f"a.tar {n}.png:" in line for n, line in zip((1, 2, 3), loaded.skipped, strict=True))


def test_indexing_is_fast(tmp_path: Path) -> None:
    """200 000 members take seconds, so 10 000 take a fraction of one."""
    path = tmp_path / "a.tar"
    with path.open("wb") as file:
        for i in range(10_000):
            info = tarfile.TarInfo(f"{i % 10}/{i:08d}.jpg")
            info.size = 100
            file.write(info.tobuf(tarfile.USTAR_FORMAT) + bytes(512))
        file.write(bytes(1024))
    begun = time.process_time()
    assert len(open_source(path)) == 10_000
    assert time.process_time() - begun < 1.5


# --- remote


def test_remote_splits_missing_files_and_protocols() -> None:
    files = contents(6)
    url = in_memory({"train-0.parquet": parquet_bytes(files), "test-0.parquet": parquet_bytes(files), "x.txt": b""})
    assert len(open_source(url)) == 6
    assert len(open_source(f"{url}/*.parquet", split="all")) == 12
    assert open_source(f"{url}/test-0.parquet").split == "test"
    for wrong, words in (
        (f"{url}/gone.tar", "does not exist"),
        (f"{url}/*.zip", "no file matches"),
        (f"{url}/x.txt", "nothing to read"),
        ("nonsense://a/b.tar", "nonsense"),
    ):
        with pytest.raises(DataError, match=words) as caught:
            open_source(wrong)
        assert "\n" not in str(caught.value)
    assert len(open_source(in_memory({"a.tar": tar_bytes(files), "b.tar": tar_bytes(files)}))) == 12


def test_urls_of_files_on_this_machine(kinds: dict[str, str]) -> None:
    expected = open_source(kinds["tar"])
    assert open_source(Path(kinds["tar"]).as_uri()).fingerprint == expected.fingerprint
    assert not open_source(Path(kinds["tar"]).as_uri()).remote
    assert open_source(f"local://{kinds['tar']}").remote
    url = f"{in_memory({'a.tar': tar_bytes(contents(3))})}/a.tar"
    assert len(open_source(Path(url))) == 3  # a Path has one slash less


def test_a_missing_protocol_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(url: str) -> Any:
        raise ImportError('Install "aiohttp" to use HTTP')

    monkeypatch.setattr("fsspec.core.url_to_fs", fail)
    with pytest.raises(DataError, match="aiohttp"):
        open_source("https://example.org/a.tar")


class _Weather:
    """Makes a memory file system fail, and counts its requests."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, storms: int) -> None:
        self.storms, self.requests = storms, 0
        kind = type(fsspec.filesystem("memory"))
        original = kind.cat_file

        def cat_file(system: Any, *arguments: Any, **options: Any) -> Any:
            self.requests += 1
            if self.storms:
                self.storms -= 1
                raise ConnectionResetError("no carrier")
            return original(system, *arguments, **options)

        monkeypatch.setattr(kind, "cat_file", cat_file)


def test_requests_are_tried_three_times(monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_source(f"{in_memory({'a.tar': tar_bytes(contents(6))})}/a.tar")
    weather = _Weather(monkeypatch, storms=2)
    assert source.read_bytes(3) == list(contents(6).values())[3]
    source.release()
    weather.storms = 3
    with pytest.raises(DataError, match=r"a\.tar: cannot be read over the network, 3 tries failed .*no carrier"):
        source.read_bytes(3)


def test_the_index_of_a_remote_shard_is_kept(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    url = in_memory({"a.tar": tar_bytes(contents(6))})
    weather = _Weather(monkeypatch, storms=0)
    first = open_source(f"{url}/a.tar")
    assert weather.requests
    before = weather.requests
    second = open_source(f"{url}/a.tar")
    assert weather.requests == before
    assert second.fingerprint == first.fingerprint
    assert second.describe(4) == first.describe(4)
    kept = list((cache / "shards").iterdir())
    assert cache_folder() == cache
    assert len(kept) == 1
    kept[0].write_bytes(b"damaged")
    assert open_source(f"{url}/a.tar").fingerprint == first.fingerprint
    assert weather.requests > before


def test_remote_blocks_are_read_in_one_request(monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_source(f"{in_memory({'a.tar': tar_bytes(contents(20))})}/a.tar")
    weather = _Weather(monkeypatch, storms=0)
    assert [source.read_bytes(i) for i in range(20)] == list(contents(20).values())
    assert weather.requests == 1


def test_mixed_and_unknown_files(tmp_path: Path) -> None:
    write_folder(tmp_path, {"a.tar": tar_bytes(contents(3)), "b.zip": zip_bytes(contents(3)), "c.dat": b"x"})
    with pytest.raises(DataError, match="several kinds"):
        open_source(tmp_path / "*.[tz]*")
    with pytest.raises(DataError, match="unknown kind"):
        open_source(tmp_path / "c.dat")


def test_flat_zip_is_unlabelled(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(zip_bytes({"b.png": picture(1), "a.png": picture(0)}))
    source = open_source(tmp_path / "a.zip")
    assert (source.labels, source.class_names) == (None, ())
    assert np.array_equal(np.asarray(source.read(1)), np.asarray(Image.open(io.BytesIO(picture(1)))))
