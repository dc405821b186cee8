"""Scoring sets of images against references: figures that carry their protocol with them.

Everything that takes long goes through caches on disk (`feature_cache`), so an interrupted evaluation continues and
several processes share the work; what remains is computed by the first process from these caches, in one order. Hence
the same figures on one process and on many.
"""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import spheregen
from spheregen.data.grids import Rounding
from spheregen.distributed import World
from spheregen.errors import ConfigError, DataError
from spheregen.evaluation.feature_cache import FeatureSet, extract_features
from spheregen.evaluation.images import (
    GeneratedImages,
    GivenImages,
    ImageSet,
    RealImages,
    Reconstructions,
    chunk_of,
    parts_of,
    spread,
)
from spheregen.evaluation.protocol import KID_SUBSET, EvaluationOptions, check_metrics, choose_metrics, line_of
from spheregen.evaluation.reference import Reference, build_reference, check_reference, count_shared
from spheregen.evaluation.report.sections import FORMAT
from spheregen.measure.features import FeatureExtractor, FeatureInfo
from spheregen.measure.fidelity import SSIM_WINDOW, find_lpips, psnr, ssim
from spheregen.measure.metrics import (
    cmmd,
    frechet_distance,
    gaussian,
    inception_score,
    kernel_distance,
    manifold,
)
from spheregen.pipeline import Pipeline
from spheregen.progress import QuietReporter, Reporter

MOST_NEIGHBOURS = 10_000
"""Images of each side for the metrics that compare all with all."""
SPLITS = 10
SHARED = "{} of the {} images are also in the reference, pixel for pixel: the figures compare these with themselves"


@dataclass(frozen=True)
class Scores:
    """A set of images with its figures; these and the notes are empty on all processes but the first."""

    measured: FeatureSet
    values: dict[str, dict[str, float]]
    """The figures by extractor."""
    notes: tuple[str, ...]
    """Why others are missing, or not to be trusted."""


@dataclass(frozen=True)
class Evaluator:
    """Feature extractors and references, ready to score any set of images."""

    extractors: Mapping[str, FeatureExtractor]
    """By name."""
    references: Mapping[str, Reference]
    """What to compare with, by the same names."""
    work: Path
    """The folder of the caches."""
    world: World = field(default_factory=World)
    """The processes that share the work."""
    reporter: Reporter = field(default_factory=QuietReporter)
    device: torch.device | str = "cpu"
    """Computes the metrics, in float64, so the CPU does it where a device has none (Apple's)."""

    @property
    def quick(self) -> tuple[str, ...]:
        """The metrics that compare settings: a Frechet distance and, where there is a classifier, what it sees."""
        classified = any(each.info.accuracy is not None for each in self.extractors.values())
        return ("class_accuracy", "frechet") if classified else ("frechet",)

    def extract(self, images: ImageSet, *, thumbnails: int = 0) -> FeatureSet:
        """Return the features of a set of images; all processes call it together."""
        return extract_features(
            images, self.extractors, self.work, thumbnails=thumbnails, world=self.world, reporter=self.reporter
        )

    def score(self, images: ImageSet, *, metrics: Sequence[str] | None = None, thumbnails: int = 0) -> Scores:
        """Measure a set of images and compare it with the references; all processes call it together.

        Raises:
            ConfigError: a reference of another extractor, preprocessing or size; an impossible metric.
            DataError: an image cannot be read, or too few of them for a metric that was asked for.
        """
        check_metrics(metrics, [extractor.info for extractor in self.extractors.values()], len(images))
        for name, extractor in self.extractors.items():
            check_reference(self.references[name], extractor, images)
        measured = self.extract(images, thumbnails=thumbnails)
        values: dict[str, dict[str, float]] = {}
        notes: list[str] = []
        for name, extractor in self.extractors.items() if self.world.is_first else ():
            values[name] = {}
            for metric in choose_metrics(metrics, extractor.info):
                if metric == "class_accuracy" and images.labels is None:
                    notes.append(f"{name}: no class_accuracy: the images have no classes")
                    continue
                try:
                    values[name] |= _compute(metric, measured, self.references[name], extractor.info, self.device)
                except (DataError, ConfigError) as error:
                    if metrics is not None:
                        raise
                    notes.append(f"{name}: no {metric}: {error}")
            dim, distance = extractor.info.dim, extractor.info.distance
            if "frechet" in values[name] and len(images) <= dim:
                notes.append(
                    f"{name}: {len(images)} images for {dim} features: the covariance has not full rank, so "
                    f"{distance} is far too large"
                )
        return Scores(measured, values, tuple(notes))


def _compute(
    metric: str, measured: FeatureSet, reference: Reference, info: FeatureInfo, device: torch.device | str
) -> dict[str, float]:
    if metric == "class_accuracy":
        return _class_accuracy(measured, info)
    if metric == "class_score":
        score = inception_score(measured.logits[info.name].to(device), splits=SPLITS)
        name = "inception_score" if info.name == "inception" else "class_score"
        return {name: score.value, f"{name}_deviation": score.deviation}
    features = measured.features[info.name].to(device)
    if metric == "frechet":
        return {"frechet": frechet_distance(gaussian(features), reference.gaussian)}
    if reference.features is None:
        raise ConfigError(
            f"{reference.source} holds only moments; the metric {metric} needs single features: give --data, or a "
            "reference made by `spheregen stats`"
        )
    real = reference.features.to(features.device)
    if metric == "kid":
        distance = kernel_distance(features, real, size=KID_SUBSET)
        return {"kid": distance.value, "kid_error": distance.error}
    count = min(len(features), len(real), MOST_NEIGHBOURS)
    samples, real = features[:count], real[spread(count, len(real))]  # the first samples, as seeds are all alike
    return {"cmmd": cmmd(samples, real)} if metric == "cmmd" else dict(vars(manifold(samples, real)))


