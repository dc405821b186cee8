"""Captions: read from wherever they lie, drawn by seed, epoch and image, kept beside latents."""

from __future__ import annotations

import json
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from spheregen.data import open_source
from spheregen.data.captions import Captions, caption_statistics, read_captions
from spheregen.data.order import OrderedBatch
from spheregen.data.writers import open_writer
from spheregen.errors import ConfigError, DataError
from tests.factories import image_folder

FILES: Mapping[str, str | bytes] = {
    "000.txt": "a red  heart\n\nthe heart, again\n",
    "001.caption": "a caption",
    "002.json": json.dumps({"width": 8, "Caption": ["one", "two"]}),
    "003_cap.json": json.dumps({"verbose": "a long text", "brief": "short", "tags": ["x", "y"]}),
    "004.txt": "\ufeffräksmörgås 球".encode(),
}
TOLD = [
    ("a red heart", "the heart, again"),
    ("a caption",),
    ("one", "two"),
    ("a long text", "short", "x", "y"),
    ("räksmörgås 球",),
    (),
]


def captioned(folder: Path, files: Mapping[str, str | bytes] = FILES) -> Path:
    """Six images in one folder, and files beside them."""
    image_folder(folder, classes=0, per_class=6)
    for name, text in files.items():
        (folder / name).write_bytes(text.encode() if isinstance(text, str) else text)
    return folder


def packed(folder: Path, kind: str) -> Path:
    """The folder itself, or its files in a zip or a tar."""
    if kind == "folder":
        return folder
    path = folder.with_suffix(f".{kind}")
    names = sorted(each.name for each in folder.iterdir())
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name in names:
                archive.write(folder / name, name)
    else:
        with tarfile.open(path, "w") as shard:
            for name in names:
                shard.add(folder / name, name)
    return path


@pytest.mark.parametrize("kind", ["folder", "zip", "tar"])
def test_captions_lie_beside_images_in_all_forms(tmp_path: Path, kind: str) -> None:
    captions = open_source(packed(captioned(tmp_path / "some"), kind)).captions()
    assert captions is not None and list(captions) == TOLD
    assert captions.counts.tolist() == [2, 1, 2, 4, 1, 0]


@pytest.mark.parametrize("kind", ["folder", "zip"])
@pytest.mark.parametrize("table", ["metadata.jsonl", "metadata.csv"])
def test_tables_tell_captions_and_may_tell_several(tmp_path: Path, kind: str, table: str) -> None:
    rows = [("000.png", "first"), ("001.png", "second, with a comma"), ("000.png", "first again")]
    if table.endswith("csv"):
        text = "file_name,text\n" + "".join(f'{name},"{caption}"\n' for name, caption in rows)
    else:
        text = "".join(json.dumps({"file_name": name, "text": caption}) + "\n" for name, caption in rows)
    captions = open_source(packed(captioned(tmp_path / "some", {table: text}), kind)).captions()
    assert captions is not None
    assert list(captions)[:3] == [("first", "first again"), ("second, with a comma",), ()]


def test_a_table_elsewhere_or_another_column_is_named(tmp_path: Path) -> None:
    folder = captioned(tmp_path / "some", {"metadata.csv": "file_name,text,swedish\n000.png,red,röd\n"})
    table = tmp_path / "told.tsv"
    table.write_text("image\tcaption\nsome/000.png\tby the table\n")
    source = open_source(folder)
    for column, found in ((None, "red"), ("swedish", "röd"), (str(table), "by the table")):
        captions = source.captions(column)
        assert captions is not None and captions.of(0) == (found,)
    for column in ("norwegian", str(tmp_path / "none.csv")):
        with pytest.raises(DataError, match=Path(column).name):
            read_captions(source, column)


def parquet(path: Path, columns: Mapping[str, Any]) -> Path:
    folder = image_folder(path.with_suffix(""), classes=0, per_class=3)
    images = [{"bytes": (folder / f"{i:03d}.png").read_bytes()} for i in range(3)]
    pq.write_table(pa.table({"image": images, **columns}), path, row_group_size=2)
    return path


def test_columns_of_parquet_are_captions(tmp_path: Path) -> None:
    columns = {"name": ["a", "b", None], "Captions": [["x", "y"], [], ["z"]], "number": [1, 2, 3]}
    source = open_source(parquet(tmp_path / "some.parquet", columns))
    assert list(read_captions(source)) == [("x", "y"), (), ("z",)]
    assert list(read_captions(source, "name")) == [("a",), ("b",), ()]
    with pytest.raises(DataError, match="did you mean 'name'"):
        read_captions(source, "nam")
    with pytest.raises(DataError, match="number"):
        read_captions(source, "number")
    names = open_source(parquet(tmp_path / "other.parquet", {"name": ["1.png", "2.png", "3.png"]}))
    with pytest.raises(DataError, match=r"a \.txt of the same name"):
        read_captions(names)


def test_names_of_classes_fill_templates(tmp_path: Path) -> None:
    source = open_source(image_folder(tmp_path / "some", classes=2, per_class=2))
    found = read_captions(source, templates=("a photo of a {}", "{}"))
    assert list(found) == [("a photo of a 0", "0")] * 2 + [("a photo of a 1", "1")] * 2
    captioned_too = captioned(tmp_path / "more", {"000.txt": "told"})
    with pytest.raises(DataError, match="'classes'"):
        read_captions(open_source(captioned_too), "classes")
    with pytest.raises(ConfigError, match="no place for the name"):
        read_captions(source, templates=("a photo",))


