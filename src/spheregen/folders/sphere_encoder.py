"""Checkpoints of the published Sphere Encoder implementation, read into our model or converted to a model folder.

A checkpoint is a folder or file with `.safetensors` or `.pth` weights (the latter a dictionary with `model`,
`ema_model` and `epoch`, or a bare state dictionary), under the names `encoder.*` and `decoder.*`, perhaps behind
`module.` (DDP) and `_orig_mod.` (compiled); and the training's `cfg.json`, or the constructor's arguments as
`config.json`.
Options that are left out are read off the shapes of the weights, where those tell them.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, Field, ValidationError
from torch import Tensor

from spheregen.devices import own_defaults
from spheregen.errors import ConfigError, ModelFileError, did_you_mean
from spheregen.family.sphere_encoder.network import AutoencoderConfig, SphereAutoencoder
from spheregen.files import parse_json
from spheregen.folders.card import ModelInfo
from spheregen.folders.model_folder import CARD, CONFIG, WEIGHTS, save_model
from spheregen.networks.backbones.state import listed, load_renamed, read_weights
from spheregen.nn.sizes import SIZES, TransformerSize
from spheregen.nn.uninitialised import Uninitialised
from spheregen.tensors import first_line

ORIGIN = "published Sphere Encoder checkpoint, arXiv 2602.15030"
LICENCE = (  # of a converted folder where nobody states one
    "that of the checkpoint's origin, which this conversion does not change; the published Sphere Encoder code is for "
    "non-commercial use, so read the terms of the weights before you use or pass them on"
)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
# Sizes of the publication: their widths differ, so a width and a depth tell the heads and the in-context start.
PUBLISHED_SIZES = ("small", "base", "large", "xlarge", "huge", "giant")
# Constructor's name and training option that determine the same thing.
_SAME_MEANING = (
    ("input_size", "image_size"), ("patch_size", "latent_resolution"), ("token_channels", "compression_ratio"),
)  # fmt: skip
_NEVER_WEIGHTS = re.compile(r"(encoder|decoder)\.(inctx_)?rope")  # tables of `ema_model` that the configuration tells
_WRAPPERS = re.compile(r"\b(_orig_mod|module)\.")
_MIXER_NORMS = {"encoder.out.norm.weight", "decoder.x_embedder.1.norm.weight"}
_CONV_1X1 = "encoder.x_embedder.1.weight"  # published as a 1x1 convolution; a linear here

# Our names -> the published ones: first where a part sits, then what is inside a block or a mixer.
_RENAMES = (
    (r"^encoder\.patches\.patches\.", "encoder.x_embedder.0."),
    (r"^encoder\.patches\.mix\.", "encoder.x_embedder.1."),
    (r"^encoder\.mixer\.", "encoder.out."),
    (r"^encoder\.project\.", "encoder.ffn.linear."),
    (r"^decoder\.mixer\.", "decoder.x_embedder.1."),
    (r"^decoder\.head\.linear\.", "decoder.ffn.linear."),
    (r"^decoder\.head\.smooth\.", "decoder.out.2."),
    (r"^decoder\.head\.up\.", "decoder.out.4."),
    (r"\.trunk\.labels\.table\.", ".y_embedder.embedding_table."),
    (r"\.trunk\.positions$", ".pos_embed"),
    (r"\.trunk\.context$", ".inctx_embed"),
    (r"\.trunk\.context_positions$", ".inctx_pos_embed"),
    (r"\.output\.norm\.", ".ffn.norm."),
    (r"\.output\.modulation\.linear\.", ".ffn.adaLN_modulation.1."),
    (r"\.trunk\.blocks\.", ".blocks."),
    (r"\.attention_norm\.", ".norm1."),
    (r"\.mlp_norm\.", ".norm2."),
    (r"\.attention\.qkv\.", ".attn.qkv."),
    (r"\.attention\.out\.", ".attn.proj."),
    (r"\.mlp\.gate_value\.", ".mlp.w12."),
    (r"\.mlp\.out\.", ".mlp.w3."),
    (r"\.modulation\.linear\.", ".adaLN_modulation.1."),
    (r"\.token_norm\.", ".norm1."),
    (r"\.channel_norm\.", ".norm2."),
    (r"\.token_mlp\.", ".tok_mixer.mix."),
    (r"\.channel_mlp\.", ".chn_mixer.mix."),
    (r"\.token_gain$", ".alpha1"),
    (r"\.channel_gain$", ".alpha2"),
)


class PublishedOptions(BaseModel):
    """The published options that are read, under the constructor's names or the training's; all others are ignored."""

    input_size: int | None = None
    image_size: int | None = None
    patch_size: int | None = None
    latent_resolution: int | None = None  # tokens along one side
    token_channels: int | None = None
    compression_ratio: float | None = None
    num_classes: int | None = None  # of the data in training options, and nothing where `cond_generator` is false
    cond_generator: bool | None = None
    pixel_head_type: str | None = None
    affine_latent_mlp_mixer: bool | None = None
    in_context_size: int | None = None
    noise_sigma_max_angle: float | None = None  # degrees
    spherify_model: bool | None = None
    halve_model_size: bool | None = None
    sizes: dict[str, dict[str, int | None]] = Field(default_factory=dict)
    """Width, layers, heads and in_context_start by name, of transformers that were not published."""
    vit_enc_model_size: str | None = None
    vit_dec_model_size: str | None = None
    vit_enc_latent_mlp_mixer_depth: int | None = None
    vit_dec_latent_mlp_mixer_depth: int | None = None
    vit_enc_heads: int | None = None  # a name of ours, for sizes that were not published; the following too
    vit_dec_heads: int | None = None
    vit_enc_in_context_start: int | None = None
    vit_dec_in_context_start: int | None = None


@dataclass(frozen=True, kw_only=True)
class ConvertedModel:
    """The result of a conversion."""

    folder: Path  # the model folder
    file: str  # name of the weight file that was read
    config: AutoencoderConfig
    weights: str  # `model`, `ema_model`, or `bare` for a file that is a state dictionary itself
    epoch: int | None  # that the training checkpoint tells
    parameters: int  # numbers in the weights, the fixed position tables counted, as in `spheregen info`
    inferred: tuple[str, ...]  # published options that were not given and were read off the shapes
    assumed: Mapping[str, Any]  # those that shapes cannot tell either, and the value that was taken


@own_defaults()
def load_sphere_encoder(
    source: str | Path,
    config: str | Path | Mapping[str, Any] | None = None,
    *,
    ema: bool = False,
    options: Mapping[str, Any] | None = None,
) -> SphereAutoencoder:
    """Read a published checkpoint.

    Args:
        source: a folder (with one weight file and perhaps its configuration) or a weight file.
        config: the published configuration, as a mapping or a JSON file; by default `config.json` or `cfg.json` beside
            the weights, if there is one. What the shapes of the weights tell need not be in it.
        ema: take `ema_model` of a training checkpoint instead of `model` (the published evaluation takes `model`).
        options: published options by name that complete or override the configuration, see `PublishedOptions`.

    Returns:
        The model in float32 and evaluation mode.

    Raises:
        ModelFileError: missing, broken or foreign files, or options that do not fit the weights; missing, unexpected
            and misshapen weights are listed.
        ConfigError: impossible options; or an option is not given that the weights do not tell.
    """
    return _read(source, config, ema, options)[0]


@own_defaults()
def convert_sphere_encoder(
    source: str | Path,
    out: str | Path,
    *,
    config: str | Path | Mapping[str, Any] | None = None,
    ema: bool = False,
    options: Mapping[str, Any] | None = None,
    class_names: Sequence[str] = (),
    sampling: Mapping[str, Any] | None = None,
    licence: str | None = None,
    dtype: str = "float32",
) -> ConvertedModel:
    """Write a published checkpoint as a model folder.

    Args:
        source, config, ema, options: see `load_sphere_encoder`.
        out: the folder; it must not hold a model yet.
        class_names: one for each class, in the order of the ids; none leaves the classes without names.
        sampling: sampling defaults: steps, schedule, guidance, guidance_at, share_noise.
        licence: the licence of the weights, an SPDX id or words; by default a plain statement that it is that of the
            checkpoint's origin.
        dtype: the type the weights are written in, `float32` or `bfloat16`.

    Raises:
        ModelFileError: see `load_sphere_encoder`.
        ConfigError: see `load_sphere_encoder`; or `out` holds a model, or `class_names` do not fit.
        SphereGenError: the folder cannot be written to.
    """
    folder = Path(out)
    if dtype not in DTYPES:
        raise ConfigError(f"unknown dtype {dtype!r}{did_you_mean(dtype, DTYPES)}; use {' or '.join(DTYPES)}")
    if folder.is_file() or any((folder / name).exists() for name in (CONFIG, WEIGHTS, CARD)):
        raise ConfigError(f"{folder} is a file or holds a model, which would be lost; choose another folder (--out)")
    model, found = _read(source, config, ema, options)
    if len(class_names) not in (0, model.num_classes):
        raise ConfigError(f"{len(class_names)} class names for {model.num_classes} classes; give all in order, or none")
    kind = {"model": ", raw weights", "ema_model": ", EMA weights", "bare": ""}[found.weights]
    epoch = "" if found.epoch is None else f", epoch {found.epoch}"
    info = ModelInfo(
        class_names=tuple(class_names),
        sampling=dict(sampling or {}),
        provenance={
            "source": f"{found.file} ({ORIGIN}{kind}{epoch})",
            "license": " ".join((licence or "").split()) or LICENCE,
        },
    )
    save_model(folder, model.to(DTYPES[dtype]), info)
    return dataclasses.replace(found, folder=folder)


def _read(
    source: str | Path, config: str | Path | Mapping[str, Any] | None, ema: bool, options: Mapping[str, Any] | None
) -> tuple[SphereAutoencoder, ConvertedModel]:
    """Return the model, and what was found; the folder is that of the checkpoint."""
    file = _find_weights(Path(source))
    given = _override(_read_options(config, file.parent), options or {})
    state, weights, epoch = _read_checkpoint(file, ema)
    revealed = _options_of_shapes({name: tuple(tensor.shape) for name, tensor in state.items()}, file)
    model_config = _autoencoder_config(given, revealed, file)
    with torch.device("meta"):
        expected = SphereAutoencoder(model_config).state_dict()
    names = {name: _published_name(name, model_config) for name in expected}
    for mine, theirs in names.items():
        tensor = state.get(theirs)
        if tensor is not None and tensor.numel() == expected[mine].numel() and (theirs == _CONV_1X1 or not tensor.ndim):
            state[theirs] = tensor.reshape(expected[mine].shape)  # a 1x1 convolution, a gain without an axis
    with Uninitialised():
        model = SphereAutoencoder(model_config)
    load_renamed(model, state, names, f"{file} with these options")
    if broken := [names[name] for name, tensor in model.state_dict().items() if not torch.isfinite(tensor).all()]:
        raise ModelFileError(f"{file} holds NaN or infinite numbers in {listed(broken)}; take another checkpoint")
    told = {name for name, value in given if value is not None}
    told |= {name for name, other in _SAME_MEANING if other in told}
    return model.eval(), ConvertedModel(
        folder=file.parent,
        file=file.name,
        config=model_config,
        weights=weights,
        epoch=epoch,
        parameters=sum(tensor.numel() for tensor in expected.values()),
        inferred=tuple(name for name in revealed if name not in told),
        assumed={} if "spherify_model" in told else {"spherify_model": False},
    )


# files


def _find_weights(path: Path) -> Path:
    """Return the weight file that `path` is, or the only one in the folder `path`."""
    if path.is_file():
        return path
    if not path.is_dir():
        raise ModelFileError(f"no checkpoint at {path}: give a folder or a .safetensors or .pth file")
    found = sorted({*path.glob("*.safetensors"), *path.glob("*.pth")} - {path / "io.safetensors"})  # of golden folders
    if len(found) != 1:
        names = listed(file.name for file in found) or "none"
        raise ModelFileError(f"{path} must hold one weight file (.safetensors or .pth), found {names}; name the file")
    return found[0]


def _read_options(config: str | Path | Mapping[str, Any] | None, folder: Path) -> dict[str, Any]:
    """Return the options of a configuration; of `config.json` or `cfg.json` in `folder` where none is given."""
    if isinstance(config, Mapping):
        return dict(config)
    beside = (folder / name for name in ("config.json", "cfg.json"))
    path = next((path for path in beside if path.is_file()), None) if config is None else Path(config)
    if path is None:
        return {}
    try:
        options = parse_json(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelFileError(f"cannot read the configuration {path}: {first_line(error)}; correct the file") from error
    if not isinstance(options, dict):
        raise ModelFileError(f"{path} is not a JSON object of options; give the training's cfg.json")
    return options


def _read_checkpoint(path: Path, ema: bool) -> tuple[dict[str, Tensor], str, int | None]:
    """Return the weights under the published names, which of the file's they are, and their epoch."""
    content = read_weights(path)
    weights, epoch = "bare", None
    if isinstance(content, Mapping) and any(isinstance(content.get(name), Mapping) for name in ("model", "ema_model")):
        weights, other = ("ema_model", "model") if ema else ("model", "ema_model")
        if not isinstance(content.get(weights), Mapping):
            cure = "leave ema (--ema) out" if ema else "ask for them with ema (--ema)"
            raise ModelFileError(f"{path} holds no {weights}, only {other}; {cure}")
        epoch = content.get("epoch")
        content = content[weights]
    elif ema:
        raise ModelFileError(f"{path} is a bare state dictionary without EMA weights; load it without ema (--ema)")
    if not isinstance(content, Mapping):
        raise ModelFileError(f"{path} holds no Sphere Encoder but a {type(content).__name__}; give another checkpoint")
    state: dict[str, Tensor] = {}
    for key, value in content.items():
        name = _WRAPPERS.sub("", str(key))
        if _NEVER_WEIGHTS.fullmatch(name):
            continue
        dense = isinstance(value, Tensor) and value.layout is torch.strided and value.is_floating_point()
        if name in state or not dense or value.is_meta:
            problem = "is there twice, under different prefixes" if name in state else "is no dense tensor of numbers"
            raise ModelFileError(f"{path}: {listed([name])} {problem}; give a state dictionary of the published model")
        state[name] = value.detach()
    return state, weights, epoch if isinstance(epoch, int) else None


