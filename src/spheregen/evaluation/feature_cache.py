"""From sets of images to features on disk: by several processes, continued after an interruption.

A cache is a folder: `plan.json` says what it holds, one .npy file an array, and `done.npy` with a byte a chunk. A chunk
counts only when its rows are on the disk, so neither a killed process nor a power cut leaves half a chunk behind that
is taken for a whole one. The arrays are read as memory maps.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.lib.format import open_memmap
from torch import Tensor

from spheregen.distributed import World
from spheregen.errors import ConfigError, DataError, SphereGenError
from spheregen.evaluation.images import ImageSet, chunk_of, parts_of
from spheregen.files import write_json
from spheregen.measure.features import FEATURE_BATCH, FeatureExtractor
from spheregen.measure.features.preprocessing import antialiased
from spheregen.progress import QuietReporter, Reporter

LARGEST_THUMBNAIL = 64  # pixels
_PIXELS, _DIGESTS, _DONE = "pixels", "digests", "done"
DIGEST = 8
"""Bytes of the digest of an image."""
_SOON = 8  # chunks that are done before anybody asks how far it is


@dataclass(frozen=True)
class FeatureSet:
    """The features of a set of images, memory-mapped from a cache."""

    images: ImageSet
    features: Mapping[str, Tensor]
    """(N, D) float32 of each extractor."""
    logits: Mapping[str, Tensor]
    """(N, K) float32 of the extractors that classify."""
    thumbnails: Tensor
    """(n, C, s, s) uint8: the first images, at most 64 pixels wide; as many as were asked for."""
    digests: Tensor
    """(N, 8) uint8: the beginning of the hash of each image's pixels. Equal images have equal ones."""

    @property
    def labels(self) -> Tensor | None:
        """(N,) class ids, or None."""
        return self.images.labels


def extract_features(
    images: ImageSet,
    extractors: Mapping[str, FeatureExtractor],
    folder: Path,
    *,
    thumbnails: int = 0,
    world: World | None = None,
    reporter: Reporter | None = None,
) -> FeatureSet:
    """Return the features of all images, in a cache below `folder`; what is there from an earlier call is kept.

    All processes of a world call it together and see the same folder; each takes its share of the chunks.

    Args:
        extractors: by name.
        thumbnails: keep so many of the images, the first ones, at 64 pixels or less.

    Raises:
        DataError: an image cannot be read, or its features are not finite.
        SphereGenError: the disk is full.
    """
    world, reporter = world or World(), reporter or QuietReporter()
    count, chunk, parts = len(images), chunk_of(images.shape), parts_of(images)
    shapes: dict[str, tuple[int, ...]] = {}
    for name, extractor in extractors.items():
        shapes[f"{name} features"] = (count, extractor.info.dim)
        if extractor.info.classes:
            shapes[f"{name} logits"] = (count, extractor.info.classes)
    shapes[_DIGESTS] = (count, DIGEST)
    if kept := min(thumbnails, count):
        size = min(LARGEST_THUMBNAIL, images.shape[1])
        shapes[_PIXELS] = (kept, images.shape[0], size, size)
    plan = {
        "images": images.describe(),
        "features": {name: extractor.info.as_dict() for name, extractor in extractors.items()},
        "feature_batch": FEATURE_BATCH,
        "chunk": chunk,
        "arrays": shapes,
    }
    cache = _Cache(folder, plan, shapes, len(parts))
    if world.is_first:
        cache.create()
    world.wait_for_all()
    missing = cache.missing()
    world.wait_for_all()  # nobody writes while another still looks
    mine = missing[world.rank :: world.size]
    if len(missing) <= _SOON:
        reporter = QuietReporter()
    if mine:
        before = len(parts) - len(missing)
        reporter.start(len(parts), before, chunk)
        try:
            batches = images.stream([parts[k] for k in mine])
            for done, (k, batch) in enumerate(zip(mine, batches, strict=True), start=1):
                cache.write(k, parts[k], _arrays(batch, extractors, parts[k].start, thumbnails=kept > 0))
                reporter.step(min(len(parts), before + done * world.size), None)
        finally:
            reporter.stop()
    world.wait_for_all()
    return FeatureSet(
        images=images,
        features={name: cache.read(f"{name} features") for name in extractors},
        logits={name: cache.read(f"{name} logits") for name in extractors if f"{name} logits" in shapes},
        thumbnails=cache.read(_PIXELS) if kept else torch.empty(0),
        digests=cache.read(_DIGESTS),
    )


