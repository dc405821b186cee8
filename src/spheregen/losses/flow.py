"""The training objective of a flow refiner: the velocity on straight paths from rough images to fine ones.

Source: Sphere Flow; Li and He 2025 (arXiv 2511.13720), prediction of the end under a velocity loss. Legend: B samples,
x images, x_0 the decode of their perturbed latents (no gradient), n Gaussian noise, t times.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from spheregen.conditioning import drop_labels
from spheregen.errors import ConfigError, check_choices
from spheregen.losses.adversarial import CRITIC, AdversarialConfig
from spheregen.losses.autoencoder import AutoencoderDraws, AutoencoderObjective, Passes
from spheregen.losses.perceptual import Features, PerceptualLoss
from spheregen.losses.reconstruction import to_unit
from spheregen.losses.teacher import Teacher
from spheregen.losses.terms import LossTerms, weighted_total
from spheregen.models.flow_refiner import RefinedGenerator, RoughContext
from spheregen.nn.critic import PatchCritic
from spheregen.noise import NoiseConfig, directions, draw_radii
from spheregen.sampling.flow import LEAST_REMAINDER
from spheregen.sphere import sigma_to_angle, upcast


@dataclass(frozen=True, kw_only=True)
class FlowLossConfig(AdversarialConfig):
    """What a refiner learns from.

    Raises:
        ConfigError: a value outside of its range.
    """

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012  read by pydantic when a recipe holds this class

    velocity: float = 1.0
    """Weight of the mean squared velocity error."""
    perceptual: float = 0.0
    """Weight of the perceptual distance of the predicted image to x; 0 as published."""
    rough: Literal["weak", "strong", "either"] = "strong"
    """Which of the two perturbed latents x_0 is decoded from; `either` of them by a coin for each sample."""
    random_share: float = 0.0
    """Share of samples whose x_0 is decoded from a random point instead, which has nothing to do with x, as in
    sampling; 0 as published."""
    time_law: Literal["uniform", "logit_normal"] = "logit_normal"
    """How times are drawn from (0, 1)."""
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
        for name in ("velocity", "perceptual"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ConfigError(f"loss.{name} is a weight, a finite number and not negative: {getattr(self, name):g}")
        if self.velocity == self.perceptual == 0:
            raise ConfigError("loss.velocity and loss.perceptual are both 0: nothing would be learned")
        if not abs(self.time_mean) < float("inf") or not 0 <= self.time_deviation < float("inf"):
            raise ConfigError("loss.time_mean is finite and loss.time_deviation not negative, and finite")
        for name in ("label_dropout", "random_share", "start_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"loss.{name} is a probability, not {getattr(self, name):g}")

    @property
    def needs_perceptual(self) -> bool:
        """A term needs the perceptual network."""
        return self.perceptual > 0 or self.judges_features

    def times(self, count: int, generator: torch.Generator) -> Tensor:
        """Times (count,) in [0, 1] of a global batch, before some become 0."""
        if self.time_law == "uniform":
            return torch.rand(count, generator=generator)
        return torch.sigmoid(self.time_mean + self.time_deviation * torch.randn(count, generator=generator))


@dataclass(frozen=True)
class FlowDraws:
    """The random numbers of a global batch, or of one process's rows of it; slice it for micro-batches."""

    source: AutoencoderDraws
    """Of the latents' noise and of the autoencoder's labels."""
    times: Tensor
    """(B,) in [0, 1]."""
    noise: Tensor
    """n, (B, C, S, S) standard Gaussian."""
    strong: Tensor
    """(B,) bool: whether x_0 is decoded from the strong point, else from the weak one."""
    random: Tensor
    """(B,) bool: whether it is decoded from a random point instead."""
    dropped: Tensor
    """(B,) bool: labels that the refiner does not see."""
    learning: frozenset[str] = frozenset()
    """The parts that learn in this step: `autoencoder`, `refiner`."""
    progress: float = 0.0
    """The share of the run that is done, which switches the adversarial terms on."""

    def __getitem__(self, part: slice) -> FlowDraws:
        return FlowDraws(
            source=self.source[part],
            times=self.times[part],
            noise=self.noise[part],
            strong=self.strong[part],
            random=self.random[part],
            dropped=self.dropped[part],
            learning=self.learning,
            progress=self.progress,
        )

    def each(self, change: Callable[[Tensor], Tensor]) -> FlowDraws:
        """The same with every tensor changed, as by `lambda t: t.to(device)`."""
        return FlowDraws(
            source=self.source.each(change),
            times=change(self.times),
            noise=change(self.noise),
            strong=change(self.strong),
            random=change(self.random),
            dropped=change(self.dropped),
            learning=self.learning,
            progress=self.progress,
        )


