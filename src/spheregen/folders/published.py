"""Checkpoints that others published: finding and reading their files, their options, and names inside transformers.

Nothing in a file is executed, and its tensors are mapped, not read, where the file allows it.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import BaseModel, Field, ValidationError
from torch import Tensor

from spheregen.errors import ConfigError, ModelFileError, did_you_mean
from spheregen.files import parse_json
from spheregen.folders.summary import CARD, CONFIG, WEIGHTS
from spheregen.networks.backbones.state import listed, read_weights
from spheregen.nn.sizes import SIZES, TransformerSize
from spheregen.tensors import first_line

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
# Sizes of the publication: their widths differ, so a width and a depth tell the heads and the in-context start.
PUBLISHED_SIZES = ("small", "base", "large", "xlarge", "huge", "giant")
# Constructor's name and training option that determine the same thing.
SAME_MEANING = (
    ("input_size", "image_size"), ("patch_size", "latent_resolution"), ("token_channels", "compression_ratio"),
)  # fmt: skip
_WRAPPERS = re.compile(r"\b(_orig_mod|module|_checkpoint_wrapped_module)\.")

# Our names -> the published ones, of what is inside a trunk and its ends.
TRUNK_NAMES = (
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
    (r"\.attention\.(q|k)_norm\.", r".attn.\1_norm."),
    (r"\.mlp\.gate_value\.", ".mlp.w12."),
    (r"\.mlp\.out\.", ".mlp.w3."),
    (r"\.modulation\.linear\.", ".adaLN_modulation.1."),
)

Options = TypeVar("Options", bound="PublishedOptions")


@dataclass(frozen=True, kw_only=True)
class ConvertedModel:
    """The result of a conversion."""

    folder: Path  # the model folder
    file: str  # name of the weight file that was read
    config: Any  # of the network
    weights: str  # `model`, `ema_model`, or `bare` for a file that is a state dictionary itself
    epoch: int | None  # that the training checkpoint tells
    parameters: int  # numbers in the weights, the fixed position tables counted, as in `spheregen info`
    inferred: tuple[str, ...] = ()  # published options that were not given and were read off the shapes
    assumed: Mapping[str, Any]  # those that nothing tells, and the value that was taken

    def source(self, origin: str) -> str:
        """Return where the weights come from, for the folder's `provenance`."""
        kind = {"model": ", raw weights", "ema_model": ", EMA weights", "bare": ""}[self.weights]
        epoch = "" if self.epoch is None else f", epoch {self.epoch}"
        return f"{self.file} ({origin}{kind}{epoch})"


def check_class_names(names: Sequence[str], classes: int) -> None:
    """Refuse names of another number than there are classes; none are welcome."""
    if len(names) not in (0, classes):
        raise ConfigError(f"{len(names)} class names for {classes} classes; give all in order, or none")


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


# files


def find_weights(path: Path) -> Path:
    """Return the weight file that `path` is, or the only one in the folder `path`."""
    if path.is_file():
        return path
    if not path.is_dir():
        raise ModelFileError(f"no checkpoint at {path}: give a folder or a .safetensors, .pth or .pt file")
    found = sorted(
        {*path.glob("*.safetensors"), *path.glob("*.pth"), *path.glob("*.pt")} - {path / "io.safetensors"}
    )  # of golden folders
    if len(found) != 1:
        names = listed(file.name for file in found) or "none"
        raise ModelFileError(
            f"{path} must hold one weight file (.safetensors, .pth or .pt), found {names}; name the file"
        )
    return found[0]


def read_options(config: str | Path | Mapping[str, Any] | None, folder: Path) -> dict[str, Any]:
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


