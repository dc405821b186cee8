"""`spheregen stats`: what is in a data set, and its statistics under a feature network."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from spheregen.cli.options import Device, Json, Quiet, output_file, print_json, say, table

if TYPE_CHECKING:
    from spheregen.data import ImageSource, SourceStatistics

BARS = 30  # classes that get a bar each
WIDTH = 40  # characters of the longest bar


def stats(
    source: Annotated[
        str,
        typer.Argument(
            help="`digits`, a folder of images, .zip, .parquet or .tar files (or a pattern), a URL, a Hub data set.",
            metavar="SRC",
        ),
    ],
    split: Annotated[str, typer.Option(help="Which part of the data: train, test, all.")] = "train",
    out: Annotated[
        Path | None,
        typer.Option(help="Write a contact sheet to this PNG file; with --features, the statistics (.safetensors)."),
    ] = None,
    features: Annotated[
        str | None,
        typer.Option(
            help="Write reference statistics under this network for `evaluate`: own, inception, dinov2, "
            "dinov3, clip, convnext, NAME=FILE, module:factory."
        ),
    ] = None,
    image_size: Annotated[
        int | None, typer.Option(help="With --features: the side in pixels that images are brought to, the model's.")
    ] = None,
    channels: Annotated[int, typer.Option(help="With --features: 3 for colour, 1 for grey.")] = 3,
    fit: Annotated[str, typer.Option(help="With --features: crop or pad to a square.")] = "crop",
    keep: Annotated[
        int, typer.Option(help="With --features: images whose features are kept for KID, precision and recall.")
    ] = 10_000,
    device: Device = "auto",
    limit: Annotated[int | None, typer.Option(help="Look at this many images, evenly spread.")] = None,
    workers: Annotated[int, typer.Option(help="Processes that decode; 0 for this one.")] = 0,
    stream: Annotated[bool, typer.Option(help="Read a Hub data set over the network, without a download.")] = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Count images, classes, sizes, formats, duplicates and bad files of a data set; write a contact sheet.

    With --features: write the statistics that `evaluate --reference` compares samples with.
    """
    from spheregen.data import contact_sheet, open_source, save_png, source_statistics
    from spheregen.errors import ConfigError
    from spheregen.progress import QuietReporter, default_reporter

    if features is not None:
        opened = open_source(source, split=split, stream=stream)
        _write_reference(opened, features, image_size, channels, fit, out, keep, limit, workers, device, quiet, as_json)
        return
    if out is not None and (out.suffix.lower() != ".png" or out.is_dir()):
        raise ConfigError(f"the contact sheet is a PNG file, not {out}; give --out a name that ends in .png")
    opened = open_source(source, split=split, stream=stream)
    count = len(opened) if limit is None else min(limit, len(opened))
    reporter = default_reporter(quiet=quiet) if count > 2000 else QuietReporter()
    reporter.start(max(1, count), 0, 1)
    try:
        found = source_statistics(
            opened, limit=limit, workers=workers, progress=lambda done, _: reporter.step(done, None)
        )
    finally:
        reporter.stop()
    if out is not None:
        save_png(contact_sheet(opened, bad=found.bad), out, {"source": found.name, "split": found.split})
    if as_json:
        print_json(found.as_dict())
        return
    print(_report(found))
    if out is not None:
        say(f"contact sheet: {out}")


def _write_reference(
    source: ImageSource,
    features: str,
    image_size: int | None,
    channels: int,
    fit: str,
    out: Path | None,
    keep: int,
    limit: int | None,
    workers: int,
    device: str,
    quiet: bool,
    as_json: bool,
) -> None:
    from spheregen.data import ImageOptions
    from spheregen.distributed import is_first_process
    from spheregen.errors import ConfigError
    from spheregen.evaluation.statistics import write_statistics
    from spheregen.progress import default_reporter

    size = image_size or source.native_size
    if size is None:
        raise ConfigError(f"say at which size {source.name} is compared: --image-size PIXELS, that of the model")
    options = ImageOptions(image_size=size, channels=channels, fit="pad" if fit == "pad" else "crop")
    if fit not in ("crop", "pad"):
        raise ConfigError(f"--fit is crop or pad, not {fit!r}")
    network = features.partition("=")[0].replace(":", ".")
    target = output_file(out or Path(f"{source.name}-{source.split}-{size}px-{network}.safetensors"))
    reporter = default_reporter(quiet=quiet) if is_first_process() else None
    reference = write_statistics(
        source, options, features, target, keep=keep, limit=limit, workers=workers, device=device, reporter=reporter
    )
    if not is_first_process():
        return
    assert reference.info is not None
    answer = {"out": str(target), **reference.record, "count": reference.gaussian.count}
    if as_json:
        print_json({**answer, "features": reference.info.as_dict()})
    else:
        say(
            f"statistics of {reference.gaussian.count} images of {source.name}/{source.split} at {size} px under "
            f"{reference.info.title}: {target}"
        )


def _report(found: SourceStatistics) -> str:
    rows: list[tuple[str, ...]] = [
        ("images", f"{found.count}" + (f" ({found.examined} examined)" if found.examined < found.count else "")),
        ("encoded", f"{found.encoded_bytes / 1e6:.1f} MB"),
        ("bad", str(len(found.bad))),
    ]
    for name, spread in (("width", found.width), ("height", found.height), ("width/height", found.aspect)):
        if spread is not None:
            values = (spread.smallest, spread.median, spread.largest)
            rows.append((name, "min {:.4g}, median {:.4g}, max {:.4g}".format(*values)))
    for name, counts in (("format", found.formats), ("mode", found.modes)):
        rows.append((name, ", ".join(f"{key} {number}" for key, number in counts.items()) or "none"))
    rows.append(("grey", str(found.grey)))
    rows.append(("transparent", str(found.transparent)))
    rows.append(("exact duplicates", str(found.duplicates)))
    classes = str(len(found.class_names)) if found.class_names else "none: unlabelled"
    if found.balance is not None:
        low, high = min(found.class_counts), max(found.class_counts)
        classes += f" ({low} to {high} images each, balance {found.balance:.2f})"
    rows.append(("classes", classes))
    if found.image_size is not None:
        rows.append(("suggested", f"image_size {found.image_size}, channels {found.channels}"))
    lines = [table(rows, (found.name, found.split))]
    if 0 < len(found.class_names) <= BARS:
        longest = max(1, max(found.class_counts))
        width = max(len(name) for name in found.class_names)
        lines.append("")
        for name, number in zip(found.class_names, found.class_counts, strict=True):
            lines.append(f"{name.ljust(width)}  {'#' * round(WIDTH * number / longest)} {number}")
    if found.duplicate_pairs:
        lines += ["", "duplicates:", *(f"  {second} = {first}" for first, second in found.duplicate_pairs)]
        if found.duplicates > len(found.duplicate_pairs):
            lines.append(f"  and {found.duplicates - len(found.duplicate_pairs)} more")
    if found.bad:
        lines += ["", "bad files:", *(f"  {image.reason}" for image in found.bad)]
    return "\n".join(lines)
