"""All figures of a set of images against a reference, under one network."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from spheregen.errors import ConfigError, DataError, did_you_mean
from spheregen.evaluation.features.base import FeatureInfo
from spheregen.evaluation.measure import Measured, pick, spread
from spheregen.evaluation.metrics import (
    cmmd,
    frechet_distance,
    inception_score,
    kernel_distance,
    manifold,
    moments,
)
from spheregen.evaluation.reference import Reference
from spheregen.evaluation.rows import PlacedRows, Rows

METRICS = ("frechet", "kid", "class_score", "manifold", "cmmd")
"""Frechet distance; kernel distance; the Inception Score (of other classifiers: class score); precision, recall,
density and coverage; CLIP's maximum mean discrepancy."""
MOST_NEIGHBOURS = 10_000
"""Images of each side for the metrics that compare all with all."""
KID_SUBSET = 1000
SPLITS = 10


@dataclass(frozen=True)
class Figures:
    """Named figures, and why others are missing."""

    values: dict[str, float]
    notes: tuple[str, ...]
    neighbours: int
    """Images of each side in the metrics that compare all with all."""


def choose_metrics(names: Sequence[str] | None, info: FeatureInfo) -> tuple[str, ...]:
    """The metrics that a network allows, or of them those that were asked for.

    Raises:
        ConfigError: an unknown metric, or one that this network has no use for.
    """
    able = [name for name in METRICS if _able(name, info)]
    if names is None:
        return tuple(able)
    for name in names:
        if name not in METRICS:
            raise ConfigError(f"unknown metric {name!r}{did_you_mean(name, METRICS)}; use {', '.join(METRICS)}")
        if name not in able:
            needs = "class logits" if name == "class_score" else "features of unit norm (clip)"
            raise ConfigError(f"the metric {name} needs {needs}, which the network {info.name} does not give")
    return tuple(names)


def check_metrics(names: Sequence[str] | None, infos: Iterable[FeatureInfo], count: int) -> None:
    """Refuse metrics that were asked for and cannot be had of `count` samples, before any work is done.

    Raises:
        ConfigError: see `choose_metrics`.
        DataError: too few samples.
    """
    for info in infos:
        choose_metrics(names, info)
    if names is not None and "kid" in names and count < KID_SUBSET:
        raise DataError(f"the metric kid takes subsets of {KID_SUBSET} samples, and there are {count}; give more")


def figures(
    measured: Measured,
    reference: Reference,
    info: FeatureInfo,
    *,
    metrics: Sequence[str] | None = None,
    device: torch.device | str = "cpu",
) -> Figures:
    """The figures of measured images under one network.

    Args:
        metrics: those that are wanted; one that cannot be had is an error then. None: all that can be had.
        device: computes; in float64, so the CPU's part where a device has none (Apple's).

    Raises:
        DataError: too few images for a metric that was asked for.
        ConfigError: a metric that this network or this reference does not allow.
    """
    values: dict[str, float] = {}
    notes: list[str] = []
    for metric in choose_metrics(metrics, info):
        try:
            values |= _figure(metric, measured, reference, info, torch.device(device))
        except (DataError, ConfigError) as error:
            if metrics is not None:
                raise
            notes.append(f"no {metric}: {error}")
    count, dim = measured.features[info.name].shape
    if "frechet" in values and count <= dim:
        notes.append(
            f"{count} images for {dim} features: the covariance has not full rank, so {info.distance} is far too large"
        )
    neighbours = 0 if reference.features is None else _neighbours(measured.features[info.name], reference.features)
    return Figures(values, tuple(notes), neighbours)


def _figure(
    metric: str, measured: Measured, reference: Reference, info: FeatureInfo, device: torch.device
) -> dict[str, float]:
    rows: Rows = PlacedRows(measured.features[info.name], device)
    if metric == "frechet":
        return {"frechet": frechet_distance(moments(rows).gaussian, reference.gaussian)}
    if metric == "class_score":
        score = inception_score(PlacedRows(measured.logits[info.name], device), splits=SPLITS)
        name = "inception_score" if info.name == "inception" else "class_score"
        return {name: score.value, f"{name}_deviation": score.deviation}
    if reference.features is None:
        raise ConfigError(
            f"{reference.source} holds only moments; the metric {metric} needs single features: give --data, or a "
            "reference made by `spheregen stats`"
        )
    if metric == "kid":
        distance = kernel_distance(rows, PlacedRows(reference.features, device), size=KID_SUBSET)
        return {"kid": distance.value, "kid_error": distance.error}
    count = _neighbours(rows, reference.features)
    samples = rows[0:count]  # the first ones, as seeds are all alike
    real = pick(reference.features, spread(count, len(reference.features))).to(device)
    if metric == "cmmd":
        return {"cmmd": cmmd(samples, real)}
    found = manifold(samples, real)
    return {
        "precision": found.precision,
        "recall": found.recall,
        "density": found.density,
        "coverage": found.coverage,
    }


def _neighbours(rows: Rows, kept: Tensor) -> int:
    return min(rows.shape[0], len(kept), MOST_NEIGHBOURS)


def _able(metric: str, info: FeatureInfo) -> bool:
    if metric == "class_score":
        return info.classes > 0
    return metric != "cmmd" or info.normalised
