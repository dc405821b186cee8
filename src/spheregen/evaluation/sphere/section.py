"""The findings on the sphere as a section of a report: text, warnings, tables, plots and images."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from spheregen.data.grids import labelled_sheet
from spheregen.evaluation.report.parts import Plot, Section, Series, Sheet, Table

FEW = 500
"""Images below which figures of latents say little."""
_KINDS = {"random": "random points", "data": "latents of data"}


def sphere_section(found: dict[str, Any], strip: Tensor) -> Section:
    """Return the findings of `study_sphere` as a part of a page."""
    return Section(
        key="sphere",
        title="The sphere",
        text=(
            "A spherical generator promises that data fill its sphere evenly, so that any random point decodes to an "
            f"image. Where nothing is said, latents are those of the {found['main']}. Angles are in degrees. The "
            "effective dimension is 1 / mean squared cosine of pairs.",
            "Training shows the decoder points up to the largest angle of its noise from latents of data; generation "
            "starts from random points. Where these lie beyond, the first decode averages the images that it could be.",
            "The loop decodes a point and encodes its image again, without noise. A contraction below 1 means that "
            "nearby points move closer; noise that one pass takes away is what makes several steps better than one.",
        ),
        warnings=sphere_warnings(found),
        tables=_tables(found),
        plots=_plots(found),
        sheets=(_sheet(found["angles"]["angles"], strip),),
    )


def sphere_warnings(found: dict[str, Any]) -> tuple[str, ...]:
    """Return what the figures of a study say against the model, or against trusting them."""
    main, cones, pixels = found["latents"][found["main"]], found["cones"], found["angles"]["pixels"]
    noise = found["denoising"]
    at = min(range(len(noise["noise"])), key=lambda place: abs(noise["noise"][place] - cones["max_angle"]))
    samples, data = cones["samples_to_data"]["median"], cones["data_to_data"]["median"]
    checks = {
        "latents do not lie on a sphere: only their directions count here": not found["on_sphere"],
        f"{found['duplicates']} images equal an earlier one and were left out": found["duplicates"] > 0,
        f"only {main['count']} images were studied: their figures say little below {FEW}": main["count"] < FEW,
        f"latents fill {main['effective_dimension']:.0f} of {main['dim']} dimensions": (
            main["effective_dimension"] < 0.5 * main["dim"]
        ),
        f"latents lean to one side: their mean has length {main['resultant']:.3f}": (
            main["resultant"] > max(0.2, 3 * found["uniform"]["resultant"])
        ),
        f"random points decode where training hardly was: {cones['random_in_cones']:.1%} of them lie within "
        f"{cones['max_angle']:.0f} degrees of some latent": cones["random_in_cones"] < 0.5,
        "a turn of 90 degrees changes an image little: one-step samples look alike or blurred": (
            pixels["mean"][-1] < 0.5 * pixels["unrelated"]
        ),
        f"one-step samples stray {samples:.1f} degrees from data, which lie {data:.1f} from one another": (
            samples > data + 5
        ),
        "one-step samples sit on single images": samples < 0.5 * data,
        "the loop drives nearby points apart": any(of["contraction"][0] > 1.1 for of in found["loop"].values()),
        f"clean latents come back {noise['after'][0]:.0f} degrees away after one pass": noise["after"][0] > 45,
        f"one pass takes little noise away: {noise['before'][at]:.0f} degrees become {noise['after'][at]:.0f}": (
            noise["after"][at] > 0.9 * noise["before"][at]
        ),
    }
    return tuple(text for text, holds in checks.items() if holds)


def _tables(found: dict[str, Any]) -> tuple[Table, ...]:
    sets = {**found["latents"], "uniform points": found["uniform"]}
    keys = ("mean_angle", "angle_std", "resultant", "effective_dimension")
    points = [(key.replace("_", " "), *(of[key] for of in sets.values())) for key in keys]
    points.append(("median angle to the nearest other", *(of["nearest"]["median"] for of in sets.values())))
    if found["null_to_own_angle"] is not None:
        points.append(("angle between null and own class", None, found["null_to_own_angle"], None))
    changes = {name: found["angles"][name] for name in ("pixels", "features") if found["angles"][name]}
    loops, cones = found["loop"], found["cones"]
    kinds = {"random": "random points", "samples": "one-step samples", "data": "data, to others"}
    levels = ("least", "p5", "median", "p95")
    near = [
        (title, *(cones[f"{kind}_to_data"][level] for level in levels), cones[f"{kind}_in_cones"])
        for kind, title in kinds.items()
    ]
    changed = [(name, of["mean"][-1], of["unrelated"], of["half_angle"]) for name, of in changes.items()]
    contraction = zip(loops["data"]["apart"], *(of["contraction"] for of in loops.values()), strict=True)
    half = ("distance", "at 90 degrees", "of unrelated images", "half of it at (degrees)")
    within = f"share within {cones['max_angle']:.0f} degrees"
    return (
        Table(title="Latents of data", header=("figure", *sets), rows=tuple(points)),
        Table(title="How fast the image changes", header=half, rows=tuple(changed)),
        Table(title="Contraction in one pass of the loop", header=("apart", *loops), rows=tuple(contraction)),
        Table(title="Angle to the nearest latent of data", header=("points", *levels, within), rows=tuple(near)),
    )


def _plots(found: dict[str, Any]) -> tuple[Plot, ...]:
    sets = {**found["latents"], "uniform points": found["uniform"]}
    changes = {name: found["angles"][name] for name in ("pixels", "features") if found["angles"][name]}
    loops, noise, angles = found["loop"], found["denoising"], tuple(found["angles"]["angles"])
    passes = tuple(range(1, len(loops["data"]["drift"]) + 1))
    pairs = [
        Series(name=name, x=tuple(of["histogram"]["angles"]), y=tuple(of["histogram"]["density"]), kind="step")
        for name, of in sets.items()
    ]
    turned = [
        Series(name=name, x=angles, y=tuple(value / of["unrelated"] for value in of["mean"]))
        for name, of in changes.items()
        if of["unrelated"] > 0
    ]
    moved = [
        Series(name=f"{_KINDS[start]}{suffix}", x=passes, y=tuple(of[key]))
        for key, suffix in (("drift", ""), ("from_start", ", from the start"))
        for start, of in loops.items()
    ]
    cleaned = [
        Series(name="one pass", x=tuple(noise["before"]), y=tuple(noise["after"])),
        Series(name="no change", x=(0.0, 90.0), y=(0.0, 90.0)),
    ]
    return tuple(
        Plot(title=title, x_label=x_label, y_label=y_label, series=tuple(series))
        for title, x_label, y_label, series in (
            ("Angles of all pairs", "angle (degrees)", "density", pairs),
            ("How fast the image changes", "turn (degrees)", "distance / that of unrelated images", turned),
            ("Passes of the loop", "pass", "angle moved (degrees)", moved),
            ("Noise before and after one pass", "angle to the clean latent before", "angle after", cleaned),
        )
    )


def _sheet(angles: list[float], strip: Tensor) -> Sheet:
    kept = [place for place, angle in enumerate(angles) if angle % 10 == 0]
    rows: list[list[Tensor | None]] = [[row[place][None] for place in kept] for row in strip]
    scale = max(1, math.ceil(64 / strip.shape[-1]))
    return Sheet(
        image=labelled_sheet(rows, [""] * len(rows), [f"{angles[place]:g}°" for place in kept], scale=scale, pad=0),
        title="Images on their way",
        caption="Each row turns one latent of data towards a random direction: the first image is its reconstruction, "
        "the last is a random point's, orthogonal to it.",
    )
