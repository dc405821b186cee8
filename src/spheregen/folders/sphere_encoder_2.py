"""Checkpoints of the published Sphere Encoder 2 implementation, read into our model or converted to a model folder.

A checkpoint is a weight file (`.pth`, a dictionary with `model`, `ema_model` and `epoch`, or `.safetensors`), a folder
with one and its configuration, the folder of an experiment (`cfg.json` and `ckpt/epNNNN.pth`), or one of these on the
Hub. Its configuration is the training's `cfg.json`, or the constructor's arguments as `config.json`. What neither says
is read off the shapes of the weights, where those tell. A frozen encoder is built from the checkpoint itself.

Sources: facts of the published code (arXiv 2610.02208; MIT licence).
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spheregen.devices import own_defaults
from spheregen.errors import ConfigError, ModelFileError
from spheregen.family.sphere_encoder_2.network import ENCODERS, SphereEncoder2, SphereEncoder2Config
from spheregen.files import write_text
from spheregen.folders.card import ModelInfo
from spheregen.folders.model_folder import save_model
from spheregen.folders.published import (
    DTYPES,
    SAME_MEANING,
    TRUNK_NAMES,
    ConvertedModel,
    PublishedOptions,
    check_class_names,
    check_target,
    find_weights,
    override,
    read_checkpoint,
    read_options,
    transformer,
)
from spheregen.hub import REPO, HubError, download
from spheregen.networks.backbones.state import listed
from spheregen.networks.encoders import EncoderConfig
from spheregen.nn.uninitialised import Uninitialised, weightless
from spheregen.tensors import check_finite

ORIGIN = "published Sphere Encoder 2 checkpoint, arXiv 2610.02208"
LICENCE = "MIT"
"""Of the published decoders."""
ENCODER_LICENCES: Mapping[str, tuple[str, str]] = {
    "dinov3_vit": ("DINOv3 License", "https://ai.meta.com/resources/models-and-libraries/dinov3-license/"),
    "dinov2": ("Apache-2.0", "https://www.apache.org/licenses/LICENSE-2.0"),
    "dinov2_with_registers": ("Apache-2.0", "https://www.apache.org/licenses/LICENSE-2.0"),
    "siglip_vision_model": ("Apache-2.0", "https://www.apache.org/licenses/LICENSE-2.0"),
}
"""Name and address of the licence of frozen encoders by their `model_type`."""
ENCODER_LICENCE_FILE = "LICENSE-encoder.txt"
HEAD_CHANNELS = 64
"""Channels of an attention head of the published encoders; weights do not tell them."""
HEADS = {"linear": "linear", "linear+conv": "smooth", "linear-conv": "smooth", "linear_conv": "smooth", "conv": "conv"}
SPHERES = {"global": "global", "local": "token"}
_NEVER_WEIGHTS = re.compile(
    r"(encoder|decoder)\.(.*\.)?(inctx_)?(rope\w*|freqs?\w*|rates?|inv_freq|mask_token|(image_|pixel_)?(mean|std))"
)
"""Tables of `ema_model` that the configuration tells, and what no forward pass reads."""
_UNREADABLE = ("pretrained_encoder_interpolate_tokens", "pretrained_encoder_interpolate_pos_embed")
"""Options whose effect on a forward pass is not known here."""
_RENAMES = (
    (r"^encoder\.patches\.patches\.", "encoder.x_embedder.0."),
    (r"^encoder\.patches\.mix\.", "encoder.x_embedder.2."),
    (r"^encoder\.project\.", "encoder.ffn.linear."),
    (r"^encoder\.frozen\.network\.net\.", "encoder.encoder."),
    (r"^encoder\.adapter\.linear\.", "encoder.out."),
    (r"^decoder\.embed\.", "decoder.x_embedder."),
    (r"^decoder\.angle\.inner\.", "decoder.alpha_embedder.mlp.0."),
    (r"^decoder\.angle\.outer\.", "decoder.alpha_embedder.mlp.2."),
    (r"^decoder\.head\.linear\.", "decoder.ffn.linear."),
    (r"^decoder\.head\.smooth\.", "decoder.out.2."),
    (r"^decoder\.head\.up\.", "decoder.out.4."),
    *TRUNK_NAMES,
)


class PublishedOptions2(PublishedOptions):
    """The published options that are read, under the constructor's names or the training's; all others are ignored."""

    pixel_head_use_tanh: bool | None = None
    spherify_mode: str | None = None
    use_angle_condition: bool | None = None
    angle_condition_mode: str | None = None
    use_qk_norm: bool | None = None
    load_pretrained_encoder: Any = None  # a name, or whether there is one
    pretrained_encoder_interpolate_tokens: bool | None = None
    pretrained_encoder_interpolate_pos_embed: bool | None = None
    pretrained_encoder_heads: int | None = None  # a name of ours, for encoders that were not published
    pretrained_encoder_config: dict[str, Any] | None = None  # likewise: the architecture as transformers has it
    pretrained_encoder_input_size: int | None = None  # likewise: pixels to which it resizes images
    sampling_angle: float | None = None  # a name of ours: degrees


@own_defaults()
def load_sphere_encoder_2(
    source: str | Path,
    config: str | Path | Mapping[str, Any] | None = None,
    *,
    ema: bool | None = None,
    options: Mapping[str, Any] | None = None,
    decoder_only: bool = False,
    angle_rounding: str = "none",
) -> SphereEncoder2:
    """Read a published checkpoint.

    Args:
        source: a weight file, a folder with one, the folder of an experiment, or a model of the Hub: user/name, or
            user/name:EXPERIMENT where there are several, such as `sphere2-base-flowers-256px`.
        config: the published configuration, as a mapping or a JSON file; by default the one beside the weights.
        ema: take `ema_model` of a training checkpoint, or `model`; None: the former where it is there, as published.
        options: published options by name that complete or override the configuration, see `PublishedOptions2`.
        decoder_only: leave the frozen encoder out; the model then makes images in one step alone.
        angle_rounding: `bf16` rounds the tables of the angle and of rotary positions, as the published evaluation does.

    Returns:
        The model in float32 and evaluation mode.

    Raises:
        ModelFileError: missing, broken or foreign files, or options that do not fit the weights; missing, unexpected
            and misshapen weights are listed.
        ConfigError: impossible options; or an option is not given that the weights do not tell.
        SphereGenError: the package transformers is not installed, which a frozen encoder needs.
    """
    found, state = _read(source, config, ema, options, decoder_only, angle_rounding)
    with Uninitialised():
        model = SphereEncoder2(found.config)
    model.load_state_dict(state)
    return model.eval()


@own_defaults()
def convert_sphere_encoder_2(
    source: str | Path,
    out: str | Path,
    *,
    config: str | Path | Mapping[str, Any] | None = None,
    ema: bool | None = None,
    options: Mapping[str, Any] | None = None,
    class_names: Sequence[str] = (),
    sampling: Mapping[str, Any] | None = None,
    licence: str | None = None,
    encoder_licence: str | Path | None = None,
    dtype: str = "float32",
    decoder_only: bool = False,
    angle_rounding: str = "none",
) -> ConvertedModel:
    """Write a published checkpoint as a model folder.

    Args:
        source, config, ema, options, decoder_only, angle_rounding: see `load_sphere_encoder_2`.
        out: the folder; it must not hold a model yet.
        class_names: one for each class, in the order of the ids; none leaves the classes without names.
        sampling: sampling defaults; by default two steps, as the published evaluation takes.
        licence: the licence of the decoder's weights, an SPDX id or words; by default MIT, the published ones'.
        encoder_licence: a text file with the licence of the frozen encoder's weights, which comes into the folder; by
            default one beside the weights, else a note where its text is.
        dtype: the type the weights are written in, `float32` or `bfloat16`.

    Raises:
        ModelFileError: see `load_sphere_encoder_2`.
        ConfigError: see `load_sphere_encoder_2`; or `out` holds a model, or `class_names` do not fit.
        SphereGenError: the folder cannot be written to.
    """
    folder = Path(out)
    check_target(folder, dtype)
    found, state = _read(source, config, ema, options, decoder_only, angle_rounding)
    made = found.config
    check_class_names(class_names, made.num_classes)
    text = " ".join((licence or LICENCE).split())
    notice = None
    if made.pretrained_encoder is not None and made.has_encoder:
        name, notice = _encoder_licence(made.pretrained_encoder, encoder_licence, found.folder)
        text = f"{text} (decoder); {name} (the frozen encoder in this folder, see {ENCODER_LICENCE_FILE})"
    elif made.pretrained_encoder is not None:
        text = f"{text} (decoder); the frozen encoder is not in this folder"
    info = ModelInfo(
        class_names=tuple(class_names),
        sampling={"steps": 2 if made.has_encoder else 1, "guidance": 0.0, **(sampling or {})},
        provenance={"source": found.source(ORIGIN), "license": text},
    )
    with weightless():  # its tensors come from the checkpoint
        model = SphereEncoder2(made)
    kept = DTYPES[dtype]
    save_model(folder, model, info, state={name: tensor.to(kept) for name, tensor in state.items()})
    if notice is not None:
        write_text(folder / ENCODER_LICENCE_FILE, notice)
    return dataclasses.replace(found, folder=folder)


def _read(
    source: str | Path,
    config: str | Path | Mapping[str, Any] | None,
    ema: bool | None,
    options: Mapping[str, Any] | None,
    decoder_only: bool,
    angle_rounding: str,
) -> tuple[ConvertedModel, dict[str, Tensor]]:
    """Return what was found, and the weights under our names, mapped; the folder is that of the checkpoint."""
    place = _find_place(source)
    file = _find_file(place)
    beside = file.parent if file.parent.name != "ckpt" else file.parent.parent
    given = override(read_options(config, beside), options or {}, PublishedOptions2)
    state, weights, epoch = read_checkpoint(file, ema, ignored=_NEVER_WEIGHTS, model="Sphere Encoder 2")
    state = {re.sub(r"^encoder\.encoder\.model\.", "encoder.encoder.", name): tensor for name, tensor in state.items()}
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    revealed = _options_of_shapes(shapes, file)
    made, assumed = _config(given, revealed, shapes, file, decoder_only, angle_rounding)
    if decoder_only:
        state = {name: tensor for name, tensor in state.items() if name.startswith("decoder.")}
    with weightless():
        expected = SphereEncoder2(made).state_dict()
    renamed = _renamed(state, expected, file)
    check_finite(file, renamed)
    told = {name for name, value in given if value is not None}
    told |= {name for name, other in SAME_MEANING if other in told}
    found = ConvertedModel(
        folder=beside,
        file=file.name,
        config=made,
        weights=weights,
        epoch=epoch,
        parameters=sum(tensor.numel() for tensor in expected.values()),
        inferred=tuple(name for name in revealed if name not in told and name in PublishedOptions2.model_fields),
        assumed=assumed,
    )
    return found, renamed


def _renamed(state: Mapping[str, Tensor], expected: Mapping[str, Tensor], file: Path) -> dict[str, Tensor]:
    """Return weights by our names.

    Raises:
        ModelFileError: some are missing, left over or of another shape; they are listed as the file has them.
    """
    names = {name: published_name(name) for name in expected}
    problems = []
    lacking = sorted({theirs for mine, theirs in names.items() if theirs not in state and not _unused(mine)})
    if lacking:
        problems.append(f"{len(lacking)} tensors missing: {listed(lacking)}")
    if unknown := sorted(state.keys() - set(names.values())):
        problems.append(f"{len(unknown)} tensors unexpected: {listed(unknown)}")
    found = {}
    for mine, theirs in names.items():
        want = expected[mine].shape
        if theirs not in state:
            found[mine] = torch.zeros(want)
        elif state[theirs].shape == want:
            found[mine] = state[theirs]
        elif state[theirs].numel() == math.prod(want) and mine.endswith("patches.mix.weight"):
            found[mine] = state[theirs].reshape(want)  # a 1x1 convolution
        else:
            problems.append(f"{theirs} is {tuple(state[theirs].shape)}, not {tuple(want)}")
    if problems:
        raise ModelFileError(f"{file} does not fit these options: {'; '.join(problems)}; check its configuration")
    return found


def published_name(name: str) -> str:
    """Return the published name of a tensor of ours."""
    for pattern, replacement in _RENAMES:
        name = re.sub(pattern, replacement, name)
        if name.startswith("encoder.encoder."):  # those of transformers stay as they are
            break
    return name


def _unused(name: str) -> bool:
    """Tell a tensor that no forward pass reads: published files do without it."""
    return name.endswith(".mask_token")


# files ----------------------------------------------------------------------------------------------------------------


def _find_place(source: str | Path) -> Path:
    """Return the file or folder that a source is, downloaded if it is on the Hub.

    Raises:
        ModelFileError: there is none, or the Hub has it not.
    """
    text = str(source).removeprefix("hf://")
    path = Path(text).expanduser()
    repo, _, wanted = text.partition(":")
    if path.exists() or not REPO.fullmatch(repo.partition("@")[0]):
        return path
    name, _, revision = repo.partition("@")
    try:
        root = download(name, revision or None, ["cfg.json", "*/cfg.json", "config.json"], what=name)
        folders = sorted(each.parent for each in root.rglob("cfg.json"))
        experiments = {_plain(each.name): each for each in folders}
        if wanted and _plain(wanted.rstrip("/").rpartition("/")[2]) not in experiments:
            raise ModelFileError(f"{name} has no {wanted}; give {name}:EXPERIMENT, one of {listed(_names(folders))}")
        if not wanted and len(folders) > 1:
            raise ModelFileError(
                f"{name} holds several models; name one: {name}:EXPERIMENT of {listed(_names(folders))}"
            )
        chosen = experiments[_plain(wanted.rstrip("/").rpartition("/")[2])] if wanted else [*folders, root][0]
        below = "" if chosen == root else f"{chosen.relative_to(root).as_posix()}/"
        patterns = [f"{below}{each}" for each in ("cfg.json", "ckpt/*.pth", "*.pth", "*.safetensors", "LICENSE*")]
        root = download(name, revision or None, patterns, what=name)
    except HubError as error:
        raise ModelFileError(f"{name}: {error}") from error
    return root / below if below else root


def _plain(name: str) -> str:
    """Return the name of an experiment as both layouts of the Hub have it."""
    short = name.removesuffix("-fdlite").replace("-fd-lite", "")
    return f"{short}-fd-lite" if short != name else name


def _names(folders: Sequence[Path]) -> list[str]:
    return [folder.name for folder in folders]


def _find_file(place: Path) -> Path:
    """Return the weight file of a place; of an experiment the newest epoch."""
    if place.is_dir() and (place / "ckpt").is_dir():
        epochs = sorted((place / "ckpt").glob("ep*.pth"), key=lambda path: (len(path.stem), path.stem))
        if epochs:
            return epochs[-1]
    if place.is_dir() and not [*place.glob("*.safetensors"), *place.glob("*.pth")]:
        below = sorted(place.glob("**/ckpt/ep*.pth"))
        experiments = sorted({path.parent.parent for path in below})
        if len(experiments) > 1:
            raise ModelFileError(f"{place} holds several models: {listed(_names(experiments))}; name the folder of one")
        if experiments:
            return _find_file(experiments[0])
    return find_weights(place)


def _encoder_licence(encoder: EncoderConfig, given: str | Path | None, beside: Path) -> tuple[str, str]:
    """Return the name of the licence of a frozen encoder, and the text that its folder ships."""
    kind = str((encoder.config or {}).get("model_type"))
    name, address = ENCODER_LICENCES.get(kind, ("the licence of its publisher", "the page of its publisher"))
    origin = f"The encoder in this folder ({encoder.source or kind}) is not part of Sphere Encoder 2. Its weights are "
    head = f"{origin}under the {name}: {address}\n"
    found = [Path(given)] if given is not None else sorted(beside.glob("LICENSE*[dD][iI][nN][oO]*"))
    if not found:
        return name, f"{head}Pass them on under its terms, together with its text, which is there.\n"
    try:
        return name, f"{head}\n{found[0].read_text(encoding='utf-8')}"
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the licence {found[0]}; give a text file in UTF-8") from error


# options --------------------------------------------------------------------------------------------------------------


def _options_of_shapes(shapes: Mapping[str, tuple[int, ...]], file: Path) -> dict[str, Any]:
    """Return the options that the shapes of the weights tell. Sizes are (width, blocks)."""
    if any(name.startswith(("encoder.trunk.", "decoder.trunk.")) for name in shapes):
        raise ModelFileError(f"{file} is a SphereGen model already; load its folder as it is, no conversion is needed")

    def blocks(part: str) -> int:
        start = f"{part}.blocks."
        return len({name[len(start) :].partition(".")[0] for name in shapes if name.startswith(start)})

    if "decoder.x_embedder.0.weight" in shapes or "decoder.pos_embed" not in shapes:
        what = "one of the first Sphere Encoder" if "decoder.x_embedder.0.weight" in shapes else "of another model"
        raise ModelFileError(
            f"{file} is no checkpoint of Sphere Encoder 2 but {what}; its keys are {listed(shapes) or 'none'}"
        )
    try:
        _, tokens, width = shapes["decoder.pos_embed"]
        grid = math.isqrt(tokens)
        if "decoder.out.4.weight" in shapes:
            _, channels, kernel, _ = shapes["decoder.out.4.weight"]
            head, patch = "conv", kernel - 2
        else:
            head = "linear+conv" if "decoder.out.2.weight" in shapes else "linear"
            channels = shapes["decoder.out.2.weight"][0] if head == "linear+conv" else 3
            pixels = shapes["decoder.ffn.linear.weight"][0]
            if head == "linear" and math.isqrt(pixels // 3) ** 2 * 3 != pixels:
                channels = 1
            patch = math.isqrt(pixels // channels)
        own = "encoder.pos_embed" in shapes
        return {
            "input_size": grid * patch,
            "patch_size": patch,
            "token_channels": shapes["decoder.x_embedder.weight"][1],
            "num_classes": shapes.get("decoder.y_embedder.embedding_table.weight", (1,))[0] - 1,
            "pixel_head_type": head,
            "in_context_size": shapes.get("decoder.inctx_pos_embed", (1, 0))[1],
            "use_qk_norm": "decoder.blocks.0.attn.q_norm.weight" in shapes,
            "use_angle_condition": "decoder.alpha_embedder.mlp.0.weight" in shapes,
            "vit_dec_model_size": (width, blocks("decoder")),
            "image_channels": channels,
            **({"vit_enc_model_size": (shapes["encoder.pos_embed"][2], blocks("encoder"))} if own else {}),
        }
    except (KeyError, IndexError, ValueError) as error:
        lacking = error.args[0] if isinstance(error, KeyError) else "shapes that fit"
        raise ModelFileError(
            f"{file} holds no whole Sphere Encoder 2: it lacks {lacking}; its keys are {listed(shapes) or 'none'}"
        ) from error


def _config(
    given: PublishedOptions2,
    revealed: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    file: Path,
    decoder_only: bool,
    angle_rounding: str,
) -> tuple[SphereEncoder2Config, dict[str, Any]]:
    """Return our configuration from the options that are given and, where they are not, those of the shapes; and what
    was assumed where neither tells."""
    told = {name: value for name, value in given if value is not None}
    for name in _UNREADABLE:
        if told.get(name):
            raise ConfigError(f"{name} is not supported: what it does to the tokens is not known here; convert another")
    if told.get("latent_resolution") and "patch_size" not in told:
        told["patch_size"] = told.get("image_size", revealed["input_size"]) // told["latent_resolution"]
    if "image_size" in told:
        told.setdefault("input_size", told["image_size"])
    if not told.get("cond_generator", revealed["num_classes"] > 0):
        told["num_classes"] = 0
    pretrained = any(name.startswith("encoder.encoder.") for name in shapes)
    if pretrained or told.get("load_pretrained_encoder"):
        told.pop("token_channels", None)  # overwritten by the encoder's
    values = {name: told.get(name, value) for name, value in revealed.items()}
    wrong = [
        f"{name} is {value} but the weights show {revealed[name]}"
        for name, value in values.items()
        if value != revealed[name] and not name.endswith("model_size") and HEADS.get(str(value), value) != HEADS.get(
            str(revealed[name]), revealed[name]
        )
    ]  # fmt: skip
    if wrong:
        raise ConfigError(f"the configuration does not fit {file.name}: {'; '.join(wrong)}; correct it or leave it out")
    assumed: dict[str, Any] = {}

    def taken(name: str, default: Any) -> Any:
        if name not in told:
            assumed[name] = default
        return told.get(name, default)

    lacking: list[str] = []
    sizes = {}
    for prefix, part in (("vit_dec", "decoder"), ("vit_enc", "encoder")):
        if f"{prefix}_model_size" in revealed and not (part == "encoder" and decoder_only):
            width, _ = found = revealed[f"{prefix}_model_size"]
            head = shapes.get(f"{part}.blocks.0.attn.q_norm.weight")
            known = given
            if head is not None and getattr(given, f"{prefix}_heads") is None:
                known = given.model_copy(update={f"{prefix}_heads": width // head[0]})
            sizes[part] = transformer(known, prefix, found, values["in_context_size"] > 0, lacking)
    if lacking:
        raise ConfigError(
            f"the weights of {file.name} do not tell {', '.join(lacking)}: give the training's cfg.json with --config, "
            "or each with --set NAME=VALUE (in Python: config= or options=)"
        )
    encoder: str | EncoderConfig | None = None
    channels: int | None = values["token_channels"]
    if pretrained:
        encoder = _encoder(given, shapes)
        channels = channels if "encoder.out.weight" in shapes else None
    elif "vit_enc_model_size" not in revealed:
        raise ModelFileError(f"{file} holds a decoder without an encoder; give the whole checkpoint")
    elif decoder_only:
        raise ConfigError("--decoder-only leaves a frozen encoder out; this model has one of its own, which it needs")
    mode: Any = taken("angle_condition_mode", "both") if values["use_angle_condition"] else "none"
    modulated = "decoder.blocks.0.adaLN_modulation.1.weight" in shapes
    if mode == "token" and modulated and not values["num_classes"]:
        raise ConfigError("angle_condition_mode is token, but the weights are modulated: it is adaln or both")
    return (
        SphereEncoder2Config(
            image_size=values["input_size"],
            image_channels=revealed["image_channels"],
            pretrained=encoder,
            has_encoder=not decoder_only,
            encoder=sizes.get("encoder") or "base",
            decoder=sizes["decoder"] or "base",
            patch_size=values["patch_size"],
            latent_channels=channels,
            num_classes=values["num_classes"],
            pixel_head=HEADS[_known("pixel_head_type", values["pixel_head_type"], HEADS)],  # type: ignore[arg-type]
            output_activation="tanh" if taken("pixel_head_use_tanh", False) else "none",
            in_context_tokens=values["in_context_size"],
            spherify_decoder_blocks=taken("spherify_model", False),
            sphere=SPHERES[_known("spherify_mode", taken("spherify_mode", "global"), SPHERES)],  # type: ignore[arg-type]
            angle_condition=mode,
            qk_norm=values["use_qk_norm"],
            max_angle=taken("noise_sigma_max_angle", 90.0),
            sampling_angle=told.get("sampling_angle"),
            angle_rounding=angle_rounding,  # type: ignore[arg-type]
        ),
        assumed,
    )


def _known(name: str, value: Any, choices: Mapping[str, Any]) -> str:
    if value not in choices:
        raise ConfigError(f"the published option {name} is {value!r}; it is one of {', '.join(choices)}")
    return str(value)


def _encoder(given: PublishedOptions2, shapes: Mapping[str, tuple[int, ...]]) -> EncoderConfig:
    """Return the description of the frozen encoder whose weights a checkpoint holds, by their names and shapes."""
    start = "encoder.encoder."
    names = {name[len(start) :]: shape for name, shape in shapes.items() if name.startswith(start)}
    named = given.load_pretrained_encoder if isinstance(given.load_pretrained_encoder, str) else ""
    source = next((each for each in ENCODERS.values() if named and named in str(each.source)), None)
    config = dict(given.pretrained_encoder_config or _architecture(names, given.pretrained_encoder_heads))
    kind = config.get("model_type")
    base = next((each for each in ENCODERS.values() if (each.config or {}).get("model_type") == kind), None)
    size, how = (256, "bilinear") if base is None else (base.input_size, base.filter)
    return EncoderConfig(
        kind="transformers",
        source=None if source is None else source.source,
        config=config,
        input_size=given.pretrained_encoder_input_size or size,
        filter=how,
        clamp=True,
    )


def _architecture(names: Mapping[str, tuple[int, ...]], heads: int | None) -> dict[str, Any]:
    """Return the architecture of an encoder of transformers, as its config.json has it, by its weights."""
    register = names.get("embeddings.register_tokens")
    patches = next((names[name] for name in names if name.endswith("patch_embeddings.weight")), None)
    patches = patches or names.get("embeddings.patch_embeddings.projection.weight")
    patches = patches or names.get("embeddings.patch_embedding.weight") or names.get(
        "vision_model.embeddings.patch_embedding.weight"
    )  # fmt: skip
    if patches is None:
        raise ModelFileError(
            f"the checkpoint's frozen encoder is none that is known here; its keys are {listed(names)}; give its "
            "architecture by the option pretrained_encoder_config"
        )
    width, _, patch, _ = patches
    found: dict[str, Any] = {
        "hidden_size": width,
        "patch_size": patch,
        "num_attention_heads": heads or max(1, width // HEAD_CHANNELS),
    }
    layers = {match[1] for name in names if (match := re.search(r"\blayers?\.(\d+)\.", name))}
    found["num_hidden_layers"] = len(layers)
    if any(name.startswith("layer.") for name in names):
        gated = "layer.0.mlp.gate_proj.weight" in names
        return {
            **found,
            "model_type": "dinov3_vit",
            "intermediate_size": names["layer.0.mlp.up_proj.weight"][0],
            "use_gated_mlp": gated,
            "hidden_act": "silu" if gated else "gelu",
            "num_register_tokens": 0 if register is None else register[1],
            "image_size": 224,
            **{f"{each}_bias": f"layer.0.attention.{part}_proj.bias" in names for each, part in _BIASES},
            "mlp_bias": "layer.0.mlp.up_proj.bias" in names,
        }
    if any(name.startswith("encoder.layer.") for name in names):
        positions = names["embeddings.position_embeddings"][1] - 1
        return {
            **found,
            "model_type": "dinov2" if register is None else "dinov2_with_registers",
            "image_size": math.isqrt(positions) * patch,
            "use_swiglu_ffn": "encoder.layer.0.mlp.weights_in.weight" in names,
            **({} if register is None else {"num_register_tokens": register[1]}),
        }
    inner = next((shape[0] for name, shape in names.items() if name.endswith("layers.0.mlp.fc1.weight")), 4 * width)
    positions = next((shape[0] for name, shape in names.items() if name.endswith("position_embedding.weight")), 256)
    return {
        **found,
        "model_type": "siglip_vision_model",
        "intermediate_size": inner,
        "image_size": math.isqrt(positions) * patch,
    }


_BIASES = (("query", "q"), ("key", "k"), ("value", "v"), ("proj", "o"))
