"""A whole evaluation: figures that carry their recipe with them, curves, and the studies that keep figures honest.

Everything that takes long goes through stores on disk (`measure`), so an interrupted evaluation continues and several
processes share the work; what remains is computed by the first process from these stores, in one order. Hence the same
figures on one process and on many.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

import spheregen
from spheregen.data.grids import Rounding
from spheregen.distributed import World
from spheregen.errors import ConfigError
from spheregen.evaluation.curves import CurveRequest, check_curves
from spheregen.evaluation.features.base import FeatureExtractor
from spheregen.evaluation.figures import Figures, check_metrics, figures
from spheregen.evaluation.images import GeneratedImages, ImagesAsTheyAre, ImageSet, RealImages, chunk_of
from spheregen.evaluation.line import line_of
from spheregen.evaluation.measure import Measured, measure
from spheregen.evaluation.reference import Reference, build_reference, check_reference
from spheregen.evaluation.report.sections import FORMAT
from spheregen.pipeline import GenerationOptions, Pipeline
from spheregen.progress import QuietReporter, Reporter


@dataclass(frozen=True, kw_only=True)
class EvaluationOptions:
    """What is measured, and how."""

    count: int = 10_000
    """Samples, evenly of all classes; the literature takes 50 000."""
    seed: int = 0
    """Sample i has seed `seed + i`."""
    generation: GenerationOptions = field(default_factory=GenerationOptions)
    """How to sample; what is None takes the model's default."""
    rounding: Rounding = "round"
    """How samples become 8 bits: `round`, or `floor` as the published figures were made."""
    metrics: tuple[str, ...] | None = None
    """Some of `figures.METRICS`; None: all that can be had."""
    curves: tuple[CurveRequest, ...] = ()
    curve_count: int = 2000
    """Samples of each point of a curve."""
    thumbnails: int = 0
    """Samples that are kept as small pictures, for the studies."""

    def __post_init__(self) -> None:
        for name in ("count", "curve_count"):
            if getattr(self, name) < 2:
                raise ConfigError(f"{name} is at least 2 samples, not {getattr(self, name)}")


@dataclass(frozen=True)
class Scores:
    """A set of images with its figures under each network; the figures are empty on all processes but the first."""

    measured: Measured
    figures: Mapping[str, Figures]

    @property
    def values(self) -> dict[str, dict[str, float]]:
        """The figures alone, by network."""
        return {name: found.values for name, found in self.figures.items()}


@dataclass(frozen=True)
class Evaluator:
    """Networks and references, ready to score any set of images.

    Args:
        extractors: feature networks, by name.
        references: what to compare with, by the same names.
        work: the folder of the stores.
        world: the processes that share the work.
        reporter: tells of progress.
        device: computes the metrics.
    """

    extractors: Mapping[str, FeatureExtractor]
    references: Mapping[str, Reference]
    work: Path
    world: World = field(default_factory=World)
    reporter: Reporter = field(default_factory=QuietReporter)
    device: torch.device | str = "cpu"

    def score(self, images: ImageSet, *, metrics: Sequence[str] | None = None, thumbnails: int = 0) -> Scores:
        """Measure a set of images and compare it with the references; all processes call it together.

        Raises:
            ConfigError: a reference of another network, preprocessing or size; an impossible metric.
            DataError: an image cannot be read, or too few of them for a metric that was asked for.
        """
        check_metrics(metrics, [extractor.info for extractor in self.extractors.values()], len(images))
        for name, extractor in self.extractors.items():
            check_reference(self.references[name], extractor, images)
        measured = measure(
            images, self.extractors, self.work, thumbnails=thumbnails, world=self.world, reporter=self.reporter
        )
        found: dict[str, Figures] = {}
        if self.world.is_first:
            for name, extractor in self.extractors.items():
                found[name] = figures(
                    measured, self.references[name], extractor.info, metrics=metrics, device=self.device
                )
        return Scores(measured, found)


