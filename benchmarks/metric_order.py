"""Check that the metrics order damaged images as their literature says: CIFAR-10, our own features by default.

python benchmarks/metric_order.py CIFAR10 [--features own] [--count 5000]

The reference is the training set. Each line measures COUNT images: other training images, test images, and training
images that were blurred, made noisy, shifted, compressed, robbed of classes, collapsed to few modes, or doubled. Prints
a Markdown table and which expectations hold.
"""

from __future__ import annotations

import argparse
import io
import itertools
from collections.abc import Callable, Mapping

import numpy as np
import torch
from distortions import add_noise, blur, shift
from PIL import Image
from torch import Tensor

from spheregen.data import ImageOptions, load_all, open_source
from spheregen.evaluation.images import spread
from spheregen.measure.features import FEATURE_BATCH, FeatureExtractor, load_extractor
from spheregen.measure.metrics import Gaussian, frechet_distance, gaussian, inception_score, kernel_distance, manifold

QUALITIES = (35, 20, 12)
"""CIFAR-10's pictures are JPEG of quality 75: again at 75 changes nothing, and quality 50, of twice these steps, rounds
every odd coefficient from a tie, an artefact of its own, which the metrics see."""
COLUMNS = ("frechet", "kid", "class_score", "precision", "recall", "density", "coverage")


def eight_bits(images: Tensor) -> Tensor:
    """[0, 1] to uint8."""
    return (255 * images).round().clamp(0, 255).byte()


def jpeg(images: Tensor, quality: int) -> Tensor:
    """Through a JPEG file."""
    made = []
    for image in images:
        file = io.BytesIO()
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(file, format="JPEG", quality=quality)
        made.append(torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1))
    return torch.stack(made)


def features_of(extractor: FeatureExtractor, images: Tensor) -> tuple[Tensor, Tensor | None]:
    """Features and logits of all images."""
    found = [extractor(part) for part in images.split(FEATURE_BATCH)]
    logits = [each.logits for each in found if each.logits is not None]
    return torch.cat([each.features for each in found]), torch.cat(logits) if logits else None


