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

LISTED = 30  # classes whose images are counted in the table
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
            help="How images are brought to the model's size: channels=3 or 1, fit=crop or pad; captions=NAME, the "
            "column of captions or a table of them; repeatable.",
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
    from spheregen.data import ImageOptions, contact_sheet, open_source, save_png
    from spheregen.data.source import notes
    from spheregen.distributed import is_first_process

    if features is None and out is not None:
        output_file(out, suffix=".png")
    opened = open_source(source, split=split, stream=stream)
    for line in notes(opened):
        if features is not None or line.startswith("warning"):  # the table lists what was ignored
            cli.warn(line)
    if features is None:
        own = cli.assignments(settings, ("channels", "fit", "captions"), "captions=name")
        found = examine(opened, limit, workers, own.get("captions"))
        if out is not None:
            save_png(contact_sheet(opened, bad=found.bad), out, {"source": found.name, "split": found.split})
        cli.answer(found.as_dict(), lambda: _report(found))
        if out is not None:
            cli.say(f"contact sheet: {out}")
        return

    from spheregen.evaluation.reference import write_statistics

    size = image_size or opened.native_size
    if size is None:
        raise ConfigError(f"say at which size {opened.name} is compared: --image-size PIXELS, that of the model")
    given = {"channels": 3, **cli.assignments(settings, ("channels", "fit", "captions"), "fit=pad")}
    given.pop("captions", None)
    network = features.partition("=")[0].replace(":", ".")
    target = output_file(out or Path(f"{opened.name}-{opened.split}-{size}px-{network}.safetensors"))
    reference = write_statistics(
        opened,
        ImageOptions(image_size=size, **given),
        features,
        target,
        limit=limit,
        workers=workers,
        device=cli.everywhere.device,
        reporter=cli.reporter() if is_first_process() else None,
    )
    if is_first_process():
        assert reference.info is not None
        count, title = reference.gaussian.count, reference.info.title
        cli.finish(
            {"out": str(target), **reference.record, "count": count, "features": reference.info.as_dict()},
            f"statistics of {count} images of {opened.name}/{opened.split} at {size} px under {title}: {target}",
        )


def examine(source: ImageSource, limit: int | None, workers: int = 0, captions: str | None = None) -> SourceStatistics:
    """Look at the images of a data set; where they are many, progress is shown."""
    from spheregen.data import source_statistics
    from spheregen.progress import QuietReporter

    count = min(limit or len(source), len(source))
    shown = cli.reporter() if count > 1000 else QuietReporter()
    shown.start(max(1, count), 0, 1)
    try:
        return source_statistics(
            source, limit=limit, workers=workers, captions=captions, progress=lambda done, _: shown.step(done, None)
        )
    finally:
        shown.stop()


def _captions(found: SourceStatistics) -> dict[str, Any]:
    """Return the rows of captions."""
    told = found.captions
    if told is None:
        return {"captions": found.caption_problem or None}
    return {
        "captions": f"{told.captions}, {told.different} different, up to {told.most} an image",
        "without caption": told.without,
        "same as of another": told.doubled,
        "caption length": f"min {told.shortest}, median {told.median:.4g}, max {told.longest} characters",
        "caption script": [f"{key.title()} {number}" for key, number in told.scripts.items()],
        "such as": told.examples[0] if told.examples else None,
    }


def _report(found: SourceStatistics) -> str:
    from spheregen.data.names import without_captions

    ignored = found.ignored if found.captions is None else without_captions(found.ignored)
    spreads = {"width": found.width, "height": found.height, "width/height": found.aspect}
    rows: dict[str, Any] = {
        "data": f"{found.name}/{found.split}",
        "images": found.count,
        "examined": found.examined,
        "encoded": f"{found.encoded_bytes / 1e6:.1f} MB",
        **{
            name: f"min {spread.smallest:.4g}, median {spread.median:.4g}, max {spread.largest:.4g}"
            for name, spread in spreads.items()
            if spread is not None
        },
        "format": [f"{key} {number}" for key, number in found.formats.items()],
        "mode": [f"{key} {number}" for key, number in found.modes.items()],
        "grey": found.grey,
        "transparent": found.transparent,
        "suggested image_size": found.image_size,
        "suggested channels": found.channels,
        "classes": len(found.class_names) or "none: unlabelled",
        **_captions(found),
        "balance": found.balance,
        "duplicates": found.duplicates,
        "bad": len(found.bad),
        "ignored": sum(one.count for one in ignored),
    }
    lines = [cli.table(rows.items())]
    if 0 < len(found.class_names) <= LISTED:
        lines += ["", cli.table(zip(found.class_names, found.class_counts, strict=True), ("class", "images"))]
    lines += [f"duplicate: {second} = {first}" for first, second in found.duplicate_pairs]
    lines += [f"bad: {image.reason}" for image in found.bad]
    lines += [f"ignored: {one}" for one in ignored]
    return "\n".join(lines)
