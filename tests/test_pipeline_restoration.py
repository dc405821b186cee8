"""Images restored by a pipeline: what is kept, what comes back beside the images, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

import spheregen as sg
from spheregen import restoration as r
from spheregen.pipeline.tasks import degrade, task_operator
from tests.factories import KINDS, images_of, rand, tiny_pipeline
from tests.sampling.test_restoration import dim
from tests.test_pipeline import close, refuses

A = images_of()
HOLE = torch.zeros(1, 8, 8)
HOLE[:, 2:6, 3:8] = 1


@pytest.fixture(scope="module", params=KINDS)
def pipe(request: pytest.FixtureRequest) -> sg.Pipeline:
    return tiny_pipeline(kind=request.param)


def test_what_comes_back_beside_the_images(pipe: sg.Pipeline) -> None:
    blur = r.Blur(r.gaussian_kernel(1.0), "reflect")
    y = degrade(A, blur, 0.05, 3)
    output = pipe.restore(y, blur, noise=0.05, steps=2, samples=3, seed=7)
    assert output.tensor.shape == output.start.shape == A.shape and output.seeds == (7, 8, 9)
    assert output.spread is not None and output.spread.shape == A.shape and output.spread.max() > 0
    apart = (blur.to(torch.float32).A(output.tensor) - y).square().flatten(1).mean(1).sqrt()
    close(torch.tensor(output.residual), apart, 1e-5)
    alone = pipe.restore(y, blur, noise=0.05, steps=2, seed=7)
    close(alone.tensor, output.tensor)  # the first sample is that of the seed
    assert alone.spread is None
    each = pipe.restore(y, blur, noise=torch.tensor([0.05, 0.2, 0.05]), steps=2, seed=7)
    close(each.tensor[::2], alone.tensor[::2])
    assert not torch.allclose(each.tensor[1], alone.tensor[1], atol=1e-4)


def test_large_images_go_through_in_tiles(pipe: sg.Pipeline) -> None:
    large = rand(1, 3, 12, 20)
    output = pipe.restore(large, r.Denoise(), noise="auto", steps=1)
    assert output.tensor.shape == large.shape and output.settings["noise"][0] > 0
    photo = Image.fromarray((large[0].permute(1, 2, 0) * 255).byte().numpy())
    assert pipe.restore(photo, r.Denoise(), noise=0.1, steps=1, tiles=True).tensor.shape == large.shape
    assert pipe.restore(photo, r.Denoise(), noise=0.1, steps=1).tensor.shape == (1, 3, 8, 8)
    hole = torch.zeros(1, 12, 20)
    hole[:, 3:9, 4:15] = 1
    mask = task_operator(pipe, "inpaint", photo, mask=hole, tiles=True)
    filled = pipe.restore(photo, mask, steps=2, tiles=True).tensor
    given = torch.from_numpy(np.array(photo)).permute(2, 0, 1)[None] / 255
    close(filled * (1 - hole), given * (1 - hole), 1e-6)
    assert not torch.allclose(filled, given, atol=0.05)


@pytest.mark.parametrize(
    "operator",
    [
        r.Denoise(),
        r.Blur(r.gaussian_kernel(1.0), "reflect"),
        r.Subsample(2),
        r.Grey(),
        r.Jpeg(20),
        r.Mask(torch.stack([1 - HOLE, HOLE]).repeat(6, 1, 1, 1)),
    ],
    ids=lambda operator: type(operator).__name__,
)
def test_a_batch_is_the_same_as_one_by_one(pipe: sg.Pipeline, operator: r.Operator) -> None:
    noise = 0.05 * operator.linear
    y = degrade(images_of(12), operator.to(torch.float32), noise, 0)
    together = pipe.restore(y, operator, noise=noise, steps=4, seed=5, samples=2)
    for number in range(len(y)):
        part = slice(number, number + 1)
        alone = pipe.restore(y[part], operator[part], noise=noise, steps=4, seed=5 + number, samples=2)
        close(alone.tensor, together.tensor[part], 2e-5)
        assert alone.spread is not None and together.spread is not None
        close(alone.spread, together.spread[part], 2e-5)


def test_the_residual_is_that_of_known_pixels(pipe: sg.Pipeline) -> None:
    hidden = r.Mask(1 - HOLE[None])
    output = pipe.restore(hidden.A(A), hidden, noise=0.05, lam=1e9, steps=1)  # the model's image, whatever y is
    known = (1 - HOLE).bool().expand(3, 8, 8)
    apart = [(image - given)[known].square().mean().sqrt() for image, given in zip(output.tensor, A, strict=True)]
    close(torch.tensor(output.residual), torch.stack(apart), 1e-5)


def test_greys_of_a_mask_mix(pipe: sg.Pipeline) -> None:
    half = pipe.inpaint(A, HOLE / 2, steps=2).tensor
    where = (HOLE == 1).expand(3, 8, 8)
    assert ((half - A).abs().amax(0)[where] <= 0.5 + 1e-5).all()  # half of the image is still there
    close(half * (1 - HOLE), A * (1 - HOLE), 1e-6)


def test_noise_depends_on_the_number_of_an_image_alone() -> None:
    x = images_of(4)
    whole = degrade(x, r.Denoise(), 0.1, 5)
    assert torch.equal(degrade(x[2:], r.Denoise(), 0.1, 7), whole[2:])
    assert (whole - x).std().item() == pytest.approx(0.1, rel=0.1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("label", "dtype"), [(None, torch.float32), ("dog", torch.bfloat16)])
def test_inpainting_keeps_known_pixels(label: str | None, dtype: torch.dtype, kind: str) -> None:
    pipe = tiny_pipeline(kind=kind)
    pipe.model.to(dtype)
    output = pipe.inpaint(A, HOLE, labels=label, steps=3)
    known = (HOLE == 0).expand(3, 8, 8).permute(1, 2, 0).numpy()
    for image, given in zip(output.images, sg.PipelineOutput(A, (0, 1, 2), None, {}).images, strict=True):
        assert np.array_equal(np.asarray(image)[known], np.asarray(given)[known])
        assert not np.array_equal(np.asarray(image)[~known], np.asarray(given)[~known])
    for images in output.trajectory:
        tolerance = 1e-6 if dtype == torch.float32 else 1e-3
        close(images * (1 - HOLE), A * (1 - HOLE), tolerance)
    hidden = torch.where(HOLE == 1, torch.rand(3, 3, 8, 8), A)  # what was there does not matter
    assert torch.equal(pipe.inpaint(hidden, HOLE, labels=label, steps=3).tensor, output.tensor)


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_an_enlargement_averages_back(pipe: sg.Pipeline, factor: int) -> None:
    small = (0.3 + 0.4 * images_of(2, 8 // factor)).mul(255).round() / 255
    for given in (None, factor):
        output = pipe.upscale(small, given, steps=3, guidance=dim)
        assert output.settings["factor"] == factor
        for images in output.trajectory:
            close(functional.avg_pool2d(images, factor), small, 1e-5)


def test_the_factor_follows_the_shorter_side(pipe: sg.Pipeline) -> None:
    assert pipe.upscale([np.zeros((4, 9)), np.zeros((7, 4))], steps=1).settings["factor"] == 2
    assert pipe.upscale(A, steps=1).settings["factor"] == 1
    close(pipe.upscale(A, steps=1).tensor, A, 1e-6)
    reduced = pipe.upscale(images_of(1, 30), 4, steps=2, guidance=dim)  # a large picture is reduced first
    assert reduced.tensor.shape == (1, 3, 8, 8)
    refuses(lambda: pipe.upscale([np.zeros((4, 4)), np.zeros((2, 2))]), "sides of 2 and 4 px", "give a factor")
    for side in (3, 5, 16):
        refuses(lambda side=side: pipe.upscale(np.zeros((side, side))), f"{side} px does not divide", "give a factor")  # type: ignore[misc]
    for factor in (3, 0, -2, 16):
        refuses(lambda factor=factor: pipe.upscale(A, factor), "divide the model's 8 px", f"{factor} does not")  # type: ignore[misc]


# errors ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda pipe: pipe.inpaint(A, torch.zeros(1, 3, 3)), "3 x 3"),
        (lambda pipe: pipe.restore(A * 255, r.Denoise()), "divide 8 bits by 255"),
        (lambda pipe: pipe.restore(A * float("nan"), r.Denoise()), "[0, 1]"),
        (lambda pipe: pipe.restore(A[:, :1], r.Denoise()), "channels"),
        (lambda pipe: pipe.restore(A, r.Grey()), "observation"),
        (lambda pipe: pipe.restore(A, r.Denoise(), noise=-1), "from 0 up"),
        (lambda pipe: pipe.restore(A, r.Denoise(), noise="loud"), "auto"),
        (lambda pipe: pipe.restore(A, r.Denoise(), noise=torch.ones(2)), "3 images"),
        (lambda pipe: pipe.restore(A, r.Denoise(), samples=0), "samples"),
        (lambda pipe: pipe.restore(A, r.Denoise(), angle=91), "angle"),
        (lambda pipe: pipe.restore(A, r.Denoise(), samples=2, step_noise=torch.zeros(3, 4, 4)), "step_noise"),
        (lambda pipe: pipe.restore([Image.new("L", (8, 8))], r.MaskedFourier(1 - HOLE[None])), "tensor"),
        (lambda pipe: pipe.restore(A, r.Denoise(), noise=0.1, scale=-1), "scale"),
        (lambda pipe: pipe.inpaint(A, HOLE, tiles=True), "task inpaint"),
        (lambda pipe: task_operator(pipe, "dejpeg", A, quality="x"), "quality"),
        (lambda pipe: degrade(A, r.Jpeg(10), 0.1, 0), "leave noise out"),
        (lambda pipe: task_operator(pipe, "sharpen", A), "deblur"),
    ],
)
def test_impossible_requests_are_refused(call: Callable[[sg.Pipeline], Any], named: str) -> None:
    refuses(lambda: call(tiny_pipeline()), named)
