"""`spheregen tune`: measured defaults of sampling, written into a model's folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Option

from spheregen.cli import options as cli
from spheregen.errors import ConfigError


def tune(
    model: cli.Model,
    data: Annotated[str, Option(help=f"Images, as the model was trained on: {cli.SOURCE_HELP}")],
    split: cli.Split = "train",
    seconds: Annotated[float, Option(help="Begin no setting that would end later.")] = 120,
    count: Annotated[int, Option("--count", "-n", help="Samples of each setting.")] = 500,
) -> None:
    """Choose steps, schedule, guidance and prior by what is measured, and make them the model's defaults.

    A small classifier learns the images in about a minute. Samples of each setting are compared with held-out images
    (test or val), or where there are none with those that were learned from: texture, things, and whether they show
    what was asked for. The best setting goes into config.json, all figures into tuning.json.
    Training does so by itself at the end of runs of 20 minutes and more.

    Examples:
        spheregen tune runs/mine --data photos/
        spheregen tune runs/mine --data photos/ --seconds 600 -n 2000
    """
    from spheregen.evaluation.tuning import tune_folder
    from spheregen.folders.summary import CONFIG

    folder = Path(model)
    if not (folder / CONFIG).is_file():
        raise ConfigError(
            f"defaults are written into the folder of a model, and {model} is none here; save a copy of a bundled "
            "model or of one of the Hub by Pipeline.save_pretrained, and name its folder"
        )
    cli.check_count(count)
    if count < 2:
        raise ConfigError(f"a distance needs at least 2 samples, not --count {count}")
    if not seconds > 0:
        raise ConfigError(f"--seconds is above 0, not {seconds:g}")
    found = tune_folder(
        folder, data, split, seconds=seconds, count=count, device=cli.everywhere.device, reporter=cli.reporter()
    )
    cli.answer(found, lambda: cli.table(found["tried"]))
    cli.say(f"the defaults of {folder} are now: {cli.cell(found['chosen'])}")
