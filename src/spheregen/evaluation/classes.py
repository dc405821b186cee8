"""Classes of samples: do they show what was asked for, and vary within a class as real images do?

A small classifier that learned the training images says what class an image shows; its accuracy on held-out real images
is the yardstick for that on samples. Diversity within a class is told by three figures on features of
another network, relative to as many real images: the variance of the features, the distance to the nearest other sample
(near 0 where modes collapse), and the effective number of different samples (the Vendi score, Friedman and Dieng 2023,
arXiv 2210.02410).

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
from spheregen.evaluation.images import spread
from spheregen.evaluation.report.parts import Section, Table

MOST_OF_A_CLASS = 1000
"""Images of a class whose diversity is looked at: the Vendi score takes the cube of their number."""
FEWEST = 2  # images of a class


@dataclass(frozen=True)
class Classified:
    """Images whose class a classifier has told."""

    features: Tensor
    """(n, D)"""
    labels: Tensor
    """(n,) int64 class ids; of samples those asked for."""
    seen: Tensor
    """(n,) the class that the classifier sees."""


def class_figures(
    samples: Classified, train: Classified, held_out: Classified, class_names: Sequence[str] = ()
) -> dict[str, Any]:
    """Return the class accuracy and diversity of samples.

    Args:
        samples, train, held_out: the images of each.
        class_names: of the K classes; numbers where there are none.

    Returns:
        Plain values. `names` and `counts` (samples) of the classes; `accuracy`, the share of samples in which it sees
        the class that was asked for, and `real_accuracy` on held-out images; `per_class` and `real_per_class`, the
        same by class (None where nothing was held out); `confusion` (K, K), the share of the samples of the row's class
        that the classifier takes for the column's; `diversity` by class and `mean_diversity`: `variance`, `nearest` and
        `vendi` relative to as many real images, where 1 is as varied as these and near 0 is collapse.

    Raises:
        DataError: a class of the samples has fewer than two training images or samples, or there is only one class.
    """
    asked, seen = samples.labels, samples.seen
    classes = int(max(each.labels.max() for each in (samples, train, held_out))) + 1
    names = tuple(class_names) if class_names else tuple(map(str, range(classes)))
    if len(names) < classes:
        raise DataError(f"labels go up to {classes - 1}, but there are {len(names)} class names; give data of the same")
    classes = len(names)
    if classes < 2:
        raise DataError("class accuracy needs at least 2 classes; leave the study of the classes out")
    for labels, what in ((train.labels, "training images"), (asked, "samples")):
        for label, count in enumerate(torch.bincount(labels, minlength=classes).tolist()):
            if count < FEWEST:
                raise DataError(f"class {names[label]} has {count} {what}, the study of the classes needs {FEWEST}")
    right = (held_out.seen == held_out.labels).double()
    confusion = torch.zeros(classes, classes, dtype=torch.float64)
    confusion.index_put_((asked, seen), torch.ones(len(seen), dtype=torch.float64), accumulate=True)
    confusion /= confusion.sum(dim=1, keepdim=True)
    real = [right[held_out.labels == label] for label in range(classes)]
    made, real_ones = _scaled(samples.features, train.features), _scaled(train.features, train.features)
    diversity = [_diversity(made[asked == label], real_ones[train.labels == label]) for label in range(classes)]
    return {
        "names": list(names),
        "counts": torch.bincount(asked, minlength=classes).tolist(),
        "accuracy": float((seen == asked).double().mean()),
        "real_accuracy": float(right.mean()),
        "per_class": confusion.diagonal().tolist(),
        "real_per_class": [float(each.mean()) if len(each) else None for each in real],
        "confusion": confusion.tolist(),
        "diversity": diversity,
        "mean_diversity": {name: statistics.fmean(each[name] for each in diversity) for name in diversity[0]},
    }


def class_section(found: dict[str, Any]) -> Section:
    """Return the figures of `class_figures` as a part of a page."""
    warnings = []
    if found["accuracy"] < 0.75 * found["real_accuracy"]:
        warnings.append(
            f"the classifier sees the class that was asked for in {found['accuracy']:.0%} of the samples, and in "
            f"{found['real_accuracy']:.0%} of real images: conditioning is weak, or samples are not recognisable"
        )
    if min(found["mean_diversity"].values()) < 0.5:
        warnings.append(
            "samples of a class are less than half as varied as real images of it: modes collapse, or samples are "
            "blurred towards their mean"
        )
    names, counts, right, real = (found[key] for key in ("names", "counts", "per_class", "real_per_class"))
    mean = {
        "counts": sum(counts),
        "right": found["accuracy"],
        "real": found["real_accuracy"],
        **found["mean_diversity"],
    }
    diversity = (each.values() for each in found["diversity"])
    rows = [("all", *mean.values())]
    rows += [(*row, *each) for *row, each in zip(names, counts, right, real, diversity, strict=True)]
    header = ("class", "samples", "class accuracy", "of real images", "variance", "nearest", "different")
    tables = [Table(title="By class", header=header, rows=tuple(rows))]
    if len(names) <= 20:
        title = "Asked for (rows), seen by the classifier (columns)"
        seen = tuple((name, *row) for name, row in zip(names, found["confusion"], strict=True))
        tables.append(Table(title=title, header=("class", *names), rows=seen))
    return Section(
        key="classes",
        title="Classes",
        text=(
            "A small classifier learned the classes from training images. Its accuracy on held-out real "
            "images is the yardstick for that on samples. Diversity within a class is relative to as many real images "
            "of it: the variance of the features, the mean distance to the nearest other image of the class, and the "
            "effective number of different images. 1 is as varied as real images, near 0 is collapse.",
        ),
        warnings=tuple(warnings),
        tables=tuple(tables),
    )


def _scaled(features: Tensor, real: Tensor) -> Tensor:
    """Return features (n, D) float64, of mean 0 and variance 1 over real ones; what never varies there is 0."""
    x = real.double().cpu()
    mean, deviation = x.mean(dim=0), x.std(dim=0)
    varies = deviation > 1e-9 * (mean.abs() + deviation)
    return (features.double().cpu() - mean) / torch.where(varies, deviation, torch.inf)


def _diversity(samples: Tensor, real: Tensor) -> dict[str, float]:
    """Compare features (n, D) of one class, scaled, with as many of the real ones, evenly spread."""
    count = min(len(samples), len(real), MOST_OF_A_CLASS)
    samples, real = (x[spread(count, len(x))] for x in (samples, real))
    figures = {"variance": lambda x: float(x.var(dim=0).sum()), "nearest": _nearest, "vendi": _vendi}
    return {name: figure(samples) / max(figure(real), 1e-12) for name, figure in figures.items()}


def _nearest(x: Tensor) -> float:
    """Return the mean distance of each row to the nearest other one."""
    distances = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")
    return float(distances.fill_diagonal_(torch.inf).amin(dim=1).mean())


def _vendi(x: Tensor) -> float:
    """Return exp of the entropy of the eigenvalues of the cosine matrix over n: 1 for copies of one image, up to n."""
    x = x - x.mean(dim=0)
    unit = x / x.norm(dim=1, keepdim=True).clamp_min(1e-12)
    small = unit @ unit.T if len(x) <= x.shape[1] else unit.T @ unit  # the same eigenvalues but for zeros
    values = torch.linalg.eigvalsh(small / len(x)).clamp_min(0)
    values = values / values.sum().clamp_min(1e-12)
    return float(torch.exp(-torch.xlogy(values, values).sum()))
