"""What a sphere report says against a model, in plain words."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from spheregen.evaluation.sphere.cones import spread
from spheregen.evaluation.sphere.latents import LatentFigures

if TYPE_CHECKING:
    from spheregen.evaluation.sphere.report import SphereReport

FEW = 500
"""Images below which figures by class and spectra say little."""
FILLED = 0.5  # the share of dimensions that latents should fill at least
COVERED = 0.5  # the share of random points that should lie in some noise cone
TWINS = 5.0  # degrees between latents of images that are all but the same
KEPT = 0.9  # of the noise that is left after one pass, beyond which the pass takes too little away
EXPANDING = 1.1  # the growth of a small angle in one pass
RETURNED = 45.0  # degrees from a clean latent to itself after one pass
VARIED = 0.5  # of the distance of unrelated images, that a turn of 90 degrees should make
BRITTLE = 15.0  # degrees within which half of all change should not happen
STRAYED = 5.0  # degrees that latents of samples may lie farther from data than data from one another
COPIED = 0.5  # of that angle, below which samples sit on single images


def warnings(report: SphereReport) -> tuple[str, ...]:
    """One sentence or two for each finding."""
    return (*_about_images(report), *_about_latents(report), *_about_random_points(report), *_about_loop(report))


def p_text(p_value: float) -> str:
    """A p-value to read."""
    return f"{p_value:.2g}" if p_value else "below 1e-300"


def _about_images(report: SphereReport) -> Iterator[str]:
    count = report.latents[report.main].count
    if not report.on_sphere:
        yield "the model's latents do not lie on a sphere: what is said here is said of their directions alone."
    if report.duplicates:
        yield f"{report.duplicates} images have the same pixels as an earlier one and were left out."
    if count < FEW:
        yield f"only {count} images were studied: figures by class and spectra say little below {FEW}."


def _about_latents(report: SphereReport) -> Iterator[str]:
    for name, figures in report.latents.items():
        if figures.uniformity.rejected:
            of = "" if len(report.latents) == 1 else f" under the {name}"
            reasons = "; ".join(_reasons(figures))
            p_value = p_text(figures.uniformity.p_value)
            yield f"latents of data are not uniform on the sphere{of} (p-value {p_value}): {reasons}."
    main = report.latents[report.main]
    if main.effective_dimension < FILLED * main.dim:
        yield (
            f"latents fill {main.effective_dimension:.0f} of {main.dim} dimensions evenly, in effect: random points "
            "have most of their length in directions that hardly tell one image from another."
        )


def _reasons(figures: LatentFigures) -> Iterator[str]:
    test = figures.uniformity
    limit = test.level / len(test.tests)
    if test.tests["rayleigh"].p_value < limit:
        yield (
            f"they lean to one side (their mean has length {figures.resultant:.3f}, that of uniform points "
            f"{1 / math.sqrt(figures.count):.3f})"
        )
    if test.tests["bingham"].p_value < limit:
        yield (
            f"they prefer some directions (they fill {figures.effective_dimension:.0f} of {figures.dim} dimensions, "
            f"and {figures.spectrum.beyond} eigenvalues lie above those of uniform points)"
        )
    if test.tests["largest_cosine"].p_value < limit:
        nearest = float(figures.nearest.min())
        closest = test.tests["largest_cosine"].statistic
        expected = math.degrees(math.acos(test.tests["largest_cosine"].expected))
        if abs(math.cos(math.radians(nearest)) - closest) > 1e-3:
            yield f"two lie on opposite sides, {180 - math.degrees(math.acos(closest)):.1f} degrees apart"
            return
        twins = ", as if they showed the same" if nearest < TWINS else ""
        yield f"some huddle: two of them lie {nearest:.1f} degrees apart instead of {expected:.1f}{twins}"


def _about_random_points(report: SphereReport) -> Iterator[str]:
    cones, pixels = report.cones, report.angles.pixels
    if cones.random_in_cones < COVERED:
        yield (
            f"random points decode where training hardly was: {cones.random_in_cones:.1%} of them lie within the "
            f"training noise of {cones.max_angle:.0f} degrees around some latent of the {cones.count} images; the "
            f"nearest is {spread(cones.random_to_data).median:.1f} degrees away."
        )
    if pixels.mean[-1] < VARIED * pixels.unrelated:
        yield (
            f"a turn of 90 degrees changes an image by {pixels.mean[-1] / pixels.unrelated:.0%} of the difference of "
            "two real images: the decoder averages at large angles, and one-step samples look alike or blurred."
        )
    if pixels.half_angle is not None and pixels.half_angle < BRITTLE:
        yield (
            f"half of all change of an image happens within {pixels.half_angle:.0f} degrees: its latent says little "
            "to points beyond."
        )
    samples, data = spread(cones.samples_to_data).median, spread(cones.data_to_data).median
    if samples > data + STRAYED:
        yield (
            f"latents of one-step samples stray from those of data: {samples:.1f} degrees to the nearest, where "
            f"images of data have {data:.1f} to one another."
        )
    if samples < COPIED * data:
        yield (
            f"one-step samples sit on single images: their latents lie {samples:.1f} degrees from the nearest one of "
            f"data, where images of data have {data:.1f} to one another."
        )


def _about_loop(report: SphereReport) -> Iterator[str]:
    for study in report.loops:
        angle, ratio = study.apart[0], study.contraction[0]
        kind = "random points" if study.start == "random" else "latents of data"
        if ratio > EXPANDING:
            yield (
                f"the loop of decoding and encoding drives {kind} apart: two of them {angle:g} degrees apart are "
                f"{ratio * angle:.1f} after one pass."
            )
    denoising = report.denoising
    if denoising.after[0] > RETURNED:
        yield (
            f"the encoder does not know the decoder's images again: a clean latent of data comes back "
            f"{denoising.after[0]:.0f} degrees away."
        )
    at = denoising.noise.index(min(denoising.noise, key=lambda angle: abs(angle - report.cones.max_angle)))
    if denoising.after[at] > KEPT * denoising.before[at]:
        yield (
            f"one pass takes little noise away: a latent {denoising.before[at]:.0f} degrees off is "
            f"{denoising.after[at]:.0f} degrees off afterwards."
        )
