"""From sets of images to stored features: by several processes, continued after an interruption."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from spheregen.distributed import World
from spheregen.errors import ConfigError, DataError
from spheregen.evaluation.features.base import FeatureExtractor
from spheregen.evaluation.images import ImageSet, chunk_of
from spheregen.evaluation.rows import BLOCK, Rows
from spheregen.evaluation.store import Column, FeatureStore, StoredRows
from spheregen.progress import QuietReporter, Reporter

FEATURE_BATCH = 64
"""Images that go through a feature network together: a property of the figures, like `chunk_of`."""
LARGEST_THUMBNAIL = 64  # pixels
_PIXELS = "pixels"
_SOON = 8  # chunks that are done before anybody asks how far it is


@dataclass(frozen=True)
class Measured:
    """The features of a set of images, on disk."""

    images: ImageSet
    features: Mapping[str, StoredRows]
    """(N, D) of each network."""
    logits: Mapping[str, StoredRows]
    """(N, K) of the networks that classify."""
    thumbnail_rows: StoredRows | None
    """(n, C*s*s) uint8 of the first images."""

    @property
    def labels(self) -> Tensor | None:
        """(N,) class ids, or None."""
        return self.images.labels

    def thumbnails(self) -> Tensor:
        """The first images, uint8 (n, C, s, s), at most 64 pixels wide."""
        assert self.thumbnail_rows is not None
        channels, size = self.images.shape[0], _thumbnail_size(self.images)
        return self.thumbnail_rows[0 : self.thumbnail_rows.shape[0]].view(-1, channels, size, size)


def measure(
    images: ImageSet,
    extractors: Mapping[str, FeatureExtractor],
    folder: Path,
    *,
    thumbnails: int = 0,
    world: World | None = None,
    reporter: Reporter | None = None,
) -> Measured:
    """Features of all images, in a store below `folder`; what is there already from an earlier call is kept.

    All processes of a world call it together and see the same folder; each takes its share of the chunks.

    Args:
        extractors: the networks, by name.
        thumbnails: keep so many of the images, the first ones, at 64 pixels or less.

    Raises:
        DataError: an image cannot be read, or its features are not finite.
        SphereGenError: the disk is full.
    """
    world, reporter = world or World(), reporter or QuietReporter()
    columns: dict[str, Column] = {}
    for name, extractor in extractors.items():
        columns[f"{name} features"] = Column(extractor.info.dim)
        if extractor.info.classes:
            columns[f"{name} logits"] = Column(extractor.info.classes)
    kept = min(thumbnails, len(images))
    if kept:
        columns[_PIXELS] = Column(images.shape[0] * _thumbnail_size(images) ** 2, "uint8", kept)
    plan = {
        "images": images.describe(),
        "features": {name: extractor.info.as_dict() for name, extractor in extractors.items()},
        "feature_batch": FEATURE_BATCH,
    }
    store = FeatureStore(folder, plan, count=len(images), chunk=chunk_of(images.shape), columns=columns)
    if world.is_first:
        store.create()
    world.wait_for_all()
    missing = store.missing()
    world.wait_for_all()  # nobody writes while another still looks
    mine = missing[world.rank :: world.size]
    if len(missing) <= _SOON:
        reporter = QuietReporter()
    if mine:
        reporter.start(store.chunks, store.chunks - len(missing), store.chunk)
        try:
            for done, (chunk, batch) in enumerate(zip(mine, images.stream([store.part(k) for k in mine]), strict=True)):
                store.write(chunk, _arrays(batch, extractors, store.part(chunk), keep=kept > 0))
                reporter.step(min(store.chunks, store.chunks - len(missing) + (done + 1) * world.size), None)
        finally:
            reporter.stop()
    world.wait_for_all()
    return Measured(
        images=images,
        features={name: store.rows(f"{name} features") for name in extractors},
        logits={name: store.rows(f"{name} logits") for name in extractors if f"{name} logits" in columns},
        thumbnail_rows=store.rows(_PIXELS) if kept else None,
    )


def pick(rows: Rows, indices: Sequence[int] | Tensor) -> Tensor:
    """Some rows, (n, D), by ascending numbers, read block by block."""
    wanted = torch.as_tensor(indices, dtype=torch.int64)
    count, dim = rows.shape
    found = torch.empty(len(wanted), dim)
    for start in range(0, count, BLOCK):
        stop = min(start + BLOCK, count)
        here = (wanted >= start) & (wanted < stop)
        if bool(here.any()):
            found[here] = rows[start:stop].float()[wanted[here] - start]
    return found


def spread(count: int, total: int) -> Tensor:
    """`count` of the numbers below `total`, evenly spread and ascending; all of them if there are no more."""
    count = min(count, total)
    return torch.arange(count) * total // max(1, count)


def _arrays(batch: Tensor, extractors: Mapping[str, FeatureExtractor], part: slice, *, keep: bool) -> dict[str, Tensor]:
    arrays: dict[str, Tensor] = {}
    for name, extractor in extractors.items():
        found = [extractor(batch[start : start + FEATURE_BATCH]) for start in range(0, len(batch), FEATURE_BATCH)]
        features = torch.cat([each.features.float().cpu() for each in found])
        if features.shape != (len(batch), extractor.info.dim):
            raise ConfigError(
                f"the network {name} gave features of shape {tuple(features.shape)} for {len(batch)} images; "
                f"it said ({len(batch)}, {extractor.info.dim})"
            )
        finite = torch.isfinite(features).all(dim=1)
        if not bool(finite.all()):
            number = part.start + int((~finite).nonzero()[0, 0])
            raise DataError(
                f"the network {name} gives NaN or infinite features for image {number}; look at that image, and at "
                "whether the network overflows in its type"
            )
        arrays[f"{name} features"] = features
        logits = [each.logits.float().cpu() for each in found if each.logits is not None]
        if logits:
            arrays[f"{name} logits"] = torch.cat(logits)
    if keep:
        arrays[_PIXELS] = _thumbnails(batch)
    return arrays


def _thumbnail_size(images: ImageSet) -> int:
    return min(LARGEST_THUMBNAIL, images.shape[1])


def _thumbnails(batch: Tensor) -> Tensor:
    if batch.shape[-1] <= LARGEST_THUMBNAIL:
        return batch.flatten(1)
    size = (LARGEST_THUMBNAIL, LARGEST_THUMBNAIL)
    small = functional.interpolate(batch.float(), size=size, mode="bilinear", antialias=True, align_corners=False)
    return small.round().clamp(0, 255).to(torch.uint8).flatten(1)
