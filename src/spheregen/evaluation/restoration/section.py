"""Restoration as a study of a report: tasks beside simple means, the projection curve, and images to look at."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from PIL import Image
from torch import Tensor

from spheregen.data.grids import labelled_sheet
from spheregen.evaluation.images import RealImages
from spheregen.evaluation.report.parts import Cell, Plot, Section, Series, Sheet, table_of
from spheregen.evaluation.restoration.comparison import LEARNED, SEED, Measure, compare, degraded, some_images
from spheregen.evaluation.restoration.projection import projection_curve
from spheregen.evaluation.restoration.tasks import NOISE_SCALE, TASKS, choose_tasks
from spheregen.measure.features import FeatureExtractor
from spheregen.pipeline import Pipeline

IMAGES = 64
"""Held-out images that are restored."""
SAMPLES = 4
"""Results of an image whose spread is shown."""
_COLUMNS = (
    ("PSNR, dB", "psnr"),
    ("SSIM", "ssim"),
    ("LPIPS", "lpips"),
    ("Fréchet distance", "frechet"),
    ("KID", "kid"),
    ("residual / noise", "residual"),
    ("seconds an image", "seconds_per_image"),
    ("step / (encode + decode)", "step_cost"),
)


def study_restoration(
    pipe: Pipeline, images: RealImages, learned: RealImages, extractor: FeatureExtractor
) -> tuple[dict[str, Any], Image.Image]:
    """Restore held-out images by the model's defaults, and send some through it again and again.

    Args:
        images: that the model never saw.
        learned: that it was trained on.
        extractor: of the features of the distances.

    Returns:
        Plain values: `rows`, see `compare`, `projection`, see `projection_curve`, and how they were measured; a sheet.
    """
    x, tasks = some_images(images, IMAGES), choose_tasks(["all"], pipe.model.image_shape[0])
    found = {
        "count": len(x),
        "split": images.source.split,
        "features": extractor.info.name,
        "noise": {name: TASKS[name].noise for name in tasks},
        "noise_scale": NOISE_SCALE,
        "rows": compare(pipe, x, some_images(learned, LEARNED), extractor, tasks),
        "projection": projection_curve(pipe, x, Measure(extractor, x)),
    }
    return found, restoration_sheet(pipe, x[:1], tasks)


def restoration_sheet(pipe: Pipeline, x: Tensor, tasks: Sequence[str], scale: int | None = None) -> Image.Image:
    """Return a sheet of images (B, C, S, S) in [0, 1], a row for each task: the images, the starts, some steps, the
    results, and where several results differ, brighter for more."""
    rows = []
    for name in tasks:
        problem = degraded(name, x, SEED)
        made = pipe.restore(problem.given, problem.operator, noise=TASKS[name].noise / 2, seed=SEED, samples=SAMPLES)
        assert made.spread is not None
        spread = made.spread / made.spread.amax((1, 2, 3), keepdim=True).clamp_min(1e-6)
        steps = [made.trajectory[min(number, len(made.trajectory)) - 1] for number in (1, 5)]
        rows.append([x, made.start, *steps, made.tensor, spread])
    columns = ("image", "start", "1 step", "5 steps", "result", f"spread of {SAMPLES}")
    return labelled_sheet(rows, list(tasks), columns, scale=scale or max(1, 96 // x.shape[-1]))


def restoration_section(found: Mapping[str, Any], sheet: Image.Image) -> Section:
    """Return the findings of `study_restoration` as a part of a page."""
    rows, curve = found["rows"], found["projection"]
    columns: list[tuple[str, Sequence[Cell]]] = [(name, [row[name] for row in rows]) for name in ("task", "method")]
    columns += [(title, [row.get(key) for row in rows]) for title, key in _COLUMNS]
    lines = tuple(
        Series(name=f"{angle:g} degrees", x=tuple(map(float, curve["passes"])), y=tuple(values))
        for angle, values in zip(curve["angles"], curve["frechet"], strict=True)
    )
    return Section(
        key="restoration",
        title="Restoration",
        text=(
            f"{found['count']} held-out images were degraded and restored, by the model's recorded settings where it "
            "has any, beside means that need no model. Deviations of noise are on the scale of "
            f"{found['noise_scale']}. Distances are between the results and the images themselves. A residual below 1 "
            "keeps some of the noise of what was given; far above 1 it disagrees with it.",
            "The projection curve sends images through the model again and again, with noise and nothing to agree "
            "with: a flat line near the first pass is a model whose passes keep images likely.",
        ),
        warnings=tuple(restoration_warnings(found)),
        tables=table_of("", columns, missing="only of the model, where there is noise, or weights are not found"),
        plots=(Plot(title="Projection curve", x_label="passes", y_label="Fréchet distance", series=lines, log_x=True),),
        sheets=(Sheet(image=sheet, title="Restored", caption="The last column is brighter where results differ."),),
    )


def restoration_warnings(found: Mapping[str, Any]) -> Iterator[str]:
    """Yield what the figures say against the model as a prior."""
    rows = found["rows"]
    for task in dict.fromkeys(row["task"] for row in rows):
        *simple, model = (row for row in rows if row["task"] == task)
        sharpest, likest = max(simple, key=lambda row: row["psnr"]), min(simple, key=lambda row: row["frechet"])
        if sharpest["psnr"] > model["psnr"] + 1:
            yield f"{task}: {sharpest['method']} is {sharpest['psnr'] - model['psnr']:.1f} dB nearer to the images"
        if likest["frechet"] < model["frechet"]:
            yield f"{task}: {likest['method']} looks more like the images, by the Fréchet distance"
        if model.get("residual", 1) > 1.1:
            yield f"{task}: the results disagree with what was given by {model['residual']:.2f} times its noise"
    curve = found["projection"]
    for angle, values in zip(curve["angles"], curve["frechet"], strict=True):
        if values[-1] > 2 * values[0]:
            yield (
                f"passes at {angle:g} degrees lead away from images: a Fréchet distance of {values[0]:.3g} after "
                f"{curve['passes'][0]} becomes {values[-1]:.3g} after {curve['passes'][-1]}"
            )
