"""Checkpoints of the published Sphere Encoder 2 implementation, read into our model or converted to a model folder.

A checkpoint is a weight file (`.pth`, a dictionary with `model`, `ema_model` and `epoch`, or `.safetensors`), a folder
with one and its configuration, the folder of an experiment (`cfg.json` and `ckpt/epNNNN.pth`), or one of these on the
Hub. Its configuration is the training's `cfg.json`, or the constructor's arguments as `config.json`. What neither says
is read off the shapes of the weights, where those tell. A frozen encoder is built from the checkpoint itself.

Sources: facts of the published code (arXiv 2610.02208; MIT licence).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spheregen.devices import own_defaults
from spheregen.errors import ModelFileError
from spheregen.family.sphere_encoder_2.network import SphereEncoder2
from spheregen.files import write_text
from spheregen.folders.card import ModelInfo
from spheregen.folders.licences import MIT, OF_ENCODERS, OTHER, Licence, notice
from spheregen.folders.model_folder import save_model
from spheregen.folders.published import (
    DTYPES,
    SAME_MEANING,
    TRUNK_NAMES,
    ConvertedModel,
    check_class_names,
    check_target,
    find_weights,
    override,
    read_checkpoint,
    read_options,
)
from spheregen.folders.sphere_encoder_2_options import PublishedOptions2, config_of, options_of_shapes
from spheregen.hub import REPO, HubError, download
from spheregen.networks.backbones.state import listed
from spheregen.networks.encoders import EncoderConfig
from spheregen.networks.encoders import published_name as hub_name
from spheregen.nn.uninitialised import Uninitialised, weightless
from spheregen.tensors import MappedTensors, check_finite

ORIGIN = "published Sphere Encoder 2 checkpoint, arXiv 2610.02208"
LICENCE = "MIT"
"""Of the published decoders."""
COPYRIGHT = "Copyright (c) 2026 Kaiyu Yue"
_DECODER_LICENCE = "LICENSE-decoder.txt"
_NEVER_WEIGHTS = re.compile(
    r"(encoder|decoder)\.(.*\.)?(inctx_)?(rope\w*|freqs?\w*|rates?|inv_freq|mask_token|(image_|pixel_)?(mean|std))"
    r"|encoder\.encoder\.(vision_model\.)?head\..*"  # which pools the tokens
)
"""Tables of `ema_model` that the configuration tells, and what no forward pass reads."""
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
    notices = {} if licence else {_DECODER_LICENCE: MIT.format(copyright=COPYRIGHT)}
    if made.pretrained_encoder is not None and made.has_encoder:
        other, file = _encoder_licence(made.pretrained_encoder, encoder_licence, found.folder)
        notices[other.file] = file
        text = f"{text} (decoder); {other.name} (the frozen encoder in this folder, see {other.file})"
    elif made.pretrained_encoder is not None:
        text = f"{text} (decoder); the frozen encoder is not in this folder"
    info = ModelInfo(
        class_names=tuple(class_names),
        sampling={"steps": 2 if made.has_encoder else 1, "guidance": 0.0, **(sampling or {})},
        provenance={"source": found.source(ORIGIN), "license": text},
    )
    with weightless():  # its tensors come from the checkpoint
        model = SphereEncoder2(made)
    save_model(folder, model, info, state=state, dtype=DTYPES[dtype])
    for name, lines in notices.items():
        write_text(folder / name, lines)
    return dataclasses.replace(found, folder=folder)


def _read(
    source: str | Path,
    config: str | Path | Mapping[str, Any] | None,
    ema: bool | None,
    options: Mapping[str, Any] | None,
    decoder_only: bool,
    angle_rounding: str,
) -> tuple[ConvertedModel, MappedTensors]:
    """Return what was found, and the weights under our names, mapped; the folder is that of the checkpoint."""
    place = _find_place(source)
    file = _find_file(place)
    beside = file.parent if file.parent.name != "ckpt" else file.parent.parent
    given = override(read_options(config, beside), options or {}, PublishedOptions2)
    state, weights, epoch = _checkpoint(file, ema)
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    revealed = options_of_shapes(shapes, file)
    made, assumed = config_of(given, revealed, shapes, file, decoder_only, angle_rounding)
    if decoder_only:
        shapes = {name: shape for name, shape in shapes.items() if name.startswith("decoder.")}
    with weightless():
        expected = SphereEncoder2(made).state_dict()
    names = _names_in(shapes, expected, file)

    def read() -> dict[str, Tensor]:
        state, *_ = _checkpoint(file, ema)
        wanted = {mine: tuple(each.shape) for mine, each in expected.items()}
        return {
            mine: torch.zeros(wanted[mine]) if theirs is None else state[theirs].reshape(wanted[mine])
            for mine, theirs in names.items()
        }

    renamed = MappedTensors(read)
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


def _checkpoint(file: Path, ema: bool | None) -> tuple[dict[str, Tensor], str, int | None]:
    """Return what `read_checkpoint` does, with the names of a frozen encoder as they are on the Hub."""
    state, weights, epoch = read_checkpoint(file, ema, ignored=_NEVER_WEIGHTS, model="Sphere Encoder 2")
    return {_of_hub(name): tensor for name, tensor in state.items()}, weights, epoch


def _of_hub(name: str) -> str:
    """Return the name that a weight has in files of the Hub, by that of any version of transformers."""
    start = "encoder.encoder."
    if not name.startswith(start):
        return name
    inner = re.sub(r"^(vision_)?model\.", "", name.removeprefix(start))
    return f"{start}{hub_name('dinov2', inner) if inner.startswith('encoder.layer.') else inner}"


def _names_in(
    shapes: Mapping[str, tuple[int, ...]], expected: Mapping[str, Tensor], file: Path
) -> dict[str, str | None]:
    """Return the names of weights in the file by ours; None for one that no forward pass reads and that is lacking.

    Raises:
        ModelFileError: some are missing, left over or of another shape; they are listed as the file has them.
    """
    names = {name: published_name(name) for name in expected}
    problems = []
    lacking = sorted({theirs for mine, theirs in names.items() if theirs not in shapes and not _unused(mine)})
    if lacking:
        problems.append(f"{len(lacking)} tensors missing: {listed(lacking)}")
    if unknown := sorted(shapes.keys() - set(names.values())):
        problems.append(f"{len(unknown)} tensors unexpected: {listed(unknown)}")
    for mine, theirs in names.items():
        found, want = shapes.get(theirs), tuple(expected[mine].shape)
        as_convolution = mine.endswith("patches.mix.weight") and found == (*want, 1, 1)
        if found is not None and found != want and not as_convolution:
            problems.append(f"{theirs} is {found}, not {want}")
    if problems:
        raise ModelFileError(f"{file} does not fit these options: {'; '.join(problems)}; check its configuration")
    return {mine: theirs if theirs in shapes else None for mine, theirs in names.items()}


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


def _encoder_licence(encoder: EncoderConfig, given: str | Path | None, beside: Path) -> tuple[Licence, str]:
    """Return the licence of a frozen encoder, and the file on it that its folder ships."""
    kind = str((encoder.config or {}).get("model_type"))
    licence = OF_ENCODERS.get(kind, OTHER)
    texts = [Path(given)] if given is not None else sorted(beside.glob("LICENSE*[dD][iI][nN][oO]*"))
    return licence, notice(licence, encoder.source or kind, texts[0] if texts else None)
