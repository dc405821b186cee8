"""A refiner that learns another one's images: from the same rough images and noise as in sampling, to the same ends."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from torch import Tensor

from spheregen.errors import ConfigError
from spheregen.losses.flow import FlowDraws, FlowLossConfig, FlowObjective
from spheregen.losses.perceptual import random_perceptual
from spheregen.losses.teacher import Teacher
from spheregen.models.flow_refiner import RefinedGenerator
from spheregen.noise import NoiseConfig
from spheregen.sampling.loop import sample
from spheregen.sampling.refinement import Refinement, Rough, refine_samples
from tests.losses.test_flow import images, watched
from tests.models.test_flow_refiner import refined

ONE_STEP = FlowLossConfig(random_share=1, start_share=1, label_dropout=0)


def drawn(objective: FlowObjective, count: int = 4) -> FlowDraws:
    return objective.draw(count, torch.Generator().manual_seed(0))


def student_of(network: RefinedGenerator) -> RefinedGenerator:
    return RefinedGenerator(network.source, copy.deepcopy(network.refiner))


@pytest.mark.parametrize("perceptual", [False, True])
@pytest.mark.parametrize("solver", ["euler", "heun"])
def test_it_learns_what_sampling_makes(solver: str, perceptual: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    network = refined(rho=0.4)
    how = Refinement(3, solver, guidance=1.5)
    loss = dataclasses.replace(ONE_STEP, perceptual=float(perceptual))
    student = student_of(network)
    provider = random_perceptual("builtin") if perceptual else None
    objective = FlowObjective(student, loss, NoiseConfig(), provider, teacher=Teacher(network, how, guidance=2.0))
    x, labels = images()
    draws = drawn(objective)
    rough = Rough(network)
    samples = sample(rough, draws.source.direction, labels, steps=1, guidance=2.0)
    expected = refine_samples(rough, samples, labels, how, draws.noise)
    calls = watched(student, lambda at, times: expected.images, monkeypatch)
    found = objective(x, labels, draws)
    ((at, times, given, context, of),) = calls
    torch.testing.assert_close(at, 0.4 * draws.noise + 0.6 * samples.images)
    torch.testing.assert_close(of, samples.images)
    assert not times.any() and torch.equal(given, labels)  # type: ignore[arg-type, attr-defined]
    assert rough.context is not None
    torch.testing.assert_close(context.latent, rough.context.latent[:4])  # type: ignore[attr-defined]
    torch.testing.assert_close(context.tokens, rough.context.tokens[:4])  # type: ignore[attr-defined, index]
    assert all(value.item() == pytest.approx(0, abs=1e-5) for value in found.terms.values())
    assert len(found.terms) == 1 + perceptual


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_a_refiner_learns_nothing_from_itself(share: float) -> None:
    network = refined(rho=0.4)
    student = student_of(network)
    loss = dataclasses.replace(ONE_STEP, random_share=share)

    def gradient(steps: int) -> float:
        objective = FlowObjective(student, loss, NoiseConfig(), teacher=Teacher(network, Refinement(steps)))
        student.zero_grad()
        x, labels = images()
        objective(x, labels, drawn(objective)).total.backward()
        assert all(parameter.grad is None for parameter in network.parameters())
        return sum(each.grad.abs().sum().item() for each in student.refiner.parameters() if each.grad is not None)

    with torch.no_grad():  # images within [-1, 1], to which the end of a flow is clamped
        for each in (network, student):
            for parameter in each.refiner.head.parameters():
                parameter.mul_(0.05)
    assert gradient(1) < 1e-6 < gradient(4)


def test_a_plain_flow_can_be_taught_too(monkeypatch: pytest.MonkeyPatch) -> None:
    network = refined(rho=1.0, latent_channels=0, decoder_width=0)
    student = student_of(network)
    objective = FlowObjective(student, ONE_STEP, NoiseConfig(), teacher=Teacher(network, Refinement(2)))
    monkeypatch.setattr(network, "predict_with_context", None)
    monkeypatch.setattr(student, "predict_with_context", None)
    x, labels = images()
    draws = drawn(objective)
    calls = watched(student, lambda at, times: at, monkeypatch)
    objective(x, labels, draws)
    torch.testing.assert_close(calls[0][0], draws.noise)


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
    objective(x, labels, drawn(objective))
    assert any(len(each) >= 4 and torch.allclose(each[:4], (x + 1) / 2) for each in seen)
