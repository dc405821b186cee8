"""A model on disk: a folder of `config.json`, `model.safetensors` and a model card, `README.md`. No pickles.

A latent denoiser's folder holds its tokenizer too, in `tokenizer/`, and a refiner's the generator in front of it, in
`source/`, so that loading needs nothing else.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

import torch
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import spheregen
from spheregen.card import model_card
from spheregen.errors import ConfigError, ModelFileError, SphereGenError
from spheregen.files import atomic_path, write_json, write_text
from spheregen.models.autoencoder import AutoencoderConfig, SphereAutoencoder
from spheregen.models.flow_refiner import FlowRefiner, FlowRefinerConfig, RefinedGenerator
from spheregen.models.latent_denoiser import LatentDenoiser, LatentDenoiserConfig, LatentGenerator
from spheregen.models.protocol import GeneratorModule
from spheregen.nn.uninitialised import Uninitialised
from spheregen.tokenizers.published_rae import PublishedRAE, PublishedRAEConfig
from spheregen.tokenizers.representation import RepresentationAutoencoder, RepresentationConfig

CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
TOKENIZER = "tokenizer"
SOURCE = "source"
"""In the folder of a refiner: the model folder of the generator in front of it."""
MODEL_CLASSES: Mapping[str, tuple[Callable[[Any], nn.Module], type]] = MappingProxyType(
    {
        "SphereAutoencoder": (SphereAutoencoder, AutoencoderConfig),
        "LatentDenoiser": (LatentDenoiser, LatentDenoiserConfig),
        "RepresentationAutoencoder": (RepresentationAutoencoder.from_config, RepresentationConfig),
        "PublishedRAE": (PublishedRAE.from_config, PublishedRAEConfig),
        "FlowRefiner": (FlowRefiner, FlowRefinerConfig),
    }
)
"""Class name in config.json -> the network whose weights the folder holds, and its configuration."""
_TOKENIZERS = (RepresentationAutoencoder, PublishedRAE)
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

    model: GeneratorModule
    """Of `load_any_model` it may be a tokenizer, which answers to `Tokenizer` instead."""
    info: ModelInfo
    fingerprint: str = ""
    """Tells its weights from others, see `model_fingerprint`."""


def save_model(
    folder: Path,
    model: nn.Module | GeneratorModule,
    info: ModelInfo,
    *,
    title: str | None = None,
    state: Mapping[str, Tensor] | None = None,
) -> None:
    """Write a model folder; every file is replaced as a whole.

    Args:
        model: of a class in `MODEL_CLASSES`; a `LatentGenerator`, whose tokenizer is written too if it is not there; or
            a `RefinedGenerator`, whose generator in front is written too if it is not there.
        title: heads the model card; by default the folder's name.
        state: the weights, where they are not the network's own `state_dict()` (which is in pieces when it is sharded).

    Raises:
        SphereGenError: the folder cannot be written to. Files that were there before stay whole.
    """
    network: Any = model
    if isinstance(model, LatentGenerator):
        from spheregen.tokenizers.opening import save_tokenizer

        save_tokenizer(model.tokenizer, folder / TOKENIZER)
        network = model.denoiser
    elif isinstance(model, RefinedGenerator):
        if not (folder / SOURCE / CONFIG).is_file():
            save_model(folder / SOURCE, model.source, dataclasses.replace(info, sampling={}))
        network = model.refiner
    architecture: Any = network.config
    config = {
        "spheregen_version": spheregen.__version__,
        "model_class": type(network).__name__,
        "architecture": dataclasses.asdict(architecture),
        "class_names": list(info.class_names),
        **{name: dict(getattr(info, name)) for name in _SECTIONS},
    }
    save_tensors(folder / WEIGHTS, network.state_dict() if state is None else state)
    write_json(folder / CONFIG, config)
    write_text(folder / CARD, model_card(architecture, info, title=title or folder.name))


def load_model(folder: str | Path) -> LoadedModel:
    """Read the folder of a generator, on the CPU, in the type it was saved in.

    Raises:
        ModelFileError: a missing, broken or foreign folder, or one of a tokenizer.
    """
    path = Path(folder)
    name = _read_config(path)["model_class"]
    if name in (tokenizer.__name__ for tokenizer in _TOKENIZERS):
        raise ModelFileError(
            f"{path} holds a tokenizer ({name}), not a generator: it has no images of its own to make; encode images "
            f"with it (spheregen encode {path} IMAGES) and train a latent denoiser on them"
        )
    return load_any_model(path)


def load_any_model(folder: str | Path) -> LoadedModel:
    """The same for generators and tokenizers alike.

    Raises:
        ModelFileError: a missing, broken or foreign folder.
    """
    path = Path(folder)
    loaded = load_network(path)
    network: Any = loaded.network
    if isinstance(network, LatentDenoiser):
        from spheregen.tokenizers.opening import open_tokenizer

        tokenizer = open_tokenizer(path / TOKENIZER).tokenizer
        try:
            network = LatentGenerator(network, tokenizer)
        except ConfigError as error:
            raise ModelFileError(f"{path / TOKENIZER}: {error}") from error
    elif isinstance(network, FlowRefiner):
        front = load_model(path / SOURCE)
        if isinstance(front.model, RefinedGenerator):
            raise ModelFileError(f"{path / SOURCE} is refined already: a refiner stands behind a generator that is not")
        try:
            network = RefinedGenerator(front.model, network)
        except ConfigError as error:
            raise ModelFileError(f"{path / SOURCE}: {error}") from error
    return LoadedModel(cast(GeneratorModule, network.eval()), loaded.info, model_fingerprint(path))


@dataclass(frozen=True)
class LoadedNetwork:
    """The network of a model folder in evaluation mode, of whatever class, with what the folder says."""

    network: nn.Module
    info: ModelInfo


def load_network(folder: str | Path) -> LoadedNetwork:
    """Read the network of any model folder, without its tokenizer, on the CPU, in the type it was saved in.

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
    classes = getattr(architecture, "num_classes", 0)
    if len(names) not in (0, classes):
        raise ModelFileError(f"{path / CONFIG} names {len(names)} classes for a model of {classes}; correct it")
    sections = {name: config.get(name) or {} for name in _SECTIONS}
    for name, section in sections.items():
        if not isinstance(section, dict):
            raise ModelFileError(f"{path / CONFIG}: {name} is not an object of settings; correct it")
    info = ModelInfo(class_names=tuple(map(str, names)), **sections)
    return LoadedNetwork(model.eval(), info)


def model_fingerprint(folder: str | Path) -> str:
    """Twelve hexadecimal digits that tell two models apart, made of each weight file's length and 64 MiB of it at most,
    those of a tokenizer or a generator in front among them.

    A model that was trained on gets another fingerprint; a folder that was moved or renamed keeps its own.
    """
    found = hashlib.sha256()
    parts = [sorted((Path(folder) / part).rglob("*.safetensors")) for part in (TOKENIZER, SOURCE)]
    for path in [Path(folder) / WEIGHTS, *parts[0], *parts[1]]:
        size = path.stat().st_size
        found.update(str(size).encode())
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


def read_architecture(folder: str | Path) -> Any:
    """The architecture of a model folder, a configuration of `MODEL_CLASSES`, without its weights.

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


def _architecture(folder: Path, config: Mapping[str, Any]) -> Any:
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
