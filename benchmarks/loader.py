"""How many images a second does the loader deliver by itself? Prints a Markdown table.

    python benchmarks/loader.py --data ../shared/data/cifar10 --image-size 32

The images of the given data (any SRC) are also written as a folder, a zip and a tar into a temporary folder: all
kinds of source hold the same. Nothing is cached: every image is read and decoded. The median of three rounds.
"""

from __future__ import annotations

import argparse
import io
import statistics
import tarfile
import tempfile
import time
import zipfile
from pathlib import Path

import numpy as np
import torch

from spheregen.data import ImageOptions, TrainingBatches, open_source

BATCH = 128


def copies(data: str, split: str, count: int, folder: Path) -> dict[str, str]:
    """The first `count` images of `data` in several kinds of source; name to SRC."""
    source = open_source(data, split=split)
    tree, packed, tar = folder / "tree", folder / "set.zip", folder / "set.tar"
    with zipfile.ZipFile(packed, "w") as archive, tarfile.open(tar, "w") as shard:
        for i in np.linspace(0, len(source) - 1, min(count, len(source))).astype(int).tolist():
            content = source.read_bytes(i)
            label = "all" if source.labels is None else source.class_names[int(source.labels[i])]
            name = f"{label}/{i:08d}.jpg"
            (tree / label).mkdir(parents=True, exist_ok=True)
            (tree / name).write_bytes(content)
            archive.writestr(name, content)
            info = tarfile.TarInfo(name)
            info.size = len(content)
            shard.addfile(info, io.BytesIO(content))
    return {"as given": data, "folder": str(tree), "zip": str(packed), "tar": str(tar)}


def rate(data: str, split: str, options: ImageOptions, workers: int, count: int) -> float:
    """Images a second, with the start of the workers, without the opening of the source."""
    source = open_source(data, split=split)
    steps = max(1, min(count, len(source)) // BATCH)
    results = []
    for _ in range(3):
        batches = TrainingBatches(
            source, options, batch_size=BATCH, steps=steps, workers=workers, cache_bytes=0, validate=False
        )
        begun = time.perf_counter()
        done = sum(len(batch.inputs) for batch in batches)
        results.append(done / (time.perf_counter() - begun))
    return statistics.median(results)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="any SRC")
    parser.add_argument("--split", default="train")
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--count", type=int, default=10_000, help="images at most")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    options = ImageOptions(image_size=arguments.image_size)
    print(f"| source | {' | '.join(f'{workers} workers' for workers in arguments.workers)} |")
    print(f"|---|{'---|' * len(arguments.workers)}")
    with tempfile.TemporaryDirectory() as folder:
        sources = copies(arguments.data, arguments.split, arguments.count, Path(folder))
        for name, data in sources.items():
            split = arguments.split if name == "as given" else "train"
            rates = [rate(data, split, options, workers, arguments.count) for workers in arguments.workers]
            print(f"| {name} | {' | '.join(f'{value:.0f}' for value in rates)} |", flush=True)


if __name__ == "__main__":
    main()
