"""The solver: a prior step, then a data step, over and over; tiles, early ends, defaults."""

from __future__ import annotations

import copy
import itertools
import math

import pytest
import torch
from torch import Tensor

from spheregen import restoration as r
from spheregen.conditioning import Condition
from spheregen.errors import ConfigError
from spheregen.family.sphere_encoder.network import SphereAutoencoder
from spheregen.prior import Angle
from spheregen.protocol import Context, SphereGenerator
from spheregen.sampling import Guided, GuidedModel, guide, refine, restore, seeded_noise
from spheregen.sampling.restoration.tiles import tile_starts
from tests.sampling.test_sampling import IMAGES, LABELS, STEP, gaussian

HOLE = torch.ones(1, 1, 8, 8)
HOLE[..., 2:6, 3:8] = 0
SPECTRUM = [0.5 / (1 + n) for n in range(r.BINS)]
OPERATORS: dict[str, r.Operator] = {
    "mask": r.Mask(HOLE),
    "denoise": r.Denoise(),
    "blur": r.Blur(r.gaussian_kernel(1, 5).float(), "reflect"),
    "motion": r.Blur(r.motion_kernel(3, 30).float(), "reflect"),
    "circular": r.Blur(r.gaussian_kernel(1, 5).float()),
    "small": r.Subsample.bicubic(2).to(torch.float32),
    "pixels": r.Subsample(2),
    "means": r.BlockMean(2),
    "grey": r.Grey(),
    "fourier": r.MaskedFourier(HOLE),
    "hadamard": r.MaskedTransform(HOLE, "hadamard"),
    "levels": r.Quantise(6),
    "jpeg": r.Jpeg(30),
    "both": r.BlockMean(2) @ r.Blur(r.gaussian_kernel(1, 3).float()),
    "functions": r.Linear(lambda x: x.flip(-1), lambda y: y.flip(-1)),
}


class Dimmed(Guided):
    """Dims what is predicted, so that no data step leaves the range and is clamped."""

    def predict(self, v: Tensor, angle: Angle) -> tuple[Tensor, Context | None]:
        prediction, context = super().predict(v, angle)
        return 0.2 * prediction, context


def dim(model: SphereGenerator, condition: Condition) -> GuidedModel:
    return Dimmed(model, condition)


@torch.no_grad()
def test_a_step_is_a_refinement_and_a_data_step(model: SphereAutoencoder) -> None:
    operator = r.Denoise()
    y = IMAGES + 0.1 * gaussian(*IMAGES.shape)
    guided, x = guide(model, LABELS, 1.5), y
    result = restore(model, y, operator, LABELS, 3, 50.0, "decay", 0.1, guidance=1.5, step_noise=STEP)
    for t, images in enumerate(result.trajectory, 1):
        angle = math.atan((1 - t / 4) * math.tan(math.radians(50)))
        x = operator.prox(refine(guided, x, angle, STEP)[0], y, 10 * 0.1**2)  # not clamped in between
        torch.testing.assert_close(images, x.clamp(-1, 1), atol=2e-5, rtol=0)


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("spectrum", [None, SPECTRUM], ids=["white", "coloured"])
def test_every_operator_restores_and_agrees_with_what_is_known(
    either: SphereGenerator, name: str, spectrum: list[float] | None
) -> None:
    operator = OPERATORS[name]
    y = operator.A(0.3 * IMAGES)
    how = {"steps": 3, "guidance": dim, "step_noise": STEP, "spectrum": spectrum}
    result = restore(either, y, operator, LABELS, **how)  # type: ignore[arg-type]
    assert result.images.shape == IMAGES.shape and len(result.trajectory) == 3
    inside = result.images if operator.linear else 0.99 * result.images + 0.01 * y  # off the walls of a box
    first = float((operator.A(dimmed(either)) - y).abs().square().mean())
    assert float((operator.A(inside) - y).abs().square().mean()) < 0.3 * first
    noisy = restore(either, y, operator, LABELS, noise=0.5, **how)  # type: ignore[arg-type]
    assert noisy.images.isfinite().all() and torch.equal(noisy.images, result.images) != operator.linear


