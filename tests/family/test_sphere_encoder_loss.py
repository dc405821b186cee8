"""The training objective: which terms are computed, where gradients go, and that micro-batches add up."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from spheregen.errors import ConfigError
from spheregen.family import ConvolutionalAutoencoder, ConvolutionalConfig
from spheregen.family.sphere_encoder.loss import AutoencoderLossConfig, AutoencoderObjective
from spheregen.family.sphere_encoder.network import ImageAutoencoder, SphereAutoencoder
from spheregen.family.terms import LossTerms, latent_distance, pixel_distance
from spheregen.family.uniformity import hyperspherical_energy, sliced_wasserstein
from spheregen.networks.perceptual import Features, PerceptualLoss
from spheregen.noise import NoiseConfig
from spheregen.prior import GAUSSIAN
from spheregen.sphere import spherify
from tests.sampling.test_sampling import model_of as small_model

TERMS = (
    "pixel_reconstruction",
    "perceptual_reconstruction",
    "pixel_consistency",
    "perceptual_consistency",
    "latent_consistency",
)
NONE = dict.fromkeys(TERMS, 0.0)


class CountingPerceptual(PerceptualLoss):
    """Squared differences of pixels and of their local means; remembers what it was asked for."""

    name = "counting"

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[Tensor] = []

    def features(self, images: Tensor) -> Features:
        self.asked.append(images)
        return images, torch.nn.functional.avg_pool2d(images, 2)

    def distance(self, a: Features, b: Features) -> Tensor:
        return torch.stack([(x - y).square().flatten(1).mean(1) for x, y in zip(a, b, strict=True)]).sum(0)


def model_of(classes: int = 3, **options: Any) -> SphereAutoencoder:
    return small_model(classes, **options).train()


def objective_of(
    model: ImageAutoencoder | None = None, perceptual: PerceptualLoss | None = None, **options: Any
) -> AutoencoderObjective:
    noise = options.pop("noise", NoiseConfig())
    return AutoencoderObjective(model or model_of(), AutoencoderLossConfig(**options), noise, perceptual)


def batch_of(model: SphereAutoencoder, batch: int = 4) -> tuple[Tensor, Tensor | None]:
    images = torch.rand((batch, 3, 8, 8), generator=torch.Generator().manual_seed(2)) * 2 - 1
    return images, torch.arange(batch) % model.num_classes if model.num_classes else None


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def run(objective: AutoencoderObjective, batch: int = 4, seed: int = 0) -> LossTerms:
    images, labels = batch_of(objective.model, batch)
    return objective.loss(images, labels, objective.draw(batch, seeded(seed)))


def gradients(model: SphereAutoencoder, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


# terms ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [0, 3])
def test_the_total_is_the_weighted_sum_of_the_named_terms(classes: int) -> None:
    weights = dict(zip(TERMS, (25.0, 2.0, 3.0, 0.7, 0.1), strict=True))
    result = run(objective_of(model_of(classes), CountingPerceptual(), **weights))
    assert set(result.terms) == set(TERMS)
    expected = sum(weights[name] * value for name, value in result.terms.items())
    torch.testing.assert_close(result.total, expected)
    assert all(value.ndim == 0 and not value.requires_grad and value > 0 for value in result.terms.values())
    assert result.total.requires_grad


def test_the_terms_by_their_formulas() -> None:
    model = model_of()
    objective = objective_of(model, CountingPerceptual())
    assert objective.perceptual is not None
    images, labels = batch_of(model)
    draws = objective.draw(4, seeded())
    draws = dataclasses.replace(draws, dropped=torch.zeros(4, 4, dtype=torch.bool))
    result = objective.loss(images, labels, draws)
    z = model.encoder(images, labels)
    weak, strong = (
        model.decoder(spherify(spherify(z) + torch.tan(angle)[:, None, None] * draws.noise), labels)
        for angle in (draws.weak, draws.strong)
    )
    x, u, w = (images + 1) / 2, (weak + 1) / 2, (strong + 1) / 2
    expected = {
        "pixel_reconstruction": 0.5 * (u - x).square().mean(),
        "perceptual_reconstruction": objective.perceptual(u, x),
        "pixel_consistency": 0.5 * (w - u).square().mean(),
        "perceptual_consistency": objective.perceptual(w, u),
        "latent_consistency": 1
        - torch.nn.functional.cosine_similarity(model.encoder(strong, labels).flatten(1), z.flatten(1)).mean(),
    }
    for name, value in expected.items():
        torch.testing.assert_close(result.terms[name], value.detach(), rtol=1e-5, atol=1e-6)


def test_perceptual_terms_can_compare_smaller_images() -> None:
    config = ConvolutionalConfig(image_size=16, width=8, embedding=8, latent_channels=6)
    images = torch.rand((4, 3, 16, 16), generator=seeded()) * 2 - 1
    asked = {}
    for scale in (1, 2):
        torch.manual_seed(0)
        perceptual = CountingPerceptual()
        objective = objective_of(ConvolutionalAutoencoder(config), perceptual, perceptual_scale=scale)
        objective.loss(images, None, objective.draw(4, seeded()))
        asked[scale] = perceptual.asked
    for large, small in zip(asked[1], asked[2], strict=True):
        torch.testing.assert_close(torch.nn.functional.avg_pool2d(large, 2), small)
    objective_of(model_of(image_size=4, patch_size=2))  # nothing is compared that is too small
    for scale, said in ((0, "at least 1"), (3, "does not divide"), (4, "8 px or more")):
        with pytest.raises(ConfigError, match=said):
            objective_of(ConvolutionalAutoencoder(config), perceptual_scale=scale)


def calls_of(module: torch.nn.Module) -> list[int]:
    """The batch size of every forward call, from now on."""
    calls: list[int] = []
    module.register_forward_hook(lambda _, arguments, __: calls.append(arguments[0].shape[0]))
    return calls


@pytest.mark.parametrize(("weight", "calls"), [(0.1, [4, 4]), (0.0, [4])])
def test_without_latent_consistency_nothing_is_encoded_again(weight: float, calls: list[int]) -> None:
    model = model_of()
    encoded, decoded = calls_of(model.encoder), calls_of(model.decoder)
    run(objective_of(model, latent_consistency=weight))
    assert encoded == calls
    assert decoded == [8]  # both halves in one batch


# gradients ------------------------------------------------------------------------------------------------------------


def decoded_gradient(objective: AutoencoderObjective) -> tuple[Tensor, Tensor]:
    """The gradient of the total with respect to the weak and the strong half of the joint decode."""
    seen: list[Tensor] = []
    hook = objective.model.decoder.register_forward_hook(lambda _, __, output: seen.append(output))
    total = run(objective).total
    hook.remove()
    (gradient,) = torch.autograd.grad(total, seen)
    weak, strong = gradient.chunk(2)
    return weak, strong


TINY = 1e-12  # a reconstruction weight that must be positive, but shall not count


@pytest.mark.parametrize("term", ["pixel_consistency", "perceptual_consistency"])
def test_the_target_of_consistency_is_detached(term: str) -> None:
    weights = {**NONE, "pixel_reconstruction": TINY, term: 1.0}
    weak, strong = decoded_gradient(objective_of(perceptual=CountingPerceptual(), **weights))
    assert weak.abs().max() < 1e-9
    assert strong.abs().max() > 1e-5


@pytest.mark.parametrize("term", ["pixel_reconstruction", "perceptual_reconstruction"])
def test_reconstruction_teaches_the_weak_half_alone(term: str) -> None:
    weak, strong = decoded_gradient(objective_of(perceptual=CountingPerceptual(), **{**NONE, term: 1.0}))
    assert weak.abs().max() > 1e-5
    assert torch.equal(strong, torch.zeros_like(strong))


def test_the_target_of_latent_consistency_is_detached() -> None:
    """With the decoder's output cut off from its input, the first encoding gets nothing from this term."""
    model = model_of()
    objective = objective_of(model, **{**NONE, "pixel_reconstruction": TINY, "latent_consistency": 1.0})
    seen: list[Tensor] = []
    model.encoder.register_forward_hook(lambda _, __, output: seen.append(output))
    model.decoder.register_forward_pre_hook(lambda _, arguments: (arguments[0].detach(), *arguments[1:]))
    total = run(objective).total
    first, again = torch.autograd.grad(total, seen, allow_unused=True)
    assert first is None or first.abs().max() < 1e-9
    assert again.abs().max() > 1e-5


