"""`spheregen convert`: model folders from the checkpoints of other implementations."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Option

from spheregen.cli import options as cli
from spheregen.cli.images import output_folder
from spheregen.errors import ConfigError, did_you_mean

FORMATS = {
    "sphere-encoder": "the published Sphere Encoder implementation",
    "sphere-encoder-2": "that of Sphere Encoder 2",
    "sphere-latent-encoder": "a latent denoiser, with --set tokenizer=TOKENIZER",
    "rae": "a folder of model.pt and stat.pt, a tokenizer",
}
OF_FORMAT: Mapping[str, tuple[str, ...]] = {
    "sphere-encoder": ("config", "ema", "class_names"),
    "sphere-encoder-2": ("config", "ema", "class_names", "decoder_only", "encoder_licence", "angle_rounding"),
    "sphere-latent-encoder": ("ema", "class_names", "tokenizer"),
    "rae": ("encoder",),
}
"""The options of each format beside those that all have."""
BY_SET = {
    "encoder_license": "encoder_licence",
    "angle_rounding": "angle_rounding",
    "tokenizer": "tokenizer",
    "encoder": "encoder",
}
"""Those that `--set` gives, by their name there."""
WEIGHTS = {"model": "raw weights", "ema_model": "EMA weights", "bare": "a bare state dictionary"}


def convert(
    form: Annotated[
        str,
        Argument(help="; ".join(f"{name}: {what}" for name, what in FORMATS.items()) + ".", metavar="FORMAT"),
    ],
    weights: Annotated[
        str,
        Option(
            help="A .pth or .safetensors file, a folder with one, or, of Sphere Encoder 2, a Hub id user/name or "
            "user/name:EXPERIMENT.",
            show_default=False,
        ),
    ],
    out: Annotated[Path, Option(help="The model folder to write.", show_default=False)],
    config: Annotated[
        Path | None,
        Option(help="The training's cfg.json. Default: the one beside the weights; else the shapes tell."),
    ] = None,
    ema: Annotated[
        bool | None,
        Option(
            "--ema/--raw",
            help="Take the EMA weights of a training checkpoint, or the raw ones. Default, as published evaluations: "
            "raw ones of sphere-encoder, else EMA where there are any.",
            show_default=False,
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        Option(
            "--set",
            help="A published option, NAME=VALUE, such as noise_sigma_max_angle=80; repeatable. Of sphere-encoder-2 "
            "also angle_rounding=bf16, its tables as the published evaluation rounds them, and encoder_license=FILE, "
            "the text of the frozen encoder's licence; of sphere-latent-encoder tokenizer=NAME; of rae encoder=FOLDER.",
        ),
    ] = None,
    class_names: Annotated[
        str | None, Option(help="Names in the order of the ids: cat,dog, or a text file with one a line.")
    ] = None,
    licence: Annotated[
        str | None,
        Option("--license", help="Licence of the weights. Default: a note that it is that of their origin."),
    ] = None,
    dtype: Annotated[str, Option(help="Type of the written weights: float32 or bfloat16.")] = "float32",
    decoder_only: Annotated[
        bool,
        Option("--decoder-only", help="sphere-encoder-2: leave the frozen encoder out; one step is all that is left."),
    ] = False,
) -> None:
    """Make a model folder of a published checkpoint. Nothing in the checkpoint is executed.

    Examples:
        spheregen convert sphere-encoder --weights checkpoint.pth --ema --out models/converted
        spheregen convert sphere-encoder --weights w.safetensors --set noise_sigma_max_angle=80 --out models/w
        spheregen convert sphere-encoder-2 --weights ep1999.pth --config cfg.json --out models/flowers
    """
    from spheregen import interop

    if form not in FORMATS:
        raise ConfigError(f"unknown format {form!r}{did_you_mean(form, FORMATS)}; known: {', '.join(FORMATS)}")
    options = dict(cli.assignments(settings, (), "noise_sigma_max_angle=80"))
    given: dict[str, Any] = {
        "config": config,
        "ema": ema,
        "class_names": _class_names(class_names) or None,
        "decoder_only": decoder_only or None,
        **{ours: options.pop(name, None) for name, ours in BY_SET.items()},
    }
    given = {name: value for name, value in given.items() if value is not None}
    for name in given.keys() - set(OF_FORMAT[form]):
        others = " or ".join(each for each, names in OF_FORMAT.items() if name in names)
        raise ConfigError(f"{name.replace('_', ' ')} is of {others}; leave it out")
    if form == "sphere-latent-encoder" and "tokenizer" not in given:
        raise ConfigError("a latent denoiser belongs to a tokenizer; name it: --set tokenizer=FOLDER")
    call = {
        "sphere-encoder": interop.convert_sphere_encoder,
        "sphere-encoder-2": interop.convert_sphere_encoder_2,
        "sphere-latent-encoder": interop.convert_sphere_latent,
        "rae": interop.convert_rae,
    }[form]
    result: Any = call(  # type: ignore[operator]
        weights, output_folder(out), options=options, licence=licence, dtype=dtype, **given
    )
    made = result.config
    told = {
        "folder": str(result.folder),
        "weights": result.weights,
        "epoch": result.epoch,
        "parameters": result.parameters,
        **_facts(made),
        "inferred": list(result.inferred),
        "assumed": dict(result.assumed),
    }
    cli.answer(told, lambda: cli.details({**told, "weights": WEIGHTS[result.weights]}))
    use = (
        f"encode images with it: spheregen encode {out} IMAGES"
        if form == "rae"
        else f"sample it with: spheregen sample {out}"
    )
    cli.say(f"the model is in {out}; {use}")


def _facts(config: Any) -> dict[str, Any]:
    """Return what a configuration says of a model, for people."""
    if hasattr(config, "decoder") and hasattr(config.decoder, "channels_in"):
        return {"image_size": config.decoder.image_size, "latent": [config.decoder.tokens, config.decoder.channels_in]}
    patch = {"patch_size": config.patch} if hasattr(config, "patch") else {}
    return {
        "image_size": config.image_size,
        **patch,
        "num_classes": config.num_classes,
        "latent": {"tokens": config.tokens, "channels": config.channels},
        "max_angle": config.max_angle,
    }


def _class_names(text: str | None) -> tuple[str, ...]:
    """Names between commas, or the lines of a text file."""
    if text is None:
        return ()
    path = Path(text)
    if not path.is_file() and path.suffix != ".txt":
        return tuple(cli.split_list(text) or ())
    try:
        lines = path.read_text(encoding="utf-8-sig").rstrip().splitlines()
    except (OSError, ValueError) as error:
        raise ConfigError(f"--class-names: cannot read {path}; give a text file in UTF-8, one name a line") from error
    names = tuple(line.strip() for line in lines)
    if not all(names):
        raise ConfigError(f"--class-names: line {names.index('') + 1} of {path} is empty; write one name a line")
    return names
