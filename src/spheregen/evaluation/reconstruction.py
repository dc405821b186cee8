"""How close a model brings real images back: PSNR, SSIM, LPIPS, and the Frechet distance (rFID with Inception)."""

from __future__ import annotations

import math
from typing import Any

import torch

from spheregen.data.grids import Rounding
from spheregen.evaluation.evaluate import Evaluator
from spheregen.evaluation.fidelity import find_lpips, psnr, ssim
from spheregen.evaluation.figures import figures
from spheregen.evaluation.images import RealImages, Reconstructions, chunk_of
from spheregen.evaluation.measure import Measured, measure
from spheregen.evaluation.reference import build_reference
from spheregen.pipeline import Pipeline

SMALLEST_SSIM = 11  # pixels: the side of its window


def reconstruction_figures(
    pipe: Pipeline, originals: Measured, evaluator: Evaluator, *, rounding: Rounding = "round"
) -> dict[str, Any]:
    """What becomes of measured real images, there and back under the null class, in 8 bits.

    Means over the images of PSNR (dB) and SSIM, and LPIPS where its weights are found; `frechet`: by network, between
    the images and their reconstructions. All processes call it together; empty on all but the first.
    """
    images = originals.images
    assert isinstance(images, RealImages)
    made = Reconstructions(pipe, images, rounding=rounding)
    world, reporter = evaluator.world, evaluator.reporter
    copies = measure(made, evaluator.extractors, evaluator.work, world=world, reporter=reporter)
    if not world.is_first:
        return {}
    distances = {}
    for name, extractor in evaluator.extractors.items():
        reference = build_reference(originals, name, extractor.info)
        distances[name] = figures(copies, reference, extractor.info, metrics=("frechet",)).values["frechet"]
    return {
        "count": len(images),
        "source": images.source.name,
        "split": images.source.split,
        **_fidelity(images, made),
        "frechet": distances,
    }


def _fidelity(images: RealImages, made: Reconstructions) -> dict[str, float | None]:
    lpips = find_lpips()
    size = chunk_of(images.shape)
    parts = [slice(start, min(start + size, len(images))) for start in range(0, len(images), size)]
    sums = {"psnr": 0.0, "ssim": 0.0, "lpips": 0.0}
    with torch.no_grad():
        for real, copy in zip(images.stream(parts), made.stream(parts), strict=True):
            x, y = real.float() / 255, copy.float() / 255
            sums["psnr"] += float(psnr(y, x).double().sum())
            sums["ssim"] += float(ssim(y, x).double().sum()) if images.shape[1] >= SMALLEST_SSIM else math.nan
            sums["lpips"] += float(lpips(y, x).double().sum()) if lpips is not None else math.nan
    return {name: None if math.isnan(total) else total / len(images) for name, total in sums.items()}
