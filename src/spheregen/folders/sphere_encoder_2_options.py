"""The options of published Sphere Encoder 2 models: those that a configuration gives, and those that shapes tell."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spheregen.errors import ConfigError, ModelFileError
from spheregen.family.sphere_encoder_2.config import ENCODERS, SphereEncoder2Config
from spheregen.folders.published import (
    PublishedOptions,
    blocks_at,
    refuse_ours,
    told_by,
    transformer,
    untold,
)
from spheregen.networks.backbones.state import listed
from spheregen.networks.encoders import EncoderConfig

HEAD_CHANNELS = 64
"""Channels of an attention head of the published encoders; weights do not tell them."""
HEADS = {"linear": "linear", "linear+conv": "smooth", "linear-conv": "smooth", "linear_conv": "smooth", "conv": "conv"}
SPHERES = {"global": "global", "local": "token"}
_UNREADABLE = ("pretrained_encoder_interpolate_tokens", "pretrained_encoder_interpolate_pos_embed")
"""Options whose effect on a forward pass is not known here."""
_BIASES = (("query", "q"), ("key", "k"), ("value", "v"), ("proj", "o"))


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


def options_of_shapes(shapes: Mapping[str, tuple[int, ...]], file: Path) -> dict[str, Any]:
    """Return the options that the shapes of the weights tell. Sizes are (width, blocks)."""
    refuse_ours(shapes, file)
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
            "vit_dec_model_size": (width, blocks_at(shapes, "decoder.blocks.")),
            "image_channels": channels,
            **(
                {"vit_enc_model_size": (shapes["encoder.pos_embed"][2], blocks_at(shapes, "encoder.blocks."))}
                if own
                else {}
            ),
        }
    except (KeyError, IndexError, ValueError) as error:
        lacking = error.args[0] if isinstance(error, KeyError) else "shapes that fit"
        raise ModelFileError(
            f"{file} holds no whole Sphere Encoder 2: it lacks {lacking}; its keys are {listed(shapes) or 'none'}"
        ) from error


def config_of(
    given: PublishedOptions2,
    revealed: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    file: Path,
    decoder_only: bool,
    angle_rounding: str,
) -> tuple[SphereEncoder2Config, dict[str, Any]]:
    """Return our configuration from the options that are given and, where they are not, those of the shapes; and what
    was assumed where neither tells."""
    told = told_by(given, revealed)
    for name in _UNREADABLE:
        if told.get(name):
            raise ConfigError(f"{name} is not supported: what it does to the tokens is not known here; convert another")
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
        raise untold(lacking, file)
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
    dinov2 = str(config.get("model_type")).startswith("dinov2")
    base = ENCODERS["dinov2-base" if dinov2 else "dinov3-vits16plus"]
    return EncoderConfig(
        kind="transformers",
        source=None if source is None else source.source,
        config=config,
        final_norm=any(f"{norm}.weight" in names for norm in ("norm", "layernorm", "post_layernorm")),
        input_size=given.pretrained_encoder_input_size or base.input_size,
        filter=base.filter,
        clamp=True,
    )


def _architecture(names: Mapping[str, tuple[int, ...]], heads: int | None) -> dict[str, Any]:
    """Return the architecture of an encoder of transformers, as its config.json has it, by its weights."""
    register = names.get("embeddings.register_tokens")
    patches = next((names[name] for name in names if name.endswith("patch_embeddings.weight")), None)
    patches = patches or names.get("embeddings.patch_embeddings.projection.weight")
    patches = patches or names.get("embeddings.patch_embedding.weight")
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
            "use_swiglu_ffn": "encoder.layer.0.mlp.gate_proj.weight" in names,
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
