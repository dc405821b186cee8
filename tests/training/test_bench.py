"""The benchmark: its figures fit together, its work is the library's own, and bad options are named."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from spheregen.errors import ConfigError
from spheregen.family.registry import blank_model, cost_of
from spheregen.training import bench as module
from spheregen.training import frozen
from spheregen.training.bench import BenchResult, bench
from spheregen.training.estimate import step_cost
from spheregen.training.recipe import load_recipe


def run(*settings: str, recipe: str = "debug", **options: Any) -> BenchResult:
    small: dict[str, Any] = {"precisions": ["float32"], "repeats": 2, "peak_sizes": (64,)}
    return bench(load_recipe(recipe, settings), device=torch.device("cpu"), **{**small, **options})


def test_the_figures_fit_together() -> None:
    before = torch.get_rng_state()
    result = run(precisions=["float32", "bf16"], steps=(1, 3), batch_size=4)
    assert torch.equal(before, torch.get_rng_state())
    works = [("sample", 1), ("sample", 3), ("train", 1)]
    assert [(row.what, row.steps, row.precision) for row in result.rows] == [
        (*work, precision) for precision in ("float32", "bf16") for work in works
    ]
    recipe = load_recipe("debug")
    once, thrice, step = (row.flops_per_image for row in result.rows[:3])
    cost = cost_of(blank_model(recipe.model))
    assert once == pytest.approx(1e9 * cost.generation_gflops(1, counted=True), rel=0.1)
    assert thrice == pytest.approx(1e9 * cost.generation_gflops(3, counted=True), rel=0.1)
    assert step == step_cost(recipe).flops_per_image
    for row in result.rows:
        assert row.batch_size == 4 and row.images_per_second == pytest.approx(4 / row.seconds)
        assert row.flops == pytest.approx(row.images_per_second * row.flops_per_image)
        assert row.of_peak == pytest.approx(row.flops / result.peaks[row.precision].flops)
        assert row.percentiles["p5"] <= row.percentiles["p50"] == row.seconds <= row.percentiles["p95"]
    assert result.machine["kind"] == "cpu" and result.machine["torch"] == torch.__version__
    assert "aten::" in run(what=["train"], repeats=1, profile=True).profiles["train float32"]
    values = result.as_dict()
    assert json.loads(json.dumps(values)) == values


def test_everything_takes_turns_with_the_products(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    sample, measure = module.PeakMeter.sample, module._Work.measure
    monkeypatch.setattr(module.PeakMeter, "sample", lambda self: (order.append("product"), sample(self)))
    monkeypatch.setattr(module._Work, "measure", lambda self: (order.append(self.name), measure(self)))
    run(repeats=2, batch_size=4)
    assert order == ["product", "sample 1 step", "sample 4 steps", "train"] * 2


def test_perceptual_networks_count(monkeypatch: pytest.MonkeyPatch) -> None:
    real = frozen.random_perceptual
    monkeypatch.setattr(frozen, "random_perceptual", lambda kind: real("builtin"))
    result = run("perceptual=none", "model.image_size=16", what=["train"], repeats=1, perceptual="random")
    assert result.rows[0].flops_per_image > step_cost(load_recipe("debug", ["model.image_size=16"])).flops_per_image
    assert any("random" in note for note in result.notes)


def test_bf16_is_left_out_where_it_is_absurdly_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "matmul_peak", lambda _, precision, **__: 50e9 if precision == "float32" else 1e9)
    result = run(precisions=None, what=["sample"], steps=[1], repeats=1)
    assert tuple(result.peaks) == ("float32",) and "50 times slower" in " ".join(result.notes)


def test_impossible_numbers_are_refused() -> None:
    for options in ({"steps": [0]}, {"steps": []}, {"repeats": 0}, {"batch_size": 0}, {"what": []}):
        with pytest.raises(ConfigError, match="at least 1"):
            run(**options)
