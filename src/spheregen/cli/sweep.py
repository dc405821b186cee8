"""`spheregen sweep`: the same seeds under many settings, on one labelled sheet."""

from __future__ import annotations

import itertools
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spheregen.cli.options import (
    BatchSize,
    Device,
    Json,
    Model,
    Quiet,
    Split,
    load_pipeline,
    output_file,
    print_json,
    say,
    split_list,
    split_numbers,
    table,
    watch,
)

if TYPE_CHECKING:
    from spheregen.evaluation.judges import Judge
    from spheregen.pipeline import Pipeline

LARGEST = 400  # settings
MOST_PICTURES = 10_000  # on a sheet
SCORED = 500


def sweep(
    model: Model,
    steps: Annotated[str, typer.Option(help="Numbers of steps, with commas.")] = "1,2,4",
    guidance: Annotated[str | None, typer.Option(help="Guidance scales: 1,1.2,1.4. Default: the model's.")] = None,
    guidance_at: Annotated[
        str | None, typer.Option(help="Places of guidance: pixel,latent,both. Default: the model's.")
    ] = None,
    schedule: Annotated[str | None, typer.Option(help="Schedules: fixed,decay. Default: the model's.")] = None,
    noise: Annotated[
        str | None, typer.Option(help="shared,fresh: one noise for all steps, or new ones. Default: the model's.")
    ] = None,
    count: Annotated[int, typer.Option("--count", "-n", help="Pictures of each combination on the sheet.")] = 8,
    labels: Annotated[
        str | None, typer.Option(help="Classes by id or name, in turn: 3 or cat,dog. Default: all in turn.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Picture i of every combination has seed SEED + i.")] = 0,
    score: Annotated[
        int | None,
        typer.Option(
            help="Samples of each combination to score, if there is something that can judge this model; 0: none. "
            f"Default: {SCORED}."
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(help="Real images: score samples by the Frechet distance to them under our own network."),
    ] = None,
    split: Split = "train",
    out: Annotated[Path, typer.Option(help="The sheet, a .png file.")] = Path("sweep.png"),
    batch_size: BatchSize = None,
    device: Device = "auto",
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Compare settings of sampling on the same seeds.

    All combinations are sampled. A labelled sheet shows them, a column for each guidance scale or, without these, of
    another setting; a table tells times and, where something can judge the model, scores of samples of all its classes.
    """
    from spheregen.data import labelled_sheet, save_png
    from spheregen.errors import ConfigError
    from spheregen.sampling import ClassifierFreeGuidance, refinement_radii

    if out.suffix.lower() != ".png":
        raise ConfigError(f"the sheet is a PNG file, not {out}; give --out a name that ends in .png")
    output_file(out)
    if count < 1 or (score or 0) < 0:
        raise ConfigError(f"--count is at least 1 and --score not negative, not {count} and {score}")
    if data is not None and score is not None and score < 2:
        raise ConfigError(f"a distance to --data needs at least 2 samples, not --score {score}")
    swept: dict[str, list[Any]] = {"steps": split_numbers(steps, "--steps", int)}
    if schedule is not None:
        swept["schedule"] = split_list(schedule) or []
    if guidance_at is not None:
        swept["guidance_at"] = split_list(guidance_at) or []
    if noise is not None:
        kinds = split_list(noise) or []
        if not set(kinds) <= {"shared", "fresh"}:
            raise ConfigError(f"--noise takes shared, fresh or both with a comma, not {noise!r}")
        swept["share_noise"] = [kind == "shared" for kind in kinds]
    if guidance is not None:
        swept["guidance"] = split_numbers(guidance, "--guidance", float)
    settings = [dict(zip(swept, values, strict=True)) for values in itertools.product(*swept.values())]
    if len(settings) > LARGEST or len(settings) * count > MOST_PICTURES:
        raise ConfigError(
            f"{len(settings)} combinations with {count} pictures each are too many for one sheet (at most {LARGEST}, "
            f"and {MOST_PICTURES} pictures); sweep fewer values"
        )
    for each in settings:  # complain before any work is done
        refinement_radii(each.get("schedule", "fixed"), each["steps"])
        ClassifierFreeGuidance(each.get("guidance", 1.0), each.get("guidance_at", "both"))
    pipe = load_pipeline(model, device, batch_size)
    named = split_list(labels)
    for label in named or ():
        pipe.classes.id(label)
    judge = None if score == 0 else _judge(pipe, data, split, asked=score is not None or data is not None)
    scored = 0 if judge is None else score or SCORED
    chosen = None if named is None else [named[i % len(named)] for i in range(count)]
    pipe.generate(count, steps=2, seed=seed)  # the first call of a process is slow

    cells, figures = [], []
    for each in watch(settings, len(settings) * (count + scored), lambda _: count + scored, quiet=quiet):
        begun = time.perf_counter()
        output = pipe.generate(count, seed=seed, labels=chosen, **each)
        seconds = (time.perf_counter() - begun) / count
        scores = {} if judge is None else _score(pipe, judge, scored, seed, each)
        cells.append(output.tensor)
        figures.append({**each, "ms_per_image": 1000 * seconds, **scores})
    *outer, last = swept
    columns = len(swept[last])
    starts = range(0, len(cells), columns)
    notes = [_note(figure, swept) for figure in figures]
    sheet = labelled_sheet(
        [cells[start : start + columns] for start in starts],
        [", ".join(_label(name, settings[start][name]) for name in outer) for start in starts],
        [_label(last, value) for value in swept[last]],
        title=f"{Path(model).name or model}: seeds {seed} to {seed + count - 1}",
        scale=max(1, 48 // pipe.image_options.image_size),
        notes=[notes[start : start + columns] for start in starts],
    )
    save_png(sheet, out, {"model": model, "fingerprint": pipe.fingerprint, "seed": str(seed)})
    if as_json:
        print_json({"sheet": str(out), "settings": figures})
        return
    header = tuple(figures[0])
    print(table([tuple(_shown(figure[name]) for name in header) for figure in figures], header))
    say(f"sheet: {out}")


def _judge(pipe: Pipeline, data: str | None, split: str, *, asked: bool) -> Judge | None:
    """Who judges this model; what is missing is an error only if scores were asked for."""
    from spheregen.data import open_source
    from spheregen.errors import SphereGenError
    from spheregen.evaluation.images import RealImages
    from spheregen.evaluation.judges import find_judge

    try:
        real = None if data is None else RealImages(open_source(data, split=split), pipe.image_options)
        judge = find_judge(pipe.info, pipe.model.image_shape, real, str(pipe.device))
    except SphereGenError as error:
        if asked:
            raise
        say(f"no scores: {error}")
        return None
    if judge is None and asked:
        say("no scores: nothing can judge this model; name real images with --data")
    return judge


def _score(pipe: Pipeline, judge: Judge, count: int, seed: int, settings: dict[str, Any]) -> dict[str, float]:
    """Figures of `count` samples by the judge."""
    import torch

    output = pipe.generate(count, seed=seed, **settings)
    labels = torch.tensor(output.labels) if output.labels is not None else torch.zeros(count, dtype=torch.int64)
    return judge.figures(output.tensor, labels)


def _label(name: str, value: Any) -> str:
    if name == "steps":
        return f"{value} step{'s' if value != 1 else ''}"
    if name == "share_noise":
        return "shared noise" if value else "fresh noise"
    return f"{name.replace('_', ' ')} {value:g}" if isinstance(value, float) else f"{name.replace('_', ' ')} {value}"


def _note(figure: dict[str, Any], swept: dict[str, list[Any]]) -> str:
    own = {name: value for name, value in figure.items() if name not in swept}
    return "\n".join(f"{name.replace('_', ' ')} {_shown(value)}" for name, value in own.items())


def _shown(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
