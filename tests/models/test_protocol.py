"""What every generator answers to, and mixtures of two predictions by a mask."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from spheregen.models.protocol import SphereGenerator, Tokenizer, mix_images, mix_tokens, predicts_images
from tests.sampling.latent_generator import LinearTokenizer, latent_generator
from tests.sampling.test_sampling import IMAGES, LABELS, NOISE, gaussian, model_of

KINDS: dict[str, Callable[[int], SphereGenerator]] = {"images": model_of, "latents": latent_generator}


@pytest.mark.parametrize("classes", [0, 3])
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_the_calls_of_a_generator_agree(kind: str, classes: int) -> None:
    model = KINDS[kind](classes)
    assert isinstance(model, SphereGenerator) and isinstance(model, nn.Module)
    assert predicts_images(model) == (kind == "images")
    v = model.prior.project(NOISE)
    for labels in (None, LABELS) if classes else (None,):
        prediction = model.predict(v, labels)
        assert prediction.shape == (IMAGES.shape if kind == "images" else NOISE.shape)
        assert torch.equal(model.decode(v, labels), model.to_image(prediction))
        raw = model.to_latent(model.from_image(IMAGES), labels)
        assert torch.equal(model.encode_raw(IMAGES, labels), raw)
        assert torch.equal(model.encode(IMAGES, labels), model.prior.project(raw))
    assert set(model.guidance_places) == ({"pixel", "latent"} if kind == "images" else {"latent"})
    if kind == "images":
        assert model.to_image(IMAGES) is IMAGES and model.from_image(IMAGES) is IMAGES


def test_the_tokenizer_of_the_tests_is_one() -> None:
    tokenizer = LinearTokenizer()
    assert isinstance(tokenizer, Tokenizer)
    torch.testing.assert_close(tokenizer.encode(tokenizer.decode(NOISE)), NOISE)


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


def test_whole_patches_take_tokens_bit_for_bit() -> None:
    a, b = gaussian(3, 4, 5), gaussian(3, 4, 5, seed=1)
    mask = bits((3, 1, 2, 2)).repeat_interleave(4, -1).repeat_interleave(4, -2)
    taken = mask[:, :, ::4, ::4].flatten(2).transpose(1, 2) == 1
    assert 0 < taken.sum() < 12
    assert torch.equal(mix_tokens(a, b, mask), torch.where(taken, a, b))


def test_a_grid_that_does_not_divide_the_image() -> None:
    """A tokenizer that resizes images first: 8 px for a grid of 3 x 3."""
    a, b = torch.ones(1, 9, 1), torch.zeros(1, 9, 1)
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., :4] = 1
    share = mix_tokens(a, b, mask).view(3, 3)
    assert torch.equal(share, share[:1].expand(3, 3))
    assert share[0, 0] == 1 and share[0, 2] == 0 and share[0, 1] == 0.5
