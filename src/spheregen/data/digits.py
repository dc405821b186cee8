"""The handwritten digits of UCI, embedded: 1797 grey images of 8x8 pixels in ten classes.

E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning Repository, 1998,
https://doi.org/10.24432/C50P49, CC BY 4.0 (assets/LICENSE-digits.txt): its test set, in its own order, which is also
that of scikit-learn's `load_digits`. scripts/build_digits.py makes the file.
"""

from __future__ import annotations

import io
from importlib import resources

import numpy as np
import torch
from PIL import Image

from spheregen.data.images import Pixels
from spheregen.data.source import ImageSource, digest
from spheregen.errors import DataError, did_you_mean

TRAIN_COUNT = 1400  # the first 1400 are for training, the other 397 are held out
HIGHEST = 16  # pixels count the black dots of a 4x4 block: 0..16

_SPLITS = {"train": slice(0, TRAIN_COUNT), "test": slice(TRAIN_COUNT, None), "all": slice(0, None)}


def load_digits() -> tuple[Pixels, Pixels]:
    """Read the embedded file: images (1797, 8, 8) uint8, 0 (paper) .. 16 (ink), and labels (1797,), 0 .. 9."""
    with (
        resources.files("spheregen").joinpath("assets/digits.npz").open("rb") as file,
        np.load(file, allow_pickle=False) as arrays,
    ):
        return arrays["images"], arrays["labels"]


class DigitsSource(ImageSource):
    """The digits as images of mode L, light ink on black: value v becomes round(v * 255 / 16)."""

    native_size = 8
    flips_allowed = False

    def __init__(self, split: str = "train") -> None:
        if split not in _SPLITS:
            hint = did_you_mean(split, _SPLITS)
            raise DataError(f"digits has no split {split!r}; choose one of {', '.join(_SPLITS)}{hint}")
        part = _SPLITS[split]
        images, labels = (values[part] for values in load_digits())
        self.name, self.split = "digits", split
        self.class_names = tuple(str(digit) for digit in range(10))
        self.labels = torch.from_numpy(labels.astype(np.int64))
        self.fingerprint = digest(images.tobytes(), labels.tobytes())
        self.encoded_bytes = images.nbytes
        self._first = part.start
        self._pixels = np.rint(images * (255.0 / HIGHEST)).astype(np.uint8)

    def __len__(self) -> int:
        return len(self._pixels)

    def read_bytes(self, index: int) -> bytes:
        file = io.BytesIO()
        self.read(index).save(file, "PNG")
        return file.getvalue()

    def read(self, index: int) -> Image.Image:
        return Image.fromarray(self._pixels[index])

    def describe(self, index: int) -> str:
        return f"digits {self._first + index}"
