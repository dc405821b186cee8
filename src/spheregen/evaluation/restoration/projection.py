"""The projection curve: encode, noise, decode, again and again, with nothing to agree with.

A model whose passes make images more likely is a prior that restoration can lean on; one whose passes lead away from
images is none. Source: SP3 (arXiv 2606.16396), its study of the strength of the noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from spheregen.evaluation.restoration.comparison import SEED, Measure
from spheregen.measure.fidelity import psnr
from spheregen.pipeline import Pipeline
from spheregen.restoration import Denoise

ANGLES = (0.0, 15.0, 30.0, 45.0, 60.0)
"""Degrees of the noise of every pass."""
PASSES = (1, 2, 5, 10, 20)
"""After which images are measured."""
_ALONE = 1e9
"""Weight of the model's image beside which what it started from is nothing."""


def projection_curve(
    pipe: Pipeline,
    x: Tensor,
    measure: Measure,
    angles: Sequence[float] = ANGLES,
    passes: Sequence[int] = PASSES,
) -> dict[str, Any]:
    """Return how real images look after passes through the model at each angle of noise.

    Args:
        x: images (B, C, S, S) in [0, 1].
        measure: of these.
        passes: ascending.

    Returns:
        Plain values: `angles`, `passes`, and by angle the `frechet` distance from the images themselves and the mean
        `psnr` (dB) after each of the passes.
    """
    found: dict[str, Any] = {"angles": list(angles), "passes": list(passes), "frechet": [], "psnr": []}
    for angle in angles:
        how = {"angle": angle, "schedule": "fixed", "steps": passes[-1], "lam": _ALONE, "seed": SEED}
        made = pipe.restore(x, Denoise(), **how)  # type: ignore[arg-type]
        after = [made.trajectory[number - 1] for number in passes]
        found["frechet"].append([measure.frechet(measure.features(images)) for images in after])
        found["psnr"].append([float(psnr(images.to(torch.float32), x).mean()) for images in after])
    return found
