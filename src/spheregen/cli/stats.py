"""`spheregen stats`: what is in a data set, and its statistics under a feature network."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Option

from spheregen.cli import options as cli
from spheregen.cli.images import output_file
from spheregen.errors import ConfigError

if TYPE_CHECKING:
    from spheregen.data import ImageSource, SourceStatistics

BARS = 30  # classes that get a bar each
WIDTH = 40  # characters of the longest bar
_REFERENCE = "Reference statistics"


def stats(
    source: cli.Source,
    split: cli.Split = "train",
    out: Annotated[
        Path | None,
        Option(help="Write a contact sheet to this PNG file; with --features, the statistics (.safetensors)."),
    ] = None,
    features: Annotated[
        str | None,
        Option(
            rich_help_panel=_REFERENCE,
            help="Write reference statistics under this network for `evaluate`: own, inception, dinov2, "
            "dinov3, clip, convnext, NAME=FILE, module:factory.",
        ),
    ] = None,
    image_size: cli.ImageSize = None,
    settings: Annotated[
        list[str] | None,
        Option(
            "--set",
            rich_help_panel=_REFERENCE,
            metavar="NAME=VALUE",
            help="How images are brought to the model's size: channels=3 or 1, fit=crop or pad; repeatable.",
        ),
    ] = None,
    limit: cli.Limit = None,
    workers: cli.Workers = 0,
    stream: cli.Stream = False,
) -> None:
    """Count images, classes, sizes, formats, duplicates and bad files of a data set; write a contact sheet.

    With --features: write the statistics that `evaluate --reference` compares samples with.

    Examples:
        spheregen stats photos/ --out contact.png
        spheregen stats photos/ --features inception --image-size 64 --set fit=pad
    """
    from spheregen.data import contact_sheet, open_source, save_png

    if features is None and out is not None:
        output_file(out, suffix=".png")
    opened = open_source(source, split=split, stream=stream)
    if features is not None:
        _write_reference(opened, features, image_size, settings, out, limit, workers)
        return
    found = examine(opened, limit, workers)
    if out is not None:
        save_png(contact_sheet(opened, bad=found.bad), out, {"source": found.name, "split": found.split})
    cli.answer(found.as_dict(), lambda: _report(found))
    if out is not None:
        cli.say(f"contact sheet: {out}")


def examine(source: ImageSource, limit: int | None, workers: int = 0) -> SourceStatistics:
    """Look at the images of a data set; where they are many, progress is shown."""
    from spheregen.data import source_statistics
    from spheregen.progress import QuietReporter

    count = min(limit or len(source), len(source))
    shown = cli.reporter() if count > 1000 else QuietReporter()
    shown.start(max(1, count), 0, 1)
    try:
        return source_statistics(source, limit=limit, workers=workers, progress=lambda done, _: shown.step(done, None))
    finally:
        shown.stop()


def _write_reference(
    source: ImageSource,
    features: str,
    image_size: int | None,
    settings: list[str] | None,
    out: Path | None,
    limit: int | None,
    workers: int,
) -> None:
    from spheregen.data import ImageOptions
    from spheregen.distributed import is_first_process
    from spheregen.evaluation.reference import write_statistics

    size = image_size or source.native_size
    if size is None:
        raise ConfigError(f"say at which size {source.name} is compared: --image-size PIXELS, that of the model")
    given = {"channels": 3, **cli.assignments(settings, ("channels", "fit"), "fit=pad")}
    network = features.partition("=")[0].replace(":", ".")
    target = output_file(out or Path(f"{source.name}-{source.split}-{size}px-{network}.safetensors"))
    first = is_first_process()
    reference = write_statistics(
        source,
        ImageOptions(image_size=size, **given),
        features,
        target,
        limit=limit,
        workers=workers,
        device=cli.everywhere.device,
        reporter=cli.reporter() if first else None,
    )
    if not first:
        return
    assert reference.info is not None
    count = reference.gaussian.count
    cli.finish(
        {"out": str(target), **reference.record, "count": count, "features": reference.info.as_dict()},
        f"statistics of {count} images of {source.name}/{source.split} at {size} px under {reference.info.title}: "
        f"{target}",
    )


def _report(found: SourceStatistics) -> str:
    spreads = {"width": found.width, "height": found.height, "width/height": found.aspect}
    classes = f"{len(found.class_names)}" if found.class_names else "none: unlabelled"
    if found.balance is not None:
        low, high = min(found.class_counts), max(found.class_counts)
        classes += f" ({low} to {high} images each, balance {found.balance:.2f})"
    examined = f" ({found.examined} examined)" if found.examined < found.count else ""
    rows: dict[str, Any] = {
        "images": f"{found.count}{examined}",
        "encoded": f"{found.encoded_bytes / 1e6:.1f} MB",
        "bad": len(found.bad),
        **{
            name: f"min {spread.smallest:.4g}, median {spread.median:.4g}, max {spread.largest:.4g}"
            for name, spread in spreads.items()
            if spread is not None
        },
        "format": [f"{key} {number}" for key, number in found.formats.items()],
        "mode": [f"{key} {number}" for key, number in found.modes.items()],
        "grey": found.grey,
        "transparent": found.transparent,
        "exact duplicates": found.duplicates,
        "classes": classes,
    }
    if found.image_size is not None:
        rows["suggested"] = f"image_size {found.image_size}, channels {found.channels}"
    lines = [cli.table(rows.items(), (found.name, found.split))]
    if 0 < len(found.class_names) <= BARS:
        longest = max(1, *found.class_counts)
        bars = [f"{'#' * round(WIDTH * number / longest)} {number}" for number in found.class_counts]
        lines += ["", cli.table(zip(found.class_names, bars, strict=True))]
    if found.duplicate_pairs:
        lines += ["", "duplicates:", *(f"  {second} = {first}" for first, second in found.duplicate_pairs)]
        if found.duplicates > len(found.duplicate_pairs):
            lines.append(f"  and {found.duplicates - len(found.duplicate_pairs)} more")
    if found.bad:
        lines += ["", "bad files:", *(f"  {image.reason}" for image in found.bad)]
    return "\n".join(lines)
