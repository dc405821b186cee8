"""System 1: the Sphere Encoder in training."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from spheregen.data import Batch
from spheregen.evaluation.cost import autoencoder_cost, count_flops
from spheregen.losses.autoencoder import AutoencoderDraws, AutoencoderObjective
from spheregen.losses.perceptual import PerceptualLoss, available_provider, load_perceptual, random_perceptual
from spheregen.losses.terms import LossTerms
from spheregen.model_folder import LoadedModel, ModelInfo, save_model
from spheregen.models.autoencoder import SphereAutoencoder
from spheregen.nn.batch_norm import BatchNorm, recalibrate
from spheregen.nn.block import blocks_of
from spheregen.noise import Radii
from spheregen.training.preview import save_preview
from spheregen.training.recipe import AutoencoderRecipe, Perceptual
from spheregen.training.settings import SamplingConfig
from spheregen.training.systems.folders import folder_holds
from spheregen.training.transfer import Transfer, transfer


class AutoencoderSystem:
    """System 1: the Sphere Encoder and its five-term loss.

    Args:
        recipe: model, loss, noise and seed.
        perceptual: the perceptual distance; `build` finds the recipe's own.
    """

    def __init__(self, recipe: AutoencoderRecipe, perceptual: PerceptualLoss | None) -> None:
        torch.manual_seed(recipe.train.seed)
        self.recipe = recipe
        self.perceptual = perceptual
        self.model = SphereAutoencoder(recipe.model)
        self._objective = AutoencoderObjective(self.model, recipe.loss, recipe.noise, perceptual)

    @classmethod
    def build(cls, recipe: AutoencoderRecipe) -> Self:
        """The system of a recipe with the perceptual networks that it asks for."""
        return cls(recipe, load_perceptual(recipe.perceptual) if recipe.loss.needs_perceptual else None)

    @classmethod
    def stand_in(cls, recipe: AutoencoderRecipe) -> Self:
        """The same with random frozen networks, on the current device: for memory and speed."""
        return cls(recipe, synthetic_perceptual(recipe.perceptual) if recipe.loss.needs_perceptual else None)

    @property
    def about(self) -> Mapping[str, Any]:
        return {"perceptual": self.perceptual_name}

    @property
    def frozen(self) -> Sequence[nn.Module]:
        return [] if self.perceptual is None else [self.perceptual]

    @property
    def notes(self) -> Sequence[str]:
        return [f"perceptual loss: {self.perceptual_name}"]

    @property
    def perceptual_name(self) -> str:
        """The provider of the perceptual distance that is in use, or `none`."""
        return self.perceptual.name if self.perceptual is not None else "none"

    def to(self, device: torch.device) -> Self:
        if self.perceptual is not None:
            self.perceptual.to(device)
        return self

    def start_from(self, base: LoadedModel, class_names: Sequence[str]) -> Transfer:
        assert isinstance(base.model, SphereAutoencoder)
        return transfer(self.model, base.model, target_classes=class_names, source_classes=base.info.class_names)

    def prepare(self, batches: Iterable[tuple[Tensor, Tensor | None]], gather: Callable[[object], list[Any]]) -> None:
        """Nothing is measured beforehand."""

    def draw(
        self, batch: int, generator: torch.Generator, rows: slice | None = None, *, progress: float = 0.0
    ) -> AutoencoderDraws:
        return self._objective.draw(batch, generator, rows)

    def loss(self, inputs: Tensor, labels: Tensor | None, draws: AutoencoderDraws) -> LossTerms:
        return self._objective(inputs, labels, draws)

    def blank(self, count: int) -> tuple[Tensor, Tensor | None, AutoencoderDraws]:
        config = self.recipe.model
        images = torch.empty(count, config.image_channels, config.image_size, config.image_size)
        labels = torch.empty(count, dtype=torch.int64) if config.num_classes else None
        draws = AutoencoderDraws(
            radii=Radii(strong=torch.empty(count), weak=torch.empty(count)),
            direction=torch.empty(count, *self.model.latent_shape),
            dropped=torch.empty(4, count, dtype=torch.bool),
        )
        return images, labels, draws

    def synthetic(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
        """Random pictures of 256 levels."""
        config = self.recipe.model
        shape = (count, config.image_channels, config.image_size, config.image_size)
        images = torch.randint(256, shape, generator=generator, dtype=torch.uint8).float() / 127.5 - 1
        labels = torch.randint(config.num_classes, (count,), generator=generator) if config.num_classes else None
        return images, labels

    @property
    def needs_calibration(self) -> bool:
        return any(isinstance(module, BatchNorm) for module in self.model.modules())

    def calibrate(
        self,
        model: nn.Module,
        batches: Iterable[tuple[Tensor, Tensor | None]],
        gather: Callable[[object], list[Any]],
    ) -> None:
        assert isinstance(model, SphereAutoencoder)
        calibrate_encoder(model, batches, gather)

    def assembled(self, model: nn.Module) -> SphereAutoencoder:
        assert isinstance(model, SphereAutoencoder)
        return model

    def shards(self, model: nn.Module) -> Sequence[nn.Module]:
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

    def save(self, folder: Path, model: nn.Module, info: ModelInfo, *, title: str, state: Mapping[str, Tensor]) -> None:
        save_model(folder, model, info, title=title, state=state)

    def is_saved(self, folder: Path, state: Mapping[str, Tensor]) -> bool:
        return folder_holds(folder, state)

    def preview(
        self, model: nn.Module, batch: Batch, path: Path | None, metadata: Mapping[str, str], sampling: SamplingConfig
    ) -> None:
        save_preview(
            self.assembled(model),
            batch.inputs,
            path,
            dict(metadata),
            labels=batch.labels,
            schedule=sampling.schedule,
            guidance=sampling.guidance,
            guidance_at=sampling.guidance_at,
            share_noise=sampling.share_noise,
        )


def calibrate_encoder(
    model: SphereAutoencoder,
    batches: Iterable[tuple[Tensor, Tensor | None]],
    gather: Callable[[object], list[Any]],
) -> None:
    """Measure anew the statistics that an encoder's batch norm has of the data. Arguments as of `System.calibrate`."""

    def encode(batch: tuple[Tensor, Tensor | None]) -> None:
        images, labels = batch
        model.encode_raw(images, labels if model.num_classes else None)

    recalibrate(model, encode, batches, gather=gather)


def synthetic_perceptual(kind: Perceptual) -> PerceptualLoss | None:
    """The perceptual networks that a recipe asks for with random weights, on the current device; None for none."""
    if kind == "none":
        return None
    return random_perceptual(available_provider() if kind == "auto" else kind)


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
