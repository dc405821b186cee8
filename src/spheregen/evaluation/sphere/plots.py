"""The plots of the sphere report."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from spheregen.evaluation.report.parts import Plot, Series
from spheregen.evaluation.sphere.angle_law import AngleLaw
from spheregen.evaluation.sphere.latents import LatentFigures
from spheregen.evaluation.sphere.pairs import BINS_PER_DEGREE

if TYPE_CHECKING:
    from spheregen.evaluation.sphere.report import SphereReport

_RANKS = 300  # points of a spectrum that are drawn
_BINS = 60  # of the histograms of nearest angles
_LEAST = 1e-4  # the smallest eigenvalue that is drawn


def plots(report: SphereReport) -> tuple[Plot, ...]:
    """All of them, in the order of the text."""
    return (*_latent_plots(report), *_angle_plots(report), *_loop_plots(report), _cone_plot(report))


def _latent_plots(report: SphereReport) -> tuple[Plot, ...]:
    main = report.latents[report.main]
    x, y = _angle_density(main)
    law = AngleLaw(report.dim)
    grid = torch.linspace(x[0], x[-1], 200, dtype=torch.float64)
    series = [
        Series(name="latents of data", x=x, y=y, kind="step"),
        Series(name="uniform points, exactly", x=tuple(grid.tolist()), y=tuple(law.density(grid).tolist())),
    ]
    lower, upper = main.spectrum.edges
    last = float(len(main.spectrum.eigenvalues))
    return (
        Plot(title="Angles of all pairs", x_label="angle (degrees)", y_label="density", series=tuple(series)),
        Plot(
            title="Spectrum of the second moment",
            x_label="rank",
            y_label="eigenvalue",
            series=(
                *(_ranked(name, figures.spectrum.eigenvalues) for name, figures in report.latents.items()),
                _ranked("uniform points", report.uniform.eigenvalues),
                Series(name="upper Marchenko-Pastur edge", x=(1.0, last), y=(upper, upper)),
                Series(name="lower Marchenko-Pastur edge", x=(1.0, last), y=(max(lower, _LEAST), max(lower, _LEAST))),
            ),
            log_x=True,
            log_y=True,
        ),
    )


def _angle_plots(report: SphereReport) -> tuple[Plot, ...]:
    study = report.angles
    curves = [("pixels", study.pixels), ("features", study.features)]
    series = tuple(
        Series(
            name=name,
            x=study.angles,
            y=tuple(value / curve.unrelated for value in curve.mean),
            error=tuple(value / curve.unrelated for value in curve.std),
        )
        for name, curve in curves
        if curve is not None and curve.unrelated > 0
    )
    label = "distance / that of unrelated images"
    return (Plot(title="How fast the image changes", x_label="turn (degrees)", y_label=label, series=series),)


def _loop_plots(report: SphereReport) -> tuple[Plot, ...]:
    names = {"random": "random points", "data": "latents of data"}
    passes = tuple(float(k) for k in range(1, len(report.loops[0].drift) + 1))
    moved = tuple(Series(name=names[study.start], x=passes, y=study.drift) for study in report.loops)
    away = tuple(
        Series(name=f"{names[study.start]}, from the start", x=passes, y=study.from_start) for study in report.loops
    )
    noise = report.denoising
    return (
        Plot(title="Passes of the loop", x_label="pass", y_label="angle moved (degrees)", series=(*moved, *away)),
        Plot(
            title="Noise before and after one pass",
            x_label="angle to the clean latent before (degrees)",
            y_label="angle after (degrees)",
            series=(
                Series(name="one pass", x=noise.before, y=noise.after),
                Series(name="no change", x=(0.0, 90.0), y=(0.0, 90.0)),
            ),
        ),
    )


def _cone_plot(report: SphereReport) -> Plot:
    cones = report.cones
    sets = {
        "random points": cones.random_to_data,
        "latents of one-step samples": cones.samples_to_data,
        "data, to others": cones.data_to_data,
    }
    low = min(float(angles.min()) for angles in sets.values())
    high = max(cones.max_angle, *(float(angles.max()) for angles in sets.values()))
    width = max((high - low) / _BINS, 1e-3)
    series, top = [], 0.0
    for name, angles in sets.items():
        counts = torch.histc(angles, bins=_BINS, min=low, max=low + _BINS * width) / (len(angles) * width)
        top = max(top, float(counts.max()))
        x = tuple(low + (place + 0.5) * width for place in range(_BINS))
        series.append(Series(name=name, x=x, y=tuple(counts.tolist()), kind="step"))
    series.append(Series(name="training noise ends", x=(cones.max_angle, cones.max_angle), y=(0.0, top)))
    label = "angle to the nearest latent of data (degrees)"
    return Plot(title="Random points and the cones of data", x_label=label, y_label="density", series=tuple(series))


def _ranked(name: str, eigenvalues: Sequence[float]) -> Series:
    """A spectrum over its ranks, thinned evenly in their logarithm."""
    count = len(eigenvalues)
    ranks = sorted({round(math.exp(math.log(count) * step / (_RANKS - 1))) for step in range(_RANKS)})
    values = tuple(max(eigenvalues[rank - 1], _LEAST) for rank in ranks)
    return Series(name=name, x=tuple(map(float, ranks)), y=values)


def _angle_density(figures: LatentFigures) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The density of all pairwise angles over bins of about a fifth of their deviation."""
    wanted = max(1, round(BINS_PER_DEGREE * max(figures.law_std, figures.angle_std) / 5))
    width = next(size for size in range(wanted, 0, -1) if len(figures.pairs.histogram) % size == 0)
    counts = figures.pairs.histogram.view(-1, width).sum(dim=1).double()
    density = counts / counts.sum() * (BINS_PER_DEGREE / width)
    filled = counts.nonzero().flatten()
    first, last = max(0, int(filled[0]) - 1), min(len(counts) - 1, int(filled[-1]) + 1)
    x = tuple((place + 0.5) * width / BINS_PER_DEGREE for place in range(first, last + 1))
    return x, tuple(density[first : last + 1].tolist())
