"""`spheregen demo`: the first minutes. Trains on letters, samples, scores, and makes typefaces."""

from __future__ import annotations

import contextlib
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Option

from spheregen.cli import options as cli
from spheregen.cli.images import output_folder
from spheregen.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

    from spheregen.family.recipe import Recipe
    from spheregen.pipeline import Pipeline

MINUTES, MOST_STEPS = 5.0, 3000
"""Training takes about so long, and no more steps, for which fast machines take a minute or two."""
PER_CLASS = 20
STEPS = (1, 2)
TYPEFACES = (11, 23, 37, 41)
"""Seeds of the random points that are shown under all letters."""
STYLES = 4
"""Held-out letters whose style is carried to the alphabet."""
WORD, FRAMES = "Sphere", 12


def demo(
    out: Annotated[Path, Option(help="The run folder.")] = Path("runs/letters"),
    minutes: Annotated[float, Option(help="Train about so long, in at most 3000 steps.", min=0.1)] = MINUTES,
    settings: cli.RecipeSet = None,
) -> None:
    """Train a generator of letters on this machine, sample it in 1 and 2 steps, score it, and make typefaces.

    Examples:
        spheregen demo
        spheregen demo --minutes 2 --out runs/quick
        spheregen demo --set train.steps=500 --out runs/quicker
    """
    import torch

    from spheregen.data import image_grid, open_source, save_png
    from spheregen.evaluation.scorers import LetterScorer
    from spheregen.files import write_json, write_text
    from spheregen.pipeline import Pipeline
    from spheregen.training.recipe import load_recipe
    from spheregen.training.trainer import train

    recipe = load_recipe("conv-letters", settings or ())
    names = open_source("letters").class_names
    shape = (recipe.model.image_size, recipe.model.image_channels, recipe.model.num_classes)
    if shape != (32, 1, len(names)):
        raise ConfigError(
            f"the demo shows grey letters of 32 px in {len(names)} classes; train other settings with: spheregen train "
            "conv-letters"
        )
    output_folder(out)
    told = any(setting.startswith(("train.steps=", "train.epochs=")) for setting in settings or ())
    shipped = load_recipe("conv-letters").train
    if not told and (recipe.train.steps, recipe.train.epochs) == (shipped.steps, shipped.epochs):
        recipe = load_recipe("conv-letters", [*(settings or ()), f"train.steps={_steps(recipe, out, minutes)}"])
    result = train(recipe, out, device=cli.everywhere.device, reporter=cli.reporter())

    pipe = Pipeline.from_pretrained(out, device=cli.everywhere.device, quiet=cli.everywhere.quiet)
    sheets = {
        "typefaces": (typefaces(pipe), 31, "one random point under all letters, two rows each: typefaces of nobody"),
        "styles": (styles(pipe), 21, "a held-out letter, then its style carried to all letters, three rows each"),
        "between": (between(pipe), FRAMES, f"{WORD!r} on the way from one random point to another"),
    }
    cli.say("a small classifier learns the real letters, to judge the samples: about a minute")
    scorer = LetterScorer()
    report: dict[str, Any] = {
        "training_seconds": result.seconds if result.steps_done_now == result.steps else None,  # None: in several parts
        "training_steps": result.steps,
        "classifier_accuracy_on_real_letters": scorer.real_accuracy,
        "samples": PER_CLASS * len(names),
        "scores": {},
    }
    shown = []
    for steps in STEPS:
        begun = time.monotonic()
        output = pipe.generate(PER_CLASS * len(names), steps=steps, seed=0)
        seconds = time.monotonic() - begun
        assert output.labels is not None
        score = scorer.figures(output.tensor, torch.tensor(output.labels))
        score["relative_accuracy"] = score["accuracy"] / scorer.real_accuracy
        report["scores"][str(steps)] = {**score, "images_per_second": report["samples"] / seconds}
        shown.append(output.tensor[: 2 * len(names)])
    sheets = {"samples": (torch.cat(shown), 31, "four rows in one step, four in two"), **sheets}
    for name, (images, columns, _) in sheets.items():
        save_png(image_grid(images, columns=columns, scale=2, pad=1), out / f"{name}.png", {"model": str(out)})
    write_json(out / "report.json", report)
    table = cli.table(
        {
            "steps": steps,
            "right letter": f"{score['accuracy']:.1%}",
            "of real ones": f"{score['relative_accuracy']:.3f}",
            "variety": f"{score['deviation_ratio']:.2f}",
            "distance": f"{score['distance_ratio']:.2f}",
            "images/s": round(score["images_per_second"]),
        }
        for steps, score in report["scores"].items()
    )
    pictures = "\n".join(f"![{about}]({name}.png)\n*{about}*\n" for name, (_, _, about) in sheets.items())
    write_text(out / "report.md", REPORT.format(**report, table=table, pictures=pictures))
    cli.answer({**report, "images": [str(out / f"{name}.png") for name in sheets]}, table)
    cli.say("\n".join(f"{out / f'{name}.png'}: {about}" for name, (_, _, about) in sheets.items()))
    cli.say(f"report: {out / 'report.md'}")


