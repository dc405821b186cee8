"""The settings of a service: its models, its address, and the bounds that keep one caller from harming others."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from spheregen.errors import ConfigError

QUEUE = 1024
"""Images that may wait in an engine by default."""
TOKENS = "SPHEREGEN_TOKENS"
"""The variable that may hold tokens, with commas."""
LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The most that a request may ask for."""

    body_bytes: int = 32 << 20
    """Of a request."""
    held_bytes: int = 256 << 20
    """Of all requests that a worker holds."""
    file_bytes: int = 16 << 20
    """Of an image in it, encoded."""
    pixels: int = 16_000_000
    """Of an image in it, decoded."""
    images: int = 64
    """That it sends, or asks for; of an interpolation between four ends, frames squared."""
    steps: int = 100
    """Of the loop, and of a flow behind it."""
    seconds: float = 60.0
    """From the moment when it was read until it is answered."""
    sending_seconds: float = 20.0
    """Until a request has arrived, its header and then its body."""
    concurrency: int = 512
    """Connections of a worker."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value > 0:
                raise ConfigError(f"the limit {name} is above 0, not {value:g}")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """A service.

    Raises:
        ConfigError: no model, two of one name, or an impossible number.
    """

    models: tuple[str, ...]
    """Folders, bundled names or Hub ids; NAME=MODEL gives one another name."""
    device: str = "auto"
    host: str = "127.0.0.1"
    port: int = 8000
    workers: int = 1
    """Processes, each with all models."""
    threads: int | None = None
    """Of the arithmetic in each; by default the cores, shared among the workers."""
    queue: int = QUEUE
    """Images that may wait in a worker."""
    tokens: tuple[str, ...] = field(default=(), repr=False)
    """One of these must come with each request, where there are any."""
    cors: tuple[str, ...] = ()
    """Origins whose pages may call."""
    limits: Limits = field(default_factory=Limits)
    quiet: bool = False
    """Log warnings and errors alone."""

    def __post_init__(self) -> None:
        if not self.models:
            raise ConfigError("name a model to serve: a folder, a bundled model (see `spheregen models`) or a Hub id")
        names = list(self.named_models)
        if len(names) != len(self.models):
            raise ConfigError("two models have one name; tell them apart by NAME=MODEL")
        for name, value, most in (
            ("workers", self.workers, 1000),
            ("port", self.port, 65535),
            ("queue", self.queue, 10**9),
        ):
            if not 0 < value <= most:
                raise ConfigError(f"{name} is a number from 1 to {most}, not {value}")
        if self.threads is not None and self.threads < 1:
            raise ConfigError(f"threads is at least 1, not {self.threads}")

    @property
    def named_models(self) -> dict[str, str]:
        """The models by the names that callers use: what stands before `=`, else the last part of a path."""
        found = {}
        for each in self.models:
            name, equals, place = each.partition("=")
            if not equals:
                name, place = each.rstrip("/\\").replace("\\", "/").rpartition("/")[2] or each, each
            found[name] = place
        return found

    @property
    def is_local(self) -> bool:
        """Nobody outside this machine can call."""
        return self.host in LOOPBACK


def tokens_of_environment() -> tuple[str, ...]:
    """Return the tokens in the variable that may hold them."""
    return tuple(token.strip() for token in os.environ.get(TOKENS, "").split(",") if token.strip())
