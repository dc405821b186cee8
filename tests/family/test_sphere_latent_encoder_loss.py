"""The objective of a latent denoiser, against its equations written out."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from spheregen.family.sphere_latent_encoder.loss import LatentDenoiserLossConfig, LatentDenoiserObjective
from spheregen.family.sphere_latent_encoder.network import LatentDenoiser
from spheregen.noise import NoiseConfig
from spheregen.sphere import spherify
from tests.family.test_sphere_latent_encoder import config, points, trained

NOISE = NoiseConfig(law="logit_normal", hard_probability=0.2)
LABELS = torch.tensor([0, 1, 2, 3, 4, 0, 1, 2])


def objective(loss: LatentDenoiserLossConfig | None = None, **changes: object) -> LatentDenoiserObjective:
    return LatentDenoiserObjective(trained(config(**changes)), loss or LatentDenoiserLossConfig(), NOISE)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def cosine(a: Tensor, b: Tensor) -> Tensor:
    return (1 - functional.cosine_similarity(a.flatten(1), b.flatten(1))).mean()


def test_the_published_loss_written_out() -> None:
    made = objective(LatentDenoiserLossConfig(label_dropout=0.0))
    z = 1.7 * points(8) + 0.3
    draws = made.draw(8, seeded())
    model, v = made.model, spherify(z)
    weak_v, strong_v = (
        spherify(v + torch.tan(angle)[:, None, None] * draws.noise) for angle in (draws.weak, draws.strong)
    )
    weak, strong = model(weak_v, LABELS), model(strong_v, LABELS)
    expected = (
        50 * (weak - z).abs().mean()
        + cosine(weak, z)
        + 25 * (strong - weak.detach()).abs().mean()
        + cosine(strong, weak.detach())
    )
    found = made.loss(z, LABELS, draws)
    torch.testing.assert_close(found.total, expected)
    # the target gives no gradient
    ours = torch.autograd.grad(found.total, list(model.parameters()))
    theirs = torch.autograd.grad(expected, list(model.parameters()))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)


class Counting(LatentDenoiser):
    samples = 0

    def forward(self, latents: Tensor, labels: object = None) -> Tensor:
        self.samples += latents.shape[0]
        assert torch.is_grad_enabled()
        return super().forward(latents, labels)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("weights", "evaluations"),
    [({}, 2), ({"consistency": 0.0, "consistency_cosine": 0.0}, 1), ({"latent_consistency": 1.0}, 3)],
)
def test_a_step_evaluates_the_denoiser_no_more_than_it_must(weights: dict[str, float], evaluations: int) -> None:
    loss = LatentDenoiserLossConfig(**weights)
    model = Counting(config())
    made = LatentDenoiserObjective(model, loss, NOISE)
    terms = made.loss(points(8), LABELS, made.draw(8, seeded()))
    assert model.samples == 8 * evaluations
    assert set(terms.terms) == {name for name, weight in loss.weights().items() if weight}


def test_parts_of_a_batch_average_to_the_whole() -> None:
    made = objective()
    draws = made.draw(8, seeded())
    whole = made.loss(points(8), LABELS, draws).total
    halves = [made.loss(points(8)[part], LABELS[part], draws[part]).total for part in (slice(0, 4), slice(4, 8))]
    torch.testing.assert_close(sum(halves) / 2, whole)


def test_the_latent_consistency_looks_at_predictions_put_back_on_the_sphere() -> None:
    made = objective(LatentDenoiserLossConfig(latent_consistency=2.0, label_dropout=0.0))
    draws = made.draw(8, seeded())
    without = dataclasses.replace(made.config, latent_consistency=0.0)
    plain = LatentDenoiserObjective(made.model, without, NOISE)
    v = spherify(points(8))
    strong_v = spherify(v + torch.tan(draws.strong)[:, None, None] * draws.noise)
    again = made.model(spherify(made.model(strong_v, LABELS)), LABELS)
    torch.testing.assert_close(
        made.loss(points(8), LABELS, draws).total - plain.loss(points(8), LABELS, draws).total,
        2 * cosine(again, points(8)),
        atol=1e-4,
        rtol=1e-4,
    )
