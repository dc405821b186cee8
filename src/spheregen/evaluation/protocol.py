"""The protocol of an evaluation: options, the metrics that can be had, and the line that makes figures repeatable."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from spheregen.data.grids import Rounding
from spheregen.errors import ConfigError, DataError, did_you_mean
from spheregen.evaluation.report.sections import Figure, figures_in
from spheregen.measure.features import FeatureInfo
from spheregen.pipeline import GenerationOptions

METRICS = ("class_accuracy", "frechet", "kid", "class_score", "manifold", "cmmd")
"""The share of samples in which a classifier sees the class that was asked for; Frechet distance; kernel distance; the
Inception Score (of other classifiers: class score); precision, recall, density and coverage; CLIP's
maximum mean discrepancy."""
KID_SUBSET = 1000


@dataclass(frozen=True)
class CurveRequest:
    """One setting of sampling and the values that it takes, in order."""

    name: str
    """One of `curves.NAMES`."""
    values: tuple[Any, ...]


@dataclass(frozen=True, kw_only=True)
class EvaluationOptions:
    """Which samples are measured, by which metrics."""

    count: int = 10_000
    """Samples, evenly of all classes; the literature takes 50 000."""
    seed: int = 0
    """Sample i has seed `seed + i`."""
    generation: GenerationOptions = field(default_factory=GenerationOptions)
    """How to sample; what is None takes the model's default."""
    rounding: Rounding = "round"
    """How samples become 8 bits: `round`, or `floor` as the published figures were made."""
    metrics: tuple[str, ...] | None = None
    """Some of `METRICS`; None: all that can be had."""
    curves: tuple[CurveRequest, ...] = ()
    curve_count: int = 2000
    """Samples of each point of a curve."""
    thumbnails: int = 0
    """Samples that are kept as small images, for the studies."""

    def __post_init__(self) -> None:
        for name in ("count", "curve_count"):
            if getattr(self, name) < 2:
                raise ConfigError(f"{name} is at least 2 samples, not {getattr(self, name)}")


def choose_metrics(names: Sequence[str] | None, info: FeatureInfo) -> tuple[str, ...]:
    """Return the metrics that a feature extractor allows, or of them those that were asked for."""
    return tuple(name for name in (METRICS if names is None else names) if name not in _lacking(info))


def _lacking(info: FeatureInfo) -> dict[str, str]:
    """Return the metrics that a feature extractor does not allow, and what they need."""
    return {
        **({} if info.accuracy is not None else {"class_accuracy": "the network classifier"}),
        **({} if info.classes and info.accuracy is None else {"class_score": "logits of many classes"}),
        **({} if info.normalised else {"cmmd": "features of unit norm (clip)"}),
    }


def check_metrics(
    names: Sequence[str] | None, infos: Sequence[FeatureInfo], count: int, *, classified: bool = False
) -> None:
    """Refuse metrics that were asked for and cannot be had of `count` samples, before any work is done.

    Args:
        infos: of the networks; one of them must allow the metric.
        classified: there will be a classifier beside them.
    """
    for name in names or ():
        if name not in METRICS:
            raise ConfigError(f"unknown metric {name!r}{did_you_mean(name, METRICS)}; use {', '.join(METRICS)}")
        needs = [_lacking(info).get(name, "") for info in infos]
        if all(needs) and not (classified and name not in ("class_score", "cmmd")):
            networks = " and ".join(info.name for info in infos) or "the network classifier"
            need = needs[0] if needs else "another network"
            raise ConfigError(f"the metric {name} needs {need}; {networks} does not give it")
    if names is not None and "kid" in names and count < KID_SUBSET:
        raise DataError(f"the metric kid takes subsets of {KID_SUBSET} samples, and there are {count}; give more")


def line_of(result: Mapping[str, Any]) -> str:
    """Return the figures in one line with everything that is needed to repeat them."""
    protocol = result["protocol"]
    figures = "; ".join(_against(name, each) for name, each in result["metrics"].items())
    batches = f"batches of {protocol['batch']}, spheregen {protocol['spheregen']}, torch {protocol['torch']}"
    return f"{figures}; {_samples(result['model'], protocol)}, {batches}"


def _against(name: str, metrics: Mapping[str, Any]) -> str:
    info, reference = metrics["features"], metrics["reference"]
    values = ", ".join(_told(figure, metrics["figures"], info) for figure in figures_in(metrics["figures"]))
    source = reference.get("file") or f"{reference['source']}/{reference['split']}"
    told = [f"{reference['count']} images" if reference["count"] else "count unknown"]
    if "fingerprint" in reference:
        told += [reference["fingerprint"][:12], _channels(reference), f"{reference['image_size']} px"]
        told += [reference["fit"], reference["resize"]]
    return f"{values or 'no figures'} against {source} ({', '.join(told)}) by {name}@{info['weights'][:8]}"


def _samples(model: Mapping[str, Any], protocol: Mapping[str, Any]) -> str:
    whose = f"{protocol['count']} samples of {model['name'] or model['class']} ({model['fingerprint']})"
    if "seed" not in protocol:
        changes = [f"{count} {what}" for what, count in protocol["changed"].items()]
        how = f"{', '.join(changes)} ({protocol['fit']}, {protocol['resize']})" if changes else "as they are"
        shared = protocol["also_in_reference"]
        how += f", {shared} also in the reference" if shared else ""
        return f"{whose}, split {protocol['split']}, {how}, {protocol['image_size']} px, {_channels(protocol)}"
    schedule = protocol["schedule"]
    if not isinstance(schedule, str):
        schedule = f"[{', '.join(f'{radius:g}' for radius in schedule)}]"
    threads = f" with {protocol['threads']} threads" if protocol.get("threads") else ""
    noise = "shared" if protocol["share_noise"] else "fresh"
    refined = ""
    if protocol.get("refinement_steps"):
        guidance = protocol["refinement_guidance"]
        refined = f", refined in {_steps(protocol['refinement_steps'])} by {protocol['solver']}, guidance {guidance}"
    return (
        f"{whose}, seeds {protocol['seed']} to {protocol['seed'] + protocol['count'] - 1}, {protocol['labels']} "
        f"labels, {_steps(protocol['steps'])}, {schedule} schedule, {noise} noise, "
        f"guidance {protocol['guidance']} at {protocol['guidance_at']}{refined}, 8 bits by {protocol['quantise']}, "
        f"{protocol['dtype']} on {protocol['device']}{threads}"
    )


def _channels(described: Mapping[str, Any]) -> str:
    return "grey" if described["channels"] == 1 else "colour"


def _steps(count: int) -> str:
    return f"{count} step{'s' if count != 1 else ''}"


def _told(figure: Figure, values: Mapping[str, float], info: Mapping[str, Any]) -> str:
    """Return a figure with its name, its network where the name alone does not say it, and its error."""
    value = values[figure.key]
    if figure.key == "frechet":
        return f"{info['distance']} {value:.4f}"
    whose = "" if info["name"] in ("inception", "clip", "classifier") else f"-{info['name']}"
    name, digits = (f"KID{whose}", 6) if figure.key == "kid" else (figure.title, 4)
    error = values.get(figure.error) if figure.error else None
    return f"{name} {value:.{digits}f}" + ("" if error is None else f" +- {error:.{digits}f}")
