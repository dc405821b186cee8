"""A whole evaluation: figures that carry their recipe with them, curves, and the studies that keep figures honest.

Everything that takes long goes through stores on disk (`measure`), so an interrupted evaluation continues and several
processes share the work; what remains is computed by the first process from these stores, in one order. Hence the same
figures on one process and on many.
"""

from __future__ import annotations

import dataclasses
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
from spheregen.evaluation.cost import GeneratorCost, autoencoder_cost
from spheregen.evaluation.curves import CurvePoint, CurveRequest, check_curves, curve_options
from spheregen.evaluation.features.base import FeatureExtractor
from spheregen.evaluation.figures import Figures, check_metrics, figures
from spheregen.evaluation.images import GeneratedImages, ImagesAsTheyAre, ImageSet, RealImages, chunk_of
from spheregen.evaluation.latency import sampling_speed
from spheregen.evaluation.measure import Measured, measure
from spheregen.evaluation.reference import Reference, build_reference, check_reference
from spheregen.evaluation.report.figures import Figure, figures_in
from spheregen.evaluation.report.sections import FORMAT
from spheregen.pipeline import GenerationOptions, Pipeline
from spheregen.progress import QuietReporter, Reporter

SPEED_STEPS = (1, 2, 4, 6, 8)


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
    protocol |= {"device": str(pipe.device), "batch": chunk_of(samples.shape)}
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


def line_of(result: Mapping[str, Any]) -> str:
    """The figures in one line with everything that is needed to repeat them."""
    protocol = result["protocol"]
    figures = "; ".join(_against(name, each) for name, each in result["metrics"].items())
    batches = f"batches of {protocol['batch']}, spheregen {protocol['spheregen']}, torch {protocol['torch']}"
    return f"{figures}; {_samples(result['model'], protocol)}, {batches}"


def _against(name: str, metrics: Mapping[str, Any]) -> str:
    """The figures under a network, and the reference."""
    info, reference = metrics["features"], metrics["reference"]
    values = ", ".join(tell(figure, metrics["figures"], info) for figure in figures_in(metrics["figures"]))
    source = reference.get("file") or f"{reference['source']}/{reference['split']}"
    told = [f"{reference['count']} images" if reference["count"] else "count unknown"]
    if "fingerprint" in reference:
        told += [reference["fingerprint"][:12], f"{reference['image_size']} px", reference["fit"], reference["resize"]]
    return f"{values} against {source} ({', '.join(told)}) by {name}@{info['weights'][:8]}"


def _samples(model: Mapping[str, Any], protocol: Mapping[str, Any]) -> str:
    """Which samples."""
    whose = f"{protocol['count']} samples of {model['name'] or model['class']} ({model['fingerprint']})"
    if "seed" not in protocol:
        return f"{whose} as they are, {protocol['image_size']} px"
    schedule = protocol["schedule"]
    if not isinstance(schedule, str):
        schedule = f"[{', '.join(f'{radius:g}' for radius in schedule)}]"
    noise = "shared" if protocol["share_noise"] else "fresh"
    return (
        f"{whose}, seeds {protocol['seed']} to {protocol['seed'] + protocol['count'] - 1}, {protocol['labels']} "
        f"labels, {protocol['steps']} steps, {schedule} schedule, {noise} noise, "
        f"guidance {protocol['guidance']} at {protocol['guidance_at']}, 8 bits by {protocol['quantise']}, "
        f"{protocol['dtype']} on {protocol['device']}"
    )


def tell(figure: Figure, values: Mapping[str, float], info: Mapping[str, Any]) -> str:
    """A figure with its name, its network where the name alone does not say it, and its error."""
    value = values[figure.key]
    if figure.key == "frechet":
        return f"{info['distance']} {value:.4f}"
    whose = "" if info["name"] in ("inception", "clip") else f"-{info['name']}"
    name, digits = (f"KID{whose}", 6) if figure.key == "kid" else (figure.title, 4)
    error = values.get(figure.error) if figure.error else None
    return f"{name} {value:.{digits}f}" + ("" if error is None else f" +- {error:.{digits}f}")


