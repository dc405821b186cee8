"""The sphere report: is a model's latent space what the method promises?

The promise: data fill the sphere evenly, so that a random point decodes to an image; the image depends on the point up
to 90 degrees; and a pass through decoder and encoder takes noise away. Each study measures one part of it.

Legend: n images, C channels, S image size, L numbers of a latent. Angles in degrees.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from spheregen.errors import DataError
from spheregen.evaluation.features.base import FeatureExtractor
from spheregen.evaluation.report.parts import Section
from spheregen.evaluation.sphere.angles import AngleStudy, angle_study
from spheregen.evaluation.sphere.codec import Codec, Starts, at_rest, gaussian, random_order
from spheregen.evaluation.sphere.cones import ConeStudy, cone_study, spread
from spheregen.evaluation.sphere.globe import globe_sheet
from spheregen.evaluation.sphere.latents import LatentFigures, latent_figures, name_of
from spheregen.evaluation.sphere.loop import DenoisingStudy, LoopStudy, denoising_study, loop_study
from spheregen.evaluation.sphere.spectrum import MOST, Spectrum, spectrum
from spheregen.models.protocol import SphereGenerator
from spheregen.prior import SpherePrior
from spheregen.sphere import angle_between

_ORDER, _UNIFORM, _RANDOM = 1, 2, 3  # streams of random draws


@dataclass(frozen=True, kw_only=True)
class StudySizes:
    """How much is looked at. More takes longer and says it more exactly."""

    images: int = 10_000
    """Images at most whose latents are compared with one another; of more a random choice."""
    turned: int = 64
    """Latents that are turned by angles up to 90 degrees."""
    looped: int = 128
    """Random points, and latents of data, that are sent around the loop."""
    random: int = 1000
    """Random points that are compared with the latents of data."""
    unrelated: int = 256
    """Real images between which distances are measured for comparison."""


@dataclass(frozen=True, kw_only=True)
class SphereReport:
    """What was found."""

    seed: int
    dim: int
    """L."""
    on_sphere: bool
    """Whether the model's prior is the sphere; of another one the directions are studied."""
    duplicates: int
    """Images that were left out because the same pixels had occurred before."""
    left_out: int
    """Images that were left out because there were more than enough."""
    latents: Mapping[str, LatentFigures]
    """By condition: `null class`, and `own class` where labels are known to a conditional model."""
    main: str
    """The condition whose latents the other studies start from."""
    null_to_own: float | None
    """The mean angle between the latents of an image under the null class and under its own."""
    uniform: Spectrum
    """Of as many uniform random points as the spectra of the latents have."""
    angles: AngleStudy
    loops: tuple[LoopStudy, LoopStudy]
    """From random points, and from latents of data."""
    denoising: DenoisingStudy
    cones: ConeStudy
    globes: Image.Image
    """The latents and uniform random points, in three of their directions."""

    def as_dict(self) -> dict[str, Any]:
        """All figures as plain values, for JSON."""
        return {
            "seed": self.seed,
            "dimensions": self.dim,
            "on_sphere": self.on_sphere,
            "duplicates": self.duplicates,
            "left_out": self.left_out,
            "main": self.main,
            "latents": {name: _latents_dict(figures) for name, figures in self.latents.items()},
            "null_to_own_angle": self.null_to_own,
            "angles": {
                "angles": list(self.angles.angles),
                "count": self.angles.count,
                "pixels": _plain(asdict(self.angles.pixels)),
                "features": None if self.angles.features is None else _plain(asdict(self.angles.features)),
            },
            "loop": {study.start: _plain(asdict(study)) for study in self.loops},
            "denoising": _plain(asdict(self.denoising)),
            "cones": {
                name: asdict(spread(value)) if isinstance(value, Tensor) else value
                for name, value in vars(self.cones).items()
            },
            "warnings": list(self.warnings()),
        }

    def warnings(self) -> tuple[str, ...]:
        """What speaks against the model, in plain words."""
        from spheregen.evaluation.sphere.words import warnings

        return warnings(self)

    def section(self) -> Section:
        """The report as a part of a page."""
        from spheregen.evaluation.sphere.page import section

        return section(self)


