"""Is a model's latent space what the method promises?

The promise: data fill the sphere evenly, so that a random point decodes to an image; the image depends on the point up
to 90 degrees (Sphere Encoder 2, arXiv 2610.02208); and a pass through decoder and encoder takes noise away. Each study
measures one part of it.

Legend: n images, C channels, S image size, latents (n, *latent_shape) of L numbers, A angles. Angles in degrees.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from spheregen.batching import images_at_once, in_batches
from spheregen.data.grids import to_uint8
from spheregen.errors import DataError
from spheregen.evaluation.sphere.points import nearest_angles, point_figures, spread
from spheregen.family.terms import to_unit
from spheregen.measure.features import FeatureExtractor
from spheregen.protocol import SphereGenerator
from spheregen.sphere import angle_between, rotate

ANGLES = tuple(float(angle) for angle in range(0, 95, 5))
APART = (2.0, 5.0, 10.0, 20.0, 40.0)
PASSES = 8
_SHOWN = 6  # latents in the strip of images
_AT_ONCE = 64  # images in one pass through the feature network


@dataclass(frozen=True, kw_only=True)
class StudySizes:
    """Numbers of images and points that are looked at. More takes longer and says it more exactly."""

    images: int = 2000
    """Images at most whose latents are compared with one another; of more a random choice."""
    turned: int = 64
    """Latents that are turned by angles up to 90 degrees."""
    looped: int = 128
    """Random points, and latents of data, that are sent around the loop."""
    random: int = 1000
    """Random points that are compared with the latents of data."""
    unrelated: int = 256
    """Real images between which distances are measured for comparison."""


@torch.no_grad()
def study_sphere(
    model: SphereGenerator,
    images: Tensor,
    labels: Tensor | None,
    *,
    device: torch.device | str = "cpu",
    extractor: FeatureExtractor | None = None,
    seed: int = 0,
    sizes: StudySizes | None = None,
) -> tuple[dict[str, Any], Tensor]:
    """Study the latent space of a model.

    Args:
        model: any generator of the family, in evaluation mode.
        images: (n, C, S, S) uint8 images of data of the model's shape; a few thousand, better held-out ones.
        labels: (n,) their classes, or None.
        device: where the model is.
        extractor: a feature network, for a second distance between images; it takes 8-bit images from the CPU.
        seed: of all random draws: the same call gives the same findings.
        sizes: how much is looked at.

    Returns:
        Plain values, for JSON. `latents`: `point_figures` by condition (`latents`, or `null class` and, where labels
        are known to a conditional model, `own class`); the other studies start from the last one, `main`. `uniform`:
        those of as many uniform points. `angles`, `loop`, `denoising`, `cones`: see the functions below. And
        (rows, A, C, S, S) uint8: some latents of data on their way to 90 degrees.

    Raises:
        DataError: labels that the model does not know, or fewer than two different images.
    """
    sizes = sizes or StudySizes()
    if labels is not None and model.num_classes and not 0 <= int(labels.min()) <= int(labels.max()) < model.num_classes:
        raise DataError(
            f"labels lie between {int(labels.min())} and {int(labels.max())}, but the model has the classes 0 to "
            f"{model.num_classes - 1}; number the data's classes as in its training, or leave the labels out"
        )
    first = {image.numpy().tobytes(): place for place, image in reversed(list(enumerate(images.cpu())))}
    chosen = torch.tensor(sorted(first.values()), dtype=torch.int64)  # twins are no independent points
    distinct = len(chosen)
    if distinct < 2:
        raise DataError(f"{distinct} different images are too few to study a sphere; give two or more")
    duplicates = len(images) - distinct
    codec = Codec(model, torch.device(device), seed)
    chosen = chosen[torch.randperm(distinct, generator=codec.generator())][: sizes.images]
    images, labels = images[chosen], None if labels is None else labels[chosen].long().cpu()
    latents = {"null class" if model.num_classes else "latents": codec.encode(images, None)}
    if model.num_classes and labels is not None:
        latents["own class"] = codec.encode(images, labels)
    main, data = list(latents.items())[-1]
    own = labels if main == "own class" else None
    flat = data.flatten(1)
    random = model.prior.project(codec.noise(sizes.random)).to(data.dtype)
    classes = torch.arange(sizes.random) % model.num_classes if model.num_classes else None
    angles, strip = turn(codec, data[: sizes.turned], own, images[: sizes.unrelated], extractor)
    looped = slice(sizes.looped)
    own_looped = None if own is None else own[looped]
    return {
        "seed": seed,
        "on_sphere": bool(((flat.double().norm(dim=1) / flat.shape[1] ** 0.5 - 1).abs() < 0.01).all()),
        "duplicates": duplicates,
        "left_out": distinct - len(images),
        "main": main,
        "latents": {name: point_figures(each.flatten(1)) for name, each in latents.items()},
        "uniform": point_figures(codec.noise(len(images)).flatten(1)),
        "null_to_own_angle": _mean(angle_between(*latents.values())) if len(latents) > 1 else None,
        "angles": angles,
        "loop": {
            "random": loop(codec, random[looped], None if classes is None else classes[looped]),
            "data": loop(codec, data[looped], own_looped),
        },
        "denoising": denoise(codec, data[looped], own_looped),
        "cones": cones(codec, random, classes, flat),
    }, strip


class Codec:
    """E and D of a generator on its device, batch by batch; what goes in and comes out lies on the CPU."""

    def __init__(self, model: SphereGenerator, device: torch.device, seed: int = 0) -> None:
        self.model, self.device, self._seed, self._draws = model, device, seed, 0
        self._type = torch.float64 if model.dtype == torch.float64 else torch.float32

    def generator(self) -> torch.Generator:
        """Return a generator of random numbers of its own for each draw."""
        self._draws += 1
        return torch.Generator().manual_seed(1000 * self._seed + self._draws)

    def noise(self, count: int) -> Tensor:
        """Draw standard Gaussian rows (count, *latent_shape)."""
        return torch.randn(count, *self.model.latent_shape, generator=self.generator()).to(self._type)

    def encode(self, images: Tensor, labels: Tensor | None) -> Tensor:
        """Encode 8-bit images to points on the sphere."""
        return self._mapped(images, labels, lambda part, of: self.model.encode(part / 127.5 - 1, of))

    def decode(self, latents: Tensor, labels: Tensor | None) -> Tensor:
        """Decode points on the sphere to images in [0, 1]."""
        return self._mapped(latents, labels, lambda part, of: to_unit(self.model.decode(part, of)).clamp(0, 1))

    def around(self, latents: Tensor, labels: Tensor | None) -> Tensor:
        """Decode points and encode their images, E(D(v)), under the same labels."""
        return self._mapped(latents, labels, lambda part, of: self.model.encode(self.model.decode(part, of), of))

    @torch.no_grad()
    def _mapped(self, rows: Tensor, labels: Tensor | None, call: Callable[[Tensor, Tensor | None], Tensor]) -> Tensor:
        def run(part: slice) -> Tensor:
            of = None if labels is None else labels[part].to(self.device)
            return call(rows[part].to(self.device, self._type), of).to("cpu", self._type)

        size = images_at_once(self.model, self.device)
        return torch.cat([result for _, result in in_batches(len(rows), size, run)])


def turn(
    codec: Codec, latents: Tensor, labels: Tensor | None, real: Tensor, extractor: FeatureExtractor | None = None
) -> tuple[dict[str, Any], Tensor]:
    """Turn latents of data away from themselves, each in one random direction u: decode(rotate(v, u, a)).

    Args:
        real: (m, C, S, S) uint8 unrelated real images, m at least 2, to compare distances with.

    Returns:
        Plain values: `count`, `angles`, and for `pixels` (root mean square on [0, 1]) and `features` (Euclidean; None
        without a network) the `mean` and `std` over the latents of the distance to the image at 0 degrees, the mean
        distance between two `unrelated` real images, and the `half_angle` where the mean first reaches half of its
        value at 90 degrees. And the strip (rows, A, C, S, S) uint8 of some images.
    """
    directions = codec.noise(len(latents))
    turned = [codec.decode(rotate(latents, directions, angle), labels) for angle in ANGLES[1:]]
    images = [codec.decode(latents, labels), *turned]
    eight_bit = [to_uint8(each) for each in images]
    answer: dict[str, Any] = {"count": len(latents), "angles": list(ANGLES)}
    answer["pixels"] = _curve([each.double() for each in images], real.double() / 255, rms=True)
    answer["features"] = None
    if extractor is not None:
        seen = [_features(extractor, each) for each in (*eight_bit, real)]
        answer["features"] = _curve(seen[:-1], seen[-1], rms=False)
    return answer, torch.stack([each[:_SHOWN] for each in eight_bit], dim=1)


def loop(codec: Codec, latents: Tensor, labels: Tensor | None) -> dict[str, Any]:
    """Send points around the loop, v -> E(D(v)), again and again, and in pairs.

    Returns:
        Plain values: `drift`, the mean angle of each of the passes; `from_start`, from the start to where each ends;
        `apart`, angles between the two points of a pair, and `contraction`, the mean angle after one pass over that
        angle: below 1 the loop contracts.
    """
    path = [latents]
    for _ in range(PASSES):
        path.append(codec.around(path[-1], labels))
    directions = codec.noise(len(latents))
    others = [codec.around(rotate(latents, directions, angle), labels) for angle in APART]
    return {
        "count": len(latents),
        "drift": [_mean(angle_between(path[k], path[k + 1])) for k in range(PASSES)],
        "from_start": [_mean(angle_between(latents, later)) for later in path[1:]],
        "apart": list(APART),
        "contraction": [
            _mean(angle_between(path[1], other)) / angle for other, angle in zip(others, APART, strict=True)
        ],
    }


def denoise(codec: Codec, latents: Tensor, labels: Tensor | None) -> dict[str, Any]:
    """Add noise to latents of data, up to what training knew and beyond, and send them around the loop once.

    Returns:
        Plain values: the angles of the `noise`, and the mean angles to the clean latents `before` and `after` the pass.
    """
    noise = codec.noise(len(latents))
    largest = round(codec.model.alpha_max, 6)
    angles = [*(float(angle) for angle in range(0, 90, 10) if angle < largest - 1), largest]
    angles += [angle for angle in (85.0, 89.0) if angle > largest + 1]
    noisy = [codec.model.prior.perturb(latents, noise, math.radians(min(angle, 89.99))) for angle in angles]
    return {
        "noise": angles,
        "before": [_mean(angle_between(each, latents)) for each in noisy],
        "after": [_mean(angle_between(codec.around(each, labels), latents)) for each in noisy],
    }


def cones(codec: Codec, random: Tensor, labels: Tensor | None, data: Tensor) -> dict[str, Any]:
    """Compare random points, and the latents E(D(random)) of one-step samples, with latents of data (n, L).

    Training shows the decoder points within about `max_angle` of some latent of the data; generation starts from random
    points, which in high L lie near 90 degrees from every latent.

    Returns:
        Plain values: `max_angle` of the training noise; by kind of points the angles to the nearest latent of data
        (`random_to_data`, `samples_to_data`, `data_to_data`, see `spread`), and the shares within `max_angle`
        (`random_in_cones`, ...).
    """
    samples = codec.around(random, labels).flatten(1)
    nearest = {
        "random": nearest_angles(random.flatten(1), data),
        "samples": nearest_angles(samples, data),
        "data": nearest_angles(data),
    }
    return {
        "max_angle": codec.model.alpha_max,
        "count": len(data),
        **{f"{name}_to_data": spread(angles) for name, angles in nearest.items()},
        **{f"{name}_in_cones": _mean(angles <= codec.model.alpha_max) for name, angles in nearest.items()},
    }


def _curve(values: Sequence[Tensor], real: Tensor, *, rms: bool) -> dict[str, Any]:
    """How far values (n, ...) at each angle are from those at the first, and those of real images from one another."""

    def distance(a: Tensor, b: Tensor) -> Tensor:
        squares = (a - b).square().flatten(1)
        return (squares.mean(1) if rms else squares.sum(1)).sqrt()

    distances = [distance(each, values[0]) for each in values]
    mean = [_mean(each) for each in distances]
    half, half_angle = mean[-1] / 2, None
    for place in range(1, len(mean) if half > 0 else 0):
        low, high = mean[place - 1], mean[place]
        if high >= half:  # straight between the points
            share = max(0.0, (half - low) / (high - low)) if high > low else 0.0
            half_angle = ANGLES[place - 1] + share * (ANGLES[place] - ANGLES[place - 1])
            break
    return {
        "mean": mean,
        "std": [float(each.std(correction=0)) for each in distances],
        "unrelated": _mean(distance(real, real.roll(1, dims=0))),
        "half_angle": half_angle,
    }


def _features(extractor: FeatureExtractor, images: Tensor) -> Tensor:
    return torch.cat([extractor(part).features.cpu().double() for part in images.split(_AT_ONCE)])


def _mean(values: Tensor) -> float:
    return float(values.double().mean())
