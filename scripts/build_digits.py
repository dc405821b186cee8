"""Make src/spheregen/assets/digits.npz from scikit-learn's copy of UCI's handwritten digits (its test set).

    python scripts/build_digits.py

Run once by a developer; the package needs no scikit-learn. The same input gives the same bytes.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

from spheregen.files import atomic_path

TARGET = Path(__file__).parents[1] / "src" / "spheregen" / "assets" / "digits.npz"


def main() -> None:
    digits = load_digits()
    images = digits.images.astype(np.uint8)
    labels = digits.target.astype(np.uint8)
    if images.shape != (1797, 8, 8) or images.max() != 16 or not np.array_equal(images, digits.images):
        raise SystemExit(
            "scikit-learn's digits are not the 1797 pictures of 8x8 integers from 0 to 16 that were expected"
        )
    with atomic_path(TARGET) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, images=images, labels=labels)
    print(f"wrote {TARGET}: {TARGET.stat().st_size} bytes")


if __name__ == "__main__":
    main()
