"""`spheregen evaluate`: how good a model is, in figures that say how they were made."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from spheregen.cli.options import (
    BatchSize,
    Device,
    FreshNoise,
    Guidance,
    GuidanceAt,
    Json,
    Quiet,
    RefinementGuidance,
    RefinementSteps,
    ScheduleOption,
    SolverOption,
    output_folder,
    print_json,
    sampler_options,
    say,
    split_list,
)


def evaluate(
    model: Annotated[
        str | None, typer.Argument(help="A model folder, the name of a bundled model, or a Hub id.", metavar="MODEL")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(help="Real images to compare with, as for `train`; the literature takes training data."),
    ] = None,
    split: Annotated[str, typer.Option(help="Which part of the data to compare with: train, test, all.")] = "train",
    held_out: Annotated[
        str | None,
        typer.Option(help="Split of real images that the model never saw, for the studies. Default: test or val."),
    ] = None,
    images: Annotated[
        str | None, typer.Option(help="Score these images (a folder, .zip, .tar ...) instead of a model's samples.")
    ] = None,
    features: Annotated[
        str,
        typer.Option(
            help="Feature networks, with commas: own,inception,dinov2,dinov3,clip,convnext, NAME=FILE, module:factory."
        ),
    ] = "own",
    metrics: Annotated[
        str | None,
        typer.Option(help="frechet,kid,class_score,manifold,cmmd. Default: all that the networks allow."),
    ] = None,
    reference: Annotated[
        list[str] | None,
        typer.Option(
            help="Statistics instead of --data: a file of `spheregen stats`, or a published .npz; NETWORK=FILE "
            "for a network other than inception."
        ),
    ] = None,
    count: Annotated[int, typer.Option("--count", "-n", help="Samples, evenly of all classes.")] = 10_000,
    seed: Annotated[int, typer.Option(help="Sample i has seed SEED + i.")] = 0,
    steps: Annotated[int | None, typer.Option(help="Decodes; 1 is one step. Default: the model's.")] = None,
    schedule: ScheduleOption = None,
    guidance: Guidance = None,
    guidance_at: GuidanceAt = None,
    fresh_noise: FreshNoise = None,
    refinement_steps: RefinementSteps = None,
    solver: SolverOption = None,
    refinement_guidance: RefinementGuidance = None,
    quantise: Annotated[
        str, typer.Option(help="How samples become 8 bits: round, or floor as the published figures were made.")
    ] = "round",
    report: Annotated[
        Path | None,
        typer.Option(
            help="Run all studies and write a page to this folder: index.html and evaluation.json. An "
            "interrupted evaluation continues there."
        ),
    ] = None,
    curve: Annotated[
        list[str] | None,
        typer.Option(
            help="A curve of the report: steps=1,2,4 or guidance=, schedule=, noise=, angle=, refinement-steps=, "
            "refinement-guidance=, solver=; again for more. Default: all that the model has."
        ),
    ] = None,
    curve_count: Annotated[int, typer.Option(help="Samples of each point of a curve.")] = 2000,
    study: Annotated[
        str | None,
        typer.Option(
            help="Studies of the report: reconstruction,curves,classes,originality,sphere,cost; none for none. "
            "Default: all."
        ),
    ] = None,
    workers: Annotated[int, typer.Option(help="Processes that decode images; 0 for this one.")] = 0,
    batch_size: BatchSize = None,
    device: Device = "auto",
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Score a model's samples against real images, and with --report look into it from all sides.

    Figures come with all that is needed to repeat them. Several processes (`torchrun`) share the work and give the same
    figures.
    """
    from spheregen.distributed import is_first_process
    from spheregen.evaluation.curves import parse_curve
    from spheregen.evaluation.evaluate import EvaluationOptions
    from spheregen.evaluation.images import check_rounding
    from spheregen.evaluation.report.page import PAGE
    from spheregen.evaluation.run import Request, run
    from spheregen.evaluation.studies import choose_studies
    from spheregen.pipeline import GenerationOptions
    from spheregen.progress import default_reporter

    wanted = split_list(metrics)
    options = EvaluationOptions(
        count=count,
        seed=seed,
        generation=GenerationOptions(
            steps=steps,
            **sampler_options(
                schedule, guidance, guidance_at, fresh_noise, refinement_steps, solver, refinement_guidance
            ),
        ),
        rounding=check_rounding(quantise),
        metrics=None if wanted is None else tuple(wanted),
        curves=tuple(parse_curve(text) for text in curve or ()),
        curve_count=curve_count,
    )
    request = Request(
        model=model,
        images=images,
        data=data,
        split=split,
        held_out=held_out,
        features=tuple(split_list(features) or ()),
        references=tuple(reference or ()),
        options=options,
        studies=choose_studies(split_list(study)),
        report=None if report is None else output_folder(report),
        workers=workers,
        batch_size=batch_size,
        device=device,
    )
    result = run(request, reporter=default_reporter(quiet=quiet) if is_first_process() else None)
    if result is None:
        return
    if as_json:
        print_json(result)
        return
    print(result["line"])
    for note in result["notes"]:
        say(f"note: {note}")
    if report is not None:
        say(f"report: {report / PAGE}")
