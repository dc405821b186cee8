"""The refiner's loss: paths, velocities, and an autoencoder that does not notice it."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from torch import Tensor

from spheregen.errors import ConfigError
from spheregen.family.sphere_encoder.loss import AutoencoderLossConfig, AutoencoderObjective
from spheregen.family.sphere_flow.loss import FlowLossConfig, FlowNoise, FlowObjective, Teacher
from spheregen.family.sphere_flow.network import RefinedGenerator
from spheregen.fitted import fit_prior
from spheregen.networks.perceptual import random_perceptual
from spheregen.noise import NoiseConfig
from spheregen.sampling.flow import LEAST_REMAINDER, Refinement, refine_samples
from spheregen.sampling.loop import sample
from tests.family.test_sphere_flow import autoencoder, refined

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
@pytest.mark.parametrize(("rho", "rough"), [(0.0, "weak"), (0.3, "strong"), (1.0, "weak")])
def test_the_path_goes_from_the_rough_image_under_noise_to_the_image(
    rho: float, rough: str, learning: frozenset[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    network = refined(rho=rho)
    objective = joint(network, FlowLossConfig(rough=rough, label_dropout=0))  # type: ignore[arg-type]
    x, labels = images()
    objective.learning_at = lambda progress: learning
    draws = objective.draw(4, torch.Generator().manual_seed(0))
    # the generator in front drops labels of its own in each call
    draws = dataclasses.replace(
        draws, source=dataclasses.replace(draws.source, dropped=torch.zeros(4, 4, dtype=torch.bool))
    )
    calls = watched(network, lambda at, times: at, monkeypatch)
    objective.loss(x, labels, draws)
    (at, _, given, context, first), *others = calls
    assert not others
    v = network.encode(x, labels)
    point = network.prior.perturb(v, draws.source.noise, getattr(draws.source, rough))
    expected = network.decode(point, labels)
    torch.testing.assert_close(first, expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(context.latent, point, atol=1e-5, rtol=1e-4)  # type: ignore[attr-defined]
    t = draws.times.view(-1, 1, 1, 1)
    start = rho * draws.noise + (1 - rho) * expected
    torch.testing.assert_close(at, (1 - t) * start + t * x, atol=1e-5, rtol=1e-4)
    assert torch.equal(given.index, labels)  # type: ignore[attr-defined]


@pytest.mark.parametrize("learning", [BOTH, frozenset({"refiner"})], ids=["joint", "alone"])
@pytest.mark.parametrize("share", [1.0, 0.5])
def test_random_points_have_nothing_to_do_with_the_image(
    share: float, learning: frozenset[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    network = refined(rho=0.3)
    objective = joint(network, FlowLossConfig(random_share=share, label_dropout=0))
    x, labels = images(8)
    objective.learning_at = lambda progress: learning
    draws = objective.draw(8, torch.Generator().manual_seed(0))
    assert draws.random.all() if share == 1 else 0 < draws.random.sum() < 8
    draws = dataclasses.replace(
        draws, source=dataclasses.replace(draws.source, dropped=torch.zeros(8, 4, dtype=torch.bool))
    )
    calls = watched(network, lambda at, times: at, monkeypatch)
    objective.loss(x, labels, draws)
    ((at, _, _, context, rough),) = calls
    noise = draws.source.noise
    own = network.prior.perturb(network.encode(x, labels), noise, draws.source.strong)
    point = torch.where(draws.random.view(-1, 1, 1), network.prior.project(noise), own)
    torch.testing.assert_close(context.latent, point, atol=1e-5, rtol=1e-4)  # type: ignore[attr-defined]
    expected, told = network.predict_with_context(point, labels)
    expected = network.to_image(expected).detach()
    torch.testing.assert_close(rough, expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(context.tokens, told.tokens, atol=1e-5, rtol=1e-4)  # type: ignore[attr-defined]
    t = draws.times.view(-1, 1, 1, 1)
    start = 0.3 * draws.noise + 0.7 * expected
    torch.testing.assert_close(at, (1 - t) * start + t * x, atol=1e-5, rtol=1e-4)


def test_random_points_may_lie_where_the_codes_of_the_source_are(monkeypatch: pytest.MonkeyPatch) -> None:
    network = refined(rho=0.3)
    loss = FlowLossConfig(random_share=1, random_prior="fitted", label_dropout=0)
    with pytest.raises(ConfigError, match="fit-prior"):
        FlowObjective(network, loss, NoiseConfig())
    x, labels = images(8)
    network.fitted = fit_prior(network.encode(x, labels), labels, network.num_classes)
    with pytest.raises(ConfigError, match="source"):
        joint(network, loss)
    objective = FlowObjective(network, loss, NoiseConfig())
    draws = objective.draw(8, torch.Generator().manual_seed(0))
    calls = watched(network, lambda at, times: at, monkeypatch)
    objective.loss(x, labels, draws)
    ((_, _, _, context, _),) = calls
    weights = network.fitted.embed_labels(None)[labels]
    point = network.prior.project(network.fitted.draw(draws.source.noise, weights))
    torch.testing.assert_close(context.latent, point, atol=1e-5, rtol=1e-4)  # type: ignore[attr-defined]


def test_the_loss_is_the_squared_error_of_the_velocity(monkeypatch: pytest.MonkeyPatch) -> None:
    network = refined()
    objective = joint(network)
    x, labels = images()
    draws = objective.draw(4, torch.Generator().manual_seed(0))
    draws = dataclasses.replace(draws, times=torch.tensor([0.0, 0.5, 0.97, 1.0]))
    watched(network, lambda at, times: x + 0.1, monkeypatch)
    left = torch.tensor([1.0, 0.5, LEAST_REMAINDER, LEAST_REMAINDER])
    expected = ((0.1 / left) ** 2).mean()
    torch.testing.assert_close(objective.loss(x, labels, draws).terms["velocity"], expected, atol=1e-5, rtol=1e-4)
    watched(network, lambda at, times: x, monkeypatch)
    assert objective.loss(x, labels, draws).total == 0  # the image itself is best at any time, near the end too


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_an_autoencoder_learns_the_same_with_a_refiner_behind_it(share: float) -> None:
    """Its terms, gradients and draws are to the bit those that it has alone."""
    network = refined()
    objective = joint(network, FlowLossConfig(random_share=share))
    alone = AutoencoderObjective(autoencoder(), PIXELS, NoiseConfig())
    x, labels = images()
    objective.learning_at = lambda progress: BOTH
    together = objective.draw(4, torch.Generator().manual_seed(0))
    separate = alone.draw(4, torch.Generator().manual_seed(0))
    found, expected = objective.loss(x, labels, together), alone.loss(x, labels, separate)
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
        objective.learning_at = lambda progress, part=learning: frozenset({part})
        network.zero_grad()
        draws = objective.draw(4, torch.Generator().manual_seed(0))
        objective.loss(x, labels, draws).total.backward()
        assert all(parameter.grad is None for parameter in getattr(network, resting).parameters())


def test_draws_are_the_same_in_parts() -> None:
    objective = joint(refined(), FlowLossConfig(rough="either", random_share=0.5))
    whole = objective.draw(8, torch.Generator().manual_seed(0))
    part = objective.draw(8, torch.Generator().manual_seed(0), slice(2, 5))
    sliced = whole[slice(2, 5)]
    for name in ("times", "noise", "strong", "random", "dropped"):
        assert torch.equal(getattr(part, name), getattr(sliced, name)), name
    assert torch.equal(part.source.noise, sliced.source.noise)


# a teacher --------------------------------------------------------------------------------------------------------

ONE_STEP = FlowLossConfig(random_share=1, start_share=1, label_dropout=0)


def drawn(objective: FlowObjective, count: int = 4) -> FlowNoise:
    return objective.draw(count, torch.Generator().manual_seed(0))


def student_of(network: RefinedGenerator) -> RefinedGenerator:
    return RefinedGenerator(network.source, copy.deepcopy(network.refiner))


@pytest.mark.parametrize(("solver", "perceptual"), [("euler", False), ("heun", True)])
def test_it_learns_what_sampling_makes(solver: str, perceptual: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    network = refined(rho=0.4)
    how = Refinement(3, solver, guidance=1.5)
    loss = dataclasses.replace(ONE_STEP, perceptual=float(perceptual))
    student = student_of(network)
    provider = random_perceptual("builtin") if perceptual else None
    objective = FlowObjective(student, loss, NoiseConfig(), provider, teacher=Teacher(network, how, guidance=2.0))
    x, labels = images()
    draws = drawn(objective)
    samples = sample(network, draws.source.noise, labels, steps=1, guidance=2.0)
    expected = refine_samples(network, samples, labels, how, draws.noise)
    calls = watched(student, lambda at, times: expected.images, monkeypatch)
    found = objective.loss(x, labels, draws)
    ((at, times, given, context, of),) = calls
    torch.testing.assert_close(at, 0.4 * draws.noise + 0.6 * samples.images)
    torch.testing.assert_close(of, samples.images)
    assert not times.any() and torch.equal(given.index, labels)  # type: ignore[attr-defined]
    assert samples.context is not None
    torch.testing.assert_close(context.latent, samples.context.latent)  # type: ignore[attr-defined]
    torch.testing.assert_close(context.tokens, samples.context.tokens)  # type: ignore[attr-defined]
    assert all(value.item() == pytest.approx(0, abs=1e-5) for value in found.terms.values())
    assert len(found.terms) == 1 + perceptual


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_a_refiner_learns_nothing_from_itself(share: float) -> None:
    network = refined(rho=0.4)
    student = student_of(network)
    loss = dataclasses.replace(ONE_STEP, random_share=share)

    def gradient(steps: int) -> float:
        objective = FlowObjective(student, loss, NoiseConfig(), teacher=Teacher(network, Refinement(steps)))
        student.zero_grad()
        x, labels = images()
        objective.loss(x, labels, drawn(objective)).total.backward()
        assert all(parameter.grad is None for parameter in network.parameters())
        return sum(each.grad.abs().sum().item() for each in student.refiner.parameters() if each.grad is not None)

    with torch.no_grad():  # images within [-1, 1], to which the end of a flow is clamped
        for each in (network, student):
            for parameter in each.refiner.head.parameters():
                parameter.mul_(0.05)
    assert gradient(1) < 1e-6 < gradient(4)


def test_some_begin_at_the_start_and_nothing_else_changes() -> None:
    network = refined()
    half = drawn(FlowObjective(network, FlowLossConfig(start_share=0.5), NoiseConfig()), 64)
    none = drawn(FlowObjective(network, FlowLossConfig(), NoiseConfig()), 64)
    begin = half.times == 0
    assert 16 < begin.sum() < 48 and (none.times > 0).all()
    assert torch.equal(half.times[~begin], none.times[~begin])
    assert torch.equal(half.noise, none.noise)
    with pytest.raises(ConfigError, match="start_share"):
        FlowLossConfig(start_share=1.5)


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"rho": 0.5}, "rho"), ({"num_classes": 0}, "num_classes"), ({"decoder_width": 0}, "decoder_width")],
)
def test_who_cannot_learn_from_it_is_refused(changes: dict[str, object], words: str) -> None:
    network = refined(rho=0.4)
    other = refined(network.source, **{"rho": 0.4, **changes})
    with pytest.raises(ConfigError, match=words):
        FlowObjective(other, FlowLossConfig(), NoiseConfig(), teacher=Teacher(network, Refinement(2)))


def test_the_critic_sees_the_images_of_the_data() -> None:
    network = refined()
    loss = FlowLossConfig(adversarial=0.1, adversarial_start=0, critic_lead=0)
    seen: list[Tensor] = []
    critic = loss.new_critic(3, 8)
    critic.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))  # type: ignore[union-attr]
    teacher = Teacher(network, Refinement(2))
    objective = FlowObjective(student_of(network), loss, NoiseConfig(), critic=critic, teacher=teacher)
    x, labels = images()
    objective.loss(x, labels, drawn(objective))
    assert any(len(each) >= 4 and torch.allclose(each[:4], (x + 1) / 2) for each in seen)
