"""The record of Sphere Flow: its recipe, its training and its cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, cast

import torch
from pydantic import Field, model_validator

from spheregen.errors import ConfigError
from spheregen.family.member import Inner, Member
from spheregen.family.objective import Frozen
from spheregen.family.recipe import OptimizerConfig, ParameterGroup, Perceptual, Recipe, SamplingConfig, Section
from spheregen.family.sphere_encoder.loss import AutoencoderLossConfig, AutoencoderObjective
from spheregen.family.sphere_encoder.network import AutoencoderConfig, SphereAutoencoder
from spheregen.family.sphere_flow.loss import FlowLossConfig, FlowObjective, Teacher
from spheregen.family.sphere_flow.network import FlowRefiner, FlowRefinerConfig, RefinedGenerator
from spheregen.measure.cost import Cost, part_cost
from spheregen.nn.uninitialised import weightless
from spheregen.noise import NoiseConfig
from spheregen.protocol import Context, SphereGenerator
from spheregen.sampling.flow import Refinement, evaluations
from spheregen.sampling.schedules import MOST_STEPS

SOURCE = "source"
"""In the folder of a refined model: the model folder of the generator in front."""


class SphereFlowSampling(SamplingConfig):
    """The way a refined generator is sampled: the rough image by the loop of every generator, then the flow."""

    steps: int = Field(1, ge=1)
    refinement_steps: int = Field(4, ge=0, le=MOST_STEPS)
    """Steps of the flow; 0 leaves images rough."""
    solver: Literal["euler", "heun", "midpoint"] = "heun"
    """Of the flow; the last step is the plain prediction."""
    refinement_guidance: float | None = Field(None, ge=0)
    """Guidance of the flow; None: as that of the rough image."""


class PhasesConfig(Section):
    """When autoencoder and refiner learn, as shares of the run."""

    joint_from: float = Field(0.25, ge=0, lt=1)
    """Before it the autoencoder learns alone."""
    refiner_from: float = Field(1.0, ge=0, le=1)
    """From it the refiner learns alone; 1: never."""

    @model_validator(mode="after")
    def _some_of_each(self) -> PhasesConfig:
        if not self.refiner_from:
            raise ValueError("refiner_from is 0, so the autoencoder would never learn; name a trained one as `source`")
        if self.joint_from > self.refiner_from:
            raise ValueError("joint_from lies behind refiner_from: in between nothing would learn")
        return self


class TeacherConfig(Section):
    """A trained refiner whose images another one learns to make in fewer steps, and how it makes them."""

    model: str = Field(min_length=1)
    """A model folder of kind sphere-flow, or one of the Hub, frozen; the generator in front of it becomes that of the
    refiner that learns."""
    refinement_steps: int = Field(4, ge=1, le=MOST_STEPS)
    solver: Literal["euler", "heun", "midpoint"] = "heun"
    refinement_guidance: float = Field(1.0, ge=0, allow_inf_nan=False)
    guidance: float = Field(1.0, ge=0, allow_inf_nan=False)
    """Of the rough images that both refine, which are of one step."""


class SphereFlowRecipe(Recipe):
    """System 3: a flow that refines the images of a small Sphere Encoder trained along, or of any generator."""

    kind: Literal["sphere-flow"] = "sphere-flow"
    source: str | None = Field(None, min_length=1)
    """The generator whose images are refined: a model folder, a bundled model or one of the Hub, frozen; None trains
    `autoencoder`."""
    autoencoder: AutoencoderConfig | None = None
    """The Sphere Encoder that is trained along; None where there is a `source`."""
    teacher: TeacherConfig | None = None
    """The refiner to learn from instead of the images of the data; it stands for a `source`, and unless `init` is told,
    the run starts from its weights."""
    model: FlowRefinerConfig
    noise: NoiseConfig = NoiseConfig()
    loss: FlowLossConfig = FlowLossConfig()
    """Of the refiner."""
    autoencoder_loss: AutoencoderLossConfig = AutoencoderLossConfig()
    perceptual: Perceptual = "auto"
    phases: PhasesConfig = PhasesConfig()
    """Of autoencoder and refiner; not used with a `source` or a `teacher`."""
    autoencoder_optimizer: OptimizerConfig = OptimizerConfig()
    sampling: SphereFlowSampling = SphereFlowSampling()

    free_to_change = Recipe.free_to_change | {"source", "teacher.model"}  # their fingerprints decide

    @model_validator(mode="before")
    @classmethod
    def _from_its_teacher(cls, values: Any) -> Any:
        if isinstance(values, dict) and isinstance(values.get("teacher"), dict) and "init" not in values:
            return values | {"init": values["teacher"].get("model")}
        return values

    @model_validator(mode="after")
    def _one_source(self) -> SphereFlowRecipe:
        if sum(each is not None for each in (self.source, self.autoencoder, self.teacher)) != 1:
            raise ValueError(
                "give `autoencoder`, to train one along, `source`, a trained generator, or `teacher`, a trained "
                "refiner: one of them"
            )
        if self.autoencoder is None:
            return self
        if self.autoencoder_loss.adversarial:
            raise ValueError(
                "an autoencoder that is trained along has no critic of its own: give loss.adversarial, or train it "
                "first and name it as `source`"
            )
        for name in ("image_size", "image_channels"):
            ours, theirs = getattr(self.model, name), getattr(self.autoencoder, name)
            if ours != theirs:
                raise ValueError(f"model.{name} is {ours} and autoencoder.{name} {theirs}; they must agree")
        for name in ("num_classes", "text_width"):
            if getattr(self.autoencoder, name) not in (0, getattr(self.model, name)):
                raise ValueError(f"autoencoder.{name} is 0 or that of the model")
        width = self.autoencoder.decoder_size.width
        try:
            self.model.completed((self.autoencoder.tokens, self.autoencoder.channels), width)
        except ConfigError as error:
            raise ValueError(str(error)) from error
        return self

    @classmethod
    def model_behind(cls, values: Mapping[str, Any]) -> str | None:
        teacher = values.get("teacher")
        found = teacher.get("model") if isinstance(teacher, dict) else values.get("source")
        return found if isinstance(found, str) else None

    @property
    def needs_perceptual(self) -> bool:
        return self.loss.needs_perceptual or (self.autoencoder is not None and self.autoencoder_loss.needs_perceptual)

    @property
    def parameter_groups(self) -> tuple[ParameterGroup, ...]:
        parts = ("refiner", "critic")
        if self.autoencoder is None:
            return (ParameterGroup("refiner", self.optimizer, parts=parts),)
        return (
            ParameterGroup("autoencoder", self.autoencoder_optimizer, end=self.phases.refiner_from),
            ParameterGroup("refiner", self.optimizer, begin=self.phases.joint_from, parts=parts),
        )

    @property
    def max_angle(self) -> float | None:
        return None if self.autoencoder is None else self.autoencoder.max_angle


def _objective(recipe: SphereFlowRecipe, frozen: Frozen) -> FlowObjective:
    perceptual = frozen.perceptual(recipe.perceptual) if recipe.needs_perceptual else None
    facts, taught, source, autoencoder = {}, None, None, None
    if recipe.teacher is not None:
        taught = frozen.model(recipe.teacher.model)
        if getattr(taught.model, "refiner", None) is None:
            raise ConfigError(
                f"teacher.model is a refiner to learn from, and {recipe.teacher.model} is none; give a folder of "
                "sphere-flow"
            )
        source = frozen.model(recipe.teacher.model, SOURCE)
        facts["teacher"] = taught.fingerprint
    elif recipe.source is not None:
        source = frozen.model(recipe.source)
        if getattr(source.model, "refiner", None) is not None:
            raise ConfigError(f"{recipe.source} is refined already; name the folder {SOURCE}/ in it, or another one")
    torch.manual_seed(recipe.train.seed)
    if source is None:  # built first, so that its weights start as they would without a refiner
        assert recipe.autoencoder is not None
        front: SphereGenerator = SphereAutoencoder(recipe.autoencoder)
        autoencoder = AutoencoderObjective(
            cast(SphereAutoencoder, front), recipe.autoencoder_loss, recipe.noise, perceptual
        )
    else:
        front, facts["source"] = source.model, source.fingerprint
    config = recipe.model.completed(tuple(front.latent_shape), front.token_width)
    critic = recipe.loss.new_critic(config.image_channels, config.image_size, perceptual)
    network = RefinedGenerator(front, FlowRefiner(config))
    teacher = None
    if recipe.teacher is not None and taught is not None:
        how = recipe.teacher
        refinement = Refinement(how.refinement_steps, how.solver, how.refinement_guidance)
        teacher = Teacher(RefinedGenerator(front, taught.model.refiner), refinement, how.guidance)
    groups = recipe.parameter_groups
    objective = FlowObjective(
        network,
        recipe.loss,
        recipe.noise,
        perceptual,
        autoencoder,
        critic,
        teacher,
        lambda progress: frozenset(group.name for group in groups if group.learns_at(progress)),
    )
    objective.facts = {**objective.facts, **facts}
    return objective


def _front_config(recipe: SphereFlowRecipe, read: Callable[..., Any]) -> Any:
    if recipe.teacher is not None:
        return read(recipe.teacher.model, SOURCE)
    return recipe.autoencoder if recipe.source is None else read(recipe.source)


def _assemble(refiner: FlowRefiner, front: Any) -> RefinedGenerator:
    if getattr(front, "refiner", None) is not None:
        raise ConfigError("it is refined already: a refiner stands behind a generator that is not")
    return RefinedGenerator(front, refiner)


def _cost(model: RefinedGenerator, cost_of: Callable[[Any], Cost]) -> Cost:
    """The cost of the generator in front, and of the refiner's evaluations (method.md, section 3)."""
    front, config = cost_of(model.source), model.config
    tokens, width = config.context_tokens or 0, config.decoder_width or 0
    with weightless():
        network = FlowRefiner(config)
        images = torch.empty(1, *network.image_shape)
        latent = torch.empty(1, tokens, config.latent_channels or 0)
        context = Context(latent, torch.empty(1, tokens, width) if width else None)
        labels = torch.zeros(1, dtype=torch.int64) if config.num_classes else None
        refiner = part_cost(network, images, torch.zeros(1), labels, context)

    def flow_calls(steps: int, solver: str, guided: bool) -> Mapping[str, int]:
        return {"refiner": evaluations(steps, solver) * (2 if guided else 1)}

    return Cost({**front.parts, "refiner": refiner}, front.calls, flow_calls, front.unguided)


def _facts(config: FlowRefinerConfig) -> list[tuple[str, str]]:
    told = [name for name, width in (("latent", config.latent_channels), ("decoder", config.decoder_width)) if width]
    return [
        ("refiner", f"patches of {config.patch} px, told of {' and '.join(told) or 'nothing'}"),
        ("flow starts at", f"{config.rho:g} noise + {1 - config.rho:g} rough image"),
    ]


MEMBER = Member(
    kind="sphere-flow",
    title="A spherical image generator, in `source`, and a flow that refines its images (Sphere Flow)",
    tags=("image-generation", "sphere-flow"),
    config=FlowRefinerConfig,
    network=FlowRefiner,
    build=FlowRefiner,
    inner=Inner(SOURCE, "rough", is_tokenizer=False),
    attribute="refiner",
    assemble=_assemble,
    recipe=SphereFlowRecipe,
    objective=_objective,
    inner_config=_front_config,
    facts=_facts,
    complete=lambda config, front: config.completed(tuple(front.latent_shape), front.token_width),
    cost=_cost,
)
