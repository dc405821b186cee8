"""The parts of a generator as graphs of tensors alone: its networks, the sphere's operations inside, and the sphere.

What runs them needs loops and sums, and nothing of the geometry: every law of the noise, every way between points and
the fitted prior are graphs too, of a few kilobytes. Angles are radians.

| graph | inputs | outputs |
|---|---|---|
| decoder | latents, noise, turn, told, condition | prediction, and for a refiner point and tokens |
| encoder | images, condition | latents, raw |
| pixels | prediction | images; of a model that predicts latents |
| refiner | x, times, condition, point, tokens, rough | refined |
| place | latents, noise, turn | placed |
| between | a, b, t | placed |
| vary | points, towards, angle | placed |
| away | points, reference, angle | placed; of a model that is guided by rotation |
| draw | noise, weights, temperature | latents, raw; of a fitted prior |
| undraw | latents, weights | noise; of a fitted prior |

Legend: B samples, of any number; latents, points and noise (B, N, d); images (B, C, S, S) in [-1, 1]; predictions are
one or the other; condition and weights (B, K + 1), shares of the classes, the null class last, or (B, D + 1), a text's
vector and the share of the null; an unconditional model does without them; turn, told, times, t and angle (B,).
`decoder` puts raw latents, or Gaussian noise, into the latent space, moves them by noise and the angle `turn`, and is
told the angle `told`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from spheregen.conditioning import Condition
from spheregen.errors import ConfigError
from spheregen.fitted import FLAT, FittedPrior, FittedTextPrior
from spheregen.prior import Prior
from spheregen.protocol import Context, SphereGenerator
from spheregen.sampling.loop import turn_away
from spheregen.sphere import rotate

EXAMPLES = 2
"""B of the examples that graphs are traced with."""


@dataclass(frozen=True)
class Graph:
    """A module of tensors alone."""

    module: nn.Module
    inputs: Mapping[str, Tensor]
    """Examples by the names of the arguments, of `EXAMPLES` samples; one of shape (1,) is for all samples."""
    outputs: tuple[str, ...]


def graphs_of(model: SphereGenerator) -> dict[str, Graph]:
    """Return the graphs of a generator, by name: the ones that it has.

    Args:
        model: on the CPU in float32, in evaluation mode.
    """
    drawn = torch.Generator().manual_seed(0)

    def gaussian(*shape: int) -> Tensor:
        return torch.randn((EXAMPLES, *shape), generator=drawn)

    latents, noise, other = (gaussian(*model.latent_shape) for _ in range(3))
    images = gaussian(*model.image_shape).clamp(-1, 1)
    turn, told = torch.tensor([0.4, 0.7]), torch.tensor([0.5, 0.6])
    condition = {}
    if model.label_width:
        condition = {"condition": torch.eye(model.label_width + 1)[[0, -1]]}
    with torch.no_grad():
        prediction, context = model.predict_with_context(latents, None, told)
    seen: dict[str, Tensor] = {}  # what a refiner is told of a prediction
    if model.refiner is not None and context is not None:
        seen = {"point": context.latent, **({} if context.tokens is None else {"tokens": context.tokens})}
    outputs = ("prediction", *seen)
    step = {"latents": latents, "noise": noise, "turn": turn}
    found = {"decoder": Graph(_Decoder(model, len(outputs)), {**step, "told": told, **condition}, outputs)}
    try:
        with torch.no_grad():
            model.encode_raw(images)
        found["encoder"] = Graph(_Encoder(model), {"images": images, **condition}, ("latents",))
    except ConfigError:  # a model folder without its encoder
        pass
    if not model.predicts_images:
        found["pixels"] = Graph(_Pixels(model), {"prediction": prediction}, ("images",))
    if model.refiner is not None:
        inputs = {"x": images, "times": turn, **condition, **seen, "rough": images.flip(0)}
        found["refiner"] = Graph(_Refiner(model), inputs, ("refined",))
    found["place"] = Graph(_Place(model.prior), step, ("placed",))
    found["between"] = Graph(_Between(model.prior), {"a": latents, "b": other, "t": turn}, ("placed",))
    found["vary"] = Graph(_Vary(), {"points": latents, "towards": noise, "angle": turn}, ("placed",))
    if model.guidance_law == "rotation":
        inputs = {"points": latents, "reference": other, "angle": turn}
        found["away"] = Graph(_Away(model.prior), inputs, ("placed",))
    if model.fitted is not None:
        weights = torch.eye(model.label_width + 1)[[0, -1]]
        inputs = {"noise": noise, "weights": weights, "temperature": torch.tensor([0.8])}
        found["draw"] = Graph(_Draw(model.fitted), inputs, ("latents",))
        found["undraw"] = Graph(_Undraw(model.fitted), {"latents": latents, "weights": weights}, ("noise",))
    return found


class _OfModel(nn.Module):
    def __init__(self, model: SphereGenerator) -> None:
        super().__init__()
        self.model = model

    def _condition(self, weights: Tensor | None) -> Condition:
        return self.model.condition(weights)


class _Decoder(_OfModel):
    def __init__(self, model: SphereGenerator, outputs: int) -> None:
        super().__init__(model)
        self.outputs = outputs

    def forward(
        self, latents: Tensor, noise: Tensor, turn: Tensor, told: Tensor, condition: Tensor | None = None
    ) -> Tensor | tuple[Tensor, ...]:
        model = self.model
        points = model.prior.perturb(model.prior.project(latents), noise, turn)
        under = self._condition(condition)
        if self.outputs == 1:
            return model.predict(points, under, told)
        prediction, context = model.predict_with_context(points, under, told)
        assert context is not None
        return tuple(each for each in (prediction, context.latent, context.tokens) if each is not None)[: self.outputs]


class _Encoder(_OfModel):
    def forward(self, images: Tensor, condition: Tensor | None = None) -> Tensor:
        return self.model.encode_raw(images, self._condition(condition))


class _Pixels(_OfModel):
    def forward(self, prediction: Tensor) -> Tensor:
        return self.model.to_image(prediction)


class _Refiner(_OfModel):
    def forward(
        self,
        x: Tensor,
        times: Tensor,
        condition: Tensor | None = None,
        point: Tensor | None = None,
        tokens: Tensor | None = None,
        rough: Tensor | None = None,
    ) -> Tensor:
        context = None if point is None else Context(point, tokens)
        return self.model.refined(x, times, self._condition(condition), context, rough)


class _OfSpace(nn.Module):
    def __init__(self, prior: Prior) -> None:
        super().__init__()
        self.prior = prior


class _Place(_OfSpace):
    def forward(self, latents: Tensor, noise: Tensor, turn: Tensor) -> Tensor:
        return self.prior.perturb(self.prior.project(latents), noise, turn)


class _Between(_OfSpace):
    def forward(self, a: Tensor, b: Tensor, t: Tensor) -> Tensor:
        return self.prior.slerp(a, b, t)


class _Vary(nn.Module):
    def forward(self, points: Tensor, towards: Tensor, angle: Tensor) -> Tensor:
        return rotate(points, towards, torch.rad2deg(angle))


class _Away(_OfSpace):
    def forward(self, points: Tensor, reference: Tensor, angle: Tensor) -> Tensor:
        return turn_away(self.prior, points, reference, angle)


class _Draw(nn.Module):
    def __init__(self, fitted: FittedPrior) -> None:
        super().__init__()
        self.fitted = fitted

    def forward(self, noise: Tensor, weights: Tensor, temperature: Tensor) -> Tensor:
        return self.fitted.draw(noise, _told(self.fitted, weights), temperature)


class _Undraw(nn.Module):
    """`FittedPrior.noise_of` for weights that are each of one class or text, with its inverses at hand."""

    def __init__(self, fitted: FittedPrior) -> None:
        super().__init__()
        self.fitted, self.shared = fitted, len(fitted.factors) == 2 != len(fitted.means)
        self.inverse = torch.linalg.pinv(fitted.factors.double(), rtol=FLAT).float()

    def forward(self, latents: Tensor, weights: Tensor) -> Tensor:
        fitted, v, weights = self.fitted, latents.flatten(1), _told(self.fitted, weights)
        null = weights[:, -1:]
        of_factors = torch.cat([1 - null, null], dim=1) if self.shared else weights
        inside = (v - fitted.centre) @ fitted.basis
        beside = (v - fitted.centre) - inside @ fitted.basis.T
        moved = torch.einsum("bc,cij,bj->bi", of_factors, self.inverse, inside - weights @ fitted.means)
        noise = moved @ fitted.basis.T + beside / (weights @ fitted.residual)[:, None].clamp_min(FLAT)
        return noise.reshape(latents.shape)


def _told(fitted: FittedPrior, weights: Tensor) -> Tensor:
    """Return the weights of a fitted prior for shares of classes, which they are, or for a text."""
    return fitted.embed_labels(weights)[:-1] if isinstance(fitted, FittedTextPrior) else weights