@pytest.mark.parametrize("classes", [0, 3])
def test_every_parameter_learns(classes: int) -> None:
    model = model_of(classes)
    objective = objective_of(model, CountingPerceptual(), label_dropout=0.5)
    grads = gradients(model, run(objective, batch=8).total)
    assert set(grads) == {name for name, _ in model.named_parameters()}
    assert all(grad.isfinite().all() and grad.abs().sum() > 0 for grad in grads.values())


# random draws ---------------------------------------------------------------------------------------------------------


def test_each_process_draws_its_rows_of_the_same_global_batch() -> None:
    objective = objective_of(label_dropout=0.5)
    whole = objective.draw(9, seeded(5))
    assert whole.noise.shape == (9, 4, 4) and whole.dropped.shape == (9, 4)
    for rows in (slice(0, 3), slice(3, 6), slice(0, 9)):
        ours, theirs = objective.draw(9, seeded(5), rows), whole[rows]
        for name in ("strong", "weak", "noise", "dropped"):
            assert torch.equal(getattr(ours, name), getattr(theirs, name))
    assert torch.equal(run(objective, seed=3).total, run(objective, seed=3).total)
    assert not torch.equal(run(objective, seed=3).total, run(objective, seed=4).total)


@pytest.mark.parametrize("classes", [0, 3])
def test_the_losses_of_equal_slices_average_to_the_whole(classes: int) -> None:
    objective = objective_of(model_of(classes), label_dropout=0.3)
    images, labels = batch_of(objective.model, 8)
    draws = objective.draw(8, seeded())
    whole = objective.loss(images, labels, draws)
    parts = [
        objective.loss(images[part], None if labels is None else labels[part], draws[part])
        for part in (slice(0, 4), slice(4, 8))
    ]
    torch.testing.assert_close((parts[0].total + parts[1].total) / 2, whole.total, atol=1e-6, rtol=1e-6)
    for name, value in whole.terms.items():
        torch.testing.assert_close((parts[0].terms[name] + parts[1].terms[name]) / 2, value, atol=1e-6, rtol=1e-6)


