"""Zip files, shards and remote files: what is read of them, and what is said of those that are wrong."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import fsspec
import pytest

from spheregen.data import ImageOptions, load_all, open_source
from spheregen.errors import DataError
from tests.data.kinds import contents, in_memory, labels_of, parquet_bytes, picture, tar_bytes, write_folder, zip_bytes

OPTIONS = ImageOptions(image_size=5)


def tar_file(path: Path, files: Mapping[str, bytes], **options: Any) -> Path:
    return write_folder(path.parent, {path.name: tar_bytes(files, **options)}) / path.name


def refused(source: object, word: str) -> None:
    with pytest.raises(DataError, match=word) as caught:
        open_source(str(source))
    assert "\n" not in str(caught.value)


# --- zips


def test_zip_with_splits_and_a_common_folder(tmp_path: Path) -> None:
    names = ("flowers/train/rose/1.png", "flowers/valid/lily/2.png", "flowers/train/lily/3.png")
    files = {name: picture(i) for i, name in enumerate(names)}
    junk = {"__MACOSX/flowers/._1.png": b"x", "flowers/readme.txt": b"y", "flowers/.hidden/4.png": b"z"}
    (tmp_path / "a.zip").write_bytes(zip_bytes(files | junk, zipfile.ZIP_STORED))
    train, held_out = open_source(tmp_path / "a.zip"), open_source(tmp_path / "a.zip", split="val")
    assert (train.class_names, labels_of(train)) == (("lily", "rose"), [0, 1])
    assert labels_of(held_out) == [0]
    assert held_out.read_bytes(0) == picture(1)
    assert held_out.describe(0).endswith("a.zip flowers/valid/lily/2.png")
    # member names only label
    (tmp_path / "a.zip").write_bytes(zip_bytes({"../b/./1.png": picture(1), "/a/0.png": picture(0)}))
    source = open_source(tmp_path / "a.zip")
    assert (source.class_names, [source.read_bytes(i) for i in range(2)]) == (("a", "b"), [picture(0), picture(1)])


def test_zips_that_are_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.zip"
    whole = zip_bytes(contents(6))
    for data in (whole[:-60], b""):
        path.write_bytes(data)
        refused(path, r"a\.zip: not a readable zip")
    path.write_bytes(zip_bytes({"notes.txt": b"x"}))
    refused(path, "no images")
    damaged = bytearray(whole)
    damaged[60:68] = b"\xff" * 8
    path.write_bytes(bytes(damaged))
    loaded = load_all(open_source(path), OPTIONS, on_error="skip")
    assert len(loaded) == 5
    assert "corrupt in the zip" in loaded.skipped[0]
    damaged = bytearray(whole)
    for header, flags in ((b"PK\x01\x02", 8), (b"PK\x03\x04", 6)):
        damaged[whole.index(header) + flags] |= 1
    path.write_bytes(bytes(damaged))
    refused(path, "encrypted")
    path.write_bytes(zip_bytes(contents(3), zipfile.ZIP_LZMA))
    with pytest.raises(DataError, match="method 14"):
        open_source(path).read_bytes(0)
    damaged = bytearray(zip_bytes({"a.png": bytes(1_000_000)}))
    place = damaged.index(b"PK\x01\x02") + 24
    damaged[place : place + 4] = (50).to_bytes(4, "little")  # it unpacks to more than it says
    path.write_bytes(bytes(damaged))
    with pytest.raises(DataError, match="corrupt"):
        open_source(path).read_bytes(0)
    path.write_bytes(zip_bytes({"a.png": bytes(10_000)}))
    monkeypatch.setattr("spheregen.data.archives._LARGEST", 9_999)
    with pytest.raises(DataError, match="limit"):
        open_source(path).read_bytes(0)


# --- shards


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_tar_dialects_and_long_names(tmp_path: Path, format: int) -> None:
    long = f"{'d' * 60}/{'e' * 60}/{'f' * 60}.png"
    names = [long, "b/" + "g" * 90 + ".png", "c/\u00fc.png"]
    source = open_source(tar_file(tmp_path / "a.tar", {n: picture(i) for i, n in enumerate(names)}, format=format))
    assert [source.describe(i).split(" ", 1)[1] for i in range(3)] == names
    assert [source.read_bytes(i) for i in range(3)] == [picture(i) for i in range(3)]
    assert source.class_names == tuple(sorted(name.split("/")[0] for name in names))


def test_links_in_a_tar_are_images(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name, kind, target in (
            ("a/0.png", tarfile.REGTYPE, ""), ("b/1.png", tarfile.LNKTYPE, "a/0.png"),
            ("b/2.png", tarfile.SYMTYPE, "../a/0.png"), ("b/3.png", tarfile.SYMTYPE, "gone.png"),
        ):  # fmt: skip
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            info.size = len(picture(0)) if kind == tarfile.REGTYPE else 0
            archive.addfile(info, io.BytesIO(picture(0)))
    source = open_source(tmp_path / "a.tar")
    assert labels_of(source) == [0, 1, 1, 1]
    assert [source.read_bytes(i) for i in range(3)] == [picture(0)] * 3
    with pytest.raises(DataError, match=r"3\.png"):
        source.read(3)


def test_webdataset_labels(tmp_path: Path) -> None:
    integers = {"0.jpg": picture(0), "0.cls": b"2\n", "1.cls": b"0", "1.txt": b"a caption", "1.png": picture(1)}
    source = open_source(tar_file(tmp_path / "a.tar", integers))
    assert (labels_of(source), source.class_names) == ([2, 0], ("0", "1", "2"))
    (tmp_path / "classes.txt").write_text("cow\nowl\npig\nrat\n")
    assert open_source(tmp_path / "a.tar").class_names == ("cow", "owl", "pig", "rat")
    (tmp_path / "classes.txt").write_text("cow\n")
    refused(tmp_path / "a.tar", r"0\.jpg has the label '2'")
    apart = {"0.png": picture(0), "1.png": picture(1), "0.cls": b"1", "1.cls": b"0"}  # labels behind the images
    assert labels_of(open_source(tar_file(tmp_path / "c" / "c.tar", apart))) == [1, 0]
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
    with pytest.raises(DataError, match="'val'"):
        open_source(tmp_path, split="val")
    assert len(open_source(tmp_path / "test-0.tar")) == 1  # naming it is choosing it


def test_splits_inside_a_tar_and_flat_tars(tmp_path: Path) -> None:
    files = {"train/a/0.png": picture(0), "train/b/1.png": picture(1), "test/b/2.png": picture(2)}
    path = tar_file(tmp_path / "a.tar", files)
    assert labels_of(open_source(path)) == [0, 1]
    assert labels_of(open_source(path, split="test")) == [1]
    flat = open_source(tar_file(tmp_path / "b.tar", {"img.1.png": picture(0), "img.2.png": picture(1)}))
    assert len(flat) == 2  # a dot in a name does not hide images
    assert flat.labels is None


def test_bad_samples(tmp_path: Path) -> None:
    for files, word in (
        ({"0.png": b"x", "0.jpg": b"x", "0.cls": b"1"}, r"a\.tar: the sample 0\.png"),
        ({"0.png": b"x", "0.cls": b"1", "1.png": b"x"}, r"a\.tar: 1\.png has no label"),
        ({"0.png": b"x", "0.cls": b"1", "1.png": b"x", "1.cls": b"owl"}, r"a\.tar: 1\.png"),
        ({"0.png": b"x", "0.cls": b"-1"}, r"0\.cls"), ({"0.png": b"x", "0.json": b"{"}, r"0\.json"),
        ({"0.png": b"x", "0.json": b'{"label": 1.5}'}, r"0\.json"), ({"0.txt": b"x"}, "no images"),
    ):  # fmt: skip
        refused(tar_file(tmp_path / "a.tar", files), word)


def test_damaged_tars(tmp_path: Path) -> None:
    whole = tar_bytes(contents(4))
    path = tmp_path / "a.tar"
    cuts = (0, 700, len(picture(0)) // 2 + 512, whole.index(b"\0" * 2000), 512 + -(-len(picture(0)) // 512) * 512)
    for data in (*(whole[:cut] for cut in cuts), b"hello" * 500, whole[:3] + b"?" + whole[4:]):
        path.write_bytes(data)
        refused(path, r"a\.tar: no tar file, truncated or damaged")
    (tmp_path / "b.tar.gz").write_bytes(b"x")
    refused(tmp_path / "b.tar.gz", "compressed")
    path.write_bytes(whole)
    source = open_source(path)
    path.write_bytes(whole[:600])
    with pytest.raises(DataError, match="shorter than it was"):
        source.read_bytes(3)


def test_bad_images_in_a_shard_are_skipped(tmp_path: Path) -> None:
    files = {"0.png": picture(0), "1.png": b"junk", "2.png": picture(2)[:50], "3.png": b"", "4.png": picture(4)}
    loaded = load_all(open_source(tar_file(tmp_path / "a.tar", files)), OPTIONS, on_error="skip")
    assert loaded.indices.tolist() == [0, 4]
    assert all(f"a.tar {n}.png:" in line for n, line in zip((1, 2, 3), loaded.skipped, strict=True))


# --- several files, patterns, remote files


def test_patterns(tmp_path: Path) -> None:
    for i in range(3):
        tar_file(tmp_path / f"x-{i:02d}.tar", {f"{i}.png": picture(i)})
    (tmp_path / "c.dat").write_bytes(b"x")
    (tmp_path / "b.zip").write_bytes(zip_bytes(contents(3)))
    assert len(open_source(tmp_path / "x-*.tar")) == 3
    assert len(open_source(f"{tmp_path}/x-{{01..02}}.tar")) == 2
    assert len(open_source(f"{tmp_path}/x-0{{0,2}}.tar")) == 2
    for wrong, word in (
        ("x-{01..03}.tar", r"x-03\.tar does not exist"), ("y*.tar", "no file matches"), ("x-{03..01}.tar", "range"),
        ("x-{00..01.tar", "brace"), ("x-{0..999}{0..999}{0..9}.tar", "1000000"), ("x-{0..9999999}.tar", "range"),
        ("*.[tz]*", "several kinds"), ("c.dat", "unknown kind"),
    ):  # fmt: skip
        refused(tmp_path / wrong, word)


def test_remote_splits_missing_files_and_protocols(monkeypatch: pytest.MonkeyPatch) -> None:
    files = contents(6)
    url = in_memory({"train-0.parquet": parquet_bytes(files), "test-0.parquet": parquet_bytes(files), "x.txt": b""})
    assert len(open_source(url)) == 6
    assert len(open_source(f"{url}/*.parquet", split="all")) == 12
    assert open_source(f"{url}/test-0.parquet").split == "test"
    for wrong, word in (
        (f"{url}/gone.tar", "does not exist"), (f"{url}/gone.parquet", "does not exist"), (f"{url}/*.zip", "no file"),
        (f"{url}/x.txt", "nothing to read"), ("nonsense://a/b.tar", "nonsense"),
    ):  # fmt: skip
        refused(wrong, word)
    assert len(open_source(in_memory({"a.tar": tar_bytes(files), "b.tar": tar_bytes(files)}))) == 12

    def fail(url: str) -> Any:
        raise ImportError('Install "aiohttp" to use HTTP')

    monkeypatch.setattr("fsspec.core.url_to_fs", fail)
    refused("https://example.org/a.tar", "aiohttp")


def test_urls_of_files_on_this_machine(tmp_path: Path) -> None:
    path = tar_file(tmp_path / "a.tar", contents(3))
    for url in (path.as_uri(), f"local://{path}"):
        source = open_source(url)
        assert source.fingerprint == open_source(path).fingerprint
        assert not source.remote
    assert len(open_source(Path(f"{in_memory({'a.tar': tar_bytes(contents(3))})}/a.tar"))) == 3  # one slash less


class _Weather:
    """Makes a memory file system fail, and counts its requests."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.storms, self.requests = 0, 0
        kind = type(fsspec.filesystem("memory"))

        def stormy(name: str) -> None:
            original = getattr(kind, name)

            def request(system: Any, *arguments: Any, **options: Any) -> Any:
                self.requests += 1
                if self.storms:
                    self.storms -= 1
                    raise ConnectionResetError("no carrier")
                return original(system, *arguments, **options)

            monkeypatch.setattr(kind, name, request)

        for name in ("cat_file", "open"):
            stormy(name)


def test_requests_are_tried_three_times(monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_source(f"{in_memory({'a.tar': tar_bytes(contents(6))})}/a.tar")
    weather = _Weather(monkeypatch)
    weather.storms = 2
    assert source.read_bytes(3) == list(contents(6).values())[3]
    source.release()
    weather.storms = 3
    with pytest.raises(DataError, match=r"a\.tar: .*no carrier"):
        source.read_bytes(3)


def test_the_index_of_a_remote_shard_is_kept(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    url = f"{in_memory({'a.tar': tar_bytes(contents(20))})}/a.tar"
    weather = _Weather(monkeypatch)
    first = open_source(url)
    before = weather.requests
    second = open_source(url)
    assert 0 < before == weather.requests
    assert (second.fingerprint, second.describe(4)) == (first.fingerprint, first.describe(4))
    assert [second.read_bytes(i) for i in range(20)] == list(contents(20).values())
    assert weather.requests == before + 1  # a block is one request
    for kept in cache.rglob("*.parquet"):
        kept.write_bytes(b"damaged")
    assert open_source(url).fingerprint == first.fingerprint
    assert weather.requests > before + 1
