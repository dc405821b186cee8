"""Operations, memory and time of a step before the run, against what a step really does; going on out of memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from spheregen.distributed import World
from spheregen.errors import TrainingError
from spheregen.family.registry import blank_model, cost_of
from spheregen.training import estimate as module
from spheregen.training.estimate import (
    MemoryEstimate,
    estimate_memory,
    estimate_time,
    largest_micro_batch,
    memory_warning,
    readable,
    step_cost,
    synthetic_batch,
)
from spheregen.training.frozen import build_objective
from spheregen.training.recipe import Recipe, load_recipe
from spheregen.training.step import TrainingStep

CPU = torch.device("cpu")
DEEP = ("model.encoder={width: 16, depth: 4, heads: 2}", "model.decoder={width: 32, depth: 3, heads: 2}")


def recipe(*settings: str) -> Recipe:
    return load_recipe("debug", settings)


def memory(*settings: str, **options: Any) -> MemoryEstimate:
    return estimate_memory(recipe(*settings), **{"precision": "float32", **options})


def new_step(*settings: str, **options: Any) -> TrainingStep:
    changed = recipe(*settings)
    return TrainingStep(build_objective(changed), changed, device=CPU, precision="float32", **options)


# operations


def test_operations_are_the_passes_of_the_published_tables() -> None:
    for settings in ((), DEEP):
        parts = cost_of(blank_model(recipe(*settings).model)).parts.values()
        wanted = 3e9 * 2 * sum(part.gflops for part in parts)
        assert step_cost(recipe(*settings)).flops_per_image == pytest.approx(wanted, rel=0.05)
    denoiser = load_recipe("sle-debug")
    wanted = 6e9 * cost_of(blank_model(denoiser.model)).parts["denoiser"].gflops
    assert step_cost(denoiser).flops_per_image == pytest.approx(wanted, rel=0.02)


# memory


def test_activations_are_the_saved_tensors_of_a_real_step() -> None:
    step = new_step(*DEEP)
    batch, noise = synthetic_batch(step, 16)
    weights = {tensor.untyped_storage().data_ptr() for tensor in step.model.state_dict().values()}
    saved: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        step.objective.loss(batch.inputs, batch.labels, noise)
    assert 16 * step_cost(recipe(*DEEP)).activations_per_image == pytest.approx(sum(saved.values()), rel=0.2)


def test_the_largest_micro_batch_that_fits_and_a_warning_where_none_does() -> None:
    needed = memory(micro_batch=4).total / 0.9

    def largest(available: float) -> int:
        return largest_micro_batch(recipe(), precision="float32", available=int(available))

    assert [largest(size) for size in (needed + 1, needed - 10, 10**12, 1)] == [4, 2, 16, 0]

    def warning(available: float) -> str:
        return memory_warning(recipe(), "float32", "cpu", 1, None, int(available)) or ""

    assert not warning(10**12)
    assert readable(memory().total) in warning(needed + 1) and "train.micro_batch=4" in warning(needed + 1)
    assert "a smaller model" in warning(10)


# time


def test_time_is_measured_where_the_model_is_quick_and_counted_where_it_does_not_fit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    state = torch.get_rng_state()
    found = estimate_time(recipe(), None, CPU, "float32", budget=0.5)
    assert torch.equal(state, torch.get_rng_state())
    assert found.steps == 40 and found.hours == pytest.approx(40 * found.seconds_per_step / 3600)
    assert found.seconds_per_step > 0 and found.mfu > 0 and "16 of 16 images" in found.method
    monkeypatch.setattr(module, "available_memory", lambda _: 1)
    counted = estimate_time(recipe("train.epochs=2"), 160, CPU, "float32", budget=0.5)
    assert counted.steps == 20 and "operations" in counted.method
    assert estimate_time(recipe("train.epochs=2"), None, CPU, "float32", budget=0.5).hours is None


# going on with less


class Full:
    """Memory that suffices for so many images."""

    def __init__(self, step: TrainingStep, limit: int) -> None:
        self.loss, self.limit = step.objective.loss, limit

    def __call__(self, inputs: Any, *arguments: Any) -> Any:
        if len(inputs) > self.limit:
            raise torch.OutOfMemoryError("too much")
        return self.loss(inputs, *arguments)


def test_a_step_goes_on_with_smaller_micro_batches_and_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    step, plain = new_step(tell=lines.append), new_step("train.micro_batch=4", micro_batch=4)
    monkeypatch.setattr(step._loss, "_loss", Full(step, 5))
    for each in (step, plain):
        batch, noise = synthetic_batch(each, 16)
        each(batch, noise, 1e-3)
    assert step.micro_batch == 4 and len(lines) == 2 and "micro-batches of 4" in lines[1]
    for ours, theirs in zip(step.model.parameters(), plain.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_trying_finds_the_micro_batch_and_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    step = new_step("model.latent_norm=batch")
    monkeypatch.setattr(step.objective, "loss", Full(step, 5))
    before = {name: tensor.clone() for name, tensor in step.model.state_dict().items()}
    state = torch.get_rng_state()
    step.fit(*synthetic_batch(step, 16))
    assert step.micro_batch == 4 and torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(tensor, before[name]) for name, tensor in step.model.state_dict().items())
    assert all(parameter.grad is None for parameter in step.model.parameters())


def test_processes_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that has memory takes the smaller micro-batch of one that has none."""
    step, others = new_step(), iter([True, True, False])
    monkeypatch.setattr(World, "gather_objects", lambda self, failed: [failed, next(others)])
    step.fit(*synthetic_batch(step, 16))
    assert step.micro_batch == 4


def test_where_one_image_does_not_fit_the_cure_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    step = new_step()
    monkeypatch.setattr(step._loss, "_loss", Full(step, 0))
    with pytest.raises(TrainingError, match=r"train\.recompute=true"):
        step(*synthetic_batch(step, 16), 1e-3)
    step.world = World(size=2)  # whose other process waits for gradients
    step.micro_batch = 8
    with pytest.raises(TrainingError, match=r"train\.micro_batch=4"):
        step(*synthetic_batch(step, 16), 1e-3)
    monkeypatch.setattr(step._loss, "_loss", lambda *_: (_ for _ in ()).throw(RuntimeError("another")))
    with pytest.raises(RuntimeError, match="another"):
        step(*synthetic_batch(step, 16), 1e-3)
