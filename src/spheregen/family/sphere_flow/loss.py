"""The training objective of a flow refiner: the velocity on straight paths from rough images to fine ones.

Source: Sphere Flow (method.md, section 3); Li and He 2025 (arXiv 2511.13720), prediction of the end under a velocity
loss; Liu et al. 2022 (arXiv 2209.03003), distillation of a rectified flow. Legend: B samples, x images, x_0 the decode
of their perturbed latents (no gradient), n Gaussian noise, t times.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor, nn

from spheregen.conditioning import Condition, Labels
from spheregen.errors import ConfigError, check_choices
from spheregen.family.adversarial import AdversarialConfig
from spheregen.family.objective import Batches, Gather, Objective
from spheregen.family.sphere_encoder.loss import CALLS, AutoencoderObjective, Passes
from spheregen.family.sphere_encoder.network import ImageAutoencoder
from spheregen.family.sphere_flow.network import FlowRefiner, FlowRefinerConfig, RefinedGenerator
from spheregen.family.terms import LossTerms, to_unit, weighted_total
from spheregen.networks.perceptual import Features, PerceptualLoss
from spheregen.nn.critic import PatchCritic
from spheregen.noise import BatchNoise, NoiseConfig, TrainingNoise, draw_angles, gaussian
from spheregen.protocol import Context
from spheregen.sampling.flow import LEAST_REMAINDER, Refinement, refine_images
from spheregen.sampling.loop import Start, guide
from spheregen.sphere import per_sample, upcast


@dataclass(frozen=True, kw_only=True)
class FlowLossConfig(AdversarialConfig):
    """The terms that a refiner learns from.

    Raises:
        ConfigError: a value outside of its range.
    """

    weighted = ("velocity", "perceptual", "adversarial")
    shares = ("critic_lead", "label_dropout", "random_share", "start_share")

    velocity: float = 1.0
    """Weight of the mean squared velocity error."""
    perceptual: float = 0.0
    """Weight of the perceptual distance of the predicted image to x; 0 as published."""
    rough: Literal["weak", "strong", "either"] = "strong"
    """The one of the two perturbed latents that x_0 is decoded from; `either` of them by a coin for each sample."""
    random_share: float = 0.0
    """Share of samples whose x_0 is decoded from a random point instead, which has nothing to do with x, as in
    sampling; 0 as published."""
    random_prior: Literal["sphere", "fitted"] = "sphere"
    """Where these random points lie: uniformly, or where the codes of a trained `source` do; as sampling will begin."""
    random_angle: float = 0.0
    """Degrees by which noise moves points of the `fitted` prior, as `prior_angle` does in sampling."""
    time_law: Literal["uniform", "logit_normal"] = "logit_normal"
    """The law of times in (0, 1)."""
    time_mean: float = 0.0
    """Of the logit-normal law: sigmoid(N(mean, deviation^2)). Not published."""
    time_deviation: float = 1.0
    """See `time_mean`."""
    start_share: float = 0.0
    """Share of samples whose time is 0 instead: all that a refiner of one step sees; 0 as published."""
    label_dropout: float = 0.1
    """Share of labels that become the null class."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choices(self, "loss.")
        if not 0 <= self.random_angle <= 90 or (self.random_angle and self.random_prior != "fitted"):
            raise ConfigError("loss.random_angle is 0 to 90 degrees, and 0 unless loss.random_prior=fitted")
        if self.velocity == self.perceptual == 0:
            raise ConfigError("loss.velocity and loss.perceptual are both 0: nothing would be learned")
        if not abs(self.time_mean) < float("inf") or not 0 <= self.time_deviation < float("inf"):
            raise ConfigError("loss.time_mean is finite and loss.time_deviation not negative, and finite")

    def weights(self) -> dict[str, float]:
        return {**super().weights(), "refined_perceptual": self.perceptual}

    @property
    def needs_perceptual(self) -> bool:
        """A term needs the perceptual network."""
        return self.perceptual > 0 or self.judges_features

    def times(self, count: int, generator: torch.Generator) -> Tensor:
        """Return times (count,) in [0, 1] of a global batch, before some become 0."""
        if self.time_law == "uniform":
            return torch.rand(count, generator=generator)
        return torch.sigmoid(self.time_mean + self.time_deviation * torch.randn(count, generator=generator))


