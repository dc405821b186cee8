"""The part of a member of the family in its training, and the frozen networks that it may ask for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from spheregen.distributed import World
from spheregen.errors import ConfigError
from spheregen.family.terms import LossTerms
from spheregen.networks.perceptual import PerceptualLoss, perceptual_name

Part = tuple[Tensor, Tensor | None, Any]
"""Inputs, labels and noise of a micro-batch, on the device."""
Batches = Iterable[tuple[Tensor, Tensor | None]]
"""Inputs and their labels, of this process's part of the data."""
Gather = Callable[[object], list[Any]]
"""All-gathers an object over the processes; all of them call it together."""


class Objective:
    """A model that learns, and what its training needs to know about it; a member derives its own.

    Legend: inputs are images (B, C, S, S) in [-1, 1], or latents (B, N, d).
    """

    model: nn.Module
    """All that learns; its EMA is what is saved."""
    frozen: Sequence[nn.Module] = ()
    """Networks that the loss needs and that do not learn."""
    facts: Mapping[str, Any] = MappingProxyType({})
    """Plain values that decide the run beside recipe and data, such as the names of frozen networks."""
    perceptual: PerceptualLoss | None = None
    """The perceptual distance of those that compare images; see `use_perceptual`."""
    beside: nn.Module | None = None
    """Networks that learn beside the model by optimisers of the objective's own, and statistics that run along: no part
    of what is saved as the model, but of the state of a run."""
    world: World = World()
    """The processes that share each batch."""

    def use_perceptual(self, perceptual: PerceptualLoss | None, term: str, weight: float) -> None:
        """Take over the perceptual distance; without one (None) its terms are left out.

        Args:
            term: the other one that ties outputs to images, and its weight.

        Raises:
            ConfigError: neither is there.
        """
        if perceptual is None and not weight:
            raise ConfigError(
                f"without a perceptual network {term} alone ties outputs to images; give loss.{term} a weight or "
                "choose a perceptual provider"
            )
        self.perceptual, self.frozen = perceptual, [] if perceptual is None else [perceptual]
        self.facts = {"perceptual": perceptual_name(perceptual)}

    def draw(self, batch: int, generator: torch.Generator, rows: slice | None = None, *, progress: float = 0.0) -> Any:
        """Draw the `BatchNoise` of a global batch, or of these rows of it, on the CPU.

        Args:
            progress: the share of the run that is done, 0 to 1.
        """
        raise NotImplementedError

    def loss(self, inputs: Tensor, labels: Tensor | None, noise: Any) -> LossTerms:
        """Compute the loss, a mean over samples, so that parts of a batch average."""
        raise NotImplementedError

    def begin_step(self, parts: Sequence[Callable[[], Part]]) -> None:
        """Get ready for a step's loss of these parts of this process's batch; nothing by default.

        All processes call it together. What an earlier attempt at the step has left is put back.
        """

    def end_step(
        self, parts: Sequence[Callable[[], Part]], observed: Sequence[Mapping[str, Tensor]]
    ) -> dict[str, Tensor]:
        """Let what is beside the model learn, after the model has; nothing by default. All processes call it together.

        Args:
            parts: those of the batch, as in `begin_step`.
            observed: of the loss of each.

        Returns:
            Scalars for the log, the same on every process.
        """
        return {}

    def state(self) -> dict[str, Tensor]:
        """Return what a checkpoint keeps of what is beside the model, the same on every process."""
        return {}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Put back what `state` returned.

        Raises:
            KeyError: something is missing; its argument is the name.
        """

    def generator(self, model: nn.Module) -> nn.Module:
        """Return what users get of the trained model, or of its EMA: with the frozen networks that belong to it."""
        return model

    def prepare(self, batches: Batches, gather: Gather) -> None:
        """Put into the model what it must know of the data before the first step of a new run; nothing by default."""

    def calibrate(self, model: nn.Module, batches: Batches, gather: Gather) -> None:
        """Measure anew the statistics of the data that a model, such as the EMA, holds; nothing by default."""


class Frozen(Protocol):
    """The source of an objective's frozen networks: their weights for a training, random ones for an estimate."""

    def perceptual(self, kind: str) -> Any:
        """Return the perceptual distance of this provider, or None for `none`."""

    def model(self, name: str, part: str = "") -> Any:
        """Return the `LoadedModel` of a folder, a bundled name or a Hub id, or of a sub-folder of it."""

    def tokenizer(self) -> Any:
        """Return the tokenizer of the latents that the run is trained on; None for an estimate."""

    def encoder(self, config: Any) -> Any:
        """Return the frozen encoder of this configuration."""

    def codec(self, name: str) -> Any:
        """Return the tokenizer of this folder, bundled name or Hub id."""

    def network(self, build: Callable[[bool], Any]) -> Any:
        """Return what `build(pretrained)` makes: with weights, or without for an estimate."""
