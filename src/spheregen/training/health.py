"""Early warnings when a run is dying, from the numbers of its log.

Each rule is an inequality with a reason and a margin: a bad value must stay for several log intervals in a row before
it is told, and is told once until it is healthy again. But for images that blow up, nothing is judged during warm-up
and the `GRACE` steps after it: a fresh model decodes constant images and its codes lie close together, which is no
illness.

The numbers in the rules come from runs of the shipped recipes, healthy ones and ones that were made to die;
docs/insight.md shows them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

GRACE = 300
"""Steps after warm-up in which nothing is judged."""

CONSTANT_RATIO, VARIED_RATIO = 0.05, 0.15
"""Decodes vary over the batch by this share of what the images vary: below they are constant, above they are not."""
BLOWN_RATIO, BOUNDED_RATIO = 3.0, 1.5
"""The same share: beyond the first, decodes have left the range of images; this is judged from the first step on."""
MERGED_SHARE, APART_SHARE = 1 / 3, 1 / 2
"""The mean angle between codes as a share of the largest noise angle: below they have merged, above not."""
LOST_SHARE, REGAINED_SHARE = 1 / 4, 1 / 2
"""Coverage or neighbour angle as a share of the best so far: below it is lost, above it is back."""
EXPLODED, CALM = 4.0, 2.0
"""A consistency term as a multiple of its minimum: beyond it explodes, below it is calm."""
SPIKE, SETTLED = 10.0, 3.0
"""The gradient norm as a multiple of its usual value (a geometric running mean)."""
RISEN, FALLEN = 1.5, 1.2
"""The loss as a multiple of its minimum."""
RISING = 10
"""Log entries in a row for which it must have risen."""
PLATEAU, LEFT = 1.2, 1.0
"""Pixel reconstruction as a multiple of a lower bound of what one image for all costs: above it learned nothing."""
STILL, IMPROVED = 10, 0.97
"""Reconstruction stands still if, in so many log entries, it does not reach this share of its minimum before."""
NORM_MEMORY = 0.1
"""The weight of a new value in the usual gradient norm."""
NORM_HISTORY = 5
"""Values that the usual gradient norm is made of before it is a yardstick."""

CONSISTENCY = ("pixel_consistency", "perceptual_consistency", "latent_consistency")
RECONSTRUCTION = ("pixel_reconstruction", "perceptual_reconstruction")


@dataclass(frozen=True)
class _Finding:
    """What a rule says of one log entry."""

    kind: str
    bad: bool
    healthy: bool
    patience: int
    """Bad entries in a row before the warning."""
    text: str


class HealthMonitor:
    """Watches the numbers of a run at its log intervals. It draws nothing at random and asks for nothing else, so that
    the same numbers give the same warnings.

    Args:
        max_angle: the largest angle of the training noise in degrees, `model.max_angle`; None where latents are those
            of a frozen network, whose spread is what it is.
        warmup: steps of the learning rate's warm-up.
    """

    def __init__(self, *, max_angle: float | None, warmup: int = 0) -> None:
        self.max_angle, self.warmup = max_angle, warmup
        self._state: dict[str, float] = {}

    def state(self) -> dict[str, float]:
        """All that is remembered, as finite numbers; for a checkpoint."""
        return dict(self._state)

    def restore(self, state: Mapping[str, float]) -> None:
        """Go on from a remembered state."""
        self._state = {name: float(value) for name, value in state.items()}

    def check(self, step: int, metrics: Mapping[str, float]) -> list[str]:
        """New warnings after `step` steps, one line each with cause and cure.

        Args:
            step: optimiser steps that are done.
            metrics: means since the last log entry or values of the moment. Read are `loss`, the loss terms,
                `grad_norm`, `latent_neighbour_angle`, `latent_mean_angle`, `latent_coverage`, `image_deviation` and
                `data_deviation` (of images in [0, 1]); rules whose numbers are missing or not finite are left out.
        """
        values = {name: float(value) for name, value in metrics.items() if math.isfinite(value)}
        in_grace = step <= self._phase_begun(step, values) + self.warmup + GRACE
        if in_grace:
            self._note_norm(values)
        warnings = []
        for finding in self._blown_images(values) if in_grace else self._findings(values):
            bad, active = f"{finding.kind}.bad", f"{finding.kind}.active"
            self._state[bad] = self._state.get(bad, 0.0) + 1 if finding.bad else 0.0
            if self._state.get(active):
                self._state[active] = 0.0 if finding.healthy else 1.0
            elif self._state[bad] >= finding.patience:
                self._state[active] = 1.0
                warnings.append(f"step {step}: {finding.text}")
        return warnings

    def _phase_begun(self, step: int, values: Mapping[str, float]) -> float:
        """The step behind which the parts learn that learn now: with others, loss and gradient are other numbers."""
        learning = ("pixel_reconstruction" in values) + 2 * ("velocity" in values)
        if self._state.get("phase", learning) != learning:
            for name in ("norm.log", "norm.count", "loss.least"):
                self._state.pop(name, None)
            self._state["phase.begun"] = float(step)
        self._state["phase"] = float(learning)
        return self._state.get("phase.begun", 0.0)

    def _findings(self, values: Mapping[str, float]) -> Iterator[_Finding]:
        yield from self._blown_images(values)
        yield from self._constant_images(values)
        yield from self._merged_codes(values)
        yield from self._lost_spread(values)
        yield from self._exploding_consistency(values)
        yield from self._gradient_spike(values)
        yield from self._rising_loss(values)

    def _blown_images(self, values: Mapping[str, float]) -> Iterator[_Finding]:
        data = values.get("data_deviation", 0.0)
        if data <= 0 or "image_deviation" not in values:
            return
        ratio = values["image_deviation"] / data
        yield _Finding(
            "blown",
            bad=ratio > BLOWN_RATIO,
            healthy=ratio < BOUNDED_RATIO,
            patience=3,
            text=f"decoded images blow up: they vary {ratio:.3g} times as much as the data. Start again, or from an "
            "older checkpoint, with a lower optimizer.lr, a longer warm-up or a lower optimizer.clip",
        )

    def _constant_images(self, values: Mapping[str, float]) -> Iterator[_Finding]:
        data = values.get("data_deviation", 0.0)
        if data <= 0 or "image_deviation" not in values:
            return
        ratio = values["image_deviation"] / data
        yield _Finding(
            "constant",
            bad=ratio < CONSTANT_RATIO,
            healthy=ratio > VARIED_RATIO,
            patience=3,
            text=f"decoded images hardly differ from one another ({ratio:.1%} of the deviation of the data): the "
            "decoder ignores its latent. Lower optimizer.lr or lengthen its warm-up; set model.output_activation=none "
            "where images have large black or white areas; lower the weights of the consistency terms",
        )
        if "pixel_reconstruction" not in values:
            return
        # smoothL1 of images in [0, 1] is half the squared error, so the best constant image costs half the variance,
        # which is at least half the square of the mean deviation
        constant = 0.5 * data**2
        value = values["pixel_reconstruction"]
        if value < IMPROVED * self._state.get("plateau.least", math.inf):
            self._state |= {"plateau.least": value, "plateau.still": 0.0}
        else:
            self._state["plateau.still"] += 1
        yield _Finding(
            "plateau",
            bad=value > PLATEAU * constant
            and self._state["plateau.still"] >= STILL
            and ratio >= CONSTANT_RATIO
            and not self._state.get("constant.active"),  # one warning for one illness
            healthy=value < LEFT * constant,
            patience=1,
            text=f"pixel_reconstruction stands still at {value:.3g}, no better than one average image for all "
            f"(at least {constant:.3g}). Set model.output_activation=none where images have large black or white "
            "areas, model.output_init=xavier and model.decoder_input_init=scaled; or raise loss.pixel_reconstruction",
        )

    def _merged_codes(self, values: Mapping[str, float]) -> Iterator[_Finding]:
        if self.max_angle is None or "latent_mean_angle" not in values:
            return
        angle = values["latent_mean_angle"]
        yield _Finding(
            "merged",
            bad=angle < MERGED_SHARE * self.max_angle,
            healthy=angle > APART_SHARE * self.max_angle,
            patience=3,
            text=f"latents collapse: two images are {angle:.1f} degrees apart on average, far less than the training "
            f"noise of up to {self.max_angle:g} degrees (90 is a full sphere). Lower loss.latent_consistency and the "
            "other consistency weights, or raise optimizer.encoder_lr so that the encoder learns to tell images apart",
        )

    def _lost_spread(self, values: Mapping[str, float]) -> Iterator[_Finding]:
        names = {
            "latent_coverage": "coverage of the sphere",
            "latent_neighbour_angle": "angle to the nearest neighbour",
        }
        shares = {name: values[name] / best for name in names if name in values and (best := self._best(name, values))}
        if not shares:
            return
        worst = min(shares, key=lambda name: shares[name])
        yield _Finding(
            "lost",
            bad=shares[worst] < LOST_SHARE,
            healthy=shares[worst] > REGAINED_SHARE,
            patience=3,
            text=f"latents collapse: the {names[worst]} ({worst}) fell to {values[worst]:.3g} from "
            f"{self._state[f'{worst}.best']:.3g}. Lower optimizer.lr and continue from the last good checkpoint, or "
            "lower loss.latent_consistency",
        )

    def _exploding_consistency(self, values: Mapping[str, float]) -> Iterator[_Finding]:
        """Consistency grows by itself while decodes get richer, so it counts from when images are varied, and only
        while reconstruction does not fall."""
        data = values.get("data_deviation", 0.0)
        varied = data > 0 and values.get("image_deviation", 0.0) / data > 0.5
        if varied:
            for name in (*CONSISTENCY, *RECONSTRUCTION):
                self._least(name, values)
        stuck = all(
            values[name] > 1.1 * self._state.get(f"{name}.least", math.inf) for name in RECONSTRUCTION if name in values
        )
        growth = {
            name: values[name] / self._state[f"{name}.least"]
            for name in CONSISTENCY
            if name in values and self._state.get(f"{name}.least")
        }
        if not growth:
            return
        worst = max(growth, key=lambda name: growth[name])
        yield _Finding(
            "consistency",
            bad=growth[worst] > EXPLODED and stuck,
            healthy=growth[worst] < CALM,
            patience=3,
            text=f"{worst} explodes: {values[worst]:.3g}, {growth[worst]:.1f} times its minimum, while reconstruction "
            f"does not improve. Lower optimizer.lr, or change the weight loss.{worst}",
        )

    def _gradient_spike(self, values: Mapping[str, float]) -> Iterator[_Finding]:
        norm = values.get("grad_norm", 0.0)
        usual = math.exp(self._state.get("norm.log", 0.0))
        if norm > 0 and self._state.get("norm.count", 0.0) >= NORM_HISTORY:
            yield _Finding(
                "gradient",
                bad=norm > SPIKE * usual,
                healthy=norm < SETTLED * usual,
                patience=1,
                text=f"the gradient norm jumped to {norm:.3g}, {norm / usual:.0f} times its usual {usual:.3g}. If it "
                "comes again, lower optimizer.lr or optimizer.clip, and look for broken images in the data",
            )
        self._note_norm(values)

    def _rising_loss(self, values: Mapping[str, float]) -> Iterator[_Finding]:
        if values.get("loss", 0.0) <= 0 or "critic" in values:  # a game's loss falls and rises
            return
        least = self._least("loss", values)
        yield _Finding(
            "loss",
            bad=values["loss"] > RISEN * least,
            healthy=values["loss"] < FALLEN * least,
            patience=RISING,
            text=f"the loss is {values['loss']:.3g} and has been {RISEN:g} times its minimum of {least:.3g} or more "
            f"for {RISING} log entries. Continue from an older checkpoint with a lower optimizer.lr",
        )

    def _note_norm(self, values: Mapping[str, float]) -> None:
        """Let the usual gradient norm follow; a spike moves it no further than a norm at the limit would."""
        norm = values.get("grad_norm", 0.0)
        if norm <= 0:
            return
        count = self._state.get("norm.count", 0.0)
        usual = self._state.get("norm.log", math.log(norm))
        change = max(-math.log(SPIKE), min(math.log(SPIKE), math.log(norm) - usual))
        weight = max(NORM_MEMORY, 1 / (count + 1))
        self._state |= {"norm.log": usual + weight * change, "norm.count": count + 1}

    def _least(self, name: str, values: Mapping[str, float]) -> float:
        key = f"{name}.least"
        if name in values and values[name] > 0:
            self._state[key] = min(values[name], self._state.get(key, math.inf))
        return self._state.get(key, 0.0)

    def _best(self, name: str, values: Mapping[str, float]) -> float:
        key = f"{name}.best"
        self._state[key] = max(values[name], self._state.get(key, 0.0))
        return self._state[key]
