"""What the trainer trains: one small face for every member of the family.

A system brings its model, draws its random numbers and computes its loss; the trainer brings data, devices, processes,
optimiser, average, checkpoints and the log. A new kind of model is a new system here, and no change to the trainer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from spheregen.evaluation.cost import autoencoder_cost, count_flops
from spheregen.losses.autoencoder import AutoencoderDraws, AutoencoderObjective
from spheregen.losses.perceptual import PerceptualLoss, load_perceptual
from spheregen.losses.terms import LossTerms
from spheregen.model_folder import LoadedModel
from spheregen.models.autoencoder import SphereAutoencoder
from spheregen.nn.batch_norm import BatchNorm, recalibrate
from spheregen.nn.block import blocks_of
from spheregen.training.recipe import Recipe
from spheregen.training.transfer import Transfer, transfer


class AutoencoderSystem:
    """System 1: the Sphere Encoder and its five-term loss.

    Args:
        recipe: model, loss, noise and seed.
        perceptual: the perceptual distance; `build_system` finds the recipe's own.
    """

    def __init__(self, recipe: Recipe, perceptual: PerceptualLoss | None) -> None:
        torch.manual_seed(recipe.train.seed)
        self.recipe = recipe
        self.perceptual = perceptual
        self.model = SphereAutoencoder(recipe.model)
        self._objective = AutoencoderObjective(self.model, recipe.loss, recipe.noise, perceptual)

    @property
    def perceptual_name(self) -> str:
        """The provider of the perceptual distance that is in use, or `none`."""
        return self.perceptual.name if self.perceptual is not None else "none"

    def to(self, device: torch.device) -> Self:
        """Move what is not trained to the device; the trainer moves the model."""
        if self.perceptual is not None:
            self.perceptual.to(device)
        return self

    def start_from(self, base: LoadedModel, class_names: Sequence[str]) -> Transfer:
        """Put a trained model's weights into this system's fresh model; what does not fit stays as it is.

        Args:
            base: the model to fine-tune; on the CPU, as this one must still be.
            class_names: of this run's data, empty for an unconditional model.

        Raises:
            ConfigError: nothing of it fits.
            ModelFileError: its weights are broken.
        """
        return transfer(self.model, base.model, target_classes=class_names, source_classes=base.info.class_names)

    def draw(self, batch: int, generator: torch.Generator, rows: slice | None = None) -> AutoencoderDraws:
        """The random numbers of a global batch, or of these rows of it, on the CPU."""
        return self._objective.draw(batch, generator, rows)

    def loss(self, images: Tensor, labels: Tensor | None, draws: AutoencoderDraws) -> LossTerms:
        """The loss of images (B, C, S, S) in [-1, 1]; a mean over samples, so that parts of a batch average."""
        return self._objective(images, labels, draws)

    @property
    def needs_calibration(self) -> bool:
        """Whether the model holds statistics of its data that no average of weights has."""
        return any(isinstance(module, BatchNorm) for module in self.model.modules())

    def calibrate(
        self,
        model: SphereAutoencoder,
        batches: Iterable[tuple[Tensor, Tensor | None]],
        gather: Callable[[object], list[Any]],
    ) -> None:
        """Measure anew what the batch norms of a model, such as the averaged one, say of the data.

        Args:
            model: like the trained one, in evaluation mode.
            batches: images (B, C, S, S) in [-1, 1] and their labels, of this process's part of the data.
            gather: all-gathers an object over processes; all must call this together.
        """

        def encode(batch: tuple[Tensor, Tensor | None]) -> None:
            images, labels = batch
            model.encode_raw(images, labels if model.num_classes else None)

        recalibrate(model, encode, batches, gather=gather)

    def shards(self, model: nn.Module) -> Sequence[nn.Module]:
        """The modules of a model, or of its average, that are gathered as one when it is sharded, inside out."""
        return [*blocks_of(model), *model.children()]  # each block, then what is left of encoder and decoder

    def flops_per_image(self) -> float:
        """Floating-point operations of one training step for one image, in linears and convolutions.

        Two encodes and two decodes, forward and twice that backward; the frozen perceptual networks see the image and
        both decodes forward, and the decodes backward, which costs once more (frozen weights take no gradients).
        """
        cost = autoencoder_cost(self.recipe.model)
        loss = self.recipe.loss
        encodes = 1 + (loss.latent_consistency > 0)
        total = 3e9 * (encodes * cost.encoder.gflops + 2 * cost.decoder.gflops)
        if self.perceptual is not None and loss.needs_perceptual:
            size, channels = self.recipe.model.image_size, self.recipe.model.image_channels
            once = perceptual_flops(self.perceptual, (channels, size, size))
            differentiated = (loss.perceptual_reconstruction > 0) + (loss.perceptual_consistency > 0)
            forward = 1 + (loss.perceptual_reconstruction > 0) + (loss.perceptual_consistency > 0)
            total += once * (forward + differentiated)
        return total


def build_system(recipe: Recipe) -> AutoencoderSystem:
    """The system that a recipe trains, with weights initialised from the recipe's seed, on the CPU."""
    perceptual = load_perceptual(recipe.perceptual) if recipe.loss.needs_perceptual else None
    return AutoencoderSystem(recipe, perceptual)


def perceptual_flops(perceptual: PerceptualLoss, shape: tuple[int, int, int]) -> float:
    """Operations of the perceptual features of one image (C, H, W)."""
    device = next(perceptual.parameters()).device
    return count_flops(_Features(perceptual), torch.zeros(1, *shape, device=device))


class _Features(nn.Module):
    def __init__(self, perceptual: PerceptualLoss) -> None:
        super().__init__()
        self.perceptual = perceptual

    def forward(self, images: Tensor) -> None:
        self.perceptual.features(images)
