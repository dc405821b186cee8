"""Estimates of memory and time: laws that hold whatever the machine, and a count by other means."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from spheregen.errors import ConfigError
from spheregen.training import estimate as module
from spheregen.training.distributed import World
from spheregen.training.estimate import (
    MemoryEstimate,
    available_memory,
    choose_micro_batch,
    estimate_memory,
    estimate_sampling_memory,
    estimate_time,
    explain_fit,
    fits_warning,
    flops_per_image,
    largest_micro_batch,
    micro_batches,
    random_perceptual,
    readable,
    synthetic_batch,
    try_micro_batch,
)
from spheregen.training.recipe import Recipe, load_recipe
from spheregen.training.step import TrainingStep
from spheregen.training.system import AutoencoderSystem, build_system

CPU = torch.device("cpu")


def recipe(*settings: str) -> Recipe:
    return load_recipe("debug", settings)


def memory(*settings: str, **options: Any) -> MemoryEstimate:
    return estimate_memory(recipe(*settings), **{"precision": "float32", **options})


def passes(estimate: MemoryEstimate) -> int:
    return estimate.activations + estimate.temporary


@pytest.mark.parametrize("settings", [(), ("train.recompute=true",), ("perceptual=builtin",)], ids=str)
def test_the_memory_of_a_pass_is_that_of_its_live_tensors(settings: tuple[str, ...]) -> None:
    """The same loss with real numbers, its saved tensors counted as they are packed."""
    changed = recipe(*settings)
    system = build_system(changed)
    step = TrainingStep(system, changed, device=CPU, precision="float32")
    batch, draws = synthetic_batch(step, 16)
    weights = {tensor.untyped_storage().data_ptr() for tensor in (*system.model.parameters(), *system.model.buffers())}
    if system.perceptual is not None:
        weights |= {tensor.untyped_storage().data_ptr() for tensor in system.perceptual.parameters()}
    saved: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = system.loss(batch.images, batch.labels, draws)
    assert result.total.isfinite()
    found = estimate_memory(changed, precision="float32").activations
    slack = 0.5 if changed.train.recompute else 0.8  # what checkpoints hold is not all seen by the hooks
    assert slack * found <= sum(saved.values()) <= 1.2 * found


def test_memory_grows_affinely_with_the_micro_batch() -> None:
    sizes = [memory(micro_batch=count) for count in (2, 4, 8)]
    first, second = (passes(b) - passes(a) for a, b in itertools.pairwise(sizes))
    assert second == pytest.approx(2 * first, rel=1e-3)
    assert first == pytest.approx(2 * sizes[0].activations_per_image, rel=1e-3)
    assert sizes[0].weights == sizes[1].weights
    assert memory(micro_batch=999).micro_batch == 16  # never more than there is
    assert memory("train.micro_batch=4").micro_batch == 4
    assert memory("train.micro_batch=auto").micro_batch == 16


def test_deep_models_are_inferred_from_shallow_ones() -> None:
    settings = ["model.encoder={width: 16, depth: 4, heads: 2}", "model.decoder={width: 32, depth: 3, heads: 2}"]
    inferred = memory(*settings)
    traced = module._trace(recipe(*settings), "float32", "cpu", 16)
    assert inferred.activations == pytest.approx(traced[0], rel=0.01)
    assert passes(inferred) == pytest.approx(traced[1], rel=0.02)


@pytest.mark.parametrize(("precision", "device"), [("float32", "cpu"), ("bf16", "cuda")])
def test_the_short_cuts_follow_torch(monkeypatch: pytest.MonkeyPatch, precision: str, device: str) -> None:
    changed = recipe("perceptual=builtin", "train.recompute=true")
    quick = module._trace(changed, precision, device, 3)
    monkeypatch.setattr(module, "_quick", lambda *_: None)
    assert module._trace(changed, precision, device, 3) == quick


def test_options_that_save_memory() -> None:
    size = "{width: 64, depth: 6, heads: 2}"
    deep = [f"model.encoder={size}", f"model.decoder={size}"]
    plain = memory(*deep)
    assert passes(memory(*deep, "train.recompute=true")) < 0.6 * passes(plain)
    assert passes(memory(*deep, precision="bf16")) < 0.8 * passes(plain)
    assert passes(memory(*deep, device_type="cuda")) < passes(plain)
    muon = memory(*deep, "optimizer.name=muon")
    assert plain.moments == 2 * plain.gradients > muon.moments > plain.gradients


def test_sharding_divides_weights_and_shares_divide_batches() -> None:
    alone = memory()
    shared = memory("train.parallel=ddp", world_size=4)
    sharded = memory("train.parallel=fsdp", world_size=4)
    assert shared.micro_batch == sharded.micro_batch == 4
    assert shared.weights == alone.weights and shared.gathered == 0
    for part in ("weights", "gradients", "moments", "average"):
        assert getattr(sharded, part) == pytest.approx(getattr(alone, part) / 4, abs=4)
    assert 0 < sharded.gathered < 3 * alone.weights
    assert memory("train.parallel=fsdp").gathered == 0  # one process has nothing to shard
    with pytest.raises(ConfigError, match="multiple of 3"):
        memory(world_size=3)


def test_a_batch_in_pieces_keeps_its_gradients() -> None:
    assert memory().overlap == memory().gradients
    assert memory(micro_batch=8).overlap == 0


def test_the_parts_add_up_and_the_data_count_where_they_are_kept() -> None:
    found = memory(images=1000)
    assert found.data == 1000 * 64
    assert memory(images=10**9).data == memory(images=1000, device_type="cuda").data == 0
    values = found.as_dict()
    assert json.loads(json.dumps(values)) == values
    parts = [v for k, v in values.items() if k not in ("micro_batch", "overlap", "activations_per_image", "total")]
    assert values["total"] == found.total == sum(parts) - found.overlap


def test_nothing_is_allocated_and_no_random_state_changes() -> None:
    before = torch.get_rng_state()
    huge = estimate_memory(load_recipe("imagenet-xl", ["perceptual=none"]), precision="bf16", device_type="cuda")
    assert huge.total > 10**12
    assert huge.weights == pytest.approx(4 * 1389e6, rel=0.01)
    estimate_sampling_memory(recipe().model, 4)
    flops_per_image(recipe())
    assert torch.equal(before, torch.get_rng_state())


def test_sampling_memory_grows_with_the_batch_and_halves_with_the_type() -> None:
    config = recipe().model
    small, large = (estimate_sampling_memory(config, batch) for batch in (512, 1024))
    assert small["weights"] == large["weights"]
    assert large["activations"] == pytest.approx(2 * small["activations"], rel=0.1)
    half = estimate_sampling_memory(config, 1024, dtype=torch.bfloat16)
    assert half["weights"] == large["weights"] // 2 and half["total"] < large["total"]


def test_random_networks_are_as_large_as_the_published_ones() -> None:
    networks = random_perceptual()
    assert networks.name == "published"
    assert sum(p.numel() for p in networks.parameters()) == pytest.approx(14_714_688 + 50_223_688, rel=1e-3)
    assert not any(p.requires_grad for p in networks.parameters())
    with pytest.raises(ConfigError, match="random networks"):
        random_perceptual("none")


def test_available_memory_minds_the_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = available_memory(CPU)
    assert found is None or found > 0
    assert available_memory(torch.device("mps")) is None
    info = tmp_path / "meminfo"
    info.write_text("MemTotal: 9 kB\nMemAvailable:    2048 kB\n")
    assert module._meminfo(info) == 2048 << 10
    assert module._meminfo(tmp_path / "missing") is None
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.current").write_text("700000\n")
    (tmp_path / "memory.stat").write_text("anon 1\ninactive_file 200000\n")
    assert 500_000 in module._container_limits(tmp_path)
    (tmp_path / "memory.max").write_text("max\n")
    old = tmp_path / "memory"
    old.mkdir()
    (old / "memory.limit_in_bytes").write_text("5000")
    (old / "memory.usage_in_bytes").write_text("6000")
    monkeypatch.setattr(module, "_meminfo", lambda: 10**6)
    assert list(module._container_limits(tmp_path)) == [-1000]


def test_micro_batches_are_halves() -> None:
    assert micro_batches(16) == [16, 8, 4, 2, 1]
    assert micro_batches(6) == [6, 3, 2, 1]
    assert micro_batches(1) == [1]


def test_the_largest_micro_batch_that_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    exact = memory(micro_batch=4).total
    common = {"precision": "float32", "device_type": "cpu"}
    monkeypatch.setattr(module, "_rough_total", lambda _: float("inf"))
    assert largest_micro_batch(recipe(), available=int(exact / 0.9) + 1, **common) == 4
    assert largest_micro_batch(recipe(), available=int(exact / 0.9) - 10, **common) == 2
    assert largest_micro_batch(recipe(), available=10**12, **common) == 16
    assert largest_micro_batch(recipe(), available=1, **common) == 1
    monkeypatch.setattr(module, "available_memory", lambda _: int(exact / 0.9) + 1)
    assert choose_micro_batch(recipe(), CPU, "float32", World()) == 4
    monkeypatch.setattr(module, "available_memory", lambda _: None)
    assert choose_micro_batch(recipe(), CPU, "float32", World()) == 16


@pytest.mark.parametrize("name", ["debug", "cifar10-laptop", "flowers-laptop", "digits"])
def test_the_rough_bound_is_above_the_estimate(name: str) -> None:
    changed = load_recipe(name, ["perceptual=none"])
    found = estimate_memory(changed, precision="float32", device_type="cuda")
    assert module._rough_total(changed) > found.total


def test_a_warning_names_what_helps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CPU_RESERVE", 0)
    base = load_recipe("cifar10-laptop", ["perceptual=none"])
    needed = estimate_memory(base, precision="float32").total

    def explain(available: float, changed: Recipe = base, device: str = "cpu") -> str | None:
        return explain_fit(changed, "float32", device, 1, None, int(available))

    assert explain(2 * needed) is None
    text = explain(needed * 0.8)
    assert text is not None and "\n" not in text
    assert f"about {readable(needed)}" in text
    assert "train.micro_batch=" in text and "train.recompute=true" in text
    assert "train.precision=bf16" in str(explain(needed * 0.8, device="cuda"))
    least = dataclasses.replace(estimate_memory(base, precision="float32"), activations=0, temporary=0, overlap=0).total
    assert "train.parallel=fsdp with" in str(explain(least * 0.7))
    assert "a smaller model" in str(explain(1000))

    monkeypatch.setattr(module, "available_memory", lambda _: 10**13)
    assert fits_warning(base, CPU, "float32", World(), None) is None
    monkeypatch.setattr(module, "available_memory", lambda _: 10**6)
    assert "a smaller model" in str(fits_warning(base, CPU, "float32", World(), None))
    monkeypatch.setattr(module, "available_memory", lambda _: None)
    assert fits_warning(base, CPU, "float32", World(), None) is None


def new_step() -> TrainingStep:
    changed = recipe()
    return TrainingStep(AutoencoderSystem(changed, None), changed, device=CPU, precision="float32")


def failing_above(step: TrainingStep, limit: int) -> Callable[..., Any]:
    backward = step.backward

    def fake(batch: Any, draws: Any) -> Any:
        if len(batch.images) > limit:
            raise torch.OutOfMemoryError("too much")
        return backward(batch, draws)

    return fake


def test_trying_halves_until_it_fits_and_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    step = new_step()
    before = {name: tensor.clone() for name, tensor in step.model.state_dict().items()}
    monkeypatch.setattr(step, "backward", failing_above(step, 5))
    state = torch.get_rng_state()
    assert try_micro_batch(step) == step.micro_batch == 4
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(tensor, before[name]) for name, tensor in step.model.state_dict().items())
    assert all(parameter.grad is None for parameter in step.model.parameters())
    monkeypatch.setattr(step, "backward", failing_above(step, 0))
    with pytest.raises(ConfigError, match="not even one image"):
        try_micro_batch(step)


def test_time_of_a_model_that_is_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    state = torch.get_rng_state()
    found = estimate_time(recipe(), None, CPU, "float32", budget=1.0)
    assert torch.equal(state, torch.get_rng_state())
    assert found.steps == 40
    assert found.hours == pytest.approx(40 * found.seconds_per_step / 3600)
    assert found.hours_per_1000_images_epoch == pytest.approx(1000 / 16 * found.seconds_per_step / 3600)
    assert found.seconds_per_step > 0 and found.mfu > 0
    assert json.loads(json.dumps(found.as_dict()))["method"] == found.method


def test_time_of_a_model_that_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "available_memory", lambda _: 1)
    epochs = recipe("train.epochs=2")
    found = estimate_time(epochs, None, CPU, "float32", budget=0.5)
    assert "block" in found.method
    assert found.steps is None and found.hours is None
    assert found.seconds_per_step == pytest.approx(16 * flops_per_image(epochs) / (found.mfu * found.peak_flops))
    assert estimate_time(epochs, 160, CPU, "float32", budget=0.5).steps == 20


def test_operations_are_those_of_the_system() -> None:
    changed = recipe("perceptual=builtin")
    assert flops_per_image(changed) == build_system(changed).flops_per_image()
