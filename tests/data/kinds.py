"""The same pictures in every kind of source."""

from __future__ import annotations

import io
import json
import tarfile
import uuid
import zipfile
from collections.abc import Mapping
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from spheregen.data import Batch, ImageSource

CLASSES = ("ant", "bee", "wasp é")


def picture(number: int, size: tuple[int, int] = (6, 5)) -> bytes:
    """A PNG of noise."""
    pixels = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def contents(count: int = 23) -> dict[str, bytes]:
    """Names with classes, sorted, and pictures."""
    return dict(sorted((f"{CLASSES[i % 3]}/{i:03d}.png", picture(i)) for i in range(count)))


def write_folder(folder: Path, files: Mapping[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def zip_bytes(files: Mapping[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return file.getvalue()


def tar_bytes(files: Mapping[str, bytes], format: int = tarfile.PAX_FORMAT) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=format) as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return file.getvalue()


def parquet_bytes(files: Mapping[str, bytes], rows: int = 4) -> bytes:
    labels = [CLASSES.index(name.split("/")[0]) for name in files]
    features = {"image": {"_type": "Image"}, "label": {"names": list(CLASSES), "_type": "ClassLabel"}}
    table = pa.table({"image": pa.array(list(files.values()), pa.binary()), "label": labels})
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    file = io.BytesIO()
    pq.write_table(table, file, row_group_size=rows)
    return file.getvalue()


def in_memory(files: Mapping[str, bytes]) -> str:
    """Files in fsspec's memory file system; the URL of their folder."""
    folder = f"/{uuid.uuid4().hex}"
    system = fsspec.filesystem("memory")
    for name, data in files.items():
        system.pipe_file(f"{folder}/{name}", data)
    return f"memory:/{folder}"


def all_kinds(folder: Path, files: Mapping[str, bytes]) -> dict[str, str]:
    """SRC of each kind of source with these pictures."""
    write_folder(folder / "tree", files)
    (folder / "set.zip").write_bytes(zip_bytes(files))
    (folder / "set.tar").write_bytes(tar_bytes(files))
    (folder / "set.parquet").write_bytes(parquet_bytes(files))
    names = list(files)
    cut = len(names) // 2
    shards = [{name: files[name] for name in part} for part in (names[:cut], names[cut:])]
    for number, shard in enumerate(shards):
        (folder / "shards").mkdir(exist_ok=True)
        (folder / "shards" / f"train-{number:03d}.tar").write_bytes(tar_bytes(shard))
    remote = in_memory({name: (folder / name).read_bytes() for name in ("set.zip", "set.tar", "set.parquet")})
    remote_shards = in_memory({f"s-{i:02d}.tar": tar_bytes(shard) for i, shard in enumerate(shards)})
    return {
        "folder": str(folder / "tree"),
        "zip": str(folder / "set.zip"),
        "tar": str(folder / "set.tar"),
        "parquet": str(folder / "set.parquet"),
        "shards": str(folder / "shards"),
        "pattern": str(folder / "shards" / "train-{000..001}.tar"),
        "remote zip": f"{remote}/set.zip",
        "remote tar": f"{remote}/set.tar",
        "remote parquet": f"{remote}/set.parquet",
        "remote pattern": f"{remote_shards}/s-{{00..01}}.tar",
        "remote folder": remote_shards,
    }


def labels_of(source: ImageSource) -> list[int]:
    assert source.labels is not None
    return list(source.labels.tolist())


def same(first: Batch, second: Batch) -> bool:
    assert first.labels is not None and second.labels is not None
    return (
        first.step == second.step
        and torch.equal(first.inputs, second.inputs)
        and torch.equal(first.labels, second.labels)
        and torch.equal(first.indices, second.indices)
    )
