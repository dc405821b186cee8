"""A result and studies with every part that a report can have. The numbers are made up."""

from __future__ import annotations

import json
from typing import Any

import torch

from spheregen.data.grids import image_grid
from spheregen.evaluation.report.parts import Plot, Section, Series, Sheet, Table

FIGURES = dict(
    **{"frechet": 23.41, "kid": 0.0123, "kid_error": 0.0002, "inception_score": 6.1, "inception_score_deviation": 0.1},
    **{"precision": 0.6, "recall": 0.4, "density": 0.5, "coverage": 0.4},
)
IMAGES = {"source": "cifar10", "split": "train", "fingerprint": "fedcba9876543210", "count": 50000}
GEOMETRY = {"image_size": 32, "channels": 3, "fit": "crop", "resize": "adm", "background": [255, 255, 255]}


def features(name: str, distance: str) -> dict[str, Any]:
    return {
        **{"name": name, "title": f"The network {name}, as in the tests", "distance": distance, "dim": 256},
        **{"preprocessing": "to 32 x 32", "weights": "0123456789abcdef", "classes": 10, "normalised": False},
    }


def curve(name: str, values: list[Any], shift: float) -> dict[str, Any]:
    points = [
        {
            "settings": {name: value},
            "value": value,
            "figures": {"own": {"frechet": 40.0 / (1 + place) ** 0.4 + shift, "kid": 0.02, "kid_error": 0.001}},
            "ms_per_image": 3.1 * (1 + place) + shift,
            "gflops_per_image": 1.2 + 2.3 * place + shift,
        }
        for place, value in enumerate(values)
    ]
    return {"name": name, "setting": name, "count": 2000, "points": points}


def example_result() -> dict[str, Any]:
    """A fresh copy at each call."""
    reference = {**IMAGES, "kept": 10000}
    result = {
        "format": 1,
        "spheregen": "0.5.0",
        "created": "2026-11-22T10:00:00Z",
        "line": "FD-own 23.41 of 10000 samples against 50000 images of cifar10 (train), 4 steps, fixed, guidance 1",
        "model": {
            **{"name": "runs/cifar10", "fingerprint": "ab12cd34", "class": "SphereAutoencoder"},
            **{"image_shape": [3, 32, 32], "latent_shape": [64, 32], "num_classes": 10, "params": 1140000},
            "class_names": ["airplane", "automobile", "bird"],
            "training": {"recipe": "cifar10", "steps": 20000, "optimizer": {"lr": 1e-4, "betas": [0.9, 0.95]}},
        },
        "protocol": {
            **{"count": 10000, "seed": 0, "labels": "balanced", "steps": 4, "schedule": "fixed", "guidance": 1.0},
            **{"guidance_at": "both", "share_noise": True, "quantise": "round", "dtype": "float32"},
            **{"device": "cpu", "batch": 64, "torch": "2.13.0"},
        },
        "data": {**IMAGES, **GEOMETRY},
        "metrics": {
            "own": {
                "features": features("own", "FD-own"),
                "reference": reference,
                "figures": FIGURES,
                "held_out": {**FIGURES, "frechet": 3.187, "kid": 0.0001, "precision": 0.78, "recall": 0.771},
                "neighbours": 10000,
            },
            "inception": {
                "features": features("inception", "FID"),
                "reference": reference,
                "figures": {"frechet": 18.02, "kid": 0.00912, "kid_error": 0.0011, "cmmd": None},
            },
        },
        "notes": ["sphere was left out: it needs real images (--data)"],
        "reconstruction": {
            **{"count": 2000, "split": "test", "psnr": 28.3, "ssim": 0.9, "lpips": None, "frechet": {"own": 3.2}},
        },
        "curves": [
            curve("steps", [1, 2, 4, 6], 0.0),
            curve("guidance", [1.0, 1.2, 1.4], 0.7),
            curve("schedule", ["fixed", "decay"], 1.3),
        ],
        "cost": {
            "params": {"encoder": 512000, "decoder": 628000},
            "gflops": {"encoder": 0.9, "decoder": 1.2},
            "counted_gflops": {"encoder": 0.95, "decoder": 1.3},
            "by_steps": [
                {
                    **{"steps": steps, "gflops": 1.2 + 2.1 * (steps - 1), "images_per_second": 320.0 / steps},
                    **{"batch": 64, "peak_memory_mb": 300.0},
                    "latency_ms": {"p50": 3.0 * steps, "p90": 3.5 * steps, "p99": 4.0 * steps},
                }
                for steps in (1, 2, 4, 6)
            ],
            **{"device": "a CPU of the tests", "threads": 2, "dtype": "float32", "guidance": 1.0},
            "convention": "A multiply-add counts as two operations; attention products are left out.",
        },
    }
    fresh: dict[str, Any] = json.loads(json.dumps(result))
    return fresh


def example_studies() -> tuple[Section, ...]:
    """Sections with every kind of plot, table and image."""
    images = torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    x, classes = tuple(map(float, range(5))), ("airplane", "automobile", "bird", "cat", "deer")
    kinds: dict[str, tuple[Series, ...]] = {
        "lines": (Series(name="real", x=x, y=x, kind="step"), Series(name="random", x=x, y=x[::-1])),
        "points": (Series(name="a", x=(-1.0, 0.0), y=(0.2, 0.1), kind="points", labels=("a", "b")),),
        "errors": (Series(name="samples", x=x, y=x, error=(0.05,) * 5, kind="points", labels=classes),),
        "many": tuple(Series(name=f"setting {i}", x=x, y=(i,) * 5, error=(0.2,) * 5) for i in range(8)),
    }
    plots = tuple(
        Plot(title=f"Plot of {name}", x_label="x", y_label="y", series=series, log_x=name == "many")
        for name, series in kinds.items()
    )
    table = Table(title="Worst classes", header=("class", "accuracy", "taken for"), rows=(("cat", 0.512, "dog"),))
    sheets = (
        Sheet(image=image_grid(images, columns=8), title="Samples", caption="A row for each class."),
        Sheet(image=image_grid(images[:4], columns=4, pad=1), title="Four nearest neighbours"),
    )
    classes_section = Section(
        key="classes",
        title="Classes",
        text=("Each class was sampled as often as every other, and a classifier said what it saw.",),
        warnings=("Classes 3 (cat) and 5 (dog) are mixed up.", "Class 2 (bird) has a recall of 0.02."),
        tables=(table,),
        plots=plots,
        sheets=sheets,
    )
    return classes_section, Section(key="originality", title="Originality", warnings=("3 of 10000 are copies.",))
