"""The noise of training: a strong and a weak angle for each sample, along one noise, with stratified magnitudes.

Draws are for the whole global batch at once, on the CPU, so that neither the device nor the split into processes and
micro-batches changes them. Angles are in radians.

Sources: Yue et al. 2026 (arXiv 2602.15030), the training noise (method.md, section 1.2); Do et al. 2026 (arXiv
2605.15592), its laws for a latent denoiser (method.md, section 2).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Self

import torch
from torch import Tensor

from spheregen.devices import own_defaults
from spheregen.errors import ConfigError, Settings, check_choices
from spheregen.sphere import scale_noise

STRATUM_FLOOR = 1e-3  # the smallest place of a draw inside its stratum, as published
HARD_ANGLE_MARGIN = 5.0  # hard cases reach this many degrees beyond alpha_max,
HARD_ANGLE_LIMIT = 89.0  # but never beyond this angle


@dataclass(frozen=True, kw_only=True)
class NoiseConfig(Settings):
    """The laws of the training noise.

    Raises:
        ConfigError: a value outside its range.
    """

    law: Literal["stratified", "logit_normal", "uniform"] = "stratified"
    """The draws of the two noises of a sample: "stratified" as in the Sphere Encoder, the weak one a fraction of the
    strong one; else two independent draws in (0, 1), logit-normal (Sphere Latent Encoder) or uniform, of which the
    larger is the strong one."""
    logit_mean: float = 0.0
    """Of the logit-normal draws: sigmoid(N(mean, deviation^2)). Not published."""
    logit_deviation: float = 1.0
    """See `logit_mean`."""
    radius_law: Literal["magnitude", "angle"] = "magnitude"
    """The unit of the draws in [0, 1]: the magnitude tan(alpha_max) (published), or the angle alpha_max."""
    weak_fraction: float = 0.5
    """Of "stratified": the weak noise is s of the strong one in magnitude, s ~ U[0, weak_fraction]."""
    hard_probability: float = 0.1
    """The share of samples whose strong noise goes beyond alpha_max."""
    hard_angle: float | None = None
    """The largest angle of hard cases in degrees; None: min(alpha_max + 5, 89), as published for the Sphere Encoder."""
    hard_law: Literal["uniform", "published"] = "uniform"
    """Hard magnitudes are uniform up to tan(hard_angle); "published" repeats the released code, where one draw decides
    both whether and how hard, so only the lowest tenth of that range occurs."""

    def __post_init__(self) -> None:
        check_choices(self, "noise.")
        for name in ("weak_fraction", "hard_probability"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"noise.{name} lies in [0, 1], not {getattr(self, name):g}")
        if not math.isfinite(self.logit_mean):
            raise ConfigError(f"noise.logit_mean is a finite number, not {self.logit_mean:g}")
        if not 0 <= self.logit_deviation < math.inf:
            raise ConfigError(f"noise.logit_deviation is not negative, and finite: {self.logit_deviation:g}")
        if self.hard_angle is not None and not 0 < self.hard_angle < 90:
            raise ConfigError(f"noise.hard_angle lies between 0 and 90 degrees, not {self.hard_angle:g}")


@dataclass(frozen=True, kw_only=True)
class BatchNoise:
    """Random numbers of a global batch, or of one process's rows of it; slice it for micro-batches.

    Tensors have the batch as their first axis; fields of the metadata `{"shared": True}` are the same for all samples.
    """

    def each(self, change: Callable[[Tensor], Tensor], *, shared: bool = True) -> Self:
        """Return the same with every tensor changed, as by `lambda t: t.to(device)`; `shared` ones too."""

        def changed(value: Any) -> Any:
            if isinstance(value, BatchNoise):
                return value.each(change, shared=shared)
            return change(value) if isinstance(value, Tensor) else value

        chosen = [field.name for field in dataclasses.fields(self) if shared or not field.metadata.get("shared")]
        return dataclasses.replace(self, **{name: changed(getattr(self, name)) for name in chosen})

    def __getitem__(self, part: slice) -> Self:
        """Return those of these rows."""
        return self.each(lambda tensor: tensor[part], shared=False)


@dataclass(frozen=True, kw_only=True)
class TrainingNoise(BatchNoise):
    """The noise on the latents of a batch, and the labels that are dropped."""

    strong: Tensor
    """(B,) radians; beyond alpha_max for hard cases. Its points are v_NOISY of the paper."""
    weak: Tensor
    """(B,) radians, at most `strong`. Its points are v_noisy of the paper."""
    noise: Tensor
    """e, (B, N, d) standard Gaussian, the same for both."""
    dropped: Tensor
    """(B, calls) bool: whether the network that is called sees no label, for each call of a step."""
    projections: Tensor | None = dataclasses.field(default=None, metadata={"shared": True})
    """(K, N*d) unit vectors of a sliced Wasserstein distance; None without it."""
    progress: float = 0.0
    """The share of the run that is done, which switches the adversarial term on."""


@own_defaults()
def draw_training_noise(
    batch: int,
    laws: NoiseConfig,
    alpha_max: float,
    shape: tuple[int, ...],
    generator: torch.Generator,
    rows: slice | None = None,
    *,
    calls: int,
    dropout: float,
) -> TrainingNoise:
    """Return the noise of a global batch, or of these rows of it.

    Args:
        batch: samples of the global batch, over which angles are stratified.
        laws: of the angles.
        alpha_max: degrees, 0 to 90.
        shape: of a latent, (N, d).
        generator: on the CPU.
        rows: those of this process; None: all.
        calls: of a network in a step, each of which drops labels for itself, with the probability `dropout`.
    """
    rows = rows or slice(0, batch)
    strong, weak = draw_angles(batch, laws, alpha_max, generator=generator)
    dropped = torch.rand((calls, batch), generator=generator) < dropout
    noise = gaussian(batch, shape, generator, rows)
    return TrainingNoise(strong=strong[rows], weak=weak[rows], noise=noise, dropped=dropped[:, rows].T)


@own_defaults()
def stratified(count: int, *, generator: torch.Generator | None = None) -> Tensor:
    """Return `count` stratified draws from [0, 1], shuffled, (count,) float32.

    count - 2 draws (i + u_i)/(count - 2) with u_i in [1e-3, 1), one exactly 1 and one exactly 0. A count of 2 gives
    {0, 1} and a count of 1 one uniform draw.
    """
    if count < 1:
        raise ValueError(f"a batch holds at least one sample, not {count}")
    if count == 1:
        return torch.rand(1, generator=generator)
    inner = count - 2
    # r of method.md 1.2
    u = STRATUM_FLOOR + (1 - STRATUM_FLOOR) * torch.rand(inner, generator=generator)
    strata = (torch.arange(inner) + u) / max(inner, 1)
    values = torch.cat([strata, torch.tensor([1.0, 0.0])])
    return values[torch.randperm(count, generator=generator)]


@own_defaults()
def draw_angles(
    count: int, config: NoiseConfig, alpha_max: float, *, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Return the strong and the weak angles of a global batch, each (count,) float32 radians.

    Args:
        count: samples.
        config: the laws.
        alpha_max: degrees, 0 to 90.
        generator: on the CPU.
    """
    largest = math.radians(alpha_max)
    if config.law == "stratified":
        r = stratified(count, generator=generator)
        s = config.weak_fraction * stratified(count, generator=generator)
        strong = _angles(r, config, largest)
        weak = scale_noise(strong, s)
    else:
        if config.law == "uniform":
            draws = torch.rand((2, count), generator=generator)
        else:
            normal = torch.randn((2, count), generator=generator)
            draws = torch.sigmoid(config.logit_mean + config.logit_deviation * normal)
        pair = _angles(draws, config, largest)
        strong, weak = pair.amax(0), pair.amin(0)
    chance = torch.rand(count, generator=generator)
    # the released code decides "whether" and "how hard" by one draw, see NoiseConfig.hard_law
    extra = chance if config.hard_law == "published" else torch.rand(count, generator=generator)
    # hard cases: r ~ U[1, tan(hard_angle) / tan(alpha_max)], method.md 1.2
    hard = scale_noise(largest, 1 + extra * (hard_limit(alpha_max, config.hard_angle) - 1))
    # float32: Apple's GPUs have no wider type, and an angle is rounded by no more than a point is
    return torch.where(chance < config.hard_probability, hard, strong).float(), weak.float()


