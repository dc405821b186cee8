"""Data as people have them: what lies beside the images, labels in other places, names and files that change."""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from spheregen.data import (
    ImageOptions,
    load_all,
    open_source,
    read_metadata,
    save_png,
    source_statistics,
)
from spheregen.data.inputs import load_images
from spheregen.data.source import notes
from spheregen.errors import ConfigError, DataError
from tests.data.kinds import labels_of, picture, tar_bytes, write_folder, zip_bytes

KINDS = ("folder", "set.zip", "set.tar")
OPTIONS = ImageOptions(image_size=4)


def made(place: Path, kind: str, files: dict[str, bytes]) -> Path:
    if kind == "folder":
        return write_folder(place / kind, files)
    write_folder(place, {kind: zip_bytes(files) if kind.endswith("zip") else tar_bytes(files)})
    return place / kind


@pytest.mark.parametrize("kind", KINDS)
def test_what_spheregen_wrote_and_systems_wrote_is_no_data(tmp_path: Path, kind: str) -> None:
    files = {f"{name}/{i}.png": picture(i) for name in "ab" for i in range(2)}
    theirs = {
        "runs/debug/recipe.json", "runs/debug/log.jsonl", "runs/debug/previews/step-5.png", "runs/sheet.png",
        "model/config.json", "model/model.safetensors", "model/sheet.png", "cache/index.json",
        "cache/shard-00000.safetensors", "cache/look.png", "report/evaluation.json", "report/nearest.png",
        "a/@eaDir/0.png/thumb.jpg", "__MACOSX/a/._0.png", ".thumbnails/0.png", "a/._0.png", "b/#recycle/0.png",
        "a/Thumbs.db", "notes.txt", "b/0.heic",
    }  # fmt: skip
    source = open_source(made(tmp_path, kind, files | dict.fromkeys(theirs, b"{}")))
    assert (source.class_names, len(source)) == (("a", "b"), 4)
    counted = {one.reason: one.count for one in source_statistics(source).ignored}
    assert counted["image in a folder that SphereGen wrote"] == 5
    assert any(".heic" in reason and "pillow-heif" in reason for reason in counted)
    assert any(".txt" in line and "notes.txt" in line for line in notes(source))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "names", [("train", "valid"), ("Train", "Test"), ("training", "dev"), ("train2017", "val2017")]
)
@pytest.mark.parametrize("form", ["{split}/{label}", "packed/{split}/{label}", "{label}/{split}"])
def test_splits_are_never_classes(tmp_path: Path, kind: str, names: tuple[str, str], form: str) -> None:
    files = {
        f"{form.format(split=split, label=label)}/{i}.png": picture(i)
        for split, count in zip(names, (3, 2), strict=True)
        for label in "ab"
        for i in range(count)
    }
    path = made(tmp_path, kind, files)
    source = open_source(path)
    assert (source.class_names, labels_of(source)) == (("a", "b"), [0, 0, 0, 1, 1, 1])
    other = "test" if names[1] == "Test" else "val"
    assert labels_of(open_source(path, split=other)) == [0, 0, 1, 1]
    assert len(open_source(path, split="all")) == 10


def test_labelled_samples_in_split_folders_of_a_tar(tmp_path: Path) -> None:
    files = {f"{s}/{i}.{e}": picture(i) if e == "png" else b"%d" % (i % 2) for s in ("train", "valid") for i in range(3)
             for e in ("png", "cls")}  # fmt: skip
    path = made(tmp_path, "set.tar", files)
    assert labels_of(open_source(path)) == [0, 1, 0]
    assert len(open_source(path, split="all")) == 6


def test_labels_in_shards_of_their_own_and_links(tmp_path: Path) -> None:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, kind, target in (("1.png", tarfile.SYMTYPE, "z/2.png"), ("0.png", tarfile.LNKTYPE, "z/2.png")):
            link = tarfile.TarInfo(name)
            link.type, link.linkname = kind, target
            archive.addfile(link)
        info = tarfile.TarInfo("z/2.png")
        info.size = len(picture(7))
        archive.addfile(info, io.BytesIO(picture(7)))
    labels = tar_bytes({"0.cls": b"1", "1.cls": b"0", "z/2.cls": b"1", "9.cls": b"0"})
    write_folder(tmp_path, {"images.tar": file.getvalue(), "labels.tar": labels})
    source = open_source(tmp_path)
    found = {source.describe(i).split()[-1]: label for i, label in enumerate(labels_of(source))}
    assert found == {"1.png": 0, "0.png": 1, "z/2.png": 1}
    assert all(source.read_bytes(i) == picture(7) for i in range(3))
    assert any("label without an image: 9" in line for line in notes(source))


