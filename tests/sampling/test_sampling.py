"""The few-step loop: guidance, schedules, step noise, seeds."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from spheregen.conditioning import Labels
from spheregen.errors import ConfigError
from spheregen.family.sphere_encoder.network import SphereAutoencoder
from spheregen.prior import Angle
from spheregen.protocol import SphereGenerator
from spheregen.sampling import (
    Angles,
    edit,
    edit_angles,
    generation_angles,
    guide,
    reconstruct,
    refine,
    sample,
    seeded_noise,
)
from spheregen.sphere import angle_between, spherify
from tests.factories import tiny_autoencoder
from tests.sampling.latent_generator import LatentGenerator, latent_generator

LABELS = torch.tensor([0, 1, 2])
SIGMA = math.tan(math.radians(85))


def model_of(classes: int = 3, **options: Any) -> SphereAutoencoder:
    return tiny_autoencoder(num_classes=classes, **options)


KINDS: dict[str, Callable[[int], SphereGenerator]] = {"images": model_of, "latents": latent_generator}
"""What models predict; `either` is one of each kind."""


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


NOISE, STEP = gaussian(3, 4, 4), gaussian(3, 4, 4, seed=1)
IMAGES = torch.rand((3, 3, 8, 8), generator=torch.Generator().manual_seed(2)) * 2 - 1


def sizes_of(module: torch.nn.Module) -> tuple[list[int], Any]:
    """The batch size of every forward call from now on, and the hook to remove."""
    calls: list[int] = []
    return calls, module.register_forward_hook(lambda _, arguments, __: calls.append(arguments[0].shape[0]))


# guidance -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("schedule", "scale"), [("fixed", 0.0), ("fixed", 6.0), ("decay", 1.8)])
@pytest.mark.parametrize("place", ["pixel", "latent", "both"])
@torch.no_grad()
def test_guidance_by_hand(model: SphereAutoencoder, place: str, scale: float, schedule: str) -> None:
    """Every image alone, condition and null class in separate calls."""
    steps = 3
    at_pixels, at_latents = {
        "pixel": (scale, 1.0),
        "latent": (1.0, scale),
        "both": (math.sqrt(scale), math.sqrt(scale)),
    }[place]
    expected = []
    for i in range(3):
        label, null = LABELS[i : i + 1], torch.tensor([3])

        def decode(v: Tensor, label: Tensor = label, null: Tensor = null) -> Tensor:
            conditional, free = model.decode(v, label), model.decode(v, null)
            return (free + at_pixels * (conditional - free)).clamp(-1, 1)

        x = decode(spherify(NOISE[i : i + 1]))
        for t in range(1, steps):
            conditional, free = model.encoder(x, label), model.encoder(x, null)
            z = spherify(free + at_latents * (conditional - free))
            r = 1.0 if schedule == "fixed" else 1 - t / steps
            x = decode(spherify(z + r * SIGMA * STEP[i : i + 1]))
        expected.append(x)
    result = sample(model, NOISE, LABELS, steps, schedule, guidance=scale, guidance_at=place, step_noise=STEP)
    torch.testing.assert_close(result.images, torch.cat(expected), atol=1e-4, rtol=0)
    plain = sample(model, NOISE, LABELS, steps, schedule, step_noise=STEP)
    assert not torch.allclose(result.images, plain.images, atol=1e-3)


@pytest.mark.parametrize(
    ("place", "decodes", "encodes"), [("pixel", 6, 3), ("latent", 3, 6), ("both", 6, 6), ("none", 3, 3)]
)
def test_guidance_is_one_batched_call(model: SphereAutoencoder, place: str, decodes: int, encodes: int) -> None:
    decoded, first = sizes_of(model.decoder)
    encoded, second = sizes_of(model.encoder)
    options = {} if place == "none" else {"guidance": 2.0, "guidance_at": place}
    sample(model, NOISE, LABELS, steps=3, step_noise=STEP, **options)  # type: ignore[arg-type]
    first.remove()
    second.remove()
    assert decoded == [decodes] * 3
    assert encoded == [encodes] * 2


# schedules ------------------------------------------------------------------------------------------------------------


def fractions(angles: tuple[float, ...]) -> list[float]:
    """Angles in radians as fractions of the training noise's magnitude."""
    return [math.tan(angle) / SIGMA for angle in angles]