def measured(extractor: FeatureExtractor, images: Tensor, reference: Gaussian, real: Tensor) -> dict[str, float]:
    """All figures of a set of images."""
    features, logits = features_of(extractor, images)
    return {
        "frechet": frechet_distance(gaussian(features), reference),
        "kid": kernel_distance(features, real).value,
        "class_score": float("nan") if logits is None else inception_score(logits).value,
        **vars(manifold(features, real)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--features", default="own")
    parser.add_argument("--count", type=int, default=5000)
    arguments = parser.parse_args()
    extractor = load_extractor(arguments.features, device=torch.device("cpu"))
    options, count = ImageOptions(image_size=32), arguments.count
    train = load_all(open_source(arguments.data, split="train"), options)
    test = load_all(open_source(arguments.data, split="test"), options)
    assert train.labels is not None
    all_features, _ = features_of(extractor, train.images)
    reference = gaussian(all_features)
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))
    real = all_features[order[:count]]
    mine = order[count : 2 * count]
    images, labels = train.images[mine], train.labels[mine]
    spare, spare_labels = train.images[order], train.labels[order]

    def of_classes(number: int) -> Tensor:
        return spare[spare_labels < number][-count:]

    def collapsed(modes: int) -> Tensor:
        chosen = torch.cat([(labels == label).nonzero().flatten()[: modes // 10] for label in range(10)])
        return eight_bits(add_noise(images[chosen.repeat(-(-count // len(chosen)))[:count]] / 255, 2 / 255))

    sets: Mapping[str, Callable[[], Tensor]] = {
        "other training images": lambda: images,
        "test images": lambda: test.images[spread(count, len(test))],
        **{f"blur, {s:g} px": (lambda s=s: eight_bits(blur(images / 255, s))) for s in (0.5, 1.0, 2.0)},
        **{f"noise, {s} of 255": (lambda s=s: eight_bits(add_noise(images / 255, s / 255))) for s in (5, 15, 40)},
        **{f"shift, {n} px": (lambda n=n: eight_bits(shift(images / 255, n))) for n in (1, 4, 8)},
        **{f"JPEG, quality {q}": (lambda q=q: jpeg(images, q)) for q in QUALITIES},
        **{f"{k} of 10 classes": (lambda k=k: of_classes(k)) for k in (9, 5, 1)},
        **{f"{m} modes": (lambda m=m: collapsed(m)) for m in (1000, 100, 10)},
        "every image twice": lambda: images[: count // 2].repeat(2, 1, 1, 1),
        "every image ten times": lambda: images[: count // 10].repeat(10, 1, 1, 1),
    }
    rows: dict[str, dict[str, float]] = {}
    print(f"| {count} images | " + " | ".join(COLUMNS) + " |\n|---|" + "---|" * len(COLUMNS))
    for name, make in sets.items():
        rows[name] = measured(extractor, make(), reference, real)
        cells = (f"{rows[name][column]:.{5 if column == 'kid' else 3}f}" for column in COLUMNS)
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)
    check_expectations(rows)


def check_expectations(rows: Mapping[str, Mapping[str, float]]) -> None:
    """Say which of the literature's expectations hold."""
    real, groups = rows["other training images"], ("blur", "noise", "shift", "JPEG", "classes", "modes")
    chains = {group: [row for name, row in rows.items() if group in name] for group in groups}

    def falls(values: list[float], slack: float = 0.0) -> bool:
        """Each value below the one before, or by `slack` above it where the damage is too small to be seen."""
        steps = all(b < a + slack for a, b in itertools.pairwise(values))
        return steps and values[-1] < values[0]

    def say(text: str, *, holds: bool) -> None:
        print(f"- {'holds' if holds else 'FAILS'}: {text}")

    for group, chain in chains.items():
        for metric in ("frechet", "kid"):
            values = [-real[metric], *(-row[metric] for row in chain)]
            say(f"{metric} grows with {group} (Heusel 2017, Binkowski 2018)", holds=falls(values))
    for group in ("blur", "noise"):
        values = [row["class_score"] for row in (real, *chains[group])]
        say(f"the class score falls with {group} (Salimans 2016)", holds=falls(values))
        values = [row["precision"] for row in (real, *chains[group])]
        say(f"precision falls with {group} (Kynkaanniemi 2019)", holds=falls(values, 0.02))
        values = [row["density"] for row in (real, *chains[group])]
        say(f"density falls with {group} (Naeem 2020)", holds=falls(values, 0.05))
    for group in ("classes", "modes"):
        for metric in ("recall", "coverage"):
            values = [row[metric] for row in (real, *chains[group])]
            say(f"{metric} falls with fewer {group} (Kynkaanniemi 2019, Naeem 2020)", holds=falls(values, 0.02))
        worst = min(row["precision"] for row in chains[group])
        say(f"precision does not fall with fewer {group} by more than a tenth", holds=worst > 0.9 * real["precision"])
    values = [row["class_score"] for row in (real, *chains["classes"])]
    say("the class score falls with fewer classes", holds=falls(values))
    few = rows["100 modes"]["class_score"]
    say("the class score does not see few modes within classes", holds=few > 0.9 * real["class_score"])
    doubled, tenfold = rows["every image twice"], rows["every image ten times"]
    say("frechet hardly sees doubled images (under a tenth of blur by 1 px)",
        holds=doubled["frechet"] - real["frechet"] < 0.1 * rows["blur, 1 px"]["frechet"])  # fmt: skip
    say("coverage falls when images repeat (Naeem 2020)",
        holds=falls([row["coverage"] for row in (real, doubled, tenfold)]))  # fmt: skip
    visible = ("blur, 0.5 px", "noise, 15 of 255", "shift, 4 px", "JPEG, quality 35", "9 of 10 classes", "1000 modes")
    say("test images are closer to training images than any visible damage leaves these",
        holds=all(rows["test images"]["frechet"] < rows[name]["frechet"] for name in visible))  # fmt: skip


if __name__ == "__main__":
    main()
