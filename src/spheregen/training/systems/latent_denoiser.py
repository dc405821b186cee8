"""System 2: a latent denoiser in training. It never sees a pixel but in previews."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from spheregen.data import Batch
from spheregen.evaluation.cost import denoiser_flops
from spheregen.losses.latent_denoiser import LatentDenoiserDraws, LatentDenoiserObjective
from spheregen.losses.terms import LossTerms
from spheregen.model_folder import TOKENIZER, LoadedModel, ModelInfo, save_model
from spheregen.models.latent_denoiser import LatentDenoiser, LatentGenerator
from spheregen.models.protocol import Tokenizer
from spheregen.nn.block import blocks_of
from spheregen.noise import Radii
from spheregen.tokenizers.opening import open_tokenizer
from spheregen.training.feeding import CachedLatents
from spheregen.training.preview import save_preview
from spheregen.training.recipe import LatentDenoiserRecipe
from spheregen.training.settings import SamplingConfig
from spheregen.training.systems.folders import folder_holds
from spheregen.training.transfer import Transfer, transfer_denoiser


class LatentDenoiserSystem:
    """The denoiser and its loss on clean latents.

    Args:
        recipe: model, loss, noise and seed.
        tokenizer: draws the previews and goes into the model folder; None for estimates alone.
    """

    def __init__(self, recipe: LatentDenoiserRecipe, tokenizer: Tokenizer | None) -> None:
        torch.manual_seed(recipe.train.seed)
        self.recipe = recipe
        self.tokenizer = tokenizer
        self.model = LatentDenoiser(recipe.model)
        if tokenizer is not None:
            LatentGenerator(self.model, tokenizer)  # complains where they do not fit
        self._objective = LatentDenoiserObjective(self.model, recipe.loss, recipe.noise)

    @classmethod
    def build(cls, recipe: LatentDenoiserRecipe, data: CachedLatents | None) -> Self:
        """The system of a recipe with the tokenizer of its data.

        Raises:
            ModelFileError: the tokenizer in the cache is missing or broken.
            DataError: the latents were made by another one.
        """
        if data is None:
            return cls(recipe, None)
        opened = open_tokenizer(data.cache.path / TOKENIZER)
        data.cache.check_match(tokenizer_fingerprint=opened.fingerprint)
        return cls(recipe, opened.tokenizer)

    @property
    def about(self) -> Mapping[str, Any]:
        return {}  # the fingerprint of the data names the tokenizer

    @property
    def frozen(self) -> Sequence[nn.Module]:
        return []

    @property
    def notes(self) -> Sequence[str]:
        return []

    def to(self, device: torch.device) -> Self:
        if self.tokenizer is not None:
            assert isinstance(self.tokenizer, nn.Module)
            self.tokenizer.to(device)
        return self

    def start_from(self, base: LoadedModel, class_names: Sequence[str]) -> Transfer:
        assert isinstance(base.model, LatentGenerator)
        return transfer_denoiser(
            self.model, base.model.denoiser, target_classes=class_names, source_classes=base.info.class_names
        )

    def prepare(self, batches: Iterable[tuple[Tensor, Tensor | None]], gather: Callable[[object], list[Any]]) -> None:
        """Nothing is measured beforehand."""

    def draw(
        self, batch: int, generator: torch.Generator, rows: slice | None = None, *, progress: float = 0.0
    ) -> LatentDenoiserDraws:
        return self._objective.draw(batch, generator, rows)

    def loss(self, inputs: Tensor, labels: Tensor | None, draws: LatentDenoiserDraws) -> LossTerms:
        return self._objective(inputs, labels, draws)

    def blank(self, count: int) -> tuple[Tensor, Tensor | None, LatentDenoiserDraws]:
        config = self.recipe.model
        latents = torch.empty(count, config.tokens, config.channels)
        labels = torch.empty(count, dtype=torch.int64) if config.num_classes else None
        draws = LatentDenoiserDraws(
            radii=Radii(strong=torch.empty(count), weak=torch.empty(count)),
            direction=torch.empty_like(latents),
            dropped=torch.empty(3, count, dtype=torch.bool),
        )
        return latents, labels, draws

    def synthetic(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
        """Gaussian latents."""
        config = self.recipe.model
        latents = torch.randn(count, config.tokens, config.channels, generator=generator)
        labels = torch.randint(config.num_classes, (count,), generator=generator) if config.num_classes else None
        return latents, labels

    @property
    def needs_calibration(self) -> bool:
        return False

    def calibrate(
        self,
        model: nn.Module,
        batches: Iterable[tuple[Tensor, Tensor | None]],
        gather: Callable[[object], list[Any]],
    ) -> None:
        """Nothing here has statistics of the data."""

    def assembled(self, model: nn.Module) -> LatentGenerator:
        assert isinstance(model, LatentDenoiser)
        assert self.tokenizer is not None
        return LatentGenerator(model, self.tokenizer)

    def shards(self, model: nn.Module) -> Sequence[nn.Module]:
        return [*blocks_of(model), *model.children()]

    def flops_per_image(self) -> float:
        """Each evaluation forward, and twice that backward."""
        return 3 * self.recipe.loss.evaluations * denoiser_flops(self.recipe.model)

    def save(self, folder: Path, model: nn.Module, info: ModelInfo, *, title: str, state: Mapping[str, Tensor]) -> None:
        save_model(folder, self.assembled(model), info, title=title, state=state)

    def is_saved(self, folder: Path, state: Mapping[str, Tensor]) -> bool:
        return folder_holds(folder, state)

    def preview(
        self, model: nn.Module, batch: Batch, path: Path | None, metadata: Mapping[str, str], sampling: SamplingConfig
    ) -> None:
        """The originals are what the tokenizer makes of their latents."""
        generator = self.assembled(model)
        save_preview(
            generator,
            generator.tokenizer.decode(batch.inputs),
            path,
            dict(metadata),
            labels=batch.labels,
            schedule=sampling.schedule,
            guidance=sampling.guidance,
            guidance_at=sampling.guidance_at,
            share_noise=sampling.share_noise,
        )
