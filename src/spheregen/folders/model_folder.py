"""A model on disk: a folder of `config.json`, `model.safetensors` and a model card, `README.md`. No pickles.

A member with an inner network (a tokenizer, the generator in front of a refiner) keeps it in a sub-folder, so that
loading needs nothing else.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

import torch
from pydantic import TypeAdapter, ValidationError
from safetensors import safe_open
from torch import Tensor, nn

import spheregen
from spheregen.devices import own_defaults
from spheregen.errors import ConfigError, ModelFileError
from spheregen.family.member import Member
from spheregen.family.registry import member_of, member_of_network, network_names
from spheregen.files import parse_json, write_json, write_text
from spheregen.fitted import FittedPrior, FittedTextPrior
from spheregen.folders.card import ModelInfo, model_card
from spheregen.folders.summary import CARD, CONFIG, PRIOR, WEIGHTS
from spheregen.networks.diffusers_models import open_diffusers
from spheregen.nn.uninitialised import Uninitialised, weightless
from spheregen.protocol import SphereGenerator, Tokenizer
from spheregen.tensors import check_finite, first_line, load_tensors, save_tensors, weights_hash

RECORD = "fingerprint.json"  # in a tokenizer's sub-folder, written last
_FINGERPRINTED = 64 << 20  # bytes
_TYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_SECTIONS = ("sampling", "preprocessing", "training", "provenance", "restoration", "figures", "text")


@dataclass(frozen=True)
class LoadedModel:
    """A model in evaluation mode, with what its folder says."""

    model: SphereGenerator  # of `load_any_model` it may be a tokenizer, which answers to `Tokenizer` instead
    info: ModelInfo
    fingerprint: str = ""  # tells its weights from others, see `model_fingerprint`


def save_model(
    folder: Path,
    model: nn.Module | SphereGenerator,
    info: ModelInfo,
    *,
    title: str | None = None,
    state: Mapping[str, Tensor] | None = None,
    inner_info: ModelInfo | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """Write a model folder; every file is replaced as a whole, and an inner network that is there is left alone.

    Args:
        model: of a member of the family.
        title: heads the model card; by default the folder's name.
        state: the model's tensors by their names in it, where its own `state_dict()` is in shards.
        inner_info: of an inner generator; by default that of the model, without sampling defaults.
        dtype: of the written weights, those of an inner network left alone; by default the one that they have.

    Raises:
        SphereGenError: the folder cannot be written to. Files that were there before stay whole.
    """
    member = member_of(model)
    tensors = model.state_dict() if state is None else state
    network: Any = getattr(model, member.attribute) if member.attribute else model
    if member.inner is not None:
        inner = getattr(model, member.inner.attribute)
        if member.inner.is_tokenizer:
            save_tokenizer(inner, folder / member.inner.folder)
        else:
            weights = _below(tensors, member.inner.attribute)
            if not is_saved(folder / member.inner.folder, inner, weights):
                names = info.class_names if getattr(inner, "num_classes", 0) else ()
                about = inner_info or dataclasses.replace(
                    info, class_names=names, sampling={}, provenance={}, figures={}
                )
                save_model(folder / member.inner.folder, inner, about, state=weights)
    config = {
        "spheregen_version": spheregen.__version__,
        "model_class": member.network.__name__,  # that of one in shards has another
        "architecture": dataclasses.asdict(network.config),
        "class_names": list(info.class_names),
        **{name: dict(getattr(info, name)) for name in _SECTIONS},
    }
    (folder / PRIOR).unlink(missing_ok=True)  # of the weights before
    save_tensors(folder / WEIGHTS, _below(tensors, member.attribute), dtype=dtype)
    write_json(folder / CONFIG, config)
    if (fitted := getattr(model, "fitted", None)) is not None:
        save_prior(folder, fitted)
    write_text(folder / CARD, model_card(member, network.config, info, title=title or folder.name))


@own_defaults()
def load_model(folder: str | Path, *, prior: bool = True) -> LoadedModel:
    """Read the folder of a generator, on the CPU, in the type it was saved in; with its fitted `prior`, if it has one.

    Raises:
        ModelFileError: a missing, broken or foreign folder, or one of a tokenizer.
    """
    path = Path(folder)
    member, config = _read_config(path)
    if not member.generates:
        raise ModelFileError(
            f"{path} holds a tokenizer ({config['model_class']}), not a generator: encode "
            f"images with it (spheregen encode {path} IMAGES) and train a latent denoiser on them"
        )
    return load_any_model(path, prior=prior)


def load_any_model(folder: str | Path, *, prior: bool = True) -> LoadedModel:
    """Read the folder of a generator or of a tokenizer alike."""
    path = Path(folder)
    model, info = load_network(path)
    member = member_of(model)
    if member.inner is not None:
        inside = path / member.inner.folder
        inner: Any = load_tokenizer(inside) if member.inner.is_tokenizer else load_model(inside).model
        try:
            model = member.assemble(model, inner)
        except ConfigError as error:
            raise ModelFileError(f"{inside}: {error}") from error
    loaded = LoadedModel(cast(SphereGenerator, model.eval()), info, model_fingerprint(path))
    if prior and member.generates and (path / PRIOR).is_file():
        loaded.model.fitted = load_prior(path, loaded)
    return loaded


def save_sampling(
    folder: Path, sampling: Mapping[str, Any], restoration: Mapping[str, Any] = MappingProxyType({})
) -> None:
    """Make these options the defaults of the model in a folder, of sampling and of restoration; those that it had
    beside them stay. `start_angle` becomes the model's own, `sampling_angle` of its architecture."""
    member, config = _read_config(folder)
    before = load_network(folder)[1]
    own, changed = {**before.sampling, **sampling}, config
    if "start_angle" in sampling:
        changed = {**config, "architecture": {**config["architecture"], "sampling_angle": own.pop("start_angle")}}
    after = dataclasses.replace(before, sampling=own)
    card = folder / CARD
    text = card.read_text(encoding="utf-8") if card.is_file() else ""
    title = next((line[2:] for line in text.splitlines() if line.startswith("# ")), "")
    old, new = (
        model_card(member, _architecture(folder, member, of), info, title=title)
        for of, info in ((config, before), (changed, after))
    )
    if text == old:  # nobody has edited it
        write_text(card, new)
    sections = {"sampling": dict(after.sampling), "restoration": {**before.restoration, **restoration}}
    write_json(folder / CONFIG, {**changed, **sections})


