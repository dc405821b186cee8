"""The members of the family, listed once."""

from __future__ import annotations

from typing import Any

from torch import nn

from spheregen.errors import ConfigError, did_you_mean
from spheregen.family.convolutional import member as convolutional
from spheregen.family.member import Member
from spheregen.family.representation import member as representation
from spheregen.family.sphere_encoder import member as sphere_encoder
from spheregen.family.sphere_encoder_2 import coded as sphere_encoder_2_coded
from spheregen.family.sphere_encoder_2 import member as sphere_encoder_2
from spheregen.family.sphere_flow import member as sphere_flow
from spheregen.family.sphere_latent_encoder import member as sphere_latent_encoder
from spheregen.measure.cost import Cost

_MEMBERS: dict[str, Member] = {}


def register(member: Member) -> None:
    """Add a member of the family.

    Raises:
        ConfigError: its kind, its configurations' class or its network's name is taken by another one.
    """
    for other in _MEMBERS.values():
        if (
            other.kind == member.kind
            or other.config is member.config
            or other.network.__name__ == member.network.__name__
        ):
            raise ConfigError(f"the family has a member {other.kind} already; choose another kind, config and network")
    _MEMBERS[member.kind] = member


def unregister(kind: str) -> None:
    """Take a member out again, as tests do with theirs."""
    _MEMBERS.pop(kind, None)


def members() -> tuple[Member, ...]:
    """Return all members, in the order in which they were registered."""
    return tuple(_MEMBERS.values())


def trained_kinds() -> dict[str, Member]:
    """Return the members that recipes can train, by their kind."""
    return {member.kind: member for member in members() if member.recipe is not None}


def member_of(config: Any) -> Member:
    """Return the member of a configuration, or of a model that has one as its `config`.

    Raises:
        TypeError: it is of no member.
    """
    found = getattr(config, "config", config)
    for member in members():
        if type(found) is member.config:
            return member
    raise TypeError(f"{type(found).__name__} is the configuration of no member of the family")


def member_of_kind(kind: str) -> Member:
    """Return the member that recipes of this kind train.

    Raises:
        ConfigError: there is none.
    """
    known = trained_kinds()
    if kind not in known:
        raise ConfigError(f"unknown kind {kind!r}{did_you_mean(kind, known)}; use {', '.join(known)}")
    return known[kind]


def member_of_network(name: str) -> Member | None:
    """Return the member whose network class has this name, as `config.json` holds it; None if there is none."""
    return next((member for member in members() if member.network.__name__ == name), None)


def network_names() -> tuple[str, ...]:
    """Return the names that `config.json` may hold."""
    return tuple(member.network.__name__ for member in members())


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


for _member in (
    sphere_encoder.MEMBER,
    convolutional.MEMBER,
    sphere_latent_encoder.MEMBER,
    representation.MEMBER,
    representation.PUBLISHED,
    sphere_flow.MEMBER,
    sphere_encoder_2.MEMBER,
    sphere_encoder_2_coded.MEMBER,
):
    register(_member)