class _Cache:
    """Arrays of N rows, or of the first ones, that are written chunk by chunk; each plan has a folder of its own."""

    def __init__(self, folder: Path, plan: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], chunks: int):
        self.folder = folder / hashlib.sha256(json.dumps(plan, sort_keys=True).encode()).hexdigest()[:16]
        self._plan, self._shapes = plan, {**shapes, _DONE: (chunks,)}
        self._files = {name: self.folder / f"{place}.npy" for place, name in enumerate(shapes)}
        self._files[_DONE] = self.folder / f"{_DONE}.npy"

    def create(self) -> None:
        """Make the files, unless they are there. One process calls it before the others go on."""
        with self._writing():
            self.folder.mkdir(parents=True, exist_ok=True)
            if not all(self._is_whole(name) for name in self._shapes):
                for name, shape in self._shapes.items():
                    open_memmap(self._files[name], "w+", self._dtype(name), shape).flush()
        if not (self.folder / "plan.json").is_file():
            write_json(self.folder / "plan.json", self._plan)

    def missing(self) -> list[int]:
        """List the chunks that are not there yet."""
        done = np.load(self._files[_DONE])
        return [int(k) for k in np.flatnonzero(done == 0)]

    def write(self, chunk: int, part: slice, arrays: Mapping[str, Tensor]) -> None:
        """Put the rows of a chunk down; they are on the disk before it counts as done."""
        with self._writing():
            for name, values in arrays.items():
                stop = min(part.stop, self._shapes[name][0])
                if part.start < stop:
                    self._put(name, part.start, values[: stop - part.start].detach().cpu().numpy())
            self._put(_DONE, chunk, np.ones(1, np.uint8))

    def read(self, name: str) -> Tensor:
        """Return an array as a memory map; nothing that is done to it reaches the file."""
        return torch.from_numpy(np.load(self._files[name], mmap_mode="c"))

    def _put(self, name: str, row: int, values: np.ndarray) -> None:
        # Through the file, not a memory map: a full disk is then an error and not a signal that ends the process.
        values = np.ascontiguousarray(values, self._dtype(name))
        offset = open_memmap(self._files[name], "r").offset
        with self._files[name].open("r+b") as file:
            file.seek(offset + row * (values.nbytes // len(values)))
            file.write(values.tobytes())
            file.flush()
            os.fsync(file.fileno())

    def _is_whole(self, name: str) -> bool:
        try:
            found = open_memmap(self._files[name], "r")
        except (OSError, ValueError):
            return False
        return found.shape == self._shapes[name] and found.dtype == self._dtype(name)

    def _dtype(self, name: str) -> str:
        return "|u1" if name in (_PIXELS, _DIGESTS, _DONE) else "<f4"

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            reason = error.strerror or error
            raise SphereGenError(f"cannot write features to {self.folder}: {reason}; free space there") from error


def _arrays(
    batch: Tensor, extractors: Mapping[str, FeatureExtractor], first: int, *, thumbnails: bool
) -> dict[str, Tensor]:
    arrays: dict[str, Tensor] = {}
    for name, extractor in extractors.items():
        found = [extractor(part) for part in batch.split(FEATURE_BATCH)]
        features = torch.cat([each.features.float().cpu() for each in found])
        if features.shape != (len(batch), extractor.info.dim):
            raise ConfigError(
                f"the network {name} gave features of shape {tuple(features.shape)} for {len(batch)} images; "
                f"it said ({len(batch)}, {extractor.info.dim})"
            )
        finite = torch.isfinite(features).all(dim=1)
        if not bool(finite.all()):
            raise DataError(
                f"the network {name} gives NaN or infinite features for image {first + int((~finite).nonzero()[0, 0])};"
                " look at that image, and at whether the network overflows in its type"
            )
        arrays[f"{name} features"] = features
        if logits := [each.logits.float().cpu() for each in found if each.logits is not None]:
            arrays[f"{name} logits"] = torch.cat(logits)
    hashes = [hashlib.blake2b(image.tobytes(), digest_size=DIGEST).digest() for image in batch.cpu().numpy()]
    arrays[_DIGESTS] = torch.from_numpy(np.frombuffer(b"".join(hashes), np.uint8).reshape(-1, DIGEST).copy())
    if thumbnails:
        arrays[_PIXELS] = _thumbnails(batch)
    return arrays


def _thumbnails(batch: Tensor) -> Tensor:
    if batch.shape[-1] <= LARGEST_THUMBNAIL:
        return batch
    return antialiased(batch, LARGEST_THUMBNAIL, "bilinear").round().to(torch.uint8)
