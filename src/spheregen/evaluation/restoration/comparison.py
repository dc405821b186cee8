"""A model's restorations beside those of simple means, on the same degraded images."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from spheregen import restoration
from spheregen.data.grids import to_uint8
from spheregen.devices import choose_device, own_defaults
from spheregen.errors import ConfigError
from spheregen.evaluation.images import RealImages, find_held_out, open_real, take
from spheregen.evaluation.restoration.baselines import SimpleMeans
from spheregen.evaluation.restoration.tasks import NOISE_SCALE, TASKS, choose_tasks, tasks_of
from spheregen.measure.features import FeatureExtractor, load_extractors
from spheregen.measure.fidelity import SSIM_WINDOW, find_lpips, psnr, ssim
from spheregen.measure.metrics import frechet_distance, gaussian, kernel_distance
from spheregen.measure.timing import seconds_in_turns
from spheregen.pipeline import Pipeline
from spheregen.pipeline.tasks import degrade
from spheregen.restoration import Operator
from spheregen.sampling.loop import reconstruct
from spheregen.sampling.restoration.solver import ANGLE

SEED = 0
LEARNED = 500
"""Training images that give the Wiener filter its spectrum."""
TIMED = 16
"""Images of a batch whose steps are timed."""
Told = Callable[[dict[str, Any]], object]


@own_defaults()
def evaluate_restoration(
    model: str,
    data: str,
    tasks: Sequence[str],
    *,
    protocol: str | None = None,
    split: str = "train",
    held_out: str | None = None,
    count: int = 200,
    seed: int = SEED,
    features: str = "own",
    device: str = "auto",
    told: Told = lambda row: None,
) -> dict[str, Any]:
    """Degrade held-out images, restore them, and measure the results beside those of simple means.

    Args:
        model: a folder, a bundled model or a Hub id.
        data: its images.
        tasks: some of `TASKS`, or `all`.
        protocol: one of `PROTOCOLS`, whose tasks are meant; None: any.
        split: the part that the model was trained on.
        held_out: the part that the model never saw; None: test or val.
        count: images, evenly spread over it.
        seed: of the noise.
        features: the network of the Frechet distance and KID, between the results and the images themselves.
        told: of each row of figures as it is measured.

    Returns:
        Plain values: `rows`, one for each task and method, and the `protocol`.

    Raises:
        SphereGenError: bad input of any kind.
    """
    pipe = Pipeline.from_pretrained(model, device=device, progress=False, quiet=True)
    chosen = choose_tasks(tasks, pipe.model.image_shape[0], tasks_of(protocol))
    geometry, names = pipe.image_options, pipe.info.class_names
    train = open_real(data, split, geometry, class_names=names)
    if held_out is None:
        unseen = find_held_out(data, split, geometry, names)
    else:
        unseen = open_real(data, held_out, geometry, class_names=names)
    if unseen is None:
        raise ConfigError(f"{data} has no split test or val; name what the model never saw by --held-out")
    x = some_images(unseen, count)
    extractor = load_extractors([features], choose_device(device))[features]
    rows = compare(pipe, x, some_images(train, LEARNED), extractor, chosen, seed=seed, told=told)
    about = {
        "name": protocol,
        "noise": {name: TASKS[name].noise for name in chosen},
        "noise_scale": NOISE_SCALE,
        "count": len(x),
        "split": unseen.source.split,
        "image_size": geometry.image_size,
        "seed": seed,
        "features": extractor.info.name,
        "compared_with": "the images themselves",
        "device": str(pipe.device),
    }
    return {"model": model, "fingerprint": pipe.identity, "protocol": about, "rows": rows}


def some_images(images: RealImages, count: int) -> Tensor:
    """Return (B, C, S, S) images in [0, 1], evenly spread over a set."""
    some = RealImages(images.source, images.options, limit=min(count, len(images)))
    return take(some, len(some)).float() / 255


def compare(
    pipe: Pipeline,
    x: Tensor,
    learned: Tensor,
    extractor: FeatureExtractor,
    tasks: Sequence[str],
    *,
    seed: int = SEED,
    told: Told = lambda row: None,
) -> list[dict[str, Any]]:
    """Return figures of each task and method, the model's by the defaults that were recorded with it.

    Args:
        x: images (B, C, S, S) in [0, 1] to degrade.
        learned: others, which the Wiener filter learns from.

    Returns:
        Rows of plain values: `task`, `method` (`model` is the last one of a task), PSNR and the like, `residual` over
        the noise; of the model `seconds_per_image` and `step_cost`, see `step_cost`.
    """
    if len(x) < 2:
        raise ConfigError(f"a distance needs at least 2 images, not {len(x)}")
    simple, measure, rows = SimpleMeans(learned), Measure(extractor, x), []
    for name in tasks:
        noise = TASKS[name].noise
        problem = degraded(name, x, seed)
        for method, images in simple.restored(problem.y, problem.operator, noise).items():
            rows.append({"task": name, "method": method, **measure(images, problem.operator, problem.y, noise)})
            told(rows[-1])
        begun = time.monotonic()
        made = pipe.restore(problem.given, problem.operator, noise=noise / 2, seed=seed)
        spent = (time.monotonic() - begun) / len(x)
        figures: dict[str, Any] = measure(2 * made.tensor - 1, problem.operator, problem.y, noise)
        figures |= {"seconds_per_image": spent, "step_cost": step_cost(pipe, name, x[:TIMED])}
        rows.append({"task": name, "method": "model", **figures})
        told(rows[-1])
    return rows


@dataclass(frozen=True)
class Degraded:
    """Images of one task."""

    operator: Operator
    given: Tensor
    """Observations of images in [0, 1], as `Pipeline.restore` takes them."""
    y: Tensor
    """The same of images in [-1, 1]."""


def degraded(name: str, x: Tensor, seed: int) -> Degraded:
    """Return what a task makes of images in [0, 1]."""
    operator = TASKS[name].operator(x.shape[-1]).to(torch.float32)
    given = degrade(x, operator, TASKS[name].noise / 2, seed)
    shift = operator.A(torch.ones_like(x)) if operator.linear else 1
    return Degraded(operator, given, 2 * given - shift)


def step_cost(pipe: Pipeline, name: str, x: Tensor, repeats: int = 3) -> float:
    """Return the seconds of a step of a task over those of one encode, noise and one decode.

    Three of both are timed in one batch, the shortest of several times counts; on a busy machine that says little.
    """
    problem = degraded(name, x, SEED)
    images, y = (each.to(pipe.device) for each in (2 * x - 1, problem.y))
    operator, spectrum = problem.operator.to(pipe.device), pipe.info.restoration.get("spectrum", restoration.GENERIC)

    def steps(count: int) -> Callable[[], object]:
        noise = TASKS[name].noise
        return lambda: restoration.restore(pipe.model, y, operator, noise=noise, steps=count, spectrum=spectrum)

    def passes() -> None:
        for _ in range(3):
            reconstruct(pipe.model, images, None, ANGLE)

    first, later, plain = map(min, seconds_in_turns([steps(1), steps(4), passes], repeats, pipe.device))
    return max(later - first, 0) / plain


class Measure:
    """Figures of restored images (B, C, S, S) in [-1, 1] beside the images themselves, in [0, 1]."""

    def __init__(self, extractor: FeatureExtractor, x: Tensor) -> None:
        self.extractor, self.x, self.lpips = extractor, x, find_lpips()
        self.real = self.features(x)

    def features(self, images: Tensor) -> Tensor:
        """Return the features (B, F) of images in [0, 1]."""
        return torch.cat([self.extractor(to_uint8(part)).features for part in images.split(64)]).double().cpu()

    def frechet(self, features: Tensor) -> float:
        """Return the Frechet distance of features from those of the images themselves."""
        return frechet_distance(gaussian(features), gaussian(self.real))

    def __call__(self, images: Tensor, operator: Operator, y: Tensor, noise: float | Tensor) -> dict[str, float]:
        """Return PSNR (dB), SSIM, LPIPS where its weights are found, `frechet`, `kid`, and the `residual` over noise of
        this deviation."""
        bounded = images.clamp(-1, 1)
        shown = (bounded + 1) / 2
        features = self.features(shown)
        found = {"psnr": float(psnr(shown, self.x).mean())}
        if self.x.shape[-1] >= SSIM_WINDOW:
            found["ssim"] = float(ssim(shown, self.x).mean())
        if self.lpips is not None:
            found["lpips"] = float(self.lpips(shown, self.x).mean())
        found |= {
            "frechet": self.frechet(features),
            "kid": kernel_distance(features, self.real, size=min(1000, len(features))).value,
        }
        deviation = torch.as_tensor(noise)
        if bool(deviation.all()):
            found["residual"] = float((operator.residual(bounded, y) / deviation).mean())
        return found