def test_the_published_schedules_are_fractions_of_the_magnitude() -> None:
    assert generation_angles("fixed", 1) == generation_angles("decay", 1) == generation_angles([], 1) == ()
    assert fractions(generation_angles("fixed", 4)) == pytest.approx([1, 1, 1])
    assert fractions(generation_angles("decay", 4)) == pytest.approx([0.75, 0.5, 0.25])
    assert fractions(generation_angles([0.5, 0, 2], 4)) == pytest.approx([0.5, 0, 2])
    assert fractions(generation_angles(lambda t, steps: t / steps, 3)) == pytest.approx([1 / 3, 2 / 3])
    assert fractions(generation_angles("decay", 4, strength=0.5)) == pytest.approx([0.375, 0.25, 0.125])
    assert fractions(edit_angles("fixed", 3, 0.25)) == pytest.approx([0.25, 0.25, 0.25])
    assert fractions(edit_angles("decay", 3, 0.4)) == pytest.approx([0.4 * 0.75, 0.4 * 0.5, 0.4 * 0.25])
    assert fractions(edit_angles([1, 0.5], 2, 0.5)) == pytest.approx([0.5, 0.25])
    assert edit_angles("fixed", 1, 0.0) == (0,)


@pytest.mark.parametrize("alpha_max", [11.0, 80.0, 90.0])
def test_schedules_of_angles(alpha_max: float) -> None:
    even = [math.radians(alpha_max * (1 - t / 5)) for t in range(1, 5)]
    assert generation_angles("angle", 5, alpha_max) == pytest.approx(even)
    assert [math.degrees(a) for a in generation_angles(Angles((90, 30, 0)), 4, alpha_max)] == pytest.approx([90, 30, 0])
    for name in ("fixed", "decay", "angle"):
        for angles in (generation_angles(name, 5, alpha_max), edit_angles(name, 4, 0.25, alpha_max)):
            assert all(0 < each <= math.radians(alpha_max) + 1e-9 for each in angles)
    with pytest.raises(ConfigError, match="0 to 90"):
        generation_angles(Angles((91,)), 2, alpha_max)


@torch.no_grad()
def test_a_schedule_sets_the_angle_of_each_step() -> None:
    model = model_of(0, latent_channels=64)  # L = 256: the tilt is near its high-dimensional limit
    guided = guide(model, None)
    for degrees in (0.0, 13.0, 49.0, 85.0):
        seen: list[Tensor] = []
        hook = model.decoder.register_forward_pre_hook(lambda _, arguments, seen=seen: seen.append(arguments[0]))
        refine(guided, IMAGES, math.radians(degrees), gaussian(3, 4, 64))
        hook.remove()
        assert angle_between(model.encode(IMAGES), seen[0]).mean().item() == pytest.approx(degrees, abs=5)


class Told(LatentGenerator):
    """Remembers the angles that it is told, in degrees, and starts elsewhere than at its largest angle."""

    start_angle = 84.0

    def predict(self, latents: Tensor, labels: Labels = None, angle: Angle = 0.0) -> Tensor:
        asked.append(torch.rad2deg(torch.as_tensor(angle, dtype=torch.float64)).tolist())
        return super().predict(latents, labels, angle)


asked: list[Any] = []


def test_a_network_is_told_the_angle_of_its_point() -> None:
    model = Told().eval()
    asked.clear()
    sample(model, NOISE, LABELS, steps=3, schedule="angle", guidance=2.0, step_noise=STEP)
    assert asked == pytest.approx([84, 80 * 2 / 3, 80 / 3])
    asked.clear()
    edit(model, IMAGES, steps=2, schedule=Angles((60, 20)), strength=1.0)
    reconstruct(model, IMAGES)
    model.decode(NOISE, None, 30)
    guide(model, LABELS, 2.0).predict(NOISE, torch.tensor([0.0, 0.5, 1.0]).double().deg2rad())
    assert asked[:4] == pytest.approx([60, 20, 0, 30])
    assert asked[4] == pytest.approx([0, 0.5, 1, 0, 0.5, 1])


