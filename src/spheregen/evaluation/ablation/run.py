"""Running a study: one training after the other, each scored at once, and continued where it was interrupted."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import functools
import hashlib
import io
import json
import math
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import spheregen
from spheregen.data import ImageOptions, ImageSource, image_grid, open_source, save_png
from spheregen.data.latent_cache import is_latent_cache
from spheregen.devices import choose_device
from spheregen.distributed import World, joined_world, local_device
from spheregen.errors import ConfigError, DataError, SphereGenError
from spheregen.evaluation.ablation.page import FRECHET, study_page
from spheregen.evaluation.ablation.plan import Combination, Plan, Training, told
from spheregen.evaluation.classifier import CLASSIFIER, make_classifier
from spheregen.evaluation.evaluator import Evaluator, evaluate, make_references, reconstruction_figures
from spheregen.evaluation.feature_cache import extract_features
from spheregen.evaluation.images import HELD_OUT, RealImages, prompted_by
from spheregen.evaluation.protocol import EvaluationOptions
from spheregen.evaluation.report.page import PAGE, to_json
from spheregen.evaluation.request import WORK
from spheregen.evaluation.speed import sampling_speed
from spheregen.family.recipe import Recipe
from spheregen.files import parse_json, write_text
from spheregen.lock import locked_folder
from spheregen.measure.features import classifier, load_extractors
from spheregen.pipeline import Pipeline
from spheregen.progress import QuietReporter, Reporter
from spheregen.training.feeding import image_options, open_data
from spheregen.training.plots import read_series, training_seconds
from spheregen.training.trainer import train

FORMAT = 1
RIGHT = "class_accuracy"
RUNS, TABLE, RESULTS, SAMPLES = "runs", "ablation", "results", "samples"
"""Names in the folder of a study: run folders, the table as .json and .csv, the single results, images of each."""
SEED = 0
"""Of the first sample of every combination."""
SHOWN = 16
"""Samples of each combination on the page."""
RECONSTRUCTED = 256
"""Real images that are encoded and decoded."""


@dataclass(frozen=True, kw_only=True)
class StudyOptions:
    """How a study is run and scored."""

    out: Path
    """The folder of the study."""
    images: str | None = None
    """What samples are compared with, where a recipe trains on latents; None: what it trains on."""
    split: str | None = None
    """The part of the data that samples are compared with; None: what is trained on."""
    features: tuple[str, ...] = ("own", CLASSIFIER)
    """Feature networks, see `features.load_extractor`, the first leads; `classifier` learns what is compared with."""
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
    not agree on what happened, and the next call goes on with the others. Without the extra `report` there is no page.

    Args:
        reporter: makes a reporter of progress for each training and measurement.

    Returns:
        The study as plain JSON values; None on all processes but the first.

    Raises:
        DataError, ConfigError: the data cannot be had, or do not fit a combination; nothing was trained.
        SphereGenError: the folder cannot be written to, or no combination succeeded.
        KeyboardInterrupt: the study was asked to stop; the same call continues it.
    """
    with joined_world(options.device, plan.base.train.backend) as world, locked_folder(options.out, world):
        return _Study(plan, options, world, reporter if world.is_first else QuietReporter).run()


def count_images(plan: Plan) -> dict[str, int]:
    """Return the size of the training data of each training, by digest.

    Raises:
        DataError, ConfigError: the data cannot be had, or have other classes than a combination asks for.
    """
    return {training.digest: open_data(training.recipe).count for training in plan.trainings}


