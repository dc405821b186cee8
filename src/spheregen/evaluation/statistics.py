"""Reference statistics of a data set, as a file."""

from __future__ import annotations

import shutil
from pathlib import Path

from spheregen.data import ImageOptions, ImageSource
from spheregen.distributed import joined_world
from spheregen.errors import ConfigError
from spheregen.evaluation.images import RealImages
from spheregen.evaluation.measure import measure
from spheregen.evaluation.reference import KEPT, Reference, build_reference, save_reference
from spheregen.evaluation.run import open_networks
from spheregen.progress import QuietReporter, Reporter


def write_statistics(
    source: ImageSource,
    options: ImageOptions,
    features: str,
    out: Path,
    *,
    keep: int = KEPT,
    limit: int | None = None,
    workers: int = 0,
    device: str = "auto",
    reporter: Reporter | None = None,
) -> Reference:
    """Mean and covariance of the features of all images, and the features of some, as one safetensors file.

    Under `torchrun` all processes share the work. What was measured lies beside the file until it is written, so the
    same call again continues after an interruption.

    Args:
        features: one network, see `features.load_extractor`.
        out: the file, .safetensors.
        keep: images whose features are kept for KID, precision and recall; evenly spread.
        limit: measure this many images at most, evenly spread.

    Raises:
        ConfigError: an impossible name of a file or a network.
        DataError: an image cannot be read.
    """
    if out.suffix.lower() != ".safetensors":
        raise ConfigError(f"reference statistics are a .safetensors file, not {out}; give --out such a name")
    if keep < 0:
        raise ConfigError(f"--keep is a number of images from 0 up, not {keep}")
    work = out.with_name(f".{out.name}.work")
    with joined_world(device) as world:
        extractors = open_networks([features], device, world)
        ((name, extractor),) = extractors.items()
        images = RealImages(source, options, limit=limit, workers=workers)
        reporter = reporter if reporter is not None and world.is_first else QuietReporter()
        measured = measure(images, extractors, work, world=world, reporter=reporter)
        reference = build_reference(measured, name, extractor.info, keep=keep)
        if world.is_first:
            save_reference(out, reference)
            shutil.rmtree(work, ignore_errors=True)
        world.wait_for_all()
    return reference
