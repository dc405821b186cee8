"""Sources are found, named, labelled and ordered; what is wrong with them is said in one line."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from spheregen.data import ImageOptions, ImageSource, load_all, load_digits, open_source, validate
from spheregen.errors import ConfigError, DataError

OPTIONS = ImageOptions(image_size=4)


def draw(path: Path, value: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (4, 4), value).save(path)


def names(source: ImageSource, folder: Path) -> list[str]:
    return [Path(source.describe(i)).relative_to(folder).as_posix() for i in range(len(source))]


# --- the embedded digits


def test_digits_are_those_of_scikit_learn() -> None:
    expected = pytest.importorskip("sklearn.datasets").load_digits()
    digits = load_digits()
    assert digits.images.dtype == np.uint8
    assert np.array_equal(digits.images, expected.images)
    assert np.array_equal(digits.labels, expected.target)


def test_digits_splits() -> None:
    train, test, everything = (open_source("digits", split=split) for split in ("train", "test", "all"))
    assert (len(train), len(test), len(everything)) == (1400, 397, 1797)
    assert len({train.fingerprint, test.fingerprint, everything.fingerprint}) == 3
    assert train.fingerprint == open_source("digits").fingerprint
    assert train.class_names == tuple("0123456789")
    assert train.labels is not None
    assert test.labels is not None
    assert everything.labels is not None
    assert everything.labels.tolist() == train.labels.tolist() + test.labels.tolist()
    assert np.array_equal(np.asarray(test.read(0)), np.asarray(everything.read(1400)))
    assert test.describe(0) == everything.describe(1400) == "digits 1400"
    assert train.native_size == 8


def test_digits_pixels_span_the_full_range() -> None:
    pixels = load_all(open_source("digits", split="all"), ImageOptions(image_size=8, channels=1)).images[:, 0].numpy()
    assert np.array_equal(pixels, np.rint(load_digits().images * (255.0 / 16.0)))
    assert (pixels.min(), pixels.max()) == (0, 255)


def test_digits_licence_is_in_the_package() -> None:
    from importlib import resources

    text = resources.files("spheregen").joinpath("assets/LICENSE-digits.txt").read_text(encoding="utf-8")
    assert "CC BY 4.0" in text
    assert "Alpaydin" in text


# --- folders


def test_sub_folders_are_labels(tmp_path: Path) -> None:
    for place, path in enumerate(["cat/b.png", "cat/a.jpg", "ant/deep/er/z.PNG", "ant/y.webp", "bee/x.tiff"]):
        draw(tmp_path / path, place)
    draw(tmp_path / ".hidden/a.png")
    draw(tmp_path / "cat/.thumb.png")
    (tmp_path / "cat/notes.txt").write_text("no image")
    (tmp_path / "empty").mkdir()
    source = open_source(tmp_path)
    assert source.class_names == ("ant", "bee", "cat")
    assert names(source, tmp_path) == ["ant/deep/er/z.PNG", "ant/y.webp", "bee/x.tiff", "cat/a.jpg", "cat/b.png"]
    assert source.labels is not None
    assert source.labels.tolist() == [0, 0, 1, 2, 2]
    loaded = load_all(source, OPTIONS)
    assert loaded.images[:, 0, 0, 0].tolist() == [2, 3, 4, 1, 0]
    assert loaded.labels is not None
    assert loaded.labels.tolist() == [0, 0, 1, 2, 2]
    assert loaded.name == tmp_path.name


def test_a_flat_folder_is_unlabelled(tmp_path: Path) -> None:
    for name in ("b.png", "a.png", "c.bmp"):
        draw(tmp_path / name)
    source = open_source(str(tmp_path))
    assert names(source, tmp_path) == ["a.png", "b.png", "c.bmp"]
    assert (source.labels, source.class_names) == (None, ())
    assert load_all(source, OPTIONS).labels is None


def test_loose_images_beside_classes_are_refused(tmp_path: Path) -> None:
    draw(tmp_path / "cat/a.png")
    draw(tmp_path / "preview.png")
    with pytest.raises(DataError, match=r"preview\.png"):
        open_source(tmp_path)


def test_split_folders_share_their_classes(tmp_path: Path) -> None:
    for path in ("train/ant/a.png", "train/bee/a.png", "train/cat/a.png", "test/cat/a.png", "val/dog/a.png"):
        draw(tmp_path / path)
    assert open_source(tmp_path).class_names == ("ant", "bee", "cat", "dog")
    test = open_source(tmp_path, split="test")
    assert test.labels is not None
    assert test.labels.tolist() == [2]  # not 0, although the split has one class only
    assert names(test, tmp_path) == ["test/cat/a.png"]
    assert names(open_source(tmp_path, split="validation"), tmp_path) == ["val/dog/a.png"]
    everything = open_source(tmp_path, split="all")
    assert everything.labels is not None
    assert everything.labels.tolist() == [2, 0, 1, 2, 3]
    with pytest.raises(DataError, match="did you mean 'train'"):
        open_source(tmp_path, split="trian")


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    for path in ("train/a.png", "car/a.png", "bus/a.png"):
        draw(tmp_path / path)
    assert open_source(tmp_path).class_names == ("bus", "car", "train")


def test_a_split_that_is_not_there(tmp_path: Path) -> None:
    draw(tmp_path / "cat/a.png")
    assert len(open_source(tmp_path, split="all")) == 1
    with pytest.raises(DataError, match="no split 'test'"):
        open_source(tmp_path, split="test")
    with pytest.raises(DataError, match="train, test, all"):
        open_source("digits", split="val")
    only = tmp_path / "only"
    draw(only / "test/cat/a.png")
    with pytest.raises(DataError, match="choose one of test, all"):
        open_source(only)


@pytest.mark.skipif(sys.platform == "win32", reason="symbolic links need rights on Windows")
def test_symlinks(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    draw(outside / "a.png")
    data = tmp_path / "data"
    draw(data / "cat/a.png")
    (data / "cat/loop").symlink_to(data, target_is_directory=True)
    (data / "cat/again").symlink_to(".", target_is_directory=True)
    (data / "dog").symlink_to(outside, target_is_directory=True)
    (data / "dog2").mkdir()
    (data / "dog2/linked.png").symlink_to(outside / "a.png")
    (data / "dog2/gone.png").symlink_to(outside / "b.png")
    source = open_source(data)
    assert names(source, data) == ["cat/a.png", "dog/a.png", "dog2/gone.png", "dog2/linked.png"]
    with pytest.raises(DataError, match=r"gone\.png: cannot be read"):
        source.read(2)


def test_order_does_not_depend_on_the_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in ("a/2.png", "a/10.png", "a b/1.png", "a-b/1.png", "B/1.png"):
        draw(tmp_path / path)
    expected = names(open_source(tmp_path), tmp_path)
    assert expected == ["B/1.png", "a/10.png", "a/2.png", "a b/1.png", "a-b/1.png"]
    scandir = os.scandir

    class Backwards:
        def __init__(self, folder: Path) -> None:
            with scandir(folder) as entries:
                self.entries = list(entries)[::-1]

        def __enter__(self) -> list[os.DirEntry[str]]:
            return self.entries

        def __exit__(self, *_: object) -> None: ...

    monkeypatch.setattr("spheregen.data.folders.os.scandir", Backwards)
    assert names(open_source(tmp_path), tmp_path) == expected


def test_fingerprint_follows_the_content_and_not_the_place(tmp_path: Path) -> None:
    first = tmp_path / "first"
    draw(first / "cat/a.png")
    draw(first / "dog/a.png")
    shutil.copytree(first, tmp_path / "second")
    prints = [open_source(tmp_path / name).fingerprint for name in ("first", "second")]
    assert prints[0] == prints[1]
    (first / "dog/a.png").rename(first / "dog/b.png")
    prints.append(open_source(first).fingerprint)
    with (first / "dog/b.png").open("ab") as file:
        file.write(b"more")
    prints.append(open_source(first).fingerprint)
    (first / "dog").rename(first / "cow")
    prints.append(open_source(first).fingerprint)
    assert len(set(prints)) == 4


def test_classes_numbered_as_a_model_does(tmp_path: Path) -> None:
    draw(tmp_path / "cat/a.png")
    draw(tmp_path / "dog/a.png")
    source = open_source(tmp_path, class_names=["dog", "emu", "cat"])
    assert source.class_names == ("dog", "emu", "cat")
    assert source.labels is not None
    assert source.labels.tolist() == [2, 0]
    assert source.fingerprint != open_source(tmp_path).fingerprint
    with pytest.raises(DataError, match="'cat', which is not among"):
        open_source(tmp_path, class_names=["dog", "emu"])
    with pytest.raises(ConfigError, match="twice"):
        open_source(tmp_path, class_names=["dog", "dog", "cat"])


# --- what is wrong


def test_a_path_that_the_system_refuses() -> None:
    with pytest.raises(DataError, match="cannot be looked at"):
        open_source("x" * 5000)


def test_no_such_data(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="did you mean 'digits'"):
        open_source("digit")
    with pytest.raises(DataError, match="nowhere"):
        open_source(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"\.png .*\.jpg"):
        open_source(tmp_path)
    with pytest.raises(DataError, match="empty"):
        open_source("")
    (tmp_path / "data.csv").write_text("a,b")
    with pytest.raises(DataError, match="unknown kind"):
        open_source(tmp_path / "data.csv")


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    """Four good pictures of two classes and three bad ones."""
    for path in ("cat/a.jpg", "cat/d.png", "dog/a.png", "dog/b.png"):
        draw(tmp_path / path)
    big = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
    Image.fromarray(big).save(tmp_path / "cat/b.jpg")
    data = (tmp_path / "cat/b.jpg").read_bytes()
    (tmp_path / "cat/b.jpg").write_bytes(data[: len(data) // 3])
    (tmp_path / "cat/c.png").write_text("this is text")
    (tmp_path / "dog/0.png").write_bytes(b"")
    return tmp_path


@pytest.mark.parametrize("workers", [0, 1])
def test_bad_files_are_named_or_skipped(damaged: Path, workers: int) -> None:
    source = open_source(damaged)
    with pytest.raises(
        DataError, match=r"b\.jpg: corrupt or truncated .*\(3 of 7 images are bad; also .*c\.png, .*0\.png;"
    ) as caught:
        load_all(source, OPTIONS, workers=workers)
    assert "\n" not in str(caught.value)
    loaded = load_all(source, OPTIONS, on_error="skip", workers=workers)
    assert len(loaded) == len(loaded.images) == 4
    assert loaded.indices.tolist() == [0, 3, 5, 6]
    assert loaded.labels is not None
    assert loaded.labels.tolist() == [0, 0, 1, 1]
    assert [Path(line.split(":", 1)[0]).name for line in loaded.skipped] == ["b.jpg", "c.png", "0.png"]
    assert "not an image" in loaded.skipped[1]
    assert "empty" in loaded.skipped[2]
    assert loaded.fingerprint != source.fingerprint
    assert [bad.index for bad in validate(source, OPTIONS, workers=workers)] == [1, 2, 4]


def test_a_picture_without_known_scale_is_named(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 4), -5.0, dtype=np.float32)).save(tmp_path / "f.tif")
    draw(tmp_path / "g.png")
    with pytest.raises(DataError, match=r"f\.tif: a float image"):
        load_all(open_source(tmp_path), OPTIONS)


def test_skipping_everything_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    (tmp_path / "b.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"none of the 2 images .*a\.png"):
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


def test_importing_the_package_does_not_import_pyarrow() -> None:
    code = "import sys, spheregen.data as d; d.open_source('digits'); sys.exit('pyarrow' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
