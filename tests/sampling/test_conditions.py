"""Prepared conditions: the same pictures as plain labels, what follows from labels alone computed once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import spheregen as sg
from spheregen.conditioning import ClassEmbedding, Condition, Unprepared, mixture, null_labels
from spheregen.models.autoencoder import SphereAutoencoder
from spheregen.models.protocol import SphereGenerator
from spheregen.models.sizes import TransformerSize
from spheregen.nn.block import Block
from spheregen.nn.modulation import Modulation
from spheregen.sampling import Masked, edit, guide, restore, sample
from spheregen.sampling.remembered import RememberedConditions
from tests.sampling import test_sampling as given
from tests.sampling.test_sampling import LABELS, model_of

DEEP = TransformerSize(width=16, depth=3, heads=2, in_context_start=1)
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "in-context": {"encoder": DEEP, "decoder": DEEP, "in_context_tokens": 2},
    "conv": {"pixel_head": "conv", "encoder_mixer_depth": 0},
}
IMAGES, NOISE, STEP = given.IMAGES.double(), given.NOISE.double(), given.STEP.double()
CPU = torch.device("cpu")


@pytest.fixture(scope="module", params=VARIANTS)
def model(request: pytest.FixtureRequest) -> SphereAutoencoder:
    return variant(request.param)


@pytest.fixture(scope="module")
def plain() -> SphereAutoencoder:
    return variant("plain")


def variant(name: str, classes: int = 3) -> SphereAutoencoder:
    options: dict[str, Any] = {"encoder_mixer_depth": 1, "decoder_mixer_depth": 1, **VARIANTS[name]}
    model = model_of(classes)
    config = {**{key: getattr(model.config, key) for key in model.config.__dataclass_fields__}, **options}
    torch.manual_seed(0)
    model = SphereAutoencoder(type(model.config)(**config))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model.eval().double()  # so that rounding hides nothing


def gaussian(*shape: int) -> Tensor:
    return given.gaussian(*shape).double()


def same(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, atol=1e-9, rtol=1e-9)


@contextmanager
def counted(model: nn.Module, kind: type[nn.Module]) -> Iterator[list[tuple[str, int]]]:
    """The modules of a kind that were called, each time with how many rows."""
    calls: list[tuple[str, int]] = []

    def count(name: str) -> object:
        def hook(module: nn.Module, arguments: tuple[Tensor | None, ...], result: object) -> None:
            rows = arguments[0] if isinstance(arguments[0], Tensor) else torch.zeros(1)
            calls.append((name, rows.shape[0]))

        return hook

    hooks = [part.register_forward_hook(count(name)) for name, part in model.named_modules() if isinstance(part, kind)]  # type: ignore[arg-type]
    assert hooks
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()


# prepared equals plain ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("labels", [LABELS, torch.tensor([3, 0, 3]), torch.softmax(gaussian(3, 4), 1)])
@torch.no_grad()
def test_a_prepared_condition_equals_its_labels(model: SphereAutoencoder, labels: Tensor) -> None:
    condition = model.condition(labels)
    assert isinstance(condition, Condition)
    same(model.encode_raw(IMAGES, condition), model.encode_raw(IMAGES, labels))
    same(model.encode(IMAGES, condition), model.encode(IMAGES, labels))
    same(model.decode(NOISE, condition), model.decode(NOISE, labels))


@torch.no_grad()
def test_no_labels_are_the_null_class_of_any_number(model: SphereAutoencoder) -> None:
    condition = model.condition(None)
    for count in (1, 3):
        null = torch.full((count,), 3)
        same(model.decode(NOISE[:count], condition), model.decode(NOISE[:count], null))
        same(model.encode(IMAGES[:count], condition), model.encode(IMAGES[:count]))


@pytest.mark.parametrize("name", VARIANTS)
@torch.no_grad()
def test_an_unconditional_model_has_no_condition(name: str) -> None:
    model = variant(name, classes=0)
    assert model.condition(None) is None
    same(model.decode(NOISE, model.condition(None)), model.decode(NOISE))
    for labels in (LABELS, torch.ones(3, 1)):
        with pytest.raises(ValueError, match="unconditional and takes no labels"):
            model.condition(labels)
        with pytest.raises(ValueError, match="unconditional and takes no labels"):
            sample(model, NOISE, labels)


@torch.no_grad()
def test_rows_pick_and_repeat(model: SphereAutoencoder) -> None:
    condition = model.condition(LABELS)
    assert condition is not None
    for index in ([2, 0, 1], [1, 1, 1], [0], [2, 2]):
        picked, count = torch.tensor(index), len(index)
        same(model.decode(NOISE[:count], condition.rows(picked)), model.decode(NOISE[:count], LABELS[picked]))
        same(model.encode(IMAGES[:count], condition.rows(picked)), model.encode(IMAGES[:count], LABELS[picked]))


@torch.no_grad()
def test_many_samples_of_few_classes(model: SphereAutoencoder) -> None:
    labels = torch.tensor([0, 3, 2, 2, 1, 0, 3, 2, 1])
    with counted(model, Modulation) as calls:
        condition = model.condition(labels)
    assert {rows for _, rows in calls} == {4}  # classes and null, not samples
    v = gaussian(9, 4, 4)
    same(model.decode(v, condition), model.decode(v, labels))


def test_a_condition_of_something_else_is_refused(plain: SphereAutoencoder) -> None:
    condition = plain.condition(LABELS)
    assert condition is not None
    with pytest.raises(ValueError, match=r"NetworkCondition is no condition of this model; take model.condition"):
        plain.decode(NOISE, condition.encoder)


# mixtures -------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_mixtures_of_one_class_are_that_class(model: SphereAutoencoder) -> None:
    for labels in (LABELS, torch.tensor([3, 1, 3])):
        one = mixture(labels, 3)
        assert torch.equal(one.sum(1), torch.ones(3))
        same(model.decode(NOISE, one), model.decode(NOISE, labels))
        same(model.encode(IMAGES, one), model.encode(IMAGES, labels))
        assert torch.equal(null_labels(one, 3), mixture(null_labels(labels, 3), 3))
    assert mixture(one, 3) is one


@torch.no_grad()
def test_a_mixture_of_two_classes_is_neither(model: SphereAutoencoder) -> None:
    a, b = torch.zeros(3).long(), torch.ones(3).long()
    half = (mixture(a, 3) + mixture(b, 3)) / 2
    mixed = model.decode(NOISE, half)
    for other in (a, b, torch.full((3,), 2), None):
        assert (mixed - model.decode(NOISE, other)).abs().max() > 1e-3
    nearly = model.decode(NOISE, 0.999 * mixture(a, 3) + 0.001 * mixture(b, 3))
    assert (nearly - model.decode(NOISE, a)).abs().max() < (mixed - model.decode(NOISE, a)).abs().max()


@pytest.mark.parametrize("guidance", [0.0, 1.0, 2.5])
def test_sampling_takes_mixtures(model: SphereAutoencoder, guidance: float) -> None:
    by_id = sample(model, NOISE, LABELS, steps=3, guidance=guidance, step_noise=STEP).images
    by_mixture = sample(model, NOISE, mixture(LABELS, 3), steps=3, guidance=guidance, step_noise=STEP).images
    same(by_mixture, by_id)


@pytest.mark.parametrize("labels", [LABELS[:1], LABELS[:2], torch.zeros(4).long(), torch.tensor(1), torch.eye(4)])
def test_another_number_of_labels_is_refused(plain: SphereAutoencoder, labels: Tensor) -> None:
    """One row of a prepared condition would silently serve all samples."""
    with pytest.raises(sg.SphereGenError, match="for 3 samples; give one for each"):
        sample(plain, NOISE, labels)


# remembered -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [[0, 1, 2], [2], []])
@torch.no_grad()
def test_a_remembering_generator_is_the_model(model: SphereAutoencoder, classes: list[int]) -> None:
    remembering = RememberedConditions(model, classes, CPU)
    assert isinstance(remembering, SphereGenerator)
    for name in ("image_shape", "latent_shape", "num_classes", "sigma_max", "dtype", "guidance_places"):
        assert getattr(remembering, name) == getattr(model, name)
    ids = torch.tensor([*classes, 3, *classes])  # the null class is always there
    v, images = gaussian(len(ids), 4, 4), gaussian(len(ids), 3, 8, 8).clamp(-1, 1)
    for labels in (ids, mixture(ids, 3), None):
        condition = remembering.condition(labels)
        same(remembering.decode(v, condition), model.decode(v, labels))
        same(remembering.encode(images, condition), model.encode(images, labels))
        same(remembering.encode_raw(images, condition), model.encode_raw(images, labels))
        same(remembering.decode(v, labels), model.decode(v, labels))
        same(remembering.predict(v, condition), model.predict(v, labels))
        same(remembering.to_latent(images, condition), model.to_latent(images, labels))
    assert remembering.to_image(images) is images and remembering.from_image(images) is images
    mask = torch.rand((1, 1, 8, 8), generator=torch.Generator().manual_seed(3))
    same(remembering.mix(images, images.flip(0), mask), model.mix(images, images.flip(0), mask))


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_sampling_from_a_remembering_generator(model: SphereAutoencoder, guidance: float) -> None:
    remembering = RememberedConditions(model, [0, 1, 2], CPU)
    with counted(model, Modulation) as calls:
        result = sample(remembering, NOISE, LABELS, 3, guidance=guidance, step_noise=STEP)
    assert not calls
    same(result.images, sample(model, NOISE, LABELS, 3, guidance=guidance, step_noise=STEP).images)


@torch.no_grad()
def test_classes_that_were_not_announced_are_computed(plain: SphereAutoencoder) -> None:
    remembering = RememberedConditions(plain, [0], CPU)
    for labels in (LABELS, torch.tensor([1, 1, 2]), torch.tensor([0, 3, 2])):
        same(remembering.decode(NOISE, remembering.condition(labels)), plain.decode(NOISE, labels))
    for label in (4, 99):  # which the model does not have
        with pytest.raises(IndexError):
            remembering.condition(torch.tensor([label]))


# once a call ----------------------------------------------------------------------------------------------------------


def names_of(model: nn.Module, kind: type[nn.Module]) -> list[str]:
    return sorted(name for name, part in model.named_modules() if isinstance(part, kind))


@pytest.mark.parametrize("guidance", [1.0, 2.0])
@pytest.mark.parametrize("labels", [LABELS, mixture(LABELS, 3)], ids=["ids", "mixtures"])
@pytest.mark.parametrize("steps", [1, 5])
def test_conditions_are_computed_once_a_call(
    model: SphereAutoencoder, steps: int, labels: Tensor, guidance: float
) -> None:
    for kind in (Modulation, ClassEmbedding):
        with counted(model, kind) as calls:
            sample(model, NOISE, labels, steps, guidance=guidance, step_noise=STEP)
        assert sorted(name for name, _ in calls) == names_of(model, kind)


def test_editing_and_restoration_compute_conditions_once(plain: SphereAutoencoder) -> None:
    with counted(plain, Modulation) as calls:
        edit(plain, IMAGES, LABELS, steps=5, guidance=2.0)
    assert len(calls) == len(names_of(plain, Modulation))
    with counted(plain, Modulation) as calls:
        restore(plain, Masked(IMAGES, torch.ones(1, 1, 8, 8)), LABELS, steps=5)
    assert len(calls) == len(names_of(plain, Modulation))


@pytest.mark.parametrize("labels", [None, 1, [0, 2] * 4])
def test_conditions_are_computed_once_for_all_batches(
    plain: SphereAutoencoder, labels: int | Sequence[int] | None
) -> None:
    pipe = sg.Pipeline(plain, device="cpu")
    with counted(plain, Modulation) as calls, counted(plain.decoder, Block) as blocks:
        pipe.generate(8, labels=labels, steps=3, guidance=1.5, batch_size=3)
    assert len(blocks) == 3 * 3  # three steps, three batches
    assert sorted(name for name, _ in calls) == names_of(plain, Modulation)


def test_without_labels_the_null_class_is_computed_once(plain: SphereAutoencoder) -> None:
    with counted(plain, Modulation) as calls:
        sample(plain, NOISE, steps=4)
    assert sorted(calls) == [(name, 1) for name in names_of(plain, Modulation)]  # one row serves all samples


# the cost of guidance -------------------------------------------------------------------------------------------------


def rows_through_blocks(model: SphereAutoencoder, place: str, guidance: float, steps: int) -> int:
    with counted(model, Block) as calls:
        sample(model, NOISE, LABELS, steps, guidance=guidance, guidance_at=place, step_noise=STEP)
    return sum(rows for _, rows in calls)


@pytest.mark.parametrize("steps", [1, 4])
def test_guidance_at_both_places_is_twice_the_work(model: SphereAutoencoder, steps: int) -> None:
    assert rows_through_blocks(model, "both", 1.4, steps) == 2 * rows_through_blocks(model, "both", 1.0, steps)


def test_guidance_at_one_place_is_less_than_twice_the_work(model: SphereAutoencoder) -> None:
    places = (("both", 1.0), ("latent", 1.4), ("pixel", 1.4), ("both", 1.4))
    costs = [rows_through_blocks(model, place, scale, 4) for place, scale in places]
    assert all(less < more for less, more in pairwise(costs))


@torch.no_grad()
def test_guided_calls_are_in_one_pass(plain: SphereAutoencoder) -> None:
    steered = guide(plain, LABELS, 2.0)
    with counted(plain, Block) as calls:
        steered.predict(NOISE)
        steered.to_latent(IMAGES)
    assert [rows for _, rows in calls] == [6, 6]


def test_labels_alone_serve_as_a_condition(plain: SphereAutoencoder) -> None:
    """As for a sharded model, which can compute nothing beforehand."""
    for labels in (LABELS, None):
        unprepared = Unprepared(labels)
        assert isinstance(unprepared, Condition)
        same(plain.encode_raw(IMAGES, unprepared), plain.encode_raw(IMAGES, labels))
        same(plain.decode(NOISE, unprepared), plain.decode(NOISE, labels))
        picked = unprepared.rows(torch.tensor([2, 0, 2]))
        same(plain.decode(NOISE, picked), plain.decode(NOISE, None if labels is None else labels[[2, 0, 2]]))
