"""Errors that a user can act on. Each message is one line that names the cause and the cure; the commands print
it alone and exit with code 2. Anything else that is raised is a bug of ours and keeps its traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Literal, get_args, get_origin, get_type_hints


class SphereGenError(Exception):
    """Base of every error that the user's input, files or machine caused."""


class ConfigError(SphereGenError, ValueError):
    """A setting or a combination of settings is impossible."""


class DataError(SphereGenError):
    """The images that were asked for are missing, unreadable or unsuitable."""


class ModelFileError(SphereGenError):
    """A model folder, checkpoint or weight file is missing, broken or of another kind."""


class TrainingError(SphereGenError):
    """Training cannot start, continue or go on."""


class Settings:
    """The base of frozen dataclasses of settings, which refuse unknown names when pydantic reads them from a file."""

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012


def check_choices(config: object, prefix: str = "") -> None:
    """Check every `Literal` field of a dataclass, for those who build it without pydantic.

    Raises:
        ConfigError: a value that is none of the field's choices.
    """
    for name, hint in get_type_hints(type(config)).items():
        choices = get_args(hint)
        if get_origin(hint) is Literal and getattr(config, name) not in choices:
            value = getattr(config, name)
            known = ", ".join(map(str, choices))
            raise ConfigError(f"{prefix}{name} is {value!r}{did_you_mean(str(value), choices)}; use one of {known}")


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """`"; did you mean 'digits'?"` when a choice is close to `word`, else an empty string."""
    close = difflib.get_close_matches(word, list(choices), n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""
