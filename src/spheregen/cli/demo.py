"""`spheregen demo`: the first minutes. Trains on handwritten digits, samples, scores, and shows where to look."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

from typer import Option

from spheregen.cli import options as cli
from spheregen.cli.images import output_folder
from spheregen.errors import ConfigError

SAMPLES = 1000
STEPS = (1, 4)
ROWS = 6


def demo(
    out: Annotated[Path, Option(help="The run folder.")] = Path("runs/digits"),
    settings: cli.RecipeSet = None,
) -> None:
    """Train a generator of handwritten digits on this machine, sample it in 1 and 4 steps, and score it.

    Examples:
        spheregen demo
        spheregen demo --set train.steps=500 --out runs/quick
    """
    import torch

    from spheregen.data import image_grid, save_png
    from spheregen.evaluation.scorers import DigitScorer
    from spheregen.files import write_json, write_text
    from spheregen.pipeline import Pipeline
    from spheregen.training.recipe import load_recipe
    from spheregen.training.trainer import train

    scorer = DigitScorer()  # first, so that a missing package shows before the training and not after it
    recipe = load_recipe("digits", settings or ())
    shape = (recipe.model.image_size, recipe.model.image_channels, recipe.model.num_classes)
    if shape != (8, 1, 10):
        raise ConfigError(
            "the demo scores 8x8 grey digits of 10 classes; train other settings with: spheregen train digits"
        )
    result = train(recipe, output_folder(out), device=cli.everywhere.device, reporter=cli.reporter())

    pipe = Pipeline.from_pretrained(out, device=cli.everywhere.device, quiet=cli.everywhere.quiet)
    report: dict[str, Any] = {
        "training_seconds": result.seconds if result.steps_done_now == result.steps else None,  # None: in several parts
        "training_steps": result.steps,
        "scorer_accuracy_on_real_digits": scorer.real_accuracy,
        "samples": SAMPLES,
        "scores": {},
    }
    sheets = []
    for steps in STEPS:
        begun = time.monotonic()
        output = pipe.generate(SAMPLES, steps=steps, seed=0)
        seconds = time.monotonic() - begun
        assert output.labels is not None
        score = scorer.figures(output.tensor, torch.tensor(output.labels))
        report["scores"][str(steps)] = {**score, "images_per_second": SAMPLES / seconds}
        sheets.append(output.tensor[: ROWS * 10])
    sheet, report_path = out / "samples.png", out / "report.md"
    save_png(image_grid(torch.cat(sheets), columns=10, scale=6), sheet, {"model": str(out), "seed": "0"})
    write_json(out / "report.json", report)
    table = cli.table(
        {
            "steps": steps,
            "right digit": f"{score['accuracy']:.1%}",
            "variety": f"{score['deviation_ratio']:.2f}",
            "distance": f"{score['distance_ratio']:.2f}",
            "images/s": round(score["images_per_second"]),
        }
        for steps, score in report["scores"].items()
    )
    write_text(report_path, REPORT.format(**report, table=table))
    cli.answer({**report, "image": str(sheet), "report": str(report_path)}, table)
    cli.say(f"samples: {sheet} (the upper {ROWS} rows in one step, the lower {ROWS} in four)\nreport:  {report_path}")


REPORT = """# Digits demo

{training_steps} steps of training. Each row of scores: {samples} samples, from seed 0 on.

```
{table}
```

- right digit: scikit-learn's SVC sees the digit that was asked for. It learned from the same 1400 real digits and is
  right on {scorer_accuracy_on_real_digits:.1%} of the 397 held-out ones.
- variety: pixel deviation within a class, relative to real digits (1 = as varied as real ones, 0 = class means).
- distance: median distance to the nearest training digit, relative to held-out real digits (0 = copies).

![samples](samples.png)
"""
