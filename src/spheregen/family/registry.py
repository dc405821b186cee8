"""The members of the family, listed once; the code of one is imported when it is first asked for."""

from __future__ import annotations

import importlib
from typing import Any

from torch import nn

from spheregen.errors import ConfigError, did_you_mean
from spheregen.family.member import Member
from spheregen.measure.cost import Cost

_LISTED = (  # kind, name of the network's class, where below `family` its record is
    ("autoencoder", "SphereAutoencoder", "sphere_encoder.member:MEMBER"),
    ("convolutional", "ConvolutionalAutoencoder", "convolutional.member:MEMBER"),
    ("latent-denoiser", "LatentDenoiser", "sphere_latent_encoder.member:MEMBER"),
    ("representation", "RepresentationAutoencoder", "representation.member:MEMBER"),
    ("published-rae", "PublishedRAE", "representation.member:PUBLISHED"),
    ("sphere-flow", "FlowRefiner", "sphere_flow.member:MEMBER"),
    ("sphere-encoder-2", "SphereEncoder2", "sphere_encoder_2.member:MEMBER"),
    ("sphere-encoder-2-coded", "CodedDecoder", "sphere_encoder_2.coded:MEMBER"),
)


class _Entry:
    """A member, imported or not."""

    def __init__(self, kind: str, network: str, place: str = "", member: Member | None = None) -> None:
        self.kind, self.network, self._place, self._member = kind, network, place, member

    @property
    def imported(self) -> bool:
        return self._member is not None

    def load(self) -> Member:
        if self._member is None:
            module, _, name = self._place.partition(":")
            self._member = getattr(importlib.import_module(f"spheregen.family.{module}"), name)
        assert self._member is not None
        return self._member


_ENTRIES = {kind: _Entry(kind, network, place) for kind, network, place in _LISTED}


def register(member: Member) -> None:
    """Add a member of the family.

    Raises:
        ConfigError: its kind, its configurations' class or its network's name is taken by another one.
    """
    name = member.network.__name__
    for other in _ENTRIES.values():
        if other.kind == member.kind or other.network == name or other.load().config is member.config:
            raise ConfigError(f"the family has a member {other.kind} already; choose another kind, config and network")
    _ENTRIES[member.kind] = _Entry(member.kind, name, member=member)


def unregister(kind: str) -> None:
    """Take a member out again, as tests do with theirs."""
    _ENTRIES.pop(kind, None)


def members() -> tuple[Member, ...]:
    """Return all members, in the order in which they were registered."""
    return tuple(entry.load() for entry in _ENTRIES.values())


def trained_kinds() -> dict[str, Member]:
    """Return the members that recipes can train, by their kind."""
    return {member.kind: member for member in members() if member.recipe is not None}


def member_of(config: Any) -> Member:
    """Return the member of a configuration, or of a model that has one as its `config`.

    Raises:
        TypeError: it is of no member.
    """
    found = getattr(config, "config", config)
    for entry in sorted(_ENTRIES.values(), key=lambda entry: not entry.imported):
        if type(found) is entry.load().config:
            return entry.load()
    raise TypeError(f"{type(found).__name__} is the configuration of no member of the family")


def member_of_kind(kind: str) -> Member:
    """Return the member that recipes of this kind train.

    Raises:
        ConfigError: there is none.
    """
    entry = _ENTRIES.get(kind)
    if entry is None or entry.load().recipe is None:
        known = trained_kinds()
        raise ConfigError(f"unknown kind {kind!r}{did_you_mean(kind, known)}; use {', '.join(known)}")
    return entry.load()


def member_of_network(name: str) -> Member | None:
    """Return the member whose network class has this name, as `config.json` holds it; None if there is none."""
    return next((entry.load() for entry in _ENTRIES.values() if entry.network == name), None)


def network_names() -> tuple[str, ...]:
    """Return the names that `config.json` may hold."""
    return tuple(entry.network for entry in _ENTRIES.values())


def inner_folders() -> list[str]:
    """Return the sub-folders that a model folder may have, with those in them."""
    inner = [member.inner for member in members() if member.inner is not None]
    below = [f"{outer.folder}/{each.folder}" for outer in inner for each in inner if not outer.is_tokenizer]
    return [*(each.folder for each in inner), *below]


def cost_of(model: Any) -> Cost:
    """Measure the networks of a model, on the meta device or a real one."""
    return member_of(model).cost(model, cost_of)


def blank_model(config: Any, inner: Any = None) -> nn.Module:
    """Return a model of a configuration with fresh weights on the current device, for estimates.

    Args:
        inner: its inner network; None takes what stands for an unknown one.
    """
    member = member_of(config)
    if member.inner is None:
        return member.build(config)
    if inner is None and member.inner_stub is not None:
        inner = member.inner_stub(config)
    return member.assemble(member.build(member.complete(config, inner)), inner)
