"""What the latents of data look like on the sphere: angles, uniformity, directions that are filled, classes.

Legend: n points, L dimensions, K classes. Angles in degrees.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from spheregen.evaluation.sphere.angle_law import AngleLaw
from spheregen.evaluation.sphere.pairs import PairSurvey, survey_pairs, unit_points
from spheregen.evaluation.sphere.spectrum import Spectrum, spectrum
from spheregen.evaluation.sphere.uniformity import UniformityTest, judge_pairs


@dataclass(frozen=True, kw_only=True)
class ClassCoverage:
    """Where the latents of one class lie. None is a figure that too few points cannot give."""

    name: str
    count: int
    resultant: float
    """The length of the mean of its unit vectors, 0 to 1; about 1/sqrt(count) for uniform points."""
    within: float | None
    """The mean angle of two of its points; 90 for uniform points."""
    between: float | None
    """The mean angle from its points to those of other classes."""
    effective_dimension: float | None
    """1 / mean cos^2 of its pairs, whatever the number of points; L for uniform points, at most about L."""
    nearest_class: str | None
    """The class whose mean direction is closest,"""
    nearest_class_angle: float | None
    """and the angle between the two mean directions; 90 for uniform points."""


@dataclass(frozen=True, kw_only=True)
class LatentFigures:
    """A set of points on the sphere against uniform ones."""

    count: int
    dim: int
    mean_angle: float
    """Of all pairs; 90 for uniform points."""
    angle_std: float
    law_std: float
    """What `angle_std` is for uniform points."""
    resultant: float
    """The length of the mean of the unit vectors."""
    effective_dimension: float
    """1 / mean cos^2 of pairs: the participation ratio of the second moment, corrected for the number of points."""
    nearest: Tensor
    """(n,) float64: the angle from each point to its nearest other."""
    expected_nearest: float
    """The median of that for uniform points."""
    uniformity: UniformityTest
    spectrum: Spectrum
    classes: tuple[ClassCoverage, ...]
    """Empty without labels."""
    pairs: PairSurvey


def latent_figures(points: Tensor, labels: Tensor | None = None, class_names: Sequence[str] = ()) -> LatentFigures:
    """Measure points (n, L), with their classes (n,) int64 if known.

    Raises:
        DataError: too few points or dimensions, or points that have no direction.
    """
    present, places = (None, None) if labels is None else labels.unique(return_inverse=True)
    pairs = survey_pairs(points, places, 0 if present is None else len(present))
    law = AngleLaw(pairs.dim)
    names = [] if present is None else [name_of(label, class_names) for label in present.tolist()]
    return LatentFigures(
        count=pairs.count,
        dim=pairs.dim,
        mean_angle=pairs.mean_angle,
        angle_std=pairs.angle_std,
        law_std=law.std,
        resultant=pairs.resultant,
        effective_dimension=1 / max(pairs.mean_square_cosine, 1e-300),
        nearest=pairs.nearest,
        expected_nearest=law.median_nearest(pairs.count - 1),
        uniformity=judge_pairs(pairs),
        spectrum=spectrum(points),
        classes=() if places is None else _coverage(points, places, names, pairs),
        pairs=pairs,
    )


def name_of(label: int, class_names: Sequence[str]) -> str:
    """A class by name, or by its number where it has none."""
    return class_names[label] if 0 <= label < len(class_names) else str(label)


def _coverage(points: Tensor, places: Tensor, names: Sequence[str], pairs: PairSurvey) -> tuple[ClassCoverage, ...]:
    assert pairs.class_angles is not None and pairs.class_square_cosines is not None  # there were labels
    unit = unit_points(points).cpu()
    sizes = torch.bincount(places, minlength=len(names))
    means = torch.zeros(len(names), pairs.dim, dtype=torch.float64)
    for label in range(len(names)):
        means[label] = unit[places == label].mean(dim=0, dtype=torch.float64)
    lengths = torch.linalg.vector_norm(means, dim=1)
    directions = means / lengths.clamp_min(1e-30)[:, None]
    angles = torch.rad2deg(torch.acos((directions @ directions.T).clamp(-1, 1))).fill_diagonal_(math.inf)
    others = pairs.class_angles.clone().fill_diagonal_(0)
    found = []
    for label, name in enumerate(names):
        weight = sizes.double().index_fill(0, torch.tensor([label]), 0)
        rest = float(weight.sum())
        nearest = int(angles[label].argmin())
        found.append(
            ClassCoverage(
                name=name,
                count=int(sizes[label]),
                resultant=float(lengths[label]),
                within=_known(pairs.class_angles[label, label]),
                between=float(others[label] @ weight) / rest if rest else None,
                effective_dimension=_known(1 / pairs.class_square_cosines[label]),
                nearest_class=names[nearest] if rest else None,
                nearest_class_angle=float(angles[label, nearest]) if rest else None,
            )
        )
    return tuple(found)


def _known(value: Tensor) -> float | None:
    return float(value) if bool(torch.isfinite(value)) else None
