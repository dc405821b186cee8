"""The training loop: one process, exact to the last bit when it is interrupted and continued.

All randomness of a step comes from generators seeded by (seed, step), and the order and augmentation of the data are
functions of (seed, step) too; so a step depends on nothing but the weights, the optimiser's moments and its number.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from spheregen.data import Batch, ImageOptions, ImageSource, TrainingBatches, open_source
from spheregen.devices import autocast, choose_device, choose_precision
from spheregen.errors import ConfigError, ModelFileError, TrainingError
from spheregen.files import remove_leftovers, write_json
from spheregen.losses.autoencoder import AutoencoderObjective
from spheregen.losses.perceptual import load_perceptual
from spheregen.model_folder import WEIGHTS, ModelInfo, load_model, save_model
from spheregen.models.autoencoder import SphereAutoencoder
from spheregen.training.card import model_card
from spheregen.training.checkpoint import FOLDER as STATE
from spheregen.training.checkpoint import latest_checkpoint, load_checkpoint, save_checkpoint
from spheregen.training.ema import EMA
from spheregen.training.log import Meters, RunLog
from spheregen.training.optimizer import build_optimizer, learning_rate, set_learning_rate
from spheregen.training.preview import save_preview
from spheregen.training.progress import QuietReporter, Reporter
from spheregen.training.recipe import Recipe, recipe_differences

PREVIEWS = "previews"


@dataclass(frozen=True)
class TrainingResult:
    """A finished run."""

    folder: Path
    """The run folder, which is also a model folder."""
    steps: int
    """Optimiser steps of the whole run."""
    steps_done_now: int
    """Those of this call; 0 when the run was complete already."""
    seconds: float
    """Wall time of this call's steps."""
    metrics: Mapping[str, float]
    """The means of the last log interval; empty when nothing was left to do."""


def train(recipe: Recipe, out: str | Path, *, device: str = "auto", reporter: Reporter | None = None) -> TrainingResult:
    """Train a recipe into a run folder, or continue the run that is there.

    The folder gets `config.json`, `model.safetensors` (averaged weights) and a model card, so that it can be sampled
    while training goes on; `recipe.json`, `log.jsonl`, `previews/` and `state/`.

    Args:
        recipe: what to train, with a data source.
        out: the run folder; made if it does not exist.
        device: a torch device or `auto`.
        reporter: hears of progress; silent by default.

    Raises:
        TrainingError: the folder holds a run with other settings, or the loss is no longer finite.
        DataError, ConfigError: data and recipe do not fit together.
    """
    return _Run(recipe, Path(out), device, reporter or QuietReporter()).train()


