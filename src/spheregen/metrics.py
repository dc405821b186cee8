"""Metrics of two sets of images, each in one call.

sg.metrics.fid("samples", "photos", features="inception")
sg.metrics.precision_recall("samples.zip", "photos").recall

A set is anything that `sg.data.open_source` opens (a folder, an archive, a Hub data set, "digits"), an opened source,
or images themselves: a tensor (N, C, H, W), an array (N, H, W, C), a list of PIL images or paths. The first set is the
samples, the second one the real images; size and channels are those of most samples. Images that were changed for that,
and samples that are also real images, are told by a `UserWarning`.
"""

from __future__ import annotations

import contextlib
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from spheregen.data import ImageSource, encode_png, to_pil
from spheregen.data.inputs import ImageInput, open_images
from spheregen.data.source import digest
from spheregen.devices import choose_device
from spheregen.errors import ConfigError
from spheregen.evaluation.evaluator import SHARED, SPLITS
from spheregen.evaluation.feature_cache import extract_features
from spheregen.evaluation.images import GivenImages, RealImages, open_sets
from spheregen.evaluation.protocol import KID_SUBSET
from spheregen.evaluation.reference import count_shared
from spheregen.measure import metrics as formulas
from spheregen.measure.features import load_extractors
from spheregen.measure.metrics import Manifold

__all__ = ["Images", "Manifold", "cmmd", "fid", "inception_score", "kid", "precision_recall"]

Images = str | Path | ImageSource | Tensor | npt.NDArray[Any] | Sequence[ImageInput]
"""A set of images."""


def fid(samples: Images, real: Images, *, features: str = "own", **how: Any) -> float:
    """Return the Frechet distance of two sets; FID proper with `features="inception"`. 0 for equal sets.

    Args:
        samples, real: at least 2 images each; figures of different numbers of samples cannot be compared.
        features: a feature network, see `spheregen evaluate --features`.
        how: for every metric. `split` ("train"): of sets that have splits. `image_size`, `channels`: instead of those
            of most samples. `device` ("auto"). `workers` (0): processes that decode images.

    Raises:
        SphereGenError: a set cannot be opened or read, or holds too few images.
    """
    with _measured((samples, real), features, **how) as (x, y):
        return formulas.frechet_distance(formulas.gaussian(x), formulas.gaussian(y))


def kid(samples: Images, real: Images, *, features: str = "own", subset: int = KID_SUBSET, **how: Any) -> float:
    """Return the kernel distance, the mean over random subsets of so many images, or of all where there are fewer."""
    with _measured((samples, real), features, **how) as (x, y):
        return formulas.kernel_distance(x, y, size=min(subset, len(x), len(y))).value


def precision_recall(samples: Images, real: Images, *, features: str = "own", **how: Any) -> Manifold:
    """Return precision, recall, density and coverage; time and memory grow with both numbers of images."""
    with _measured((samples, real), features, **how) as (x, y):
        return formulas.manifold(x, y)


def cmmd(samples: Images, real: Images, *, features: str = "clip", **how: Any) -> float:
    """Return CLIP's maximum mean discrepancy, of features of unit norm."""
    with _measured((samples, real), features, **how) as (x, y):
        return formulas.cmmd(x, y)


def inception_score(samples: Images, *, features: str = "inception", splits: int = SPLITS, **how: Any) -> float:
    """Return exp of the mean divergence of the class probabilities, over splits: from 1 to the number of classes."""
    with _measured((samples,), features, logits=True, **how) as (x,):
        return formulas.inception_score(x, splits).value


@contextlib.contextmanager
def _measured(
    sets: Sequence[Images],
    features: str,
    *,
    logits: bool = False,
    split: str = "train",
    image_size: int | None = None,
    channels: int | None = None,
    device: str = "auto",
    workers: int = 0,
) -> Iterator[list[Tensor]]:
    """Yield the features (N, D) of each set, or the logits (N, K)."""
    extractors = load_extractors([features], choose_device(device))
    (name,) = extractors
    if logits and not extractors[name].info.classes:
        raise ConfigError(f"the network {name} gives no class logits; take features='inception'")
    opened = open_sets([each if isinstance(each, str | Path | ImageSource) else _Given(each) for each in sets], split)
    like = opened[1] if len(opened) > 1 else None
    samples = GivenImages(opened[0], like=like, image_size=image_size, channels=channels, workers=workers)
    images = [samples, *(RealImages(each, samples.options, workers=workers) for each in opened[1:])]
    with tempfile.TemporaryDirectory(prefix="spheregen-", ignore_cleanup_errors=True) as folder:
        found = [extract_features(each, extractors, Path(folder)) for each in images]
        notes = list(samples.notes)
        for other in found[1:]:
            if shared := count_shared(found[0], other):
                notes.append(SHARED.format(shared, len(samples)))
        for note in notes:
            warnings.warn(note, stacklevel=4)
        yield [each.logits[name] if logits else each.features[name] for each in found]


class _Given(ImageSource):
    """Images in memory as a source."""

    name, split, class_names, labels = "images", "train", (), None

    def __init__(self, images: Tensor | npt.NDArray[np.generic] | Sequence[ImageInput]) -> None:
        opened = (to_pil(each[None])[0] if isinstance(each, torch.Tensor) else each for each in open_images(images))
        self._files = [encode_png(each) for each in opened]
        self.fingerprint, self.encoded_bytes = digest(*self._files), sum(map(len, self._files))

    def __len__(self) -> int:
        return len(self._files)

    def read_bytes(self, index: int) -> bytes:
        return self._files[index]

    def describe(self, index: int) -> str:
        return f"image {index}"
