"""Does a perceptual distance order distortions as people do? Prints a Markdown table.

    python benchmarks/perceptual_order.py --data ../shared/data/cifar10

Test images are blurred, given noise and shifted by growing amounts. The distance should grow with each; and at equal
mean squared error (MSE), which cannot tell them apart, noise should be nearer to the original than blur, as in human
judgements and in LPIPS. The last column is the share of images for which it is.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from distortions import add_noise, blur, shift

from spheregen.data import ImageOptions, load_all, open_source
from spheregen.networks.perceptual import PROVIDERS, PerceptualLoss, load_perceptual

BLURS = (0.5, 1.0, 2.0)  # deviation in pixels
NOISES = (0.02, 0.05, 0.1, 0.2)  # deviation, images in [0, 1]
SHIFTS = (1, 2, 4)  # pixels to the right


@dataclass(frozen=True, kw_only=True)
class Row:
    """One distortion at one strength, averaged over the images."""

    name: str
    mse: float
    distance: float
    per_image: torch.Tensor  # (N,) distances


def squared_error(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Mean squared error of each image, (N,)."""
    return (a - b).square().mean(dim=(1, 2, 3))


def noise_like(images: torch.Tensor, distorted: torch.Tensor) -> torch.Tensor:
    """Images (N, C, H, W) with noise of the same squared error, image by image, as the distorted ones have."""
    return add_noise(images, squared_error(images, distorted).sqrt().view(-1, 1, 1, 1))


def measure(loss: PerceptualLoss, images: torch.Tensor, batch: int = 100) -> list[Row]:
    """All rows of the table for images (N, C, H, W) in [0, 1]."""

    with torch.inference_mode():
        originals = [loss.features(part) for part in images.split(batch)]

    @torch.inference_mode()
    def row(name: str, distorted: torch.Tensor) -> Row:
        parts = zip(originals, distorted.split(batch), strict=True)
        per_image = torch.cat([loss.distance(original, loss.features(part)) for original, part in parts])
        return Row(
            name=name,
            mse=squared_error(images, distorted).mean().item(),
            distance=per_image.mean().item(),
            per_image=per_image,
        )

    plans: list[tuple[str, tuple[float, ...], Callable[[float], torch.Tensor]]] = [
        ("blur {:g} px", BLURS, lambda sigma: blur(images, sigma)),
        ("noise {:g}", NOISES, lambda level: add_noise(images, level)),
        ("shift {:g} px", SHIFTS, lambda pixels: shift(images, int(pixels))),
        ("noise of the MSE of blur {:g} px", BLURS, lambda sigma: noise_like(images, blur(images, sigma))),
    ]
    return [row(name.format(strength), make(strength)) for name, strengths, make in plans for strength in strengths]


def markdown(rows: list[Row]) -> str:
    """The rows as a Markdown table."""
    by_name = {row.name: row for row in rows}
    lines = ["| distortion | MSE | distance | nearer than the blur |", "|---|---|---|---|"]
    for row in rows:
        blurred = by_name.get(row.name.removeprefix("noise of the MSE of ")) if "MSE" in row.name else None
        share = "" if blurred is None else f"{(row.per_image < blurred.per_image).float().mean().item():.1%}"
        lines.append(f"| {row.name} | {row.mse:.5f} | {row.distance:.4f} | {share} |")
    return "\n".join(lines)


def read_images(folder: Path, count: int) -> torch.Tensor:
    """Return the first `count` test images of CIFAR-10 in `folder`, (N, 3, 32, 32) in [0, 1]."""
    return load_all(open_source(folder, split="test"), ImageOptions(image_size=32), limit=count).images / 255


def milliseconds(work: Callable[[], object], repeats: int = 10) -> float:
    """Median time of `work` after one call to warm up."""
    work()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return 1000 * float(np.median(times))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of CIFAR-10's parquet files")
    parser.add_argument("--count", type=int, default=500, help="number of test images")
    parser.add_argument("--provider", choices=[name for name in PROVIDERS if name != "none"], default="builtin")
    parser.add_argument("--weights", type=Path, help="folder of the published weight files")
    parser.add_argument("--time", action="store_true", help="also measure the cost of features for 64 images")
    options = parser.parse_args()

    loss = load_perceptual(options.provider, options.weights)
    assert loss is not None
    images = read_images(options.data, options.count)
    print(markdown(measure(loss, images)))
    if options.time:
        batch = images[:64].clone().requires_grad_()
        with torch.no_grad():
            reference = loss.features(1 - batch)

        def forward() -> None:
            with torch.no_grad():
                loss.features(batch)

        def both() -> None:
            loss.distance(loss.features(batch), reference).mean().backward()

        for threads in (1, 2):
            torch.set_num_threads(threads)
            print(
                f"\n{len(batch)} images, {threads} thread(s): features {milliseconds(forward):.0f} ms, "
                f"features, distance and gradient {milliseconds(both):.0f} ms"
            )


if __name__ == "__main__":
    main()
