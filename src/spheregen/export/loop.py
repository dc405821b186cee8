"""The loop of the runner, under its condition and guidance, and the flow behind it: `sampling` in numpy."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from spheregen.errors import ConfigError
from spheregen.export.noise import Array
from spheregen.export.sessions import Sessions
from spheregen.export.sums import filled, mixed

LEAST_REMAINDER = 0.05  # of a flow's path, as in `sampling.flow`


@dataclass
class Made:
    """The prediction that a loop ends with, and what a refiner is told of it."""

    prediction: Array
    weights: Array
    guided: bool
    context: Sequence[Array] = field(default=())

    def images(self, graphs: Sessions) -> Array:
        images = self.prediction if graphs.predicts_images else graphs.call("pixels", prediction=self.prediction)
        return np.clip(images, -1, 1)


class Loop:
    """A generator under its condition and guidance, see `sampling.loop`."""

    def __init__(self, graphs: Sessions, weights: Array, guided: bool, settings: Mapping[str, Any]) -> None:
        self.graphs, self.weights, self.guided = graphs, weights, guided
        manifest, amount, place = graphs.manifest, settings["guidance"], settings["guidance_at"]
        self.both = np.concatenate([weights, graphs.null(len(weights), settings)])
        self.images, self.context = graphs.predicts_images, []  # type: tuple[bool, list[Array]]
        active = amount != manifest["unguided"]
        if active and not guided:
            raise ConfigError(
                f"guidance steers towards a class: give labels, or guidance {manifest['unguided']:g} without"
            )
        self.rotation = math.radians(amount) if active and manifest["guidance_law"] == "rotation" else 0.0
        self.streams = 2 if self.rotation else 1
        places = manifest["guidance_places"] if place == "both" else [place]
        scale = amount if active and not self.rotation else 1.0
        if scale != 1 and set(places) - set(manifest["guidance_places"]):
            raise ConfigError(f"this model predicts latents and is guided there alone, not at {place!r}")
        each = scale if len(places) == 1 else math.sqrt(scale)
        self.pixel, self.latent = (each if name in places else 1.0 for name in ("pixel", "latent"))

    def predict(self, latents: Array, noise: Array, turn: float, told: float) -> tuple[Array, list[Array]]:
        """Return predictions for raw latents that noise moves, and what a refiner is told."""
        scale = self.pixel if self.images else self.latent
        count = len(latents)
        weights = self.both if count > len(self.weights) else self.weights
        if scale != 1:
            latents, noise, weights = np.concatenate([latents] * 2), np.concatenate([noise] * 2), self.both
        wide = len(latents)
        inputs = {"latents": latents, "noise": noise, "condition": weights}
        found, *context = self.graphs.outputs(
            "decoder", {**inputs, "turn": filled(turn, wide), "told": filled(told, wide)}
        )
        if scale != 1:
            found = mixed(found, scale)
            found = np.clip(found, -1, 1) if self.images else found
        self.context = [each[: len(self.weights)] for each in context]
        return found, self.context

    def to_latent(self, prediction: Array) -> Array:
        """Return predictions as raw latents."""
        if not self.images:
            raw = prediction
        elif self.rotation:
            raw = self.graphs.encoded(prediction, self.both)
        elif self.latent == 1:
            raw = self.graphs.encoded(prediction, self.weights)
        else:
            raw = mixed(self.graphs.encoded(np.concatenate([prediction] * 2), self.both), self.latent)
        if not self.rotation:
            return raw
        count = len(raw) // 2
        points = self.graphs.place(raw)
        turned = self.graphs.call(
            "away", points=points[:count], reference=points[count:], angle=filled(self.rotation, count)
        )
        return np.concatenate([turned, raw[count:]])

    def run(
        self, prediction: Array, angles: Sequence[float], noises: Sequence[Array], context: Sequence[Array] = ()
    ) -> Made:
        """Take a step for each angle from a prediction of all streams, by one noise for all steps, or one for each."""
        count = len(self.weights)
        for number, angle in enumerate(angles):
            last = number + 1 == len(angles)
            streams = 1 if last else self.streams
            noise = np.concatenate([noises[min(number, len(noises) - 1)]] * streams)
            latents = self.to_latent(prediction)[: len(noise)]
            prediction, context = self.predict(latents, noise, angle, angle)
        return Made(prediction[:count], self.weights, self.guided, context)


def refined(graphs: Sessions, rough: Array, made: Made, noise: Array, settings: Mapping[str, Any]) -> Array:
    """Integrate the flow from rough images, as `sampling.flow.refine_images` does."""
    rho, steps, scale = (
        graphs.manifest["refiner"]["rho"],
        settings["refinement_steps"],
        settings["refinement_guidance"],
    )
    guided = scale != 1 and graphs.manifest["refiner"]["guided"]
    if guided and not made.guided:
        raise ConfigError("guidance steers towards a class: give labels, or refinement_guidance 1")
    weights, extra = made.weights, dict(zip(("point", "tokens"), made.context, strict=False))
    of = rough
    if guided:
        weights = np.concatenate([weights, graphs.null(len(weights), settings)])
        extra = {name: np.concatenate([each, each]) for name, each in extra.items()}
        of = np.concatenate([rough, rough])

    def end(x: Array, t: float) -> Array:
        wide = np.concatenate([x, x]) if guided else x
        found = graphs.call("refiner", x=wide, times=filled(t, len(wide)), condition=weights, rough=of, **extra)
        return mixed(found, scale) if guided else found

    def velocity(x: Array, t: float) -> Array:
        return (end(x, t) - x) / np.float32(max(1 - t, LEAST_REMAINDER))

    x = np.float32(rho) * noise + np.float32(1 - rho) * rough
    for number in range(steps - 1):
        t, to = number / steps, (number + 1) / steps
        first, by = velocity(x, t), np.float32(to - t)
        if settings["solver"] == "heun":
            x = x + by / 2 * (first + velocity(x + by * first, to))
        elif settings["solver"] == "midpoint":
            x = x + by * velocity(x + by / 2 * first, (t + to) / 2)
        else:
            x = x + by * first
    return np.clip(end(x, (steps - 1) / steps), -1, 1)
