"""Sources are found, named, labelled and ordered alike, whatever their kind."""

from __future__ import annotations

import contextlib
import os
import pickle
import shutil
import sys
import unicodedata
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from spheregen.data import ImageOptions, ImageSource, TrainingBatches, load_all, open_source
from spheregen.data.decoding import find_bad
from spheregen.data.embedded import load_digits, load_letters
from spheregen.errors import ConfigError, DataError
from tests.data.kinds import CLASSES, all_kinds, contents, labels_of, tar_bytes, write_folder, zip_bytes
from tests.factories import image_folder

OPTIONS = ImageOptions(image_size=4)
KINDS = (
    "folder", "zip", "tar", "parquet", "shards", "pattern",
    "remote zip", "remote tar", "remote parquet", "remote pattern", "remote folder",
)  # fmt: skip


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return all_kinds(tmp_path_factory.mktemp("kinds"), contents())


def draw(folder: Path, *paths: str) -> None:
    """4 x 4 images, the i-th of grey i."""
    for value, path in enumerate(paths):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4), value).save(folder / path)


def names(source: ImageSource, folder: Path) -> list[str]:
    return [Path(source.describe(i)).relative_to(folder).as_posix() for i in range(len(source))]


# --- all kinds alike


@pytest.mark.parametrize("kind", KINDS)
def test_pixels_labels_and_order_are_those_of_the_folder(kinds: dict[str, str], kind: str) -> None:
    expected, source = open_source(kinds["folder"]), open_source(kinds[kind])
    assert source.class_names == expected.class_names == CLASSES
    assert labels_of(source) == labels_of(expected)
    assert torch.equal(load_all(expected, OPTIONS).images, load_all(source, OPTIONS).images)
    for i, (name, data) in enumerate(contents().items()):
        assert source.read_bytes(i) == data
        assert "parquet" in kind or source.describe(i).endswith(name)
    runs = (TrainingBatches(s, OPTIONS, batch_size=7, steps=5, flips=True) for s in (expected, source))
    assert all(torch.equal(x.inputs, y.inputs) for x, y in zip(*runs, strict=True))
    source.release()
    assert pickle.loads(pickle.dumps(source)).read_bytes(20) == source.read_bytes(20)
    for wrong in (23, -1):
        with pytest.raises(IndexError):
            source.read_bytes(wrong)


def test_fingerprints_do_not_depend_on_the_place(kinds: dict[str, str]) -> None:
    prints = {kind: open_source(kinds[kind]).fingerprint for kind in KINDS}
    assert prints["remote zip"] == prints["zip"]  # of other remote files the server's word counts
    assert prints["shards"] == prints["pattern"]
    assert prints["remote pattern"] == prints["remote folder"]
    assert len(set(prints.values())) == 8


def test_fingerprints_never_change(tmp_path: Path) -> None:
    """A run that is continued with a later version finds its data unchanged."""
    files = {"train/a/1.png": b"one", "train/b/2.png": b"two", "test/b/3.png": b"three"}
    write_folder(tmp_path / "tree", files)
    write_folder(tmp_path, {"set.zip": zip_bytes(files), "set.tar": tar_bytes(files)})
    earlier = {"tree": "607b24cff289cd1d", "set.zip": "5cc107c8e7203e13", "set.tar": "98fb23f53672d5f7"}
    assert {name: (open_source(tmp_path / name).earlier_fingerprint or "")[:16] for name in earlier} == earlier
    expected = {"tree": "2f4cfcd8603cb4cc", "set.zip": "5cc107c8e7203e13", "set.tar": "6004bd8d3524112e"}
    assert {name: open_source(tmp_path / name).fingerprint[:16] for name in expected} == expected
    assert open_source("digits").fingerprint[:16] == "7602b311350ef421"


