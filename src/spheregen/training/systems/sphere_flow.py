"""System 3: a flow refiner in training, with the Sphere Encoder in front of it or behind a frozen generator."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, cast

import torch
from torch import Tensor, nn

from spheregen.data import Batch
from spheregen.errors import ConfigError
from spheregen.evaluation.cost import autoencoder_cost, count_flops, generator_cost, refiner_cost
from spheregen.losses.autoencoder import AutoencoderDraws, AutoencoderObjective
from spheregen.losses.flow import FlowDraws, FlowObjective
from spheregen.losses.perceptual import Features, PerceptualLoss, load_perceptual
from spheregen.losses.teacher import Teacher
from spheregen.losses.terms import LossTerms
from spheregen.model_folder import SOURCE, LoadedModel, ModelInfo, load_model, read_architecture, save_model
from spheregen.model_source import find_model
from spheregen.models.autoencoder import SphereAutoencoder
from spheregen.models.blank import blank_generator
from spheregen.models.flow_refiner import FlowRefiner, FlowRefinerConfig, RefinedGenerator, decoder_width
from spheregen.models.protocol import GeneratorModule
from spheregen.nn.batch_norm import BatchNorm
from spheregen.nn.block import blocks_of
from spheregen.nn.critic import PatchCritic
from spheregen.noise import Radii
from spheregen.sampling.flow import evaluations
from spheregen.sampling.refinement import Refinement
from spheregen.training.preview import save_preview
from spheregen.training.recipe import Recipe, SphereFlowRecipe
from spheregen.training.settings import SamplingConfig
from spheregen.training.systems.autoencoder import calibrate_encoder, perceptual_flops, synthetic_perceptual
from spheregen.training.systems.folders import folder_holds
from spheregen.training.transfer import Transfer, transfer_refiner

AUTOENCODER, REFINER = "autoencoder", "refiner"


class Learned(nn.Module):
    """All that is trained: the refiner, its critic, if it has one, and the autoencoder unless a frozen generator is in
    its place."""

    def __init__(self, autoencoder: SphereAutoencoder | None, refiner: FlowRefiner, critic: PatchCritic | None) -> None:
        super().__init__()
        self.autoencoder = autoencoder
        self.refiner = refiner
        self.critic = critic


class SphereFlowSystem:
    """A refiner, the generator in front of it, and their losses.

    Args:
        recipe: model, losses, noise, phases and seed.
        source: the frozen generator of the recipe's `source` or `teacher`; None where the autoencoder is trained along.
        perceptual: the perceptual distance; `build` finds the recipe's own.
        teacher: the model of the recipe's `teacher`, with `source` in front.

    Raises:
        ConfigError: refiner and generator do not fit together.
    """

    def __init__(
        self,
        recipe: SphereFlowRecipe,
        source: LoadedModel | None,
        perceptual: PerceptualLoss | None,
        teacher: LoadedModel | None = None,
    ) -> None:
        torch.manual_seed(recipe.train.seed)
        self.recipe, self.perceptual = recipe, perceptual
        self.base, self.taught_by = source, teacher
        # the autoencoder is built first, so that its weights start as they would without a refiner
        autoencoder = None if recipe.autoencoder is None else SphereAutoencoder(recipe.autoencoder)
        front = source.model if source is not None else cast(GeneratorModule, autoencoder)
        config = recipe.model.completed(tuple(front.latent_shape), decoder_width(front))
        widths = perceptual.widths if perceptual is not None else ()
        critic = recipe.loss.new_critic(config.image_channels, config.image_size, widths)
        self.model = Learned(autoencoder, FlowRefiner(config), critic)
        for frozen in self.frozen:
            frozen.eval().requires_grad_(False)
        self._objective = FlowObjective(
            RefinedGenerator(front, self.model.refiner),
            recipe.loss,
            recipe.noise,
            perceptual,
            None
            if autoencoder is None
            else AutoencoderObjective(autoencoder, recipe.autoencoder_loss, recipe.noise, perceptual),
            critic,
            None if teacher is None else _teacher(recipe, teacher, front),
        )

    @classmethod
    def build(cls, recipe: SphereFlowRecipe) -> Self:
        """The system of a recipe, with its frozen generator and the perceptual networks that it asks for.

        Raises:
            ModelFileError: the generator or the teacher is missing, broken or out of reach.
            ConfigError: the refiner does not fit it.
        """
        perceptual = load_perceptual(recipe.perceptual) if recipe.needs_perceptual else None
        if recipe.teacher is not None:
            folder = find_model(recipe.teacher.model)
            check_teacher(recipe.teacher.model, read_architecture(folder))
            return cls(recipe, load_model(folder / SOURCE), perceptual, load_model(folder))
        source = None
        if recipe.source is not None:
            source = load_model(find_model(recipe.source))
            if isinstance(source.model, RefinedGenerator):
                raise ConfigError(
                    f"{recipe.source} is refined already; name the folder {SOURCE}/ in it, or another one"
                )
        return cls(recipe, source, perceptual)

    @classmethod
    def stand_in(cls, recipe: SphereFlowRecipe) -> Self:
        """The same with random frozen networks, on the current device: for memory and speed.

        The tokenizer of a latent denoiser in front is left out.
        """
        perceptual = synthetic_perceptual(recipe.perceptual) if recipe.needs_perceptual else None
        source = teacher = None
        if recipe.autoencoder is None:
            source = LoadedModel(blank_generator(front_architecture(recipe)), ModelInfo())
        if recipe.teacher is not None:
            config = read_architecture(find_model(recipe.teacher.model))
            teacher = LoadedModel(blank_generator(config, front_architecture(recipe)), ModelInfo())
        return cls(recipe, source, perceptual, teacher)

    @property
    def about(self) -> Mapping[str, Any]:
        about: dict[str, Any] = {"perceptual": self.perceptual_name}
        if self.base is not None:
            about["source"] = self.base.fingerprint
        if self.taught_by is not None:
            about["teacher"] = self.taught_by.fingerprint
        return about

    @property
    def frozen(self) -> Sequence[nn.Module]:
        networks = [] if self.base is None else [cast(nn.Module, self.base.model)]
        if self.taught_by is not None:
            networks.append(cast(RefinedGenerator, self.taught_by.model).refiner)
        return networks if self.perceptual is None else [*networks, self.perceptual]

    @property
    def notes(self) -> Sequence[str]:
        front = [] if self.recipe.source is None else [f"behind {self.recipe.source}"]
        if self.recipe.teacher is not None:
            front = [f"learns from {self.recipe.teacher.model}"]
        return [*front, f"perceptual loss: {self.perceptual_name}"]

    @property
    def perceptual_name(self) -> str:
        """The provider of the perceptual distance that is in use, or `none`."""
        return self.perceptual.name if self.perceptual is not None else "none"

    def to(self, device: torch.device) -> Self:
        for network in self.frozen:
            network.to(device)
        return self

    def start_from(self, base: LoadedModel, class_names: Sequence[str]) -> Transfer:
        assert isinstance(base.model, RefinedGenerator)
        return transfer_refiner(
            self.model.refiner,
            self.model.autoencoder,
            base.model,
            target_classes=class_names,
            source_classes=base.info.class_names,
        )

    def prepare(self, batches: Iterable[tuple[Tensor, Tensor | None]], gather: Callable[[object], list[Any]]) -> None:
        """Nothing is measured beforehand."""

    def draw(
        self, batch: int, generator: torch.Generator, rows: slice | None = None, *, progress: float = 0.0
    ) -> FlowDraws:
        learning = frozenset(learner.name for learner in self.recipe.learners if learner.learns_at(progress))
        return self._objective.draw(batch, generator, rows, learning=learning, progress=progress)

    def loss(self, inputs: Tensor, labels: Tensor | None, draws: FlowDraws) -> LossTerms:
        return self._objective(inputs, labels, draws)

    def blank(self, count: int) -> tuple[Tensor, Tensor | None, FlowDraws]:
        """Of joint training, where every term counts."""
        config = self.recipe.model
        images = torch.empty(count, *self.model.refiner.image_shape)
        labels = torch.empty(count, dtype=torch.int64) if config.num_classes else None
        draws = FlowDraws(
            source=AutoencoderDraws(
                radii=Radii(strong=torch.empty(count), weak=torch.empty(count)),
                direction=torch.empty(count, *self._objective.network.latent_shape),
                dropped=torch.empty(4, count, dtype=torch.bool),
            ),
            times=torch.empty(count),
            noise=torch.empty_like(images),
            strong=torch.empty(count, dtype=torch.bool),
            random=torch.empty(count, dtype=torch.bool),
            dropped=torch.empty(count, dtype=torch.bool),
            learning=frozenset(learner.name for learner in self.recipe.learners),
            progress=1.0,
        )
        return images, labels, draws

    def synthetic(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
        """Random pictures of 256 levels."""
        classes, shape = self.recipe.model.num_classes, (count, *self.model.refiner.image_shape)
        images = torch.randint(256, shape, generator=generator, dtype=torch.uint8).float() / 127.5 - 1
        return images, torch.randint(classes, (count,), generator=generator) if classes else None

    @property
    def needs_calibration(self) -> bool:
        return any(isinstance(module, BatchNorm) for module in self.model.modules())

    def calibrate(
        self,
        model: nn.Module,
        batches: Iterable[tuple[Tensor, Tensor | None]],
        gather: Callable[[object], list[Any]],
    ) -> None:
        assert isinstance(model, Learned) and model.autoencoder is not None
        calibrate_encoder(model.autoencoder, batches, gather)

    def assembled(self, model: nn.Module) -> RefinedGenerator:
        assert isinstance(model, Learned)
        front = self.base.model if self.base is not None else cast(GeneratorModule, model.autoencoder)
        return RefinedGenerator(front, model.refiner)

    def shards(self, model: nn.Module) -> Sequence[nn.Module]:
        assert isinstance(model, Learned)
        front = [] if model.autoencoder is None else list(model.autoencoder.children())
        behind = [model.refiner] if model.critic is None else [model.refiner, model.critic]
        return [*blocks_of(model), *front, *behind]

    def flops_per_image(self) -> float:
        """Floating-point operations of a training step for one image, in linears and convolutions, a mean of the run.

        The refiner works forward and twice that backward. An autoencoder that learns takes what it takes alone; one
        that rests, and a frozen generator, encode and decode once, or decode only if all points are random. Random
        points beside those of an autoencoder that learns take a decode.
        """
        recipe, encodes_once = self.recipe, self.recipe.loss.random_share < 1
        joint, alone = recipe.phases.joint_from, 1 - recipe.phases.refiner_from
        refines = 1.0 if self.base is not None else 1 - joint
        total = 3e9 * refines * refiner_cost(self.model.refiner.config).gflops
        seen = 0.0  # passes of the perceptual networks
        teacher = self._objective.teacher
        if self.base is not None:
            parts = generator_cost(self.base.model)
            once = parts.generation_gflops(1)
            if recipe.model.uses_rough:
                total += 1e9 * (parts.generation_gflops(2) - once if encodes_once else once)
            if teacher is not None:
                flow = teacher.refinement
                passes = evaluations(flow.steps, flow.solver) * (1 + (flow.guidance != 1))
                total += 1e9 * (teacher.guides_rough * once + passes * refiner_cost(teacher.network.config).gflops)
        else:
            assert recipe.autoencoder is not None
            cost, loss = autoencoder_cost(recipe.autoencoder), recipe.autoencoder_loss
            encodes = 1 + (loss.latent_consistency > 0)
            total += 3e9 * (1 - alone) * (encodes * cost.encoder.gflops + 2 * cost.decoder.gflops)
            total += 1e9 * alone * (encodes_once * cost.encoder.gflops + cost.decoder.gflops)
            if recipe.loss.random_share:
                total += 1e9 * (1 - joint - alone) * cost.decoder.gflops
            differentiated = (loss.perceptual_reconstruction > 0) + (loss.perceptual_consistency > 0)
            seen += (1 - alone) * (1 + 2 * differentiated) if differentiated else 0
        if recipe.loss.needs_perceptual:
            seen += 3 * refines
        if self.model.critic is not None:
            total += self._critic_flops()
        if self.perceptual is not None and seen:
            total += seen * perceptual_flops(self.perceptual, self.model.refiner.image_shape)
        return total

    def _critic_flops(self) -> float:
        """Of the critic for one image, by the shares of the run in which it learns and is deceived."""
        loss, shape = self.recipe.loss, self.model.refiner.image_shape
        features: Features = ()
        if self.perceptual is not None:
            blank = torch.zeros(1, *shape, device=next(self.perceptual.parameters()).device)
            features = tuple(each.to("meta") for each in self.perceptual.features(blank))
        with torch.device("meta"):
            critic = loss.new_critic(shape[0], shape[1], self.perceptual.widths if self.perceptual else ())
            assert critic is not None
            once = count_flops(critic, torch.zeros(1, *shape), features)
        learning, pulling = min(1.0, 1 - loss.adversarial_start + loss.critic_lead), 1 - loss.adversarial_start
        return (6 * learning + 2 * pulling) * once

    def save(self, folder: Path, model: nn.Module, info: ModelInfo, *, title: str, state: Mapping[str, Tensor]) -> None:
        """The folder holds the generator in front too, as a model folder of its own."""
        self._save_source(folder / SOURCE, model, info, state)
        save_model(folder, self.assembled(model), info, title=title, state=_of(state, REFINER))

    def _save_source(self, folder: Path, model: nn.Module, info: ModelInfo, state: Mapping[str, Tensor]) -> None:
        if self.base is not None:
            if not folder_holds(folder, _network_state(self.base.model)):
                save_model(folder, self.base.model, self.base.info)
            return
        assert isinstance(model, Learned) and model.autoencoder is not None
        names = info.class_names if model.autoencoder.num_classes else ()
        about = ModelInfo(class_names=names, preprocessing=info.preprocessing, training=info.training)
        save_model(folder, model.autoencoder, about, title=folder.name, state=_of(state, AUTOENCODER))

    def is_saved(self, folder: Path, state: Mapping[str, Tensor]) -> bool:
        front = _network_state(self.base.model) if self.base is not None else _of(state, AUTOENCODER)
        return folder_holds(folder, _of(state, REFINER)) and folder_holds(folder / SOURCE, front)

    def preview(
        self, model: nn.Module, batch: Batch, path: Path | None, metadata: Mapping[str, str], sampling: SamplingConfig
    ) -> None:
        recipe = self.recipe.sampling
        guidance = sampling.guidance if recipe.refinement_guidance is None else recipe.refinement_guidance
        classes = self.recipe.model.num_classes
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
            refinement=Refinement(recipe.refinement_steps, recipe.solver, guidance if classes else 1.0),
        )


def front_architecture(recipe: Recipe) -> Any:
    """The architecture of the generator in front of a recipe's refiner; None for other kinds of recipes.

    Raises:
        ModelFileError: it is frozen, and missing or broken.
    """
    if not isinstance(recipe, SphereFlowRecipe):
        return None
    if recipe.teacher is not None:
        folder = find_model(recipe.teacher.model)
        check_teacher(recipe.teacher.model, read_architecture(folder))
        return read_architecture(folder / SOURCE)
    return recipe.autoencoder if recipe.source is None else read_architecture(find_model(recipe.source))


def check_teacher(name: str, architecture: Any) -> None:
    """Refuse a teacher that is no refiner.

    Raises:
        ConfigError: it is so.
    """
    if not isinstance(architecture, FlowRefinerConfig):
        raise ConfigError(f"teacher.model is a refiner to learn from, and {name} is none; give a folder of sphere-flow")


def _teacher(recipe: SphereFlowRecipe, loaded: LoadedModel, front: GeneratorModule) -> Teacher:
    assert recipe.teacher is not None and isinstance(loaded.model, RefinedGenerator)
    how = recipe.teacher
    refinement = Refinement(how.refinement_steps, how.solver, how.refinement_guidance)
    return Teacher(RefinedGenerator(front, loaded.model.refiner), refinement, how.guidance)


def _of(state: Mapping[str, Tensor], part: str) -> dict[str, Tensor]:
    """The tensors of one part, by their names in it."""
    return {name.removeprefix(f"{part}."): tensor for name, tensor in state.items() if name.startswith(f"{part}.")}


def _network_state(model: GeneratorModule) -> Mapping[str, Tensor]:
    """What a generator's model folder holds in its own file of weights."""
    network: Any = getattr(model, "denoiser", model)
    return cast(Mapping[str, Tensor], network.state_dict())
