"""`spheregen convert`: model folders from the checkpoints of other implementations."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spheregen.cli.options import Json, output_folder, print_json, say, split_list, table

if TYPE_CHECKING:
    from spheregen.interop import ConvertedModel

FORMATS = ("sphere-encoder",)
WEIGHTS = {"model": "raw weights", "ema_model": "EMA weights", "bare": "a bare state dictionary"}


def convert(
    form: Annotated[
        str,
        typer.Argument(help="sphere-encoder: the published Sphere Encoder implementation.", metavar="FORMAT"),
    ],
    weights: Annotated[
        Path, typer.Option(help="A .pth or .safetensors file, or a folder with one.", show_default=False)
    ],
    out: Annotated[Path, typer.Option(help="The model folder to write.", show_default=False)],
    config: Annotated[
        Path | None,
        typer.Option(help="The training's cfg.json. Default: the one beside the weights; else the shapes tell."),
    ] = None,
    ema: Annotated[bool, typer.Option("--ema", help="Take the EMA weights of a training checkpoint.")] = False,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="A published option, NAME=VALUE, such as noise_sigma_max_angle=80; repeatable."),
    ] = None,
    class_names: Annotated[
        str | None, typer.Option(help="Names in the order of the ids: cat,dog, or a text file with one a line.")
    ] = None,
    licence: Annotated[
        str | None,
        typer.Option("--license", help="Licence of the weights. Default: a note that it is that of their origin."),
    ] = None,
    dtype: Annotated[str, typer.Option(help="Type of the written weights: float32 or bfloat16.")] = "float32",
    as_json: Json = False,
) -> None:
    """Make a model folder of a published checkpoint. Nothing in the checkpoint is executed."""
    from spheregen.errors import ConfigError, did_you_mean
    from spheregen.interop import convert_sphere_encoder

    if form not in FORMATS:
        raise ConfigError(f"unknown format {form!r}{did_you_mean(form, FORMATS)}; known: {', '.join(FORMATS)}")
    result = convert_sphere_encoder(
        weights,
        output_folder(out),
        config=config,
        ema=ema,
        options=_options(settings or ()),
        class_names=_class_names(class_names),
        licence=licence,
        dtype=dtype,
    )
    if as_json:
        print_json(_answer(result))
    else:
        _show(result)
        say(f"the model is in {out}; sample it with: spheregen sample {out}")


def _options(settings: Sequence[str]) -> dict[str, Any]:
    """`NAME=VALUE` as options, values read as YAML."""
    import yaml

    from spheregen.errors import ConfigError

    options: dict[str, Any] = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"--set {setting!r} is not NAME=VALUE, such as noise_sigma_max_angle=80")
        try:
            options[key.strip()] = yaml.safe_load(text)
        except (yaml.YAMLError, ValueError) as error:
            raise ConfigError(f"--set {setting!r}: the value is no YAML; put text in quotes") from error
    return options


def _class_names(text: str | None) -> tuple[str, ...]:
    """Names between commas, or the lines of a text file."""
    from spheregen.errors import ConfigError

    if text is None:
        return ()
    path = Path(text)
    if not path.is_file():
        if path.suffix == ".txt":
            raise ConfigError(f"--class-names: no file {path}; give a text file with one name a line, or names: a,b,c")
        return tuple(split_list(text) or ())
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise ConfigError(f"--class-names: cannot read {path}; give a text file in UTF-8, one name a line") from error
    names = tuple(line.strip() for line in lines)
    while names and not names[-1]:
        names = names[:-1]
    if not all(names):
        raise ConfigError(f"--class-names: line {names.index('') + 1} of {path} is empty; write one name a line")
    return names


def _answer(result: ConvertedModel) -> dict[str, Any]:
    config = result.config
    return {
        "folder": str(result.folder),
        "weights": result.weights,
        "epoch": result.epoch,
        "parameters": result.parameters,
        "image_size": config.image_size,
        "patch_size": config.patch,
        "num_classes": config.num_classes,
        "latent": {"tokens": config.tokens, "channels": config.channels},
        "max_angle": config.max_angle,
        "inferred": list(result.inferred),
        "assumed": dict(result.assumed),
    }


def _show(result: ConvertedModel) -> None:
    config = result.config
    epoch = "" if result.epoch is None else f" of epoch {result.epoch}"
    rows = [
        ("read", f"{WEIGHTS[result.weights]}{epoch}"),
        ("images", f"{config.image_size} px, patch {config.patch}, {config.pixel_head} pixel head"),
        ("classes", str(config.num_classes) if config.num_classes else "none (unconditional)"),
        ("latent", f"{config.tokens} tokens of {config.channels} channels"),
        *(
            (part, f"width {size.width}, {size.depth} blocks, {size.heads} heads, {mixers} mixer blocks")
            for part, size, mixers in (
                ("encoder", config.encoder_size, config.encoder_mixer_depth),
                ("decoder", config.decoder_size, config.decoder_mixer_depth),
            )
        ),
        ("noise", f"up to {config.max_angle:g} degrees"),
        ("parameters", f"{result.parameters / 1e6:.4g} M"),
        ("from the shapes", ", ".join(result.inferred) or "nothing: the configuration says all"),
    ]
    if result.assumed:
        rows.append(("assumed", ", ".join(f"{name}={str(value).lower()}" for name, value in result.assumed.items())))
    print(table(rows[1:], rows[0]))
