"""Published checkpoints of system 2: latent denoisers (SphereLatent) and representation autoencoders (RAE).

Source: Do et al. 2026 (arXiv 2605.15592), whose denoiser is a SiT (Ma et al. 2024, arXiv 2401.08740) of patch 1; Zheng
et al. 2025 (arXiv 2510.11690). The names inside the denoiser's files are those of SiT, as far as is known.
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
from torch.nn import functional

from spheregen.devices import own_defaults
from spheregen.errors import ConfigError, ModelFileError, did_you_mean
from spheregen.family.representation.published import ENCODER, PublishedRAEConfig, read_published_rae
from spheregen.family.sphere_latent_encoder.network import LatentDenoiser, LatentDenoiserConfig, LatentGenerator
from spheregen.folders.card import ModelInfo
from spheregen.folders.model_folder import save_model
from spheregen.folders.published import (
    DTYPES,
    ConvertedModel,
    check_class_names,
    check_target,
    find_weights,
    read_checkpoint,
)
from spheregen.folders.tokenizers import open_tokenizer
from spheregen.networks.backbones.state import listed
from spheregen.nn.block import BlockOptions
from spheregen.nn.positions import sincos_table, sinusoids
from spheregen.nn.sizes import SIZES, TransformerSize
from spheregen.nn.uninitialised import Uninitialised, weightless
from spheregen.tensors import check_finite

LICENCE = "that of the checkpoint's origin, which this conversion does not change"
HEADS: Mapping[int, int] = {384: 6, 512: 8, 768: 12, 1024: 16, 1152: 16}
"""Attention heads of SiTs by their width; a file of weights does not tell them."""
MAX_ANGLE = 85.0
BLOCKS = BlockOptions(norm="layer", mlp="gelu", rotary=False)
_NEVER_WEIGHTS = re.compile(r"(?!)")
_TIME = "t_embedder.mlp."
_NAMES = (
    (r"^embed\.", "x_embedder.proj."),
    (r"^trunk\.labels\.table\.", "y_embedder.embedding_table."),
    (r"^trunk\.positions$", "pos_embed"),
    (r"^trunk\.blocks\.", "blocks."),
    (r"\.attention\.qkv\.", ".attn.qkv."),
    (r"\.attention\.out\.", ".attn.proj."),
    (r"\.mlp\.hidden\.", ".mlp.fc1."),
    (r"\.mlp\.out\.", ".mlp.fc2."),
    (r"^output\.modulation\.linear\.", "final_layer.adaLN_modulation.1."),
    (r"\.modulation\.linear\.", ".adaLN_modulation.1."),
    (r"^project\.", "final_layer.linear."),
)
_OPTIONS = ("heads", "max_angle", "time")


@own_defaults()
def convert_sphere_latent(
    source: str | Path,
    out: str | Path,
    *,
    tokenizer: str,
    ema: bool | None = None,
    options: Mapping[str, Any] | None = None,
    class_names: Sequence[str] = (),
    licence: str | None = None,
    dtype: str = "float32",
) -> ConvertedModel:
    """Write a published denoiser of Sphere Latent Encoder, with the tokenizer that it belongs to, as a model folder.

    Its sizes are read off the shapes. Names are those of SiT; of a file with other names tensors are taken by their
    shapes and order, and the result says so. A file that embeds a time, which the method does not use, has it folded
    into the classes at a fixed one.

    Args:
        source: a `.pt`, `.pth` or `.safetensors` file, or a folder with one.
        out: the folder; it must not hold a model yet.
        tokenizer: of the latents, as for `open_tokenizer`.
        ema: take `ema` weights of a training checkpoint, or the raw ones; None: the former where they are there.
        options: `heads`, `max_angle` (degrees; 85 where it is not told) and `time`.
        class_names: one for each class, in the order of the ids.
        licence: of the weights.
        dtype: of the written weights.

    Raises:
        ModelFileError: missing, broken or foreign files.
        ConfigError: an option is lacking or unknown, or the tokenizer does not fit.
    """
    folder, told = Path(out), dict(options or {})
    check_target(folder, dtype)
    for name in told.keys() - set(_OPTIONS):
        raise ConfigError(f"unknown option {name!r}{did_you_mean(name, _OPTIONS)}; use {', '.join(_OPTIONS)}")
    file = find_weights(Path(source))
    state, weights, epoch = read_checkpoint(file, ema, ignored=_NEVER_WEIGHTS, model="latent denoiser")
    codec = open_tokenizer(tokenizer).tokenizer
    config, assumed = _denoiser_config(state, file, codec, told)
    check_class_names(class_names, config.num_classes)
    with weightless():
        expected = LatentDenoiser(config).state_dict()
    found = _by_name(state, expected)
    if found is None:
        found = _by_order(state, expected, file)
        assumed["names"] = "not those of SiT: tensors were taken by their shapes and order; look at samples"
    if any(_TIME in name for name in state):
        time = float(told.get("time", 0.0))
        found["trunk.labels.table.weight"] = found["trunk.labels.table.weight"] + _time_embedding(state, time)
        assumed.setdefault("time", time)
    check_finite(file, found)
    with Uninitialised():
        denoiser = LatentDenoiser(config)
    denoiser.load_state_dict(found)
    info = ModelInfo(
        class_names=tuple(class_names),
        sampling={"steps": 4, "schedule": "decay"},
        provenance={
            "source": f"{file.name} (published Sphere Latent Encoder checkpoint, arXiv 2605.15592)",
            "license": " ".join((licence or LICENCE).split()),
        },
    )
    save_model(folder, LatentGenerator(denoiser.to(DTYPES[dtype]), codec), info)
    return ConvertedModel(
        folder=folder,
        file=file.name,
        config=config,
        weights=weights,
        epoch=epoch,
        parameters=sum(tensor.numel() for tensor in found.values()),
        assumed=assumed,
    )


def _denoiser_config(
    state: Mapping[str, Tensor], file: Path, codec: Any, told: Mapping[str, Any]
) -> tuple[LatentDenoiserConfig, dict[str, Any]]:
    """Return the configuration that the shapes of the weights and the tokenizer tell, and what was assumed."""
    tokens, channels = codec.latent_shape
    image_channels, image_size, _ = codec.image_shape
    blocks = {match[1] for name in state if (match := re.match(r"(?:.*\.)?(?:blocks|layers)\.(\d+)\.", name))}
    table = next((each for name, each in state.items() if "embedding_table" in name), None)
    fused = next((each for name, each in state.items() if name.endswith("qkv.weight")), None)
    if table is None or fused is None or not blocks:
        lacking = "a table of classes" if table is None else "transformer blocks with one qkv linear"
        raise ModelFileError(f"{file} is no SiT denoiser: it has no {lacking}; its keys are {listed(state) or 'none'}")
    width, classes = fused.shape[1], len(table) - 1
    heads = told.get("heads", HEADS.get(width))
    if heads is None:
        raise ConfigError(f"the heads of a denoiser of width {width} are not known; give --set heads=N")
    if classes < 1:
        raise ConfigError(f"{file} has no classes, and a SiT without them has no place for its time here")
    assumed = {} if "max_angle" in told else {"max_angle": MAX_ANGLE}
    size: str | TransformerSize = TransformerSize(width=width, depth=len(blocks), heads=int(heads))
    named = [
        name for name, each in SIZES.items() if (each.width, each.depth, each.heads) == (width, len(blocks), heads)
    ]
    return (
        LatentDenoiserConfig(
            image_size=image_size,
            image_channels=image_channels,
            tokens=tokens,
            channels=channels,
            size=named[0] if named else size,
            blocks=BLOCKS,
            num_classes=classes,
            max_angle=float(told.get("max_angle", MAX_ANGLE)),
        ),
        assumed,
    )


def _by_name(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """Return the weights by our names; None if the file has other names than SiT."""
    found = {}
    for mine, want in expected.items():
        name = mine
        for pattern, replacement in _NAMES:
            name = re.sub(pattern, replacement, name)
        tensor = state.get(name)
        if tensor is None and mine == "trunk.positions":
            continue  # a fixed table
        if tensor is None or tensor.numel() != want.numel():
            return None
        found[mine] = tensor.reshape(want.shape)
    return _complete(found, expected)


def _by_order(state: Mapping[str, Tensor], expected: Mapping[str, Tensor], file: Path) -> dict[str, Tensor]:
    """Return the weights by our names, each the first that is left of its shape.

    Raises:
        ModelFileError: one is lacking, or some are left over.
    """
    left = {name: tensor for name, tensor in state.items() if _TIME not in name}
    found = {}
    for mine, want in expected.items():
        fits = (name for name, each in left.items() if each.squeeze().shape == want.squeeze().shape)
        name = next(fits, None)
        if name is None and mine == "trunk.positions":
            continue
        if name is None:
            raise ModelFileError(
                f"{file} has no tensor of the shape {tuple(want.shape)} for {mine}; its keys are {listed(state)}"
            )
        found[mine] = left.pop(name).reshape(want.shape)
    if left:
        raise ModelFileError(f"{file} has {len(left)} tensors that no SiT has: {listed(left)}")
    return _complete(found, expected)


def _complete(found: dict[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return weights with the fixed table of positions, where the file has none."""
    if "trunk.positions" not in found:
        _, tokens, width = expected["trunk.positions"].shape
        found["trunk.positions"] = sincos_table(math.isqrt(tokens), width)
    return found


