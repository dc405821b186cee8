"""Do samples show the class that was asked for, and are they as varied within it as real images are?

A linear probe on the features, fitted to training images, says what class an image shows; its accuracy on held-out real
images is the yardstick for that on samples. Diversity within a class is told by three figures relative to as many real
images: the variance of the features, the distance to the nearest other sample (near 0 where modes collapse), and the
effective number of different samples (the Vendi score, Friedman and Dieng 2023, arXiv 2210.02410).

Legend: n images, D features, K classes.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from spheregen.errors import DataError
from spheregen.evaluation.report.parts import Cell, Plot, Section, Series, Table

RIDGE = 1e-2
"""Of the probe, relative to features of variance 1 and the mean over images."""
MOST_OF_A_CLASS = 1000
"""Images of a class whose diversity is looked at: the Vendi score takes the cube of their number."""
FEWEST = 2  # images of a class


@dataclass(frozen=True, kw_only=True)
class Diversity:
    """Samples of one class relative to as many real images of it: 1 is as varied as these, near 0 is collapse."""

    variance: float
    """Sum of the features' variances."""
    nearest: float
    """Mean distance to the nearest other image of the class."""
    vendi: float
    """Effective number of different images: exp of the entropy of the eigenvalues of the cosines between them, as seen
    from their mean."""


