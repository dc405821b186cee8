"""A tokenizer in training: a decoder for the tokens of a frozen encoder."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, cast

import torch
from torch import Tensor, nn

from spheregen.data import Batch
from spheregen.evaluation.cost import count_flops
from spheregen.evaluation.metrics.moments import Moments
from spheregen.losses.perceptual import Features, PerceptualLoss, load_perceptual
from spheregen.losses.representation import RepresentationDraws, RepresentationLossConfig, RepresentationObjective
from spheregen.losses.terms import LossTerms
from spheregen.model_folder import LoadedModel, ModelInfo, save_model, weights_hash
from spheregen.nn.block import blocks_of
from spheregen.sampling import seeded_noise
from spheregen.tokenizers.codec import TokenCodec
from spheregen.tokenizers.encoders import FrozenEncoder, build_encoder
from spheregen.tokenizers.normaliser import Normaliser, measure
from spheregen.tokenizers.representation import RepresentationAutoencoder, RepresentationConfig, with_architecture
from spheregen.training.preview import COLUMNS, save_sheet
from spheregen.training.recipe import RepresentationRecipe
from spheregen.training.settings import SamplingConfig
from spheregen.training.systems.autoencoder import perceptual_flops, synthetic_perceptual
from spheregen.training.systems.folders import folder_holds
from spheregen.training.transfer import Transfer, transfer_representation

PREVIEW_NOISE = (0.5, 1.0)
"""Noise levels under which previews show decodes, in deviations of the latents."""


class Learned(nn.Module):
    """All that is trained of a representation autoencoder, and the critic, if there is one."""

    def __init__(
        self, config: RepresentationConfig, loss: RepresentationLossConfig, perceptual: PerceptualLoss | None
    ) -> None:
        super().__init__()
        self.codec = TokenCodec(config)
        widths = perceptual.widths if perceptual is not None else ()
        self.critic = loss.new_critic(config.image_channels, config.image_size, widths)


class RepresentationSystem:
    """A representation autoencoder and its loss. The encoder stays outside of what is averaged and checkpointed.

    Args:
        recipe: model, loss and seed.
        encoder: frozen; as the recipe's model has it.
        perceptual: the perceptual distance; `build` finds the recipe's own.
    """

    def __init__(self, recipe: RepresentationRecipe, encoder: FrozenEncoder, perceptual: PerceptualLoss | None) -> None:
        torch.manual_seed(recipe.train.seed)
        self.recipe, self.encoder, self.perceptual = recipe, encoder, perceptual
        self.config = dataclasses.replace(recipe.model, encoder=encoder.config)
        self.model = Learned(self.config, recipe.loss, perceptual)
        self._projection_is_fresh = True
        self._objective = RepresentationObjective(
            encoder, self.model.codec, recipe.loss, perceptual, critic=self.model.critic
        )

    @classmethod
    def build(cls, recipe: RepresentationRecipe) -> Self:
        """The system of a recipe, with its encoder's weights and the perceptual networks that it asks for.

        Raises:
            ModelFileError: weights are missing, broken or out of reach.
            SphereGenError: the encoder's package is not installed.
            ConfigError: the model does not fit the encoder.
        """
        perceptual = load_perceptual(recipe.perceptual) if recipe.loss.needs_perceptual else None
        return cls(recipe, build_encoder(recipe.model.encoder, pretrained=True), perceptual)

    @classmethod
    def stand_in(cls, recipe: RepresentationRecipe) -> Self:
        """The same with random frozen networks, on the current device: for memory and speed."""
        perceptual = synthetic_perceptual(recipe.perceptual) if recipe.loss.needs_perceptual else None
        return cls(recipe, build_encoder(with_architecture(recipe.model.encoder), pretrained=False), perceptual)

    @property
    def about(self) -> Mapping[str, Any]:
        return {"perceptual": self.perceptual_name, "encoder": self._encoder_hash}

    @functools.cached_property
    def _encoder_hash(self) -> str:
        return weights_hash(self.encoder.state_dict())

    @property
    def frozen(self) -> Sequence[nn.Module]:
        return [self.encoder] if self.perceptual is None else [self.encoder, self.perceptual]

    @property
    def notes(self) -> Sequence[str]:
        return [f"perceptual loss: {self.perceptual_name}"]

    @property
    def perceptual_name(self) -> str:
        """The provider of the perceptual distance that is in use, or `none`."""
        return self.perceptual.name if self.perceptual is not None else "none"

    def to(self, device: torch.device) -> Self:
        for network in self.frozen:
            network.to(device)
        return self

    def start_from(self, base: LoadedModel, class_names: Sequence[str]) -> Transfer:
        source = cast(nn.Module, base.model)
        assert isinstance(source, RepresentationAutoencoder)
        found = transfer_representation(self.model.codec, source)
        self._projection_is_fresh = "projection.weight" not in found.names("kept")
        return found

    def prepare(self, batches: Iterable[tuple[Tensor, Tensor | None]], gather: Callable[[object], list[Any]]) -> None:
        """Measure the statistics of the encoder's tokens. A fresh projection starts at their principal components."""
        codec = self.model.codec
        if codec.projection is None:
            codec.set_statistics(measure(self._tokens(batches), gather=gather))
            return
        own = Moments()
        for tokens in self._tokens(batches):
            own.update(tokens.flatten(0, 1))
        total = Moments()
        for part in gather(own):
            total.merge(part)
        covariance = total.covariance
        measured = Normaliser.of_variance(total.mean[None], covariance.diagonal()[None])
        codec.set_statistics(measured, covariance / (measured.std.T * measured.std).to(covariance))
        if self._projection_is_fresh:
            codec.projection.start()

    @torch.no_grad()
    def _tokens(self, batches: Iterable[tuple[Tensor, Tensor | None]]) -> Iterator[Tensor]:
        for images, _ in batches:
            yield self.encoder(images)

    def draw(
        self, batch: int, generator: torch.Generator, rows: slice | None = None, *, progress: float = 0.0
    ) -> RepresentationDraws:
        return self._objective.draw(batch, generator, rows, progress=progress)

    def loss(self, inputs: Tensor, labels: Tensor | None, draws: RepresentationDraws) -> LossTerms:
        return self._objective(inputs, draws)

    def blank(self, count: int) -> tuple[Tensor, None, RepresentationDraws]:
        """Of the end of a run, where every term counts."""
        images = torch.empty(count, *self._image_shape)
        direction = torch.empty(count, *self.model.codec.latent_shape) if self.recipe.loss.noise else None
        return images, None, RepresentationDraws(level=torch.empty(count), direction=direction, progress=1.0)

    def synthetic(self, count: int, generator: torch.Generator) -> tuple[Tensor, None]:
        """Random pictures of 256 levels."""
        shape = (count, *self._image_shape)
        return torch.randint(256, shape, generator=generator, dtype=torch.uint8).float() / 127.5 - 1, None

    @property
    def needs_calibration(self) -> bool:
        return False  # the statistics are of the frozen tokens, and what they make of a projection is exact

    def calibrate(
        self,
        model: nn.Module,
        batches: Iterable[tuple[Tensor, Tensor | None]],
        gather: Callable[[object], list[Any]],
    ) -> None:
        """Nothing here has statistics that go with the weights."""

    def assembled(self, model: nn.Module) -> RepresentationAutoencoder:
        assert isinstance(model, Learned) and not model.training
        return RepresentationAutoencoder(self.encoder, model.codec)

    def shards(self, model: nn.Module) -> Sequence[nn.Module]:
        assert isinstance(model, Learned)
        parts = (model.codec.projection, model.codec.decoder, model.critic)
        return [*blocks_of(model), *(part for part in parts if part is not None)]

    def flops_per_image(self) -> float:
        """Floating-point operations of one training step for one image, in linears and convolutions.

        The encoder sees the image forward; the decoder works forward and twice that backward; the perceptual networks
        see the image and the decode forward, and the decode backward. While it learns, the critic sees image and decode
        forward and twice that backward; for the decoder's term it sees the decode forward and backward. That is counted
        by its share of the run.
        """
        loss = self.recipe.loss
        image = torch.zeros(1, *self._image_shape, device=next(self.encoder.parameters()).device)
        learning, pulling = min(1.0, 1 - loss.adversarial_start + loss.critic_lead), 1 - loss.adversarial_start
        total = count_flops(self.encoder, image)
        features: Features = ()
        if self.perceptual is not None:
            total += 3 * perceptual_flops(self.perceptual, self._image_shape)
            features = tuple(each.to("meta") for each in self.perceptual.features(image))
        with torch.device("meta"):
            fresh = Learned(self.config, loss, self.perceptual)
            total += 3 * count_flops(fresh.codec.decoder, torch.zeros(1, *fresh.codec.latent_shape))
            if fresh.critic is not None:
                total += (6 * learning + 2 * pulling) * count_flops(fresh.critic, image.to("meta"), features)
        return total

    @property
    def _image_shape(self) -> tuple[int, int, int]:
        return self.config.image_channels, self.config.image_size, self.config.image_size

    def save(self, folder: Path, model: nn.Module, info: ModelInfo, *, title: str, state: Mapping[str, Tensor]) -> None:
        """The folder holds the encoder too, and not the critic: nothing else is needed to encode and decode."""
        whole = {f"encoder.{name}": tensor for name, tensor in self.encoder.state_dict().items()} | _of_codec(state)
        about = dataclasses.replace(info, sampling={})
        save_model(folder, self.assembled(model), about, title=title, state=whole)

    def is_saved(self, folder: Path, state: Mapping[str, Tensor]) -> bool:
        return folder_holds(folder, _of_codec(state))

    @torch.no_grad()
    def preview(
        self, model: nn.Module, batch: Batch, path: Path | None, metadata: Mapping[str, str], sampling: SamplingConfig
    ) -> None:
        """Originals and reconstructions, without and with noise on the latents, the same in every preview."""
        tokenizer = self.assembled(model)
        originals = batch.inputs[:COLUMNS]
        columns = originals.shape[0]
        z = tokenizer.encode(originals)
        noise = seeded_noise(range(columns), tokenizer.latent_shape, 0).initial.to(z.device)
        rows = {"originals": originals, "reconstructions": tokenizer.decode(z)}
        for level in PREVIEW_NOISE:
            rows[f"reconstructions under noise of {level:g} on the latents"] = tokenizer.decode(z + level * noise)
        if path is not None:
            save_sheet(rows, columns, path, metadata)


def _of_codec(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in state.items() if name.startswith("codec.")}