class FlowObjective:
    """The loss of a batch of images for a refiner, and for the autoencoder in front of it where that learns too.

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

    Raises:
        ConfigError: without a perceptual network nothing is left to learn from, or nothing for the critic to judge.
    """

    def __init__(
        self,
        network: RefinedGenerator,
        loss: FlowLossConfig,
        noise: NoiseConfig,
        perceptual: PerceptualLoss | None = None,
        autoencoder: AutoencoderObjective | None = None,
        critic: PatchCritic | None = None,
        teacher: Teacher | None = None,
    ) -> None:
        if perceptual is None and not loss.velocity:
            raise ConfigError(
                "without a perceptual network a refiner learns from velocities: give loss.velocity a weight"
            )
        self.network, self.loss, self.noise, self.perceptual = network, loss, noise, perceptual
        self.autoencoder, self.teacher = autoencoder, teacher
        if teacher is not None:
            teacher.check(network.config)
        self._adversarial = loss.adversarial_terms(critic, perceptual=perceptual is not None)

    def draw(
        self,
        batch: int,
        generator: torch.Generator,
        rows: slice | None = None,
        *,
        learning: frozenset[str] = frozenset({"refiner"}),
        progress: float = 0.0,
    ) -> FlowDraws:
        """The random numbers of a global batch, or of these rows of it, from a CPU generator.

        Those of the autoencoder come first, and are what they are without a refiner.
        """
        rows = rows or slice(0, batch)
        network, loss = self.network, self.loss
        if self.autoencoder is not None:
            source = self.autoencoder.draw(batch, generator, rows)
        else:
            radii = draw_radii(batch, self.noise, sigma_to_angle(network.sigma_max), generator=generator)
            direction = directions(batch, network.latent_shape, generator, rows)
            forgotten = torch.rand((4, batch), generator=generator) < loss.label_dropout
            source = AutoencoderDraws(radii=radii[rows], direction=direction, dropped=forgotten[:, rows])
        times = loss.times(batch, generator)
        strong = {
            "weak": torch.zeros(batch, dtype=torch.bool),
            "strong": torch.ones(batch, dtype=torch.bool),
            "either": torch.rand(batch, generator=generator) < 0.5,
        }[loss.rough]
        dropped = torch.rand(batch, generator=generator) < loss.label_dropout
        noise = directions(batch, network.image_shape, generator, rows)
        random = torch.rand(batch, generator=generator) < loss.random_share
        times = times.masked_fill(torch.rand(batch, generator=generator) < loss.start_share, 0)
        return FlowDraws(source, times[rows], noise, strong[rows], random[rows], dropped[rows], learning, progress)

    def __call__(self, images: Tensor, labels: Tensor | None, draws: FlowDraws) -> LossTerms:
        """The loss of images (B, C, S, S) in [-1, 1] with labels (B,), or None for an unconditional model."""
        network = self.network
        labels = labels if network.num_classes else None
        found: LossTerms | None = None
        passes: Passes | None = None
        if self.autoencoder is not None and "autoencoder" in draws.learning:
            passes = self.autoencoder.passes(images, labels, draws.source, tokens=network.refiner.decoder is not None)
            found = self.autoencoder.terms(passes, images, labels, draws.source)
            if "refiner" not in draws.learning:
                return found
        rough, context, latent = torch.zeros_like(images), None, None  # a plain flow needs nobody in front
        if network.config.uses_rough:
            if passes is None:
                rough, context, latent = self._rough(images, labels, draws)
            else:
                rough, context = self._perturbed(passes, labels, draws)
        if passes is not None:
            latent = passes.latent.detach()
        refined = self._refine(images, labels, rough, context, latent, draws)
        if found is None:
            return refined
        return LossTerms(
            total=found.total + refined.total, terms={**found.terms, **refined.terms}, observed=found.observed
        )

    @torch.no_grad()
    def _rough(
        self, images: Tensor, labels: Tensor | None, draws: FlowDraws
    ) -> tuple[Tensor, RoughContext, Tensor | None]:
        """x_0, its context and the clean latents, by passes of their own; random points alone have no latents."""
        network, source = self.network, self.network.source
        direction = draws.source.direction.to(images.device, images.dtype)
        point, latent = network.prior.project(direction), None
        if self.loss.random_share < 1:
            encoding = draws.source.dropped[0].to(images.device)  # as an autoencoder drops them while it learns
            given = labels if source.num_classes else None
            latent = source.encode_raw(images, drop_labels(given, encoding, network.num_classes))
            radius = torch.where(draws.strong, draws.source.radii.strong, draws.source.radii.weak).to(images.device)
            tilted = network.prior.tilt(
                network.prior.project(latent), direction.to(latent.dtype), radius * network.sigma_max
            )
            point = _choose(draws.random.to(images.device), point.to(tilted.dtype), tilted)
        return *self._decoded(point, labels, draws), latent

    @torch.no_grad()
    def _perturbed(self, passes: Passes, labels: Tensor | None, draws: FlowDraws) -> tuple[Tensor, RoughContext]:
        """x_0 and its context from the passes of an autoencoder that learns, and from random points where drawn."""
        weak, strong = upcast(passes.decoded).detach().clamp(-1, 1).chunk(2)
        chosen = draws.strong.to(weak.device)
        point = _choose(chosen, passes.points.strong, passes.points.weak)
        tokens = None if passes.tokens is None else _choose(chosen, *reversed(passes.tokens.chunk(2)))
        rough = _choose(chosen, strong, weak)
        if not self.loss.random_share:
            return rough, RoughContext(point, tokens).detach()
        # of all samples, drawn or not: every process has to take part in a decode by shards
        direction = draws.source.direction.to(point.device, point.dtype)
        image, of_random = self._decoded(self.network.prior.project(direction), labels, draws)
        drawn = draws.random.to(point.device)
        point = _choose(drawn, of_random.latent.to(point.dtype), point)
        if tokens is not None and of_random.tokens is not None:
            tokens = _choose(drawn, of_random.tokens, tokens)
        return _choose(drawn, image.to(rough.dtype), rough), RoughContext(point, tokens).detach()

    def _decoded(self, point: Tensor, labels: Tensor | None, draws: FlowDraws) -> tuple[Tensor, RoughContext]:
        """The images of points and their context; labels are dropped as an autoencoder drops them while it learns."""
        network = self.network
        _, weak, strong, _ = draws.source.dropped
        dropped = torch.where(draws.strong, strong, weak).to(point.device)
        given = drop_labels(labels if network.source.num_classes else None, dropped, network.num_classes)
        if self.teacher is not None:
            return self.teacher.rough(point, given)
        prediction, context = network.predict_with_context(point, given)
        return network.to_image(prediction), context

    def _refine(
        self,
        images: Tensor,
        labels: Tensor | None,
        rough: Tensor,
        context: RoughContext | None,
        latent: Tensor | None,
        draws: FlowDraws,
    ) -> LossTerms:
        """The refiner's terms."""
        network, rho = self.network, self.network.config.rho
        x = upcast(images)
        noise = draws.noise.to(x.device, x.dtype)
        start = rho * noise + (1 - rho) * rough.to(x.dtype)
        times = draws.times.to(x.device, x.dtype)
        t = times.view(-1, 1, 1, 1)
        given = drop_labels(labels, draws.dropped.to(x.device), network.num_classes)
        if self.teacher is not None:
            x = upcast(self.teacher.ends(rough.to(x.dtype), given, noise, context))
        end = network.refined(torch.lerp(start, x, t), times, given, context, rough.to(x.dtype))
        terms: dict[str, Tensor] = {}
        if self.loss.velocity:
            # both velocities have the bound on 1 - t, so that the loss is least where the prediction is x at any t
            errors = ((end - x) / (1 - t).clamp_min(LEAST_REMAINDER)).square()
            terms["velocity"] = errors.mean()
        real, made = to_unit(images), to_unit(end)
        of_real: Features = ()
        of_made: Features = ()
        if self.perceptual is not None and self.loss.needs_perceptual:
            of_made = self.perceptual.features(made)
            if self.teacher is None or self.loss.judges_features:
                with torch.no_grad():
                    of_real = self.perceptual.features(real)
            if self.loss.perceptual:
                of_x = of_real
                if self.teacher is not None:
                    with torch.no_grad():
                        of_x = self.perceptual.features(to_unit(x))
                terms["refined_perceptual"] = self.perceptual.distance(of_made, of_x).mean()
        if self._adversarial is not None:
            terms |= self._adversarial(real, made, draws.progress, of_real, of_made)
        weights = {
            "velocity": self.loss.velocity,
            "refined_perceptual": self.loss.perceptual,
            "adversarial": self.loss.adversarial,
            CRITIC: 1.0,
        }
        observed = {"data": real, "output": made.detach()} | ({} if latent is None else {"latent": latent})
        return weighted_total(terms, weights, observed=observed)


def _choose(first: Tensor, yes: Tensor, no: Tensor) -> Tensor:
    """Rows (B, ...) of `yes` where (B,) is true, else of `no`."""
    return torch.where(first.view(-1, *(1 for _ in range(yes.ndim - 1))), yes, no)
