"""Write the golden files: `PYTHONPATH=src:. python -m tests.golden.make_golden`.

They were written by version 0.1.0 before its rebuild (float32 on a CPU, one thread), and prove that the code of today
still trains, continues, loads and samples what that version did. Write them again only where a number was meant to
change, and say so in the changelog; `--names` writes the list of public names alone.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
import tempfile
from collections.abc import Mapping

import torch
from safetensors.torch import save_file

from spheregen.progress import QuietReporter
from spheregen.training.recipe import load_recipe
from spheregen.training.trainer import train
from tests.golden import cases


class _Interrupt(QuietReporter):
    def step(self, done: int, metrics: Mapping[str, float] | None) -> None:
        if done == cases.STOPPED_AT:
            raise KeyboardInterrupt


def write_names() -> None:
    cases.NAMES.write_text(json.dumps(cases.public_names(), indent=1) + "\n", encoding="utf-8")


def write_all() -> None:
    """Train everything in the current folder, and copy what is small from there."""
    for folder in (cases.MODELS, cases.RUNS):
        shutil.rmtree(folder, ignore_errors=True)
    for name, (recipe, settings) in cases.FOLDERS.items():
        if recipe == "sle-debug":
            for cache, tokenizer in cases.CACHES.items():
                cases.encode_digits(cache, tokenizer)
        cases.train(recipe, settings, name)
        kept = cases.MODELS / name
        shutil.copytree(name, kept, ignore=shutil.ignore_patterns("state", "log.jsonl", "recipe.json", "previews"))
        save_file(cases.images_of(kept), kept / "images.safetensors")
    curves = {recipe: cases.train(recipe, settings, f"curve-{recipe}") for recipe, settings in cases.RECIPES.items()}
    for name, (recipe, settings) in cases.RUNNING.items():
        curves[f"{name} continued"] = cases.train(recipe, settings, f"{name}-whole")
        with contextlib.suppress(KeyboardInterrupt):
            train(load_recipe(recipe, [*cases.COMMON, *settings]), name, device="cpu", reporter=_Interrupt())
        shutil.copytree(name, cases.RUNS / name)
    lines = [f"{json.dumps(name)}: [\n" + ",\n".join(map(json.dumps, curve)) + "\n]" for name, curve in curves.items()]
    cases.CURVES.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    torch.set_num_threads(1)
    write_names()
    if "--names" not in sys.argv:
        with tempfile.TemporaryDirectory() as scratch, contextlib.chdir(scratch):
            write_all()
