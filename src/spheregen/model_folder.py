"""A model on disk: a folder of `config.json`, `model.safetensors` and a model card, `README.md`. No pickles."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

import spheregen
from spheregen.card import model_card
from spheregen.errors import ConfigError, ModelFileError, SphereGenError
from spheregen.files import atomic_path, write_json, write_text
from spheregen.models.autoencoder import AutoencoderConfig, SphereAutoencoder
from spheregen.nn.uninitialised import Uninitialised

CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
MODEL_CLASSES = {"SphereAutoencoder": (SphereAutoencoder, AutoencoderConfig)}
"""Class name in config.json -> the model and its configuration."""
_FINGERPRINTED = 64 << 20  # bytes
_SECTIONS = ("sampling", "preprocessing", "training", "provenance")


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """What a model folder says beside the weights."""

    class_names: tuple[str, ...] = ()
    """Names of the classes, empty for an unconditional model."""
    sampling: Mapping[str, Any] = field(default_factory=dict)
    """Sampling defaults: steps, schedule, guidance, guidance_at, share_noise."""
    preprocessing: Mapping[str, Any] = field(default_factory=dict)
    """How pictures were brought to the model's size: `fit` and `background`, see `ImageOptions`."""
    training: Mapping[str, Any] = field(default_factory=dict)
    """How the model was trained here: recipe, description, data, steps, batch_size, seed, perceptual."""
    provenance: Mapping[str, str] = field(default_factory=dict)
    """Where weights come from that were not trained from scratch here: `source` (the file or place they were converted
    from), `base_model` (the model they were fine-tuned from), `license` (an SPDX id or words)."""


@dataclass(frozen=True)
class LoadedModel:
    """A model in evaluation mode, with what its folder says."""

    model: SphereAutoencoder
    info: ModelInfo
    fingerprint: str = ""
    """Tells its weights from others, see `model_fingerprint`."""


def save_model(
    folder: Path,
    model: SphereAutoencoder,
    info: ModelInfo,
    *,
    title: str | None = None,
    state: Mapping[str, Tensor] | None = None,
) -> None:
    """Write a model folder; every file is replaced as a whole.

    Args:
        title: heads the model card; by default the folder's name.
        state: the weights, where they are not the model's own `state_dict()` (which is in pieces when it is sharded).

    Raises:
        SphereGenError: the folder cannot be written to. Files that were there before stay whole.
    """
    config = {
        "spheregen_version": spheregen.__version__,
        "model_class": type(model).__name__,
        "architecture": dataclasses.asdict(model.config),
        "class_names": list(info.class_names),
        **{name: dict(getattr(info, name)) for name in _SECTIONS},
    }
    save_tensors(folder / WEIGHTS, model.state_dict() if state is None else state)
    write_json(folder / CONFIG, config)
    write_text(folder / CARD, model_card(model.config, info, title=title or folder.name))


def load_model(folder: str | Path) -> LoadedModel:
    """Read a model folder, on the CPU, in the type it was saved in.

    Raises:
        ModelFileError: a missing, broken or foreign folder.
    """
    path = Path(folder)
    config = _read_config(path)
    model_class, _ = MODEL_CLASSES[config["model_class"]]
    architecture = _architecture(path, config)
    with torch.device("meta"):
        model = model_class(architecture)
    state = load_tensors(path / WEIGHTS)
    expected = model.state_dict()
    wrong = sorted(
        {name for name in expected.keys() & state.keys() if expected[name].shape != state[name].shape}
        | (expected.keys() ^ state.keys())
    )
    if wrong:
        raise ModelFileError(
            f"{path / WEIGHTS} does not fit {CONFIG}: {len(wrong)} weights differ, the first is {wrong[0]}"
        )
    with Uninitialised():
        model = model_class(architecture)
    model.to(next(iter(state.values())).dtype).load_state_dict(state)
    names = config.get("class_names") or ()
    if len(names) not in (0, model.num_classes):
        raise ModelFileError(
            f"{path / CONFIG} names {len(names)} classes for a model of {model.num_classes}; correct it"
        )
    sections = {name: config.get(name) or {} for name in _SECTIONS}
    for name, section in sections.items():
        if not isinstance(section, dict):
            raise ModelFileError(f"{path / CONFIG}: {name} is not an object of settings; correct it")
    info = ModelInfo(class_names=tuple(map(str, names)), **sections)
    return LoadedModel(model.eval(), info, model_fingerprint(path))


def model_fingerprint(folder: str | Path) -> str:
    """Twelve hexadecimal digits that tell two models apart: of the weight file's length and 64 MiB of it at most.

    A model that was trained on gets another fingerprint; a folder that was moved or renamed keeps its own.
    """
    path = Path(folder) / WEIGHTS
    size = path.stat().st_size
    found = hashlib.sha256(str(size).encode())
    pieces = 256 if size > _FINGERPRINTED else 1
    with path.open("rb") as file:
        for piece in range(pieces):
            file.seek(piece * size // pieces)
            found.update(file.read(_FINGERPRINTED // pieces))
    return found.hexdigest()[:12]


def weights_hash(state: Mapping[str, Tensor], digits: int = 16) -> str:
    """The first hexadecimal digits of the SHA-256 over names, types, shapes and bytes of tensors, sorted by name."""
    found = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()[:digits]


def read_architecture(folder: str | Path) -> AutoencoderConfig:
    """The architecture of a model folder, without its weights.

    Raises:
        ModelFileError: a missing, broken or foreign folder.
    """
    path = Path(folder)
    return _architecture(path, _read_config(path))


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors to a safetensors file, atomically.

    Raises:
        SphereGenError: the disk is full or the folder cannot be written to.
    """
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        with atomic_path(path) as temporary:
            save_file(contiguous, temporary, metadata=dict(metadata or {}))
    except SafetensorError as error:
        raise SphereGenError(
            f"cannot write {path}: {_first_line(error)}; free space or choose another place"
        ) from error


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file.

    Raises:
        ModelFileError: the file is missing, truncated or of another kind.
    """
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise ModelFileError(
            f"cannot read {path}: {_first_line(error)}; the file is truncated or of another kind, get it again"
        ) from error


def _read_config(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise ModelFileError(f"no model folder at {folder}: give a folder with {CONFIG} and {WEIGHTS}")
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise ModelFileError(
                f"{folder} is not a model folder: it has no {name} (a run gets it with its first checkpoint; published "
                "checkpoints are read by `spheregen convert`)"
            )
    path = folder / CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelFileError(f"cannot read {path}: {_first_line(error)}") from error
    if not isinstance(config, dict) or str(config.get("model_class")) not in MODEL_CLASSES:
        raise ModelFileError(
            f"{path} names no model class that this version knows ({', '.join(MODEL_CLASSES)}); "
            "published checkpoints are read by `spheregen convert`"
        )
    return config


def _architecture(folder: Path, config: Mapping[str, Any]) -> AutoencoderConfig:
    _, config_class = MODEL_CLASSES[config["model_class"]]
    try:
        return TypeAdapter(config_class).validate_python(config.get("architecture"))
    except (ValidationError, ConfigError) as error:
        if isinstance(error, ValidationError):
            reason = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'architecture'}: {e['msg']}" for e in error.errors())
        else:
            reason = str(error)
        raise ModelFileError(f"{folder / CONFIG} describes no possible model: {reason}") from error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
