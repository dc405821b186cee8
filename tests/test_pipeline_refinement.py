"""Generation, reconstruction, edits and restoration with a flow behind them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

import spheregen as sg
from spheregen import sampling
from spheregen.errors import ConfigError
from spheregen.family.sphere_flow.network import RefinedGenerator
from spheregen.sampling.flow import Refinement, refine_images, refinement_noise
from tests.factories import rand, tiny_autoencoder, tiny_refined

PHOTOS = rand(3, 3, 8, 8, seed=9)


def pipeline(**changes: Any) -> sg.Pipeline:
    return sg.Pipeline(tiny_refined(**changes), device="cpu")


def front(pipe: sg.Pipeline) -> sg.Pipeline:
    """A pipeline of the generator in front alone."""
    assert isinstance(pipe.model, RefinedGenerator)
    return sg.Pipeline(pipe.model.source, device="cpu")


LABELS = [0, 1, 2]
CALLS = {
    "generate": lambda pipe, **how: pipe.generate(3, seed=4, steps=2, labels=LABELS, **how).tensor,
    "edit": lambda pipe, **how: pipe.edit(PHOTOS, LABELS, seed=4, **how).tensor,
    "crossover": lambda pipe, **how: pipe.crossover(PHOTOS, PHOTOS.flip(0), seed=4, labels=LABELS, **how).tensor,
    "vary": lambda pipe, **how: pipe.vary(PHOTOS[:1], 3, seed=4, **how).tensor,
    "interpolate": lambda pipe, **how: pipe.interpolate([1, 2], 3, steps=2, **how).tensor,
    "inpaint": lambda pipe, **how: pipe.inpaint(PHOTOS, half_mask(), labels=LABELS, seed=4, **how).tensor,
    "upscale": lambda pipe, **how: pipe.upscale(PHOTOS, 2, labels=LABELS, seed=4, **how).tensor,
    "reconstruct": lambda pipe, **how: pipe.reconstruct(PHOTOS, seed=4, **how),
    "decode": lambda pipe, **how: pipe.decode(torch.ones(3, 4, 4), seed=4, **how),
}


def half_mask() -> Image.Image:
    mask = Image.new("L", (8, 8))
    mask.paste(255, (0, 0, 4, 8))
    return mask


@pytest.mark.parametrize("name", CALLS)
def test_the_images_of_the_generator_in_front_are_refined(name: str) -> None:
    pipe = pipeline(rho=0.25)
    rough, fine = (CALLS[name](pipe, refinement_steps=steps) for steps in (0, 3))
    torch.testing.assert_close(rough, CALLS[name](front(pipe)), atol=1e-5, rtol=1e-4)
    assert (rough - fine).abs().mean() > 1e-3
    assert fine.min() >= 0 and fine.max() <= 1
    pipe.batch_size = 1
    torch.testing.assert_close(CALLS[name](pipe, refinement_steps=3), fine, atol=1e-5, rtol=1e-4)


def test_the_flow_starts_from_the_seeds_own_noise() -> None:
    """By hand: one decode, then the flow."""
    pipe = pipeline()
    model = pipe.model
    assert isinstance(model, RefinedGenerator)
    made = pipe.generate(2, seed=7, labels=[2, 0], steps=1, refinement_steps=2, solver="euler").tensor
    labels = torch.tensor([2, 0])
    v = model.prior.project(sampling.seeded_noise([7, 8], model.latent_shape, 0).initial)
    with torch.no_grad():
        rough, context = model.predict_with_context(v, labels)
    noise = refinement_noise([7, 8], model.image_shape)
    fine = refine_images(model, rough, labels, Refinement(2, "euler"), noise=noise, context=context)
    torch.testing.assert_close(made, (fine + 1) / 2, atol=1e-5, rtol=1e-4)
    assert not torch.equal(noise[0], refinement_noise([8], model.image_shape)[0])


def test_pure_noise_without_context_is_a_plain_flow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gaussian images have a flow in closed form; what the generator in front makes does not matter."""
    monkeypatch.setattr("spheregen.sampling.flow.LEAST_REMAINDER", 0.0)  # of training; the exact flow has no bound
    model = tiny_refined(rho=1.0, latent_channels=0, decoder_width=0)
    mean, deviation = 0.1, 0.2

    def expected(x: Tensor, times: Tensor, *_: object) -> Tensor:
        t = times.view(-1, 1, 1, 1)
        variance = (1 - t) ** 2 + (t * deviation) ** 2
        return mean + t * deviation**2 / variance * (x - t * mean)

    monkeypatch.setattr(model, "refined", expected)
    noise = torch.randn(4, 3, 8, 8)
    for rough in (torch.zeros(4, 3, 8, 8), torch.rand(4, 3, 8, 8)):
        made = refine_images(model, rough, None, Refinement(400, "heun"), noise=noise)
        torch.testing.assert_close(made, (mean + deviation * noise).clamp(-1, 1), atol=2e-3, rtol=0)


