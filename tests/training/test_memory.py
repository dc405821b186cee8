"""Estimates of memory: a count by other means, and laws that hold whatever the machine."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
import torch

from spheregen.errors import ConfigError
from spheregen.training import memory as module
from spheregen.training import tracing
from spheregen.training.memory import MemoryEstimate, estimate_memory, estimate_sampling_memory
from spheregen.training.recipe import Recipe, load_recipe
from spheregen.training.step import TrainingStep
from spheregen.training.synthetic import synthetic_batch
from spheregen.training.systems import build_system
from spheregen.training.timing import flops_per_image

CPU = torch.device("cpu")
BRIEF = ("train.batch_size=1", "loss.pixel_consistency=0", "loss.latent_consistency=0")
"""Fewer and shorter traces: of one image, without the terms that encode and decode it again."""


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
        result = system.loss(batch.inputs, batch.labels, draws)
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
    monkeypatch.setattr(tracing, "_quick", lambda *_: None)
    assert module._trace(changed, precision, device, 3) == quick


def test_options_that_save_memory() -> None:
    size = "{width: 32, depth: 6, heads: 2}"
    deep = [f"model.encoder={size}", f"model.decoder={size}", "model.image_size=32", *BRIEF]
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
