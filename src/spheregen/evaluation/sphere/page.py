"""The sphere report as a section of a page: text, tables and pictures; see `plots` for the rest."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from spheregen.data.sheets import labelled_sheet
from spheregen.evaluation.report.parts import Cell, Picture, Section, Table
from spheregen.evaluation.sphere.angle_law import AngleLaw
from spheregen.evaluation.sphere.angles import AngleCurve
from spheregen.evaluation.sphere.cones import spread
from spheregen.evaluation.sphere.plots import plots
from spheregen.evaluation.sphere.words import p_text

if TYPE_CHECKING:
    from spheregen.evaluation.sphere.report import SphereReport

MOST_CLASSES = 40
"""Rows of the table of classes; of more those that lean most to one side."""
_TESTS = {"rayleigh": "mean direction (Rayleigh)", "bingham": "axes (Bingham)", "largest_cosine": "largest |cosine|"}
_SMALLEST_PICTURE = 64  # pixels of a picture in the strip


def section(report: SphereReport) -> Section:
    """The whole report."""
    return Section(
        key="sphere",
        title="The sphere",
        text=_text(report),
        warnings=report.warnings(),
        tables=(_latents_table(report), _tests_table(report), *_class_tables(report), *_other_tables(report)),
        plots=plots(report),
        pictures=(_globe_picture(report), _strip_picture(report)),
    )


def _text(report: SphereReport) -> tuple[str, ...]:
    law, cones, main = AngleLaw(report.dim), report.cones, report.latents[report.main]
    sampled = f" (a random choice; {report.left_out} more were left out)" if report.left_out else ""
    source = "" if len(report.latents) == 1 else f" Where nothing is said, latents are those under the {report.main}."
    return (
        f"A spherical generator promises that data fill its sphere of {report.dim} dimensions evenly, so that any "
        f"random point decodes to an image. {main.count} different images were encoded{sampled}.{source} Angles are in "
        "degrees.",
        "Uniformity is tested three ways at once, at a level of 1 %. With thousands of images the test finds the "
        "slightest unevenness, so read it with the sizes: the effective dimension (1 / mean squared cosine of pairs), "
        "the length of the mean, and the distance of the pairwise angles from their law. The spectrum of uniform "
        "points stays between the Marchenko-Pastur edges; eigenvalues above are directions that data prefer.",
        f"The angle between two uniform points of {report.dim} dimensions is 90 with a deviation of {law.std:.2f} "
        "degrees, less in more dimensions. So a random point lies near 90 degrees from almost every latent; the "
        f"nearest of {cones.count} uniform ones would be {cones.expected_random:.1f} degrees away. "
        f"Training shows the decoder points up to {cones.max_angle:.0f} degrees from the latents of data, and rarely "
        "some a few degrees farther. Generation starts from random points: where these lie beyond, the first decode is "
        "a guess, and averages the images that it could be.",
        "The loop decodes a point and encodes its image again, without noise. A contraction below 1 means that nearby "
        "points move closer; noise that one pass takes away is what makes several steps better than one.",
    )


def _latents_table(report: SphereReport) -> Table:
    sets = list(report.latents.values())
    main = report.latents[report.main]
    rows: list[tuple[Cell, ...]] = [
        _figure("mean angle of pairs", [s.mean_angle for s in sets], 90.0),
        _figure("deviation of the angles", [s.angle_std for s in sets], main.law_std),
        _figure("distance from the angle law (KS)", [s.uniformity.ks_distance for s in sets], None),
        _figure("length of the mean", [s.resultant for s in sets], 1 / math.sqrt(main.count)),
        _figure("effective dimension", [s.effective_dimension for s in sets], float(report.dim)),
        _figure(
            f"participation ratio of {main.spectrum.count} points",
            [s.spectrum.participation for s in sets],
            main.spectrum.expected_participation,
        ),
        *(
            _figure(
                "share of the leading direction" if k == 1 else f"share of the {k} leading directions",
                [s.spectrum.share(k) for s in sets],
                report.uniform.share(k),
            )
            for k in (1, 10, 100)
            if k < len(main.spectrum.eigenvalues)
        ),
        _figure("largest eigenvalue", [s.spectrum.eigenvalues[0] for s in sets], report.uniform.eigenvalues[0]),
        ("eigenvalues above the upper edge", *(s.spectrum.beyond for s in sets), report.uniform.beyond),
        _figure("median angle to the nearest other", [spread(s.nearest).median for s in sets], main.expected_nearest),
    ]
    if report.null_to_own is not None:
        rows.append(("angle between null and own class", None, _short(report.null_to_own), None))
    return Table(title="Latents of data", header=("figure", *report.latents, "uniform points"), rows=tuple(rows))


def _tests_table(report: SphereReport) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for name, figures in report.latents.items():
        for key, test in figures.uniformity.tests.items():
            rows.append((name, _TESTS[key], _short(test.statistic), _short(test.expected), p_text(test.p_value)))
        verdict = "not uniform" if figures.uniformity.rejected else "nothing speaks against uniform"
        rows.append((name, f"together: {verdict}", None, None, p_text(figures.uniformity.p_value)))
    header = ("latents", "test", "statistic", "if uniform", "p-value")
    return Table(title="Tests of uniformity", header=header, rows=tuple(rows))


def _class_tables(report: SphereReport) -> tuple[Table, ...]:
    main = report.latents[report.main]
    if not main.classes:
        return ()
    shown = sorted(main.classes, key=lambda of: -of.resultant)[:MOST_CLASSES]
    kept = [of for of in main.classes if of in shown]
    more = f" (the {len(kept)} of {len(main.classes)} that lean most)" if len(kept) < len(main.classes) else ""
    rows = tuple(
        (
            of.name,
            of.count,
            _short(of.resultant),
            _short(1 / math.sqrt(of.count)),
            _short(of.within),
            _short(of.between),
            _short(of.effective_dimension),
            of.nearest_class,
            _short(of.nearest_class_angle),
        )
        for of in kept
    )
    header = (
        *("class", "images", "length of the mean", "if uniform", "angle within", "angle to others"),
        *("effective dimension", "closest class", "angle of the means"),
    )
    return (Table(title=f"Classes on the sphere{more}", header=header, rows=rows),)


def _other_tables(report: SphereReport) -> tuple[Table, ...]:
    at_random, of_data = report.loops
    cones, pixels, features = report.cones, report.angles.pixels, report.angles.features
    distances: list[tuple[Cell, ...]] = [_change("pixels (RMS on [0, 1])", pixels)]
    if features is not None:
        distances.append(_change("features (Euclidean)", features))
    return (
        Table(
            title="How fast the image changes",
            header=("distance", "at 90 degrees", "of unrelated images", "their ratio", "half of it at (degrees)"),
            rows=tuple(distances),
        ),
        Table(
            title="Contraction in one pass of the loop",
            header=("points apart (degrees)", "random points", "latents of data"),
            rows=tuple(
                (angle, _short(one), _short(other))
                for angle, one, other in zip(at_random.apart, at_random.contraction, of_data.contraction, strict=True)
            ),
        ),
        Table(
            title="Angle to the nearest latent of data",
            header=("points", "least", "5 %", "median", "95 %", f"within {cones.max_angle:.0f} degrees"),
            rows=(
                _nearest("random points", cones.random_to_data, cones.random_in_cones),
                _nearest("latents of one-step samples", cones.samples_to_data, cones.samples_in_cones),
                _nearest(
                    "data, to others",
                    cones.data_to_data,
                    float((cones.data_to_data <= cones.max_angle).double().mean()),
                ),
            ),
        ),
    )


def _globe_picture(report: SphereReport) -> Picture:
    share, uniform = report.latents[report.main].spectrum.share(3), report.uniform.share(3)
    return Picture(
        image=report.globes,
        title="The sphere in three directions",
        caption="Latents of data and as many uniform random points, each seen along its own three leading directions. "
        f"These hold {share:.1%} of the squared length of the latents ({uniform:.1%} of that of random points): the "
        "picture shows tendencies, the figures measure them.",
    )


def _strip_picture(report: SphereReport) -> Picture:
    strip = report.angles.strip
    scale = max(1, math.ceil(_SMALLEST_PICTURE / strip.shape[-1]))
    kept = [place for place, angle in enumerate(report.angles.angles) if angle % 10 == 0]
    rows: list[list[Tensor | None]] = [[row[place][None] for place in kept] for row in strip]
    columns = [f"{report.angles.angles[place]:g}°" for place in kept]
    return Picture(
        image=labelled_sheet(rows, [""] * len(rows), columns, scale=scale, pad=0),
        title="Images on their way",
        caption="Each row turns one latent of data towards a random direction: the first picture is its "
        "reconstruction, the last is a random point's, orthogonal to it.",
    )


def _figure(name: str, values: Sequence[float], uniform: float | None) -> tuple[Cell, ...]:
    return name, *(_short(value) for value in values), _short(uniform)


def _change(name: str, curve: AngleCurve) -> tuple[Cell, ...]:
    ratio = curve.mean[-1] / curve.unrelated if curve.unrelated > 0 else None
    return name, _short(curve.mean[-1]), _short(curve.unrelated), _short(ratio), _short(curve.half_angle)


def _nearest(name: str, angles: Tensor, inside: float) -> tuple[Cell, ...]:
    found = spread(angles)
    return name, *map(_short, (found.least, found.p5, found.median, found.p95)), f"{inside:.1%}"


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")
