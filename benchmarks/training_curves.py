"""Quality against training time: the averaged weights of every checkpoint that runs have kept, scored in turn.

    python benchmarks/training_curves.py runs/a runs/b --data CIFAR10 --out curves.json [--picture curves.png]

A run keeps its checkpoints with `train.keep` and writes them every `train.checkpoint_every` steps. The score is the
Frechet distance of COUNT samples, evenly of all classes, on the package's own features (`--features` for others)
against the training images of DATA. The time is that of the run's log, without interruptions. Where other work slowed
some of the runs, `--minutes` is fairer: the CPU time that was measured of each, spread evenly over its steps. Runs of
Sphere Encoders and of refiners, on the CPU.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

import spheregen as sg
from spheregen.data import ImageOptions, load_all, open_source
from spheregen.errors import ConfigError
from spheregen.files import write_text
from spheregen.folders.model_folder import load_tensors
from spheregen.measure.features import FEATURE_BATCH, FeatureExtractor, load_extractor
from spheregen.measure.metrics import Gaussian, Moments, frechet_distance
from spheregen.pipeline import GenerationOptions
from spheregen.training.checkpoint import checkpoints
from spheregen.training.plots import read_series, training_seconds

RENAMED = {"autoencoder.": "rough."}
"""Parts of a joint training, and what they are called in a refined generator."""


def load_average(pipe: sg.Pipeline, path: Path) -> None:
    """Put the averaged weights of a checkpoint into a pipeline of its run."""
    found = {}
    for name, tensor in load_tensors(path).items():
        part, _, rest = name.partition(".")
        if part != "average" or rest.startswith("critic."):
            continue
        for ours, theirs in RENAMED.items():
            rest = theirs + rest.removeprefix(ours) if rest.startswith(ours) else rest
        found[rest] = tensor
    strange = sorted(found.keys() - pipe.model.state_dict().keys())
    if strange or not found:
        raise ConfigError(f"{path} does not belong to the model of its run: {strange[:1] or 'no averaged weights'}")
    pipe.model.load_state_dict(found, strict=False)


def gaussian_of(extractor: FeatureExtractor, batches: Iterator[torch.Tensor]) -> Gaussian:
    """The moments of the features of uint8 images."""
    moments = Moments()
    for batch in batches:
        moments.update(extractor(batch).features)
    return moments.gaussian


def curve(
    run: Path,
    extractor: FeatureExtractor,
    reference: Gaussian,
    options: GenerationOptions,
    *,
    count: int,
    seed: int,
    every: int,
    minutes: float | None,
) -> list[dict[str, Any]]:
    """The points of a run, of every so manieth checkpoint up to the last; `minutes`: of the whole run."""
    pipe = sg.Pipeline.from_pretrained(str(run), device="cpu", quiet=True)
    batch = json.loads((run / "recipe.json").read_text(encoding="utf-8"))["train"]["batch_size"]
    rates = read_series(run)["images_per_second"]
    kept = checkpoints(run)
    points = []
    for step, path in reversed(kept[::-1][::every]):
        load_average(pipe, path)
        parts = pipe.stream(range(seed, seed + count), options=options)
        made = gaussian_of(extractor, ((255 * part.tensor).round().to(torch.uint8) for part in parts))
        point = {
            "step": step,
            "minutes": training_seconds(rates, batch, step) / 60 if minutes is None else minutes * step / kept[-1][0],
            "frechet": frechet_distance(made, reference),
        }
        print(f"{run.name}  {step:6d} steps  {point['minutes']:6.1f} min  {point['frechet']:7.1f}", flush=True)
        points.append(point)
    return points


def draw(curves: dict[str, list[dict[str, Any]]], path: Path, title: str) -> None:
    """The curves as a picture; needs matplotlib."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter

    figure = Figure(figsize=(6, 3.6), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for name, points in curves.items():
        axes.plot([p["minutes"] for p in points], [p["frechet"] for p in points], marker="o", markersize=3, label=name)
    axes.set(xlabel="minutes of training", ylabel=title, yscale="log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--data", required=True)
    parser.add_argument("--features", default="own")
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=900_000)
    parser.add_argument("--every", type=int, default=1, help="of so many checkpoints one")
    parser.add_argument("--guidance", type=float)
    parser.add_argument("--refinement-steps", type=int)
    parser.add_argument("--solver")
    parser.add_argument("--refinement-guidance", type=float)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--minutes", type=float, nargs="+", help="of training, of each run")
    arguments = parser.parse_args()
    if arguments.minutes and len(arguments.minutes) != len(arguments.runs):
        parser.error(f"{len(arguments.minutes)} minutes for {len(arguments.runs)} runs; give one for each")
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    extractor = load_extractor(arguments.features, device=torch.device("cpu"))
    config = sg.Pipeline.from_pretrained(str(arguments.runs[0]), device="cpu", quiet=True).model.config
    geometry = ImageOptions(image_size=config.image_size, channels=config.image_channels)
    real = load_all(open_source(arguments.data, split="train"), geometry).images
    reference = gaussian_of(extractor, iter(real.split(FEATURE_BATCH)))
    options = GenerationOptions(
        guidance=arguments.guidance,
        refinement_steps=arguments.refinement_steps,
        solver=arguments.solver,
        refinement_guidance=arguments.refinement_guidance,
    )
    curves = {
        run.name: curve(
            run,
            extractor,
            reference,
            options,
            count=arguments.count,
            seed=arguments.seed,
            every=arguments.every,
            minutes=minutes,
        )
        for run, minutes in zip(arguments.runs, arguments.minutes or [None] * len(arguments.runs), strict=True)
    }
    write_text(arguments.out, json.dumps(curves, indent=1) + "\n")
    if arguments.picture:
        draw(curves, arguments.picture, f"FD-{arguments.features} of {arguments.count} samples")


if __name__ == "__main__":
    main()
