"""The refiner's loss: paths, velocities, and an autoencoder that does not notice it."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from spheregen.errors import ConfigError
from spheregen.losses.autoencoder import AutoencoderLossConfig, AutoencoderObjective
from spheregen.losses.flow import FlowLossConfig, FlowObjective
from spheregen.losses.perceptual import random_perceptual
from spheregen.models.flow_refiner import RefinedGenerator
from spheregen.noise import NoiseConfig
from spheregen.sampling.flow import LEAST_REMAINDER
from tests.models.test_flow_refiner import autoencoder, refined

BOTH = frozenset({"autoencoder", "refiner"})
PIXELS = AutoencoderLossConfig(perceptual_reconstruction=0, perceptual_consistency=0)


def images(count: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    return torch.rand(count, 3, 8, 8, generator=generator) * 2 - 1, torch.arange(count) % 3


def joint(network: RefinedGenerator, loss: FlowLossConfig | None = None) -> FlowObjective:
    front = AutoencoderObjective(network.rough, PIXELS, NoiseConfig())  # type: ignore[arg-type]
    return FlowObjective(network, loss or FlowLossConfig(), NoiseConfig(), autoencoder=front)


def watched(network: RefinedGenerator, answer: object, monkeypatch: pytest.MonkeyPatch) -> list[tuple[object, ...]]:
    """Every call of the refiner, which gives `answer(x, times)`."""
    calls: list[tuple[object, ...]] = []

    def refined(x: Tensor, times: Tensor, labels: object, context: object, rough: object = None) -> Tensor:
        calls.append((x, times, labels, context, rough))
        return answer(x, times)  # type: ignore[operator, no-any-return]

    monkeypatch.setattr(network, "refined", refined)
    return calls


@pytest.mark.parametrize("learning", [BOTH, frozenset({"refiner"})], ids=["joint", "alone"])
@pytest.mark.parametrize("rho", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("rough", ["weak", "strong"])
def test_the_path_goes_from_the_rough_image_under_noise_to_the_image(
    rho: float, rough: str, learning: frozenset[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    network = refined(rho=rho)
    objective = joint(network, FlowLossConfig(rough=rough, label_dropout=0))  # type: ignore[arg-type]
    x, labels = images()
    draws = objective.draw(4, torch.Generator().manual_seed(0), learning=learning)
    # the generator in front drops labels of its own in each call
    draws = dataclasses.replace(
        draws, source=dataclasses.replace(draws.source, dropped=torch.zeros(4, 4, dtype=torch.bool))
    )
    calls = watched(network, lambda at, times: at, monkeypatch)
    objective(x, labels, draws)
    (at, _, given, context, first), *others = calls
    assert not others
    v = network.encode(x, labels)
    radius = getattr(draws.source.radii, rough)
    point = network.prior.tilt(v, draws.source.direction, radius * network.sigma_max)
    expected = network.decode(point, labels)
    torch.testing.assert_close(first, expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(context.latent, point, atol=1e-5, rtol=1e-4)  # type: ignore[attr-defined]
    t = draws.times.view(-1, 1, 1, 1)
    start = rho * draws.noise + (1 - rho) * expected
    torch.testing.assert_close(at, (1 - t) * start + t * x, atol=1e-5, rtol=1e-4)
    assert torch.equal(given, labels)  # type: ignore[arg-type]


@pytest.mark.parametrize("learning", [BOTH, frozenset({"refiner"})], ids=["joint", "alone"])
@pytest.mark.parametrize("share", [1.0, 0.5])
def test_random_points_have_nothing_to_do_with_the_image(
    share: float, learning: frozenset[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    network = refined(rho=0.3)
    objective = joint(network, FlowLossConfig(random_share=share, label_dropout=0))
    x, labels = images(8)
    draws = objective.draw(8, torch.Generator().manual_seed(0), learning=learning)
    assert draws.random.all() if share == 1 else 0 < draws.random.sum() < 8
    draws = dataclasses.replace(
        draws, source=dataclasses.replace(draws.source, dropped=torch.zeros(4, 8, dtype=torch.bool))
    )
    calls = watched(network, lambda at, times: at, monkeypatch)
    objective(x, labels, draws)
    ((at, _, _, context, rough),) = calls
    direction, radius = draws.source.direction, draws.source.radii.strong * network.sigma_max
    own = network.prior.tilt(network.encode(x, labels), direction, radius)
    point = torch.where(draws.random.view(-1, 1, 1), network.prior.project(direction), own)
    torch.testing.assert_close(context.latent, point, atol=1e-5, rtol=1e-4)  # type: ignore[attr-defined]
    expected, told = network.predict_with_context(point, labels)
    expected = network.to_image(expected).detach()
    torch.testing.assert_close(rough, expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(context.tokens, told.tokens, atol=1e-5, rtol=1e-4)  # type: ignore[attr-defined]
    t = draws.times.view(-1, 1, 1, 1)
    start = 0.3 * draws.noise + 0.7 * expected
    torch.testing.assert_close(at, (1 - t) * start + t * x, atol=1e-5, rtol=1e-4)


def test_the_loss_is_the_squared_error_of_the_velocity(monkeypatch: pytest.MonkeyPatch) -> None:
    network = refined()
    objective = joint(network)
    x, labels = images()
    draws = objective.draw(4, torch.Generator().manual_seed(0))
    draws = dataclasses.replace(draws, times=torch.tensor([0.0, 0.5, 0.97, 1.0]))
    watched(network, lambda at, times: x + 0.1, monkeypatch)
    left = torch.tensor([1.0, 0.5, LEAST_REMAINDER, LEAST_REMAINDER])
    expected = ((0.1 / left) ** 2).mean()
    torch.testing.assert_close(objective(x, labels, draws).terms["velocity"], expected, atol=1e-5, rtol=1e-4)
    watched(network, lambda at, times: x, monkeypatch)
    assert objective(x, labels, draws).total == 0  # the image itself is best at any time, near the end too


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_an_autoencoder_learns_the_same_with_a_refiner_behind_it(share: float) -> None:
    """Its terms, gradients and draws are to the bit those that it has alone."""
    network = refined()
    objective = joint(network, FlowLossConfig(random_share=share))
    alone = AutoencoderObjective(autoencoder(), PIXELS, NoiseConfig())
    x, labels = images()
    together = objective.draw(4, torch.Generator().manual_seed(0), learning=BOTH)
    separate = alone.draw(4, torch.Generator().manual_seed(0))
    found, expected = objective(x, labels, together), alone(x, labels, separate)
    assert all(torch.equal(found.terms[name], value) for name, value in expected.terms.items())
    assert {"velocity"} == found.terms.keys() - expected.terms.keys()
    found.total.backward()
    expected.total.backward()
    for (name, ours), theirs in zip(network.rough.named_parameters(), alone.model.parameters(), strict=True):
        assert ours.grad is not None and theirs.grad is not None, name
        assert torch.equal(ours.grad, theirs.grad), name
    assert all(parameter.grad is not None for parameter in network.refiner.parameters())


def test_who_rests_gets_no_gradient_and_costs_nothing() -> None:
    network = refined()
    objective = joint(network)
    x, labels = images()
    for resting, learning in (("refiner", "autoencoder"), ("rough", "refiner")):
        network.zero_grad()
        draws = objective.draw(4, torch.Generator().manual_seed(0), learning=frozenset({learning}))
        objective(x, labels, draws).total.backward()
        assert all(parameter.grad is None for parameter in getattr(network, resting).parameters())


def test_either_takes_some_of_each() -> None:
    draws = joint(refined(), FlowLossConfig(rough="either")).draw(64, torch.Generator().manual_seed(0))
    assert 16 < draws.strong.sum() < 48


def test_draws_are_the_same_in_parts() -> None:
    objective = joint(refined(), FlowLossConfig(rough="either", random_share=0.5))
    whole = objective.draw(8, torch.Generator().manual_seed(0))
    part = objective.draw(8, torch.Generator().manual_seed(0), slice(2, 5))
    sliced = whole[slice(2, 5)]
    for name in ("times", "noise", "strong", "random", "dropped"):
        assert torch.equal(getattr(part, name), getattr(sliced, name)), name
    assert torch.equal(part.source.direction, sliced.source.direction)


@pytest.mark.parametrize(("law", "mean"), [("uniform", 0.5), ("logit_normal", 0.27)])
def test_times_follow_their_law(law: str, mean: float) -> None:
    loss = FlowLossConfig(time_law=law, time_mean=-1.2, time_deviation=1.0)  # type: ignore[arg-type]
    times = loss.times(20_000, torch.Generator().manual_seed(0))
    assert ((times >= 0) & (times <= 1)).all()
    assert times.mean().item() == pytest.approx(mean, abs=0.02)


def test_dropped_labels_are_the_null_class(monkeypatch: pytest.MonkeyPatch) -> None:
    network = refined()
    objective = joint(network, FlowLossConfig(label_dropout=1.0))
    x, labels = images()
    calls = watched(network, lambda at, times: at, monkeypatch)
    objective(x, labels, objective.draw(4, torch.Generator().manual_seed(0)))
    assert torch.equal(calls[0][2], torch.full((4,), 3))  # type: ignore[arg-type]


def test_a_perceptual_term_reaches_the_refiner() -> None:
    network = refined()
    loss = FlowLossConfig(velocity=0, perceptual=1)
    objective = FlowObjective(network, loss, NoiseConfig(), random_perceptual("builtin"))
    x, labels = images()
    found = objective(x, labels, objective.draw(4, torch.Generator().manual_seed(0)))
    assert set(found.terms) == {"refined_perceptual"}
    found.total.backward()
    assert any(parameter.grad is not None and parameter.grad.any() for parameter in network.refiner.parameters())
    with pytest.raises(ConfigError, match="velocit"):
        FlowObjective(network, loss, NoiseConfig())


@pytest.mark.parametrize(
    "wrong",
    [
        {"velocity": -1},
        {"velocity": 0},
        {"label_dropout": 2},
        {"time_deviation": -1},
        {"time_mean": float("nan")},
        {"rough": "strongest"},
    ],
)
def test_impossible_settings(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        FlowLossConfig(**wrong)  # type: ignore[arg-type]


def test_a_critic_judges_predictions_from_when_it_shall() -> None:
    network = refined()
    loss = FlowLossConfig(adversarial=0.1, adversarial_start=0.5, critic_lead=0.1)
    critic = loss.new_critic(3, 8)
    objective = FlowObjective(network, loss, NoiseConfig(), critic=critic)
    x, labels = images()
    found = {}
    for progress in (0.1, 0.45, 0.6):
        draws = objective.draw(4, torch.Generator().manual_seed(0), progress=progress)
        found[progress] = objective(x, labels, draws).terms
    assert found[0.1]["critic"] == found[0.1]["adversarial"] == found[0.45]["adversarial"] == 0
    assert found[0.45]["critic"] > 0 and found[0.6]["adversarial"] != 0
    with pytest.raises(ConfigError, match="critic_features"):
        FlowObjective(network, FlowLossConfig(adversarial=0.1, critic_features=True), NoiseConfig(), critic=critic)


def test_a_plain_flow_asks_nothing_of_the_generator_in_front(monkeypatch: pytest.MonkeyPatch) -> None:
    network = refined(rho=1.0, latent_channels=0, decoder_width=0)
    objective = FlowObjective(network, FlowLossConfig(), NoiseConfig())
    monkeypatch.setattr(network, "predict_with_context", None)
    x, labels = images()
    draws = objective.draw(4, torch.Generator().manual_seed(0))
    calls = watched(network, lambda at, times: at, monkeypatch)
    found = objective(x, labels, draws)
    t = draws.times.view(-1, 1, 1, 1)
    torch.testing.assert_close(calls[0][0], (1 - t) * draws.noise + t * x)
    assert "latent" not in found.observed
