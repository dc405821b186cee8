"""Settings of restoration that are measured: of each task those whose results on held-out images are best.

A setting is scored by the geometric mean of two distances of the results from the images themselves, of features (the
root of the Frechet distance) and of pixels (the root mean square). Results that disagree with y, whose residual is
above 1.1 times the noise, have a score higher by as much. Settings are tried in rounds, each around the best so far:
the noise and its decay, the trust in the model, fewer steps. Of settings that are alike, that of fewer steps stays, and
one with noise rather than one without.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from spheregen.evaluation.images import find_held_out, open_real
from spheregen.evaluation.restoration.comparison import Measure, some_images
from spheregen.evaluation.restoration.tasks import NOISE_SCALE, TASKS, choose_tasks
from spheregen.evaluation.tuning import MARGIN, SEED, Trial, error_spectrum
from spheregen.files import parse_json, write_json
from spheregen.folders.model_folder import save_sampling
from spheregen.lock import locked_folder
from spheregen.measure.features import FeatureExtractor, load_extractors
from spheregen.pipeline import Pipeline
from spheregen.pipeline.tasks import degrade
from spheregen.progress import QuietReporter, Reporter
from spheregen.restoration import Mask, Operator
from spheregen.sampling.restoration.solver import ANGLE, SCHEDULE, STEPS

TABLE = "restoration.json"
"""In the folder of a model: what was tried of each task, with its figures."""
SEARCHED: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "inpaint": ("box", "brush", "random"),
        **{name: (name,) for name in ("denoise", "superres", "deblur", "decolour", "dejpeg")},
    }
)
"""Task, as operators name theirs -> the degradations that its settings are tried on, images in turn."""
COUNT = 48
"""Images that each setting is measured on."""
MOST_RESIDUAL = 1.1
"""Times the noise: beyond, results disagree with y."""
NOISES = ((0.0, "fixed"), (30.0, "fixed"), (60.0, "decay"), (75.0, "decay"))
SCALES = (0.4, 2.5)
FEWER = (10, 5)


def tune_restoration(
    pipe: Pipeline,
    x: Tensor,
    extractor: FeatureExtractor,
    tasks: Sequence[str],
    *,
    seconds: float,
    told: Callable[[str, Trial], object] = lambda task, trial: None,
) -> dict[str, tuple[Trial, list[Trial]]]:
    """Return for each task the best setting found within some time, and all that were tried, in order.

    The general defaults are tried first, whatever the time; tasks share it evenly. Nothing is written.

    Args:
        x: held-out images (B, C, S, S) in [0, 1], two or more.
        extractor: of the features.
        tasks: some of `SEARCHED`.
        seconds: no setting is begun that would end later, by the time of those before.
        told: of each trial as it is done.
    """
    measure, begun, found = Measure(extractor, x), time.monotonic(), {}
    for place, task in enumerate(tasks):
        start = time.monotonic()
        share = (seconds - (start - begun)) / (len(tasks) - place)
        operator, noise = _degradation(SEARCHED[task], x)
        given = degrade(x, operator, noise / 2, SEED)
        y = 2 * given - (operator.A(torch.ones_like(x)) if operator.linear else 1)
        tried: list[Trial] = []
        best: Trial | None = None
        pace = 0.0  # seconds of a step of all images
        for proposals in _ROUNDS:
            for settings in proposals(best.settings if best else {}):
                late = time.monotonic() - start + pace * settings["steps"] > share
                if any(trial.settings == settings for trial in tried) or (tried and late):
                    continue
                at = time.monotonic()
                made = pipe.restore(given, operator, noise=noise / 2, seed=SEED, **settings)
                spent = time.monotonic() - at
                figures = measure(2 * made.tensor - 1, operator, y, noise)
                trial = Trial(settings, figures, _score(figures), 1000 * spent / len(x))
                pace = max(pace, (time.monotonic() - at) / settings["steps"])
                tried.append(trial)
                told(task, trial)
                if best is None or trial.score < best.score * _handicap(settings, best.settings):
                    best = trial
        assert best is not None
        found[task] = (best, tried)
    return found


def _degradation(names: Sequence[str], x: Tensor) -> tuple[Operator, Tensor]:
    """Return the operator of images that take these degradations in turn, and the deviation of the noise of each."""
    size = x.shape[-1]
    turns = [TASKS[names[number % len(names)]] for number in range(len(x))]
    noise = torch.tensor([task.noise for task in turns])
    if len(names) == 1:
        return turns[0].operator(size).to(torch.float32), noise
    return Mask(torch.cat([task.operator(size).known for task in turns]).float()), noise  # type: ignore[attr-defined]


def _starts(_: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    own = {"steps": STEPS, "angle": ANGLE, "schedule": SCHEDULE, "scale": 1.0}
    yield own
    for angle, schedule in NOISES:
        yield {**own, "angle": angle, "schedule": schedule}


def _scales(best: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for factor in SCALES:
        yield {**best, "scale": factor}


def _fewer(best: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for steps in FEWER:
        yield {**best, "steps": steps}


_ROUNDS = (_starts, _scales, _fewer)


def _handicap(settings: Mapping[str, Any], best: Mapping[str, Any]) -> float:
    """Return the share of the best score that a setting must stay below: fewer steps may be a little worse; no noise
    must be better, for without it all samples of an image are the same."""
    if settings["steps"] < best["steps"]:
        return 1 / MARGIN
    return MARGIN if best["angle"] and not settings["angle"] else 1.0


def _score(figures: Mapping[str, float]) -> float:
    pixels = 10 ** (-figures["psnr"] / 20)
    distance = math.sqrt(max(figures["frechet"], 0))
    return math.sqrt(distance * pixels) * max(1, figures.get("residual", 1) / MOST_RESIDUAL)


def tune_restoration_folder(
    folder: Path,
    data: str,
    tasks: Sequence[str],
    split: str = "train",
    *,
    seconds: float,
    count: int = COUNT,
    device: str = "auto",
    reporter: Reporter | None = None,
) -> dict[str, Any]:
    """Measure settings of restoration of the model in a folder, make the best of each task its defaults, and write what
    was tried beside them.

    The spectrum of the model's error is measured too where none is recorded.

    Args:
        tasks: some of `SEARCHED`, or `all`.
        count: held-out images that are restored, others than `evaluate_restoration` takes of as many; of data without
            a held-out part, images that were learned from.

    Returns:
        The contents of `restoration.json`: by `tasks` the `chosen` settings, their `figures`, all that were `tried`,
        and how they were measured.

    Raises:
        SphereGenError: the folder holds no generator, the data cannot be read, or the folder not be written to.
    """
    reporter = reporter or QuietReporter()

    def tell(task: str, trial: Trial) -> None:
        reporter.message(f"{task}, {trial}")

    with locked_folder(folder):
        pipe = Pipeline.from_pretrained(folder, device=device, quiet=True, progress=False)
        geometry, names = pipe.image_options, pipe.info.class_names
        chosen = choose_tasks(tasks, pipe.model.image_shape[0], SEARCHED)
        learned = open_real(data, split, geometry, class_names=names)
        images = find_held_out(data, split, geometry, names) or learned
        x = some_images(images, 2 * count)[1::2]
        extractor = load_extractors(["own"], pipe.device)["own"]
        recorded = dict(pipe.info.restoration)
        if "spectrum" not in recorded:
            recorded["spectrum"] = list(error_spectrum(pipe, images))
            pipe.info = dataclasses.replace(pipe.info, restoration=recorded)
        begun = time.monotonic()
        found = tune_restoration(pipe, x, extractor, chosen, seconds=seconds, told=tell)
        how: dict[str, Any] = {
            "images": f"{len(x)} of {images.source.name}, split {images.source.split}",
            "noise_scale": NOISE_SCALE,
            "features": extractor.info.name,
            "seconds": round(time.monotonic() - begun, 1),
            "device": str(pipe.device),
            "torch": torch.__version__,
        }
        tables: dict[str, Any] = {
            task: {
                "chosen": dict(best.settings),
                "figures": {**best.figures, "score": best.score},
                "tried": [trial.row() for trial in tried],
                "measured": {**how, "noise": {name: TASKS[name].noise for name in SEARCHED[task]}},
            }
            for task, (best, tried) in found.items()
        }
        best_of = {task: dict(best.settings) for task, (best, _) in found.items()}
        recorded["tasks"] = {**recorded.get("tasks", {}), **best_of}
        table = {"tasks": {**_earlier(folder / TABLE), **tables}}
        save_sampling(folder, {}, restoration=recorded)
        write_json(folder / TABLE, table)
    return table


def _earlier(path: Path) -> dict[str, Any]:
    """Return what was tried before, of all tasks; nothing where it cannot be read."""
    try:
        found = parse_json(path.read_text(encoding="utf-8"))["tasks"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return found if isinstance(found, dict) else {}