def save_prior(folder: Path, prior: FittedPrior, about: Mapping[str, Any] | None = None) -> None:
    """Write a fitted prior into the model folder whose codes it was fitted to.

    Args:
        about: what it was fitted to, for people.
    """
    tensors = {field.name: getattr(prior, field.name) for field in dataclasses.fields(prior)}
    metadata = {"weights": model_fingerprint(folder), "about": json.dumps(dict(about or {}))}
    save_tensors(folder / PRIOR, tensors, metadata)


def load_prior(folder: Path, of: LoadedModel) -> FittedPrior:
    """Read the fitted prior of a model from its folder.

    Raises:
        ModelFileError: it is broken, or was fitted to other weights.
    """
    path, cure = folder / PRIOR, "remove the file, or fit the prior anew with spheregen fit-prior"
    tensors = load_tensors(path)
    try:
        prior = (FittedTextPrior if of.model.text_width else FittedPrior)(**tensors)
        prior.check(math.prod(of.model.latent_shape), of.model.vector_width)
    except (TypeError, ConfigError) as error:
        raise ModelFileError(f"{path} does not fit the model ({first_line(error)}); {cure}") from error
    with safe_open(path, "pt") as file:
        weights = (file.metadata() or {}).get("weights")
    if weights != of.fingerprint:
        raise ModelFileError(f"{path} was fitted to other weights than those of {folder / WEIGHTS}; {cure}")
    return prior