# the loop -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_a_trajectory_has_an_image_a_step(model: SphereAutoencoder, steps: int) -> None:
    encoded, first = sizes_of(model.encoder)
    decoded, second = sizes_of(model.decoder)
    result = sample(model, NOISE, LABELS, steps=steps, step_noise=STEP)
    assert (len(decoded), len(encoded)) == (steps, steps - 1)  # one step never encodes
    assert len(result.trajectory) == steps
    assert result.trajectory[-1] is result.images
    assert result.decoded and all(map(operator.is_, result.trajectory, result.predictions))
    assert not result.images.requires_grad
    edited = edit(model, IMAGES, LABELS, steps=steps, step_noise=STEP)
    assert len(edited.trajectory) == steps
    assert edited.trajectory[-1] is edited.images
    assert (len(decoded), len(encoded)) == (2 * steps, 2 * steps - 1)
    first.remove()
    second.remove()


@pytest.mark.parametrize("call", ["sample", "edit"])
def test_drawn_noise_is_shared_or_fresh(either: SphereGenerator, call: str) -> None:
    def run(steps: int = 3, seed: int = 5, **options: Any) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        if call == "sample":
            return sample(either, NOISE, LABELS, steps=steps, generator=generator, **options).images
        return edit(either, IMAGES, LABELS, steps=steps, strength=1.0, generator=generator, **options).images

    assert torch.equal(run(), run())
    assert torch.equal(run(share_noise=False), run(share_noise=False))
    assert not torch.allclose(run(), run(share_noise=False), atol=1e-3)
    assert not torch.allclose(run(), run(seed=6), atol=1e-3)
    noisy = 3 if call == "edit" else 2
    drawn = [torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(5))] * noisy
    assert torch.equal(run(), run(step_noise=drawn))
    generator = torch.Generator().manual_seed(5)
    drawn = [torch.randn(3, 4, 4, generator=generator) for _ in range(noisy)]
    assert torch.equal(run(share_noise=False), run(step_noise=drawn))


@torch.no_grad()
def test_edit_encodes_under_the_target_class_from_the_start(model: SphereAutoencoder) -> None:
    result = edit(model, IMAGES, LABELS, steps=2, strength=0.25, schedule="decay", step_noise=STEP)
    x = IMAGES
    for t in (1, 2):
        r = 0.25 * (1 - t / 3)
        x = model.decode(spherify(model.encode(x, LABELS) + r * SIGMA * STEP), LABELS)
        torch.testing.assert_close(result.trajectory[t - 1], x, atol=2e-5, rtol=0)


@pytest.mark.parametrize("classes", [3, 0])
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_reconstruct_is_decode_of_encode(kind: str, classes: int) -> None:
    model = KINDS[kind](classes)
    assert torch.equal(reconstruct(model, IMAGES), model.decode(model.encode(IMAGES)))
    still = edit(model, IMAGES, steps=1, strength=0.0)
    # an edit without noise or class
    torch.testing.assert_close(still.images, reconstruct(model, IMAGES), atol=1e-6, rtol=0)
    if model.num_classes:
        null = torch.full((3,), model.num_classes)
        torch.testing.assert_close(reconstruct(model, IMAGES, null), reconstruct(model, IMAGES))
        assert not torch.allclose(reconstruct(model, IMAGES, LABELS), reconstruct(model, IMAGES), atol=1e-3)


# seeds ----------------------------------------------------------------------------------------------------------------

SHAPES = [(4, 16), (9, 5), (49, 10)]  # (49, 10): 28 px digits at patch 4


def steps_of(noise: Any) -> list[Tensor]:
    return [noise.steps] if isinstance(noise.steps, Tensor) else list(noise.steps)


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_noise_of_a_seed_does_not_depend_on_its_batch(shape: tuple[int, int], share: bool) -> None:
    seeds = [1000 + i for i in range(64)]
    seeds[50] = 7
    batch, alone = seeded_noise(seeds, shape, 3, share=share), seeded_noise([7], shape, 3, share=share)
    assert torch.equal(batch.initial[50], alone.initial[0])
    assert len(steps_of(batch)) == (1 if share else 3)
    for a, b in zip(steps_of(batch), steps_of(alone), strict=True):
        assert torch.equal(a[50], b[0])
    assert not torch.equal(batch.initial[49], batch.initial[50])


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_noise_of_a_seed_does_not_depend_on_the_number_of_steps(shape: tuple[int, int], share: bool) -> None:
    noises = [seeded_noise([3, 4], shape, count, share=share) for count in (0, 1, 2, 5)]
    assert len(steps_of(noises[0])) == 0
    for noise in noises[1:]:
        assert torch.equal(noise.initial, noises[0].initial)
        for a, b in zip(steps_of(noise), steps_of(noises[-1]), strict=False):
            assert torch.equal(a, b)