def _time_embedding(state: Mapping[str, Tensor], time: float) -> Tensor:
    """Return what the file's network makes of a time, (1, W)."""
    inner, outer = (
        [state[next(name for name in state if name.endswith(f"{_TIME}{layer}.{kind}"))] for kind in ("weight", "bias")]
        for layer in (0, 2)
    )
    waves = sinusoids(torch.tensor([time]))
    hidden = functional.silu(functional.linear(waves, inner[0].float(), inner[1].float()))
    return functional.linear(hidden, outer[0].float(), outer[1].float())


@own_defaults()
def convert_rae(
    source: str | Path,
    out: str | Path,
    *,
    encoder: str | None = None,
    options: Mapping[str, Any] | None = None,
    licence: str | None = None,
    dtype: str = "float32",
) -> ConvertedModel:
    """Write the files of a published representation autoencoder as the folder of a tokenizer.

    Args:
        source: a folder with `model.pt` and `stat.pt`, under the authors' names or those of diffusers.
        out: the folder; it must not hold a model yet.
        encoder: a folder or Hub id of the frozen encoder; None: the published one, DINOv2-base with registers.
        options: `heads` of a decoder of a width that was not published.
        licence: of the weights.
        dtype: of the written weights.

    Raises:
        ModelFileError: missing, broken or foreign files.
        ConfigError: an option is lacking or unknown, or the parts do not fit together.
        SphereGenError: transformers is not installed.
    """
    folder, told = Path(out), dict(options or {})
    check_target(folder, dtype)
    for name in told.keys() - {"heads"}:
        raise ConfigError(f"unknown option {name!r}; an RAE has `heads` alone")
    place = Path(source)
    seen = ENCODER if encoder is None else dataclasses.replace(ENCODER, source=encoder)
    made = read_published_rae(place, encoder=seen, heads=told.get("heads"))
    config: PublishedRAEConfig = made.config
    info = ModelInfo(
        provenance={
            "source": f"{place.name} (published RAE, arXiv 2510.11690)",
            "license": " ".join((licence or LICENCE).split()),
        }
    )
    save_model(folder, made.to(DTYPES[dtype]), info)
    parameters = sum(tensor.numel() for tensor in made.state_dict().values())
    return ConvertedModel(
        folder=folder, file="model.pt", config=config, weights="bare", epoch=None, parameters=parameters, assumed={}
    )
