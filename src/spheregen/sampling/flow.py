"""The flow that refines the rough images of any few-step loop, from its start at t = 0 to images at t = 1.

The path is straight: x_t = (1 - t) x_start + t x, so a predicted end x_pred means the velocity
(x_pred - x_t) / max(1 - t, 0.05). The last step is the plain prediction, which is where an Euler step to t = 1 ends.
A loop gives its samples with what the refiner is told of them, and `refine_samples` runs the flow behind it: so
generation, reconstruction, every edit and every restoration are refined alike.

Source: Sphere Flow (method.md, section 3); Li and He 2025 (arXiv 2511.13720), prediction of the end and the bound on
1 - t. Legend: B samples, N steps, images (B, C, S, S) in [-1, 1].
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

from spheregen.conditioning import Labels
from spheregen.devices import own_defaults
from spheregen.errors import ConfigError, did_you_mean
from spheregen.protocol import Context, SphereGenerator
from spheregen.sampling.loop import Samples, draw_noise
from spheregen.sampling.schedules import MOST_STEPS
from spheregen.sampling.seeds import derived_seed, gaussians

LEAST_REMAINDER = 0.05
"""Velocities near the end are computed as if so much of the path were left, which keeps them finite."""

End = Callable[[Tensor, float], Tensor]
"""A point of the path (B, ...) at a time in [0, 1) to the predicted end (B, ...)."""
Solver = Callable[[End, Tensor, float, float], Tensor]
"""One step from a point of the path at a time to the next time."""


def velocity(end: Tensor, x: Tensor, t: Tensor | float) -> Tensor:
    """Return the velocity at x (B, ...), at one time or (B, 1, ...) times, of a flow that ends at `end`."""
    left = (1 - t).clamp_min(LEAST_REMAINDER) if isinstance(t, Tensor) else max(1 - t, LEAST_REMAINDER)
    return (end - x) / left


def euler(end: End, x: Tensor, t: float, to: float) -> Tensor:
    """Take a step of one evaluation; first order."""
    return x + (to - t) * velocity(end(x, t), x, t)


def heun(end: End, x: Tensor, t: float, to: float) -> Tensor:
    """Take a step of two evaluations, at both ends of the step; second order."""
    first = velocity(end(x, t), x, t)
    there = x + (to - t) * first
    return x + (to - t) / 2 * (first + velocity(end(there, to), there, to))


def midpoint(end: End, x: Tensor, t: float, to: float) -> Tensor:
    """Take a step of two evaluations, at the beginning and in the middle of the step; second order."""
    middle = (t + to) / 2
    half = x + (middle - t) * velocity(end(x, t), x, t)
    return x + (to - t) * velocity(end(half, middle), half, middle)


SOLVERS: Mapping[str, Solver] = MappingProxyType({"euler": euler, "heun": heun, "midpoint": midpoint})


def evaluations(steps: int, solver: str) -> int:
    """Count evaluations of the network in `steps` steps, of which the last one takes one."""
    return (steps - 1) * (1 if solver == "euler" else 2) + 1 if steps else 0


def check_flow(steps: int, solver: str) -> None:
    """Raise a ConfigError for a number of steps or a solver that there is not."""
    if not 0 <= steps <= MOST_STEPS:
        raise ConfigError(
            f"refinement_steps is not negative, 0 leaves images rough, and at most {MOST_STEPS}: not {steps}"
        )
    if solver not in SOLVERS:
        raise ConfigError(f"unknown solver {solver!r}{did_you_mean(solver, SOLVERS)}; use {', '.join(SOLVERS)}")


@torch.no_grad()
def integrate(end: End, start: Tensor, steps: int, solver: str = "heun") -> Tensor:
    """Return the end of the flow from `start` (B, ...) in N even steps; 0 steps give the start.

    Raises:
        ConfigError: another solver, or an impossible number of steps.
    """
    check_flow(steps, solver)
    step, x = SOLVERS[solver], start
    for number in range(steps - 1):
        x = step(end, x, number / steps, (number + 1) / steps)
    return end(x, (steps - 1) / steps) if steps else x


@dataclass(frozen=True)
class Refinement:
    """The settings of a flow.

    Raises:
        ConfigError: impossible numbers.
    """

    steps: int = 4
    """N steps of the flow; 0 leaves images rough."""
    solver: str = "heun"
    """`euler`, `heun` or `midpoint`; the last step is the plain prediction under each."""
    guidance: float = 1.0
    """Classifier-free guidance of the predicted images; 1 for none."""

    def __post_init__(self) -> None:
        check_flow(self.steps, self.solver)
        if not 0 <= self.guidance < math.inf:
            raise ConfigError(f"refinement_guidance is not negative, and finite: {self.guidance:g}")


@own_defaults()
@torch.no_grad()
def refine_images(
    network: SphereGenerator,
    images: Tensor,
    labels: Labels = None,
    refinement: Refinement | None = None,
    *,
    noise: Tensor | None = None,
    context: Context | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Refine rough images (B, C, S, S) in [-1, 1] of any origin.

    Args:
        network: a generator with a refiner.
        labels: class ids, mixtures or a condition; None is the null class.
        noise: Gaussian (B, C, S, S) of the start rho * noise + (1 - rho) * image; drawn where None.
        context: what the images were decoded from; None encodes and decodes them to find what the refiner is told.
        generator: source of the drawn noise, on the device of the images or the CPU.

    Raises:
        ConfigError: a model without a refiner, guidance without labels, or noise of another shape.
    """
    how = refinement or Refinement()
    if not how.steps:
        return images
    if network.refiner is None:
        raise ConfigError("this model has no refiner; take a model of kind sphere-flow")
    rho, condition = network.config.rho, network.condition(labels)
    if noise is None:
        noise = draw_noise(images, generator)
    elif noise.shape != images.shape:
        raise ConfigError(f"noise has shape {tuple(noise.shape)} for images of shape {tuple(images.shape)}")
    if context is None and network.config.context_tokens:
        _, context = network.predict_with_context(network.encode(images, condition), condition)
    guided = how.guidance != 1 and network.config.label_width > 0
    rough = images
    if guided:
        if condition.index is None:
            raise ConfigError("guidance steers towards a class: give labels, or refinement_guidance 1")
        condition, rough = condition.with_null(), torch.cat([images, images])
        context = None if context is None else context.twice()

    def end(x: Tensor, t: float) -> Tensor:
        x = torch.cat([x, x]) if guided else x
        times = torch.full((len(x),), t, device=x.device, dtype=x.dtype)
        found = network.refined(x, times, condition, context, rough)
        if not guided:
            return found
        conditional, unconditional = found.chunk(2)
        return unconditional + how.guidance * (conditional - unconditional)

    start = rho * noise + (1 - rho) * images  # method.md 3
    return integrate(end, start, how.steps, how.solver).clamp(-1, 1)


def refine_samples(
    network: SphereGenerator, samples: Samples, labels: Labels, refinement: Refinement, noise: Tensor
) -> Samples:
    """Return the samples of a loop with the refined images behind them, as one more of its steps.

    Where the loop holds on to known pixels, refined images do too.

    Args:
        network: the generator with a refiner that the loop ran on.
        labels, noise: as in `refine_images`.
    """
    if not refinement.steps:
        return samples
    images = refine_images(network, samples.images, labels, refinement, noise=noise, context=samples.context)
    return dataclasses.replace(samples, images=samples.agree(images), rough=samples.images)


def refinement_noise(seeds: Sequence[int], shape: tuple[int, int, int]) -> Tensor:
    """Return the noise (B, C, S, S) from which the flows of these seeds start, on the CPU.

    It is a stream of its own, so that it depends neither on the steps of the loop nor on its noise.
    """
    # a hash of the whole seed; of it torch's generator takes 32 bits, and the noise of the loop differs besides
    own = (derived_seed(seed, "refinement") % 2**32 for seed in seeds)
    return torch.stack([noise for seed in own for noise in gaussians(seed, shape)])