@pytest.mark.parametrize("name", OPERATORS)
def test_observations_in_bf16_are_restored_in_float32(model: SphereAutoencoder, name: str) -> None:
    narrow = copy.deepcopy(model).to(torch.bfloat16)
    y = OPERATORS[name].A(0.3 * IMAGES)
    y = y if y.is_complex() else y.bfloat16()
    result = restore(narrow, y, OPERATORS[name], LABELS, 2, noise=0.1, step_noise=STEP, spectrum=SPECTRUM)
    assert result.images.dtype == torch.float32 and result.images.isfinite().all()


def dimmed(model: SphereGenerator) -> Tensor:
    with torch.no_grad():
        return 0.2 * model.decode(model.prior.project(STEP), LABELS)


@pytest.mark.parametrize("name", OPERATORS)
def test_a_batch_equals_its_images_one_by_one(model: SphereAutoencoder, name: str) -> None:
    operator, deviations = OPERATORS[name], torch.tensor([0.05, 0.1, 0.2])
    y = operator.A(IMAGES)
    together = restore(model, y, operator, LABELS, 2, noise=deviations, spectrum=SPECTRUM, step_noise=STEP).images
    for i in range(3):
        one = slice(i, i + 1)
        how = {"noise": deviations[one], "spectrum": SPECTRUM, "step_noise": STEP[one]}
        alone = restore(model, y[one], operator[one], LABELS[one], 2, **how).images  # type: ignore[arg-type]
        torch.testing.assert_close(together[one], alone, atol=2e-5, rtol=0)


@pytest.mark.parametrize("spectrum", [None, SPECTRUM], ids=["white", "coloured"])
@pytest.mark.parametrize("name", [name for name, operator in OPERATORS.items() if operator.linear])
def test_results_end_as_far_from_y_as_is_wanted(
    model: SphereAutoencoder, name: str, spectrum: list[float] | None
) -> None:
    """Of each image in units of its own noise; one without noise is as before, whatever the others have."""
    operator, noise = OPERATORS[name], torch.tensor([0.05, 0.0, 0.1])
    y = operator.A(0.1 * IMAGES)
    y = y + 0.02 * gaussian(*y.shape).to(y.real.dtype)
    y = y * (operator.known > 0) if isinstance(operator, r.Mask) else y
    how = {"steps": 2, "noise": noise, "step_noise": STEP, "spectrum": spectrum}
    x = restore(model, y, operator, LABELS, discrepancy=0.95, **how).images  # type: ignore[arg-type]
    plain = restore(model, y, operator, LABELS, **how).images  # type: ignore[arg-type]
    restore(model, y, operator, LABELS, discrepancy=1e-6, **how)  # type: ignore[arg-type]  # more than can be had
    residual = operator.residual(x, y)
    for i in (0, 2):
        reached = float(residual[i]) / (0.95 * float(noise[i]))
        # as wanted, but for y that no image in range comes so near to
        exact = restore(model, y, operator, LABELS, lam=operator.least_lambda, **how).images  # type: ignore[arg-type]
        nearest = float(operator.residual(exact, y)[i]) / (0.95 * float(noise[i]))
        assert reached <= max(1.02, 1.02 * nearest)
        assert reached >= 0.98
    torch.testing.assert_close(x[1], plain[1], atol=1e-6, rtol=0)


