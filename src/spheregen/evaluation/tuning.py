"""Defaults of sampling that are measured: the settings whose samples are nearest to real images that were held out.

A setting is scored by the geometric mean of two Frechet distances, of texture (`own`) and of things (`classifier`),
over the class accuracy relative to that of real images. Settings are tried in rounds, each around the best so far,
until the time is up; of settings that are alike the cheaper one stays.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from spheregen.errors import ConfigError
from spheregen.evaluation.images import RealImages, find_held_out, open_real, prompted_by, take
from spheregen.evaluation.scorers import DataScorer
from spheregen.files import write_json
from spheregen.folders.model_folder import save_sampling
from spheregen.lock import locked_folder
from spheregen.pipeline import GenerationOptions, Pipeline
from spheregen.progress import QuietReporter, Reporter
from spheregen.restoration import measure_spectrum
from spheregen.sampling.seeds import seeded_noise

TABLE = "tuning.json"
"""In the folder of a model: what was tried, with its figures."""
COUNT = 500
"""Samples of each setting, at least; evenly of all classes."""
SPECTRUM_IMAGES = 200
"""Images that the spectrum of the model's error is measured on."""
SEED = 1 << 40
"""Of the first sample: seeds that nobody else begins with."""
MARGIN = 0.98
"""What takes more decodes must score below this share of the best so far."""
ANGLES = (73.0, 76.0)
"""Degrees that models are told of random points, where that is a choice, besides their own: after short trainings what
lies just above the 70 degrees where losses change is better than the published 84 to 85.5."""
SETTINGS = (
    *("steps", "schedule", "guidance", "guidance_at", "share_noise", "strength", "prior", "temperature"),
    "prior_angle",
)


@dataclass(frozen=True)
class Trial:
    """A setting with its figures."""

    settings: Mapping[str, Any]
    figures: Mapping[str, float]
    score: float
    """Lower is better."""
    ms_per_image: float

    def row(self) -> dict[str, Any]:
        """Return plain values, for tables and JSON."""
        return {**self.settings, **self.figures, "score": self.score, "ms_per_image": self.ms_per_image}

    def __str__(self) -> str:
        settings, figures = (
            ", ".join(f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}" for name, value in part)
            for part in (self.settings.items(), self.figures.items())
        )
        return f"{settings}: {figures}"


def tune_sampling(
    pipe: Pipeline,
    scorer: DataScorer,
    *,
    seconds: float,
    count: int = COUNT,
    told: Callable[[Trial], object] = lambda trial: None,
) -> tuple[Trial, list[Trial]]:
    """Return the best setting found within some time, and all that were tried, in order.

    The model's own defaults are tried first, whatever the time. Nothing is written.

    Args:
        seconds: no setting is begun that would end later, by the time of those before.
        count: samples of each, rounded up to as many of each class.
        told: of each trial as it is done.

    Raises:
        ConfigError: the model has no settings that could be tried, such as a tokenizer alone.
    """
    if count < 2:
        raise ConfigError(f"a distance needs at least 2 samples, not {count}")
    count = balanced(count, pipe.classes.count)
    begun, pace = time.monotonic(), 0.0  # seconds of a decode of all samples
    unguided = pipe.model.unguided
    tried: list[Trial] = []
    best: Trial | None = None
    for proposals in _rounds(pipe):
        for settings in proposals(best.settings if best else {}):
            if any(trial.settings == settings for trial in tried):
                continue
            if tried and time.monotonic() - begun + pace * _decodes(settings, unguided) > seconds:
                continue  # a cheaper one may still fit
            start = time.monotonic()
            output = pipe.generate(count, seed=SEED, **settings)
            made = time.monotonic() - start
            figures = scorer.figures(output.tensor, None if output.labels is None else torch.tensor(output.labels))
            trial = Trial(settings, figures, _score(figures, scorer.real_accuracy), 1000 * made / count)
            pace = max(pace, (time.monotonic() - start) / _decodes(settings, unguided))
            tried.append(trial)
            told(trial)
            dearer = best is not None and _decodes(settings, unguided) > _decodes(best.settings, unguided)
            if best is None or trial.score < best.score * (MARGIN if dearer else 1):
                best = trial
    assert best is not None
    return best, tried