# parts ----------------------------------------------------------------------------------------------------------------


def test_pixel_distance_is_half_the_square_up_to_one() -> None:
    a, b = torch.rand(2, 3, 4, 4), torch.rand(2, 3, 4, 4)
    torch.testing.assert_close(pixel_distance(a, b), 0.5 * (a - b).square().mean())
    torch.testing.assert_close(pixel_distance(torch.full((1,), 3.0), torch.zeros(1)), torch.tensor(2.5))


def test_latent_distance_is_of_whole_latents() -> None:
    a, b = torch.randn(3, 5, 4), torch.randn(3, 5, 4)
    cosines = [float((x * y).sum() / (x.norm() * y.norm())) for x, y in zip(a, b, strict=True)]
    assert latent_distance(a, b).item() == pytest.approx(1 - sum(cosines) / 3, abs=1e-6)
    assert latent_distance(a, 7 * a).item() == pytest.approx(0, abs=1e-6)
    assert latent_distance(a, -a).item() == pytest.approx(2, abs=1e-6)
    assert latent_distance(a.bfloat16(), b.bfloat16()).dtype == torch.float32


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        *(({name: -0.1}, f"loss.{name}") for name in (*TERMS, "uniformity")),
        ({"pixel_reconstruction": 0.0, "perceptual_reconstruction": 0.0}, "reconstruction term"),
        ({"label_dropout": 1.5}, "label_dropout"),
        ({"uniformity_kind": "enrgy"}, "'energy'"),
        ({"uniformity_projections": 0}, "uniformity_projections"),
        ({"uniformity_exponent": 3.0}, "uniformity_exponent"),
        ({"uniformity_exponent": float("nan")}, "uniformity_exponent"),
    ],
)
def test_impossible_weights_are_refused(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        AutoencoderLossConfig(**options)


# uniformity and the prior ---------------------------------------------------------------------------------------------

each_kind = pytest.mark.parametrize("kind", ["sliced_wasserstein", "energy"])


@each_kind
def test_uniformity_is_a_sixth_term_of_the_clean_latents(kind: str) -> None:
    model = model_of()
    objective = objective_of(model, uniformity=0.3, uniformity_kind=kind, label_dropout=0.0)
    result, plain = run(objective), run(objective_of(model, label_dropout=0.0))
    assert set(result.terms) == {*plain.terms, "uniformity"}
    torch.testing.assert_close(result.total, plain.total + 0.3 * result.terms["uniformity"])
    images, labels = batch_of(model)
    z, projections = model.encoder(images, labels), objective.draw(4, seeded()).projections
    expected = hyperspherical_energy(z, 1.0) if kind == "energy" else sliced_wasserstein(z, projections)
    torch.testing.assert_close(result.terms["uniformity"], expected.detach())


def test_projections_are_drawn_only_for_their_term_and_change_no_other_draw() -> None:
    plain = objective_of().draw(6, seeded(3))
    assert plain.projections is None and objective_of(uniformity_projections=7).draw(6, seeded(3)).projections is None
    assert objective_of(uniformity=1.0, uniformity_kind="energy").draw(6, seeded(3)).projections is None
    objective = objective_of(uniformity=1.0, uniformity_projections=7)
    draws = objective.draw(6, seeded(3))
    assert draws.projections is not None and draws.projections.shape == (7, 16)
    for name in ("strong", "weak", "noise", "dropped"):
        assert torch.equal(getattr(draws, name), getattr(plain, name))
    for part in (draws[2:4], objective.draw(6, seeded(3), slice(2, 4))):  # the same for all parts of a batch
        assert part.projections is not None and torch.equal(part.projections, draws.projections)


def test_a_gaussian_model_decodes_latents_mixed_with_noise() -> None:
    model = model_of(prior="gaussian")
    objective = objective_of(model, label_dropout=0.0, uniformity=0.1)
    seen: list[Tensor] = []
    hook = model.decoder.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    result = run(objective)
    hook.remove()
    images, labels = batch_of(model)
    z, draws = model.encoder(images, labels), objective.draw(4, seeded())
    for part, angles in zip(seen[0].chunk(2), (draws.weak, draws.strong), strict=True):
        angle = angles[:, None, None]
        torch.testing.assert_close(part, angle.cos() * z + angle.sin() * draws.noise, rtol=1e-4, atol=1e-5)
    expected = sliced_wasserstein(z, draws.projections, prior=GAUSSIAN)
    torch.testing.assert_close(result.terms["uniformity"], expected.detach())
    assert not torch.allclose(expected, sliced_wasserstein(z, draws.projections), rtol=1e-2)
