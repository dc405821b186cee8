"""`spheregen sweep`: the same seeds under many settings, on one labelled sheet."""

from __future__ import annotations

import itertools
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Option

from spheregen.cli import options as cli
from spheregen.cli.images import output_file
from spheregen.errors import ConfigError, SphereGenError

if TYPE_CHECKING:
    from spheregen.evaluation.scorers import Scorer
    from spheregen.pipeline import Pipeline

LARGEST = 400  # settings
MOST_IMAGES = 10_000  # on a sheet
SCORED = 500


def sweep(
    model: cli.Model,
    steps: Annotated[str, Option(help="Numbers of steps, with commas.")] = "1,2,4",
    guidance: Annotated[str | None, Option(help="Guidance scales: 1,1.2,1.4. Default: the model's.")] = None,
    settings: Annotated[
        list[str] | None,
        Option(
            "--set",
            metavar="NAME=V1,V2",
            help="Values of another option of sampling, repeatable: schedule=fixed,decay, guidance_at=pixel,latent, "
            "share_noise=true,false, refinement_steps=1,4, solver=euler,heun.",
        ),
    ] = None,
    count: cli.Count = 8,
    labels: cli.Labels = None,
    seed: cli.Seed = 0,
    score: Annotated[
        int | None,
        Option(
            help="Samples of each combination to score, if there is something that can score this model; 0: none. "
            f"Default: {SCORED}."
        ),
    ] = None,
    data: cli.Data = None,
    split: cli.Split = "train",
    out: Annotated[Path, Option(help="The sheet, a .png file.")] = Path("sweep.png"),
) -> None:
    """Compare settings of sampling on the same seeds.

    All combinations are sampled. A labelled sheet shows them, a column for each guidance scale or, without these, of
    another setting; a table tells times and, where something can score the model, or --data names real images, scores
    of samples of all its classes.

    Examples:
        spheregen sweep digits --steps 1,2,4 --guidance 1,1.2,1.4
        spheregen sweep runs/mine --steps 4 --set schedule=fixed,decay --set share_noise=true,false --data photos/
    """
    import torch

    from spheregen.data import labelled_sheet, save_png
    from spheregen.sampling import GUIDANCES, generation_angles

    output_file(out, suffix=".png")
    cli.check_count(count)
    cli.check_count(score or 1, "--score")
    if data is not None and score is not None and score < 2:
        raise ConfigError(f"a distance to --data needs at least 2 samples, not --score {score}")
    swept: dict[str, list[Any]] = {"steps": cli.split_numbers(steps, "--steps", int), **_lists(settings)}
    if guidance is not None:
        swept["guidance"] = cli.split_numbers(guidance, "--guidance", float)
    combinations = [dict(zip(swept, values, strict=True)) for values in itertools.product(*swept.values())]
    if len(combinations) > LARGEST or len(combinations) * count > MOST_IMAGES:
        raise ConfigError(
            f"{len(combinations)} combinations with {count} images each are too many for one sheet (at most {LARGEST}, "
            f"and {MOST_IMAGES} images); sweep fewer values"
        )
    for each in combinations:  # complain before any work is done
        generation_angles(each.get("schedule", "fixed"), each["steps"])
    pipe = cli.load_pipeline(model)
    for each in combinations:
        guide = GUIDANCES[pipe.model.guidance_law]
        guide(each.get("guidance", pipe.model.unguided), each.get("guidance_at", "both"))
    named = cli.class_list(pipe, labels)
    scorer = None if score == 0 else _scorer(pipe, data, split, asked=score is not None or data is not None)
    scored = score or SCORED if scorer is not None else 0
    chosen = cli.in_turn(named, count)
    pipe.generate(count, steps=2, seed=seed)  # the first call of a process is slow

    cells, figures = [], []
    for each in cli.watch(combinations, len(combinations) * (count + scored), lambda _: count + scored):
        begun = time.perf_counter()
        output = pipe.generate(count, seed=seed, labels=chosen, **each)
        figures.append({**each, "ms_per_image": 1000 * (time.perf_counter() - begun) / count})
        cells.append(output.tensor)
        if scorer is not None:
            under = cli.in_turn(named, scored) if pipe.model.text_width else None
            samples = pipe.generate(scored, seed=seed, labels=under, **each)
            asked = None if samples.labels is None else torch.tensor(samples.labels)
            figures[-1] |= scorer.figures(samples.tensor, asked)
    *outer, last = swept
    columns = len(swept[last])
    starts = range(0, len(cells), columns)
    notes = ["\n".join(_title(name, one[name]) for name in one if name not in swept) for one in figures]
    sheet = labelled_sheet(
        [cells[start : start + columns] for start in starts],
        [", ".join(_title(name, combinations[start][name]) for name in outer) for start in starts],
        [_title(last, value) for value in swept[last]],
        title=f"{Path(model).name or model}: seeds {seed} to {seed + count - 1}",
        scale=max(1, 48 // pipe.image_options.image_size),
        notes=[notes[start : start + columns] for start in starts],
    )
    save_png(sheet, out, {"model": model, "fingerprint": pipe.fingerprint, "seed": str(seed)})
    cli.answer({"sheet": str(out), "settings": figures}, lambda: cli.table(figures))
    cli.say(f"sheet: {out}")


def _lists(settings: list[str] | None) -> dict[str, list[Any]]:
    """Read `--set NAME=V1,V2`."""
    found: dict[str, list[Any]] = {}
    for text in settings or ():
        name, equals, values = text.partition("=")
        for each in cli.split_list(values) or ():
            for key, value in cli.sampler_settings([f"{name}{equals}{each}"]).items():
                found.setdefault(key, []).append(value)
    return found


def _scorer(pipe: Pipeline, data: str | None, split: str, *, asked: bool) -> Scorer | None:
    """Return what scores this model; what is missing is an error only if scores were asked for."""
    from spheregen.evaluation.images import open_real
    from spheregen.evaluation.scorers import find_scorer

    try:
        names = pipe.info.class_names
        real = None if data is None else open_real(data, split, pipe.image_options, class_names=names)
        scorer = find_scorer(pipe.info, pipe.model.image_shape, real, str(pipe.device), cli.reporter())
    except SphereGenError as error:
        if asked:
            raise
        cli.say(f"no scores: {error}")
        return None
    if scorer is None and asked:
        cli.warn("no scores: nothing can score this model; name real images with --data")
    return scorer


def _title(name: str, value: Any) -> str:
    return f"{name.replace('_', ' ')} {cli.cell(value)}"
