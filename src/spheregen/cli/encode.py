"""`spheregen encode`: a data set as latents, for the training of a latent denoiser."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from spheregen.cli.options import Device, Json, Quiet, output_folder, print_json, say, split_numbers

if TYPE_CHECKING:
    from spheregen.data import OnError
    from spheregen.data.latent_cache import CacheIndex, Dtype


def encode(
    tokenizer: Annotated[
        str,
        typer.Argument(
            help="The folder of an autoencoder of ours or of diffusers (FOLDER:vae for a part of a pipeline) or of RAE "
            "files, the name of a bundled model, or a Hub id.",
            metavar="TOKENIZER",
        ),
    ],
    source: Annotated[
        str,
        typer.Argument(
            help="`digits`, a folder of images, .zip, .parquet or .tar files (or a pattern), a URL, a Hub data set.",
            metavar="SRC",
        ),
    ],
    out: Annotated[Path, typer.Option(help="The folder of the latent cache.")],
    split: Annotated[str, typer.Option(help="Which part of the data: train, test, all.")] = "train",
    flips: Annotated[bool, typer.Option("--flips", help="Encode each image's mirror image, too.")] = False,
    dtype: Annotated[str, typer.Option(help="Of the latents on disk: bf16 or float32.")] = "bf16",
    precision: Annotated[
        str, typer.Option(help="In which the tokenizer computes: auto, float32 or bf16. auto is bf16 on CUDA.")
    ] = "auto",
    shard_images: Annotated[int, typer.Option(help="Images of a file; an interruption loses about as many.")] = 4096,
    batch_size: Annotated[int, typer.Option(help="Images that go through the tokenizer at once.")] = 64,
    workers: Annotated[int, typer.Option(help="Processes that decode; 0 for this one.")] = 0,
    image_size: Annotated[
        int | None, typer.Option(help="Side in pixels, for an autoencoder of diffusers, which takes any.")
    ] = None,
    pack: Annotated[
        int | None, typer.Option(help="For such an autoencoder: latent pixels along the side of a token.")
    ] = None,
    fit: Annotated[str, typer.Option(help="Images become squares by crop or pad.")] = "crop",
    resize: Annotated[str, typer.Option(help="adm, bicubic, nearest, or published: nearest up to 64 px.")] = "adm",
    background: Annotated[
        str, typer.Option(help="Red, green and blue, 0 to 255, behind transparency and padding.")
    ] = "255,255,255",
    on_error: Annotated[str, typer.Option(help="Images that cannot be read: fail, or skip them.")] = "fail",
    stream: Annotated[bool, typer.Option(help="Read a Hub data set over the network, without a download.")] = False,
    device: Device = "auto",
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Encode a data set once with a frozen tokenizer; `train` takes the folder as --data of a latent denoiser.

    The same command continues where it was interrupted. Several processes (`torchrun`) share the work and write the
    same files as one.
    """
    from spheregen.data import ImageOptions, open_source
    from spheregen.data.dataset import check_reading
    from spheregen.data.latent_cache import write_latent_cache
    from spheregen.devices import choose_device, choose_precision
    from spheregen.distributed import joined_world, local_device
    from spheregen.model_folder import TOKENIZER
    from spheregen.progress import default_reporter
    from spheregen.tokenizers.opening import open_tokenizer, save_tokenizer

    output_folder(out)
    check_reading(on_error, workers)
    preprocessing = _preprocessing(fit, resize, background)
    with joined_world(device) as world:
        place = choose_device(local_device(device, world))
        opened_source = open_source(source, split=split, stream=stream)
        opened = open_tokenizer(tokenizer, image_size=image_size, pack=pack, device=place)
        channels, side, _ = opened.tokenizer.image_shape
        index = write_latent_cache(
            opened.tokenizer,
            opened_source,
            ImageOptions(image_size=side, channels=channels, **preprocessing),
            out,
            tokenizer_name=opened.name,
            tokenizer_fingerprint=opened.fingerprint,
            flips=flips,
            dtype=cast("Dtype", dtype),
            shard_images=shard_images,
            batch_size=batch_size,
            workers=workers,
            on_error=cast("OnError", on_error),
            device=place,
            precision=choose_precision(precision, place),
            save_tokenizer=lambda folder: save_tokenizer(opened.tokenizer, folder / TOKENIZER),
            world=world,
            reporter=default_reporter(quiet=quiet),
        )
    if not world.is_first:
        return
    if as_json:
        print_json(_answer(out, index))
        return
    for image in index.skipped:
        say(f"skipped: {image.reason}")
    plan = index.plan
    views = ", mirror images too" if plan.views == 2 else ""
    say(
        f"{index.count} images of {plan.source_name}/{plan.split} as latents of {plan.latent_shape[0]} x "
        f"{plan.latent_shape[1]} in {plan.dtype}{views}, {index.bytes / 1e6:.1f} MB: {out}"
    )


def _preprocessing(fit: str, resize: str, background: str) -> dict[str, Any]:
    """The options of `ImageOptions` that the tokenizer does not decide, checked before it is loaded.

    Raises:
        ConfigError: one is impossible.
    """
    from spheregen.data import ImageOptions

    colour = tuple(split_numbers(background, "--background", int))
    values: dict[str, Any] = {"fit": fit, "resize": resize, "background": colour}
    ImageOptions(image_size=1, **values)
    return values


def _answer(out: Path, index: CacheIndex) -> dict[str, Any]:
    plan = index.plan
    return {
        "out": str(out),
        "count": index.count,
        "skipped": [image.reason for image in index.skipped],
        "tokenizer": plan.tokenizer_name,
        "data": f"{plan.source_name}/{plan.split}",
        "class_names": list(plan.class_names),
        "image_size": plan.image.image_size,
        "latent_shape": list(plan.latent_shape),
        "dtype": plan.dtype,
        "views": plan.views,
        "precision": plan.precision,
        "shards": len(index.shards),
        "bytes": index.bytes,
        "fingerprint": index.fingerprint,
    }
