"""Quality against training time: the averaged weights of every checkpoint that runs have kept, scored in turn.

    python benchmarks/training_curves.py runs/a runs/b,steps=2,prior=fitted --data CIFAR10 --out curves.json
        [--picture curves.png] [--minutes 20 25] [--count 2000]

A run keeps its checkpoints with `train.keep` and writes them every `train.checkpoint_every` steps. After its folder
come settings of sampling, so one run may have several curves. COUNT samples of each checkpoint, evenly of all classes,
are scored against images of DATA: the Frechet distances on the package's own features and on those of an independent
classifier, and how often that sees the class that was asked for. The time is that of the run's log, without
interruptions. Where other work slowed some of the runs, `--minutes` is fairer: the CPU time that was measured of each,
spread evenly over its steps. Runs of Sphere Encoders and of refiners, on the CPU.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from figures import Figures

import spheregen as sg
from spheregen.data import to_uint8
from spheregen.errors import ConfigError
from spheregen.files import write_text
from spheregen.folders.model_folder import load_tensors
from spheregen.training.checkpoint import checkpoints
from spheregen.training.plots import read_series, training_seconds

RENAMED = {"autoencoder.": "rough."}
"""Parts of a joint training, and what they are called in a refined generator."""
PANELS = {"fd_own": "FD-own", "fd_classifier": "FD of the classifier", "right": "right class"}


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


def curve(
    run: Path,
    settings: Mapping[str, Any],
    figures: Figures,
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
        made = pipe.generate(count, seed=seed, **settings)
        spent = training_seconds(rates, batch, step) / 60 if minutes is None else minutes * step / kept[-1][0]
        point = {"step": step, "minutes": spent, **figures.of(to_uint8(made.tensor), made.labels or [])}
        print(f"{run.name}  {step:6d} steps  {point['minutes']:6.1f} min  {point['fd_own']:7.1f}", flush=True)
        points.append(point)
    return points


def draw(curves: Mapping[str, list[dict[str, Any]]], path: Path, count: int) -> None:
    """The curves as a picture, a panel for each figure; needs matplotlib."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.8), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    for axes, (name, title) in zip(figure.subplots(1, len(PANELS)), PANELS.items(), strict=True):
        for label, points in curves.items():
            x, y = ([point[key] for point in points] for key in ("minutes", name))
            axes.plot(x, y, marker="o", markersize=3, label=label)
        axes.set(xlabel="minutes of training", title=f"{title}, {count} samples", ylim=(0, None))
        axes.grid(alpha=0.3)
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", frameon=False)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--data", required=True)
    parser.add_argument("--names", nargs="+", help="of the curves in the picture; by default what was given")
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=900_000)
    parser.add_argument("--every", type=int, default=1, help="of so many checkpoints one")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--minutes", type=float, nargs="+", help="of training, of each run")
    given = parser.parse_args()
    for name in ("minutes", "names"):
        if (values := getattr(given, name)) and len(values) != len(given.runs):
            parser.error(f"{len(values)} {name} for {len(given.runs)} runs; give one for each")
    if given.threads:
        torch.set_num_threads(given.threads)
    pipe = sg.Pipeline.from_pretrained(given.runs[0].partition(",")[0], device="cpu", quiet=True)
    curves = {}
    with tempfile.TemporaryDirectory() as cache:
        figures = Figures(pipe, given.data, Path(cache))
        names, minutes = given.names or given.runs, given.minutes or [None] * len(given.runs)
        for text, name, spent in zip(given.runs, names, minutes, strict=True):
            run, *settings = text.split(",")
            chosen = {key: yaml.safe_load(value) for key, value in (each.split("=") for each in settings)}
            how = {"count": given.count, "seed": given.seed, "every": given.every, "minutes": spent}
            curves[name] = curve(Path(run), chosen, figures, **how)
    write_text(given.out, json.dumps(curves, indent=1) + "\n")
    if given.picture:
        draw(curves, given.picture, given.count)


if __name__ == "__main__":
    main()
