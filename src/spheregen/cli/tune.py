"""`spheregen tune`: measured defaults of sampling, written into a model's folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from typer import Option

from spheregen.cli import options as cli
from spheregen.errors import ConfigError


def tune(
    model: cli.Model,
    data: Annotated[str, Option(help=f"Images, as the model was trained on: {cli.SOURCE_HELP}")],
    split: cli.Split = "train",
    seconds: Annotated[float, Option(help="Begin no setting that would end later.")] = 120,
    count: Annotated[
        int | None, Option("--count", "-n", help="Samples of each setting; of restoration images. Default: 500; 48.")
    ] = None,
    restoration: Annotated[
        str | None,
        Option(help="Choose settings of restoration instead: inpaint,denoise,superres,deblur,decolour,dejpeg, or all."),
    ] = None,
) -> None:
    """Choose settings by what is measured, and make them the model's defaults: steps, schedule, guidance and prior.

    A small classifier learns the images in about a minute. Samples of each setting are compared with held-out images
    (test or val), or where there are none with those that were learned from: texture, things, and whether they show
    what was asked for. The best setting goes into config.json, all figures into tuning.json.
    Training does so by itself at the end of runs of 20 minutes and more.

    With --restoration, steps, noise and its decay, and trust in the model are chosen for each task, on held-out images
    that are degraded and restored: by pixels, texture and agreement with what was given. Tasks share the seconds; all
    figures go into restoration.json.

    Examples:
        spheregen tune runs/mine --data photos/
        spheregen tune runs/mine --data photos/ --seconds 600 -n 2000
        spheregen tune runs/mine --data photos/ --restoration all --seconds 1200
    """
    from spheregen.evaluation.restoration.search import tune_restoration_folder
    from spheregen.evaluation.tuning import tune_folder
    from spheregen.folders.summary import CONFIG

    folder = Path(model)
    if not (folder / CONFIG).is_file():
        raise ConfigError(
            f"defaults are written into the folder of a model, and {model} is none here; save a copy of a bundled "
            "model or of one of the Hub by Pipeline.save_pretrained, and name its folder"
        )
    if count is not None:
        cli.check_count(count)
        if count < 2:
            raise ConfigError(f"a distance needs at least 2 samples, not --count {count}")
    if not seconds > 0:
        raise ConfigError(f"--seconds is above 0, not {seconds:g}")
    how: dict[str, Any] = {"seconds": seconds, "device": cli.everywhere.device, "reporter": cli.reporter()}
    if count is not None:
        how["count"] = count
    if restoration is not None:
        tasks = tune_restoration_folder(folder, data, cli.split_list(restoration) or (), split, **how)["tasks"]
        rows = [{"task": task, **table["chosen"], **table["figures"]} for task, table in tasks.items()]
        names = list(dict.fromkeys(name for row in rows for name in row))
        cli.answer({"tasks": tasks}, lambda: cli.table([[row.get(name) for name in names] for row in rows], names))
        cli.say(f"{folder} now restores by these settings unless told")
        return
    found = tune_folder(folder, data, split, **how)
    cli.answer(found, lambda: cli.table(found["tried"]))
    cli.say(f"the defaults of {folder} are now: {cli.cell(found['chosen'])}")