def _steps(recipe: Recipe, out: Path, minutes: float) -> int:
    """Return the steps that take so many minutes here; those of the run that is there already."""
    from spheregen.devices import choose_device
    from spheregen.training.estimate import estimate_time

    if (written := out / "recipe.json").is_file():
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # training says what is wrong with it
            steps = int(json.loads(written.read_text(encoding="utf-8"))["train"]["steps"])
            if minutes != MINUTES:
                cli.warn(f"{out} keeps the {steps} steps that it began with: --minutes is of new runs")
            return steps
    device = choose_device(cli.everywhere.device)
    seconds = estimate_time(recipe, None, device, "float32", budget=4.0).seconds_per_step
    return min(MOST_STEPS, max(100, int(60 * minutes / seconds) // 100 * 100))


def typefaces(pipe: Pipeline) -> Tensor:
    """Return random points, each under all letters, as images (4 * K, 1, S, S)."""
    import torch

    letters = list(range(pipe.classes.count))
    return torch.cat(
        [pipe.generate(labels=letters, seeds=[seed] * len(letters), temperature=1.0).tensor for seed in TYPEFACES]
    )


def styles(pipe: Pipeline) -> Tensor:
    """Return held-out letters, each followed by all letters in its style: the same noise of the prior's draws."""
    import torch

    from spheregen.data import open_source
    from spheregen.data.inputs import load_images

    prior, project = pipe.model.fitted, pipe.model.prior.project
    assert prior is not None
    each = prior.embed_labels(None)[:-1]
    source = open_source("letters", split="test")
    assert source.labels is not None
    letters, rows = list(range(pipe.classes.count)), []
    for number in torch.linspace(0, len(source) - 1, STYLES + 2).long()[1:-1].tolist():
        image = source.read(number)
        label = int(source.labels[number])
        style = prior.noise_of(pipe.encode(image, label).cpu(), each[label][None])
        points = project(prior.draw(style.expand(len(letters), *style.shape[1:]), each))
        rows += [load_images(image, pipe.image_options), pipe.decode(points, letters)]
    return torch.cat(rows)


def between(pipe: Pipeline) -> Tensor:
    """Return a word, a row for each letter, on the way between two random points."""
    import torch

    letters = [pipe.classes.id(letter) for letter in WORD]
    ends = list(TYPEFACES[:2])
    return torch.cat([pipe.interpolate(ends, FRAMES, labels=letter).tensor for letter in letters])


REPORT = """# Letters demo

{training_steps} steps of training. Each row of scores: {samples} samples, from seed 0 on.

```
{table}
```

- right letter: a small classifier sees the letter that was asked for (I, l and 1 count as one, and O, o and 0). It
  learned from the same typefaces, never from samples, and is right on {classifier_accuracy_on_real_letters:.1%} of
  letters of typefaces that both have never seen; "of real ones" is relative to that.
- variety: pixel deviation within a letter, relative to held-out typefaces (1 = as varied as these, 0 = one shape).
- distance: median distance to the nearest training image of the letter, relative to that of held-out typefaces (0 =
  copies).

{pictures}"""
