"""`spheregen evaluate`: how good a model is, in figures that say how they were made."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from typer import Option

from spheregen.cli import options as cli
from spheregen.cli.images import output_folder
from spheregen.errors import ConfigError


def evaluate(
    loop: cli.Sampling,
    model: cli.OptionalModel = None,
    data: cli.Data = None,
    split: cli.Split = "train",
    held_out: Annotated[
        str | None,
        Option(help="Split of real images that the model never saw, for the studies. Default: test or val."),
    ] = None,
    images: Annotated[
        str | None, Option(help="Score these images (a folder, .zip, .tar ...) instead of a model's samples.")
    ] = None,
    image_size: Annotated[
        int | None, Option(help="With --images: bring them to this side in pixels. Default: that of most of them.")
    ] = None,
    features: Annotated[
        str | None,
        Option(help=cli.FEATURES_HELP + " Default: own, and classifier where real images of classes are given."),
    ] = None,
    metrics: Annotated[
        str | None,
        Option(help="class_accuracy,frechet,kid,class_score,manifold,cmmd. Default: all that the networks allow."),
    ] = None,
    reference: Annotated[
        list[str] | None,
        Option(
            help="Statistics instead of --data: a file of `spheregen stats`, or a published .npz; NETWORK=FILE "
            "for a network other than inception."
        ),
    ] = None,
    count: Annotated[
        int | None,
        Option("--count", "-n", help="Samples, evenly of all classes. Default: 10000; 200 images with --restoration."),
    ] = None,
    seed: cli.Seed = 0,
    quantise: Annotated[
        str, Option(help="How samples become 8 bits: round, or floor as the published figures were made.")
    ] = "round",
    report: Annotated[
        Path | None,
        Option(
            rich_help_panel="Report",
            help="Run all studies and write a page to this folder: index.html and evaluation.json. An "
            "interrupted evaluation continues there.",
        ),
    ] = None,
    curve: Annotated[
        list[str] | None,
        Option(
            rich_help_panel="Report",
            help="A curve: steps=1,2,4 or guidance=, prior=, temperature=, schedule=, noise=, angle=, strength=, "
            "refinement-steps=, refinement-guidance=, solver=; again for more. Default: all that the model has.",
        ),
    ] = None,
    curve_count: Annotated[int, Option(rich_help_panel="Report", help="Samples of each point of a curve.")] = 2000,
    study: Annotated[
        str | None,
        Option(
            rich_help_panel="Report",
            help="Studies: reconstruction,curves,classes,originality,sphere,restoration,cost; none for none. "
            "Default: all.",
        ),
    ] = None,
    restoration: Annotated[
        str | None,
        Option(
            help="Measure restoration instead, on held-out images of --data beside simple means: box,brush,random,"
            "denoise,superres,deblur,decolour,dejpeg, or all."
        ),
    ] = None,
    protocol: Annotated[
        str | None,
        Option(
            help="Of restoration: sp3, its first six tasks as the literature has them, with noise of deviation 0.05 "
            "(random 0.01, denoise 0.2) on pixels in -1 to 1; all six without --restoration."
        ),
    ] = None,
    workers: cli.Workers = 0,
    batch_size: cli.BatchSize = None,
) -> None:
    """Score a model's samples against real images, and with --report look into it from all sides.

    Figures come with all that is needed to repeat them; the literature compares with training data. Several processes
    (`torchrun`) share the work and give the same figures.

    Examples:
        spheregen evaluate digits --data digits -n 2000
        spheregen evaluate runs/mine --data photos/ --features own,inception --report report/
        spheregen evaluate --images samples/ --data photos/
        spheregen evaluate runs/mine --data photos/ --protocol sp3
    """
    from spheregen.distributed import is_first_process
    from spheregen.evaluation.curves import parse_curve
    from spheregen.evaluation.images import check_rounding
    from spheregen.evaluation.protocol import EvaluationOptions
    from spheregen.evaluation.report.page import PAGE
    from spheregen.evaluation.request import Request, run
    from spheregen.evaluation.studies import choose_studies
    from spheregen.pipeline import GenerationOptions

    restores = restoration is not None or protocol is not None
    if count is None:
        count = 200 if restores else 10_000
    cli.check_count(count)
    cli.check_count(curve_count, "--curve-count")
    if restores:
        others = {
            "--images": images,
            "--image-size": image_size,
            "--report": report,
            "--metrics": metrics,
            "--reference": reference,
            "--curve": curve,
            "--study": study,
            "options of sampling": loop.given() or None,
        }
        if told := [name for name, value in others.items() if value is not None]:
            raise ConfigError(f"a measurement of restoration does without {', '.join(told)}; leave them out")
        if model is None or data is None:
            raise ConfigError("a measurement of restoration takes a model and --data")
        how = {"protocol": protocol, "split": split, "held_out": held_out, "count": count, "seed": seed}
        return _restoration(model, data, restoration or "all", features=features or "own", **how)
    wanted = cli.split_list(metrics)
    options = EvaluationOptions(
        count=count,
        seed=seed,
        generation=GenerationOptions(**loop.given()),
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
        image_size=image_size,
        features=None if features is None else tuple(cli.split_list(features) or ()),
        references=tuple(reference or ()),
        options=options,
        studies=choose_studies(cli.split_list(study)),
        report=None if report is None else output_folder(report),
        workers=workers,
        batch_size=batch_size,
        device=cli.everywhere.device,
    )
    result = run(request, reporter=cli.reporter() if is_first_process() else None)
    if result is None:
        return
    cli.answer(result, lambda: str(result["line"]))
    for note in () if cli.everywhere.as_json else result["notes"]:
        cli.warn(f"note: {note}")
    if report is not None:
        cli.say(f"report: {report / PAGE}")


def _restoration(model: str, data: str, tasks: str, **how: Any) -> None:
    """Measure restoration and print a table."""
    from spheregen.evaluation.restoration.comparison import evaluate_restoration

    reporter = cli.reporter()
    found = evaluate_restoration(
        model,
        data,
        cli.split_list(tasks) or (),
        **how,
        device=cli.everywhere.device,
        told=lambda row: reporter.message(f"{row['task']}, {row['method']}: {row['psnr']:.2f} dB"),
    )
    names = list(dict.fromkeys(name for row in found["rows"] for name in row))
    cli.answer(found, lambda: cli.table([[row.get(name) for name in names] for row in found["rows"]], names))
    cli.say(f"noise is a deviation of {found['protocol']['noise_scale']}; residual is over it, 1 is the noise itself")
