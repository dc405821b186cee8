"""Which member samples best after so many minutes of one core: the table behind `suggest`.

    python benchmarks/members.py --data flowers=PATH@64 --minutes 10 [--members vit,conv] [--out runs/members]
    python benchmarks/members.py --page --out runs/members

Trains every member with one thread in float32, as every processor has it, for as many steps as fit into the minutes by
the library's own estimate, in CPU seconds, and scores samples of random points and of the fitted prior.
`NAME=PATH@SIZE` is in colour, `NAME=PATH@SIZE,grey` is not: then it is not mirrored, and has no perceptual term. Rows
are appended to OUT/members.jsonl, with the CPU seconds that training took; sheets lie beside it; what is there already
is not done again. `--page` prints the tables and puts the best of each member, by the classifier's distance, on a sheet
for each data set.

Members: `vit` and `conv`, a transformer and a convolutional Sphere Encoder; `denoiser`, a latent denoiser on a
tokenizer of its own, which has a third of the time; `flow`, Sphere Flow, a third of the time for its autoencoder;
`plain`, a flow from noise.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from figures import Figures, keep, sheet
from PIL import Image

import spheregen as sg
from spheregen.data import open_source, to_uint8
from spheregen.family.recipe import Recipe
from spheregen.folders.tokenizers import open_tokenizer
from spheregen.training.estimate import estimate_time
from spheregen.training.recipe import load_recipe

Settings = dict[str, Any]
RANDOM: Settings = {"prior": "sphere", "steps": 4, "guidance": 1.5, "guidance_at": "pixel", "schedule": "angle"}
REFINED: Settings = {"steps": 1, "refinement_steps": 4}
SAMPLINGS: Mapping[str, tuple[Settings, ...]] = {
    "vit": (RANDOM, {"prior": "fitted", "steps": 1}, {"prior": "fitted", "steps": 2, "strength": 0.2}),
    "conv": (RANDOM, {"prior": "fitted", "steps": 1}, {"prior": "fitted", "steps": 2, "strength": 0.2}),
    "denoiser": ({"steps": 4, "guidance": 1}, {"steps": 4, "guidance": 1.5}),
    "flow": (
        {**REFINED, "guidance": 1.8, "refinement_guidance": 1.3},
        {**REFINED, "guidance": 1.8, "refinement_guidance": 2},
    ),
    "plain": (
        {**REFINED, "guidance": 1, "refinement_guidance": 1},
        {**REFINED, "guidance": 1, "refinement_guidance": 2},
    ),
}
SHARE = 0.33
"""Of a tokenizer, in the time of a latent denoiser."""
GAP = 6
"""Pixels between members on a sheet."""


class Case:
    """A data set and a length, and the runs on them."""

    def __init__(self, text: str, minutes: float, out: Path, classes: int | None = None) -> None:
        self.name, _, rest = text.partition("=")
        rest, _, kind = rest.partition(",")
        self.path, _, size = rest.rpartition("@")
        self.size, self.grey, self.minutes, self.out = int(size), kind == "grey", minutes, out
        self.classes = len(open_source(self.path).class_names) if classes is None else classes

    def recipe(self, name: str, settings: Settings, share: float = 1.0) -> Recipe:
        """A shipped recipe for these images, as long as its share of the minutes allows on one thread."""
        shape = {"image_size": self.size, "image_channels": 1 if self.grey else 3, "num_classes": self.classes}
        both = [part for part in ("model", "autoencoder") if part != "autoencoder" or name.startswith("flow-")]
        found: Settings = {"data.flips": not self.grey, "data.resize": "adm", "train.tune": False}
        found |= {"train.precision": "float32", "train.compile": False}
        found |= {f"{part}.{key}": value for part in both for key, value in shape.items()}
        if name.startswith("rae"):
            found.pop("model.num_classes")
        if self.grey and not name.startswith(("sle", "rae")):  # without it a tokenizer's images are black
            found |= {"perceptual": "none"} | _without_perceptual(name)
        found |= settings
        recipe = _recipe(name, self.path, found | {"train.steps": 1000})
        begun, spent = time.perf_counter(), time.process_time()
        seconds = estimate_time(recipe, None, torch.device("cpu"), "float32", budget=20).seconds_per_step
        seconds *= (time.process_time() - spent) / (time.perf_counter() - begun)  # other work does not count
        steps = max(50, int(60 * self.minutes * share / seconds))
        often = {"train.steps": steps, "train.checkpoint_every": steps, "train.preview_every": steps}
        return _recipe(name, self.path, found | often)

    def train(self, recipe: Recipe, folder: Path) -> float:
        """Train in a process of one thread; the CPU seconds that it took."""
        folder.mkdir(parents=True, exist_ok=True)
        written = folder.with_suffix(".yaml")
        settings = {"kind": recipe.kind, **recipe.model_dump(mode="json", exclude_defaults=True)}
        written.write_text(json.dumps(settings), encoding="utf-8")
        return _run("train", str(written), "--out", str(folder), "--device", "cpu", log=folder.with_suffix(".log"))


def _without_perceptual(name: str) -> Settings:
    terms = {"perceptual_reconstruction": 0, "perceptual_consistency": 0, "pixel_reconstruction": 10}
    if name.startswith("flow-"):
        return {"loss.perceptual": 0} | {f"autoencoder_loss.{key}": value for key, value in terms.items()}
    return {f"loss.{key}": value for key, value in terms.items()} | {"loss.pixel_consistency": 2}


def _recipe(name: str, data: str, settings: Settings) -> Recipe:
    return load_recipe(name, [f"{key}={json.dumps(value)}" for key, value in settings.items()], data=data)


def _run(*command: str, log: Path) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    how = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    with log.open("a", encoding="utf-8") as file:
        subprocess.run([sys.executable, "-m", "spheregen", *command], env=how, stdout=file, stderr=file, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def vit(case: Case, folder: Path) -> float:
    like, patch = ("flowers-laptop", 8) if case.size >= 48 else ("cifar10-laptop", 4)
    settings = {"model.patch_size": patch, "loss.perceptual_scale": 2 if case.size >= 48 and not case.grey else 1}
    return case.train(case.recipe(like, settings), folder)


def conv(case: Case, folder: Path) -> float:
    like = "conv-letters" if case.grey else "conv-flowers" if case.size >= 48 else "conv-cifar10"
    return case.train(case.recipe(like, {}), folder)


def denoiser(case: Case, folder: Path) -> float:
    patch = 8 if case.size >= 48 else 4
    tokenizer, latents = folder.with_name(folder.name + "-tokenizer"), folder.with_name(folder.name + "-latents")
    settings: Settings = {"model.patch_size": patch}
    if case.grey or case.size != 32:
        settings |= {"model.encoder": {"kind": "feature_net", "stage": 4}}
    spent = case.train(case.recipe("rae-cifar10-laptop", settings, SHARE), tokenizer)
    flips = [] if case.grey else ["--flips"]
    log = folder.with_suffix(".log")
    spent += _run("encode", str(tokenizer), case.path, *flips, "--out", str(latents), "--set", "resize=adm", log=log)
    tokens, channels = open_tokenizer(str(tokenizer)).tokenizer.latent_shape
    inner = Case(
        f"{case.name}={latents}@{case.size}{',grey' if case.grey else ''}", case.minutes, case.out, case.classes
    )
    shape = {"model.tokens": tokens, "model.channels": channels, "data.resize": "published", "data.flips": False}
    left = 1 - spent / 60 / case.minutes
    return spent + inner.train(inner.recipe("sle-cifar10-laptop", shape, left), folder)


def flow(case: Case, folder: Path) -> float:
    patch = 8 if case.size >= 48 else 4
    settings = {"model.patch_size": patch, "autoencoder.patch_size": patch}
    return case.train(case.recipe("flow-cifar10-laptop", settings), folder)


def plain(case: Case, folder: Path) -> float:
    stub = folder.with_name(folder.name + "-unused")
    if not (stub / "model.safetensors").is_file():  # a refiner wants a generator in front, which is not used
        case.train(_recipe("conv-debug", case.path, _toy(case)), stub)
    settings = {
        "model.patch_size": 8 if case.size >= 48 else 4,
        "autoencoder": None,
        "source": str(stub),
        "model.rho": 1,
        "model.latent_channels": 0,
        "model.decoder_width": 0,
        "model.size": {"width": 176, "depth": 4, "heads": 4},
        "loss.random_share": 0,
    }
    return case.train(case.recipe("flow-cifar10-laptop", settings), folder)


def _toy(case: Case) -> Settings:
    shape = {"image_size": case.size, "image_channels": 1 if case.grey else 3, "num_classes": case.classes}
    return {**{f"model.{key}": value for key, value in shape.items()}, "train.steps": 1, "data.resize": "adm"}


MEMBERS = {"vit": vit, "conv": conv, "denoiser": denoiser, "flow": flow, "plain": plain}


WORDS = {"plain": "plain flow", "flow": "Sphere Flow", "denoiser": "latent denoiser", "conv": "convolutional"}


def title(row: Mapping[str, Any]) -> str:
    """What made a row, for people."""
    how, name = row["sampling"], WORDS.get(row["member"], "transformer")
    if row["member"] == "plain":
        return f"{name}, {how['refinement_steps']} Heun steps, guidance {how['refinement_guidance']:g}"
    if row["member"] == "flow":
        return f"{name}, 1 decode and {how['refinement_steps']} Heun steps, guidance {how['refinement_guidance']:g}"
    steps = f"{how['steps']} step{'s' * (how['steps'] > 1)}"
    prior = {"sphere": ", random points", "fitted": ", fitted prior", None: ""}[how.get("prior")]
    return f"{name}{prior}, {steps}" + (f", guidance {how['guidance']:g}" if how.get("guidance", 1) != 1 else "")


def short(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """A row as `spheregen.training.measured.Reached`."""
    member, _, sampling = title(row).partition(", ")
    figures = {key: round(row[key], 3) for key in ("fd_own", "fd_classifier", "recall")}
    about = {"data": row["data"], "minutes": row["minutes"], "member": member, "sampling": sampling}
    return {**about, "right": round(row["right"] / row["real"], 3), **figures}


def page(rows: Sequence[Mapping[str, Any]], out: Path) -> None:
    """Print a table of each data set and save OUT/members-NAME.png, two rows of images of each member's best.

    OUT/members.json is what the package has in its assets.
    """
    found: list[Mapping[str, Any]] = []
    for data in dict.fromkeys(row["data"] for row in rows):
        own = [row for row in rows if row["data"] == data]
        print(f"\n{data}\n\n| | CPU minutes | right | FD-own | FD-classifier | recall | distance |\n{'|---' * 7}|")
        for row in own:
            minutes, right = row["cpu_seconds"] / 60, row["right"] / row["real"]
            figures = f"{right:.2f} | {row['fd_own']:.0f} | {row['fd_classifier']:.1f} | {row['recall']:.2f}"
            print(f"| {title(row)} | {minutes:.1f} | {figures} | {row['nearest']:.2f} |")
        cells = {(row["minutes"], row["member"]) for row in own}
        best = [
            min((row for row in own if (row["minutes"], row["member"]) == cell), key=lambda row: row["fd_classifier"])
            for cell in sorted(cells, key=lambda cell: (cell[0], list(MEMBERS).index(cell[1])))
        ]
        strips = []
        for row in best:
            number = SAMPLINGS[row["member"]].index(row["sampling"])
            with Image.open(out / f"{data}-{row['member']}-{row['minutes']:g}-{number}.png") as whole:
                strips.append(whole.convert("RGB").crop((0, 0, whole.width, whole.height // 2)))
        picture = Image.new("RGB", (strips[0].width, sum(strip.height + GAP for strip in strips) - GAP), "white")
        for place, strip in enumerate(strips):
            picture.paste(strip, (0, place * (strip.height + GAP)))
        picture.save(out / f"members-{data}.png")
        print("\nFrom above: " + "; ".join(title(row) for row in best))
        found += [short(row) for row in best]
    (out / "members.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", action="append", default=[])
    parser.add_argument("--page", action="store_true", help="print the tables of what is there already")
    parser.add_argument("--minutes", type=float, nargs="+", default=[10.0])
    parser.add_argument("--members", default=",".join(MEMBERS))
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--out", type=Path, default=Path("runs/members"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    table = given.out / "members.jsonl"
    rows = [json.loads(line) for line in table.read_text().splitlines()] if table.is_file() else []
    if given.page:
        return page(rows, given.out)
    done = {(row["data"], row["minutes"], row["member"]) for row in rows}
    for minutes in given.minutes:
        for text in given.data:
            case = Case(text, minutes, given.out)
            figures: Figures | None = None
            for member in given.members.split(","):
                if (case.name, minutes, member) in done:
                    continue
                folder = given.out / f"{case.name}-{member}-{minutes:g}"
                seconds = MEMBERS[member](case, folder)
                pipe = sg.Pipeline.from_pretrained(folder, device="cpu", quiet=True)
                figures = figures or Figures(pipe, case.path, given.out / "classifiers")
                about = {"data": case.name, "minutes": minutes, "member": member, "cpu_seconds": round(seconds)}
                for how in SAMPLINGS[member]:
                    out = pipe.generate(given.count, seed=0, **how)
                    scores = figures.of(to_uint8(out.tensor), out.labels or [])
                    keep(table, {**about, "sampling": how, "real": figures.accuracy, **scores})
                    place = given.out / f"{folder.name}-{SAMPLINGS[member].index(how)}.png"
                    sheet(out.tensor, out.labels or [], place)


if __name__ == "__main__":
    main()
