"""What the golden files hold, and how it is made: the same calls for `make_golden.py` and for the tests."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
import typer
from torch import Tensor
from typer.testing import CliRunner

import spheregen as sg
from spheregen.cli.main import app

HERE = Path(__file__).parent
CURVES, NAMES = HERE / "curves.json", HERE / "public_names.json"
MODELS, RUNS = HERE / "models", HERE / "runs"
STOPPED_AT = 15  # the runs in mid-training

COMMON = (
    "train.steps=30",
    "train.log_every=1",
    "train.preview_every=0",
    "train.checkpoint_every=15",
    "train.precision=float32",
)
SMALL = ("model.encoder={width: 8, depth: 1, heads: 1}", "model.decoder={width: 8, depth: 1, heads: 1}")
SMALL_FLOW = (
    *(setting.replace("model.", "autoencoder.") for setting in SMALL),
    "model.size={width: 8, depth: 1, heads: 1}",
)

RECIPES: Mapping[str, Sequence[str]] = MappingProxyType(
    {"debug": (), "sle-debug": ("data.source=cache",), "rae-debug": (), "flow-debug": ()}
)
"""Recipes whose loss curves are recorded, with their settings beside `COMMON`; `cache` is in the current folder."""

CACHES: Mapping[str, str] = MappingProxyType({"cache": "digits", "small-cache": "autoencoder"})
"""Latent caches of the embedded digits, with the tokenizers that encode them."""

FOLDERS: Mapping[str, tuple[str, Sequence[str]]] = MappingProxyType(
    {
        "autoencoder": ("debug", SMALL),
        "autoencoder-unconditional": ("debug", (*SMALL, "model.num_classes=0")),
        "latent-denoiser": (
            "sle-debug",
            (
                "tokenizer=autoencoder",
                "data.source=small-cache",
                "model.size={width: 16, depth: 1, heads: 2}",
                "model.channels=8",
            ),
        ),
        "representation": ("rae-debug", ("model.encoder.stage=1", "model.decoder={width: 8, depth: 1, heads: 1}")),
        "sphere-flow": ("flow-debug", SMALL_FLOW),
    }
)
"""Model folders, with the recipes and settings that they were trained by."""

RUNNING: Mapping[str, tuple[str, Sequence[str]]] = MappingProxyType(
    {"debug": ("debug", SMALL), "flow-debug": ("flow-debug", SMALL_FLOW)}
)
"""Runs that were interrupted after `STOPPED_AT` steps."""

_WATCHED = ("step", "epoch", "images_per_second", "mfu", "data_deviation", "image_deviation")
_STATISTICS = ("latent_neighbour_angle", "latent_mean_angle", "latent_coverage", "latent_radius")


def spheregen(*arguments: str) -> None:
    """Run the command in this process."""
    result = CliRunner().invoke(app, [*arguments, "--device", "cpu", "--quiet"], catch_exceptions=False)
    assert result.exit_code == 0, result.output


def encode_digits(cache: str, tokenizer: str) -> None:
    """Write a latent cache of the embedded digits."""
    spheregen("encode", tokenizer, "digits", "--out", cache, "--dtype", "float32")


def train(recipe: str, settings: Sequence[str], out: str | Path) -> list[dict[str, float]]:
    """Train or continue a run by the command, and return the loss terms and gradient norm of its steps."""
    sets = [part for setting in (*COMMON, *settings) for part in ("--set", setting)]
    spheregen("train", recipe, *sets, "--out", str(out))
    return losses(Path(out))


def losses(run: Path) -> list[dict[str, float]]:
    """Return what a run has logged of each step, without learning rates, statistics and times."""
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))
    left_out = {*_WATCHED, *_STATISTICS}
    return [{k: v for k, v in line.items() if k not in left_out and not k.startswith("lr")} for line in lines]


def digits(count: int = 4) -> Tensor:
    """Return images (B, 1, 8, 8) in [0, 1] that come with the package."""
    with resources.as_file(resources.files("spheregen") / "assets" / "digits.npz") as path, np.load(path) as arrays:
        return torch.from_numpy(arrays["images"][:count, None]).float() / 16


def images_of(folder: Path) -> dict[str, Tensor]:
    """Return what the model of a folder makes, by the name of how it makes it; everything from fixed seeds."""
    photos = digits()
    if folder.name == "representation":
        from spheregen.folders.tokenizers import open_tokenizer

        tokenizer = open_tokenizer(folder).tokenizer
        with torch.no_grad():
            latents = tokenizer.encode(photos * 2 - 1)
            return {"encode": latents, "decode": tokenizer.decode(latents)}
    pipe = sg.Pipeline.from_pretrained(folder, device="cpu", quiet=True)
    conditional = bool(pipe.model.num_classes)
    made = {
        "one_step": pipe.generate(4, seed=3, steps=1).tensor,
        "four_steps": pipe.generate(4, seed=3, steps=4).tensor,
        "own_noise": pipe.generate(4, seed=3, steps=4, schedule="decay", share_noise=False).tensor,
        "encode": pipe.encode(photos),
        "reconstruct": pipe.reconstruct(photos),
        "edit": pipe.edit(photos[:1], labels=5 if conditional else None, strength=0.4, steps=2, seed=1).tensor,
        "interpolate": pipe.interpolate([3, 4], frames=3).tensor,
    }
    if conditional:
        made["guided"] = pipe.generate(4, labels=[0, 1, 2, 3], seed=3, steps=4, guidance=1.6).tensor
    return {name: tensor.float().contiguous() for name, tensor in made.items()}


def public_names() -> dict[str, Any]:
    """Return the public names: of the package, of `Pipeline` with its methods' parameters, of the commands."""
    methods = inspect.getmembers(sg.Pipeline, callable)
    command = typer.main.get_command(app)
    return {
        "spheregen": sorted(sg.__all__),
        "Pipeline": {
            name: list(inspect.signature(method).parameters)
            for name, method in methods
            if not name.startswith("_") or name == "__init__"
        },
        "commands": sorted(command.commands),  # type: ignore[attr-defined]
    }
