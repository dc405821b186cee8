"""The findings on the sphere as a section of a report: text, warnings, tables, plots and images."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from torch import Tensor

from spheregen.data.grids import labelled_sheet
from spheregen.evaluation.report.parts import Cell, Plot, Section, Series, Sheet, Table

FEW = 500
"""Images below which figures of latents say little."""
_FILLED = 0.5  # the share of dimensions that latents should fill at least
_LEANING = 0.2  # the length of the mean of latents that they should not exceed
_COVERED = 0.5  # the share of random points that should lie in some noise cone
_TWINS = 5.0  # degrees between latents of images that are all but the same
_KEPT = 0.9  # of the noise that is left after one pass, beyond which the pass takes too little away
_EXPANDING = 1.1  # the growth of a small angle in one pass
_RETURNED = 45.0  # degrees from a clean latent to itself after one pass
_VARIED = 0.5  # of the distance of unrelated images, that a turn of 90 degrees should make
_BRITTLE = 15.0  # degrees within which half of all change should not happen
_STRAYED = 5.0  # degrees that latents of samples may lie farther from data than data from one another
_COPIED = 0.5  # of that angle, below which samples sit on single images
_KINDS = {"random": "random points", "data": "latents of data"}
_FIGURES = (
    ("mean_angle", "mean angle of pairs"),
    ("angle_std", "deviation of the angles"),
    ("resultant", "length of the mean"),
    ("effective_dimension", "effective dimension"),
)


def sphere_section(found: dict[str, Any], strip: Tensor) -> Section:
    """Return the findings of `study_sphere` as a part of a page."""
    main, limit = found["latents"][found["main"]], found["cones"]["max_angle"]
    return Section(
        key="sphere",
        title="The sphere",
        text=(
            f"A spherical generator promises that data fill its sphere of {main['dim']} dimensions evenly, so that any "
            f"random point decodes to an image. {main['count']} different images were encoded; where nothing is said, "
            f"latents are those of the {found['main']}. Angles are in degrees. Every figure of the latents stands "
            "beside that of as many random points. The effective dimension is 1 / mean squared cosine of pairs.",
            f"A random point lies near 90 degrees from almost every latent. Training shows the decoder points up to "
            f"{limit:.0f} degrees from the latents of data, and rarely some a few degrees farther. Generation starts "
            "from random points: where these lie beyond, the first decode is a guess, and averages the images that it "
            "could be.",
            "The loop decodes a point and encodes its image again, without noise. A contraction below 1 means that "
            "nearby points move closer; noise that one pass takes away is what makes several steps better than one.",
        ),
        warnings=tuple(sphere_warnings(found)),
        tables=tuple(_tables(found)),
        plots=tuple(_plots(found)),
        sheets=(_sheet(found["angles"]["angles"], strip),),
    )


def sphere_warnings(found: dict[str, Any]) -> Iterator[str]:
    """Yield what the figures of a study say against the model, a sentence for each finding."""
    main, uniform = found["latents"][found["main"]], found["uniform"]
    if not found["on_sphere"]:
        yield "latents do not lie on a sphere: what is said here is said of their directions alone"
    if found["duplicates"]:
        yield f"{found['duplicates']} images have the same pixels as an earlier one and were left out"
    if main["count"] < FEW:
        yield f"only {main['count']} images were studied: figures of their latents say little below {FEW}"
    if main["effective_dimension"] < _FILLED * main["dim"]:
        filled = f"{main['effective_dimension']:.0f} of {main['dim']} dimensions"
        yield f"latents fill {filled}: random points lie mostly where no image is told from another"
    if main["resultant"] > max(_LEANING, 3 * uniform["resultant"]):
        yield f"latents lean to one side: their mean has length {main['resultant']:.3f}, not {uniform['resultant']:.3f}"
    if main["nearest"]["least"] < min(_TWINS, uniform["nearest"]["least"]):
        yield f"latents huddle: two of different images lie {main['nearest']['least']:.1f} degrees apart"
    cones, pixels = found["cones"], found["angles"]["pixels"]
    if cones["random_in_cones"] < _COVERED:
        yield (
            f"random points decode where training hardly was: {cones['random_in_cones']:.1%} of them lie within the "
            f"training noise of {cones['max_angle']:.0f} degrees around some latent of the {cones['count']} images"
        )
    if pixels["mean"][-1] < _VARIED * pixels["unrelated"]:
        change = f"{pixels['mean'][-1] / pixels['unrelated']:.0%} of the difference of two real images"
        yield f"a turn of 90 degrees makes {change}: one-step samples look alike or blurred"
    if pixels["half_angle"] is not None and pixels["half_angle"] < _BRITTLE:
        yield f"half of all change of an image happens within {pixels['half_angle']:.0f} degrees"
    samples, data = cones["samples_to_data"]["median"], cones["data_to_data"]["median"]
    nearest = f"{samples:.1f} degrees from the nearest one of data, which lie {data:.1f} from one another"
    if samples > data + _STRAYED:
        yield f"latents of one-step samples stray from those of data: they are {nearest}"
    if samples < _COPIED * data:
        yield f"one-step samples sit on single images: their latents are {nearest}"
    for start, study in found["loop"].items():
        angle, ratio = study["apart"][0], study["contraction"][0]
        if ratio > _EXPANDING:
            yield f"the loop drives {_KINDS[start]} apart: {angle:g} degrees become {ratio * angle:.1f} after one pass"
    noise, before, after = (found["denoising"][name] for name in ("noise", "before", "after"))
    if after[0] > _RETURNED:
        yield f"the encoder does not know the decoder's images: clean latents come back {after[0]:.0f} degrees away"
    at = min(range(len(noise)), key=lambda place: abs(noise[place] - cones["max_angle"]))
    if after[at] > _KEPT * before[at]:
        yield f"one pass takes little noise away: {before[at]:.0f} degrees become {after[at]:.0f}"


def _tables(found: dict[str, Any]) -> Iterator[Table]:
    sets = [*found["latents"].values(), found["uniform"]]
    rows: list[tuple[Cell, ...]] = [(title, *(each[key] for each in sets)) for key, title in _FIGURES]
    rows.append(("median angle to the nearest other", *(each["nearest"]["median"] for each in sets)))
    if found["null_to_own_angle"] is not None:
        rows.append(("angle between null and own class", None, found["null_to_own_angle"], None))
    yield Table(title="Latents of data", header=("figure", *found["latents"], "uniform points"), rows=tuple(rows))
    curves = {"pixels (RMS on [0, 1])": found["angles"]["pixels"], "features (Euclidean)": found["angles"]["features"]}
    yield Table(
        title="How fast the image changes",
        header=("distance", "at 90 degrees", "of unrelated images", "half of it at (degrees)"),
        rows=tuple((name, of["mean"][-1], of["unrelated"], of["half_angle"]) for name, of in curves.items() if of),
    )
    loops = found["loop"]
    yield Table(
        title="Contraction in one pass of the loop",
        header=("points apart (degrees)", *(_KINDS[start] for start in loops)),
        rows=tuple(zip(loops["data"]["apart"], *(study["contraction"] for study in loops.values()), strict=True)),
    )
    cones, kinds = found["cones"], {"random": "random points", "samples": "one-step samples", "data": "data, to others"}
    yield Table(
        title="Angle to the nearest latent of data",
        header=("points", "least", "5 %", "median", "95 %", f"share within {cones['max_angle']:.0f} degrees"),
        rows=tuple(
            (
                title,
                *(cones[f"{kind}_to_data"][key] for key in ("least", "p5", "median", "p95")),
                cones[f"{kind}_in_cones"],
            )
            for kind, title in kinds.items()
        ),
    )


def _plots(found: dict[str, Any]) -> Iterator[Plot]:
    sets = {**found["latents"], "uniform points": found["uniform"]}
    yield Plot(
        title="Angles of all pairs",
        x_label="angle (degrees)",
        y_label="density",
        series=tuple(
            Series(name=name, x=tuple(each["histogram"]["angles"]), y=tuple(each["histogram"]["density"]), kind="step")
            for name, each in sets.items()
        ),
    )
    changes = {name: found["angles"][name] for name in ("pixels", "features") if found["angles"][name]}
    yield Plot(
        title="How fast the image changes",
        x_label="turn (degrees)",
        y_label="distance / that of unrelated images",
        series=tuple(
            Series(
                name=name,
                x=tuple(found["angles"]["angles"]),
                y=tuple(value / of["unrelated"] for value in of["mean"]),
                error=tuple(value / of["unrelated"] for value in of["std"]),
            )
            for name, of in changes.items()
            if of["unrelated"] > 0
        ),
    )
    loops = found["loop"]
    passes = tuple(float(k) for k in range(1, len(loops["data"]["drift"]) + 1))
    yield Plot(
        title="Passes of the loop",
        x_label="pass",
        y_label="angle moved (degrees)",
        series=tuple(
            Series(name=f"{_KINDS[start]}{suffix}", x=passes, y=tuple(of[key]))
            for key, suffix in (("drift", ""), ("from_start", ", from the start"))
            for start, of in loops.items()
        ),
    )
    noise = found["denoising"]
    yield Plot(
        title="Noise before and after one pass",
        x_label="angle to the clean latent before (degrees)",
        y_label="angle after (degrees)",
        series=(
            Series(name="one pass", x=tuple(noise["before"]), y=tuple(noise["after"])),
            Series(name="no change", x=(0.0, 90.0), y=(0.0, 90.0)),
        ),
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
