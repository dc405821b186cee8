"""Early warnings when a run is dying, from the numbers of its log.

Each check is an inequality with a margin: a bad value must stay for several log entries in a row before it is told, and
is told once until it is healthy again. But for images that blow up, nothing is judged during warm-up and the `GRACE`
steps after it, when decodes of a fresh model are constant and its latents lie close together, which is no illness.

The numbers come from runs of the shipped recipes, healthy ones and ones that were made to die; docs/training.md.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from spheregen.training.hooks import Values

GRACE = 300
"""Steps after warm-up, or after other parts of a model begin to learn, in which nothing is judged."""
CONSTANT, VARIED = 0.05, 0.15
"""Deviation of the decodes over the batch by that of the images: below they are constant, above they are not."""
BLOWN, BOUNDED = 3.0, 1.5
"""The same share: beyond the first, decodes have left the range of images; this is judged from the first step on."""
MERGED, APART = 1 / 3, 1 / 2
"""Mean angle between latents by the largest noise angle: below they have merged, above not."""
LOST, REGAINED = 1 / 4, 1 / 2
"""Coverage or neighbour angle by the best so far: below it is lost, above it is back."""
SPIKE, SETTLED = 10.0, 3.0
"""Gradient norm by its usual value, a geometric running mean."""
RISEN, FALLEN = 1.5, 1.2
"""Loss by its minimum."""
NORM_MEMORY = 0.1
"""The weight of a new value in the usual gradient norm."""
NORM_HISTORY = 5
"""Values that the usual gradient norm is made of before it is a yardstick."""


class _Finding(NamedTuple):
    """What a check says of one log entry."""

    kind: str
    bad: bool
    healthy: bool
    text: str
    patience: int = 3
    """Bad entries in a row before the warning."""


class HealthMonitor:
    """The hook that watches the log. It draws nothing at random: the same numbers give the same warnings.

    Args:
        max_angle: the largest angle of the training noise in degrees, `model.max_angle`; None where latents are those
            of a frozen network, whose spread is what it is.
        warmup: steps of the learning rate's warm-up.
        warn: told of each warning, in one line.
    """

    name = "health"

    def __init__(
        self, *, max_angle: float | None, warmup: int = 0, warn: Callable[[str], None] = lambda line: None
    ) -> None:
        self.max_angle, self.warmup, self._warn = max_angle, warmup, warn
        self._state: dict[str, float] = {}

    def state(self) -> dict[str, float]:
        """Return all that is remembered, as finite numbers; for a checkpoint."""
        return dict(self._state)

    def restore(self, state: Mapping[str, float]) -> None:
        """Go on from a remembered state."""
        self._state = dict(state)

    def on_log(self, step: int, values: Values) -> None:
        """Warn of what an entry of the run's own log shows; those of other hooks have no loss."""
        if "loss" in values:
            for warning in self.check(step, {k: v for k, v in values.items() if not isinstance(v, Path)}):
                self._warn(f"warning: {warning}")

    def check(self, step: int, metrics: Mapping[str, float]) -> list[str]:
        """Return new warnings after `step` steps, one line each with cause and cure.

        Args:
            step: optimiser steps that are done.
            metrics: read are `loss`, `critic`, `grad_norm`, the names of learning rates, `latent_neighbour_angle`,
                `latent_mean_angle`, `latent_coverage`, `image_deviation` and `data_deviation` (of images in [0, 1]);
                checks whose numbers are missing or not finite are left out.
        """
        state = self._state
        learning = float(zlib.crc32(" ".join(name for name in metrics if name.startswith("lr")).encode()))
        if state.setdefault("phase", learning) != learning:  # other parts learn: loss and gradient are others
            for name in ("norm.log", "norm.count", "loss.least"):
                state.pop(name, None)
            state |= {"phase.begun": float(step), "phase": learning}
        values = {name: float(value) for name, value in metrics.items() if math.isfinite(value)}
        findings = list(self._images(values))
        if step <= state.get("phase.begun", 0.0) + self.warmup + GRACE:
            findings = findings[:1]  # images that blow up
        else:
            findings += [*self._latents(values), *self._loss_and_gradient(values)]
        self._note_norm(values.get("grad_norm", 0.0))
        warnings = []
        for kind, bad, healthy, text, patience in findings:
            state[f"{kind}.bad"] = state.get(f"{kind}.bad", 0.0) + 1 if bad else 0.0
            if state.get(f"{kind}.active"):
                state[f"{kind}.active"] = 0.0 if healthy else 1.0
            elif state[f"{kind}.bad"] >= patience:
                state[f"{kind}.active"] = 1.0
                warnings.append(f"step {step}: {text}")
        return warnings

    def _images(self, values: Mapping[str, float]) -> Iterator[_Finding]:
        data = values.get("data_deviation", 0.0)
        if data <= 0 or "image_deviation" not in values:
            return
        ratio = values["image_deviation"] / data
        text = (
            f"decoded images blow up: they vary {ratio:.3g} times as much as the data. Start again, or from an older "
            "checkpoint, with a lower optimizer.lr, a longer warm-up or a lower optimizer.clip"
        )
        yield _Finding("blown", ratio > BLOWN, ratio < BOUNDED, text)
        text = (
            f"decoded images hardly differ from one another ({ratio:.1%} of the deviation of the data): the decoder "
            "ignores its latent. Lower optimizer.lr or lengthen its warm-up; set model.output_activation=none where "
            "images have large black or white areas; lower the weights of the consistency terms"
        )
        yield _Finding("constant", ratio < CONSTANT, ratio > VARIED, text)

    def _latents(self, values: Mapping[str, float]) -> Iterator[_Finding]:
        if self.max_angle is not None and "latent_mean_angle" in values:
            angle = values["latent_mean_angle"]
            text = (
                f"latents collapse: two images are {angle:.1f} degrees apart on average, far less than the training "
                f"noise of up to {self.max_angle:g} degrees (90 is a full sphere). Lower loss.latent_consistency and "
                "the other consistency weights, or raise optimizer.encoder_lr"
            )
            yield _Finding("merged", angle < MERGED * self.max_angle, angle > APART * self.max_angle, text)
        shares: dict[str, float] = {}
        for name in ("latent_coverage", "latent_neighbour_angle"):
            if name in values:
                best = self._state[f"{name}.best"] = max(values[name], self._state.get(f"{name}.best", 0.0))
                shares |= {name: values[name] / best} if best else {}
        if shares:
            worst = min(shares, key=lambda name: shares[name])
            text = (
                f"latents collapse: {worst} fell to {values[worst]:.3g} from {self._state[f'{worst}.best']:.3g}. Lower "
                "optimizer.lr and continue from the last good checkpoint, or lower loss.latent_consistency"
            )
            yield _Finding("lost", shares[worst] < LOST, shares[worst] > REGAINED, text)

    def _loss_and_gradient(self, values: Mapping[str, float]) -> Iterator[_Finding]:
        norm, usual = values.get("grad_norm", 0.0), math.exp(self._state.get("norm.log", 0.0))
        if norm > 0 and self._state.get("norm.count", 0.0) >= NORM_HISTORY:
            text = (
                f"the gradient norm jumped to {norm:.3g}, {norm / usual:.0f} times its usual {usual:.3g}. If it comes "
                "again, lower optimizer.lr or optimizer.clip, and look for broken images in the data"
            )
            yield _Finding("gradient", norm > SPIKE * usual, norm < SETTLED * usual, text, patience=1)
        loss = values.get("loss", 0.0)
        if loss > 0 and "critic" not in values:  # a game's loss falls and rises
            least = self._state["loss.least"] = min(loss, self._state.get("loss.least", math.inf))
            text = (
                f"the loss is {loss:.3g} and stays {RISEN:g} times above its minimum of {least:.3g}. Continue from an "
                "older checkpoint with a lower optimizer.lr"
            )
            yield _Finding("loss", loss > RISEN * least, loss < FALLEN * least, text, patience=10)

    def _note_norm(self, norm: float) -> None:
        """Let the usual gradient norm follow; a spike moves it no further than a norm at the limit would."""
        if norm > 0:
            count, usual = self._state.get("norm.count", 0.0), self._state.get("norm.log", math.log(norm))
            change = max(-math.log(SPIKE), min(math.log(SPIKE), math.log(norm) - usual))
            weight = max(NORM_MEMORY, 1 / (count + 1))
            self._state |= {"norm.log": usual + weight * change, "norm.count": count + 1}