class _Run:
    def __init__(self, recipe: Recipe, folder: Path, device: str, reporter: Reporter) -> None:
        self.recipe, self.folder, self.reporter = recipe, folder, reporter
        if folder.exists() and not folder.is_dir():
            raise TrainingError(f"the output path {folder} is a file; choose a folder with --out")
        if recipe.data.source is None:
            raise ConfigError(f"the recipe {recipe.name} brings no data: name a folder or parquet files with --data")
        self.device = choose_device(device)
        self.precision = choose_precision(recipe.train.precision, self.device)
        source = open_source(recipe.data.source, split=recipe.data.split)
        _check_classes(recipe, source)
        self.total = recipe.total_steps(len(source))
        checkpoint = latest_checkpoint(folder)
        self.start = checkpoint.step if checkpoint else 0
        self.batches = TrainingBatches(
            source,
            image_options(recipe),
            batch_size=recipe.train.batch_size,
            steps=max(self.total, self.start),
            seed=recipe.train.seed,
            flips=recipe.data.flips,
            on_error=recipe.data.on_error,
            workers=recipe.data.workers,
            cache_bytes=recipe.data.cache_mb << 20,
            start_step=self.start,
        )
        for reason in self.batches.skipped:
            reporter.message(f"skipped: {reason}")

        perceptual = load_perceptual(recipe.perceptual) if recipe.loss.needs_perceptual else None
        self.about: dict[str, Any] = {
            "recipe": recipe.model_dump(mode="json"),
            "data": self.batches.fingerprint,
            "perceptual": perceptual.name if perceptual else "none",
        }
        if checkpoint:
            _refuse_changes(checkpoint.run, self.about, folder)
        elif (folder / WEIGHTS).exists():
            raise TrainingError(f"{folder} holds a model without training state; choose another folder with --out")

        torch.manual_seed(recipe.train.seed)
        self.model = SphereAutoencoder(recipe.model).to(self.device)
        self.average = EMA(self.model, recipe.train.ema)
        self.objective = AutoencoderObjective(
            self.model, recipe.loss, recipe.noise, perceptual.to(self.device) if perceptual else None
        )
        self.optimizer = build_optimizer(self.model, recipe.optimizer)
        self.rate = learning_rate(
            recipe.optimizer,
            batch_size=recipe.train.batch_size,
            warmup=recipe.warmup_steps(len(source)),
            total=self.total,
        )
        self.meters = Meters()
        if checkpoint:
            self.meters = Meters(load_checkpoint(checkpoint, self.model, self.average.model, self.optimizer))
            reporter.message(f"continuing {folder} from step {self.start}")
        self.info = ModelInfo(
            class_names=source.class_names if recipe.model.num_classes else (),
            sampling=recipe.sampling.model_dump(mode="json"),
            training={
                "recipe": recipe.name,
                "data": source.name,
                "steps": self.total,
                "perceptual": self.about["perceptual"],
            },
        )
        self.images = len(source)

    def train(self) -> TrainingResult:
        recipe, total = self.recipe, self.total
        parameters = sum(p.numel() for p in self.model.parameters())
        self.reporter.message(
            f"{recipe.name}: {self.images} images, {parameters / 1e6:.2f} M parameters, {total} steps of "
            f"{recipe.train.batch_size} on {self.device.type} in {self.precision}, "
            f"perceptual loss: {self.about['perceptual']}"
        )
        if self.start >= total:
            if not self._model_is_current():
                self._save_model(total)
            self.reporter.message(f"the run in {self.folder} is complete; nothing to do")
            return TrainingResult(self.folder, total, 0, 0.0, {})
        self.folder.mkdir(parents=True, exist_ok=True)
        for place in (self.folder, self.folder / STATE, self.folder / PREVIEWS):
            remove_leftovers(place)
        write_json(self.folder / "recipe.json", self.about["recipe"])
        log = RunLog(self.folder, step=self.start)
        metrics: dict[str, float] = {}
        begun = logged = time.monotonic()
        logged_step = self.start
        self.model.train()
        self.reporter.start(total, self.start, recipe.train.batch_size)
        try:
            for batch in self.batches:
                step = batch.step
                self.meters.add(self._step(batch, self.rate(step)))
                done = step + 1
                if self.device.type == "cpu":  # reading costs nothing here; elsewhere it waits for the log interval
                    self._check_finite(done)
                now_metrics = None
                if done % recipe.train.log_every == 0 or done == total:
                    metrics = now_metrics = self._check_finite(done)
                    now = time.monotonic()
                    speed = (done - logged_step) * recipe.train.batch_size / max(now - logged, 1e-9)
                    logged, logged_step = now, done
                    epoch = done * recipe.train.batch_size / self.batches.count
                    log.write(
                        {"step": done, "epoch": epoch, "lr": self.rate(step), **metrics, "images_per_second": speed}
                    )
                    self.meters.reset()
                if recipe.train.preview_every and (done % recipe.train.preview_every == 0 or done == total):
                    self._preview(done)
                if done % recipe.train.checkpoint_every == 0 or done == total:
                    self._save(done)
                self.reporter.step(done, now_metrics)
        finally:
            self.reporter.stop()
        return TrainingResult(self.folder, total, total - self.start, time.monotonic() - begun, metrics)

    def _step(self, batch: Batch, lr: float) -> dict[str, torch.Tensor]:
        """One optimiser step; returns the loss terms and the gradient norm, on the device."""
        size = batch.images.shape[0]
        micro = self.recipe.train.micro_batch or size
        torch.manual_seed(step_seed(self.recipe.train.seed, batch.step, "network"))
        generator = torch.Generator().manual_seed(step_seed(self.recipe.train.seed, batch.step, "noise"))
        draws = self.objective.draw(size, generator)
        values: dict[str, torch.Tensor] = {}
        for start in range(0, size, micro):
            part = slice(start, start + micro)
            images = batch.images[part].to(self.device, non_blocking=True)
            labels = None if batch.labels is None else batch.labels[part].to(self.device, non_blocking=True)
            share = images.shape[0] / size
            with autocast(self.device, self.precision):
                loss = self.objective(images, labels, draws[part])
            (loss.total * share).backward()
            for name, value in {"loss": loss.total.detach(), **loss.terms}.items():
                values[name] = values[name] + value * share if name in values else value * share
        values["grad_norm"] = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.optimizer.clip)
        set_learning_rate(self.optimizer, lr)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.average.update()
        return values

    def _check_finite(self, done: int) -> dict[str, float]:
        metrics = self.meters.read()
        broken = [name for name, value in metrics.items() if not math.isfinite(value)]
        if broken:
            last = latest_checkpoint(self.folder)
            kept = f"the checkpoint of step {last.step} is intact" if last else "no checkpoint was written yet"
            raise TrainingError(
                f"{', '.join(broken)} is not finite at step {done}; {kept}. "
                "Lower optimizer.lr (--set optimizer.lr=...), lengthen its warm-up, or use train.precision=float32"
            )
        return metrics

    def _save(self, done: int) -> None:
        self._check_finite(done)
        if not all(bool(p.isfinite().all()) for p in self.model.parameters()):
            raise TrainingError(
                f"weights are not finite at step {done}; the last checkpoint is intact. Lower optimizer.lr"
            )
        save_checkpoint(
            self.folder,
            done,
            self.model,
            self.average.model,
            self.optimizer,
            self.meters.sums,
            about=self.about,
            keep=self.recipe.train.keep,
        )
        self._save_model(done)

    def _save_model(self, done: int) -> None:
        card = model_card(self.recipe, self.info, steps=done, total=self.total)
        save_model(self.folder, self.average.model, self.info, card=card)

    def _model_is_current(self) -> bool:
        """Whether the model folder holds the averaged weights: a run may die after its state and before its model."""
        try:
            saved = load_model(self.folder).model.state_dict()
        except ModelFileError:
            return False
        ours = self.average.model.state_dict()
        return saved.keys() == ours.keys() and all(torch.equal(saved[name], ours[name].cpu()) for name in ours)

    def _preview(self, done: int) -> None:
        originals = self.batches.batch(0).images.to(self.device)
        path = self.folder / PREVIEWS / f"step-{done:09d}.png"
        save_preview(self.average.model, originals, path, {"step": str(done), "recipe": self.recipe.name})


