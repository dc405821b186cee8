"""What the shapes of a published Sphere Encoder checkpoint say about its configuration, and what they cannot say.

Shapes reveal everything but the noise angle, whether the decoder spherifies its tokens (`spherify_model`), and the
heads and in-context start of a size that was not published. Legend: N tokens, W width, d latent channels, P patch.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from spheregen.errors import ConfigError, ModelFileError, did_you_mean
from spheregen.interop.sphere_encoder_files import listed
from spheregen.models.sizes import SIZES

Shape = tuple[int, ...]
PUBLISHED_SIZES = ("small", "base", "large", "xlarge", "huge", "giant")
"""Sizes of the publication: their widths differ, so a width and a depth tell the heads and the in-context start."""
SAME_MEANING = (
    ("input_size", "image_size"),
    ("patch_size", "latent_resolution"),
    ("token_channels", "compression_ratio"),
)
"""Constructor's name and training option that determine the same thing."""
PARTS = {"encoder": "vit_enc", "decoder": "vit_dec"}
KNOWN_OPTIONS = (
    *(name for pair in SAME_MEANING for name in pair),
    "num_classes",
    "cond_generator",
    "pixel_head_type",
    "affine_latent_mlp_mixer",
    "in_context_size",
    "noise_sigma_max_angle",
    "spherify_model",
    "halve_model_size",
    "sizes",
    *(
        f"{prefix}_{name}"
        for prefix in PARTS.values()
        for name in ("model_size", "latent_mlp_mixer_depth", "heads", "in_context_start")
    ),
)
"""Every option that is read. `vit_enc_heads` and the like are ours: they complete sizes that were not published."""
_CONV_HEAD = "decoder.out.4.weight"


@dataclass(frozen=True)
class Shapes:
    """What the shapes reveal, in the words of the published constructor."""

    input_size: int
    patch_size: int
    token_channels: int
    num_classes: int
    pixel_head_type: str
    in_context_size: int
    vit_enc_latent_mlp_mixer_depth: int
    vit_dec_latent_mlp_mixer_depth: int
    affine_latent_mlp_mixer: bool
    encoder: tuple[int, int]
    """Width and blocks."""
    decoder: tuple[int, int]

    @property
    def grid(self) -> int:
        """Tokens along one side."""
        return self.input_size // self.patch_size


def read_shapes(shapes: Mapping[str, Shape], file: str) -> Shapes:
    """Read the configuration off the shapes of the weights, by their published names.

    Raises:
        ModelFileError: the weights are of another model, or lack what determines the architecture.
    """
    _check_family(shapes, file)
    blocks = {part: _count(shapes, rf"{part}\.blocks\.(\d+)\.", file) for part in PARTS}
    for part, count in blocks.items():
        if not count:
            raise ModelFileError(f"{file} lacks {part}.blocks.*; get it again")
    mixer_names = {"encoder": r"encoder\.out", "decoder": r"decoder\.x_embedder\.1"}
    mixers = {part: _count(shapes, rf"{name}\.blocks\.(\d+)\.", file) for part, name in mixer_names.items()}
    widths = {
        part: _find(
            shapes,
            file,
            f"the {part}'s width",
            (f"{part}.pos_embed", 3, 2),
            (f"{part}.blocks.0.norm1.weight", 1, 0),
            (f"{part}.ffn.linear.weight", 2, 1),
        )
        for part in PARTS
    }
    tokens = _find(
        shapes,
        file,
        "the number of tokens",
        ("encoder.pos_embed", 3, 1),
        ("decoder.pos_embed", 3, 1),
        ("encoder.out.blocks.0.tok_mixer.mix.0.weight", 2, 0),
        ("decoder.x_embedder.1.blocks.0.tok_mixer.mix.0.weight", 2, 0),
    )
    patch = _find(shapes, file, "the patch size", ("encoder.x_embedder.0.weight", 4, 2))
    grid = math.isqrt(tokens)
    if grid * grid != tokens:
        raise ModelFileError(f"{file} is for {tokens} tokens, which are no square grid; only square images are read")
    classes = 0
    if any("y_embedder." in name or "adaLN_modulation." in name for name in shapes):
        rows = _find(
            shapes,
            file,
            "the number of classes",
            ("encoder.y_embedder.embedding_table.weight", 2, 0),
            ("decoder.y_embedder.embedding_table.weight", 2, 0),
        )
        classes = rows - 1  # the last row is the null class
    in_context = [
        shapes[name][1]
        for name in ("encoder.inctx_pos_embed", "decoder.inctx_pos_embed")
        if len(shapes.get(name, ())) == 3
    ]
    return Shapes(
        input_size=grid * patch,
        patch_size=patch,
        token_channels=_find(
            shapes,
            file,
            "the channels of a latent",
            ("encoder.ffn.linear.weight", 2, 0),
            ("decoder.x_embedder.0.weight", 2, 1),
            ("decoder.x_embedder.weight", 2, 1),
        ),
        num_classes=classes,
        pixel_head_type="conv" if _CONV_HEAD in shapes else "linear",
        in_context_size=in_context[0] if in_context else 0,
        vit_enc_latent_mlp_mixer_depth=mixers["encoder"],
        vit_dec_latent_mlp_mixer_depth=mixers["decoder"],
        affine_latent_mlp_mixer=not any(mixers.values())
        or "encoder.out.norm.weight" in shapes
        or "decoder.x_embedder.1.norm.weight" in shapes,
        encoder=(widths["encoder"], blocks["encoder"]),
        decoder=(widths["decoder"], blocks["decoder"]),
    )


