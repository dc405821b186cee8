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
from spheregen.errors import ConfigError, DataError, ModelFileError
from spheregen.evaluation.feature_cache import FeatureSet, extract_features
from spheregen.evaluation.images import ImageSet, RealImages, spread
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

    Raises:
        ConfigError: an impossible name of a file or an extractor.
        DataError: an image cannot be read.
    """
    if out.suffix.lower() != ".safetensors":
        raise ConfigError(f"reference statistics are a .safetensors file, not {out}; give --out such a name")
    if keep < 0:
        raise ConfigError(f"--keep is a number of images from 0 up, not {keep}")
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
            shutil.rmtree(work, ignore_errors=True)
        world.wait_for_all()
    return reference


def save_reference(path: Path, reference: Reference) -> None:
    """Write a reference as one safetensors file that says where it comes from.

    Raises:
        SphereGenError: the file cannot be written.
    """
    tensors = {"mean": reference.gaussian.mean, "covariance": reference.gaussian.covariance}
    if reference.features is not None:
        tensors["features"] = reference.features
    if reference.labels is not None:
        tensors["labels"] = reference.labels
    network, data = None if reference.info is None else reference.info.as_dict(), dict(reference.data)
    record: dict[str, Any] = {"format": FORMAT, "spheregen": spheregen.__version__, "count": reference.gaussian.count}
    record |= {"network": network, "data": data}
    save_tensors(path, tensors, {"reference": json.dumps(record)})


def load_reference(path: str | Path) -> Reference:
    """Read a reference: our safetensors, or a published .npz with `mu` and `sigma` (ADM, torch-fidelity, pytorch-fid).

    A published file does not say what it was made from; it is taken for Inception features of 2048 numbers.

    Raises:
        ModelFileError: a missing, broken or foreign file.
    """
    place = Path(path)
    if not place.is_file():
        raise ModelFileError(f"there is no reference file {place}; make one with `spheregen stats SRC --features own`")
    if place.stat().st_size > MOST_BYTES:
        raise ModelFileError(f"{place} is larger than {MOST_BYTES >> 30} GiB: no reference statistics")
    return _load_npz(place) if place.suffix.lower() == ".npz" else _load_ours(place)


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
    """Refuse a reference that was made by another network or preprocessing than the samples will be.

    Raises:
        ConfigError: they cannot be compared; says in what they differ.
    """
    mine, where = extractor.info, reference.source or "the reference"
    if reference.gaussian.dim != mine.dim:
        raise ConfigError(
            f"{where} holds features of {reference.gaussian.dim} numbers, the network {mine.name} gives {mine.dim}; "
            "take the reference of that network"
        )
    for key in ("name", "weights", "preprocessing") if reference.info is not None else ():
        ours, theirs = getattr(mine, key), getattr(reference.info, key)
        if ours != theirs:
            raise ConfigError(
                f"{where} was made with {key} {theirs!r}, the samples with {ours!r}; make the reference again with "
                "`spheregen stats`"
            )
    shape = (reference.data.get("channels"), reference.data.get("image_size"))
    if reference.data and shape != images.shape[:2]:
        raise ConfigError(
            f"{where} is of images with {shape[0]} channels and {shape[1]} px, the samples have {images.shape[0]} and "
            f"{images.shape[1]} px; make a reference of that size with `spheregen stats --image-size {images.shape[1]}`"
        )


def _load_npz(path: Path) -> Reference:
    try:
        with np.load(path, allow_pickle=False) as file:
            if not {"mu", "sigma"} <= set(file.files):
                raise ModelFileError(f"{path} holds {', '.join(file.files[:5])}; a reference holds mu and sigma")
            mean, covariance = (torch.from_numpy(np.asarray(file[name], np.float64)) for name in ("mu", "sigma"))
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ModelFileError(f"cannot read {path} ({str(error).splitlines()[0]}); get the file again") from error
    return Reference(gaussian=_gaussian(path, mean, covariance, None), source=str(path))


def _load_ours(path: Path) -> Reference:
    try:
        with safe_open(path, "pt") as file:
            record = json.loads((file.metadata() or {}).get("reference", "null"))
            names = set(file.keys())
            tensors = {name: file.get_tensor(name) for name in names & {"mean", "covariance", "features", "labels"}}
    except (OSError, SafetensorError, ValueError) as error:
        reason = (str(error).splitlines() or ["no text"])[0]
        raise ModelFileError(f"cannot read {path} ({reason}); a reference is .safetensors or .npz") from error
    if not isinstance(record, dict) or record.get("format") != FORMAT or not {"mean", "covariance"} <= names:
        raise ModelFileError(f"{path} is no reference file; make one with `spheregen stats SRC --features own`")
    features, network, count = tensors.get("features"), record.get("network"), record.get("count")
    if features is not None and (features.ndim != 2 or features.shape[1] != len(tensors["mean"])):
        raise ModelFileError(f"{path} holds features of shape {tuple(features.shape)}; make it again")
    try:
        return Reference(
            gaussian=_gaussian(path, tensors["mean"], tensors["covariance"], count if isinstance(count, int) else None),
            features=features,
            labels=tensors.get("labels"),
            info=None if network is None else FeatureInfo(**network),
            data=dict(record.get("data") or {}),
            source=str(path),
        )
    except (TypeError, ValueError) as error:
        raise ModelFileError(f"{path} describes its network in a way unknown to this version; make it again") from error


def _gaussian(path: Path, mean: Tensor, covariance: Tensor, count: int | None) -> Gaussian:
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
        raise ModelFileError(
            f"{path} holds a mean of shape {tuple(mean.shape)} and a covariance of {tuple(covariance.shape)}; "
            "get the file again"
        )
    if not bool(torch.isfinite(mean).all()) or not bool(torch.isfinite(covariance).all()):
        raise DataError(f"{path} holds NaN or infinite numbers; make it again")
    return Gaussian(mean=mean.double(), covariance=covariance.double(), count=count)
