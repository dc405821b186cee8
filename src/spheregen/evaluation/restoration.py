"""Restoration measured: degraded held-out images, what the model and simple means make of them, side by side.

The tasks are those that the literature takes (SP3, arXiv 2606.16396; method.md, section 5). Deviations of noise are on
the scale of images in [-1, 1], twice that of pixels in [0, 1]; noise comes after the operator, on hidden pixels too.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from spheregen import restoration
from spheregen.data.grids import to_uint8
from spheregen.devices import choose_device, own_defaults
from spheregen.errors import ConfigError, did_you_mean
from spheregen.evaluation.images import RealImages, find_held_out, open_real, take
from spheregen.measure.features import FeatureExtractor, load_extractors
from spheregen.measure.fidelity import SSIM_WINDOW, find_lpips, psnr, ssim
from spheregen.measure.metrics import frechet_distance, gaussian, kernel_distance
from spheregen.pipeline import Pipeline
from spheregen.pipeline.tasks import degrade
from spheregen.restoration import Mask, Operator, Subsample


@dataclass(frozen=True)
class Task:
    """A degradation of images of any size."""

    operator: Callable[[int], Operator]
    """By the side S of the images."""
    noise: float
    """Deviation, on [-1, 1]."""


def _blur(size: int) -> Operator:
    return restoration.Blur(restoration.gaussian_kernel(3.0 if size >= 256 else 1.0, 61))


TASKS: Mapping[str, Task] = MappingProxyType(
    {
        "box": Task(lambda size: restoration.Mask(restoration.box_mask(size)), 0.05),
        "brush": Task(lambda size: restoration.Mask(restoration.brush_mask(size)), 0.05),
        "random": Task(lambda size: restoration.Mask(restoration.random_mask(size)), 0.01),
        "denoise": Task(lambda size: restoration.Denoise(), 0.2),
        "superres": Task(lambda size: restoration.Subsample(4 if size >= 256 else 2), 0.05),
        "deblur": Task(_blur, 0.05),
    }
)
SEED = 0
CHOICES = (*TASKS, "sp3", "all")


def choose_tasks(names: Sequence[str]) -> tuple[str, ...]:
    """Return the tasks of these names, in their order; `sp3` and `all` are all six."""
    for name in names:
        if name not in CHOICES:
            raise ConfigError(f"unknown task {name!r}{did_you_mean(name, CHOICES)}; use {', '.join(CHOICES)}")
    return tuple(TASKS) if {"sp3", "all"} & {*names} else tuple(name for name in TASKS if name in names)


@own_defaults()
def evaluate_restoration(
    model: str,
    data: str,
    tasks: Sequence[str],
    *,
    split: str = "train",
    held_out: str | None = None,
    count: int = 200,
    seed: int = SEED,
    features: str = "own",
    device: str = "auto",
    told: Callable[[dict[str, Any]], object] = lambda row: None,
) -> dict[str, Any]:
    """Degrade held-out images, restore them, and measure the results beside those of simple means.

    Args:
        model: a folder, a bundled model or a Hub id.
        data: its images.
        tasks: some of `TASKS`, or `sp3` for all.
        split: what the model was trained on: gives the Wiener filter its spectrum.
        held_out: the part that the model never saw; None: test or val.
        count: images, evenly spread over it.
        seed: of the noise.
        features: the network of the Frechet distance and KID, between the results and the images themselves.
        told: of each row of figures as it is measured.

    Returns:
        Plain values: `rows`, one for each task and method, and the protocol.

    Raises:
        SphereGenError: bad input of any kind.
    """
    chosen = choose_tasks(tasks)
    if count < 2:
        raise ConfigError(f"a distance needs at least 2 images, not {count}")
    pipe = Pipeline.from_pretrained(model, device=device, progress=False, quiet=True)
    names, geometry = pipe.info.class_names, pipe.image_options
    train = open_real(data, split, geometry, class_names=names)
    if held_out is None:
        unseen = find_held_out(data, split, geometry, names)
    else:
        unseen = open_real(data, held_out, geometry, class_names=names)
    if unseen is None:
        raise ConfigError(f"{data} has no split test or val; name what the model never saw by --held-out")
    x = _some(unseen, count)
    extractor = load_extractors([features], choose_device(device))[features]
    simple = _Simple(_some(train, 500))
    measure = _Measure(extractor, x)
    rows: list[dict[str, Any]] = []
    for name in chosen:
        task = TASKS[name]
        operator = task.operator(geometry.image_size).to(torch.float32)
        given = degrade(x, operator, task.noise / 2, seed)
        y = 2 * given - operator.A(torch.ones_like(x))
        for method, images in simple.restored(y, operator, task.noise).items():
            rows.append({"task": name, "method": method, **measure(images, operator, y, task.noise)})
            told(rows[-1])
        begun = time.monotonic()
        made = pipe.restore(given, operator, noise=task.noise / 2, seed=seed)
        spent = (time.monotonic() - begun) / len(x)
        figures = measure(2 * made.tensor - 1, operator, y, task.noise)
        rows.append({"task": name, "method": "model", **figures, "seconds_per_image": spent})
        told(rows[-1])
    protocol = {
        "noise": {name: TASKS[name].noise for name in chosen},
        "noise_scale": "images in [-1, 1]",
        "count": len(x),
        "split": unseen.source.split,
        "image_size": geometry.image_size,
        "seed": seed,
        "features": extractor.info.name,
        "compared_with": "the images themselves",
        "device": str(pipe.device),
    }
    return {"model": model, "fingerprint": pipe.identity, "protocol": protocol, "rows": rows}


def _some(images: RealImages, count: int) -> Tensor:
    some = RealImages(images.source, images.options, limit=min(count, len(images)))
    return take(some, len(some)).float() / 255


class _Simple:
    """What needs no model: filled or bicubic starts, a Wiener filter, total variation, a median.

    Args:
        x: images (B, C, S, S) in [0, 1], whose mean and spectrum the Wiener filter has.
    """

    def __init__(self, x: Tensor) -> None:
        moved = 2 * x - 1
        self.mean = moved.mean((0, 2, 3), keepdim=True)
        size = x.shape[-1] * x.shape[-2]
        self.gain = torch.fft.rfft2(moved - self.mean).abs().square().mean((0, 1)).div(size).sqrt().clamp_min(1e-3)

    def restored(self, y: Tensor, operator: Operator, noise: float) -> dict[str, Tensor]:
        start = operator.init(y)
        name = "fill" if isinstance(operator, Mask) else "bicubic" if isinstance(operator, Subsample) else "as it is"
        found = {name: start, "total variation": total_variation(start, noise)}
        if not isinstance(operator, Mask):
            found["wiener"] = operator.prox(self.mean.expand_as(start), y, noise**2, self.gain)
        if isinstance(operator, restoration.Denoise):
            found["median"] = _median(y)
        return found


def total_variation(y: Tensor, noise: float, iterations: int = 60) -> Tensor:
    """Return images (B, C, H, W) of less total variation, by a weight of 1.2 deviations of their noise.

    Source: Chambolle 2004, "An Algorithm for Total Variation Minimization and Applications".
    """
    weight = 1.2 * max(noise, 1e-3)
    rows, columns = torch.zeros_like(y), torch.zeros_like(y)

    def divergence() -> Tensor:
        down = rows.clone()
        down[..., 1:, :] -= rows[..., :-1, :]
        right = columns.clone()
        right[..., 1:] -= columns[..., :-1]
        return down + right

    for _ in range(iterations):
        u = divergence() - y / weight
        down = functional.pad(u.diff(dim=-2), (0, 0, 0, 1))
        right = functional.pad(u.diff(dim=-1), (0, 1))
        length = 1 + 0.125 * (down.square() + right.square()).sqrt()
        rows, columns = (rows + 0.125 * down) / length, (columns + 0.125 * right) / length
    return y - weight * divergence()


def _median(y: Tensor) -> Tensor:
    """Return the median of 3 x 3 pixels."""
    wide = functional.pad(y, (1, 1, 1, 1), mode="reflect")
    return wide.unfold(-2, 3, 1).unfold(-2, 3, 1).flatten(-2).median(-1).values


class _Measure:
    """Figures of restored images (B, C, S, S) in [-1, 1] beside the images themselves, in [0, 1]."""

    def __init__(self, extractor: FeatureExtractor, x: Tensor) -> None:
        self.extractor, self.x, self.lpips = extractor, x, find_lpips()
        self.real = self._features(x)

    def _features(self, images: Tensor) -> Tensor:
        return torch.cat([self.extractor(to_uint8(part)).features for part in images.split(64)]).double().cpu()

    def __call__(self, images: Tensor, operator: Operator, y: Tensor, noise: float) -> dict[str, float]:
        bounded = images.clamp(-1, 1)
        shown = (bounded + 1) / 2
        features = self._features(shown)
        found = {"psnr": float(psnr(shown, self.x).mean())}
        if self.x.shape[-1] >= SSIM_WINDOW:
            found["ssim"] = float(ssim(shown, self.x).mean())
        if self.lpips is not None:
            found["lpips"] = float(self.lpips(shown, self.x).mean())
        apart = (operator.A(bounded) - y).square().flatten(1).mean(1).sqrt().mean()
        return {
            **found,
            "frechet": frechet_distance(gaussian(features), gaussian(self.real)),
            "kid": kernel_distance(features, self.real, size=min(1000, len(features))).value,
            "residual": float(apart) / noise,
        }