@torch.no_grad()
def sphere_report(
    model: SphereGenerator,
    images: Tensor,
    labels: Tensor | None,
    *,
    class_names: Sequence[str] = (),
    device: torch.device | str = "cpu",
    extractor: FeatureExtractor | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    sizes: StudySizes | None = None,
) -> SphereReport:
    """Study the latent space of a model.

    Args:
        model: any generator of the family, on `device`. For the time of the study it is put into evaluation mode.
        images: (n, C, S, S) uint8 images of data of the model's shape; a few thousand, better held-out ones.
        labels: (n,) their classes, or None.
        class_names: of the labels, for tables and colours.
        device: where the model is.
        extractor: a feature network, for a second distance between images; it takes 8-bit images from the CPU.
        batch_size: images in one pass through the networks; by default what fits into memory.
        seed: of all random draws: the same call gives the same report.
        sizes: how much is looked at.

    Raises:
        DataError: images or labels that do not fit the model, or fewer than two different images.
        ConfigError: an impossible batch size.
    """
    sizes = sizes or StudySizes()
    given = len(images)
    _check(model, images, labels)
    chosen = _distinct(images)
    duplicates = given - len(chosen)
    if len(chosen) < 2:
        raise DataError(f"{len(chosen)} different images are too few to study a sphere; give two or more")
    order = chosen[random_order(len(chosen), seed, _ORDER)][: sizes.images]
    images, labels = images[order], None if labels is None else labels[order].long().cpu()
    conditional = model.num_classes > 0
    codec = Codec(model, torch.device(device), batch_size)
    with at_rest(model):
        points = {"null class" if conditional else "latents": codec.encode(images, None)}
        if conditional and labels is not None:
            points["own class"] = codec.encode(images, labels)
        main, latents = list(points.items())[-1]
        own = labels if main == "own class" else None
        figures = {name: latent_figures(z.flatten(1), labels, class_names) for name, z in points.items()}
        shape = model.latent_shape
        random = model.prior.project(gaussian(sizes.random, shape, seed, _RANDOM)).to(latents.dtype)
        at_random, of_data = Starts("random", random, codec.some_labels(len(random))), Starts("data", latents, own)
        loops = (
            loop_study(codec, at_random.first(sizes.looped), seed=seed),
            loop_study(codec, of_data.first(sizes.looped), seed=seed),
        )
        # no more than a spectrum takes
        count = min(len(images), MOST) if latents[0].numel() > MOST else len(images)
        uniform_points = gaussian(count, shape, seed, _UNIFORM).flatten(1)
        uniform = spectrum(uniform_points)
        return SphereReport(
            seed=seed,
            dim=latents[0].numel(),
            on_sphere=isinstance(model.prior, SpherePrior),
            duplicates=duplicates,
            left_out=given - duplicates - len(images),
            latents=figures,
            main=main,
            null_to_own=_apart(points) if len(points) > 1 else None,
            uniform=uniform,
            angles=angle_study(
                codec,
                of_data.first(sizes.turned),
                images[: sizes.unrelated],
                extractor=extractor,
                seed=seed,
            ),
            loops=loops,
            denoising=denoising_study(codec, of_data.first(sizes.looped), seed=seed),
            cones=cone_study(codec, at_random, latents, figures[main].nearest),
            globes=_globes(latents.flatten(1), figures[main].spectrum, uniform_points, uniform, labels, class_names),
        )


def _check(model: SphereGenerator, images: Tensor, labels: Tensor | None) -> None:
    if images.dtype != torch.uint8 or tuple(images.shape[1:]) != tuple(model.image_shape):
        shape = ", ".join(map(str, model.image_shape))
        raise DataError(
            f"images are {str(images.dtype).removeprefix('torch.')} of shape {tuple(images.shape)}; this model is "
            f"studied with uint8 images (n, {shape})"
        )
    if labels is None:
        return
    if tuple(labels.shape) != (len(images),) or labels.is_floating_point():
        raise DataError(f"labels have shape {tuple(labels.shape)} for {len(images)} images; give one class id for each")
    if model.num_classes and len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < model.num_classes:
        raise DataError(
            f"labels lie between {int(labels.min())} and {int(labels.max())}, but the model has the classes 0 to "
            f"{model.num_classes - 1}; number the data's classes as in its training, or leave the labels out"
        )


def _distinct(images: Tensor) -> Tensor:
    """The places of the images whose pixels occur for the first time: twins are no independent points."""
    seen: set[bytes] = set()
    places = []
    for place, image in enumerate(images.cpu()):
        pixels = hashlib.blake2b(image.contiguous().numpy().data, digest_size=16).digest()
        if pixels not in seen:
            seen.add(pixels)
            places.append(place)
    return torch.tensor(places, dtype=torch.int64)


def _apart(points: Mapping[str, Tensor]) -> float:
    return float(angle_between(points["null class"], points["own class"]).double().mean())


def _globes(
    latents: Tensor,
    of_latents: Spectrum,
    uniform_points: Tensor,
    of_uniform: Spectrum,
    labels: Tensor | None,
    class_names: Sequence[str],
) -> Image.Image:
    names: list[str] = []
    places = None
    if labels is not None:
        present, places = labels.unique(return_inverse=True)
        names = [name_of(label, class_names) for label in present.tolist()]
    sets = [
        ("latents of data", latents, of_latents, places),
        ("uniform random points", uniform_points, of_uniform, None),
    ]
    return globe_sheet(sets, names)


def _latents_dict(figures: LatentFigures) -> dict[str, Any]:
    spectrum = figures.spectrum
    return {
        "count": figures.count,
        "mean_angle": figures.mean_angle,
        "angle_std": figures.angle_std,
        "law_std": figures.law_std,
        "resultant": figures.resultant,
        "effective_dimension": figures.effective_dimension,
        "nearest": asdict(spread(figures.nearest)),
        "expected_nearest": figures.expected_nearest,
        "uniformity": figures.uniformity.as_dict(),
        "spectrum": {
            "count": spectrum.count,
            "participation": spectrum.participation,
            "expected_participation": spectrum.expected_participation,
            "edges": list(spectrum.edges),
            "beyond_upper_edge": spectrum.beyond,
            "share_of_leading": {str(k): spectrum.share(k) for k in (1, 10, 100)},
        },
        "classes": [asdict(of) for of in figures.classes],
    }


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
