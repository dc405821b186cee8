"""`spheregen encode`: a data set as latents, for the training of a latent denoiser."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

from typer import Argument, Option

from spheregen.cli import options as cli
from spheregen.cli.images import output_folder

if TYPE_CHECKING:
    from torch import nn

    from spheregen.data.latent_cache import Dtype


def encode(
    tokenizer: Annotated[
        str,
        Argument(
            help="The folder of an autoencoder of ours or of diffusers (FOLDER:vae for a part of a pipeline) or of RAE "
            "files, the name of a bundled model, or a Hub id.",
            metavar="TOKENIZER",
        ),
    ],
    source: cli.Source,
    out: Annotated[Path, Option(help="The folder of the latent cache.")],
    split: cli.Split = "train",
    flips: Annotated[bool, Option("--flips", help="Encode each image's mirror image, too.")] = False,
    dtype: Annotated[
        str, Option(help="Of the latents on disk: bf16, computed as fast as the device does; or float32.")
    ] = "bf16",
    batch_size: cli.BatchSize = 64,
    workers: cli.Workers = 0,
    image_size: cli.ImageSize = None,
    pack: Annotated[
        int | None,
        Option(help="For an autoencoder of diffusers: latent pixels along the side of a token."),
    ] = None,
    settings: Annotated[
        list[str] | None,
        Option(
            "--set",
            metavar="NAME=VALUE",
            help="How images are read, as `data` of a recipe says it, repeatable: fit=crop or pad; resize=adm, "
            "bicubic, nearest or published; background=[R,G,B]; on_error=fail or skip; captions=auto or a column keeps "
            "the captions.",
        ),
    ] = None,
    stream: cli.Stream = False,
) -> None:
    """Encode a data set once with a frozen tokenizer; `train` takes the folder as --data of a latent denoiser.

    The same command continues where it was interrupted. Several processes (`torchrun`) share the work and write the
    same files as one.

    Examples:
        spheregen encode runs/autoencoder photos/ --out latents/
        spheregen encode user/vae:vae photos/ --image-size 256 --pack 2 --flips --set fit=pad --out latents/
    """
    from spheregen.data import ImageOptions, open_source
    from spheregen.data.captions import read_captions
    from spheregen.data.decoding import check_reading
    from spheregen.data.encoding import write_latent_cache
    from spheregen.data.source import notes
    from spheregen.devices import choose_device
    from spheregen.distributed import joined_world, local_device
    from spheregen.folders.tokenizers import TOKENIZER, open_tokenizer, save_tokenizer
    from spheregen.lock import locked_folder
    from spheregen.measure.precision import choose_precision

    output_folder(out)
    given = cli.assignments(settings, (*cli.READING_NAMES, "captions"), "fit=pad")
    column = given.pop("captions", None)
    on_error = given.pop("on_error", "fail")
    check_reading(on_error, workers)
    if isinstance(given.get("background"), list):
        given["background"] = tuple(given["background"])
    ImageOptions(image_size=1, **given)  # complains before the tokenizer is loaded
    with joined_world(cli.everywhere.device) as world, locked_folder(out, world):
        place = choose_device(local_device(cli.everywhere.device, world))
        opened_source = open_source(source, split=split, stream=stream)
        captions = None if column is None else read_captions(opened_source, None if column == "auto" else str(column))
        opened = open_tokenizer(tokenizer, image_size=image_size, pack=pack, device=place)
        channels, side, _ = opened.tokenizer.image_shape
        asked = "float32" if dtype == "float32" else "auto"
        precision = choose_precision(asked, place, cast("nn.Module", opened.tokenizer))
        index = write_latent_cache(
            opened.tokenizer,
            opened_source,
            ImageOptions(image_size=side, channels=channels, **given),
            out,
            tokenizer_name=opened.name,
            tokenizer_fingerprint=opened.fingerprint,
            flips=flips,
            dtype=cast("Dtype", dtype),
            batch_size=64 if batch_size is None else batch_size,
            workers=workers,
            on_error=on_error,
            device=place,
            precision=world.gather_objects(precision.name)[0],
            save_tokenizer=lambda folder: save_tokenizer(opened.tokenizer, folder / TOKENIZER),
            captions=captions,
            world=world,
            reporter=cli.reporter(),
        )
    if not world.is_first:
        return
    for line in notes(opened_source):
        cli.warn(line)
    for image in () if cli.everywhere.as_json else index.skipped:
        cli.warn(f"skipped: {image.reason}")
    plan = index.plan
    found = {
        "out": str(out),
        "count": index.count,
        "skipped": [image.reason for image in index.skipped],
        "tokenizer": plan.tokenizer_name,
        "data": f"{plan.source_name}/{plan.split}",
        "class_names": list(plan.class_names),
        "image_size": plan.image.image_size,
        "latent_shape": list(plan.latent_shape),
        **{name: getattr(plan, name) for name in ("dtype", "views", "precision")},
        "shards": len(index.shards),
        "bytes": index.bytes,
        "fingerprint": index.fingerprint,
    }
    cli.finish(
        found,
        "{count} images of {data} as latents of {0} x {1} in {dtype}{2}, {3:.1f} MB: {out}".format(
            *plan.latent_shape, ", mirror images too" if plan.views == 2 else "", index.bytes / 1e6, **found
        ),
    )
