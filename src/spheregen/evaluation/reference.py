"""References that samples are compared with: statistics of real images, made, written and read."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

import spheregen
from spheregen.data import ImageOptions, ImageSource
from spheregen.devices import choose_device
from spheregen.distributed import joined_world, local_device
from spheregen.errors import ConfigError, ModelFileError
from spheregen.evaluation.feature_cache import FeatureSet, extract_features
from spheregen.evaluation.images import ImageSet, RealImages, spread
from spheregen.files import parse_json
from spheregen.measure.features import FeatureExtractor, FeatureInfo, load_extractors
from spheregen.measure.metrics import Gaussian, gaussian
from spheregen.progress import QuietReporter, Reporter
from spheregen.tensors import save_tensors

KEPT = 10_000
"""Images whose features a reference holds, for the metrics that compare images one by one."""
FORMAT = "spheregen-reference-1"
MOST_BYTES = 4 << 30
"""Larger reference files are refused before they are read."""


@dataclass(frozen=True, kw_only=True)
class Reference:
    """The statistics of real images under one feature extractor."""

    gaussian: Gaussian
    """Mean and covariance over all images."""
    features: Tensor | None = None
    """(n, D) float32 of some of the images, evenly spread; None: a published file has only the moments."""
    labels: Tensor | None = None
    """(n,) class ids of these."""
    digests: Tensor | None = None
    """(N, 8) uint8 of all images, see `FeatureSet`; None where the file does not hold them."""
    info: FeatureInfo | None = None
    """The network; None where the file does not say."""
    data: Mapping[str, Any] = field(default_factory=dict)
    """Which images, and how they were brought to size."""
    source: str = ""
    """The file that it was read from; empty for one made just now."""

    @property
    def record(self) -> dict[str, Any]:
        """All that a figure must say of its reference."""
        kept = 0 if self.features is None else len(self.features)
        record = {**self.data, "kept": kept}
        return {**record, "file": Path(self.source).name} if self.source else record


def build_reference(measured: FeatureSet, name: str, info: FeatureInfo, *, keep: int = KEPT) -> Reference:
    """Return the statistics of measured real images under the extractor `name`."""
    features = measured.features[name]
    chosen = spread(keep, len(features))
    return Reference(
        gaussian=gaussian(features),
        features=features[chosen],
        labels=None if measured.labels is None else measured.labels[chosen],
        digests=measured.digests.clone(),
        info=info,
        data=measured.images.describe(),
    )


def write_statistics(
    source: ImageSource,
    options: ImageOptions,
    features: str,
    out: Path,
    *,
    keep: int = KEPT,
    limit: int | None = None,
    workers: int = 0,
    device: str = "auto",
    reporter: Reporter | None = None,
) -> Reference:
    """Write mean and covariance of the features of all images, and the features of some, as one safetensors file.

    Under `torchrun` all processes share the work. What was measured lies beside the file until it is written, so the
    same call again continues after an interruption.

    Args:
        features: one feature extractor, see `load_extractor`.
        out: the file, .safetensors.
        keep: images whose features are kept for KID, precision and recall; evenly spread.
        limit: measure this many images at most, evenly spread.
    """
    if out.suffix.lower() != ".safetensors" or keep < 0:
        raise ConfigError(f"--out is a .safetensors file, not {out}, and --keep a number of images from 0, not {keep}")
    work = out.with_name(f".{out.name}.work")
    with joined_world(device) as world:
        extractors = load_extractors([features], choose_device(local_device(device, world)))
        ((name, extractor),) = extractors.items()
        images = RealImages(source, options, limit=limit, workers=workers)
        reporter = reporter if reporter is not None and world.is_first else QuietReporter()
        measured = extract_features(images, extractors, work, world=world, reporter=reporter)
        reference = build_reference(measured, name, extractor.info, keep=keep)
        del measured  # lets go of the files
        if world.is_first:
            save_reference(out, reference)
        world.wait_for_all()  # all have read what they need
        if world.is_first:
            shutil.rmtree(work, ignore_errors=True)
    return reference


def save_reference(path: Path, reference: Reference) -> None:
    """Write a reference as one safetensors file that says where it comes from."""
    tensors = {"mean": reference.gaussian.mean, "covariance": reference.gaussian.covariance}
    if reference.features is not None:
        tensors["features"] = reference.features
    if reference.labels is not None:
        tensors["labels"] = reference.labels
    if reference.digests is not None:
        tensors["digests"] = reference.digests
    record = {
        "format": FORMAT,
        "spheregen": spheregen.__version__,
        "count": reference.gaussian.count,
        "network": None if reference.info is None else reference.info.as_dict(),
        "data": dict(reference.data),
    }
    save_tensors(path, tensors, {"reference": json.dumps(record)})


def load_reference(path: str | Path) -> Reference:
    """Read a reference: our safetensors, or a published .npz with `mu` and `sigma` (ADM, torch-fidelity, pytorch-fid).

    A published file does not say what it was made from; it is taken for Inception features of 2048 numbers.

    Raises:
        ModelFileError: a missing, broken or foreign file.
    """
    place, cure = Path(path), "make one with `spheregen stats SRC --features own`"
    if not place.is_file() or place.stat().st_size > MOST_BYTES:
        raise ModelFileError(f"{place} is missing, or larger than {MOST_BYTES >> 30} GiB; {cure}")
    try:
        return _load_npz(place) if place.suffix.lower() == ".npz" else _load_ours(place)
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, SafetensorError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ModelFileError(f"{place} is no reference file ({reason}); {cure}") from error


def load_references(files: Sequence[str], names: Sequence[str]) -> dict[str, Reference]:
    """Read reference files by extractor: as the name in front (`NAME=FILE`) says, as the file says, else Inception.

    Raises:
        ModelFileError: a missing, broken or foreign file.
        ConfigError: a reference of an extractor that is not used, or two of one.
    """
    found: dict[str, Reference] = {}
    for text in files:
        name, equals, file = text.partition("=")
        reference = load_reference(file if equals else text)
        if not equals:
            name = "inception" if reference.info is None else reference.info.name
        if name not in names:
            raise ConfigError(
                f"{file or text} is a reference of the network {name}, which is not used; add it to --features "
                f"({', '.join(names)})"
            )
        if name in found:
            raise ConfigError(f"there are two references of the network {name}; give one")
        found[name] = reference
    return found


def check_reference(reference: Reference, extractor: FeatureExtractor, images: ImageSet) -> None:
    """Refuse a reference that was made by another network or preprocessing than the samples will be."""
    mine, theirs, where = extractor.info, reference.info, reference.source or "the reference"
    data, (channels, size, _) = reference.data, images.shape
    pairs = {
        "features of so many numbers": (reference.gaussian.dim, mine.dim),
        **{key: (getattr(theirs, key), getattr(mine, key)) for key in ("name", "weights", "preprocessing") if theirs},
        **({"channels and pixels": ((data.get("channels"), data.get("image_size")), (channels, size))} if data else {}),
    }
    for key, (one, other) in pairs.items():
        if one != other:
            raise ConfigError(
                f"{where} was made with {key} {one}, the samples with {other}; make the reference again with "
                f"`spheregen stats --features {mine.name} --image-size {size}`"
            )


def count_shared(samples: FeatureSet, reference: Reference | FeatureSet) -> int:
    """Return how many samples are, pixel for pixel, also among the images of a reference; 0 where it does not say."""
    if reference.digests is None or reference.digests.shape[1:] != samples.digests.shape[1:]:
        return 0
    mine, theirs = (
        np.ascontiguousarray(digests.numpy()).view(np.uint64).ravel()
        for digests in (samples.digests, reference.digests)
    )
    return int(np.isin(mine, theirs).sum())


def _load_npz(path: Path) -> Reference:
    with np.load(path, allow_pickle=False) as file:
        mean, covariance = (torch.from_numpy(np.asarray(file[name], np.float64)) for name in ("mu", "sigma"))
    return Reference(gaussian=_gaussian(mean, covariance, None), source=str(path))


def _load_ours(path: Path) -> Reference:
    with safe_open(path, "pt") as file:
        record = parse_json((file.metadata() or {})["reference"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if record["format"] != FORMAT:
        raise ValueError(f"its format is {record['format']}")
    features, network, count = tensors.get("features"), record.get("network"), record.get("count")
    if features is not None and (features.ndim != 2 or features.shape[1] != len(tensors["mean"])):
        raise ValueError(f"its features have shape {tuple(features.shape)}")
    return Reference(
        gaussian=_gaussian(tensors["mean"], tensors["covariance"], count if isinstance(count, int) else None),
        features=features,
        labels=tensors.get("labels"),
        digests=tensors.get("digests"),
        info=None if network is None else FeatureInfo(**network),
        data=dict(record.get("data") or {}),
        source=str(path),
    )


def _gaussian(mean: Tensor, covariance: Tensor, count: int | None) -> Gaussian:
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
        raise ValueError(f"mean of shape {tuple(mean.shape)}, covariance of {tuple(covariance.shape)}")
    if not bool(mean.isfinite().all() and covariance.isfinite().all()):
        raise ValueError("it holds NaN or infinite numbers")
    return Gaussian(mean=mean.double(), covariance=covariance.double(), count=count)