def score_curves(
    pipe: Pipeline, options: EvaluationOptions, evaluator: Evaluator, *, repeats: int = 3
) -> list[dict[str, Any]]:
    """The Frechet distance at each point of the asked curves, with measured time and counted operations.

    All processes call it together; points are empty on all but the first. A setting that occurs in two curves is
    measured once. Times of all settings are taken in turns.
    """
    points: dict[str, tuple[GenerationOptions, dict[str, dict[str, float]]]] = {}
    for curve in options.curves:
        for value in curve.values:
            generation = curve_options(pipe, options.generation, curve.name, value)
            key = repr(pipe.settings(generation))
            if key in points:
                continue
            images = GeneratedImages(
                pipe,
                options.curve_count,
                seed=options.seed,
                options=generation,
                rounding=options.rounding,
            )
            points[key] = (generation, evaluator.score(images, metrics=("frechet",)).values)
    if not evaluator.world.is_first or not points:
        return []
    speeds = sampling_speed(pipe, [generation for generation, _ in points.values()], repeats=repeats, singles=0)
    milliseconds = {key: 1000 / speed.images_per_second for key, speed in zip(points, speeds, strict=True)}
    cost = cost_of(pipe)
    answer = []
    for curve in options.curves:
        told = []
        for value in curve.values:
            settings = pipe.settings(curve_options(pipe, options.generation, curve.name, value))
            key = repr(settings)
            point = CurvePoint(
                value=value,
                settings=settings,
                figures=points[key][1],
                ms_per_image=milliseconds[key],
                gflops_per_image=_gflops(cost, settings),
            )
            told.append(point.as_dict())
        answer.append({"name": curve.name, "setting": curve.name, "count": options.curve_count, "points": told})
    return answer


def cost_figures(pipe: Pipeline, options: GenerationOptions, *, batch: int = 64) -> dict[str, Any]:
    """Parameters, operations by both conventions, and measured speed and memory at 1 to 8 steps."""
    cost = cost_of(pipe)
    settings = [dataclasses.replace(options, steps=steps, schedule=_named(options)) for steps in SPEED_STEPS]
    by_steps = []
    for generation, speed in zip(settings, sampling_speed(pipe, settings, batch=batch), strict=True):
        chosen = pipe.settings(generation)
        by_steps.append(
            {
                **speed.as_dict(),
                "gflops": _gflops(cost, chosen),
                "counted_gflops": _gflops(cost, chosen, counted=True),
            }
        )
    return {
        "params": {"encoder": cost.encoder.params, "decoder": cost.decoder.params},
        "gflops": {"encoder": cost.encoder.gflops, "decoder": cost.decoder.gflops},
        "counted_gflops": {"encoder": cost.encoder.counted_gflops, "decoder": cost.decoder.counted_gflops},
        "by_steps": by_steps,
        "device": device_name(pipe.device),
        "threads": torch.get_num_threads() if pipe.device.type == "cpu" else None,
        "dtype": str(pipe.dtype).removeprefix("torch."),
        "guidance": pipe.settings(options)["guidance"] if pipe.classes.count else 1.0,
        "convention": "two operations a multiply-add; `gflops` leaves attention products out, as the published tables "
        "do, `counted_gflops` has them",
    }


def cost_of(pipe: Pipeline) -> GeneratorCost:
    """What the model's networks cost."""
    return autoencoder_cost(pipe.model.config)


def device_name(device: torch.device) -> str:
    """The device in words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return str(device)


def _gflops(cost: GeneratorCost, settings: Mapping[str, Any], *, counted: bool = False) -> float:
    return cost.generation_gflops(
        settings["steps"], guided=settings["guidance"] != 1, guidance_at=settings["guidance_at"], counted=counted
    )


def _named(options: GenerationOptions) -> Any:
    """A schedule that fits every number of steps: lists of numbers do not."""
    schedule = options.schedule
    return schedule if schedule is None or isinstance(schedule, str) or callable(schedule) else None