def image_options(recipe: Recipe) -> ImageOptions:
    """How a recipe turns pictures into tensors."""
    return ImageOptions(
        image_size=recipe.model.image_size,
        channels=recipe.model.image_channels,
        fit=recipe.data.fit,
        background=recipe.data.background,
        resize=recipe.data.resize,
    )


def step_seed(seed: int, step: int, stream: str) -> int:
    """The seed of one stream of randomness in one step: 63 well-mixed bits."""
    digest = hashlib.blake2b(f"{seed} {step} {stream}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def _check_classes(recipe: Recipe, source: ImageSource) -> None:
    wanted, given = recipe.model.num_classes, len(source.class_names)
    if not wanted or wanted == given:
        return
    if not given:
        raise ConfigError(
            f"{source.name} has no labels, but the recipe asks for {wanted} classes; sort the images into one folder a "
            "class, or train without classes: --set model.num_classes=0"
        )
    raise ConfigError(
        f"{source.name} has {given} classes, but the recipe asks for {wanted}: --set model.num_classes={given}"
    )


def _refuse_changes(before: Mapping[str, Any], now: Mapping[str, Any], folder: Path) -> None:
    differences = recipe_differences(before.get("recipe", {}), now["recipe"])
    if before.get("data") != now["data"]:
        differences.append("the data set is another one (its files, sizes or labels differ)")
    if before.get("perceptual") != now["perceptual"]:
        differences.append(f"perceptual loss: {before.get('perceptual')} -> {now['perceptual']}")
    if differences:
        raise TrainingError(
            f"{folder} holds a run with other settings: {'; '.join(differences)}. "
            "Repeat the old settings to continue it, or choose another folder with --out"
        )