# options


def _override(config: Mapping[str, Any], changes: Mapping[str, Any]) -> PublishedOptions:
    """Return `config` with `changes`, which also win over other words for the same thing."""
    changed = dict(config)
    for name, value in changes.items():
        if name not in PublishedOptions.model_fields:
            hint = did_you_mean(str(name), PublishedOptions.model_fields)
            raise ConfigError(f"unknown option {name!r} of a published checkpoint{hint}; see docs/models.md")
        for other in next((pair for pair in _SAME_MEANING if name in pair), ()):
            changed.pop(other, None)
        if name == "num_classes" and "cond_generator" not in changes:
            changed["cond_generator"] = None if value is None else value != 0
        changed[name] = value
    try:
        return PublishedOptions.model_validate({name: value for name, value in changed.items() if value is not None})
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        raise ConfigError(f"the published option {name} is {first['input']!r}: {first['msg']}; correct it") from error


def _options_of_shapes(shapes: Mapping[str, tuple[int, ...]], file: Path) -> dict[str, Any]:
    """Return the options that the shapes of the weights tell: all but the noise angle, whether the decoder spherifies
    its tokens, and the heads and in-context start of a size that was not published. Sizes are (width, blocks)."""
    if any(name.startswith(("encoder.trunk.", "decoder.trunk.")) for name in shapes):
        raise ModelFileError(f"{file} is a SphereGen model already; load its folder as it is, no conversion is needed")

    def blocks(place: str) -> int:
        return len({name[len(place) :].partition(".")[0] for name in shapes if name.startswith(place)})

    try:
        _, tokens, _ = shapes["encoder.pos_embed"]
        patch = shapes["encoder.x_embedder.0.weight"][2]
        classes = shapes.get("encoder.y_embedder.embedding_table.weight", (1,))[0] - 1  # the last row is the null class
        mixers = blocks("encoder.out.blocks."), blocks("decoder.x_embedder.1.blocks.")
        return {
            "input_size": math.isqrt(tokens) * patch,
            "patch_size": patch,
            "token_channels": shapes["encoder.ffn.linear.weight"][0],
            "num_classes": classes,
            "pixel_head_type": "conv" if "decoder.out.4.weight" in shapes else "linear",
            "in_context_size": shapes.get("encoder.inctx_pos_embed", (1, 0))[1],
            "vit_enc_latent_mlp_mixer_depth": mixers[0],
            "vit_dec_latent_mlp_mixer_depth": mixers[1],
            "affine_latent_mlp_mixer": bool(shapes.keys() & _MIXER_NORMS) or not any(mixers),
            "vit_enc_model_size": (shapes["encoder.pos_embed"][2], blocks("encoder.blocks.")),
            "vit_dec_model_size": (shapes["decoder.pos_embed"][2], blocks("decoder.blocks.")),
        }
    except (KeyError, IndexError, ValueError) as error:
        lacking = error.args[0] if isinstance(error, KeyError) else "shapes that fit"
        raise ModelFileError(
            f"{file} holds no whole Sphere Encoder: it lacks {lacking}; its keys are {listed(shapes) or 'none'}"
        ) from error


