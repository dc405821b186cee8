"""The studies of a report: what figures alone do not tell."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from spheregen.data import image_grid
from spheregen.errors import ConfigError, SphereGenError, did_you_mean
from spheregen.evaluation.conditional import class_figures
from spheregen.evaluation.curves import score_curves
from spheregen.evaluation.evaluate import EvaluationOptions, Evaluator, Scores
from spheregen.evaluation.images import GeneratedImages, RealImages, take
from spheregen.evaluation.latency import cost_figures, with_steps
from spheregen.evaluation.measure import Measured, pick, spread
from spheregen.evaluation.originality import find_copies
from spheregen.evaluation.reconstruction import reconstruction_figures
from spheregen.evaluation.report.parts import Picture, Section
from spheregen.evaluation.sphere import sphere_report
from spheregen.pipeline import Pipeline

STUDIES = ("reconstruction", "curves", "classes", "originality", "sphere", "cost")
COPY_SAMPLES = 2000
"""Samples, and as many held-out images, whose originality is checked; they are kept as small pictures."""
MOST_TRAIN = 100_000
"""Training images among which copies are sought; of larger sets the first ones."""
PROBE_IMAGES = 10_000
"""Training images from which the probe of the classes learns."""
SPHERE_IMAGES = 2000
GRID_ROWS, GRID_COLUMNS = 8, 10


def choose_studies(names: Sequence[str] | None) -> tuple[str, ...]:
    """The studies that were asked for, in their order; None: all; `none`: none.

    Raises:
        ConfigError: an unknown study.
    """
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
    train: Measured | None,
    held_out: RealImages | None,
) -> list[Section]:
    """Run studies; their findings go into `result`, their pages are returned (on the first process alone).

    All processes call it together. A study that cannot be run here says why in `result["notes"]`.

    Args:
        scores: of the samples, which were measured with `COPY_SAMPLES` thumbnails.
        train: the measured training images, with as many thumbnails as there are images.
        held_out: real images that the model never saw.
    """
    first = evaluator.world.is_first
    sections: list[Section] = [samples_section(pipe, options)] if first else []
    unseen: Measured | None = None
    if held_out is not None:
        yardstick = evaluator.score(held_out, thumbnails=COPY_SAMPLES)
        unseen = yardstick.measured
        for name, values in yardstick.values.items():
            result["metrics"][name]["held_out"] = values
            result["metrics"][name]["held_out_count"] = len(held_out)
    if "reconstruction" in studies:
        if unseen is None:
            _skip(result, "reconstruction", "there are no held-out images; name a split with --held-out")
        else:
            result["reconstruction"] = reconstruction_figures(pipe, unseen, evaluator, rounding=options.rounding)
    if "curves" in studies:
        result["curves"] = score_curves(pipe, options, evaluator)
    if not first:
        return []
    for study in [name for name in studies if name in ("classes", "originality", "sphere", "cost")]:
        try:
            if study == "classes":
                sections += _classes(pipe, evaluator, scores, result, train, unseen)
            elif study == "originality":
                sections += _originality(pipe, evaluator, scores, result, train, unseen)
            elif study == "sphere":
                sections += _sphere(pipe, evaluator, result, train, held_out)
            else:
                result["cost"] = cost_figures(pipe, options.generation)
        except SphereGenError as error:
            _skip(result, study, str(error))
    return sections


def samples_section(pipe: Pipeline, options: EvaluationOptions) -> Section:
    """What there is to look at first: samples in one step and in the chosen number, from the same seeds."""
    classes = pipe.classes.count
    columns = classes if 2 <= classes <= 20 else GRID_COLUMNS
    count = columns * GRID_ROWS
    steps = pipe.settings(options.generation)["steps"]
    pictures = []
    for number in dict.fromkeys((1, steps)):
        generation = options.generation if number == steps else with_steps(options.generation, number)
        samples = GeneratedImages(pipe, count, seed=options.seed, options=generation)
        sheet = image_grid(take(samples, count), columns=columns, scale=max(1, 64 // samples.shape[1]))
        pictures.append(Picture(image=sheet, title=f"{number} step{'s' if number != 1 else ''}"))
    order = "a column for each class" if columns == classes else "classes in turn" if classes else "unconditional"
    last = options.seed + count - 1
    text = f"The first samples, nothing chosen: seeds {options.seed} to {last}, row by row; {order}."
    return Section(key="samples", title="Samples", text=(text,), pictures=tuple(pictures))


def _classes(
    pipe: Pipeline,
    evaluator: Evaluator,
    scores: Scores,
    result: dict[str, Any],
    train: Measured | None,
    unseen: Measured | None,
) -> list[Section]:
    sample_labels = scores.measured.labels
    if sample_labels is None:
        return []
    if train is None or train.labels is None or unseen is None or unseen.labels is None:
        raise ConfigError("it needs labelled training images (--data) and labelled held-out ones (--held-out)")
    name = next(iter(evaluator.extractors))
    chosen = spread(PROBE_IMAGES, len(train.images))
    samples = spread(PROBE_IMAGES, len(scores.measured.images))
    others = spread(PROBE_IMAGES, len(unseen.images))
    found = class_figures(
        pick(scores.measured.features[name], samples),
        sample_labels[samples],
        pick(train.features[name], chosen),
        train.labels[chosen],
        pick(unseen.features[name], others),
        unseen.labels[others],
        pipe.info.class_names,
    )
    result["classes"] = {"features": name, **found.as_dict()}
    return [found.section()]


def _originality(
    pipe: Pipeline,
    evaluator: Evaluator,
    scores: Scores,
    result: dict[str, Any],
    train: Measured | None,
    unseen: Measured | None,
) -> list[Section]:
    if train is None or unseen is None:
        raise ConfigError("it needs the training images (--data) and held-out ones (--held-out)")
    found = find_copies(
        scores.measured.thumbnails(),
        train.thumbnails(),
        unseen.thumbnails(),
        extractor=next(iter(evaluator.extractors.values())),
        device=pipe.device,
    )
    result["originality"] = found.as_dict()
    return [found.section()]


def _sphere(
    pipe: Pipeline, evaluator: Evaluator, result: dict[str, Any], train: Measured | None, held_out: RealImages | None
) -> list[Section]:
    images = train.images if train is not None else held_out
    if not isinstance(images, RealImages):
        raise ConfigError("it needs real images (--data)")
    some = RealImages(images.source, images.options, limit=SPHERE_IMAGES)
    found = sphere_report(
        pipe.model,
        take(some, SPHERE_IMAGES),
        some.labels if pipe.classes.count else None,
        class_names=pipe.info.class_names,
        device=pipe.device,
        extractor=next(iter(evaluator.extractors.values())),
    )
    result["sphere"] = found.as_dict()
    return [found.section()]


def _skip(result: dict[str, Any], study: str, why: str) -> None:
    result["notes"].append(f"{study} was left out: {why}")