def load_network(folder: str | Path) -> tuple[nn.Module, ModelInfo]:
    """Read the network of any model folder, without an inner one, on the CPU, in the type it was saved in."""
    path = Path(folder)
    member, config = _read_config(path)
    architecture = _architecture(path, member, config)
    with weightless():
        expected = member.build(architecture).state_dict()
    state = load_tensors(path / WEIGHTS)
    wrong = sorted(
        {name for name in expected.keys() & state.keys() if expected[name].shape != state[name].shape}
        | (expected.keys() ^ state.keys())
    )
    if wrong:
        raise ModelFileError(
            f"{path / WEIGHTS} does not fit {CONFIG}: {len(wrong)} weights differ, the first is {wrong[0]}"
        )
    kinds = {name: tensor.dtype for name, tensor in state.items() if expected[name].is_floating_point()}
    if odd := {name: kind for name, kind in kinds.items() if kind not in _TYPES}:
        name, kind = next(iter(odd.items()))
        raise ModelFileError(
            f"{path / WEIGHTS}: {name} is of the type {str(kind).removeprefix('torch.')}; weights are "
            "float32, float64, bfloat16 or float16"
        )
    check_finite(path / WEIGHTS, state)
    with Uninitialised():
        network = member.build(architecture)
    network.to(next(iter(kinds.values()))).load_state_dict(state)
    names = config.get("class_names") or ()
    if not isinstance(names, list | tuple):
        raise ModelFileError(f"{path / CONFIG}: class_names is not a list of names; correct it")
    classes = getattr(architecture, "num_classes", 0)
    if len(names) not in (0, classes):
        raise ModelFileError(f"{path / CONFIG} names {len(names)} classes for a model of {classes}; correct it")
    sections = {name: config.get(name) or {} for name in _SECTIONS}
    if wrong := [name for name, section in sections.items() if not isinstance(section, dict)]:
        raise ModelFileError(f"{path / CONFIG}: {wrong[0]} is not an object of settings; correct it")
    return network.eval(), ModelInfo(class_names=tuple(map(str, names)), **sections)


def load_tokenizer(folder: Path, image_size: int | None = None, pack: int | None = None) -> Tokenizer:
    """Read a tokenizer's folder: of a network of ours that is one or has one, or of an autoencoder of diffusers, which
    alone takes image size and packing; see `open_tokenizer`."""
    if is_diffusers(folder):
        return open_diffusers(folder, image_size, pack, None)
    if image_size is not None or pack is not None:
        raise ConfigError(f"{folder} has an image size and tokens of its own; leave image size and packing out")
    network, _ = load_network(folder)
    member = member_of(network)
    if member.inner is not None and member.inner.is_tokenizer:
        return load_tokenizer(folder / member.inner.folder)
    if member.as_tokenizer is None:
        raise ModelFileError(f"{folder} holds a {type(network).__name__}, which is no tokenizer")
    try:
        return cast(Tokenizer, member.as_tokenizer(network))
    except ConfigError as error:
        raise ModelFileError(f"{folder}: {error}") from error


def is_diffusers(folder: Path) -> bool:
    """Return whether a folder is one of the package diffusers."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        return bool(parse_json((folder / CONFIG).read_text(encoding="utf-8")).get("_class_name"))
    return False


def save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Write a tokenizer as a folder that `load_tokenizer` reads and that needs nothing else.

    Nothing is written where the folder holds it already: checkpoints of a denoiser come again and again.
    """
    fingerprint = tokenizer_fingerprint(tokenizer)
    with contextlib.suppress(OSError, ValueError):
        if parse_json((folder / RECORD).read_text(encoding="utf-8")) == {"fingerprint": fingerprint}:
            return
    with contextlib.suppress(FileNotFoundError):
        (folder / RECORD).unlink()  # until it is whole again, the folder holds neither the old nor the new
    if hasattr(tokenizer, "save"):  # in a form of its own
        tokenizer.save(folder)
    else:
        save_model(folder, getattr(tokenizer, "model", tokenizer), ModelInfo(), title="tokenizer")
    write_json(folder / RECORD, {"fingerprint": fingerprint})


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """Return hexadecimal digits that tell tokenizers apart: of their weights, types and shapes."""
    about = f"{type(tokenizer).__name__} {tokenizer.image_shape} {tokenizer.latent_shape}"
    return hashlib.sha256(f"{about} {weights_hash(tokenizer.state_dict())}".encode()).hexdigest()[:16]