def _autoencoder_config(given: PublishedOptions, revealed: Mapping[str, Any], file: Path) -> AutoencoderConfig:
    """Return our configuration from the options that are given and, where they are not, those of the shapes."""
    told = {name: value for name, value in given if value is not None}
    if told.get("latent_resolution") and "patch_size" not in told:
        told["patch_size"] = told.get("image_size", revealed["input_size"]) // told["latent_resolution"]
    if "image_size" in told:
        told.setdefault("input_size", told["image_size"])
    if not (revealed["vit_enc_latent_mlp_mixer_depth"] or revealed["vit_dec_latent_mlp_mixer_depth"]):
        told.pop("affine_latent_mlp_mixer", None)  # there is no mixer to have a gain
    if not told.get("cond_generator", revealed["num_classes"] > 0):
        told["num_classes"] = 0
    values = {name: told.get(name, value) for name, value in revealed.items()}
    wrong = [
        f"{name} is {value} but the weights show {revealed[name]}"
        for name, value in values.items()
        if value != revealed[name] and not name.endswith("model_size")  # sizes are names here and numbers there
    ]
    if wrong:
        raise ConfigError(f"the configuration does not fit {file.name}: {'; '.join(wrong)}; correct it or leave it out")
    lacking = [] if "noise_sigma_max_angle" in told else ["noise_sigma_max_angle (degrees, such as 85)"]
    encoder, decoder = (
        _transformer(given, prefix, revealed[f"{prefix}_model_size"], values["in_context_size"] > 0, lacking)
        for prefix in ("vit_enc", "vit_dec")
    )
    if lacking or encoder is None or decoder is None:
        raise ConfigError(
            f"the weights of {file.name} do not tell {', '.join(lacking)}: give the training's cfg.json with --config, "
            "or each with --set NAME=VALUE (in Python: config= or options=)"
        )
    ratio = told.get("compression_ratio") if "token_channels" not in told else None
    return AutoencoderConfig(
        image_size=values["input_size"],
        patch_size=values["patch_size"],
        encoder=encoder,
        decoder=decoder,
        latent_channels=values["token_channels"] if ratio is None else None,
        compression=ratio,
        num_classes=values["num_classes"],
        encoder_mixer_depth=values["vit_enc_latent_mlp_mixer_depth"],
        decoder_mixer_depth=values["vit_dec_latent_mlp_mixer_depth"],
        mixer_affine=values["affine_latent_mlp_mixer"],
        pixel_head=values["pixel_head_type"],
        in_context_tokens=values["in_context_size"],
        spherify_decoder_blocks=told.get("spherify_model", False),
        max_angle=told["noise_sigma_max_angle"],
    )