@pytest.mark.parametrize("kind", ["tar", "parquet", "remote tar", "remote parquet"])
def test_blocks_cover_the_samples_in_order(kinds: dict[str, str], kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spheregen.data.archives._BLOCK_BYTES", 4096)
    source = open_source(kinds[kind])
    blocks = source.blocks()
    assert blocks is not None
    assert blocks.starts[0] == 0
    assert len(blocks.starts) > 2
    assert [data for k in range(len(blocks.starts)) for data in source.read_block(k)] == list(contents().values())
    assert int(blocks.sizes.sum()) == source.encoded_bytes


def test_slow_is_a_property_of_the_data(kinds: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert not any(open_source(kinds[kind]).random_access_is_slow for kind in KINDS)
    monkeypatch.setattr("spheregen.data.source.FITS_IN_MEMORY", 100)
    slow = {kind for kind in KINDS if open_source(kinds[kind]).random_access_is_slow}
    assert slow == {"parquet", "remote tar", "remote parquet", "remote pattern", "remote folder"}


# --- the embedded sets


def test_digits_splits_and_pixels() -> None:
    train, test, everything = (open_source("digits", split=split) for split in ("train", "test", "all"))
    assert (len(train), len(test), len(everything)) == (1400, 397, 1797)
    assert len({train.fingerprint, test.fingerprint, everything.fingerprint}) == 3
    assert train.class_names == tuple("0123456789")
    assert labels_of(everything) == labels_of(train) + labels_of(test)
    assert test.describe(0) == everything.describe(1400) == "digits 1400"
    pixels = load_all(everything, ImageOptions(image_size=8, channels=1)).images[:, 0].numpy()
    assert np.array_equal(pixels, np.rint(load_digits()[0] * (255.0 / 16.0)))
    assert "CC BY 4.0" in resources.files("spheregen").joinpath("assets/LICENSE-digits.txt").read_text("utf-8")


def test_letters_are_of_typefaces_that_are_held_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train, test = (open_source("letters", split=split) for split in ("train", "test"))
    assert (len(train), len(test), train.native_size, train.flips_allowed) == (41974, 4836, 32, False)
    assert train.class_names == tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789")
    assert all(set(labels_of(each)) == set(range(62)) for each in (train, test))
    pixels = load_all(test, ImageOptions(image_size=32, channels=1), limit=200).images.numpy()
    assert set(np.unique(pixels)) <= set(range(0, 256, 17)) and pixels.max() == 255
    assert len(np.unique(pixels.reshape(200, -1), axis=0)) > 190
    packed = load_letters()[0][-len(test)]
    assert np.array_equal(np.asarray(test.read(0))[:, ::2], (packed >> 4) * 17)
    credits = resources.files("spheregen").joinpath("assets/CREDITS-letters.txt").read_text("utf-8")
    assert all(licence in credits for licence in ("Open Font License", "Apache", "MIT", "public domain"))
    monkeypatch.chdir(tmp_path)
    image_folder(tmp_path / "letters")  # which older versions meant by this name
    with pytest.raises(DataError, match=r"\./letters"):
        open_source("letters")
    assert open_source("./letters").name == "letters" and len(open_source("./letters")) < 100


# --- folders


def test_sub_folders_are_labels(tmp_path: Path) -> None:
    draw(tmp_path, "cat/b.png", "cat/a.jpg", "ant/deep/er/z.PNG", "ant/y.webp", "bee/x.tiff", "bee/w.jfif")
    draw(tmp_path, ".hidden/a.png", "cat/.thumb.png", "cat/@eaDir/a.jpg/thumb.jpg")
    (tmp_path / "cat/notes.txt").write_text("no image")
    source = open_source(tmp_path)
    assert (source.class_names, source.name) == (("ant", "bee", "cat"), tmp_path.name)
    expected = ["ant/deep/er/z.PNG", "ant/y.webp", "bee/w.jfif", "bee/x.tiff", "cat/a.jpg", "cat/b.png"]
    assert names(source, tmp_path) == expected
    assert labels_of(source) == [0, 0, 1, 1, 2, 2]
    assert load_all(source, OPTIONS).images[:, 0, 0, 0].tolist() == [2, 3, 5, 4, 1, 0]
    flat = open_source(str(tmp_path / "bee"))
    assert (flat.labels, flat.class_names, load_all(flat, OPTIONS).labels) == (None, (), None)


def test_what_lies_beside_classes_is_refused(tmp_path: Path) -> None:
    draw(tmp_path, "cat/a.png", "preview.png")
    with pytest.raises(DataError, match=r"preview\.png"):
        open_source(tmp_path)
    (tmp_path / "preview.png").unlink()
    (tmp_path / "backup.tar").write_bytes(tar_bytes(contents(1)))
    with pytest.raises(DataError, match=r"backup\.tar"):
        open_source(tmp_path)


def test_split_folders_share_their_classes(tmp_path: Path) -> None:
    draw(tmp_path, "train/ant/a.png", "train/bee/a.png", "train/cat/a.png", "test/cat/a.png", "val/dog/a.png")
    assert open_source(tmp_path).class_names == ("ant", "bee", "cat", "dog")
    test = open_source(tmp_path, split="test")
    assert labels_of(test) == [2]  # not 0, although the split has one class only
    assert names(test, tmp_path) == ["test/cat/a.png"]
    assert names(open_source(tmp_path, split="validation"), tmp_path) == ["val/dog/a.png"]
    assert labels_of(open_source(tmp_path, split="all")) == [2, 0, 1, 2, 3]
    with pytest.raises(DataError, match="did you mean 'train'"):
        open_source(tmp_path, split="trian")


def test_splits_by_other_names(tmp_path: Path) -> None:
    for train, held_out, asked in (("train", "valid", "val"), ("Train", "Test", "test"), ("training", "dev", "val")):
        draw(tmp_path / train, f"{train}/a/1.png", f"{train}/b/1.png", f"{held_out}/b/1.png")
        source = open_source(tmp_path / train)
        assert (source.class_names, len(source), source.split) == (("a", "b"), 2, train)
        assert labels_of(open_source(tmp_path / train, split=asked)) == [1]


def test_names_of_classes(tmp_path: Path) -> None:
    draw(tmp_path / "a", "train/a.png", "car/a.png", "bus/a.png")
    assert open_source(tmp_path / "a").class_names == ("bus", "car", "train")  # a class may be called train
    composed = unicodedata.normalize("NFC", "café")
    draw(tmp_path / "b", f"train/{unicodedata.normalize('NFD', 'café')}/1.png", f"test/{composed}/1.png")
    assert open_source(tmp_path / "b").class_names == (composed,)
    if sys.platform == "linux":  # other systems refuse such names
        draw(tmp_path / "c", "caf\udce9/a.png")
        with pytest.raises(DataError, match=r"caf\\udce9"):
            open_source(tmp_path / "c")


def test_a_split_that_is_not_there(tmp_path: Path) -> None:
    draw(tmp_path / "a", "cat/a.png")
    assert len(open_source(tmp_path / "a", split="all")) == 1
    with pytest.raises(DataError, match="'test'"):
        open_source(tmp_path / "a", split="test")
    with pytest.raises(DataError, match="train, test, all"):
        open_source("digits", split="val")
    draw(tmp_path / "only", "test/cat/a.png")
    with pytest.raises(DataError, match="choose one of test, all"):
        open_source(tmp_path / "only")


@pytest.mark.skipif(sys.platform == "win32", reason="symbolic links need rights on Windows")
def test_symlinks(tmp_path: Path) -> None:
    outside, data = tmp_path / "outside", tmp_path / "data"
    draw(outside, "a.png")
    draw(data, "cat/a.png")
    (data / "cat/loop").symlink_to(data, target_is_directory=True)
    (data / "cat/again").symlink_to(".", target_is_directory=True)
    (data / "dog").symlink_to(outside, target_is_directory=True)
    (data / "dog2").mkdir()
    (data / "dog2/linked.png").symlink_to(outside / "a.png")
    (data / "dog2/gone.png").symlink_to(outside / "b.png")
    source = open_source(data)
    assert names(source, data) == ["cat/a.png", "dog/a.png", "dog2/gone.png", "dog2/linked.png"]
    with pytest.raises(DataError, match=r"gone\.png"):
        source.read(2)


def test_order_does_not_depend_on_the_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw(tmp_path, "a/2.png", "a/10.png", "a b/1.png", "a-b/1.png", "B/1.png")
    expected = ["B/1.png", "a/10.png", "a/2.png", "a b/1.png", "a-b/1.png"]
    assert names(open_source(tmp_path), tmp_path) == expected
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda folder: contextlib.nullcontext([*scandir(folder)][::-1]))
    assert names(open_source(tmp_path), tmp_path) == expected


def test_fingerprint_follows_the_content_and_not_the_place(tmp_path: Path) -> None:
    first, prints = tmp_path / "first", []
    draw(first, "cat/a.png", "dog/a.png")
    shutil.copytree(first, tmp_path / "second")
    assert open_source(first).fingerprint == open_source(tmp_path / "second").fingerprint
    for change in (
        lambda: None,
        lambda: (first / "dog/a.png").rename(first / "dog/b.png"),
        lambda: (first / "dog/b.png").write_bytes(b"more"),
        lambda: (first / "dog").rename(first / "cow"),
    ):
        change()
        prints.append(open_source(first).fingerprint)
    assert len(set(prints)) == 4


def test_classes_numbered_as_a_model_does(tmp_path: Path) -> None:
    draw(tmp_path, "cat/a.png", "dog/a.png")
    source = open_source(tmp_path, class_names=["dog", "emu", "cat"])
    assert (source.class_names, labels_of(source)) == (("dog", "emu", "cat"), [2, 0])
    assert source.fingerprint != open_source(tmp_path).fingerprint
    with pytest.raises(DataError, match="'cat'"):
        open_source(tmp_path, class_names=["dog", "emu"])
    with pytest.raises(ConfigError, match="twice"):
        open_source(tmp_path, class_names=["dog", "dog", "cat"])


# --- what is wrong, and loading all


def test_no_such_data(tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_text("a,b")
    (tmp_path / "none").mkdir()
    for source, word in (
        ("digit", "did you mean 'digits'"), (tmp_path / "nowhere", "nowhere"), (tmp_path / "none", r"\.png .*\.jpg"),
        ("", "empty"), (tmp_path / "data.csv", "unknown kind"), ("x" * 5000, "looked at"),
    ):  # fmt: skip
        with pytest.raises(DataError, match=word):
            open_source(source)


@pytest.mark.parametrize("workers", [0, 1])
def test_bad_files_are_named_or_skipped(tmp_path: Path, workers: int) -> None:
    draw(tmp_path, "cat/a.jpg", "cat/d.png", "dog/a.png", "dog/b.png")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)).save(tmp_path / "cat/b.jpg")
    data = (tmp_path / "cat/b.jpg").read_bytes()
    write_folder(tmp_path, {"cat/b.jpg": data[: len(data) // 3], "cat/c.png": b"this is text", "dog/0.png": b""})
    source = open_source(tmp_path)
    with pytest.raises(DataError, match=r"b\.jpg: .*3 of 7 .*c\.png, .*0\.png") as caught:
        load_all(source, OPTIONS, workers=workers)
    assert "\n" not in str(caught.value)
    loaded = load_all(source, OPTIONS, on_error="skip", workers=workers)
    assert loaded.indices.tolist() == [0, 3, 5, 6]
    assert loaded.labels is not None
    assert loaded.labels.tolist() == [0, 0, 1, 1]
    assert [Path(line.split(":", 1)[0]).name for line in loaded.skipped] == ["b.jpg", "c.png", "0.png"]
    assert loaded.fingerprint != source.fingerprint
    assert [bad.index for bad in find_bad(source, OPTIONS, workers=workers)] == [1, 2, 4]


def test_an_image_without_known_scale_is_named(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 4), -5.0, dtype=np.float32)).save(tmp_path / "f.tif")
    draw(tmp_path, "g.png")
    with pytest.raises(DataError, match=r"f\.tif: a float image"):
        load_all(open_source(tmp_path), OPTIONS)
    (tmp_path / "g.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"none of the 2 images .*f\.tif"):
        load_all(open_source(tmp_path), OPTIONS, on_error="skip")


def test_load_all_limit_and_progress() -> None:
    source = open_source("digits", split="all")
    seen: list[tuple[int, int]] = []
    options = ImageOptions(image_size=8, channels=1)
    loaded = load_all(source, options, limit=600, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(256, 600), (512, 600), (600, 600)]
    assert loaded.indices.tolist() == [i * 1797 // 600 for i in range(600)]
    assert len(load_all(source, options, limit=5000)) == 1797
    for bad in ({"limit": 0}, {"workers": -1}, {"on_error": "ignore"}):
        with pytest.raises(ConfigError):
            load_all(source, options, **bad)  # type: ignore[arg-type]