class _Study:
    def __init__(self, plan: Plan, options: StudyOptions, world: World, reporter: Callable[[], Reporter]) -> None:
        self.plan, self.options, self.world, self.reporter, self.out = plan, options, world, reporter, options.out
        self._open = functools.cache(open_source)
        self._results: dict[str, dict[str, Any]] = {}
        count_images(plan)  # complain before any work is done
        for training in plan.trainings:
            world.share(training.recipe.train.batch_size)
        self.device = choose_device(local_device(options.device, world))
        self.extractors = load_extractors([name for name in options.features if name != CLASSIFIER], self.device)
        self.protocols = {each.digest: self._protocol(each.recipe) for each in plan.trainings}
        earlier = {path.name[-9:]: path.name for path in sorted((self.out / RUNS).glob("*-????????"))}
        self.names = {each.digest: earlier.get(f"-{each.digest}", each.name) for each in plan.trainings}
        world.wait_for_all()  # all have seen the same folder

    def run(self) -> dict[str, Any] | None:
        # new trainings first, then those that failed earlier
        missing = [each for each in self.plan.trainings if self._missing(each)]
        todo = sorted(missing, key=lambda each: all(self._result(each, one) for one in self.plan.of(each)))
        self._write()
        for number, training in enumerate(todo, start=1):
            what = training.label or self.plan.base.name
            self.reporter().message(f"training {number} of {len(todo)}: {what}")
            self._train_and_score(training)
            self._write()
        if not self.world.is_first:
            return None
        study = self._study()
        try:
            write_text(self.out / PAGE, study_page(study, self._samples()))
        except SphereGenError as error:
            self.reporter().message(f"no page: {error}")
        errors = [run["error"] for row in study["rows"] for run in row["runs"] if run["status"] == "failed"]
        if errors and not any(row["mean"] for row in study["rows"]):
            raise SphereGenError(f"none of the combinations succeeded; the first failed with: {errors[0]}")
        return study

    def _train_and_score(self, training: Training) -> None:
        missing, reporter, work, world = self._missing(training), self.reporter(), self.out / WORK, self.world
        figures: dict[str, float] = {}  # that do not depend on sampling
        speeds: list[dict[str, Any]] = []
        evaluator = None
        with self._noting_failures(training, missing):
            folder = self.out / RUNS / self.names[training.digest]
            train(training.recipe, folder, device=self.options.device, reporter=reporter)
            world.wait_for_all()  # the first writes the model
            if "torch._dynamo" in sys.modules:  # compiled blocks of one model are of no use to the next
                torch.compiler.reset()
            device = local_device(self.options.device, world)
            pipe = Pipeline.from_pretrained(folder, device=device, progress=False, quiet=True)
            data = self._compared(training.recipe)
            prompted_by(pipe, data)
            held_out, extractors = self._held_out(training.recipe), dict(self.extractors)
            if CLASSIFIER in self.options.features:
                extractors[CLASSIFIER] = make_classifier(
                    data,
                    work,
                    held_out=None if held_out.source.split == data.source.split else held_out,
                    class_names=pipe.info.class_names,
                    device=self.device,
                    world=world,
                    reporter=reporter,
                )
            references, _ = make_references(data, extractors, {}, work, world=world, reporter=reporter)
            originals = extract_features(held_out, extractors, work, world=world)
            evaluator = Evaluator(extractors, references, work, world, reporter)
            rebuilt = reconstruction_figures(pipe, originals, evaluator)
            if world.is_first:
                speeds = sampling_speed(pipe, [each.generation for each in missing], singles=0)
                log, batch = read_series(folder), training.recipe.train.batch_size
                seconds = training_seconds(log["images_per_second"], batch)
                figures = {"psnr": rebuilt["psnr"], "loss": log["loss"].values[-1], "train_seconds": seconds}
        for place, combination in enumerate(missing if evaluator else ()):
            with self._noting_failures(training, [combination]):
                result = self._score(training, combination, pipe, evaluator)
                if world.is_first:
                    result["figures"] |= {**figures, "ms_per_image": 1000 / speeds[place]["images_per_second"]}
                    self._keep(training, combination, result)

    @contextlib.contextmanager
    def _noting_failures(self, training: Training, combinations: Sequence[Combination]) -> Iterator[None]:
        """Note an error as the result of these combinations; among several processes it goes on its way."""
        try:
            yield
        except (SphereGenError, torch.OutOfMemoryError) as error:
            text = " ".join(str(error).split())
            for combination in combinations:
                self.reporter().message(f"failed: {combination.label}: {text}")
                if self.world.is_first:
                    self._keep(training, combination, {"status": "failed", "error": text})
            if self.world.size > 1:
                raise

    def _score(
        self, training: Training, combination: Combination, pipe: Pipeline, evaluator: Evaluator
    ) -> dict[str, Any]:
        """Score samples of one combination and keep some of them as an image."""
        count, generation = self.options.count, combination.generation
        options = EvaluationOptions(
            count=count, seed=SEED, generation=generation, metrics=evaluator.quick, thumbnails=SHOWN
        )
        result, scores = evaluate(pipe, options, evaluator)
        if self.world.is_first:
            about = {"recipe": training.recipe.name, "combination": combination.label, "seed": str(SEED)}
            image = image_grid(scores.measured.thumbnails, pad=1)
            save_png(image, self.out / SAMPLES / f"{self._key(training, combination)}.png", about)
        return {
            "status": "done",
            "figures": {
                **{FRECHET + name: values["frechet"] for name, values in scores.values.items()},
                **{key: value for figures in scores.values.values() for key, value in figures.items() if key == RIGHT},
            },
            "notes": result["notes"],
            "made_with": {key: result["protocol"][key] for key in ("spheregen", "torch", "device", "dtype")},
        }

    def _compared(self, recipe: Recipe) -> RealImages:
        """What samples are compared with, brought to size as `spheregen evaluate` does it."""
        source = self._source(recipe, self.options.split or recipe.data.split)
        return RealImages(source, _geometry(recipe), workers=recipe.data.workers)

    def _held_out(self, recipe: Recipe) -> RealImages:
        """Images that the model never saw, where the data has such, else some of those it was trained on."""
        source = self._source(recipe, recipe.data.split)
        for split in HELD_OUT:
            with contextlib.suppress(DataError):
                if recipe.data.split not in (split, "all"):
                    source = self._source(recipe, split)
                    break
        return RealImages(source, _geometry(recipe), limit=RECONSTRUCTED)

    def _source(self, recipe: Recipe, split: str) -> ImageSource:
        source = self.options.images or recipe.data.source
        assert source is not None  # the plan refuses others
        if is_latent_cache(source):
            raise ConfigError(f"{source} holds latents: name the images that samples are compared with, by --images")
        return self._open(source, split=split, stream=recipe.data.stream)

    def _protocol(self, recipe: Recipe) -> dict[str, Any]:
        """How a combination is scored: figures of another protocol are other figures."""
        classified = CLASSIFIER in self.options.features
        return {
            "count": self.options.count,
            "seed": SEED,
            "quantise": "round",
            "features": {
                **{name: extractor.info.as_dict() for name, extractor in self.extractors.items()},
                **({CLASSIFIER: {"format": classifier.FORMAT, "seen": classifier.SEEN}} if classified else {}),
            },
            "reference": self._compared(recipe).describe(),
            "reconstruction": self._held_out(recipe).describe(),
        }

    # results: a small file for each, so a killed study loses at most the one in work

    def _key(self, training: Training, combination: Combination) -> str:
        """The name of a result, by all that decides it."""
        decisive = [training.digest, vars(combination.generation), self.protocols[training.digest]]
        return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:16]

    def _keep(self, training: Training, combination: Combination, result: dict[str, Any]) -> None:
        key = self._key(training, combination)
        write_text(self.out / RESULTS / f"{key}.json", to_json(result) + "\n")
        self._results[key] = result

    def _result(self, training: Training, combination: Combination) -> dict[str, Any] | None:
        """A result of this call or of an earlier one. A file that cannot be read counts as none: it is made again."""
        key = self._key(training, combination)
        if key not in self._results:
            with contextlib.suppress(OSError, ValueError, TypeError):
                found = parse_json((self.out / RESULTS / f"{key}.json").read_text("utf-8"))
                if "figures" in found or "error" in found:
                    self._results[key] = {"status": "failed" if found.get("error") else "done", **found}
        return self._results.get(key)

    def _missing(self, training: Training) -> list[Combination]:
        found = [(each, self._result(training, each)) for each in self.plan.of(training)]
        return [each for each, result in found if result is None or result["status"] == "failed"]

    def _samples(self) -> list[Path | None]:
        """The samples of each row's first training that succeeded."""
        found: list[Path | None] = []
        for one in self.plan.combinations:
            paths = [self.out / SAMPLES / f"{self._key(each, one)}.png" for each in one.trainings]
            found.append(next(filter(Path.is_file, paths), None))
        return found

    def _study(self) -> dict[str, Any]:
        """The whole study as plain JSON values, with all that is needed to repeat it."""
        rows = [self._row(combination) for combination in self.plan.combinations]
        references = {repr(each["reference"]): each["reference"] for each in self.protocols.values()}
        classified = CLASSIFIER in self.options.features
        columns = [
            *((FRECHET + name, each.info.distance, "lower") for name, each in self.extractors.items()),
            *(
                [(RIGHT, "class accuracy", "higher"), (FRECHET + CLASSIFIER, "FD-classifier", "lower")]
                if classified
                else []
            ),
            ("psnr", "PSNR, dB", "higher"),
            ("loss", "final loss", None),
            ("train_seconds", "training, s", None),
            ("ms_per_image", "ms/image", None),
        ]
        return {
            "format": FORMAT,
            "spheregen": spheregen.__version__,
            "recipe": self.plan.base.model_dump(mode="json"),
            "over": [
                {
                    "key": one.key,
                    "settings": list(one.settings),
                    "values": [told(json.loads(each)) for each in one.texts],
                }
                for one in self.plan.axes
            ],
            "one_by_one": self.plan.one_by_one,
            "seeds": self.plan.seeds,
            "protocol": {
                **next(iter(self.protocols.values())),
                "processes": self.world.size,
                "references": list(references.values()),
            },
            "columns": [{"key": key, "title": title, "better": better} for key, title, better in columns],
            "best": {key: found for key, _, better in columns if better and (found := best_rows(rows, key, better))},
            "rows": rows,
        }

    def _row(self, combination: Combination) -> dict[str, Any]:
        runs = []
        for training in combination.trainings:
            result = self._result(training, combination) or {"status": "waiting"}
            runs.append({"seed": training.recipe.train.seed, "run": self.names[training.digest], **result})
        done = [run["figures"] for run in runs if run["status"] == "done"]
        keys = list(dict.fromkeys(key for figures in done for key in figures))
        return {
            "settings": dict(combination.values),
            "texts": dict(combination.texts),
            "label": combination.label,
            "varies": combination.varies,
            "sampling": {name: value for name, value in vars(combination.generation).items() if value is not None},
            "parameters": combination.trainings[0].parameters,
            "runs": runs,
            "mean": {key: statistics.fmean(each[key] for each in done) for key in keys},
            "deviation": {key: statistics.stdev(each[key] for each in done) for key in keys if len(done) > 1},
        }

    def _write(self) -> None:
        """Write the table as JSON and CSV, each as a whole or not at all."""
        if self.world.is_first:
            study = self._study()
            write_text(self.out / f"{TABLE}.json", to_json(study) + "\n")
            write_text(self.out / f"{TABLE}.csv", study_csv(study))