def make_references(
    data: RealImages | None,
    extractors: Mapping[str, FeatureExtractor],
    given: Mapping[str, Reference],
    work: Path,
    *,
    thumbnails: int = 0,
    world: World | None = None,
    reporter: Reporter | None = None,
) -> tuple[dict[str, Reference], Measured | None]:
    """The reference of each network: the given one, else made of `data`; and the measured data.

    Raises:
        ConfigError: neither a reference nor data.
    """
    lacking = [name for name in extractors if name not in given]
    if lacking and data is None:
        raise ConfigError(
            f"there is nothing to compare the {lacking[0]} features with; give --data SRC, or --reference FILE"
        )
    if data is None:
        return dict(given), None
    measured = measure(data, extractors, work, thumbnails=thumbnails, world=world, reporter=reporter)
    references = dict(given)
    for name in lacking:
        references[name] = build_reference(measured, name, extractors[name].info)
    return references, measured


def evaluate(pipe: Pipeline, options: EvaluationOptions, evaluator: Evaluator) -> tuple[dict[str, Any], Scores]:
    """The figures of a model's samples, as a result that says all that is needed to repeat them.

    Returns:
        The result, plain JSON values (metrics empty on all processes but the first), and the scored samples.

    Raises:
        ConfigError, DataError: see `Evaluator.score`.
    """
    check_curves(pipe, options.generation, options.curves)
    samples = GeneratedImages(
        pipe, options.count, seed=options.seed, options=options.generation, rounding=options.rounding
    )
    scores = evaluator.score(samples, metrics=options.metrics, thumbnails=options.thumbnails)
    protocol = {key: value for key, value in samples.describe().items() if key != "model"}
    threads = torch.get_num_threads() if pipe.device.type == "cpu" else None  # their number moves the last bits
    protocol |= {"device": str(pipe.device), "threads": threads, "batch": chunk_of(samples.shape)}
    return _result(describe_model(pipe), protocol, evaluator, scores), scores


def evaluate_images(
    images: ImagesAsTheyAre, evaluator: Evaluator, metrics: Sequence[str] | None = None
) -> tuple[dict[str, Any], Scores]:
    """The figures of samples that lie in a folder or archive, as a result like that of `evaluate`."""
    scores = evaluator.score(images, metrics=metrics)
    name = images.source.name
    model = {
        "name": name,
        "fingerprint": images.source.fingerprint[:12],
        "class": "images",
        "image_shape": [*images.shape],
    }
    return _result(model, {**images.describe(), "batch": chunk_of(images.shape)}, evaluator, scores), scores


def describe_model(pipe: Pipeline) -> dict[str, Any]:
    """What a result says of the model."""
    return {
        "name": pipe.name,
        "fingerprint": pipe.identity,
        "class": type(pipe.model).__name__,
        "image_shape": list(pipe.model.image_shape),
        "latent_shape": list(pipe.model.latent_shape),
        "num_classes": pipe.model.num_classes,
        "class_names": list(pipe.info.class_names),
        "params": sum(parameter.numel() for parameter in pipe.model.parameters()),
        "training": dict(pipe.info.training),
    }


def _result(model: dict[str, Any], protocol: dict[str, Any], evaluator: Evaluator, scores: Scores) -> dict[str, Any]:
    versions = {"torch": torch.__version__, "spheregen": spheregen.__version__}
    result: dict[str, Any] = {
        "format": FORMAT,
        "spheregen": spheregen.__version__,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "line": "",
        "model": model,
        "protocol": protocol | versions,
        "metrics": {},
        "notes": [],
    }
    for name, found in scores.figures.items():
        reference = evaluator.references[name]
        result["metrics"][name] = {
            "features": evaluator.extractors[name].info.as_dict(),
            "reference": {**reference.record, "count": reference.gaussian.count},
            "figures": found.values,
            "neighbours": found.neighbours,
        }
        result["notes"] += [f"{name}: {note}" for note in found.notes]
    result["line"] = line_of(result)
    return result
