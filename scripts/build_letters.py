"""Make src/spheregen/assets/letters.npz.xz, the fonts of its glyphs and its credits from a parquet set of glyphs.

    python scripts/build_letters.py FOLDER

FOLDER holds train*.parquet and test*.parquet with the columns image (PNG, grey, 32 px), label (0 to 61), font, family
and licence. Fonts of other licences than those named below are left out. Run once by a developer; the same input gives
the same bytes.
"""

from __future__ import annotations

import io
import lzma
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from spheregen.files import atomic_path, write_text

ASSETS = Path(__file__).parents[1] / "src" / "spheregen" / "assets"
LICENCES = {
    "OFL-1.1": "SIL Open Font License 1.1, https://openfontlicense.org",
    "Apache-2.0": "Apache License 2.0, https://www.apache.org/licenses/LICENSE-2.0",
    "MIT": "MIT License, https://opensource.org/license/mit",
    "public-domain": "public domain, or as free as that",
}
SIZE = 32


def main(folder: Path) -> None:
    images, labels, named, fonts, counts = [], [], [], defaultdict(set), []
    for split in ("train", "test"):
        rows = pq.read_table(sorted(folder.glob(f"{split}*.parquet"))).to_pylist()
        for row in rows:
            if row["licence"] in LICENCES:
                pixels = np.asarray(Image.open(io.BytesIO(row["image"]["bytes"])))
                assert pixels.shape == (SIZE, SIZE) and pixels.dtype == np.uint8
                values = np.rint(pixels / 17).astype(np.uint8)
                images.append(values[:, ::2] << 4 | values[:, 1::2])
                labels.append(row["label"])
                named.append(f"{row['family']}\t{row['font']}")
                fonts[row["licence"]].add((row["family"], row["font"]))
        counts.append(len(images))
    target = write("letters", images=np.stack(images), labels=np.array(labels, dtype=np.uint8))
    names = sorted(set(named))
    numbers = np.array([names.index(name) for name in named], dtype=np.uint16)
    write("letters-fonts", fonts=numbers, names=np.frombuffer("\n".join(names).encode(), dtype=np.uint8))
    lines = [
        "letters.npz.xz: glyphs A-Z, a-z and 0-9 of the fonts below, drawn at 32 px in 16 levels of grey.",
        "",
        "The pictures are no font software and contain none. Each font is named with its family; by licence:",
    ]
    for licence, of in fonts.items():
        lines += ["", f"{LICENCES[licence]}", *(f"  {family}: {font}" for family, font in sorted(of))]
    write_text(ASSETS / "CREDITS-letters.txt", "\n".join(lines) + "\n")
    total = sum(len(of) for of in fonts.values())
    print(
        f"wrote {target}: {target.stat().st_size} bytes, {counts[0]} and {counts[1] - counts[0]} images, {total} fonts"
    )


def write(name: str, **arrays: np.ndarray) -> Path:
    """Write arrays into an asset."""
    file, target = io.BytesIO(), ASSETS / f"{name}.npz.xz"
    np.savez(file, **arrays)
    with atomic_path(target) as temporary:
        temporary.write_bytes(lzma.compress(file.getvalue(), preset=9 | lzma.PRESET_EXTREME))
    return target


if __name__ == "__main__":
    main(Path(sys.argv[1]))
