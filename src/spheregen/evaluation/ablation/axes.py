"""What a study varies: `--over KEY=V1,V2,...` as a key of the recipe, perhaps by the paper's name, and its values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import yaml

from spheregen.errors import ConfigError
from spheregen.training.recipe import FREE_TO_CHANGE

ALIASES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "noise.alpha_max": ("model.max_angle",),
        "model.c": ("model.compression",),
        "model.mixer_depth": ("model.encoder_mixer_depth", "model.decoder_mixer_depth"),
        "loss.w1": ("loss.pixel_reconstruction",),
        "loss.w2": ("loss.perceptual_reconstruction",),
        "loss.w3": ("loss.pixel_consistency",),
        "loss.w4": ("loss.perceptual_consistency",),
        "loss.w5": ("loss.latent_consistency",),
    }
)
"""The paper's names of settings, and the keys of a recipe that they stand for."""
_EXAMPLE = "for example --over noise.alpha_max=60,70,80"
_TWINS = (
    {"train.steps", "train.epochs"},
    {"optimizer.warmup_steps", "optimizer.warmup_epochs"},
    {"model.latent_channels", "model.compression"},
)
_CLOSING = {"{": "}", "[": "]", "(": ")"}


@dataclass(frozen=True)
class Axis:
    """One key and the values that it takes."""

    key: str
    """As the user wrote it."""
    settings: tuple[str, ...]
    """The keys of the recipe that take the value; more than one for some of the paper's names."""
    texts: tuple[str, ...]
    """The values as they were written, each YAML."""

    @property
    def of_sampling(self) -> bool:
        """Whether it changes sampling alone, so that its values share one trained model."""
        return all(setting.startswith("sampling.") for setting in self.settings)

    def overrides(self, text: str) -> tuple[str, ...]:
        """`a.b=text` for the recipe."""
        return tuple(f"{setting}={text}" for setting in self.settings)


def parse_axes(texts: Sequence[str]) -> tuple[Axis, ...]:
    """All `--over` of a command.

    Raises:
        ConfigError: none at all, one that is not `KEY=V1,V2`, a value twice, or two that set the same thing.
    """
    if not texts:
        raise ConfigError(f"a study varies something: give at least one --over, {_EXAMPLE}")
    axes = tuple(_parse_axis(text) for text in texts)
    taken: dict[str, str] = {}
    for axis in axes:
        for setting in axis.settings:
            for other, key in taken.items():
                if not _same_thing(setting, other):
                    continue
                if key == axis.key:
                    raise ConfigError(f"--over {key} is given twice; name all its values in one list")
                raise ConfigError(f"--over {key} and --over {axis.key} set the same thing; leave one of them out")
        taken |= dict.fromkeys(axis.settings, axis.key)
    return axes


def resolve_setting(text: str) -> tuple[str, ...]:
    """`key=value` with the paper's name replaced by keys of the recipe; others stay as they are."""
    key, equals, value = text.partition("=")
    return tuple(f"{setting}{equals}{value}" for setting in ALIASES.get(key.strip(), (key,)))


def split_values(text: str) -> list[str]:
    """`a,{b: 1, c: 2},[3, 4]` cut at its outer commas, without the space around.

    Raises:
        ConfigError: brackets or quotes that do not close.
    """
    items, begun, expected, quote = [], 0, [], ""
    for place, char in enumerate(text):
        if quote:
            quote = "" if char == quote else quote
        elif char in "\"'" and (place == begun or not text[place - 1].isalnum()):
            quote = char
        elif char in _CLOSING:
            expected.append(_CLOSING[char])
        elif char in _CLOSING.values() and (not expected or expected.pop() != char):
            raise ConfigError(f"{text!r} closes a {char} that was not opened")
        elif char == "," and not expected:
            items.append(text[begun:place].strip())
            begun = place + 1
    if expected or quote:
        raise ConfigError(f"{text!r} does not close its {expected[-1] if expected else quote}")
    return [*items, text[begun:].strip()]


def _parse_axis(text: str) -> Axis:
    key, equals, listed = text.partition("=")
    key = key.strip()
    if not equals or not key:
        raise ConfigError(f"--over takes KEY=VALUE,VALUE,..., {_EXAMPLE}, not {text!r}")
    items = split_values(listed)
    if not all(items):
        raise ConfigError(f"--over {text}: there is an empty value; write KEY=VALUE,VALUE,..., {_EXAMPLE}")
    settings = ALIASES.get(key, (key,))
    for setting in settings:
        # the path of the data may change when a run continues, but other data are another model
        if setting in FREE_TO_CHANGE - {"data.source"} and not setting.startswith("sampling."):
            raise ConfigError(f"--over {key}: this setting does not change the model, so there is nothing to compare")
    seen: list[Any] = []
    for item in items:
        value = _comparable(_value(item, text))
        if value in seen:
            raise ConfigError(f"--over {text}: {item} is there twice; name each value once")
        seen.append(value)
    return Axis(key, settings, tuple(items))


def _value(item: str, text: str) -> Any:
    try:
        return yaml.safe_load(item)
    except yaml.YAMLError as error:
        raise ConfigError(f"--over {text}: {item!r} is not valid YAML") from error


def _comparable(value: Any) -> Any:
    """Equal for values that a recipe takes for the same: 60 and 60.0, 1e-3 (for YAML a text) and 0.001."""
    if isinstance(value, bool):
        return str(value)
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _same_thing(a: str, b: str) -> bool:
    return a == b or a.startswith(f"{b}.") or b.startswith(f"{a}.") or {a, b} in _TWINS