def _class_accuracy(measured: FeatureSet, info: FeatureInfo) -> dict[str, float]:
    """Return the share of images in which a classifier sees their class, and that relative to held-out real images."""
    assert measured.labels is not None
    assert info.accuracy is not None
    right = measured.logits[info.name].argmax(dim=1) == torch.as_tensor(measured.labels)
    share = float(right.double().mean())
    return {"class_accuracy": share, **({"class_accuracy_of_real": share / info.accuracy} if info.accuracy else {})}


def make_references(
    data: RealImages | None,
    extractors: Mapping[str, FeatureExtractor],
    given: Mapping[str, Reference],
    work: Path,
    *,
    thumbnails: int = 0,
    world: World | None = None,
    reporter: Reporter | None = None,
) -> tuple[dict[str, Reference], FeatureSet | None]:
    """Return the reference of each extractor, the given one or else made of `data`; and the measured data."""
    lacking = [name for name in extractors if name not in given]
    if lacking and data is None:
        raise ConfigError(
            f"there is nothing to compare the {lacking[0]} features with; give --data SRC, or --reference FILE"
        )
    if data is None:
        return dict(given), None
    measured = extract_features(data, extractors, work, thumbnails=thumbnails, world=world, reporter=reporter)
    made = {name: build_reference(measured, name, extractors[name].info) for name in lacking}
    return {**given, **made}, measured


def evaluate(pipe: Pipeline, options: EvaluationOptions, evaluator: Evaluator) -> tuple[dict[str, Any], Scores]:
    """Return the figures of a model's samples, with all that is needed to repeat them.

    Returns:
        The result, plain JSON values (metrics empty on all processes but the first), and the scored samples.
    """
    samples = GeneratedImages(
        pipe, options.count, seed=options.seed, options=options.generation, rounding=options.rounding
    )
    scores = evaluator.score(samples, metrics=options.metrics, thumbnails=options.thumbnails)
    model = {
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
    protocol = {key: value for key, value in samples.describe().items() if key != "model"}
    threads = torch.get_num_threads() if pipe.device.type == "cpu" else None  # their number moves the last bits
    protocol |= {"device": str(pipe.device), "threads": threads}
    return _result(model, protocol, evaluator, scores), scores


def evaluate_images(images: GivenImages, evaluator: Evaluator, metrics: Sequence[str] | None = None) -> dict[str, Any]:
    """Return the figures of samples that lie in a folder or archive, as a result like that of `evaluate`.

    Its notes say which samples were not measured as they are, and how many are also in the reference.
    """
    scores = evaluator.score(images, metrics=metrics)
    shared = max((count_shared(scores.measured, each) for each in evaluator.references.values()), default=0)
    notes = [*scores.notes, *([SHARED.format(shared, len(images))] if shared else []), *images.notes]
    source, shape = images.source, list(images.shape)
    model = {"name": source.name, "fingerprint": source.fingerprint[:12], "class": "images", "image_shape": shape}
    protocol = {**images.describe(), "also_in_reference": shared}
    return _result(model, protocol, evaluator, dataclasses.replace(scores, notes=tuple(notes)))


def _result(model: dict[str, Any], protocol: dict[str, Any], evaluator: Evaluator, scores: Scores) -> dict[str, Any]:
    batch, version = chunk_of(scores.measured.images.shape), spheregen.__version__
    result: dict[str, Any] = {
        "format": FORMAT,
        "spheregen": version,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "line": "",
        "model": model,
        "protocol": {**protocol, "batch": batch, "torch": torch.__version__, "spheregen": version},
        "metrics": {},
        "notes": list(scores.notes),
    }
    for name, figures in scores.values.items():
        reference = evaluator.references[name]
        kept = 0 if reference.features is None else len(reference.features)
        result["metrics"][name] = {
            "features": evaluator.extractors[name].info.as_dict(),
            "reference": {**reference.record, "count": reference.gaussian.count},
            "figures": figures,
            "neighbours": min(len(scores.measured.images), kept, MOST_NEIGHBOURS),
        }
    result["line"] = line_of(result)
    return result


def reconstruction_figures(
    pipe: Pipeline, originals: FeatureSet, evaluator: Evaluator, *, rounding: Rounding = "round"
) -> dict[str, Any]:
    """Return how close a model brings measured real images back, encoded and decoded under the null class, in 8 bits.

    Means over the images of PSNR (dB) and SSIM, and LPIPS where its weights are found; `frechet`: by extractor, between
    the images and their reconstructions (rFID with Inception). All processes call it together; empty on all but the
    first.
    """
    images = originals.images
    assert isinstance(images, RealImages)
    made = Reconstructions(pipe, images, rounding=rounding)
    copies = evaluator.extract(made)
    if not evaluator.world.is_first:
        return {}
    measures: dict[str, Callable[[Tensor, Tensor], Tensor] | None] = {
        "psnr": psnr,
        "ssim": ssim if images.shape[1] >= SSIM_WINDOW else None,
        "lpips": find_lpips(),
    }
    sums = {name: 0.0 for name, measure in measures.items() if measure is not None}
    parts = parts_of(images)
    for real, copy in zip(images.stream(parts), made.stream(parts), strict=True):
        x, y = real.float() / 255, copy.float() / 255
        for name, measure in measures.items():
            if measure is not None:
                sums[name] += float(measure(y, x).sum())
    return {
        "count": len(images),
        "source": images.source.name,
        "split": images.source.split,
        **{name: sums[name] / len(images) if name in sums else None for name in measures},
        "frechet": {
            name: frechet_distance(gaussian(copies.features[name]), gaussian(originals.features[name]))
            for name in evaluator.extractors
        },
    }
