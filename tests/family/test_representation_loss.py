"""The loss of a representation autoencoder: its terms, its draws, and a critic whose gradients do not mix."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from spheregen.errors import ConfigError
from spheregen.family.adversarial import hinge, mean
from spheregen.family.representation.loss import (
    Learned,
    RepresentationLossConfig,
    RepresentationNoise,
    RepresentationObjective,
)
from spheregen.family.terms import LossTerms
from spheregen.networks.perceptual import random_perceptual

SIZE, SHAPE = 8, (4, 12)


class ToyCodec(nn.Module):
    """8 px images as 2x2 tokens of 4x4 pixels, through a linear each way."""

    latent_shape = SHAPE
    projection = None

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.project = nn.Parameter(0.2 * torch.randn((48, 12), generator=generator))
        self.expand = nn.Parameter(0.2 * torch.randn((12, 48), generator=generator))

    def encode(self, tokens: Tensor) -> Tensor:
        return tokens @ self.project

    def decode(self, latents: Tensor) -> Tensor:
        return nn.functional.fold((latents @ self.expand).transpose(1, 2), SIZE, 4, stride=4)


class ToyEncoder(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        assert not torch.is_grad_enabled()
        return nn.functional.unfold(images, 4, stride=4).transpose(1, 2)


encoder: Any = ToyEncoder()


class Setup:
    def __init__(self, **values: Any) -> None:
        self.loss = RepresentationLossConfig(**{"perceptual": 0.0, "critic_width": 4, **values})
        torch.manual_seed(0)
        self.codec: Any = ToyCodec()
        perceptual = random_perceptual("builtin") if self.loss.needs_perceptual else None
        self.critic = self.loss.new_critic(3, SIZE, perceptual)
        self.objective = RepresentationObjective(encoder, Learned(self.codec, self.critic), self.loss, perceptual)

    def draw(self, batch: int = 6, *, seed: int = 0, progress: float = 1.0, **more: Any) -> RepresentationNoise:
        return self.objective.draw(batch, torch.Generator().manual_seed(seed), progress=progress, **more)

    def gradients(self, *terms: LossTerms) -> dict[str, Tensor]:
        """Of the mean of some terms."""
        networks = {"codec": self.codec, **({} if self.critic is None else {"critic": self.critic})}
        for network in networks.values():
            network.zero_grad(set_to_none=True)
        torch.stack([each.total for each in terms]).mean().backward()
        found = {f"{n}.{name}": p.grad for n, net in networks.items() for name, p in net.named_parameters()}
        assert all(gradient is not None for gradient in found.values())  # as several processes need it
        return {name: gradient.clone() for name, gradient in found.items() if gradient is not None}


def images(count: int = 6) -> Tensor:
    return 2 * torch.rand((count, 3, SIZE, SIZE), generator=torch.Generator().manual_seed(5)) - 1


def test_terms_are_what_they_are_called() -> None:
    setup = Setup(l1=2.0, perceptual=0.5, noise=0.7)
    x, draws = images(), setup.draw()
    assert draws.noise is not None
    found = setup.objective.loss(x, None, draws)
    with torch.no_grad():
        z = setup.codec.encode(encoder(x))
        y = setup.codec.decode(z + draws.level.view(-1, 1, 1) * draws.noise)
        l1 = ((y - x) / 2).abs().mean()
        assert setup.objective.perceptual is not None
        perceptual = setup.objective.perceptual((y + 1) / 2, (x + 1) / 2)
    assert found.terms.keys() == {"l1", "perceptual"}
    torch.testing.assert_close(found.terms["l1"], l1)
    torch.testing.assert_close(found.terms["perceptual"], perceptual)
    torch.testing.assert_close(found.total.detach(), 2 * l1 + 0.5 * perceptual)
    torch.testing.assert_close(found.observed["latent"], z)  # without its noise
    torch.testing.assert_close(found.observed["data"], (x + 1) / 2)
    torch.testing.assert_close(found.observed["output"], (y + 1) / 2)
    assert not any(tensor.requires_grad for tensor in (*found.terms.values(), *found.observed.values()))


def test_rows_and_slices_are_those_of_the_global_batch() -> None:
    setup = Setup()
    whole, part = setup.draw(), setup.draw(rows=slice(2, 5))
    assert whole.noise is not None and part.noise is not None
    assert torch.equal(part.level, whole.level[2:5]) and torch.equal(part.noise, whole.noise[2:5])
    assert torch.equal(part[1:].level, whole.level[3:5]) and part[1:].progress == 1.0
    doubled = whole.each(lambda tensor: 2 * tensor)
    assert doubled.noise is not None
    assert torch.equal(doubled.noise, 2 * whole.noise) and torch.equal(doubled.level, 2 * whole.level)


@pytest.mark.parametrize(("progress", "features"), [(0.0, True), (0.45, False), (0.9, True)])
def test_micro_batches_add_up(progress: float, features: bool) -> None:
    setup = Setup(adversarial=0.3, perceptual=1.0, critic_features=features)
    x, draws = images(), setup.draw(progress=progress)
    together = setup.gradients(setup.objective.loss(x, None, draws))
    apart = setup.gradients(*(setup.objective.loss(x[i : i + 2], None, draws[i : i + 2]) for i in (0, 2, 4)))
    for name, gradient in together.items():
        torch.testing.assert_close(apart[name], gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("features", [False, True])
def test_the_critic_s_and_the_decoder_s_gradients_do_not_mix(features: bool) -> None:
    setup = Setup(adversarial=0.3, l1=1e-30, critic_features=features)
    critic_of, perceptual = setup.critic, setup.objective.perceptual
    assert critic_of is not None and (perceptual is not None) == features

    def judge(images: Tensor) -> tuple[Tensor, ...]:
        return critic_of(images, perceptual.features(images) if perceptual is not None else ())

    x, draws = images(), setup.draw()
    found = setup.gradients(setup.objective.loss(x, None, draws))
    assert draws.noise is not None
    z = setup.codec.encode(torch.no_grad()(encoder)(x))
    y = (setup.codec.decode(z + draws.level.view(-1, 1, 1) * draws.noise) + 1) / 2
    real = (x + 1) / 2
    codec, critic = list(setup.codec.parameters()), list(critic_of.parameters())
    own = torch.autograd.grad(hinge(judge(real), judge(y.detach())), critic)
    (slope,) = torch.autograd.grad(-mean(judge(y)), y, retain_graph=True)
    decoders = torch.autograd.grad(y, codec, 0.3 * slope)
    names = [f"codec.{name}" for name, _ in setup.codec.named_parameters()]
    names += [f"critic.{name}" for name, _ in critic_of.named_parameters()]
    for name, expected in zip(names, [*decoders, *own], strict=True):
        torch.testing.assert_close(found[name], expected, rtol=1e-4, atol=1e-7)
        assert float(expected.abs().max()) > 0 or name.endswith("bias")  # within its margin a head has balanced ones


def test_the_adversarial_terms_begin_one_after_the_other() -> None:
    setup = Setup(adversarial=0.3, adversarial_start=0.5, critic_lead=0.25)
    plain = Setup()
    x = images()
    seen = {}
    for progress in (0.0, 0.24, 0.25, 0.49, 0.5, 1.0):
        draws = setup.draw(progress=progress)
        found = setup.objective.loss(x, None, draws)
        assert found.terms.keys() == {"l1", "adversarial", "critic"}
        gradients = setup.gradients(found)
        learns = any(bool(g.any()) for name, g in gradients.items() if name.startswith("critic"))
        without = plain.gradients(plain.objective.loss(x, None, draws))
        pulls = any(not torch.equal(gradients[name], without[name]) for name in without)
        assert learns == (float(found.terms["critic"]) != 0) and pulls == (float(found.terms["adversarial"]) != 0)
        seen[progress] = (learns, pulls)
    assert seen == {
        0.0: (False, False),
        0.24: (False, False),
        0.25: (True, False),
        0.49: (True, False),
        0.5: (True, True),
        1.0: (True, True),
    }


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"l1": -1.0}, r"loss\.l1"),
        ({"noise": float("inf")}, r"loss\.noise"),
        ({"l1": 0.0, "perceptual": 0.0}, "nothing ties decodes"),
        ({"adversarial_start": 1.0}, "adversarial_start"),
        ({"critic_lead": -0.1}, "critic_lead"),
        ({"critic_width": 0}, "critic_width"),
    ],
)
def test_impossible_losses_are_one_line(values: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        RepresentationLossConfig(**values)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