def read_checkpoint(
    path: Path, ema: bool | None, *, ignored: re.Pattern[str], model: str = "Sphere Encoder"
) -> tuple[dict[str, Tensor], str, int | None]:
    """Return the weights under the published names, which of the file's they are, and their epoch.

    Args:
        path: of the file.
        ema: take `ema_model` of a training checkpoint, or `model`; None: the former where it is there.
        ignored: names that are no weights.
        model: what it should be of, for people.

    Raises:
        ModelFileError: it is missing, broken, of other weights, or holds code.
    """
    content = read_weights(path, mapped=True)
    weights, epoch = "bare", None
    if isinstance(content, Mapping) and isinstance(content.get("ema"), Mapping):
        content = {**content, "ema_model": content["ema"]}  # as SiT and its kin have it
    if ema is None and isinstance(content, Mapping):
        ema = isinstance(content.get("ema_model"), Mapping)
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
        raise ModelFileError(f"{path} holds no {model} but a {type(content).__name__}; give another checkpoint")
    state: dict[str, Tensor] = {}
    for key, value in content.items():
        name = _WRAPPERS.sub("", str(key))
        if ignored.fullmatch(name):
            continue
        dense = isinstance(value, Tensor) and value.layout is torch.strided and value.is_floating_point()
        if name in state or not dense or value.is_meta:
            problem = "is there twice, under different prefixes" if name in state else "is no dense tensor of numbers"
            raise ModelFileError(f"{path}: {listed([name])} {problem}; give a state dictionary of the published model")
        state[name] = value.detach()
    return state, weights, epoch if isinstance(epoch, int) else None


def check_target(folder: Path, dtype: str) -> None:
    """Refuse a folder that holds a model already, and an unknown type of weights.

    Raises:
        ConfigError: one of them.
    """
    if dtype not in DTYPES:
        raise ConfigError(f"unknown dtype {dtype!r}{did_you_mean(dtype, DTYPES)}; use {' or '.join(DTYPES)}")
    if folder.is_file() or any((folder / name).exists() for name in (CONFIG, WEIGHTS, CARD)):
        raise ConfigError(f"{folder} is a file or holds a model, which would be lost; choose another folder (--out)")


# options


def override(config: Mapping[str, Any], changes: Mapping[str, Any], kind: type[Options]) -> Options:
    """Return `config` with `changes`, which also win over other words for the same thing."""
    changed = dict(config)
    for name, value in changes.items():
        if name not in kind.model_fields:
            hint = did_you_mean(str(name), kind.model_fields)
            raise ConfigError(f"unknown option {name!r} of a published checkpoint{hint}; see docs/models.md")
        for other in next((pair for pair in SAME_MEANING if name in pair), ()):
            changed.pop(other, None)
        if name == "num_classes" and "cond_generator" not in changes:
            changed["cond_generator"] = None if value is None else value != 0
        changed[name] = value
    try:
        return kind.model_validate({name: value for name, value in changed.items() if value is not None})
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        raise ConfigError(f"the published option {name} is {first['input']!r}: {first['msg']}; correct it") from error


def refuse_ours(names: Iterable[str], file: Path) -> None:
    """Refuse weights under our own names."""
    if any(name.startswith(("encoder.trunk.", "decoder.trunk.")) for name in names):
        raise ModelFileError(f"{file} is a SphereGen model already; load its folder as it is, no conversion is needed")


def blocks_at(names: Iterable[str], place: str) -> int:
    """Return how many blocks have weights under `place`."""
    return len({name[len(place) :].partition(".")[0] for name in names if name.startswith(place)})


def told_by(given: PublishedOptions, revealed: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that are given, those of trainings under the constructor's names too."""
    told = {name: value for name, value in given if value is not None}
    if told.get("latent_resolution") and "patch_size" not in told:
        told["patch_size"] = told.get("image_size", revealed["input_size"]) // told["latent_resolution"]
    if "image_size" in told:
        told.setdefault("input_size", told["image_size"])
    if not told.get("cond_generator", revealed["num_classes"] > 0):
        told["num_classes"] = 0
    return told


def untold(lacking: Sequence[str], file: Path) -> ConfigError:
    """Return the error about options that nothing tells."""
    return ConfigError(
        f"the weights of {file.name} do not tell {', '.join(lacking)}: give the training's cfg.json with --config, or "
        "each with --set NAME=VALUE (in Python: config= or options=)"
    )


def transformer(
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
