"""Is a model's latent space what the method promises?

The promise: data fill the sphere evenly, so that a random point decodes to an image; the image depends on the point up
to 90 degrees (Sphere Encoder 2, arXiv 2610.02208); and a pass through decoder and encoder takes noise away. Each study
measures one part of it.

Legend: n images or points, C channels, S image size, latents (n, *latent_shape) of L numbers, A angles. Angles in
degrees.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from spheregen.batching import images_at_once, in_batches
from spheregen.data.grids import to_uint8
from spheregen.errors import DataError
from spheregen.family.terms import to_unit
from spheregen.measure.features import FeatureExtractor
from spheregen.protocol import SphereGenerator
from spheregen.sphere import angle_between, rotate

ANGLES = tuple(float(angle) for angle in range(0, 95, 5))
APART = (2.0, 5.0, 10.0, 20.0, 40.0)
PASSES = 8
TURNED, LOOPED, RANDOM, UNRELATED = 64, 128, 1000, 256
"""Latents that are turned; points that are sent around the loop; random points that are compared with latents of data;
real images between which distances are measured for comparison."""
_SHOWN = 6  # latents in the strip of images
_AT_ONCE = 64  # images in one pass through the feature network
_BINS = 60


@torch.no_grad()
def study_sphere(
    model: SphereGenerator,
    images: Tensor,
    labels: Tensor | None,
    *,
    device: torch.device | str = "cpu",
    extractor: FeatureExtractor | None = None,
    seed: int = 0,
) -> tuple[dict[str, Any], Tensor]:
    """Study the latent space of a model.

    Args:
        model: any generator of the family, in evaluation mode.
        images: (n, C, S, S) uint8 images of data of the model's shape; a few thousand, better held-out ones.
        labels: (n,) their classes, or None.
        device: where the model is.
        extractor: a feature network, for a second distance between images; it takes 8-bit images from the CPU.
        seed: of all random draws: the same call gives the same findings.

    Returns:
        Plain values, for JSON. `latents`: `point_figures` by condition (`latents`, or `null class` and, where labels
        are known to a conditional model, `own class`); the other studies start from the last one, `main`. `uniform`:
        those of as many uniform points. `angles`, `loop`, `denoising`, `cones`: see the functions below. And
        (rows, A, C, S, S) uint8: some latents of data on their way to 90 degrees.

    Raises:
        DataError: labels that the model does not know, or fewer than two different images.
    """
    if labels is not None and model.num_classes and not 0 <= int(labels.min()) <= int(labels.max()) < model.num_classes:
        raise DataError(
            f"labels lie between {int(labels.min())} and {int(labels.max())}, but the model has the classes 0 to "
            f"{model.num_classes - 1}; number the data's classes as in its training, or leave the labels out"
        )
    first = {image.numpy().tobytes(): place for place, image in reversed(list(enumerate(images.cpu())))}
    chosen = torch.tensor(sorted(first.values()), dtype=torch.int64)  # twins are no independent points
    if len(chosen) < 2:
        raise DataError(f"{len(chosen)} different images are too few to study a sphere; give two or more")
    codec = Codec(model, torch.device(device), seed)
    chosen = chosen[torch.randperm(len(chosen), generator=codec.generator())]
    duplicates = len(images) - len(chosen)
    images, labels = images[chosen], None if labels is None else labels[chosen].long().cpu()
    latents = {"null class" if model.num_classes else "latents": codec.encode(images, None)}
    if model.num_classes and labels is not None:
        latents["own class"] = codec.encode(images, labels)
    main, data = list(latents.items())[-1]
    own = labels if main == "own class" else None
    flat = data.flatten(1)
    random = model.prior.project(codec.noise(RANDOM))
    classes = torch.arange(RANDOM) % model.num_classes if model.num_classes else None
    angles, strip = turn(codec, data[:TURNED], own, images[:UNRELATED], extractor)
    own_looped = None if own is None else own[:LOOPED]
    return {
        "seed": seed,
        "on_sphere": bool(((flat.double().norm(dim=1) / flat.shape[1] ** 0.5 - 1).abs() < 0.01).all()),
        "duplicates": duplicates,
        "main": main,
        "latents": {name: point_figures(each.flatten(1)) for name, each in latents.items()},
        "uniform": point_figures(codec.noise(len(images)).flatten(1)),
        "null_to_own_angle": _mean(angle_between(*latents.values())) if len(latents) > 1 else None,
        "angles": angles,
        "loop": {
            "random": loop(codec, random[:LOOPED], None if classes is None else classes[:LOOPED]),
            "data": loop(codec, data[:LOOPED], own_looped),
        },
        "denoising": denoise(codec, data[:LOOPED], own_looped),
        "cones": cones(codec, random, classes, flat),
    }, strip


class Codec:
    """E and D of a generator on its device, batch by batch; what goes in and comes out is float32 on the CPU."""

    def __init__(self, model: SphereGenerator, device: torch.device, seed: int = 0) -> None:
        self.model, self.device, self._seed, self._draws = model, device, seed, 0

    def generator(self) -> torch.Generator:
        """Return a generator of random numbers of its own for each draw."""
        self._draws += 1
        return torch.Generator("cpu").manual_seed((1000 * self._seed + self._draws) % 2**63)

    def noise(self, count: int) -> Tensor:
        """Draw standard Gaussian rows (count, *latent_shape)."""
        return torch.randn(count, *self.model.latent_shape, generator=self.generator())

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
            return call(rows[part].to(self.device, torch.float32), of).to("cpu", torch.float32)

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
    features = None
    if extractor is not None:
        seen = [
            torch.cat([extractor(part).features.cpu().double() for part in each.split(_AT_ONCE)])
            for each in (*eight_bit, real)
        ]
        features = _curve(seen[:-1], seen[-1], rms=False)
    pixels = _curve([each.double() for each in images], real.double() / 255, rms=True)
    answer = {"count": len(latents), "angles": list(ANGLES), "pixels": pixels, "features": features}
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
    nearest = {
        "random": nearest_angles(random.flatten(1), data),
        "samples": nearest_angles(codec.around(random, labels).flatten(1), data),
        "data": nearest_angles(data),
    }
    return {
        "max_angle": codec.model.alpha_max,
        "count": len(data),
        **{f"{name}_to_data": spread(angles) for name, angles in nearest.items()},
        **{f"{name}_in_cones": _mean(angles <= codec.model.alpha_max) for name, angles in nearest.items()},
    }


# --- Sets of points -----------------------------------------------------------------------------------------------


@torch.no_grad()
def point_figures(points: Tensor) -> dict[str, Any]:
    """Measure how evenly points (n, L) fill the sphere; only their directions count. Memory grows with n^2.

    Returns:
        Plain values. `count`, `dim`: n and L. `mean_angle`, `angle_std`: of all pairs; 90 and about 57.3 / sqrt(L) for
        uniform points. `resultant`: length of the mean of the unit vectors, 0 balanced, 1 all the same; about
        1 / sqrt(n) for uniform points. `effective_dimension`: 1 / mean squared cosine of all pairs; L for uniform
        points. `histogram`: of the angles of all pairs, the middles of bins (`angles`) and the `density`. `nearest`:
        the angle to the nearest other point, see `spread`.
    """
    unit = unit_points(points)
    count, dim = unit.shape
    cosine = (unit @ unit.T).clamp_(-1, 1)
    pairs = cosine[tuple(torch.triu_indices(count, count, 1))]
    angles = torch.rad2deg(torch.acos(pairs))
    low = float(angles.min())
    width = max((float(angles.max()) - low) / _BINS, 0.1)
    density = torch.histc(angles, _BINS, low, low + _BINS * width) / (len(angles) * width)
    return {
        "count": count,
        "dim": dim,
        "mean_angle": float(angles.mean()),
        "angle_std": float(angles.std(correction=0)),
        "resultant": float(unit.mean(dim=0).norm()),
        "effective_dimension": 1 / max(float(pairs.square().mean()), 1e-300),
        "histogram": {
            "angles": (low + width * (torch.arange(_BINS, dtype=torch.float64) + 0.5)).tolist(),
            "density": density.tolist(),
        },
        "nearest": spread(nearest_angles(unit)),
    }


def nearest_angles(points: Tensor, reference: Tensor | None = None) -> Tensor:
    """Return the angle from each point (n, L) to the nearest of `reference` (m, L), or other point, (n,) float64."""
    unit = unit_points(points)
    other = unit if reference is None else unit_points(reference)
    cosine = unit @ other.T
    if reference is None:
        cosine.fill_diagonal_(-2)
    chord = (unit - other[cosine.argmax(dim=1)]).norm(dim=1)  # acos of the cosine loses digits near 0
    return torch.rad2deg(2 * torch.asin((chord / 2).clamp_max(1)))


def spread(angles: Tensor) -> dict[str, float]:
    """Return the distribution of angles (n,): mean, least, p5, median, p95, largest."""
    levels = {"least": 0.0, "p5": 0.05, "median": 0.5, "p95": 0.95, "largest": 1.0}
    found = torch.quantile(angles.double(), torch.tensor(list(levels.values()), dtype=torch.float64))
    return {"mean": _mean(angles), **dict(zip(levels, found.tolist(), strict=True))}


def unit_points(points: Tensor) -> Tensor:
    """Return points (n, L) as unit vectors, float64 on the CPU."""
    wide = points.detach().cpu().double()
    norm = wide.norm(dim=1, keepdim=True)
    if len(bad := (~(torch.isfinite(norm) & (norm > 0))).nonzero()):
        raise DataError(f"point {int(bad[0, 0])} has no direction: its numbers are not finite or all zero")
    unit: Tensor = wide / norm
    return unit


def _curve(values: Sequence[Tensor], real: Tensor, *, rms: bool) -> dict[str, Any]:
    """How far values (n, ...) at each angle are from those at the first, and those of real images from one another."""

    def distance(a: Tensor, b: Tensor) -> Tensor:
        squares = (a - b).square().flatten(1)
        return (squares.mean(1) if rms else squares.sum(1)).sqrt()

    distances = [distance(each, values[0]) for each in values]
    mean = [_mean(each) for each in distances]
    half, half_angle = mean[-1] / 2, None
    if half > 0:
        place = next(place for place, value in enumerate(mean) if value >= half)
        share = (half - mean[place - 1]) / (mean[place] - mean[place - 1])  # straight between the points
        half_angle = ANGLES[place - 1] + share * (ANGLES[place] - ANGLES[place - 1])
    return {
        "mean": mean,
        "std": [float(each.std(correction=0)) for each in distances],
        "unrelated": _mean(distance(real, real.roll(1, dims=0))),
        "half_angle": half_angle,
    }


def _mean(values: Tensor) -> float:
    return float(values.double().mean())
