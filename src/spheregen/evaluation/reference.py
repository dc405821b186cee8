"""What samples are compared with: the statistics of real images under one network, and where they come from."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

import spheregen
from spheregen.errors import ConfigError, DataError, ModelFileError
from spheregen.evaluation.features.base import FeatureExtractor, FeatureInfo
from spheregen.evaluation.images import ImageSet
from spheregen.evaluation.measure import Measured, pick, spread
from spheregen.evaluation.metrics import Gaussian, moments
from spheregen.model_folder import save_tensors

KEPT = 10_000
"""Images whose features a reference holds, for the metrics that compare images one by one."""
FORMAT = "spheregen-reference-1"
MOST_BYTES = 4 << 30
"""Larger reference files are refused before they are read."""


@dataclass(frozen=True, kw_only=True)
class Reference:
    """Real images as one network sees them."""

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
        """What a figure must say of its reference."""
        kept = 0 if self.features is None else len(self.features)
        record = {**self.data, "kept": kept}
        return {**record, "file": Path(self.source).name} if self.source else record


def build_reference(measured: Measured, name: str, info: FeatureInfo, *, keep: int = KEPT) -> Reference:
    """The statistics of measured real images under the network `name`."""
    rows = measured.features[name]
    chosen = spread(keep, rows.shape[0])
    return Reference(
        gaussian=moments(rows).gaussian,
        features=pick(rows, chosen),
        labels=None if measured.labels is None else measured.labels[chosen],
        info=info,
        data=measured.images.describe(),
    )


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
    place = Path(path)
    if not place.is_file():
        raise ModelFileError(f"there is no reference file {place}; make one with `spheregen stats SRC --features own`")
    if place.stat().st_size > MOST_BYTES:
        raise ModelFileError(f"{place} is larger than {MOST_BYTES >> 30} GiB: no reference statistics")
    return _load_npz(place) if place.suffix.lower() == ".npz" else _load_ours(place)


def check_reference(reference: Reference, extractor: FeatureExtractor, images: ImageSet) -> None:
    """Refuse a reference that was made by another network or preprocessing than the samples will be.

    Raises:
        ConfigError: they cannot be compared; says in what they differ.
    """
    mine, theirs = extractor.info, reference.info
    where = reference.source or "the reference"
    if reference.gaussian.mean.shape[0] != mine.dim:
        raise ConfigError(
            f"{where} holds features of {reference.gaussian.mean.shape[0]} numbers, the network {mine.name} gives "
            f"{mine.dim}; take the reference of that network"
        )
    if theirs is not None:
        for key in ("name", "weights", "preprocessing"):
            if getattr(mine, key) != getattr(theirs, key):
                raise ConfigError(
                    f"{where} was made with {key} {getattr(theirs, key)!r}, the samples with {getattr(mine, key)!r}; "
                    "make the reference again with `spheregen stats`"
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
    count, network, data = record.get("count"), record.get("network"), record.get("data")
    gaussian = _gaussian(path, tensors["mean"], tensors["covariance"], count if isinstance(count, int) else None)
    features = tensors.get("features")
    if features is not None and (features.ndim != 2 or features.shape[1] != gaussian.mean.shape[0]):
        raise ModelFileError(f"{path} holds features of shape {tuple(features.shape)}; make it again")
    try:
        info = None if network is None else FeatureInfo(**network)
    except TypeError as error:
        raise ModelFileError(f"{path} describes its network in a way unknown to this version; make it again") from error
    return Reference(
        gaussian=gaussian,
        features=features,
        labels=tensors.get("labels"),
        info=info,
        data=data if isinstance(data, dict) else {},
        source=str(path),
    )


def _gaussian(path: Path, mean: Tensor, covariance: Tensor, count: int | None) -> Gaussian:
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
        raise ModelFileError(
            f"{path} holds a mean of shape {tuple(mean.shape)} and a covariance of {tuple(covariance.shape)}; "
            "get the file again"
        )
    if not bool(torch.isfinite(mean).all()) or not bool(torch.isfinite(covariance).all()):
        raise DataError(f"{path} holds NaN or infinite numbers; make it again")
    return Gaussian(mean=mean.double(), covariance=covariance.double(), count=count)