def balanced(count: int, classes: int) -> int:
    """Return the least number of samples from `count` on that has as many of each class."""
    return -(-count // max(1, classes)) * max(1, classes)


Proposals = Callable[[Mapping[str, Any]], Iterator[dict[str, Any]]]


def _rounds(pipe: Pipeline) -> Sequence[Proposals]:
    """Return the rounds of proposals: each is told the best setting so far."""
    own = pipe.settings(GenerationOptions())
    own = {name: own[name] for name in SETTINGS}
    scale = pipe.model.guidance_law == "scale"
    plain = {"guidance": pipe.model.unguided, "guidance_at": "both", "share_noise": True}
    plain |= {"strength": 1.0, "temperature": 1.0, "prior_angle": 0.0}

    def starts(_: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        yield own
        if pipe.model.fitted is not None:
            for steps, strength, temperature in ((1, 1.0, 1.0), (2, 0.1, 1.0), (2, 0.25, 1.0), (1, 1.0, 0.85)):
                changed = {"steps": steps, "strength": strength, "temperature": temperature}
                yield {**own, **plain, "prior": "fitted", "schedule": "fixed", **changed}
        for steps, schedule in ((1, "fixed"), (4, "angle"), (4, "fixed"), (6, "angle")):
            yield {**own, **plain, "prior": "sphere", "steps": steps, "schedule": schedule}
        angles = [angle for angle in ANGLES if pipe.model.has_sampling_angle and angle != pipe.model.start_angle]
        for steps, angle in itertools.product((1, 2), angles):
            told = {"steps": steps, "schedule": "fixed", "start_angle": angle}
            yield {**own, **plain, "prior": "sphere", **told}

    def guided(best: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        if not pipe.classes.count or (not scale and best["steps"] == 1):  # a rotation acts from the second step on
            return
        if best["prior"] == "fitted" and scale:  # beside the codes details are sharper and classes vaguer
            for angle, guidance in ((30.0, 2.0), (55.0, 3.0), (70.0, 3.0)):
                turned = {"prior_angle": angle, "guidance": guidance, "guidance_at": "pixel"}
                yield {**best, **turned, "steps": 1, "strength": 1.0}
        tried = itertools.product((1.3, 1.6, 2.0), ("pixel", "both")) if scale else ((5.0, "both"), (10.0, "both"))
        for guidance, place in tried:
            yield {**best, "guidance": guidance, "guidance_at": place}

    def refined(best: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        named = isinstance(best["schedule"], str)  # others are of one number of steps
        if best["prior"] == "fitted":
            for temperature in (best["temperature"] * factor for factor in (0.85, 0.925, 1.08)):
                yield {**best, "temperature": round(temperature, 3)}
            for angle in (-10, 10) if best["prior_angle"] else ():
                yield {**best, "prior_angle": min(max(best["prior_angle"] + angle, 0), 90)}
            for factor in (0.8, 1.2) if best["guidance"] != pipe.model.unguided else ():
                yield {**best, "guidance": round(best["guidance"] * factor, 2)}
            for strength in (0.1, 0.4) if best["steps"] > 1 else ():
                yield {**best, "strength": strength}
            if named:
                yield {**best, "steps": best["steps"] + 1, "strength": min(best["strength"], 0.1)}
            return
        for turn in (-1.5, 1.5) if "start_angle" in best else ():
            yield {**best, "start_angle": min(best["start_angle"] + turn, pipe.model.max_angle)}
        if best["steps"] > 1:
            yield {**best, "share_noise": not best["share_noise"]}
            if named:
                yield {**best, "steps": best["steps"] + 2}

    return (starts, guided, refined)


def _score(figures: Mapping[str, float], real_accuracy: float | None) -> float:
    distance = math.sqrt(max(figures["fd_own"], 0) * max(figures["fd_classifier"], 0))
    if "class_accuracy" not in figures:
        return distance
    return distance / max(figures["class_accuracy"] / (real_accuracy or 1), 1e-3)


def _decodes(settings: Mapping[str, Any], unguided: float) -> int:
    return int(settings["steps"]) * (2 if settings["guidance"] != unguided else 1)


def error_spectrum(pipe: Pipeline, images: RealImages) -> tuple[float, ...]:
    """Return the spectrum of the model's error, which restorations weigh it by."""
    some = RealImages(images.source, images.options, limit=min(SPECTRUM_IMAGES, len(images)))
    x = (take(some, len(some)).float() / 127.5 - 1).to(pipe.device)
    noise = seeded_noise(range(len(x)), pipe.model.latent_shape, 0).initial.to(pipe.device)
    return measure_spectrum(pipe.model, x, noise=noise)


def tune_folder(
    folder: Path,
    data: str,
    split: str = "train",
    *,
    seconds: float,
    count: int = COUNT,
    device: str = "auto",
    reporter: Reporter | None = None,
) -> dict[str, Any]:
    """Measure settings of the model in a folder, make the best ones its defaults, and write what was tried beside them.

    Returns:
        The contents of `tuning.json`: `chosen`, its `figures`, all that were `tried`, and how they were measured.

    Raises:
        SphereGenError: the folder holds no generator, the data cannot be read, or the folder not be written to.
    """
    reporter = reporter or QuietReporter()

    def tell(trial: Trial) -> None:
        reporter.message(str(trial))

    with locked_folder(folder):
        pipe = Pipeline.from_pretrained(folder, device=device, quiet=True, progress=False)
        names, geometry = pipe.info.class_names, pipe.image_options
        train = open_real(data, split, geometry, class_names=names)
        held_out = find_held_out(data, split, geometry, names)
        prompted_by(pipe, train)
        scorer = DataScorer(train, names, pipe.device, reporter, held_out=held_out)
        best, tried = tune_sampling(pipe, scorer, seconds=seconds, count=count, told=tell)
        found = {
            "chosen": dict(best.settings),
            "figures": {**best.figures, "score": best.score},
            "classifier_accuracy_on_real_images": scorer.real_accuracy,
            "compared_with": scorer.compared_with,
            "samples": balanced(count, pipe.classes.count),
            "device": str(pipe.device),
            "torch": torch.__version__,
            "tried": [trial.row() for trial in tried],
        }
        spectrum = error_spectrum(pipe, held_out or train)
        save_sampling(folder, best.settings, restoration={"spectrum": list(spectrum)})
        write_json(folder / TABLE, found)
    return found