def override(options: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`options` with `changes`, which also win over other words for the same thing.

    Raises:
        ConfigError: a change of an option that nothing reads.
    """
    changed = dict(options)
    for name, value in changes.items():
        if name not in KNOWN_OPTIONS:
            hint = did_you_mean(str(name), KNOWN_OPTIONS)
            raise ConfigError(f"unknown option {name!r} of a published checkpoint{hint}; see docs/model-format.md")
        for pair in SAME_MEANING:
            if name in pair:
                for other in pair:
                    changed.pop(other, None)
        if name == "num_classes" and "cond_generator" not in changes:
            changed["cond_generator"] = None if value is None else value != 0
        changed[name] = value
    return changed


def complete(options: Mapping[str, Any], shapes: Shapes, file: str) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The whole configuration, from the options that are given and from the shapes.

    Returns:
        The options under the constructor's names, and the published names of what was not given but inferred.

    Raises:
        ConfigError: given options contradict the shapes; or what shapes cannot tell is not given. All are named.
    """
    given = {name: value for name, value in options.items() if value is not None}
    wrong: list[str] = []
    for name, found in _as_they_are(shapes).items():
        if name in given and (value := _like(found, name, given[name])) != found:
            wrong.append(f"{name} is {value} but the weights show {found}")
    wrong += _check_classes(given, shapes) + _check_channels(given, shapes)
    lacking = [] if "noise_sigma_max_angle" in given else ["noise_sigma_max_angle (degrees, such as 85)"]
    inferred = [
        name
        for name, *others in (
            *SAME_MEANING,
            ("num_classes",),
            ("pixel_head_type",),
            ("in_context_size",),
            *((f"{prefix}_latent_mlp_mixer_depth",) for prefix in PARTS.values()),
        )
        if not given.keys() & {name, *others}
    ]
    mixers = shapes.vit_enc_latent_mlp_mixer_depth or shapes.vit_dec_latent_mlp_mixer_depth
    if mixers and "affine_latent_mlp_mixer" not in given:
        inferred.append("affine_latent_mlp_mixer")
    names: dict[str, str] = {}
    sizes: dict[str, Mapping[str, Any]] = {}
    for part, prefix in PARTS.items():
        size = _complete_size(given, part, getattr(shapes, part), in_context=shapes.in_context_size > 0)
        wrong += size.wrong
        lacking += size.lacking
        inferred += size.inferred
        names[f"{prefix}_model_size"] = size.name
        if size.values is not None:
            sizes[size.name] = size.values
    if wrong:
        raise ConfigError(f"the configuration does not fit {file}: {'; '.join(wrong)}; correct it or leave it out")
    if lacking:
        raise ConfigError(
            f"the weights of {file} do not tell {', '.join(lacking)}: give the training's cfg.json with --config, or "
            "each with --set NAME=VALUE (in Python: config= or options=)"
        )
    completed = {
        **{name: getattr(shapes, name) for name in Shapes.__dataclass_fields__ if name not in PARTS},
        **names,
        "sizes": sizes,
        "spherify_model": _like(False, "spherify_model", given.get("spherify_model", False)),
        "noise_sigma_max_angle": _like(1.0, "noise_sigma_max_angle", given["noise_sigma_max_angle"]),
    }
    return completed, tuple(dict.fromkeys(inferred))


@dataclass(frozen=True)
class _Size:
    """The transformer of one part: a published name, or a name of ours with its values."""

    name: str
    values: Mapping[str, Any] | None
    inferred: tuple[str, ...]
    wrong: tuple[str, ...]
    lacking: tuple[str, ...]


def _complete_size(options: Mapping[str, Any], part: str, found: tuple[int, int], *, in_context: bool) -> _Size:
    width, depth = found
    prefix = PARTS[part]
    given = options.get(f"{prefix}_model_size")
    halve = _like(False, "halve_model_size", options["halve_model_size"]) if "halve_model_size" in options else None
    name = str(given) if given is not None else _published_name(width, depth, halve)
    spec = _spec(options, name, found)
    inferred = [] if given is not None else [f"{prefix}_model_size"]
    wrong = []
    if "width" in spec and (value := _like(0, f"width of size {name!r}", spec["width"])) != width:
        wrong.append(f"{prefix}_model_size {name!r} is {value} wide but the weights show {width}")
    if "layers" in spec:
        layers = _like(0, f"layers of size {name!r}", spec["layers"])
        if depth not in _depths(layers, halve):
            halved = " halved to" if halve else ""
            blocks = layers // 2 if halve else layers
            wrong.append(f"{prefix}_model_size {name!r} has{halved} {blocks} blocks but the weights show {depth}")
        elif halve is None and depth != layers:
            inferred.append("halve_model_size")
    values: dict[str, Any] = {"width": width, "layers": depth}
    lacking = []
    for key in ("heads", "in_context_start"):
        value = options.get(f"{prefix}_{key}", spec.get(key))
        if value is not None:
            values[key] = _like(0, f"{prefix}_{key}", value)
        elif key == "heads" or in_context:
            lacking.append(f"{prefix}_{key}")
    if lacking:
        size = "" if given is None else f"{name!r}, "
        lacking[0] = f"{lacking[0]} (for {size}width {width}, {depth} blocks)"
    known = SIZES.get(name) if name in PUBLISHED_SIZES else None
    if known and values == {
        "width": known.width,
        "layers": known.depth,
        "heads": known.heads,
        "in_context_start": known.in_context_start,
    }:
        return _Size(name, None, tuple(inferred), tuple(wrong), tuple(lacking))
    return _Size(part, values, tuple(inferred), tuple(wrong), tuple(lacking))


def _published_name(width: int, depth: int, halve: bool | None) -> str:
    """The published size of this width and depth, perhaps with half of its blocks; else an empty text."""
    for name in PUBLISHED_SIZES:
        size = SIZES[name]
        if size.width == width and depth in _depths(size.depth, halve):
            return name
    return ""


def _depths(layers: int, halve: bool | None) -> tuple[int, ...]:
    """The blocks that a size of so many layers can have, by `halve_model_size` or where that is not given."""
    return {True: (layers // 2,), False: (layers,), None: (layers, layers // 2)}[halve]


def _spec(options: Mapping[str, Any], name: str, found: tuple[int, int]) -> Mapping[str, Any]:
    """What is known of a named size: the configuration's own `sizes` first, then the table.

    A small size of ours counts only if the weights have its shape: others may mean something else by its name.
    """
    sizes = options.get("sizes", {})
    if not isinstance(sizes, Mapping):
        raise ConfigError(f"the published option sizes is {sizes!r}, not sizes by name; leave it out or correct it")
    spec = sizes.get(name)
    if spec is not None:
        if not isinstance(spec, Mapping):
            raise ConfigError(f"the published size {name!r} is {spec!r}, not an object of width, layers and heads")
        return {key: value for key, value in spec.items() if value is not None}
    size = SIZES.get(name)
    if size is None or (name not in PUBLISHED_SIZES and found != (size.width, size.depth)):
        return {}
    return {
        "width": size.width,
        "layers": size.depth,
        "heads": size.heads,
        "in_context_start": size.in_context_start,
    }


def _as_they_are(shapes: Shapes) -> dict[str, int | str | bool]:
    """Options whose value the shapes hold as it is."""
    mixers = {
        name: getattr(shapes, name) for name in ("vit_enc_latent_mlp_mixer_depth", "vit_dec_latent_mlp_mixer_depth")
    }
    simple: dict[str, int | str | bool] = {
        "input_size": shapes.input_size,
        "image_size": shapes.input_size,
        "patch_size": shapes.patch_size,
        "latent_resolution": shapes.grid,
        "token_channels": shapes.token_channels,
        "pixel_head_type": shapes.pixel_head_type,
        "in_context_size": shapes.in_context_size,
        **mixers,
    }
    if any(mixers.values()):  # without mixers there is no gain to have or not to have
        simple["affine_latent_mlp_mixer"] = shapes.affine_latent_mlp_mixer
    return simple


def _check_classes(given: Mapping[str, Any], shapes: Shapes) -> list[str]:
    """`cond_generator` says whether there are classes; in training options `num_classes` counts the data's anyway."""
    found = shapes.num_classes
    conditional = given.get("cond_generator")
    if conditional is not None and _like(False, "cond_generator", conditional) != (found > 0):
        show = f"{found} classes" if found else "no class embedding"
        count = f" (num_classes {given['num_classes']})" if "num_classes" in given else ""
        return [f"cond_generator is {conditional}{count} but the weights show {show}"]
    counts_the_data = conditional is not None or "image_size" in given
    if "num_classes" not in given or (not found and counts_the_data):
        return []
    value = _like(0, "num_classes", given["num_classes"])
    return [] if value == found else [f"num_classes is {value} but the weights show {found}"]


def _check_channels(given: Mapping[str, Any], shapes: Shapes) -> list[str]:
    """`compression_ratio` where `token_channels` does not say it directly: channels = int(3 P^2 / ratio)."""
    if "compression_ratio" not in given or "token_channels" in given:
        return []
    ratio = _like(1.0, "compression_ratio", given["compression_ratio"])
    numbers = 3 * shapes.patch_size**2
    if ratio > 0 and abs(numbers / ratio - shapes.token_channels) < 1:
        return []
    return [
        f"compression_ratio is {ratio:g} but the weights show {numbers / shapes.token_channels:g} "
        f"({shapes.token_channels} channels)"
    ]


def _like(example: Any, name: str, value: Any) -> Any:
    """`value` in the type of `example`.

    Raises:
        ConfigError: it is of another kind.
    """
    if isinstance(example, bool):
        if isinstance(value, bool) or value in (0, 1):
            return bool(value)
        kind = "true or false"
    elif isinstance(example, int):
        if isinstance(value, int | float) and not isinstance(value, bool) and value == value // 1:
            return int(value)
        kind = "a whole number"
    elif isinstance(example, float):
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
        kind = "a number"
    else:
        return str(value)
    raise ConfigError(f"the published option {name} is {kind}, not {value!r}; correct it")


def _check_family(shapes: Mapping[str, Shape], file: str) -> None:
    """Tell weights of another model from damaged ones."""
    if "encoder.trunk.positions" in shapes or "decoder.trunk.positions" in shapes:
        raise ModelFileError(f"{file} is a SphereGen model already; load its folder as it is, no conversion is needed")
    marks = ("pos_embed", "ffn.linear.weight", "blocks.0.mlp.w12.weight")
    present = {part: any(f"{part}.{mark}" in shapes for mark in marks) for part in PARTS}
    if not any(present.values()):
        raise ModelFileError(
            f"{file} holds no Sphere Encoder: none of its {len(shapes)} keys is encoder.pos_embed, "
            f"decoder.ffn.linear.weight or the like; first keys: {listed(shapes)}; give another checkpoint"
        )
    for part, here in present.items():
        if not here:
            raise ModelFileError(f"{file} lacks the whole {part} ({part}.*); give a checkpoint with both parts")


def _count(shapes: Mapping[str, Shape], pattern: str, file: str) -> int:
    """How many numbered blocks there are, from 0 on without a gap."""
    indices = {int(match[1]) for name in shapes if (match := re.match(pattern, name)) and len(match[1]) < 6}
    gap = next((index for index in range(max(indices, default=-1)) if index not in indices), None)
    if gap is not None:
        name = pattern.replace("\\", "").replace("(d+)", str(gap))
        raise ModelFileError(f"{file} lacks {name}* although it has later blocks; get it again")
    return len(indices)


def _find(shapes: Mapping[str, Shape], file: str, what: str, *places: tuple[str, int, int]) -> int:
    """A number from the first tensor there is: (name, axes it must have, axis to read)."""
    for name, axes, axis in places:
        shape = shapes.get(name, ())
        if len(shape) == axes and shape[axis] > 0:
            return shape[axis]
    names = " or ".join(name for name, _, _ in places)
    raise ModelFileError(f"{file} does not tell {what}: it lacks {names}; get it again")