def model_fingerprint(folder: str | Path) -> str:
    """Return twelve hexadecimal digits that tell two models apart, made of each weight file's length and 64 MiB of it
    at most, those of an inner network among them.

    A model that was trained on gets another fingerprint; a folder that was moved or renamed keeps its own.
    """
    path = Path(folder)
    found = hashlib.sha256()
    for file in [path / WEIGHTS, *inner_weights(path)]:
        size = file.stat().st_size
        found.update(str(size).encode())
        pieces = 256 if size > _FINGERPRINTED else 1
        with file.open("rb") as handle:
            for piece in range(pieces):
                handle.seek(piece * size // pieces)
                found.update(handle.read(_FINGERPRINTED // pieces))
    return found.hexdigest()[:12]


def inner_weights(folder: Path) -> list[Path]:
    """Return the weight files of the inner network of a model folder, sorted."""
    inner = _read_config(folder)[0].inner
    return [] if inner is None else sorted((folder / inner.folder).rglob("*.safetensors"))


def is_saved(folder: Path, model: nn.Module, state: Mapping[str, Tensor] | None = None) -> bool:
    """Return whether a model folder is whole and holds exactly these weights. Arguments as of `save_model`."""
    member = member_of(model)
    tensors = model.state_dict() if state is None else state
    if member.inner is not None and not member.inner.is_tokenizer:
        attribute = member.inner.attribute
        if not is_saved(folder / member.inner.folder, getattr(model, attribute), _below(tensors, attribute)):
            return False
    try:
        read_architecture(folder)
        saved = load_tensors(folder / WEIGHTS)
    except ModelFileError:
        return False
    own = _below(tensors, member.attribute)
    return saved.keys() == own.keys() and all(torch.equal(saved[name], own[name].cpu()) for name in own)


def read_architecture(folder: str | Path) -> Any:
    """Read the architecture of a model folder, a member's configuration, without its weights."""
    path = Path(folder)
    return _architecture(path, *_read_config(path))


def read_inner_architecture(folder: str | Path) -> Any:
    """Read the architecture of the inner generator of a model folder; None where there is none."""
    inner = _read_config(Path(folder))[0].inner
    return None if inner is None or inner.is_tokenizer else read_architecture(Path(folder) / inner.folder)


def _below(tensors: Mapping[str, Tensor], attribute: str) -> Mapping[str, Tensor]:
    """Return the tensors of one part of a model, by their names in it; of all of it for an empty name."""
    if not attribute:
        return tensors
    start = f"{attribute}."
    return {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}


def _read_config(folder: Path) -> tuple[Member, dict[str, Any]]:
    if lacking := [name for name in (CONFIG, WEIGHTS) if not (folder / name).is_file()]:
        problem = f"{folder} is not a model folder" if folder.is_dir() else f"no model folder at {folder}"
        raise ModelFileError(
            f"{problem}: it has no {' and no '.join(lacking)} (a run gets them with its first "
            "checkpoint; published checkpoints are read by `spheregen convert`)"
        )
    path = folder / CONFIG
    try:
        config = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelFileError(f"cannot read {path}: {first_line(error)}") from error
    member = member_of_network(str(config.get("model_class"))) if isinstance(config, dict) else None
    if member is None:
        known = ", ".join(network_names())
        raise ModelFileError(f"{path} names no model class that this version knows ({known}); see `spheregen convert`")
    return member, config


def _architecture(folder: Path, member: Member, config: Mapping[str, Any]) -> Any:
    try:
        return TypeAdapter(member.config).validate_python(config.get("architecture"))
    except (ValidationError, ConfigError) as error:
        reason = str(error)
        if isinstance(error, ValidationError):
            reason = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'architecture'}: {e['msg']}" for e in error.errors())
        raise ModelFileError(f"{folder / CONFIG} describes no possible model: {reason}") from error
