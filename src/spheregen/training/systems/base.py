"""What the trainer trains: one small face for every member of the family.

A system brings its model, draws its random numbers and computes its loss; the trainer brings data, devices, processes,
optimiser, average, checkpoints and the log. A new kind of model is a new system here, and no change to the trainer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn

from spheregen.data import Batch
from spheregen.losses.terms import LossTerms
from spheregen.model_folder import LoadedModel, ModelInfo
from spheregen.training.settings import SamplingConfig


class Draws(Protocol):
    """The random numbers of a global batch, or of one process's rows of it; slice it for micro-batches."""

    def __getitem__(self, part: slice) -> Self:
        """Those of these rows."""

    def each(self, change: Callable[[Tensor], Tensor]) -> Self:
        """The same with every tensor changed, as by `lambda t: t.to(device)`."""


class Transferred(Protocol):
    """What became of a trained model's weights."""

    def summary(self) -> Sequence[str]:
        """Lines for people."""


class System(Protocol):
    """A model that learns, and everything that its training needs to know about it.

    Legend: inputs are what a batch brings: images (B, C, S, S) in [-1, 1], or latents (B, N, d).
    """

    @property
    def model(self) -> nn.Module:
        """What learns and is averaged."""

    @property
    def about(self) -> Mapping[str, Any]:
        """What decides the run beside recipe and data, such as the frozen networks: plain values for a checkpoint."""

    @property
    def frozen(self) -> Sequence[nn.Module]:
        """The networks that the loss needs and that do not learn."""

    @property
    def notes(self) -> Sequence[str]:
        """What the first line of a run says of it."""

    def to(self, device: torch.device) -> Self:
        """Move what is not trained to the device; the trainer moves the model."""

    def start_from(self, base: LoadedModel, class_names: Sequence[str]) -> Transferred:
        """Put a trained model's weights into this system's fresh model; what does not fit stays as it is.

        Args:
            base: the model to fine-tune; on the CPU, as this one must still be.
            class_names: of this run's data, empty for an unconditional model.

        Raises:
            ConfigError: nothing of it fits.
            ModelFileError: its weights are broken.
        """

    def prepare(self, batches: Iterable[tuple[Tensor, Tensor | None]], gather: Callable[[object], list[Any]]) -> None:
        """Before the first step of a new run: put into the model what it must know of the data, if anything.

        Args:
            batches: inputs and their labels, of this process's part of the data; not read if nothing is needed.
            gather: all-gathers an object over processes; all must call this together.
        """

    def draw(
        self, batch: int, generator: torch.Generator, rows: slice | None = None, *, progress: float = 0.0
    ) -> Draws:
        """The random numbers of a global batch, or of these rows of it, on the CPU.

        Args:
            progress: the share of the run that is done, 0 to 1, for a loss that changes on the way.
        """

    def loss(self, inputs: Tensor, labels: Tensor | None, draws: Any) -> LossTerms:
        """The loss of inputs; a mean over samples, so that parts of a batch average."""

    def blank(self, count: int) -> tuple[Tensor, Tensor | None, Draws]:
        """Inputs, labels and draws of `count` samples that nobody filled, on the current device: for estimates."""

    def synthetic(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
        """Random inputs and labels on the CPU that look like data: for measuring speed."""

    @property
    def needs_calibration(self) -> bool:
        """Whether the model holds statistics of its data that no average of weights has."""

    def calibrate(
        self,
        model: nn.Module,
        batches: Iterable[tuple[Tensor, Tensor | None]],
        gather: Callable[[object], list[Any]],
    ) -> None:
        """Measure anew what a model, such as the averaged one, holds of statistics of the data.

        Args:
            model: like the trained one, in evaluation mode.
            batches: inputs and their labels, of this process's part of the data.
            gather: all-gathers an object over processes; all must call this together.
        """

    def assembled(self, model: nn.Module) -> Any:
        """What users get of a trained or averaged model: with the frozen networks that belong to it."""

    def shards(self, model: nn.Module) -> Sequence[nn.Module]:
        """The modules of a model, or of its average, that are gathered as one when it is sharded, inside out."""

    def flops_per_image(self) -> float:
        """Floating-point operations of one training step for one image, in linears and convolutions."""

    def save(self, folder: Path, model: nn.Module, info: ModelInfo, *, title: str, state: Mapping[str, Tensor]) -> None:
        """Write the model folder of an averaged model with these weights."""

    def is_saved(self, folder: Path, state: Mapping[str, Tensor]) -> bool:
        """Whether the model folder holds these averaged weights already."""

    def preview(
        self, model: nn.Module, batch: Batch, path: Path | None, metadata: Mapping[str, str], sampling: SamplingConfig
    ) -> None:
        """Draw the preview sheet of an averaged model; `path=None` computes it and writes nothing.

        Args:
            batch: the first of the run, on the model's device.
        """