def test_an_end_before_the_last_step(model: SphereAutoencoder) -> None:
    """An image is held as soon as the prior's own agrees with y; it does not matter what the others do."""
    seen: list[int] = []
    y, noise = IMAGES.clone(), torch.tensor([9.0, 1e-3, 9.0])
    how = {"steps": 4, "step_noise": STEP, "noise": noise}
    result = restore(model, y, r.Denoise(), LABELS, stop=1.0, callback=lambda t, *_: seen.append(t), **how)  # type: ignore[arg-type]
    assert seen == [1, 2, 3, 4]
    whole = restore(model, y, r.Denoise(), LABELS, **how)  # type: ignore[arg-type]
    assert torch.equal(result.images[[0, 2]], whole.trajectory[0][[0, 2]])  # held after the first
    assert torch.equal(result.images[1], whole.images[1])
    seen.clear()
    how["noise"] = torch.full((3,), 9.0)
    assert len(restore(model, y, r.Denoise(), LABELS, stop=1.0, **how).trajectory) == 1  # type: ignore[arg-type]


def test_tiles_cover_large_images_evenly(model: SphereAutoencoder) -> None:
    for length in (8, 9, 15, 16, 40):
        starts = tile_starts(length, 8)
        assert starts[0] == 0 and starts[-1] == length - 8
        assert all(0 < b - a <= 4 for a, b in itertools.pairwise(starts))
    y = torch.rand((2, 3, 13, 20), generator=torch.Generator().manual_seed(1)) * 2 - 1
    tiles = len(tile_starts(13, 8)) * len(tile_starts(20, 8))
    mask = r.Mask(torch.ones(1, 1, 13, 20).index_fill(3, torch.arange(6, 9), 0))
    noise = seeded_noise([3, 4], (tiles, *model.latent_shape), 2, share=False).steps
    rows = [each.flatten(0, 1) for each in noise]
    result = restore(model, mask.A(y), mask, LABELS[:2], steps=2, step_noise=rows)
    assert result.images.shape == y.shape
    where = (mask.known == 1).expand_as(y)
    assert torch.equal(result.images[where], y[where]) and not torch.equal(result.images, y)
    alone = restore(model, mask.A(y)[1:], mask, LABELS[1:2], steps=2, step_noise=[each[tiles:] for each in rows])
    torch.testing.assert_close(alone.images, result.images[1:], atol=2e-5, rtol=0)


def test_the_spectrum_of_an_error_is_measured(model: SphereAutoencoder) -> None:
    spectrum = r.measure_spectrum(model, IMAGES, LABELS, 0.0)
    assert len(spectrum) == r.BINS and min(spectrum) > 0
    with torch.no_grad():
        error = IMAGES - model(IMAGES, LABELS)
    drawn = r.gain_of(spectrum, (8, 8), error)
    whole = drawn.square()[:, 1:4].sum() * 2 + drawn.square()[:, [0, 4]].sum()
    assert whole.item() / 64 == pytest.approx(error.square().mean().item(), rel=0.05)  # Parseval


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"angle": 91}, "angle"),
        ({"noise": -1.0}, "noise"),
        ({"noise": math.nan}, "noise"),
        ({"stop": 1.0}, "give noise"),
        ({"stop": -1.0, "noise": 0.1}, "stop"),
        ({"discrepancy": -1.0, "noise": 0.1}, "discrepancy"),
        ({"steps": 0}, "steps"),
        ({"lam": -1.0}, "lambda"),
        ({"start": IMAGES[:1]}, "start"),
        ({"spectrum": [1.0]}, "spectrum"),
    ],
)
def test_options_that_cannot_be_are_refused(model: SphereAutoencoder, options: dict[str, float], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        restore(model, IMAGES, r.Denoise(), LABELS, **{"steps": 2, **options})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("y", "operator", "named"),
    [
        (IMAGES, r.Grey(), "observation"),
        (IMAGES, r.Mask(torch.ones(1, 1, 4, 4)), "4 x 4"),
        (IMAGES[:, :1], r.Denoise(), "channels"),
        (IMAGES[..., :4], r.Denoise(), "smaller"),
        (IMAGES, r.Linear(lambda x: x, lambda y: 2 * y), "adjoint"),
    ],
)
def test_observations_that_cannot_be_are_refused(
    model: SphereAutoencoder, y: Tensor, operator: r.Operator, named: str
) -> None:
    with pytest.raises(ConfigError, match=named):
        restore(model, y, operator, LABELS, steps=1)
