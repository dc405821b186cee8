"""The classifier of an evaluation: a small classifier of the data's own classes, trained once for each data set.

Source of what it learns where there are no classes: Gidaris et al. 2018 (arXiv 1803.07728).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from spheregen.distributed import World
from spheregen.evaluation.images import RealImages, take
from spheregen.measure.features import FeatureExtractor, classifier
from spheregen.measure.features.classifier import (
    FORMAT,
    ClassifierFacts,
    load_classifier,
    save_classifier,
    train_classifier,
)
from spheregen.progress import QuietReporter, Reporter

MOST_BYTES = 1 << 30
"""Of the images that it learns from; of more an evenly spread part."""
MOST_HELD_OUT = 2000
CLASSIFIER = "classifier"
QUARTERS = ("upright", "a quarter", "half", "three quarters")
"""Classes of images without classes."""
_OWN_HELD_OUT = 10  # every tenth image is kept back where no split is


def has_classes(data: RealImages, class_names: Sequence[str] = ()) -> bool:
    """Return whether a classifier can learn the classes of images: two of them at least, named as those of a model."""
    if data.labels is None or (class_names and tuple(data.source.class_names) != tuple(class_names)):
        return False
    counts = torch.bincount(torch.as_tensor(data.labels))
    return int((counts > 1).sum()) > 1


def make_classifier(
    data: RealImages,
    folder: Path,
    *,
    held_out: RealImages | None = None,
    class_names: Sequence[str] = (),
    device: torch.device | str = "cpu",
    world: World | None = None,
    reporter: Reporter | None = None,
) -> FeatureExtractor:
    """Train a classifier on real images, in about a minute; one that lies in `folder` already is taken.

    It learns the classes of the images or, where there are none, by how many quarters of a circle they were turned:
    then it only has features. All processes of a world call it together and see the same folder; the first one trains.
    Colour images of classes are mirrored too, grey ones (letters, digits) are not.

    Args:
        held_out: images on which its accuracy is measured; None keeps back every tenth image.
        class_names: of the model that is classified; images of other classes count as such without classes.
    """
    world, reporter = world or World(), reporter or QuietReporter()
    labelled = has_classes(data, class_names)
    if held_out is not None and labelled and not has_classes(held_out, data.source.class_names):
        held_out = None
    about = [data.describe(), None if held_out is None else held_out.describe(), labelled, classifier.SEEN, FORMAT]
    path = (
        folder / f"classifier-{hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]}.safetensors"
    )
    if world.is_first and not path.is_file():
        what = "the classes of" if labelled else "how images were turned, of"
        reporter.message(f"a small classifier learns {what} {data.source.name}, to judge samples")
        folder.mkdir(parents=True, exist_ok=True)
        _train(data, held_out, labelled, path)
    world.wait_for_all()
    return load_classifier(path, device)


def _train(data: RealImages, held_out: RealImages | None, labelled: bool, path: Path) -> None:
    channels, height, width = data.shape
    some = data.thinned(max(1, MOST_BYTES // (channels * height * width)))
    images = take(some, len(some))
    labels = torch.as_tensor(some.labels) if labelled else torch.zeros(len(images), dtype=torch.int64)
    if held_out is None:
        kept = torch.arange(len(images)) % _OWN_HELD_OUT == _OWN_HELD_OUT - 1
        unseen, truth = (images[kept], labels[kept]) if kept.any() else (images, labels)
        images, labels = images[~kept], labels[~kept]
    else:
        held_out = held_out.thinned(MOST_HELD_OUT)
        unseen = take(held_out, len(held_out))
        truth = torch.as_tensor(held_out.labels) if labelled else torch.zeros(len(unseen), dtype=torch.int64)
    if not labelled:
        (images, labels), (unseen, truth) = (turned(each) for each in (images, unseen))
    classes = max(int(labels.max()), int(truth.max())) + 1
    names = tuple(data.source.class_names if labelled else QUARTERS) or tuple(map(str, range(classes)))
    model = train_classifier(images, labels, len(names), flips=labelled and channels == 3)
    facts = ClassifierFacts(
        class_names=names,
        labelled=labelled,
        data=data.source.name,
        images=len(images),
        accuracy=float((model.classes(unseen) == truth).float().mean()),
        held_out=len(unseen),
    )
    save_classifier(path, model, facts)


def turned(images: Tensor) -> tuple[Tensor, Tensor]:
    """Return square images (N, C, S, S), each turned by some quarters of a circle, and by how many (N,)."""
    quarters = torch.arange(len(images)) % len(QUARTERS)
    found = images.clone()
    for quarter in range(1, len(QUARTERS)):
        found[quarters == quarter] = images[quarters == quarter].rot90(quarter, (2, 3))
    return found, quarters
