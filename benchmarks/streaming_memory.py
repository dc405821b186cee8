"""Does memory stay flat over a large set of shards? Builds one, iterates over it, prints a Markdown table.

    python benchmarks/streaming_memory.py --folder shards --gigabytes 4

The set is noise JPEGs of 256 pixels in tar shards and in parquet files, each of the given size; both stay in the folder
and are used again. Each run is a process of its own that iterates one epoch of `TrainingBatches`; memory is the
proportional set size (pages shared by processes count once) of it and all its children, read every 0.1 s from /proc, so
this runs on Linux only.
"""

from __future__ import annotations

import argparse
import io
import json
import subprocess
import sys
import tarfile
import threading
import time
from pathlib import Path

import numpy as np
from PIL import Image

SIDE, QUALITY, DISTINCT = 256, 95, 64
SHARD_BYTES = 256 << 20
GROUP_ROWS = 100  # rows of a parquet row group: what Hugging Face datasets writes for images
BATCH, IMAGE_SIZE, EARLY_STEP = 32, 64, 100


def noise_images() -> list[bytes]:
    """A few noise JPEGs; a counter behind their end makes each copy a different file."""
    generator = np.random.default_rng(0)
    result = []
    for _ in range(DISTINCT):
        file = io.BytesIO()
        pixels = generator.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(file, "JPEG", quality=QUALITY)
        result.append(file.getvalue())
    return result


def build(folder: Path, total: int) -> None:
    """Write the shards, in both formats."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    images = noise_images()
    size = sum(map(len, images)) // len(images)
    count, per_shard = total // size, max(1, SHARD_BYTES // size)
    schema = pa.schema([("image", pa.binary()), ("label", pa.int64())])
    for kind in ("tar", "parquet"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    for shard, first in enumerate(range(0, count, per_shard)):
        numbers = range(first, min(count, first + per_shard))
        tar = folder / "tar" / f"train-{shard:06d}.tar"
        if not tar.exists():
            with tarfile.open(tar, "w") as archive:
                for i in numbers:
                    data = images[i % DISTINCT] + i.to_bytes(8, "little")
                    for name, content in ((f"{i:08d}.jpg", data), (f"{i:08d}.cls", str(i % 10).encode())):
                        info = tarfile.TarInfo(name)
                        info.size = len(content)
                        archive.addfile(info, io.BytesIO(content))
        table = folder / "parquet" / f"train-{shard:05d}-of-{-(-count // per_shard):05d}.parquet"
        if not table.exists():
            with pq.ParquetWriter(table, schema, compression="none") as writer:
                for start in range(numbers.start, numbers.stop, GROUP_ROWS):
                    rows = range(start, min(numbers.stop, start + GROUP_ROWS))
                    column = [images[i % DISTINCT] + i.to_bytes(8, "little") for i in rows]
                    writer.write_table(pa.table({"image": column, "label": [i % 10 for i in rows]}, schema=schema))


def family_bytes(process: int) -> int:
    """Proportional set size of a process and its descendants."""
    total = 0
    pending = [process]
    while pending:
        current = pending.pop()
        try:
            for line in Path(f"/proc/{current}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1]) << 10
            for task in Path(f"/proc/{current}/task").iterdir():
                pending += [int(child) for child in (task / "children").read_text().split()]
        except OSError:  # it ended in the meantime
            continue
    return total


def measure(folder: str, shuffle: str, workers: int, limit: int) -> None:
    """One epoch; prints the peaks as JSON."""
    import os

    import torch

    from spheregen.data import ImageOptions, TrainingBatches, open_source

    torch.set_num_threads(1)
    peaks = {"early": 0, "late": 0}
    phase, stopped = "early", threading.Event()

    def watch() -> None:
        while not stopped.wait(0.1):
            peaks[phase] = max(peaks[phase], family_bytes(os.getpid()))

    source = open_source(folder)
    steps = min(len(source) // BATCH, limit or 1 << 60)
    batches = TrainingBatches(
        source, ImageOptions(image_size=IMAGE_SIZE, resize="nearest"), batch_size=BATCH, steps=steps, cache_bytes=0,
        workers=workers, validate=False, shuffle=shuffle,  # type: ignore[arg-type]
    )  # fmt: skip
    watcher = threading.Thread(target=watch)
    begun = time.perf_counter()
    for batch in batches:
        if batch.step == 0:
            watcher.start()  # after the workers were forked
        if batch.step + 1 == EARLY_STEP:
            phase = "late"
    seconds = time.perf_counter() - begun
    stopped.set()
    watcher.join()
    print(json.dumps(peaks | {"steps": steps, "rate": steps * BATCH / seconds, "bytes": source.encoded_bytes}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="where the shards are written")
    parser.add_argument("--gigabytes", type=float, default=4.0, help="size of the set in each format")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2])
    parser.add_argument("--steps", type=int, default=0, help="stop after so many steps; 0 = one epoch")
    parser.add_argument("--measure", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        folder, shuffle, workers, limit = arguments.measure
        measure(folder, shuffle, int(workers), int(limit))
        return
    build(arguments.folder, int(arguments.gigabytes * 1e9))
    print("| shards | order | workers | steps | peak to step 100 | peak after | growth | images/s |")
    print("|---|---|---|---|---|---|---|---|")
    for kind, shuffle in (("tar", "full"), ("tar", "blocks"), ("parquet", "blocks")):
        for workers in arguments.workers:
            place = str(arguments.folder / kind)
            command = [sys.executable, __file__, "--folder", str(arguments.folder), "--measure"]
            done = subprocess.run(
                [*command, place, shuffle, str(workers), str(arguments.steps)],
                check=True, stdout=subprocess.PIPE, text=True,
            )  # fmt: skip
            found = json.loads(done.stdout)
            early, late = found["early"] / 1e6, found["late"] / 1e6
            print(
                f"| {found['bytes'] / 1e9:.1f} GB {kind} | {shuffle} | {workers} | {found['steps']} | {early:.0f} MB | "
                f"{late:.0f} MB | {late - early:+.0f} MB | {found['rate']:.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