def best_rows(rows: Sequence[Mapping[str, Any]], key: str, better: str) -> list[int]:
    """Return the numbers of the best rows by a figure; none where all are equally good."""
    values = {
        number: row["mean"][key] for number, row in enumerate(rows) if math.isfinite(row["mean"].get(key, math.nan))
    }
    best = (min if better == "lower" else max)(values.values(), default=None)
    return [number for number, value in values.items() if value == best] if len(set(values.values())) > 1 else []


def study_csv(study: Mapping[str, Any]) -> str:
    """Return a line for each training of each combination, with a header."""
    keys, figures = ([each["key"] for each in study[part]] for part in ("over", "columns"))
    header, text = [*keys, "train_seed", "run", "status", "parameters", *figures, "error"], io.StringIO()
    writer = csv.DictWriter(text, header, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for row in study["rows"]:
        values = {k: json.dumps(v) if isinstance(v, dict | list) else v for k, v in row["settings"].items()}
        for run in row["runs"]:
            writer.writerow(
                {**values, **run.get("figures", {}), **run, "train_seed": run["seed"], "parameters": row["parameters"]}
            )
    return text.getvalue()


def _geometry(recipe: Recipe) -> ImageOptions:
    """How real images are brought to size where they are compared: held-out images are cropped the ADM way."""
    return dataclasses.replace(image_options(recipe), resize="adm")
