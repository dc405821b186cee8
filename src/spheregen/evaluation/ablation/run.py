"""Running a study: one training after the other, each scored at once, and continued where it was interrupted."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import spheregen
from spheregen.distributed import World, joined_world, local_device
from spheregen.errors import ConfigError, SphereGenError
from spheregen.evaluation.ablation.page import study_page
from spheregen.evaluation.ablation.plan import Combination, Plan, Training
from spheregen.evaluation.ablation.record import (
    FRECHET,
    Column,
    Result,
    Results,
    columns,
    study_json,
    table_rows,
    write_study,
)
from spheregen.evaluation.ablation.sheet import save_samples
from spheregen.evaluation.ablation.sources import Sources
from spheregen.evaluation.evaluate import Evaluator, make_references
from spheregen.evaluation.features.base import FeatureExtractor
from spheregen.evaluation.fidelity import psnr
from spheregen.evaluation.images import GeneratedImages, Reconstructions, chunk_of
from spheregen.evaluation.latency import device_name, sampling_speed
from spheregen.evaluation.reference import Reference
from spheregen.evaluation.run import WORK, open_networks
from spheregen.files import write_text
from spheregen.pipeline import Pipeline
from spheregen.progress import QuietReporter, Reporter
from spheregen.training.plots import read_series, training_seconds
from spheregen.training.recipe import Recipe
from spheregen.training.trainer import TrainingResult, train

RUNS, PAGE = "runs", "index.html"
SEED = 0
"""Of the first sample of every combination."""
SHOWN = 16
"""Samples of each combination on the sheet."""
_PAGE_SECONDS = 60.0  # the page is drawn anew no more often, but always at the end


@dataclass(frozen=True, kw_only=True)
class StudyOptions:
    """How a study is run and scored."""

    out: Path
    """The folder of the study."""
    images: str | None = None
    """What samples are compared with, where a recipe trains on latents; None: what it trains on."""
    split: str | None = None
    """The part of the data that samples are compared with; None: what is trained on."""
    features: tuple[str, ...] = ("own",)
    """Feature networks, see `features.load_extractor`; the first one leads."""
    count: int = 2000
    """Samples of each combination."""
    device: str = "auto"

    def __post_init__(self) -> None:
        if self.count < 2:
            raise ConfigError(f"--count is at least 2 samples, not {self.count}")
        if not self.features:
            raise ConfigError("name at least one feature network, such as --features own")


def run_study(
    plan: Plan, options: StudyOptions, *, reporter: Callable[[], Reporter] = QuietReporter
) -> dict[str, Any] | None:
    """Train and score all that is still missing of a study, and write its table and page.

    A combination that fails is noted in the table and the others go on; the next call tries it again, last. Several
    processes (`torchrun`) train and score each run together; there a failed training ends the call, since they might
    not agree on what happened, and the next call goes on with the others.

    Args:
        reporter: makes a reporter of progress for each training and measurement.

    Returns:
        The study as plain JSON values; None on all processes but the first.

    Raises:
        DataError, ConfigError: the data cannot be had, or do not fit a combination; nothing was trained.
        SphereGenError: the folder cannot be written to, or no combination succeeded.
        KeyboardInterrupt: the study was asked to stop; the same call continues it.
    """
    with joined_world(options.device, plan.base.train.backend) as world:
        return _Study(plan, options, world, reporter if world.is_first else QuietReporter).run()


def count_images(plan: Plan) -> dict[str, int]:
    """The size of the training data of each training, by digest.

    Raises:
        DataError, ConfigError: the data cannot be had, or have other classes than a combination asks for.
    """
    sources = Sources()
    return {training.digest: sources.count(training.recipe) for training in plan.trainings}


class _Study:
    def __init__(self, plan: Plan, options: StudyOptions, world: World, reporter: Callable[[], Reporter]) -> None:
        self.plan, self.options, self.world, self.reporter = plan, options, world, reporter
        self.out, self.results = options.out, Results(options.out)
        self._sources = Sources(options.images)
        self._references: dict[str, dict[str, Reference]] = {}
        self._page_written = time.monotonic()
        for training in plan.trainings:  # complain before any work is done
            self._sources.count(training.recipe)
            self._sources.compared(training.recipe, options.split)
            world.share(training.recipe.train.batch_size)
        self.extractors: dict[str, FeatureExtractor] = open_networks(options.features, options.device, world)
        self.protocols = {training.digest: self._protocol(training.recipe) for training in plan.trainings}
        self.names = {training.digest: self._folder_name(training) for training in plan.trainings}
        self.columns: tuple[Column, ...] = columns({name: each.info.distance for name, each in self.extractors.items()})
        world.wait_for_all()  # all have seen the same folder

    def run(self) -> dict[str, Any] | None:
        todo = self._todo()
        if self.world.is_first:
            self._write(page=False)
        for number, training in enumerate(todo, start=1):
            what = training.label or self.plan.base.name
            self.reporter().message(f"training {number} of {len(todo)}: {what}")
            self._train_and_score(training)
            if self.world.is_first:
                self._write(page=time.monotonic() - self._page_written > _PAGE_SECONDS)
        if not self.world.is_first:
            return None
        study = self._write(page=True)
        rows = study["rows"]
        errors = [run["error"] for row in rows for run in row["runs"] if run["status"] == "failed"]
        if errors and not any(row["mean"] for row in rows):
            raise SphereGenError(f"none of the {len(rows)} combinations succeeded; the first failed with: {errors[0]}")
        return study

    def _todo(self) -> list[Training]:
        """Trainings with missing results: new ones first, then those that failed earlier."""
        new, failed = [], []
        for training in self.plan.trainings:
            found = [self.results.get(self._key(training, each)) for each in self.plan.of(training)]
            if None in found:
                new.append(training)
            elif any(result is not None and result.error is not None for result in found):
                failed.append(training)
        return [*new, *failed]

    def _missing(self, training: Training) -> list[Combination]:
        found = [(each, self.results.get(self._key(training, each))) for each in self.plan.of(training)]
        return [each for each, result in found if result is None or result.error is not None]

    def _train_and_score(self, training: Training) -> None:
        folder = self.out / RUNS / self.names[training.digest]
        missing = self._missing(training)
        try:
            done = train(training.recipe, folder, device=self.options.device, reporter=self.reporter())
            self.world.wait_for_all()  # the first writes the model
            _forget_compiled()
            pipe = Pipeline.from_pretrained(
                folder, device=local_device(self.options.device, self.world), progress=False, quiet=True
            )
            shared = self._training_figures(training, done, pipe) if self.world.is_first else {}
            speeds = self._speeds(pipe, missing)
        except (SphereGenError, torch.OutOfMemoryError) as error:
            for combination in missing:
                self._failed(training, combination, error)
            if self.world.size > 1:
                raise
            return
        for combination, speed in zip(missing, speeds, strict=True):
            try:
                self._score(training, combination, pipe, {**shared, "ms_per_image": speed})
            except (SphereGenError, torch.OutOfMemoryError) as error:
                self._failed(training, combination, error)
                if self.world.size > 1:
                    raise

    def _failed(self, training: Training, combination: Combination, error: Exception) -> None:
        text = " ".join(str(error).split())
        self.reporter().message(f"failed: {combination.label}: {text}")
        if self.world.is_first:
            self.results.put(self._key(training, combination), Result(error=text))

    def _score(
        self,
        training: Training,
        combination: Combination,
        pipe: Pipeline,
        shared: Mapping[str, float],
    ) -> None:
        """The figures of one combination; a result appears only when all of it is there."""
        samples = GeneratedImages(pipe, self.options.count, seed=SEED, options=combination.generation)
        scores = self._evaluator(training).score(samples, metrics=("frechet",), thumbnails=SHOWN)
        if not self.world.is_first:
            return
        key = self._key(training, combination)
        notes = [f"{name}: {note}" for name, found in scores.figures.items() for note in found.notes]
        about = {"recipe": training.recipe.name, "combination": combination.label, "seed": str(SEED)}
        save_samples(self.results.samples(key), scores.measured.thumbnails(), about)
        made_with = {
            "spheregen": spheregen.__version__,
            "torch": torch.__version__,
            "device": device_name(pipe.device),
            "dtype": str(pipe.dtype).removeprefix("torch."),
        }
        distances = {FRECHET + name: values["frechet"] for name, values in scores.values.items()}
        self.results.put(key, Result(figures={**distances, **shared}, notes=tuple(notes), made_with=made_with))

    def _training_figures(self, training: Training, done: TrainingResult, pipe: Pipeline) -> dict[str, float]:
        """What does not depend on sampling."""
        log = read_series(done.folder)
        images = self._sources.held_out(training.recipe)
        made = Reconstructions(pipe, images)
        size = chunk_of(images.shape)
        parts = [slice(start, min(start + size, len(images))) for start in range(0, len(images), size)]
        pairs = zip(images.stream(parts), made.stream(parts), strict=True)
        total = sum(float(psnr(copy.float() / 255, real.float() / 255).double().sum()) for real, copy in pairs)
        return {
            "psnr": total / len(images),
            "loss": log["loss"].values[-1],
            "train_seconds": training_seconds(log["images_per_second"], training.recipe.train.batch_size),
        }

    def _speeds(self, pipe: Pipeline, combinations: Sequence[Combination]) -> list[float]:
        """Milliseconds of one image under each setting; the other processes do not measure."""
        if not self.world.is_first:
            return [0.0] * len(combinations)
        speeds = sampling_speed(pipe, [each.generation for each in combinations], singles=0)
        return [1000 / speed.images_per_second for speed in speeds]

    def _evaluator(self, training: Training) -> Evaluator:
        data, work = self._sources.compared(training.recipe, self.options.split), self.out / WORK
        key = repr(data.describe())
        if key not in self._references:
            self._references[key], _ = make_references(
                data, self.extractors, {}, work, world=self.world, reporter=self.reporter()
            )
        return Evaluator(self.extractors, self._references[key], work, self.world, self.reporter())

    def _protocol(self, recipe: Recipe) -> dict[str, Any]:
        """How a combination is scored: figures of another protocol are other figures."""
        return {
            "count": self.options.count,
            "seed": SEED,
            "quantise": "round",
            "features": {name: extractor.info.as_dict() for name, extractor in self.extractors.items()},
            "reference": self._sources.compared(recipe, self.options.split).describe(),
            "reconstruction": self._sources.held_out(recipe).describe(),
        }

    def _folder_name(self, training: Training) -> str:
        """The folder that an earlier study gave the same training, else a new name."""
        earlier = sorted((self.out / RUNS).glob(f"*-{training.digest}"))
        return earlier[0].name if earlier else training.name

    def _key(self, training: Training, combination: Combination) -> str:
        return self.results.key(training, combination, self.protocols[training.digest])

    def _study(self) -> dict[str, Any]:
        found: dict[tuple[int, int], Result] = {}
        for number, combination in enumerate(self.plan.combinations):
            for place, training in enumerate(combination.trainings):
                result = self.results.get(self._key(training, combination))
                if result is not None:
                    found[number, place] = result
        rows = table_rows(self.plan, found, self.names)
        protocol = {**next(iter(self.protocols.values())), "processes": self.world.size}
        references = {repr(each["reference"]) for each in self.protocols.values()}
        if len(references) > 1:
            protocol["reference"] = [each["reference"] for each in self.protocols.values()]
        return study_json(self.plan, rows, self.columns, protocol)

    def _write(self, *, page: bool) -> dict[str, Any]:
        study = self._study()
        write_study(self.out, study)
        if page:
            write_text(self.out / PAGE, study_page(study, self._pictures(study)))
            self._page_written = time.monotonic()
        return study

    def _pictures(self, study: Mapping[str, Any]) -> list[Path | None]:
        """Samples of each row's first training that succeeded."""
        found: list[Path | None] = []
        for row, combination in zip(study["rows"], self.plan.combinations, strict=True):
            done = [place for place, run in enumerate(row["runs"]) if run["status"] == "done"]
            path = self.results.samples(self._key(combination.trainings[done[0]], combination)) if done else None
            found.append(path if path is not None and path.is_file() else None)
        return found


def _forget_compiled() -> None:
    """Compiled blocks of one model are of no use to the next, and torch.compile gives up after a few kinds."""
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()