def _transformer(
    given: PublishedOptions, prefix: str, found: tuple[int, int], in_context: bool, lacking: list[str]
) -> str | TransformerSize | None:
    """Return the size of a part by its name or, where it has none, by `found`, the width and depth of the weights.

    None, and an entry of `lacking`, where the heads or the in-context start are not known.
    """
    width, depth = found
    name = getattr(given, f"{prefix}_model_size")
    if name is None:
        fits = (each for each in PUBLISHED_SIZES if SIZES[each].width == width)
        name = next((each for each in fits if depth in (SIZES[each].depth, SIZES[each].depth // 2)), "")
    spec, size = given.sizes.get(name), SIZES.get(name)
    if spec is None and size is not None and (name in PUBLISHED_SIZES or (size.width, size.depth) == (width, depth)):
        spec = {**dataclasses.asdict(size), "layers": size.depth}
    told = {key: value for key, value in (spec or {}).items() if value is not None}
    for key in ("heads", "in_context_start"):
        if (value := getattr(given, f"{prefix}_{key}")) is not None:
            told[key] = value
    unknown = [key for key in ("heads", "in_context_start")[: 1 + in_context] if key not in told]
    if unknown:
        lacking += [f"{prefix}_{key}" for key in unknown]
        lacking[-1] += f" (width {width}, {depth} blocks)"
        return None
    layers = told.get("layers", depth)
    if "layers" in told and (depth == layers // 2 if given.halve_model_size is None else given.halve_model_size):
        layers //= 2
    size = TransformerSize(
        width=told.get("width", width),
        depth=layers,
        heads=told["heads"],
        in_context_start=told.get("in_context_start", 0),
    )
    return name if size == SIZES.get(name) else size


def _published_name(name: str, config: AutoencoderConfig) -> str:
    if name.startswith("decoder.embed."):
        return name.replace("decoder.embed.", f"decoder.x_embedder.{'0.' if config.decoder_mixer_depth else ''}")
    for pattern, replacement in _RENAMES:
        name = re.sub(pattern, replacement, name)
    return name
