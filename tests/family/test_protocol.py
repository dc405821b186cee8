"""What every generator answers to: a member of a few lines, and mixtures of two predictions by a mask."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from spheregen import sampling
from spheregen.conditioning import Labels
from spheregen.nn.block import ClassEmbedding
from spheregen.prior import ROTATION, Angle
from spheregen.protocol import SphereGenerator, mix_images, mix_tokens
from spheregen.restoration import Mask
from spheregen.sphere import per_sample
from tests.sampling.latent_generator import latent_generator
from tests.sampling.test_sampling import IMAGES, LABELS, NOISE, STEP, gaussian, model_of


class Toy(SphereGenerator):
    """A member of the rotation law whose network is told the angle, and trained up to 90 degrees."""

    image_shape, latent_shape = (3, 8, 8), (4, 4)
    alpha_max, start_angle, prior, num_classes = 90.0, 84.0, ROTATION, 3

    def __init__(self) -> None:
        super().__init__()
        self.config = None
        self.decoder, self.encoder, self.labels = nn.Linear(17, 192), nn.Linear(192, 16), ClassEmbedding(3, 192)

    def label_networks(self):  # type: ignore[no-untyped-def]
        return {"decoder": self.labels}

    def predict(self, latents: Tensor, labels: Labels = None, angle: Angle = 0.0) -> Tensor:
        told = per_sample(torch.as_tensor(angle, dtype=latents.dtype), latents).expand(len(latents), 1, 1).flatten(1)
        shift = self.condition(labels).of("decoder").embedding  # type: ignore[union-attr]
        return torch.tanh(self.decoder(torch.cat([latents.flatten(1), told], 1)) + shift).view(-1, 3, 8, 8)

    def to_latent(self, prediction: Tensor, labels: Labels = None) -> Tensor:
        return self.encoder(prediction.flatten(1)).view(-1, 4, 4)  # type: ignore[no-any-return]


def toy(classes: int = 3) -> Toy:
    torch.manual_seed(0)
    return Toy().eval()


KINDS: dict[str, Callable[[int], SphereGenerator]] = {"images": model_of, "latents": latent_generator, "toy": toy}


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_the_calls_of_a_generator_agree(kind: str) -> None:
    model = KINDS[kind](3)
    images = kind != "latents"
    assert model.predicts_images == images and model.refiner is None
    v = model.prior.project(NOISE)
    for labels in (None, LABELS):
        prediction = model.predict(v, labels)
        assert prediction.shape == (IMAGES.shape if images else NOISE.shape)
        assert torch.equal(model.decode(v, labels), model.to_image(prediction))
        raw = model.to_latent(model.from_image(IMAGES), labels)
        assert torch.equal(model.encode_raw(IMAGES, labels), raw)
        assert torch.equal(model.encode(IMAGES, labels), model.prior.project(raw))
        again, context = model.predict_with_context(v, labels)
        assert torch.equal(again, prediction) and context is not None and torch.equal(context.latent, v)
        assert (0 if context.tokens is None else context.tokens.shape[-1]) == model.token_width
    if images:
        assert model.to_image(IMAGES) is IMAGES and model.from_image(IMAGES) is IMAGES


@pytest.mark.parametrize("schedule", ["decay", "angle"])
def test_a_toy_member_samples_edits_and_restores_up_to_90_degrees(schedule: str) -> None:
    model = toy()
    options = {"schedule": schedule, "guidance": 1.5, "step_noise": STEP}
    hidden = functools.partial(sampling.restore, operator=Mask(torch.zeros(1, 1, 8, 8)), angle=90.0)
    for call, start in ((sampling.sample, NOISE), (sampling.edit, IMAGES), (hidden, IMAGES)):
        for steps in (1, 4):
            made = call(model, start, labels=LABELS, steps=steps, **options)  # type: ignore[operator]
            assert made.images.shape == IMAGES.shape and made.images.isfinite().all()
            alone = call(model, start, labels=LABELS, steps=steps, **options).images  # type: ignore[operator]
            assert torch.equal(made.images, alone)
    one = sampling.sample(model, NOISE, LABELS, steps=1).images
    told = model.decode(model.prior.project(NOISE), LABELS, 84)
    torch.testing.assert_close(one, told.detach())


# mixtures by a mask ---------------------------------------------------------------------------------------------------


def bits(shape: tuple[int, ...], seed: int = 3) -> Tensor:
    return (torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.5).float()


@pytest.mark.parametrize("rows", [1, 3])
def test_images_are_mixed_pixel_by_pixel(rows: int) -> None:
    mask, other = bits((rows, 1, 8, 8)), IMAGES.flip(0)
    mixed = mix_images(IMAGES, other, mask)
    assert torch.equal(mixed, torch.where(mask == 1, IMAGES, other))
    torch.testing.assert_close(mix_images(IMAGES, other, mask / 4), mask / 4 * IMAGES + (1 - mask / 4) * other)


@pytest.mark.parametrize(("grid", "size"), [(2, 8), (4, 8), (1, 8), (8, 8), (3, 12)])
@pytest.mark.parametrize("rows", [1, 3])
def test_tokens_are_mixed_by_the_mask_of_their_patch(rows: int, grid: int, size: int) -> None:
    a, b = gaussian(3, grid**2, 5), gaussian(3, grid**2, 5, seed=1)
    mask = torch.rand((rows, 1, size, size), generator=torch.Generator().manual_seed(4))
    mixed, patch = mix_tokens(a, b, mask), size // grid
    for sample in range(3):
        for row in range(grid):
            for column in range(grid):
                here = mask[sample % rows, 0, row * patch : (row + 1) * patch, column * patch : (column + 1) * patch]
                share, token = here.mean(), row * grid + column
                expected = share * a[sample, token] + (1 - share) * b[sample, token]
                torch.testing.assert_close(mixed[sample, token], expected, atol=1e-6, rtol=0)


def test_a_grid_that_does_not_divide_the_image() -> None:
    """A tokenizer that resizes images first: 8 px for a grid of 3 x 3."""
    a, b = torch.ones(1, 9, 1), torch.zeros(1, 9, 1)
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., :4] = 1
    share = mix_tokens(a, b, mask).view(3, 3)
    assert torch.equal(share, share[:1].expand(3, 3))
    assert share[0, 0] == 1 and share[0, 2] == 0 and share[0, 1] == 0.5