@pytest.mark.parametrize("kind", KINDS[:2])
@pytest.mark.parametrize("table", ["metadata.csv", "metadata.jsonl", "dataset.json"])
@pytest.mark.parametrize("column", ["label", "Labels", "target", "class", "fine_label"])
def test_tables_beside_images_are_labels(tmp_path: Path, kind: str, table: str, column: str) -> None:
    names = [f"0000{i // 2}/{i}.png" for i in range(4)]
    rows = [{"file_name": name, column: "cow" if "/3" in name else "ape"} for name in names]
    text = {
        "metadata.csv": "\n".join(",".join(row) for row in (rows[0], *(row.values() for row in rows))),
        "metadata.jsonl": "\n".join(map(json.dumps, rows)),
        "dataset.json": json.dumps({"labels": [[name, int("/3" in name)] for name in names]}),
    }[table]
    files = {f"train/{name}": picture(i) for i, name in enumerate(names)} | {f"train/{table}": text.encode()}
    source = open_source(made(tmp_path, kind, files))
    assert source.class_names == (("0", "1") if table == "dataset.json" else ("ape", "cow"))
    assert labels_of(source) == [0, 0, 0, 1]


def test_a_table_of_some_images_is_refused_and_one_without_labels_told(tmp_path: Path) -> None:
    write_folder(tmp_path, {"0.png": picture(0), "1.png": picture(1), "metadata.csv": b"file_name,label\n0.png,a\n"})
    with pytest.raises(DataError, match=r"metadata\.csv .*1\.png"):
        open_source(tmp_path)
    (tmp_path / "metadata.csv").write_text("file_name,text\n0.png,a cat\n")
    assert any("metadata.csv" in line for line in notes(open_source(tmp_path)))


@pytest.mark.parametrize("kind", KINDS)
def test_files_replaced_by_others_of_the_same_size_are_other_data(tmp_path: Path, kind: str) -> None:
    files = {"a/0.png": picture(0), "b/0.png": picture(1)}
    size = max(map(len, files.values()))
    files = {name: data.ljust(size, b"\0") for name, data in files.items()}
    path = made(tmp_path / "one", kind, files)
    before, time = open_source(path).fingerprint, path.stat().st_mtime_ns
    other = made(tmp_path / "two", kind, {"a/0.png": files["b/0.png"], "b/0.png": files["a/0.png"]})
    os.utime(other, ns=(time, time))
    assert open_source(other).fingerprint != before
    same = made(tmp_path / "three", kind, files)
    assert kind == "set.zip" or open_source(same).fingerprint == before  # when it was written does not matter


def test_numbers_of_classes_and_paths(tmp_path: Path) -> None:
    source = open_source(write_folder(tmp_path / "a", {f"{c}/0.png": picture(c) for c in range(12)}))
    assert source.class_names == tuple(map(str, range(12))) and not notes(source)
    source = open_source(write_folder(tmp_path / "b", {f"{c}/0.png": picture(c) for c in range(1, 4)}))
    assert any("label 0 is class '1'" in line for line in notes(source))
    if sys.platform == "linux":
        folder = write_folder(tmp_path / "caf\udce9", {"0.png": picture(0)})
        with pytest.raises(DataError, match=r"caf\\udce9"):
            open_source(folder)
        shutil.copy(folder / "0.png", tmp_path / "b/1/caf\udce9\n.png")
        source = open_source(tmp_path / "b")
        source.describe(1).encode()
        assert "\n" not in source.describe(1) and len(load_all(source, OPTIONS)) == 4


def test_one_judgement_of_files(tmp_path: Path) -> None:
    text = PngImagePlugin.PngInfo()
    text.add_text("workflow", "node " * 400_000, zip=True)
    Image.new("RGB", (8, 8), (9, 8, 7)).save(tmp_path / "text.png", pnginfo=text)
    Image.fromarray(np.full((8, 8), 65535, np.float32)).save(tmp_path / "float.tif")
    (tmp_path / "code.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n")
    for suffix in ("ppm", "tga", "bmp", "jfif", "jp2", "avif", "gif"):
        Image.new("RGB", (8, 8)).save(tmp_path / f"x.{suffix}", {"jfif": "JPEG"}.get(suffix))
    (tmp_path / "paper.pdf").write_bytes(b"x")
    source = open_source(tmp_path)
    bad = {Path(image.where).name for image in source_statistics(source).bad}
    assert bad == {"float.tif", "code.png"} and len(source) == 10
    assert len(load_all(source, OPTIONS, on_error="skip")) == 8


def test_arrays_of_every_kind() -> None:
    values = np.random.default_rng(0).random((4, 4))
    expected = load_images(values.astype(np.float32), ImageOptions(image_size=4, channels=1))
    for kind in (">f4", ">f8", "<f8", np.longdouble):
        given = load_images(values.astype(kind), ImageOptions(image_size=4, channels=1))
        assert (given - expected).abs().max() < 1e-6
    for kind in (">u2", "c8", object, "U8"):
        with pytest.raises(ConfigError, match="range"):
            load_images(values.astype(kind), OPTIONS)


def test_paths_are_text_too(tmp_path: Path) -> None:
    save_png(Image.new("L", (4, 4)), tmp_path / "a.png", {"seed": "3"})
    assert read_metadata(str(tmp_path / "a.png"))["seed"] == "3"