@dataclass(frozen=True, kw_only=True)
class ClassFigures:
    """What samples show of their classes."""

    names: tuple[str, ...]
    """Of the K classes."""
    counts: tuple[int, ...]
    """Samples of each class."""
    accuracy: float
    """Share of samples in which the probe sees the class that was asked for."""
    real_accuracy: float
    """The probe's accuracy on held-out real images: what a perfect generator would reach."""
    per_class: tuple[float, ...]
    """Accuracy of the samples of each class."""
    real_per_class: tuple[float | None, ...]
    """Accuracy on held-out images of each class; None where there are none."""
    confusion: tuple[tuple[float, ...], ...]
    """(K, K): share of the samples of the class of the row that the probe takes for that of the column."""
    diversity: tuple[Diversity, ...]
    """By class."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "names": list(self.names),
            "counts": list(self.counts),
            "accuracy": self.accuracy,
            "real_accuracy": self.real_accuracy,
            "per_class": list(self.per_class),
            "real_per_class": list(self.real_per_class),
            "confusion": [list(row) for row in self.confusion],
            "diversity": [vars(each) for each in self.diversity],
            "mean_diversity": vars(self.mean_diversity),
        }

    @property
    def mean_diversity(self) -> Diversity:
        """The mean over classes."""
        return Diversity(
            variance=statistics.fmean(each.variance for each in self.diversity),
            nearest=statistics.fmean(each.nearest for each in self.diversity),
            vendi=statistics.fmean(each.vendi for each in self.diversity),
        )

    def warnings(self) -> tuple[str, ...]:
        """What speaks against the samples, in plain words."""
        found = []
        if self.accuracy < 0.75 * self.real_accuracy:
            found.append(
                f"the probe sees the class that was asked for in {self.accuracy:.0%} of the samples, and in "
                f"{self.real_accuracy:.0%} of real images: conditioning is weak, or samples are not recognisable"
            )
        mean = self.mean_diversity
        if min(mean.variance, mean.nearest, mean.vendi) < 0.5:
            found.append(
                "samples of a class are less than half as varied as real images of it: modes collapse, or samples are "
                "blurred towards their mean"
            )
        return tuple(found)

    def section(self) -> Section:
        """The figures as a part of a page."""
        mean = self.mean_diversity
        rows: list[tuple[Cell, ...]] = []
        for label, name in enumerate(self.names):
            each, shares = self.diversity[label], (self.per_class[label], self.real_per_class[label])
            rows.append((name, self.counts[label], *shares, each.variance, each.nearest, each.vendi))
        total: tuple[Cell, ...] = (
            "all",
            sum(self.counts),
            self.accuracy,
            self.real_accuracy,
            mean.variance,
            mean.nearest,
            mean.vendi,
        )
        header = ("class", "samples", "right class", "of real images", "variance", "nearest", "different")
        tables = [Table(title="By class", header=header, rows=(total, *rows))]
        if len(self.names) <= 20:
            seen: list[tuple[Cell, ...]] = [(name, *row) for name, row in zip(self.names, self.confusion, strict=True)]
            tables.append(
                Table(
                    title="Asked for (rows), seen by the probe (columns)",
                    header=("class", *self.names),
                    rows=tuple(seen),
                )
            )
        places = tuple(map(float, range(len(self.names))))
        plot = Plot(
            title="Right class",
            x_label="class",
            y_label="share of images",
            series=(
                Series(name="samples", x=places, y=self.per_class, kind="bars", labels=self.names),
                Series(
                    name="held-out real images",
                    x=places,
                    y=tuple(0.0 if real is None else real for real in self.real_per_class),
                    kind="bars",
                    labels=self.names,
                ),
            ),
        )
        return Section(
            key="classes",
            title="Classes",
            text=(
                "A linear probe on the features learnt the classes from training images. Its accuracy on held-out real "
                "images is the yardstick for that on samples.",
                "Diversity within a class is relative to as many real images of it: the variance of the features, the "
                "mean distance to the nearest other image of the class, and the effective number of different images. "
                "1 is as varied as real images, near 0 is collapse.",
            ),
            warnings=self.warnings(),
            tables=tuple(tables),
            plots=(plot,) if 2 <= len(self.names) <= 40 else (),
        )


def class_figures(
    samples: Tensor,
    sample_labels: Tensor,
    train: Tensor,
    train_labels: Tensor,
    held_out: Tensor,
    held_out_labels: Tensor,
    class_names: Sequence[str] = (),
) -> ClassFigures:
    """Class accuracy and diversity of samples.

    Args:
        samples, train, held_out: features (n, D) of each.
        sample_labels, train_labels, held_out_labels: (n,) int64 class ids; of samples those that were asked for.
        class_names: of the K classes; numbers where there are none.

    Raises:
        DataError: a class of the samples has fewer than two training images or samples, or there is only one class.
    """
    classes = int(max(sample_labels.max(), train_labels.max(), held_out_labels.max())) + 1
    names = tuple(class_names) if class_names else tuple(map(str, range(classes)))
    if len(names) < classes:
        raise DataError(f"labels go up to {classes - 1}, but there are {len(names)} class names; give data of the same")
    classes = len(names)
    if classes < 2:
        raise DataError("class accuracy needs at least 2 classes; leave the study of the classes out")
    for labels, what in ((train_labels, "training images"), (sample_labels, "samples")):
        for label, count in enumerate(torch.bincount(labels, minlength=classes).tolist()):
            if count < FEWEST:
                raise DataError(f"class {names[label]} has {count} {what}, the study of the classes needs {FEWEST}")
    probe = _Probe(train, train_labels, classes)
    seen, seen_real = probe(samples), probe(held_out)
    confusion = torch.zeros(classes, classes, dtype=torch.float64)
    confusion.index_put_((sample_labels, seen), torch.ones(len(seen), dtype=torch.float64), accumulate=True)
    confusion /= confusion.sum(dim=1, keepdim=True)
    right = seen_real == held_out_labels
    real: list[float | None] = []
    for label in range(classes):
        here = held_out_labels == label
        real.append(float(right[here].double().mean()) if bool(here.any()) else None)
    return ClassFigures(
        names=names,
        counts=tuple(torch.bincount(sample_labels, minlength=classes).tolist()),
        accuracy=float((seen == sample_labels).double().mean()),
        real_accuracy=float(right.double().mean()),
        per_class=tuple(confusion.diagonal().tolist()),
        real_per_class=tuple(real),
        confusion=tuple(tuple(row) for row in confusion.tolist()),
        diversity=tuple(
            _diversity(probe.scaled(samples[sample_labels == label]), probe.scaled(train[train_labels == label]))
            for label in range(classes)
        ),
    )


class _Probe:
    """Ridge regression of the classes on standardised features, classes of equal weight; closed form."""

    def __init__(self, features: Tensor, labels: Tensor, classes: int) -> None:
        x = features.double().cpu()
        self.mean, deviation = x.mean(dim=0), x.std(dim=0)
        varies = deviation > 1e-9 * (self.mean.abs() + deviation)
        self.scale = torch.where(varies, deviation, torch.inf)  # what never varies is mute
        weight = 1 / torch.bincount(labels, minlength=classes).double()[labels].cpu()
        weight = weight / weight.sum()
        z = self.scaled(features)
        z = torch.cat([z, torch.ones(len(z), 1, dtype=z.dtype)], dim=1)
        target = torch.nn.functional.one_hot(labels.cpu(), classes).double()
        gram = (z * weight[:, None]).T @ z + RIDGE * torch.eye(z.shape[1], dtype=z.dtype)
        self.weights = torch.linalg.solve(gram, (z * weight[:, None]).T @ target)

    def scaled(self, features: Tensor) -> Tensor:
        """Features (n, D) float64 of mean 0 and variance 1 over the training images."""
        return (features.double().cpu() - self.mean) / self.scale

    def __call__(self, features: Tensor) -> Tensor:
        """The class (n,) that each image shows."""
        scores = self.scaled(features) @ self.weights[:-1] + self.weights[-1]
        seen: Tensor = scores.argmax(dim=1)
        return seen


def _diversity(samples: Tensor, real: Tensor) -> Diversity:
    """Features (n, D) of one class, scaled, against as many of the real ones, evenly spread."""
    count = min(len(samples), len(real), MOST_OF_A_CLASS)
    samples, real = (x[torch.arange(count) * len(x) // count] for x in (samples, real))
    return Diversity(
        variance=_ratio(samples.var(dim=0).sum(), real.var(dim=0).sum()),
        nearest=_ratio(_nearest(samples), _nearest(real)),
        vendi=_vendi(samples - samples.mean(dim=0)) / _vendi(real - real.mean(dim=0)),
    )


def _ratio(a: Tensor, b: Tensor) -> float:
    return float(a / b.clamp_min(1e-12))


def _nearest(x: Tensor) -> Tensor:
    """Mean distance of each row to the nearest other one."""
    distances = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")
    mean: Tensor = distances.fill_diagonal_(torch.inf).amin(dim=1).mean()
    return mean


def _vendi(x: Tensor) -> float:
    """exp of the entropy of the eigenvalues of the cosine matrix over n: 1 for copies of one image, up to n."""
    unit = x / x.norm(dim=1, keepdim=True).clamp_min(1e-12)
    small = unit @ unit.T if len(x) <= x.shape[1] else unit.T @ unit  # the same eigenvalues but for zeros
    values = torch.linalg.eigvalsh(small / len(x)).clamp_min(0)
    values = values / values.sum().clamp_min(1e-12)
    return float(torch.exp(-torch.xlogy(values, values).sum()))