@pytest.mark.parametrize(
    ("name", "content", "named"),
    [
        ("000.txt", b"\xff\xfe broken", "UTF-8"),
        ("000.txt", b"x" * (10 << 20), "10485760 bytes"),
        ("000.txt", b"x" * 20_000, "20000 characters"),
        ("000.json", b"{", "no JSON"),
        ("000.json", b"[1]", "no object"),
        ("000.json", b'{"caption": 3}', "3 is no text"),
        ("000.json", b'{"caption": "' + b'"' * 3, "no JSON"),
        ("metadata.jsonl", b"{", "cannot be read"),
    ],
)
def test_what_cannot_be_a_caption_is_named_in_one_line(tmp_path: Path, name: str, content: bytes, named: str) -> None:
    folder = image_folder(tmp_path / "some", classes=0, per_class=2)
    source = open_source(folder)
    (folder / name).write_bytes(content)
    with pytest.raises(DataError, match=named) as caught:
        read_captions(source)
    assert name in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 500


def test_a_caption_is_drawn_by_seed_epoch_and_image_alone() -> None:
    captions = Captions([("a", "b", "c")] * 50 + [()])
    indices, epochs = np.arange(51), np.zeros(51, dtype=np.int64)
    drawn = captions.draw(3, OrderedBatch(indices=indices, epochs=epochs))
    assert drawn[-1] == -1 and {captions.text(n) for n in drawn[:-1].tolist()} == {"a", "b", "c"}
    assert all(captions.text(int(drawn[i])) in captions.of(i) for i in range(50))
    reverse = captions.draw(3, OrderedBatch(indices=indices[::-1], epochs=epochs))
    assert (reverse[::-1] == drawn).all()
    for other in (captions.draw(4, OrderedBatch(indices=indices, epochs=epochs)),
                  captions.draw(3, OrderedBatch(indices=indices, epochs=epochs + 1))):  # fmt: skip
        assert (other != drawn).any()


def test_the_fingerprint_changes_with_any_caption() -> None:
    told = [("a", "b"), (), ("c",)]
    others = [[("a",), ("b",), ("c",)], [("a", "b"), ("c",), ()], [("ab",), (), ("c",)], [("a", "b"), (), ("d",)]]
    assert Captions(told).fingerprint == Captions(told).fingerprint
    assert len({Captions(each).fingerprint for each in (told, *others)}) == 5
    again = Captions.of_tensors(Captions(told).tensors)
    assert list(again) == told and again.fingerprint == Captions(told).fingerprint


def test_statistics_of_captions() -> None:
    found = caption_statistics(Captions([("red", "röd cat"), ("red",), (), ("红苹果",)]))
    assert (found.captions, found.without, found.most, found.doubled, found.different) == (4, 1, 2, 2, 3)
    assert (found.shortest, found.median, found.longest) == (3, 3.0, 7)
    assert found.scripts == {"LATIN": 3, "CJK": 1} and found.examples[0] == "red"


def test_letters_have_captions_of_letter_weight_slant_and_serifs() -> None:
    source = open_source("letters", split="test")
    captions = source.captions()
    assert captions is not None and len(captions) == len(source)
    told = {captions.of(i)[0]: i for i in range(len(source)) if captions.counts[i]}
    assert 0.08 < (captions.counts == 0).mean() < 0.18  # combinations that are held out
    for words in ("light", "regular", "bold", "italic", "upright", "sans serif", "capital A", "small z", "digit 7"):
        assert any(words in text for text in told)
    bold, light = (
        [i for text, i in told.items() if word in text and text.endswith("small e")] for word in ("bold", "light")
    )
    ink = [np.mean([np.asarray(source.read(i)).mean() for i in which]) for which in (bold, light)]
    assert ink[0] > 1.2 * ink[1]


def test_a_latent_cache_keeps_captions(tmp_path: Path) -> None:
    from spheregen.data.latent_cache import LatentCache
    from spheregen.tensors import save_tensors
    from tests.data.test_latent_cache import Pixels, encode

    folder = captioned(tmp_path / "some")
    source = open_source(folder)
    encode(Pixels(), source, tmp_path / "cache", flips=False)
    with pytest.raises(DataError, match="captions=auto"):
        LatentCache(tmp_path / "cache").captions()
    encode(Pixels(), source, tmp_path / "cache", flips=False, captions=read_captions(source))
    assert list(LatentCache(tmp_path / "cache").captions()) == TOLD
    save_tensors(tmp_path / "cache" / "captions.safetensors", {"letters": torch.zeros(1)})
    with pytest.raises(DataError, match="broken"):
        LatentCache(tmp_path / "cache").captions()


def test_shards_of_samples_keep_their_prompts(tmp_path: Path) -> None:
    prompts = ("a red cup", "", "a tree")
    with open_writer(tmp_path / "made-%06d.tar", shard_size=2) as writer:
        for number, prompt in enumerate(prompts):
            image = Image.new("RGB", (8, 8), (number, 0, 0))
            writer.add(f"{number:06d}", image, {"model": "m", "seed": str(number), "prompt": prompt, "settings": "{}"})
    assert list(read_captions(open_source(str(tmp_path / "made-*.tar")))) == [("a red cup",), (), ("a tree",)]
