"""Conditions: made once of labels, the same images as plain labels, what follows from them computed once a call."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from spheregen.conditioning import Condition, mixture
from spheregen.family.sphere_encoder.network import SphereAutoencoder
from spheregen.nn.block import ClassEmbedding, Modulation
from spheregen.nn.sizes import TransformerSize
from spheregen.restoration import Mask
from spheregen.sampling import edit, restore, sample
from tests.sampling import test_sampling as given
from tests.sampling.test_sampling import LABELS, model_of

DEEP = TransformerSize(width=16, depth=3, heads=2, in_context_start=1)
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "in-context": {"encoder": DEEP, "decoder": DEEP, "in_context_tokens": 2},
    "conv": {"pixel_head": "conv", "encoder_mixer_depth": 0},
}
IMAGES, NOISE, STEP = given.IMAGES.double(), given.NOISE.double(), given.STEP.double()


@pytest.fixture(scope="module", params=VARIANTS)
def model(request: pytest.FixtureRequest) -> SphereAutoencoder:
    return model_of(**VARIANTS[request.param]).double()  # so that rounding hides nothing


@pytest.fixture(scope="module")
def plain() -> SphereAutoencoder:
    return model_of().double()


def same(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, atol=1e-9, rtol=1e-9)


@contextmanager
def counted(model: nn.Module, kind: type[nn.Module]) -> Iterator[list[tuple[str, int]]]:
    """The modules of a kind that were called, each time with how many rows."""
    calls: list[tuple[str, int]] = []

    def count(name: str) -> Any:
        return lambda _, arguments, __: calls.append((name, 0 if arguments[0] is None else len(arguments[0])))

    hooks = [part.register_forward_hook(count(name)) for name, part in model.named_modules() if isinstance(part, kind)]
    assert hooks
    yield calls
    for hook in hooks:
        hook.remove()


def names_of(model: nn.Module, kind: type[nn.Module]) -> list[str]:
    return sorted(name for name, part in model.named_modules() if isinstance(part, kind))


# conditions equal labels ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("labels", [torch.tensor([3, 0, 3]), torch.softmax(given.gaussian(3, 4), 1), None])
@torch.no_grad()
def test_a_condition_equals_its_labels(model: SphereAutoencoder, labels: Tensor | None) -> None:
    condition = model.condition(labels)
    assert isinstance(condition, Condition) and model.condition(condition) is condition
    same(model.encoder(IMAGES, condition), model.encoder(IMAGES, labels))
    same(model.encode(IMAGES, condition), model.encode(IMAGES, labels))
    same(model.decode(NOISE, condition), model.decode(NOISE, labels))
    same(model(IMAGES, condition), model(IMAGES, labels))
    sampled = [sample(model, NOISE, each, steps=3, step_noise=STEP).images for each in (condition, labels)]
    same(*sampled)


@torch.no_grad()
def test_conditions_are_sliced_dropped_and_doubled(model: SphereAutoencoder) -> None:
    for labels in (LABELS, mixture(LABELS, 3)):
        condition = model.condition(labels)
        picked = torch.tensor([2, 0])
        same(model.decode(NOISE[:2], condition[picked]), model.decode(NOISE[:2], labels[picked]))
        same(model.encode(IMAGES[1:], condition[slice(1, 3)]), model.encode(IMAGES[1:], labels[1:]))
        dropped = condition.dropped(torch.tensor([True, False, True]))
        same(model.decode(NOISE, dropped), model.decode(NOISE, torch.tensor([3, 1, 3])))
        twice = torch.cat([NOISE, NOISE])
        same(model.decode(twice, condition.twice()), model.decode(twice, torch.cat([LABELS, LABELS])))
        null = torch.full_like(LABELS, 3)
        same(model.decode(twice, condition.with_null()), model.decode(twice, torch.cat([LABELS, null])))
    nothing = model.condition()
    assert nothing[slice(0, 1)] is nothing.dropped(torch.ones(3) > 0) is nothing.with_null() is nothing


def test_gradients_reach_the_table_once_for_each_sample() -> None:
    model = model_of().double()
    condition = model.condition(torch.tensor([0, 0, 2]))
    model.decoder(NOISE, condition.dropped(torch.tensor([False, True, False]))).square().sum().backward()
    grad = model.decoder.trunk.labels.table.weight.grad
    assert grad is not None and [bool(row.any()) for row in grad] == [True, False, True, True]


# mixtures -------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_mixtures_of_one_class_are_that_class(model: SphereAutoencoder) -> None:
    one = mixture(torch.tensor([3, 1, 3]), 3)
    assert torch.equal(one.sum(1), torch.ones(3)) and mixture(one, 3) is one
    same(model.decode(NOISE, one), model.decode(NOISE, torch.tensor([3, 1, 3])))
    for guidance in (0.0, 2.5):
        by_id = sample(model, NOISE, LABELS, steps=3, guidance=guidance, step_noise=STEP).images
        by_mixture = sample(model, NOISE, mixture(LABELS, 3), steps=3, guidance=guidance, step_noise=STEP).images
        same(by_mixture, by_id)


# once a call ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("labels", "guidance"), [(LABELS, 1.0), (LABELS, 2.0), (mixture(LABELS, 3), 2.0), (None, 1.0)])
def test_what_follows_from_labels_is_computed_once_a_call(
    model: SphereAutoencoder, labels: Tensor | None, guidance: float
) -> None:
    for kind in (Modulation, ClassEmbedding):
        with counted(model, kind) as calls:
            sample(model, NOISE, labels, 3, guidance=guidance, step_noise=STEP)
        assert sorted(name for name, _ in calls) == names_of(model, kind)
    for loop in (
        lambda: edit(model, IMAGES, labels, steps=3, guidance=guidance),
        lambda: restore(model, IMAGES, Mask(torch.zeros(1, 1, 8, 8)), labels, steps=3, guidance=guidance),
    ):
        with counted(model, Modulation) as calls:
            loop()
        assert sorted(name for name, _ in calls) == names_of(model, Modulation)
