"""The training loop: exact to the last bit when it is interrupted and continued, on one process or many.

All randomness of a step comes from generators seeded by (seed, step), and the order and augmentation of the data are
functions of (seed, step) too; so a step depends on nothing but the weights, the optimiser's moments and its number.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spheregen.data import Batch, Progress
from spheregen.devices import choose_device, choose_precision
from spheregen.distributed import World, joined_world, local_device
from spheregen.errors import TrainingError
from spheregen.evaluation.peak import matmul_peak
from spheregen.files import remove_leftovers, write_json
from spheregen.model_folder import WEIGHTS, LoadedModel, ModelInfo, load_any_model, read_architecture
from spheregen.model_source import find_model
from spheregen.progress import QuietReporter, Reporter
from spheregen.training.checkpoint import FOLDER as STATE
from spheregen.training.checkpoint import latest_checkpoint, load_checkpoint, save_checkpoint, training_state
from spheregen.training.feeding import Feed, open_data
from spheregen.training.fitting import choose_micro_batch, fits_warning, try_micro_batch
from spheregen.training.health import HealthMonitor
from spheregen.training.hooks import RunView, TrainingHook
from spheregen.training.latents import LARGEST_BATCH, latent_statistics
from spheregen.training.log import Meters, RunLog
from spheregen.training.optimizer import LearningRates
from spheregen.training.recipe import Recipe, recipe_differences
from spheregen.training.signals import StopRequest, end_as_by
from spheregen.training.step import StepResult, TrainingStep, micro_batches
from spheregen.training.systems import Draws, System, build_system, check_base
from spheregen.training.trackers import Tracker, open_trackers
from spheregen.training.transfer import inherited_provenance

PREVIEWS = "previews"
PROGRESS_SECONDS = 10.0
DATA_CHECK = "data-check.json"  # beside the checkpoints: which images were found to be bad
CALIBRATION_IMAGES = 2048
"""The first images of a run, at least so many if there are, from which the statistics of batch norms are measured."""
MFU_FROM_STEPS = 200  # shorter runs are not worth the second that measuring the machine's peak takes


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


def train(
    recipe: Recipe,
    out: str | Path,
    *,
    device: str = "auto",
    reporter: Reporter | None = None,
    hooks: Sequence[TrainingHook] = (),
) -> TrainingResult:
    """Train a recipe into a run folder, or continue the run that is there.

    The folder gets `config.json`, `model.safetensors` (averaged weights) and a model card, so that it can be sampled
    while training goes on; `recipe.json`, `log.jsonl`, `previews/` and `state/`. Under `torchrun` every process calls
    this alike; the batch is shared among them and the first one writes, to a folder that all of them can read.

    SIGTERM and SIGINT (Ctrl-C) end the run after its current step, with a checkpoint; a second one ends it at once.

    Args:
        recipe: what to train, with a data source.
        out: the run folder; made if it does not exist.
        device: a torch device or `auto`.
        reporter: hears of progress, in the first process; silent by default.
        hooks: code of yours that looks at the run, see `TrainingHook`.

    With `recipe.init` a new run starts from the weights of that model, see `spheregen.training.transfer`.

    Raises:
        ModelFileError: the model to start from is missing or broken.
        TrainingError: the folder holds a run with other settings, the loss is no longer finite, or another process of
            the run failed.
        DataError, ConfigError: data and recipe do not fit together, or nothing of the model to start from fits.
        KeyboardInterrupt, SystemExit: the run was asked to stop, and has saved its state.
    """
    with joined_world(device, recipe.train.backend) as world:
        reporter = reporter or QuietReporter()
        run = _Run(recipe, Path(out), device, reporter if world.is_first else QuietReporter(), world, hooks)
        try:
            return run.train()
        except Exception as error:
            if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
                raise
            reason = " ".join(str(error).partition("\nSet TORCHDYNAMO")[0].split())[:200]
            raise TrainingError(
                f"torch.compile failed ({reason}); set train.compile=false, or install a C++ compiler such as g++"
            ) from error


class _Run:
    def __init__(
        self,
        recipe: Recipe,
        folder: Path,
        device: str,
        reporter: Reporter,
        world: World,
        hooks: Sequence[TrainingHook],
    ) -> None:
        self.recipe, self.folder, self.reporter, self.world, self.hooks = recipe, folder, reporter, world, hooks
        if folder.exists() and not folder.is_dir():
            raise TrainingError(f"the output path {folder} is a file; choose a folder with --out")
        self.device = choose_device(local_device(device, world))
        self.precision = choose_precision(recipe.train.precision, self.device)
        data = open_data(recipe)
        self.images = data.count
        self.total = recipe.total_steps(self.images)
        checkpoint = latest_checkpoint(folder)
        self.start = checkpoint.step if checkpoint else 0
        if len(set(world.gather_objects(self.start))) > 1:
            raise TrainingError(
                f"the processes see different checkpoints in {folder}; put it on storage that all machines share"
            )
        self.class_names = data.class_names if recipe.model.num_classes else ()
        base = _load_base(recipe, world) if recipe.init is not None and checkpoint is None else None
        self.batches = data.batches(
            Feed(
                device=self.device,
                world=world,
                start=self.start,
                steps=self.total,
                remembered=folder / STATE / DATA_CHECK,
                progress=_told_now_and_then(reporter),
            )
        )
        for reason in self.batches.skipped:
            reporter.message(f"skipped: {reason}")

        if not world.is_first:
            world.wait_for_all()  # the first may have to download frozen networks
        system = build_system(recipe, data)
        if world.is_first:
            world.wait_for_all()
        self.about: dict[str, Any] = {
            "recipe": recipe.model_dump(mode="json"),
            "data": self.batches.fingerprint,
            **system.about,
        }
        if checkpoint:
            _refuse_changes(checkpoint.run, self.about, folder)
        elif (folder / WEIGHTS).exists():
            raise TrainingError(f"{folder} holds a model without training state; choose another folder with --out")
        if base is not None:
            self.about["init"] = self._start_from(base, system)
            del base
        elif checkpoint and "init" in checkpoint.run:
            self.about["init"] = checkpoint.run["init"]  # the model itself is never read again
        micro_batch = recipe.train.micro_batch
        if micro_batch == "auto":
            micro_batch = choose_micro_batch(recipe, self.device, self.precision, world)
        if warning := fits_warning(recipe, self.device, self.precision, world, micro_batch):
            reporter.message(f"warning: {warning}")
        if checkpoint is None:
            system.to(self.device)
            share = world.share(recipe.train.batch_size)
            parts = micro_batches(self._first_batches(), micro_batch or share.stop - share.start, self.device)
            system.prepare(parts, world.gather_objects)
        self.step = TrainingStep(
            system,
            recipe,
            device=self.device,
            precision=self.precision,
            world=world,
            micro_batch=micro_batch,
            total=self.total,
        )
        if recipe.train.micro_batch == "auto" and self.device.type == "cuda" and world.size == 1:
            try_micro_batch(self.step)
        self.flops_per_image = system.flops_per_image()
        self.rates = LearningRates(
            recipe.learners,
            batch_size=recipe.train.batch_size,
            warmups={learner.name: recipe.warmup_steps(self.images, learner.optimizer) for learner in recipe.learners},
            total=self.total,
        )
        self._calibrated: int | None = None  # the step whose averaged weights the statistics are of
        self.meters = Meters()
        self.health = HealthMonitor(
            max_angle=getattr(getattr(recipe, "autoencoder", None) or recipe.model, "max_angle", None),
            warmup=recipe.warmup_steps(self.images),
        )
        if checkpoint:
            meters = load_checkpoint(checkpoint, self.step.model, self.step.average.model, self.step.optimizer)
            self.meters = Meters(meters)
            self.health.restore(checkpoint.run.get("health", {}))
            reporter.message(f"continuing {folder} from step {self.start}")
        self.info = ModelInfo(
            class_names=self.class_names,
            sampling=recipe.sampling.model_dump(mode="json"),
            preprocessing=data.preprocessing,
            training={
                "recipe": recipe.name,
                "description": recipe.description,
                "data": data.name,
                "planned_steps": self.total,
                "batch_size": recipe.train.batch_size,
                "seed": recipe.train.seed,
                **system.about,
                **({"init": recipe.init} if recipe.init is not None else {}),
            },
            provenance=self.about.get("init", {}).get("provenance", {}),
        )

    def _start_from(self, base: LoadedModel, system: System) -> dict[str, Any]:
        """Begin with the weights of a trained model; returns what the run must know of it when it continues."""
        name = self.recipe.init
        assert name is not None
        for line in system.start_from(base, self.class_names).summary():
            self.reporter.message(f"from {name}: {line}")
        if len(set(self.world.gather_objects(base.fingerprint))) > 1:
            raise TrainingError(f"the processes see different models at {name}; give all of them the same one")
        return {"provenance": inherited_provenance(name, base.info), "weights": base.fingerprint}

    def train(self) -> TrainingResult:
        recipe, total, reporter = self.recipe, self.total, self.reporter
        reporter.message(self._headline())
        if self.start >= total:
            if not self._model_is_current():
                self._save_model(total, self._state())
            reporter.message(f"the run in {self.folder} is complete; nothing to do")
            return TrainingResult(self.folder, total, 0, 0.0, {})
        if self.world.is_first:
            self._prepare_folder()
        log = RunLog(self.folder, step=self.start) if self.world.is_first else None
        trackers = self._open_trackers()
        peak = matmul_peak(self.device, self.precision) if total >= MFU_FROM_STEPS else None
        metrics: dict[str, float] = {}
        begun = logged = time.monotonic()
        logged_step = self.start
        reporter.start(total, self.start, recipe.train.batch_size)
        try:
            with StopRequest() as stop:
                for batch, draws in self._feed():
                    step = batch.step
                    if step == self.start:
                        self.step.settle(batch, draws)
                    result = self.step(batch, draws, self.rates(step))
                    done = step + 1
                    logs = done % recipe.train.log_every == 0 or done == total
                    previews = bool(recipe.train.preview_every) and done % recipe.train.preview_every == 0
                    self.meters.add(result.values)
                    # reading costs nothing on a CPU; elsewhere it waits for the device, so only at the log interval
                    reads = logs or self.device.type == "cpu"
                    if reads:
                        metrics = self._check_finite(done)
                    if logs:
                        now = time.monotonic()
                        speed = (done - logged_step) * recipe.train.batch_size / max(now - logged, 1e-9)
                        logged, logged_step = now, done
                        metrics |= self._observe(result)
                        for warning in self.health.check(done, metrics):
                            reporter.message(f"warning: {warning}")
                        learning = {f"lr_{name}" if name else "lr": rate for name, rate in self.rates(step).items()}
                        rates = {**learning, "images_per_second": speed}
                        if peak:
                            rates["mfu"] = speed * self.flops_per_image / (peak * self.world.size)
                        epoch = done * recipe.train.batch_size / self.batches.count
                        self._log(log, trackers, done, {"epoch": epoch, **metrics, **rates})
                        self.meters.reset()
                    if previews or (recipe.train.preview_every and done == total):
                        self._preview(done, trackers)
                    for hook in self.hooks:
                        if done % hook.every == 0 or done == total:
                            self._call(hook, done, log, trackers)
                    stopping = self._asked_to_stop(stop) if reads else 0
                    if done % recipe.train.checkpoint_every == 0 or done == total or stopping:
                        self._save(done)
                    reporter.step(done, metrics if logs else None)
                    if stopping and done < total:
                        reporter.message(f"stopped after step {done}, which is saved; the same command continues")
                        end_as_by(stopping)
        finally:
            reporter.stop()
            for tracker in trackers:
                tracker.close()
        return TrainingResult(self.folder, total, total - self.start, time.monotonic() - begun, metrics)

    def _headline(self) -> str:
        recipe, step = self.recipe, self.step
        parameters = sum(p.numel() for p in step.average.model.parameters())
        extras = list(step.system.notes)
        if step.micro_batch < recipe.train.batch_size // self.world.size:
            extras.append(f"micro-batches of {step.micro_batch}")
        if self.world.size > 1:
            extras.append(f"{self.world.size} processes ({'fsdp' if step.sharded else 'ddp'})")
        if step.compiled:
            extras.append("compiled")
        return (
            f"{recipe.name}: {self.images} images, {parameters / 1e6:.2f} M parameters, {self.total} steps of "
            f"{recipe.train.batch_size} on {self.device.type} in {', '.join([self.precision, *extras])}"
        )

    def _prepare_folder(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        for place in (self.folder, self.folder / STATE, self.folder / PREVIEWS):
            remove_leftovers(place)
        write_json(self.folder / "recipe.json", self.about["recipe"])

    def _open_trackers(self) -> list[Tracker]:
        if not self.world.is_first:
            return []
        return open_trackers(
            self.recipe.train.trackers,
            self.folder,
            name=self.recipe.name,
            config=self.about["recipe"],
            start_step=self.start,
            warn=self.reporter.message,
        )

    def _feed(self) -> Iterator[tuple[Batch, Draws]]:
        """Each step's images and random numbers; a GPU gets the latter from a thread that is one step ahead."""
        if self.device.type != "cuda":
            for batch in self.batches:
                yield batch, self.step.draw(batch.step)
            return

        def drawn(step: int) -> Draws:
            return self.step.draw(step).each(Tensor.pin_memory)

        with ThreadPoolExecutor(1) as thread:
            ahead = thread.submit(drawn, self.start)
            for batch in self.batches:
                draws = ahead.result()
                ahead = thread.submit(drawn, batch.step + 1)
                yield batch, draws.each(lambda tensor: tensor.to(self.device, non_blocking=True))

    def _asked_to_stop(self, stop: StopRequest) -> int:
        """The signal by which any process was asked to stop, 0 for none."""
        if self.world.size == 1:
            return stop.signal
        return int(self.world.largest(torch.tensor(stop.signal, device=self.device)).item())

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

    def _observe(self, result: StepResult) -> dict[str, float]:
        """Of the step's global batch: how its latents lie on the sphere, how varied its images and decodes are."""
        observed = {name: torch.cat(list(parts)) for name, parts in result.observed.items()}
        each = -(-LARGEST_BATCH // self.world.size)
        values = latent_statistics(self.world.concatenate(observed["latent"][:each])) if "latent" in observed else {}
        values["data_deviation"] = self._deviation(observed["data"])
        values["image_deviation"] = self._deviation(observed["output"])
        return {name: value.item() for name, value in values.items()}

    def _deviation(self, images: Tensor) -> Tensor:
        """The standard deviation over the global batch of images (B, C, S, S), averaged over pixels."""
        mean = self.world.mean(images.mean(dim=0))
        return self.world.mean((images - mean).square().mean(dim=0)).sqrt().mean()

    def _log(self, log: RunLog | None, trackers: Sequence[Tracker], done: int, values: Mapping[str, float]) -> None:
        if log is not None:
            log.write({"step": done, **values})
        for tracker in trackers:
            tracker.log(done, values)

    def _call(self, hook: TrainingHook, done: int, log: RunLog | None, trackers: Sequence[Tracker]) -> None:
        self._calibrate(done)
        with torch.no_grad():
            values = hook.after_step(
                RunView(self.folder, self.step.system.assembled(self.step.average.model), self.recipe.name, done), done
            )
        if values:
            self._log(log, trackers, done, values)

    def _save(self, done: int) -> None:
        self._check_finite(done)
        self._calibrate(done)
        state = self._state()
        if not self.world.is_first:
            return
        if not all(bool(tensor.isfinite().all()) for name, tensor in state.items() if name.startswith("model.")):
            raise TrainingError(
                f"weights are not finite at step {done}; the last checkpoint is intact. Lower optimizer.lr"
            )
        about = {**self.about, "health": self.health.state()}
        save_checkpoint(self.folder, done, state, about=about, keep=self.recipe.train.keep)
        self._save_model(done, state)

    def _calibrate(self, done: int) -> None:
        """Give the averaged model the statistics that its weights of this step have of the data, if it needs any."""
        if not self.step.system.needs_calibration or self._calibrated == done:
            return
        self.step.calibrate(self._first_batches())
        self._calibrated = done

    def _first_batches(self) -> Iterator[Batch]:
        """The images that statistics are measured of: the first ones in the order of the run, shared among the
        processes, so that a run that was interrupted gets the same ones."""
        images = min(CALIBRATION_IMAGES, self.batches.count)
        for step in range(-(-images // self.recipe.train.batch_size)):
            yield self.batches.batch(step)

    def _state(self) -> dict[str, Tensor]:
        step = self.step
        return training_state(step.model, step.average.model, step.optimizer, self.meters.sums, self.world)

    def _save_model(self, done: int, state: Mapping[str, Tensor]) -> None:
        if self.world.is_first:
            info = dataclasses.replace(self.info, training={**self.info.training, "steps": done})
            self.step.system.save(
                self.folder, self.step.average.model, info, title=self.recipe.name, state=_averaged(state)
            )

    def _model_is_current(self) -> bool:
        """Whether the model folder holds the averaged weights: a run may die after its state and before its model."""
        ours = _averaged(self._state())
        if not self.world.is_first:
            return True
        return self.step.system.is_saved(self.folder, ours)

    def _preview(self, done: int, trackers: Sequence[Tracker]) -> None:
        self._calibrate(done)
        if not (self.world.is_first or self.step.sharded):  # a sharded model computes only where all take part
            return
        first = self.batches.batch(0)
        path = self.folder / PREVIEWS / f"step-{done:09d}.png"
        self.step.system.preview(
            self.step.average.model,
            dataclasses.replace(first, inputs=first.inputs.to(self.device)),
            path if self.world.is_first else None,
            {"step": str(done), "recipe": self.recipe.name},
            self.recipe.sampling,
        )
        for tracker in trackers:
            tracker.image(done, "preview", path)


def _told_now_and_then(reporter: Reporter) -> Progress:
    """Tells how far the decoding or checking of the images is, every ten seconds."""
    last = time.monotonic()

    def progress(done: int, total: int) -> None:
        nonlocal last
        if time.monotonic() - last >= PROGRESS_SECONDS:
            last = time.monotonic()
            reporter.message(f"decoded {done} of {total} images")

    return progress


def _averaged(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The averaged weights in a run's state, by their names in the model."""
    return {name.removeprefix("average."): tensor for name, tensor in state.items() if name.startswith("average.")}


def _load_base(recipe: Recipe, world: World) -> LoadedModel:
    """The model that a run starts from; refused here, before the data is read, if nothing of it can fit."""
    assert recipe.init is not None
    if not world.is_first:
        world.wait_for_all()  # the first may have to download it
    folder = find_model(recipe.init)
    if world.is_first:
        world.wait_for_all()
    check_base(recipe, read_architecture(folder))
    return load_any_model(folder)


def _refuse_changes(before: Mapping[str, Any], now: Mapping[str, Any], folder: Path) -> None:
    differences = recipe_differences(before.get("recipe", {}), now["recipe"])
    if before.get("data") != now["data"]:
        differences.append("the data set is another one (its files, sizes or labels differ)")
    differences += [
        f"{name}: {before.get(name)} -> {now[name]}"
        for name in sorted(now.keys() - {"recipe", "data"})
        if before.get(name) != now[name]
    ]
    if differences:
        raise TrainingError(
            f"{folder} holds a run with other settings: {'; '.join(differences)}. "
            "Repeat the old settings to continue it, or choose another folder with --out"
        )