@dataclass(frozen=True, kw_only=True)
class FlowNoise(BatchNoise):
    """The random numbers of a global batch, or of one process's rows of it; slice it for micro-batches."""

    source: TrainingNoise
    """Of the latents and of the autoencoder's labels."""
    times: Tensor
    """(B,) in [0, 1]."""
    noise: Tensor
    """n, (B, C, S, S) standard Gaussian."""
    strong: Tensor
    """(B,) bool: x_0 is decoded from the strong point, else from the weak one."""
    random: Tensor
    """(B,) bool: it is decoded from a random point instead."""
    dropped: Tensor
    """(B,) bool: labels that the refiner does not see."""
    learning: frozenset[str] = frozenset()
    """The parts that learn in this step: `autoencoder`, `refiner`."""
    progress: float = 0.0
    """The share of the run that is done, which switches the adversarial terms on."""


@dataclass(frozen=True)
class Teacher:
    """A refined generator whose few-step images another refiner learns to make in one.

    A flow takes every start to one end, so a refiner that learns ends from starts has no mean of many images to settle
    for, as it has when it learns the images of a data set.

    Args:
        network: frozen.
        refinement: its flow.
        guidance: of its rough images, at all places that the generator in front has.
    """

    network: RefinedGenerator
    refinement: Refinement
    guidance: float = 1.0

    def check(self, student: FlowRefinerConfig) -> None:
        """Refuse a refiner that cannot learn from it.

        Raises:
            ConfigError: another rho, other classes, other images, or told other things of the rough image.
        """
        same = ("rho", "num_classes", "text_width", "image_size", "image_channels", "latent_channels", "decoder_width")
        for name in same:
            ours, theirs = getattr(student, name), getattr(self.network.config, name)
            if ours != theirs:
                raise ConfigError(f"model.{name} is {ours}, the teacher's {theirs}: they must agree")
        if not self.network.label_width and (self.guidance, self.refinement.guidance) != (1, 1):
            raise ConfigError("the teacher has no classes to guide towards: leave its guidance at 1")

    @torch.no_grad()
    def rough(self, points: Tensor, angle: Tensor, labels: Labels) -> tuple[Tensor, Context | None]:
        """Return the rough images (B, C, S, S) of points (B, N, d) and their context, under labels, as in sampling."""
        guided = guide(self.network, labels, self.guidance if self.network.source.label_width else 1.0)
        prediction, context = guided.predict(points, angle)
        return self.network.to_image(prediction), context


class Learned(nn.Module):
    """All that learns: the refiner, its critic, if it has one, and the autoencoder, unless a frozen generator stands in
    its place."""

    def __init__(self, autoencoder: ImageAutoencoder | None, refiner: FlowRefiner, critic: PatchCritic | None) -> None:
        super().__init__()
        self.autoencoder, self.refiner, self.critic = autoencoder, refiner, critic


