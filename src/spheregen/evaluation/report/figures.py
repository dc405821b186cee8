"""The names of the figures of an evaluation, and which direction of each is better."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Better = Literal["lower", "higher"]


@dataclass(frozen=True)
class Figure:
    """One kind of figure."""

    key: str
    """Its name in `evaluation.json`."""
    title: str
    better: Better | None = None
    """None where neither direction is a merit, or we do not know the figure."""
    error: str | None = None
    """The key of its error in the same mapping."""


SAMPLE_FIGURES = (
    Figure("frechet", "Fréchet distance", "lower"),
    Figure("kid", "KID", "lower", "kid_error"),
    Figure("inception_score", "Inception Score", "higher", "inception_score_deviation"),
    Figure("class_score", "class score", "higher", "class_score_deviation"),
    Figure("precision", "precision", "higher"),
    Figure("recall", "recall", "higher"),
    Figure("density", "density", "higher"),
    Figure("coverage", "coverage", "higher"),
    Figure("cmmd", "CMMD", "lower"),
)
"""Of samples against a reference, by one feature network."""

RECONSTRUCTION_FIGURES = (
    Figure("psnr", "PSNR, dB", "higher"),
    Figure("ssim", "SSIM", "higher"),
    Figure("lpips", "LPIPS", "lower"),
)
"""Of images that were encoded and decoded, against the images."""

COST_FIGURES = (
    Figure("gflops", "GFLOPs per image", "lower"),
    Figure("counted_gflops", "GFLOPs per image, attention counted", "lower"),
    Figure("images_per_second", "images per second", "higher"),
    Figure("latency_p50", "latency p50, ms", "lower"),
    Figure("latency_p90", "latency p90, ms", "lower"),
    Figure("latency_p99", "latency p99, ms", "lower"),
    Figure("peak_memory_mb", "peak memory, MiB", "lower"),
)
"""Of generating in some number of steps."""


def figures_in(keys: Iterable[str], known: tuple[Figure, ...] = SAMPLE_FIGURES) -> list[Figure]:
    """Return the figures that occur in `keys`, the known ones first and in their order; errors are no figures."""
    present = dict.fromkeys(keys)
    errors = {figure.error for figure in known}
    names = {figure.key for figure in known}
    others = [Figure(key, key.replace("_", " ")) for key in present if key not in names and key not in errors]
    return [figure for figure in known if figure.key in present] + others