def test_guidance_pulls_away_from_the_null_class() -> None:
    pipe = pipeline()
    model = pipe.model
    assert isinstance(model, RefinedGenerator)
    x, labels, noise = PHOTOS * 2 - 1, torch.tensor(LABELS), torch.randn(3, 3, 8, 8)
    plain, null = (refine_images(model, x, ids, Refinement(1), noise=noise) for ids in (labels, None))
    _, context = model.predict_with_context(model.encode(x, labels), labels)
    guided, one, other = (
        refine_images(model, x, ids, Refinement(1, guidance=scale), noise=noise, context=context)
        for ids, scale in ((labels, 2.0), (labels, 1.0), (torch.full((3,), 3), 1.0))
    )
    inside = (one.abs() < 1) & (other.abs() < 1)  # these two were clamped already
    torch.testing.assert_close(guided[inside], (2 * one - other).clamp(-1, 1)[inside], atol=1e-4, rtol=1e-3)
    assert not torch.allclose(plain, null)
    with pytest.raises(ConfigError, match="class"):
        refine_images(model, x, None, Refinement(1, guidance=2))
    assert pipe.generate(2, guidance=2.0).settings["refinement_guidance"] == 2.0
    assert pipe.generate(2, guidance=2.0, refinement_guidance=1.0).settings["refinement_guidance"] == 1.0
    assert pipe.edit(PHOTOS).settings["refinement_guidance"] == 1.0  # no class, no guidance


def test_the_trajectory_ends_with_the_rough_and_the_refined_image() -> None:
    pipe = pipeline()
    out = pipe.generate(2, steps=3, refinement_steps=2, trajectory=True)
    assert len(out.trajectory) == 4
    assert torch.equal(out.trajectory[-1], out.tensor)
    torch.testing.assert_close(
        out.trajectory[2], pipe.generate(2, steps=3, refinement_steps=0).tensor, atol=1e-5, rtol=1e-4
    )


def test_inpainting_keeps_known_pixels_through_the_flow() -> None:
    made = pipeline().inpaint(PHOTOS, half_mask(), refinement_steps=2).tensor
    torch.testing.assert_close(made[..., 4:], PHOTOS[..., 4:], atol=1e-5, rtol=0)
    assert (made[..., :4] - PHOTOS[..., :4]).abs().mean() > 0.01


def test_an_interpolation_ends_in_the_pictures_of_its_seeds() -> None:
    pipe = pipeline()
    frames = pipe.interpolate([1, 5], 3, steps=2, refinement_steps=2).tensor
    for frame, seed in ((frames[0], 1), (frames[-1], 5)):
        made = pipe.generate(1, seed=seed, steps=2, refinement_steps=2).tensor[0]
        torch.testing.assert_close(frame, made, atol=1e-4, rtol=1e-3)


def test_any_picture_can_be_refined() -> None:
    pipe = pipeline()
    out = pipe.refine(PHOTOS, LABELS, seed=3, refinement_steps=2)
    assert out.tensor.shape == PHOTOS.shape
    torch.testing.assert_close(
        pipe.refine(PHOTOS[1:2], 1, seed=4, refinement_steps=2).tensor, out.tensor[1:2], atol=1e-5, rtol=1e-4
    )
    assert out.settings["edit"] == "refine"
    with pytest.raises(ConfigError, match="no refiner"):
        front(pipe).refine(PHOTOS)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"refinement_steps": -1}, "not negative"),
        ({"solver": "rk4"}, "euler"),
        ({"refinement_guidance": -1.0}, "refinement_guidance"),
    ],
)
def test_impossible_options(options: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        pipeline().generate(1, **options)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="no refiner"):
        sg.Pipeline(tiny_autoencoder(), device="cpu").generate(1, **options)  # type: ignore[arg-type]
