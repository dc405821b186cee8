"""The studies of a report: facts that single figures do not tell."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PIL import Image
from torch import Tensor

from spheregen.data import image_grid
from spheregen.errors import ConfigError, SphereGenError, did_you_mean
from spheregen.evaluation.classes import Classified, class_figures, class_section
from spheregen.evaluation.curves import curve_options
from spheregen.evaluation.evaluator import Evaluator, Scores, reconstruction_figures
from spheregen.evaluation.feature_cache import FeatureSet
from spheregen.evaluation.images import GeneratedImages, RealImages, plain_settings, spread, take
from spheregen.evaluation.originality import Originality, find_copies
from spheregen.evaluation.protocol import EvaluationOptions
from spheregen.evaluation.report.parts import Section, Sheet
from spheregen.evaluation.restoration.section import restoration_section, study_restoration
from spheregen.evaluation.speed import cost_figures, sampling_speed, with_steps
from spheregen.evaluation.sphere import sphere_section, study_sphere
from spheregen.family.registry import cost_of
from spheregen.pipeline import GenerationOptions, Pipeline

STUDIES = ("reconstruction", "curves", "classes", "originality", "sphere", "restoration", "cost")
COPY_SAMPLES = 2000
"""Samples, and as many held-out images, whose originality is checked; they are kept as small images."""
MOST_TRAIN = 100_000
"""Training images among which copies are sought; of larger sets the first ones."""
CLASS_IMAGES = 10_000
"""Images of each set whose classes and diversity are looked at."""
SPHERE_IMAGES = 2000
GRID_ROWS, GRID_COLUMNS = 8, 10


def choose_studies(names: Sequence[str] | None) -> tuple[str, ...]:
    """Return the studies that were asked for, in their order; None: all; `none`: none."""
    if names is None:
        return STUDIES
    for name in names:
        if name not in (*STUDIES, "none"):
            raise ConfigError(f"unknown study {name!r}{did_you_mean(name, STUDIES)}; use {', '.join(STUDIES)}, or none")
    return tuple(name for name in STUDIES if name in names)


def run_studies(
    pipe: Pipeline,
    options: EvaluationOptions,
    evaluator: Evaluator,
    scores: Scores,
    result: dict[str, Any],
    *,
    studies: Sequence[str],
    train: FeatureSet | None,
    held_out: RealImages | None,
) -> list[Section]:
    """Run studies; their findings go into `result`, their sections are returned (on the first process alone).

    All processes call it together. A study that cannot be run here says why in `result["notes"]`.

    Args:
        scores: of the samples, which were measured with `COPY_SAMPLES` thumbnails.
        train: the measured training images, with as many thumbnails as there are images.
        held_out: real images that the model never saw.
    """
    unseen: FeatureSet | None = None
    if held_out is not None:
        yardstick = evaluator.score(held_out, thumbnails=COPY_SAMPLES)
        unseen = yardstick.measured
        for name, values in yardstick.values.items():
            result["metrics"][name]["held_out"] = values
            result["metrics"][name]["held_out_count"] = len(held_out)
    if "reconstruction" in studies and unseen is not None:
        result["reconstruction"] = reconstruction_figures(pipe, unseen, evaluator, rounding=options.rounding)
    elif "reconstruction" in studies:
        note = "reconstruction was left out: there are no held-out images; name a split with --held-out"
        result["notes"].append(note)
    if "curves" in studies:
        result["curves"] = score_curves(pipe, options, evaluator)
    if not evaluator.world.is_first:
        return []
    sections = [samples_section(pipe, options)]
    images = held_out if train is None else train.images
    for study in studies:
        try:
            if study == "cost":
                result["cost"] = cost_figures(pipe, options.generation)
            elif study == "classes" and scores.measured.labels is not None:
                result[study] = _classes(pipe, evaluator, scores.measured, train, unseen)
                sections.append(class_section(result[study]))
            elif study == "originality":
                copies = _originality(pipe, evaluator, scores.measured, train, unseen)
                result[study] = copies.figures
                sections.append(copies.section())
            elif study == "sphere":
                found, strip = _sphere(pipe, evaluator, images)
                sections.append(sphere_section(found, strip))
                result[study] = {**found, "warnings": list(sections[-1].warnings)}
            elif study == "restoration":
                restored, sheet = _restoration(pipe, evaluator, train, held_out)
                sections.append(restoration_section(restored, sheet))
                result[study] = {**restored, "warnings": list(sections[-1].warnings)}
        except SphereGenError as error:
            result["notes"].append(f"{study} was left out: {error}")
    return sections


def score_curves(
    pipe: Pipeline, options: EvaluationOptions, evaluator: Evaluator, *, repeats: int = 3
) -> list[dict[str, Any]]:
    """Return the Frechet distance at each point of the asked curves, with measured time and counted operations.

    All processes call it together; points are empty on all but the first. A setting that occurs in two curves is
    measured once. Times of all settings are taken in turns.
    """
    points: dict[str, tuple[GenerationOptions, dict[str, dict[str, float]]]] = {}
    for curve in options.curves:
        for value in curve.values:
            generation = curve_options(pipe, options.generation, curve.name, value)
            key = repr(pipe.settings(generation))
            if key not in points:
                images = GeneratedImages(
                    pipe, options.curve_count, seed=options.seed, options=generation, rounding=options.rounding
                )
                points[key] = (generation, evaluator.score(images, metrics=evaluator.quick).values)
    if not evaluator.world.is_first or not points:
        return []
    speeds = sampling_speed(pipe, [generation for generation, _ in points.values()], repeats=repeats, singles=0)
    milliseconds = {key: 1000 / speed["images_per_second"] for key, speed in zip(points, speeds, strict=True)}
    cost = cost_of(pipe.model)

    curves = []
    for curve in options.curves:
        found = []
        for value in curve.values:
            settings = pipe.settings(curve_options(pipe, options.generation, curve.name, value))
            point = {"value": value, "settings": plain_settings(settings), "figures": points[repr(settings)][1]}
            costs = {"ms_per_image": milliseconds[repr(settings)], "gflops_per_image": cost.sampling_gflops(settings)}
            found.append({**point, **costs})
        curves.append({"name": curve.name, "setting": curve.name, "count": options.curve_count, "points": found})
    return curves


def samples_section(pipe: Pipeline, options: EvaluationOptions) -> Section:
    """Return the first samples in one step and in the chosen number, from the same seeds."""
    classes = pipe.classes.count
    columns = classes if 2 <= classes <= 20 else GRID_COLUMNS
    count = columns * GRID_ROWS
    steps = pipe.settings(options.generation)["steps"]
    sheets = []
    for number in dict.fromkeys((1, steps)):
        generation = options.generation if number == steps else with_steps(options.generation, number)
        samples = GeneratedImages(pipe, count, seed=options.seed, options=generation)
        sheet = image_grid(take(samples, count), columns=columns, scale=max(1, 64 // samples.shape[1]))
        sheets.append(Sheet(image=sheet, title=f"{number} step{'s' if number != 1 else ''}"))
    order = "a column for each class" if columns == classes else "classes in turn" if classes else "unconditional"
    last = options.seed + count - 1
    text = f"The first samples, nothing chosen: seeds {options.seed} to {last}, row by row; {order}."
    return Section(key="samples", title="Samples", text=(text,), sheets=tuple(sheets))


def _classes(
    pipe: Pipeline, evaluator: Evaluator, samples: FeatureSet, train: FeatureSet | None, unseen: FeatureSet | None
) -> dict[str, Any]:
    if train is None or train.labels is None or unseen is None or unseen.labels is None:
        raise ConfigError("it needs labelled training images (--data) and labelled held-out ones (--held-out)")
    classifier = next((name for name, each in evaluator.extractors.items() if each.info.accuracy is not None), None)
    if classifier is None:
        raise ConfigError("it needs the network classifier and its classes; leave --features out, or name it there")
    name = next(iter(evaluator.extractors))
    parts: list[Classified] = []
    for of in (samples, train, unseen):
        chosen = spread(CLASS_IMAGES, len(of.images))
        assert of.labels is not None
        parts.append(
            Classified(of.features[name][chosen], of.labels[chosen], of.logits[classifier][chosen].argmax(dim=1))
        )
    return {"features": name, **class_figures(parts[0], parts[1], parts[2], pipe.info.class_names)}


def _originality(
    pipe: Pipeline, evaluator: Evaluator, samples: FeatureSet, train: FeatureSet | None, unseen: FeatureSet | None
) -> Originality:
    if train is None or unseen is None:
        raise ConfigError("it needs the training images (--data) and held-out ones (--held-out)")
    images = (of.thumbnails for of in (samples, train, unseen))
    return find_copies(*images, extractor=next(iter(evaluator.extractors.values())), device=pipe.device)


def _sphere(pipe: Pipeline, evaluator: Evaluator, images: Any) -> tuple[dict[str, Any], Tensor]:
    if not isinstance(images, RealImages):
        raise ConfigError("it needs real images (--data)")
    some = RealImages(images.source, images.options, limit=SPHERE_IMAGES)
    labels = some.labels if pipe.classes.count else None
    extractor = next(iter(evaluator.extractors.values()))
    return study_sphere(pipe.model, take(some, SPHERE_IMAGES), labels, device=pipe.device, extractor=extractor)


def _restoration(
    pipe: Pipeline, evaluator: Evaluator, train: FeatureSet | None, held_out: RealImages | None
) -> tuple[dict[str, Any], Image.Image]:
    if train is None or not isinstance(train.images, RealImages) or held_out is None:
        raise ConfigError("it needs the training images (--data) and held-out ones (--held-out)")
    return study_restoration(pipe, held_out, train.images, next(iter(evaluator.extractors.values())))
