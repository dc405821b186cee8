"""Images into folders, zips and shards, and back by our own sources."""

from __future__ import annotations

import hashlib
import json
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from spheregen.data import ImageWriter, encode_png, open_source, open_writer
from spheregen.errors import ConfigError, SphereGenError

CLASSES = ("ant", "bee", "wasp é")
ARCHIVES = ["out.zip", "out.tar", "out-%03d.tar"]
KINDS = ["folder", *ARCHIVES]


def picture(number: int) -> Image.Image:
    pixels = np.random.default_rng(number).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def fill(writer: ImageWriter, count: int = 11, *, labelled: bool = True) -> None:
    for i in range(count):
        writer.add(f"{i:06d}", picture(i), {"seed": str(i), "prompt": "球"}, i % 3 if labelled else None)


def write(out: Path, *, labelled: bool = True, class_names: tuple[str, ...] = CLASSES, shard_size: int = 4) -> Path:
    """Eleven pictures; the folder that they are in."""
    with open_writer(out, class_names=class_names, shard_size=shard_size) as writer:
        fill(writer, labelled=labelled)
    return out.parent


def files(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def opened(out: Path) -> str | Path:
    return out.with_name(out.name.replace("%03d", "*"))


@pytest.mark.parametrize("kind", KINDS)
def test_round_trip(tmp_path: Path, kind: str) -> None:
    write(tmp_path / "plain" / kind, labelled=False)
    assert open_source(opened(tmp_path / "plain" / kind)).labels is None
    write(tmp_path / kind)
    source = open_source(opened(tmp_path / kind))
    assert source.class_names == (() if kind == "folder" else CLASSES)
    seen = set()
    for i in range(len(source)):
        number = int(Path(source.describe(i).rsplit("/", 1)[-1].rsplit(" ", 1)[-1]).stem)
        seen.add(number)
        assert source.labels is None or int(source.labels[i]) == number % 3
        assert source.read_bytes(i) == encode_png(picture(number), {"seed": str(number), "prompt": "球"})
    assert seen == set(range(11))


def test_members_of_shards(tmp_path: Path) -> None:
    write(tmp_path / "s-%06d.tar")
    assert sorted(files(tmp_path)) == ["classes.txt", "s-000000.tar", "s-000001.tar", "s-000002.tar"]
    assert (tmp_path / "classes.txt").read_text("utf-8").splitlines() == list(CLASSES)
    names = []
    for shard in sorted(tmp_path.glob("*.tar")):
        assert shard.stat().st_size % tarfile.RECORDSIZE == 0
        with tarfile.open(shard) as archive:
            for member in archive:
                names.append(member.name)
                assert (member.mtime, member.mode, member.uid, member.uname) == (0, 0o644, 0, "")
                number = int(Path(member.name).stem)
                file = archive.extractfile(member)
                assert file is not None
                data = file.read()
                if member.name.endswith(".json"):
                    assert json.loads(data) == {"seed": str(number), "prompt": "球"}
                elif member.name.endswith(".cls"):
                    assert data == str(number % 3).encode()
    assert names == [f"{i:06d}.{end}" for i in range(11) for end in ("png", "json", "cls")]


def test_folders_in_a_zip_do_not_escape(tmp_path: Path) -> None:
    for number, (names, read) in enumerate((
        (("../../etc", "/abs", ".hidden"), {"__.._etc", "_abs", "_hidden"}),
        (("a/b", "a\\b", "a\0b"), {"a_b", "a_b-1", "a_b-2"}), (("crane", "crane", ""), {"_", "crane", "crane-1"}),
        (("train", "test", "val"), {"test", "train", "val"}), (("train", "tram", "x"), {"train", "tram", "x"}),
        (("__MACOSX", "..", "x\udcff"), {"_", "___MACOSX", "x?"}),
    )):  # fmt: skip
        path = write(tmp_path / f"{number}.zip", class_names=names) / f"{number}.zip"
        with zipfile.ZipFile(path) as archive:
            parts = {part for name in archive.namelist() for part in name.split("/")}
            assert not any(part in ("", "..", ".") or "\\" in part for part in parts)
        source = open_source(path)
        assert (len(source), source.class_names) == (11, tuple(sorted(read)))


@pytest.mark.parametrize("kind", KINDS)
def test_same_images_same_bytes(tmp_path: Path, kind: str) -> None:
    if kind in ("out.zip", "out.tar"):
        (tmp_path / "a").mkdir()
        (tmp_path / "a" / kind).write_bytes(b"older")
    first, second = (files(write(tmp_path / name / kind)) for name in ("a", "b"))
    assert first == second
    assert len(first) == {"folder": 11, "out.zip": 1, "out.tar": 2, "out-%03d.tar": 4}[kind]
    with open_writer(tmp_path / "c" / kind, class_names=CLASSES):
        pass
    assert not (tmp_path / "c").exists(), "no images make no file"


@pytest.mark.parametrize(("kind", "error"), [*((kind, OSError) for kind in KINDS), ("out.tar", KeyboardInterrupt)])
def test_an_exception_leaves_nothing_half_written(tmp_path: Path, kind: str, error: type[BaseException]) -> None:
    if kind in ("out.zip", "out.tar"):
        (tmp_path / kind).write_bytes(b"older")

    def interrupted() -> None:
        with open_writer(tmp_path / kind, class_names=CLASSES, shard_size=4) as writer:
            fill(writer, 10)
            raise error("mine")

    with pytest.raises(error, match="mine"):
        interrupted()
    left = sorted(files(tmp_path))
    if kind == "folder":
        assert left == [f"folder/{i:06d}.png" for i in range(10)]
    elif kind == "out-%03d.tar":
        assert left == ["classes.txt", "out-000.tar", "out-001.tar"]
        assert len(open_source(tmp_path)) == 8
    else:
        assert left == [kind]
        assert (tmp_path / kind).read_bytes() == b"older"


@pytest.mark.parametrize("kind", ARCHIVES)
def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with open_writer(tmp_path / kind, class_names=CLASSES, shard_size=4) as writer:
        fill(writer, 6)
        monkeypatch.setattr(tarfile.TarFile, "addfile", full)
        monkeypatch.setattr(zipfile.ZipFile, "writestr", full)
        for message in ("No space left", "closed"):  # a member may be cut off: nothing can follow, nothing is published
            with pytest.raises(SphereGenError, match=message):
                writer.add("x", picture(0), {}, 0)
    assert sorted(files(tmp_path)) == (["classes.txt", "out-000.tar"] if "%" in kind else [])


@pytest.mark.parametrize("kind", KINDS)
def test_keys_do_not_escape_and_a_refused_picture_does_no_harm(tmp_path: Path, kind: str) -> None:
    out = tmp_path / "in" / kind
    with open_writer(out) as writer:
        writer.add("good", picture(0), {})
        for key in ("", "../x", "a/b", "a\\b", ".hidden", "a\0b", "x\udcff"):
            with pytest.raises(ConfigError, match="cannot name"):
                writer.add(key, picture(0), {})
        with pytest.raises(ConfigError, match="PNG metadata"):
            writer.add("x", picture(0), {"": "no keyword"})
        writer.add("better", picture(1), {})
    assert len(open_source(opened(out))) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def bad_places(folder: Path) -> Iterator[tuple[Path, str]]:
    (folder / "file").write_bytes(b"x")
    for name in ("dir.zip", "dir.tar", "dir.zip/x"):
        (folder / name).mkdir()
    yield folder / "file", "is a file"
    yield folder / "dir.zip", "is a folder"
    yield folder / "dir.tar", "is a folder"
    for name in ("x", "x/y", "x.zip", "x.tar", "x-%06d.tar", "x/y.zip"):
        yield folder / "file" / name, "is a file"
    patterns = ("a-%d.tar", "a-%6d.tar", "a-%s.tar", "a-%06d-%06d.tar", "100%.tar", "a-{}.tar", "a-{000..009}.tar")
    for name in (*patterns, "a.png", "a.tar.gz", "a.tgz", "a.parquet", "A.JPG", "a-%06d", "a-%06d.zip"):
        yield folder / name, "cannot take"


def test_complaints_come_before_any_work(tmp_path: Path) -> None:
    places = list(bad_places(tmp_path))
    before = sorted(tmp_path.rglob("*"))
    for out, message in places:
        with pytest.raises(ConfigError, match=message) as caught:
            open_writer(out)
        assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="shard_size"):
        open_writer(tmp_path / "x.tar", shard_size=0)
    with pytest.raises(ConfigError):
        open_writer(tmp_path / ("x" * 300) / "a.zip")
    assert sorted(tmp_path.rglob("*")) == before
    for good in ("v1.5", "dir.zip/x", "new/deep/a.ZIP"):
        open_writer(tmp_path / good)


def test_shards_do_not_mix(tmp_path: Path) -> None:
    write(tmp_path / "a-%03d.tar")
    before = files(tmp_path)
    for name in ("a-%03d.tar", "a-%06d.tar"):
        with pytest.raises(ConfigError, match=r"a-000\.tar is there already"):
            open_writer(tmp_path / name, class_names=CLASSES)
    with pytest.raises(ConfigError, match=r"classes\.txt names other classes"):
        open_writer(tmp_path / "b.tar", class_names=("other",))
    write(tmp_path / "b.tar")
    assert files(tmp_path).items() > before.items()
