"""Degradations: closed forms equal dense solves, adjoints are adjoints, data steps minimise what they say."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as some
from torch import Tensor
from torch.nn import functional

from spheregen import restoration as r
from spheregen.errors import ConfigError
from tests.sampling.test_sampling import gaussian

SIZE, SHAPE = 8, (3, 8, 8)


def rand(*shape: int, seed: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def bits(*shape: int, seed: int) -> Tensor:
    return (rand(*shape, seed=seed) < 0.5).double()


OPERATORS: dict[str, Callable[[int], r.Operator]] = {
    "denoise": lambda seed: r.Denoise(),
    "mask": lambda seed: r.Mask(bits(1, 1, SIZE, SIZE, seed=seed)),
    "weights": lambda seed: r.Mask(rand(1, 3, SIZE, SIZE, seed=seed)),
    "grey": lambda seed: r.Grey(),
    "blur": lambda seed: r.Blur(rand(3, 5, seed=seed)),
    "a blur wider than the image": lambda seed: r.Blur(rand(1, 3, 11, 17, seed=seed)),
    "reflecting": lambda seed: r.Blur(r.gaussian_kernel(1 + seed % 3, 5), "reflect"),
    "reflecting motion": lambda seed: r.Blur(r.motion_kernel(3, 10 * seed), "reflect"),
    "subsample": lambda seed: r.Subsample(2),
    "filtered": lambda seed: r.Subsample(4, rand(3, 3, seed=seed)),
    "bicubic": lambda seed: r.Subsample.bicubic(2),
    "means": lambda seed: r.BlockMean(4),
    "dct": lambda seed: r.MaskedTransform(bits(1, 1, SIZE, SIZE, seed=seed)),
    "hadamard": lambda seed: r.MaskedTransform(bits(1, 3, SIZE, SIZE, seed=seed), "hadamard"),
    "fourier": lambda seed: r.MaskedFourier(bits(1, 1, SIZE, SIZE, seed=seed)),
    "separable": lambda seed: r.Separable(rand(1, 5, SIZE, seed=seed), rand(1, SIZE, SIZE, seed=seed + 1)),
    "functions": lambda seed: r.Linear(lambda x: 0.5 * x + x.flip(-1), lambda y: 0.5 * y + y.flip(-1)),
    "composition": lambda seed: r.BlockMean(2) @ r.Blur(r.gaussian_kernel(1)),
}
every = pytest.mark.parametrize("name", OPERATORS)
EYE = torch.eye(math.prod(SHAPE), dtype=torch.float64).view(-1, *SHAPE)


def real(y: Tensor) -> Tensor:
    flat = y.flatten(1)
    return torch.cat([flat.real, flat.imag], 1) if flat.is_complex() else flat


def gain_of_seed(seed: int) -> Tensor:
    return r.gain_of((rand(r.BINS, seed=seed) + 0.2).tolist(), (SIZE, SIZE), EYE)


def observed(operator: r.Operator, seed: int) -> tuple[Tensor, Tensor]:
    """Images of a prior, and noisy observations of others."""
    v, x = gaussian(2, *SHAPE, seed=seed).double(), gaussian(2, *SHAPE, seed=seed + 1).double()
    y = operator.A(x)
    return v, y + 0.1 * gaussian(*y.shape, seed=seed + 2).to(y.dtype)


@every
@settings(deadline=None, max_examples=4, derandomize=True)
@given(seed=some.integers(0, 1000), lam=some.sampled_from([0.05, 0.3, 1.0, 20.0]), coloured=some.booleans())
def test_the_data_step_is_the_dense_solution(name: str, seed: int, lam: float, coloured: bool) -> None:
    """(A'A + lam P) x = A'y + lam P v, P the identity or the inverse of the covariance of the prior's error."""
    if name == "separable":
        lam = max(lam, 1.0)  # conjugate gradients end before they are exact where a random matrix is nearly singular
    operator = OPERATORS[name](seed)
    v, y = observed(operator, seed)
    matrix, gain = real(operator.A(EYE)).T, gain_of_seed(seed) if coloured else None
    precision = torch.eye(len(EYE), dtype=torch.float64)
    if gain is not None:
        spread = torch.fft.irfft2(torch.fft.rfft2(EYE) * gain, s=(SIZE, SIZE)).flatten(1).T
        precision = torch.linalg.inv(spread @ spread.T)
    right = matrix.T @ real(y).T + lam * precision @ v.flatten(1).T
    expected = torch.linalg.solve(matrix.T @ matrix + lam * precision, right).T.view_as(v)
    torch.testing.assert_close(operator.prox(v, y, lam, gain), expected, atol=1e-8 if coloured else 1e-9, rtol=0)


@every
def test_adjoints_pass_the_dot_product_test(name: str) -> None:
    operator = OPERATORS[name](5)
    r.check_adjoint(operator, SHAPE, tolerance=1e-10)
    x = gaussian(2, *SHAPE).double()
    y = operator.A(gaussian(2, *SHAPE, seed=1).double())
    torch.testing.assert_close((operator.A(x) * y.conj()).real.sum(), (x * operator.A_adjoint(y)).sum())


@every
@settings(deadline=None, max_examples=3, derandomize=True)
@given(seed=some.integers(0, 1000), lam=some.floats(0.1, 10))
def test_the_data_step_is_a_minimum(name: str, seed: int, lam: float) -> None:
    operator = OPERATORS[name](seed)
    v, y = observed(operator, seed)

    def objective(x: Tensor) -> Tensor:
        return (operator.A(x) - y).abs().square().sum() + lam * (x - v).square().sum()

    x = operator.prox(v, y, lam)
    for step in (1e-3, 0.3):
        assert objective(x + step * gaussian(*x.shape, seed=seed).double()) > objective(x)
    per_image = operator.prox(v, y, torch.tensor([lam, 2 * lam], dtype=torch.float64))
    torch.testing.assert_close(per_image[0], x[0], atol=1e-9, rtol=0)
    torch.testing.assert_close(per_image[1], operator.prox(v, y, 2 * lam)[1], atol=1e-9, rtol=0)


@every
def test_gradients_types_and_batches(name: str) -> None:
    operator = OPERATORS[name](2)
    v, y = observed(operator, 2)
    asked = v.clone().requires_grad_()
    operator.prox(asked, operator.A(asked), 0.5).square().sum().backward()
    assert asked.grad is not None and asked.grad.isfinite().all() and asked.grad.any()
    single = y.to(torch.complex64 if y.is_complex() else torch.float32)
    x = operator.to(torch.float32).prox(v.float(), single, 0.5)
    assert (
        x.dtype == torch.float32 and operator.init(single).isfinite().all() and operator.init(single).shape == v.shape
    )
    torch.testing.assert_close(
        x[1:], operator.to(torch.float32).prox(v[1:].float(), single[1:], 0.5), atol=2e-5, rtol=0
    )


@pytest.mark.parametrize("border", ["circular", "reflect"])
def test_fourier_forms_agree_with_direct_convolution(border: str) -> None:
    kernel, x = rand(3, 5, seed=1), gaussian(2, *SHAPE).double()
    wide = functional.pad(x, (2, 2, 1, 1), mode="circular") if border == "circular" else x
    if border == "reflect":
        rows = torch.tensor([0, *range(8), 7])
        columns = torch.tensor([1, 0, *range(8), 7, 6])
        wide = x[..., rows, :][..., columns]
    direct = functional.conv2d(wide.flatten(0, 1)[:, None], kernel.flip(0, 1)[None, None])[:, 0].view_as(x)
    torch.testing.assert_close(r.Blur(kernel, border).A(x), direct, atol=1e-12, rtol=0)


def test_bicubic_reduction_is_that_of_others() -> None:
    x = rand(1, 1, 32, 32, seed=1)
    for factor in (2, 4):
        other = functional.interpolate(x, scale_factor=1 / factor, mode="bicubic", antialias=True)
        torch.testing.assert_close(r.Subsample.bicubic(factor).A(x)[..., 3:-3, 3:-3], other[..., 3:-3, 3:-3])


@pytest.mark.parametrize("name", ["denoise", "mask", "grey", "subsample", "means", "dct", "hadamard", "fourier"])
def test_without_noise_it_is_the_nearest_image_that_agrees(name: str) -> None:
    operator = OPERATORS[name](3)
    v, x = gaussian(2, *SHAPE).double(), gaussian(2, *SHAPE, seed=1).double()
    y = operator.A(x)
    found = operator.prox(v, y, 0)
    torch.testing.assert_close(operator.A(found), y, atol=1e-12, rtol=0)
    torch.testing.assert_close(operator.prox(found, y, 0), found, atol=1e-12, rtol=0)
    assert ((found - v) * (x - found)).sum().abs() < 1e-9  # at right angles to all that stays free


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_known_pixels_are_kept_bit_for_bit(dtype: torch.dtype) -> None:
    images, known = gaussian(3, *SHAPE).to(dtype), bits(1, 1, SIZE, SIZE, seed=4)
    soft = torch.where(known == 1, known, 0.5 * bits(1, 1, SIZE, SIZE, seed=5))
    for operator in (r.Mask(known), r.SoftMask(soft)):
        where = (operator.known == 1).expand_as(images)
        for made in (operator.init(images), operator.prox(gaussian(3, *SHAPE, seed=6).to(dtype), images, 0)):
            assert made.dtype == dtype and made.isfinite().all() and torch.equal(made[where], images[where])
    v = gaussian(3, *SHAPE, seed=6)
    operator, half = r.SoftMask(soft), (soft == 0.5).expand_as(v)
    for mixed in (operator.prox(v, images.float(), 0), operator.step(v, images.float(), 0, gain_of_seed(1).float())):
        torch.testing.assert_close(mixed[half], ((v + images.float()) / 2)[half])


def test_the_start_has_no_holes() -> None:
    images, known = gaussian(3, *SHAPE), r.box_mask(SIZE).float()
    start = r.Mask(known).init(images.where(known == 1, torch.full((), 9.0)))
    for image, whole in zip(start.flatten(0, 1), images.flatten(0, 1), strict=True):
        around, filled = whole[known[0, 0] == 1], image[known[0, 0] == 0]
        assert around.min() - 1e-5 <= filled.min() and filled.max() <= around.max() + 1e-5
    ramp = torch.arange(16.0).expand(1, 1, 16, 16)
    start = r.Subsample(2).init(r.Subsample(2).A(ramp))  # pixels lie where they were
    torch.testing.assert_close(start[..., 4:-4], ramp[..., 4:-4], atol=1e-5, rtol=0)


# boxes ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("operator", [r.Quantise(5), r.Jpeg(20), r.Jpeg(90)], ids=["levels", "jpeg 20", "jpeg 90"])
@pytest.mark.parametrize("channels", [1, 3])
def test_roundings_stay_what_was_given(operator: r.Operator, channels: int) -> None:
    x, v = (0.8 * (2 * rand(2, channels, 16, 16, seed=seed) - 1) for seed in (1, 2))
    y = operator.A(x)
    torch.testing.assert_close(operator.A(y), y)
    for lam in (0.0, 0.5, 1e3):
        inside = 0.999 * operator.prox(v, y, lam) + 0.001 * y  # off the walls of the box
        torch.testing.assert_close(operator.A(inside), y, atol=1e-6, rtol=0)
    torch.testing.assert_close(operator.prox(v, y, 0), y)
    near, far = (operator.prox(v, y, lam) for lam in (1e3, 1.0))
    assert (near - v).norm() < (far - v).norm() < (y - v).norm()


def test_jpeg_is_that_of_files() -> None:
    import io

    import numpy as np
    from PIL import Image

    x = torch.nn.functional.interpolate(rand(1, 1, 5, 5, seed=1), size=32, mode="bicubic").clamp(0, 1)
    pixels = Image.fromarray((x[0, 0] * 255).round().byte().numpy())
    file = io.BytesIO()
    pixels.save(file, "JPEG", quality=30)
    decoded = np.asarray(Image.open(file)).astype(np.float64)
    exact = torch.from_numpy(np.asarray(pixels).astype(np.float64))[None, None] / 127.5 - 1
    ours = (r.Jpeg(30).A(exact)[0, 0] + 1) * 127.5
    apart = np.abs(ours.numpy().clip(0, 255) - decoded)
    assert np.median(apart) <= 0.5 and (apart > 1.5).mean() < 0.2  # whole numbers; a tie may fall to the other side


# bad input ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: r.Blur(torch.zeros(3, 3)), "not all 0"),
        (lambda: r.Blur(torch.ones(3)), "kernel"),
        (lambda: r.Blur(torch.full((3, 3), math.nan)), "finite"),
        (lambda: r.Blur(torch.ones(3, 3), "zero"), "border"),
        (lambda: r.Mask(torch.ones(4, 4)), "mask"),
        (lambda: r.Mask(2 * torch.ones(1, 1, 4, 4)), "mask"),
        (lambda: r.Subsample(0), "factor"),
        (lambda: r.BlockMean(3).A(torch.zeros(1, 3, 8, 8)), "does not divide"),
        (lambda: r.MaskedTransform(torch.ones(1, 1, 4, 4), "wavelet"), "transform"),
        (lambda: r.MaskedTransform(torch.ones(1, 1, 6, 6), "hadamard").A(torch.zeros(1, 1, 6, 6)), "power of two"),
        (lambda: r.Jpeg(0), "quality"),
        (lambda: r.Quantise(1), "levels"),
        (lambda: r.Blur(torch.ones(3, 3)) @ r.Jpeg(9), "linear"),
        (lambda: r.from_deepinv(object()), "A_adjoint"),
        (lambda: r.gaussian_kernel(0), "above 0"),
        (lambda: r.gaussian_kernel(1, 4), "odd"),
        (lambda: r.motion_kernel(-1), "above 0"),
        (lambda: r.motion_kernel(9, math.inf), "degrees"),
        (lambda: r.Blur(torch.ones(3, 3)).prox(torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 8, 8), 0), "singular"),
        (lambda: r.Denoise().prox(torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 8, 8), math.nan), "lambda"),
        (lambda: r.check_adjoint(r.Linear(lambda x: x, lambda y: 2 * y), SHAPE), "not the adjoint"),
        (lambda: r.check_adjoint(r.Linear(lambda x: x, lambda y: y[:, :1]), SHAPE), "shape"),
        (lambda: r.check_adjoint(r.Linear(torch.abs, lambda y: y), SHAPE), "A"),
        (lambda: r.gain_of([1.0], (8, 8), EYE), "spectrum"),
    ],
)
def test_what_cannot_be_is_refused(make: Callable[[], object], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        make()


def test_a_linear_physics_of_deepinv_is_taken_as_it_is() -> None:
    """By its names alone, so that the test needs no deepinv."""
    blur = r.Blur(r.gaussian_kernel(1))
    operator = r.from_deepinv(SimpleNamespace(A=blur.A, A_adjoint=blur.A_adjoint))
    v, y = observed(blur, 3)
    torch.testing.assert_close(operator.prox(v, y, 0.3), blur.prox(v, y, 0.3), atol=1e-9, rtol=0)


# estimates ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sigma", [0.05, 0.2])
def test_the_noise_of_a_smooth_image_is_found(sigma: float) -> None:
    clean = torch.sin(torch.arange(64.0) / 9).expand(2, 3, 64, 64)
    y = clean + sigma * gaussian(2, 3, 64, 64)
    assert r.estimate_noise(y).sub(sigma).abs().max() < 0.05 * sigma
    mask = r.Mask(r.random_mask(64, missing=0.3).float())
    assert r.estimate_noise(mask.A(y), mask).sub(sigma).abs().max() < 0.1 * sigma
    with pytest.raises(ConfigError, match="deviation"):
        r.estimate_noise(y, r.MaskedFourier(torch.ones(1, 1, 64, 64)))


def test_masks_leave_out_what_they_say() -> None:
    assert r.random_mask(64, missing=0.7).eq(0).float().mean() == pytest.approx(0.7, abs=1e-3)
    assert r.box_mask(128).eq(0).sum() == 40 * 40
    assert 0.05 < r.brush_mask(64).eq(0).float().mean() < 0.6 and not r.brush_mask(64, 1).equal(r.brush_mask(64, 2))
    for kernel in (r.motion_kernel(5, 0), r.motion_kernel(1, 3), r.gaussian_kernel(2)):
        assert kernel.sum().item() == pytest.approx(1) and kernel.shape[-1] % 2
    assert r.motion_kernel(5, 0)[0, 0].sum(1).gt(1e-9).sum() == 1  # a horizontal line


@pytest.mark.parametrize(
    "operator",
    [r.Blur(r.gaussian_kernel(1.0)), r.Blur(r.gaussian_kernel(1.0), border="reflect"), r.Jpeg(30)],
    ids=["circular", "reflect", "jpeg"],
)
def test_what_a_loop_keeps_of_y_is_that_of_this_y(operator: r.Operator) -> None:
    first, second, v = (gaussian(2, 3, 16, 24, seed=seed) / 3 for seed in range(3))
    ones = [operator.prox(v, y, 0.1) for y in (first, second)]
    with torch.no_grad():
        _check_kept(operator, first, second, v, ones)


def _check_kept(operator: r.Operator, first: Tensor, second: Tensor, v: Tensor, ones: list[Tensor]) -> None:
    for _ in range(2):
        assert torch.equal(operator.prox(v, first, 0.1), ones[0])
        assert torch.equal(operator.prox(v, second, 0.1), ones[1])
    first.copy_(second)
    assert torch.equal(operator.prox(v, first, 0.1), ones[1])
    assert operator.prox(v.double(), first.double(), 0.1).dtype == torch.float64
    assert operator.prox(v[..., :16], first[..., :16], 0.1).shape[-1] == 16
    assert pickle.loads(pickle.dumps(operator)).prox(v, second, 0.1).shape == v.shape