class FlowObjective(Objective):
    """A refiner, the generator in front of it, which may learn too, and their losses (method.md, section 3).

    The refiner's terms have no gradient into the generator in front, so an autoencoder learns in joint training exactly
    what it learns alone.

    Args:
        network: the refiner and the generator in front of it.
        loss: of the refiner.
        noise: laws of the noise on the generator's latents.
        perceptual: the perceptual distance, where a term needs it.
        autoencoder: the objective of the generator in front, if it learns.
        critic: learns too, where there is an adversarial term.
        teacher: its images are learned instead of those of the data; of these only the latents count then, and what a
            critic sees.
        learning_at: tells which parts learn when a share of the run is done: `autoencoder`, `refiner`.

    Raises:
        ConfigError: without a perceptual network nothing is left to learn from, or nothing for the critic to judge.
    """

    model: Learned

    def __init__(
        self,
        network: RefinedGenerator,
        loss: FlowLossConfig,
        noise: NoiseConfig,
        perceptual: PerceptualLoss | None = None,
        autoencoder: AutoencoderObjective | None = None,
        critic: PatchCritic | None = None,
        teacher: Teacher | None = None,
        learning_at: Callable[[float], frozenset[str]] = lambda progress: frozenset({"refiner"}),
    ) -> None:
        self.use_perceptual(perceptual, "velocity", loss.velocity)
        self.network, self.config, self.noise = network, loss, noise
        self.autoencoder, self.teacher, self.learning_at = autoencoder, teacher, learning_at
        self.model = Learned(None if autoencoder is None else autoencoder.autoencoder, network.refiner, critic)
        if autoencoder is None:
            self.frozen = [*self.frozen, network.source]
        if teacher is not None:
            teacher.check(network.config)
            self.frozen = [*self.frozen, teacher.network.refiner]
        if loss.random_prior == "fitted" and (autoencoder is not None or network.fitted is None):
            raise ConfigError(
                "loss.random_prior=fitted wants a trained `source` with a fitted prior; train one first, or fit its "
                "prior with spheregen fit-prior"
            )
        for each in self.frozen:
            each.eval().requires_grad_(False)

    def generator(self, model: nn.Module) -> RefinedGenerator:
        learned = cast(Learned, model)
        return RefinedGenerator(learned.autoencoder or self.network.source, learned.refiner)

    def calibrate(self, model: nn.Module, batches: Batches, gather: Gather) -> None:
        if self.autoencoder is not None:
            self.autoencoder.calibrate(cast(Learned, model).autoencoder, batches, gather)

    def draw(
        self, batch: int, generator: torch.Generator, rows: slice | None = None, *, progress: float = 0.0
    ) -> FlowNoise:
        """Return the random numbers of a global batch, or of these rows of it, from a CPU generator.

        Those of the autoencoder come first, and are what they are without a refiner.
        """
        rows = rows or slice(0, batch)
        network, loss = self.network, self.config
        if self.autoencoder is not None:
            source = self.autoencoder.draw(batch, generator, rows)
        else:
            strong_angle, weak_angle = draw_angles(batch, self.noise, network.alpha_max, generator=generator)
            noise = gaussian(batch, network.latent_shape, generator, rows)
            forgotten = torch.rand((CALLS, batch), generator=generator) < loss.label_dropout
            source = TrainingNoise(
                strong=strong_angle[rows], weak=weak_angle[rows], noise=noise, dropped=forgotten[:, rows].T
            )
        times = loss.times(batch, generator)
        strong = {
            "weak": torch.zeros(batch, dtype=torch.bool),
            "strong": torch.ones(batch, dtype=torch.bool),
            "either": torch.rand(batch, generator=generator) < 0.5,
        }[loss.rough]
        dropped = torch.rand(batch, generator=generator) < loss.label_dropout
        noise = gaussian(batch, network.image_shape, generator, rows)
        random = torch.rand(batch, generator=generator) < loss.random_share
        times = times.masked_fill(torch.rand(batch, generator=generator) < loss.start_share, 0)
        return FlowNoise(
            source=source,
            times=times[rows],
            noise=noise,
            strong=strong[rows],
            random=random[rows],
            dropped=dropped[rows],
            learning=self.learning_at(progress),
            progress=progress,
        )

    def loss(self, inputs: Tensor, labels: Labels, noise: FlowNoise) -> LossTerms:
        """Return the loss of images (B, C, S, S) in [-1, 1] with labels (B,), or None for an unconditional model."""
        network, images, on_images = self.network, inputs, noise.each(lambda tensor: tensor.to(inputs.device))
        labels = labels if network.label_width else None
        teacher = None if self.teacher is None else self.teacher.network.condition(labels)
        told = _Told(network.condition(labels), teacher)
        found: LossTerms | None = None
        passes: Passes | None = None
        if self.autoencoder is not None and "autoencoder" in noise.learning:
            passes = self.autoencoder.passes(images, labels, noise.source, tokens=network.refiner.decoder is not None)
            found = self.autoencoder.terms(passes, images, noise.source)
            if "refiner" not in noise.learning:
                return found
        rough, context, latent = torch.zeros_like(images), None, None  # a plain flow needs nobody in front
        if network.config.uses_rough:
            if passes is None:
                rough, context, latent = self._rough(images, told, on_images)
            else:
                rough, context = self._perturbed(passes, told, on_images)
        if passes is not None:
            latent = passes.latent.detach()
        refined = self._refine(images, told, rough, context, latent, on_images)
        if found is None:
            return refined
        return LossTerms(
            total=found.total + refined.total, terms={**found.terms, **refined.terms}, observed=found.observed
        )

    @torch.no_grad()
    def _rough(self, images: Tensor, told: _Told, noise: FlowNoise) -> tuple[Tensor, Context | None, Tensor | None]:
        """Return x_0, its context and the clean latents, by passes of their own; random points have no latents."""
        network, source = self.network, noise.source
        e = source.noise.to(images.dtype)
        start = Start(prior=self.config.random_prior, prior_angle=self.config.random_angle)
        (point, told_angle), latent = start.points(network, e, told.own), None
        if self.config.random_share < 1:
            # labels are dropped as an autoencoder drops them while it learns
            latent = network.encode_raw(images, told.own.dropped(source.dropped[:, 0]))
            angle = torch.where(noise.strong, source.strong, source.weak)
            moved = network.prior.perturb(network.prior.project(latent), e.to(latent.dtype), angle)
            point = _choose(noise.random, point.to(moved.dtype), moved)
        return *self._decoded(point, told_angle, told, noise), latent

    @torch.no_grad()
    def _perturbed(self, passes: Passes, told: _Told, noise: FlowNoise) -> tuple[Tensor, Context]:
        """Return x_0 and its context from the passes of an autoencoder that learns, and random points where drawn."""
        weak, strong = upcast(passes.decoded).clamp(-1, 1).chunk(2)
        point = _choose(noise.strong, passes.strong, passes.weak)
        tokens = None if passes.tokens is None else _choose(noise.strong, *reversed(passes.tokens.chunk(2)))
        rough = _choose(noise.strong, strong, weak)
        if not self.config.random_share:
            return rough, Context(point, tokens)
        # of all samples, drawn or not: every process has to take part in a decode by shards
        random, told_angle = Start().points(self.network, noise.source.noise.to(point.dtype), told.own)
        image, of_random = self._decoded(random, told_angle, told, noise)
        assert of_random is not None
        point = _choose(noise.random, of_random.latent.to(point.dtype), point)
        if tokens is not None and of_random.tokens is not None:
            tokens = _choose(noise.random, of_random.tokens, tokens)
        return _choose(noise.random, image.to(rough.dtype), rough), Context(point, tokens)

    def _decoded(
        self, point: Tensor, random_angle: float, told: _Told, noise: FlowNoise
    ) -> tuple[Tensor, Context | None]:
        """Return the images of points and their context; labels are dropped as an autoencoder drops them.

        Args:
            random_angle: radians, what the generator is told of random points.
        """
        network, source = self.network, noise.source
        dropped = torch.where(noise.strong, source.dropped[:, 2], source.dropped[:, 1])
        angle = torch.where(noise.strong, source.strong, source.weak)
        angle = angle.masked_fill(noise.random, random_angle)
        if self.teacher is not None and told.teacher is not None:
            return self.teacher.rough(point, angle, told.teacher.dropped(dropped))
        prediction, context = network.predict_with_context(point, told.own.dropped(dropped), angle)
        return network.to_image(prediction), context

    def _refine(
        self,
        images: Tensor,
        told: _Told,
        rough: Tensor,
        context: Context | None,
        latent: Tensor | None,
        draws: FlowNoise,
    ) -> LossTerms:
        """Return the refiner's terms."""
        network, rho = self.network, self.network.config.rho
        x = upcast(images)
        noise, times = draws.noise.to(x.dtype), draws.times.to(x.dtype)
        # method.md 3: x_t = (1 - t) x_start + t x, x_start = rho n + (1 - rho) x_0
        start = rho * noise + (1 - rho) * rough.to(x.dtype)
        t = times.view(-1, 1, 1, 1)
        if self.teacher is not None and told.teacher is not None:
            taught, labels = self.teacher, told.teacher.dropped(draws.dropped)
            x = refine_images(
                taught.network, rough.to(x.dtype), labels, taught.refinement, noise=noise, context=context
            )
            x = upcast(x)
        condition = told.own.dropped(draws.dropped)
        end = network.refined(torch.lerp(start, x, t), times, condition, context, rough.to(x.dtype))
        terms: dict[str, Tensor] = {}
        if self.config.velocity:
            # both velocities have the bound on 1 - t, so that the loss is least where the prediction is x at any t
            errors = ((end - x) / (1 - t).clamp_min(LEAST_REMAINDER)).square()
            terms["velocity"] = errors.mean()
        real, made = to_unit(images), to_unit(end)
        of_real: Features = ()
        of_made: Features = ()
        if self.perceptual is not None and self.config.needs_perceptual:
            of_made = self.perceptual.features(made)
            if self.teacher is None or self.config.judges_features:
                with torch.no_grad():
                    of_real = self.perceptual.features(real)
            if self.config.perceptual:
                of_x = of_real
                if self.teacher is not None:
                    with torch.no_grad():
                        of_x = self.perceptual.features(to_unit(x))
                terms["refined_perceptual"] = self.perceptual.distance(of_made, of_x).mean()
        if self.model.critic is not None:
            terms |= self.config.adversarial_terms(self.model.critic, real, made, draws.progress, of_real, of_made)
        observed = {"data": real, "output": made.detach()} | ({} if latent is None else {"latent": latent})
        return weighted_total(terms, self.config.weights(), observed=observed)


@dataclass(frozen=True)
class _Told:
    """The condition of a batch, no label dropped."""

    own: Condition
    teacher: Condition | None


def _choose(first: Tensor, yes: Tensor, no: Tensor) -> Tensor:
    """Return rows (B, ...) of `yes` where (B,) is true, else of `no`."""
    return torch.where(per_sample(first, yes), yes, no)