def _angles(fractions: Tensor, config: NoiseConfig, largest: float) -> Tensor:
    """Return draws in [0, 1] as angles up to `largest`, in float64."""
    if config.radius_law == "angle":
        return fractions.double() * largest
    return scale_noise(largest, fractions)


def hard_limit(alpha_max: float, hard_angle: float | None = None) -> float:
    """Return the largest magnitude of a hard case, tan(hard_angle) / tan(alpha_max), at least 1; angles in degrees."""
    if hard_angle is None:
        hard_angle = min(alpha_max + HARD_ANGLE_MARGIN, HARD_ANGLE_LIMIT)
    return max(1.0, math.tan(math.radians(hard_angle)) / math.tan(math.radians(alpha_max)))


@own_defaults()
def gaussian(batch: int, shape: tuple[int, ...], generator: torch.Generator, rows: slice | None = None) -> Tensor:
    """Return the Gaussian noise (len(rows), *shape) of these rows of a global batch, on the CPU.

    Each has a seed of its own, so that a process draws only what it needs, and they are the same whatever the number
    of processes.
    """
    seeds = torch.randint(2**62, (batch,), generator=generator)[rows or slice(0, batch)].tolist()
    drawn = torch.empty(len(seeds), *shape)
    own = torch.Generator()
    for row, seed in zip(drawn, seeds, strict=True):
        row.normal_(generator=own.manual_seed(seed))
    return drawn
