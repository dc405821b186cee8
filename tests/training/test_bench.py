"""The benchmark: its figures fit together, its work is the library's own, and bad options are named."""

from __future__ import annotations

import itertools
import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from spheregen.errors import ConfigError
from spheregen.family.registry import blank_model, cost_of
from spheregen.training.bench import BenchResult, bench, compare, read_result
from spheregen.training.estimate import step_cost
from spheregen.training.recipe import load_recipe


def run(*settings: str, recipe: str = "debug", **options: Any) -> BenchResult:
    small: dict[str, Any] = {"precisions": ["float32"], "repeats": 2, "peak_sizes": (64,)}
    return bench(load_recipe(recipe, settings), device=torch.device("cpu"), **{**small, **options})


def test_the_figures_fit_together() -> None:
    before = torch.get_rng_state()
    result = run(steps=(1, 3), batch_size=4)
    assert torch.equal(before, torch.get_rng_state())
    works = [("sample", 1), ("sample", 3), ("train", 1)]
    assert [(row.what, row.steps, row.precision) for row in result.rows] == [(*work, "float32") for work in works]
    recipe = load_recipe("debug")
    once, thrice, step = (row.flops_per_image for row in result.rows[:3])
    cost = cost_of(blank_model(recipe.model))
    assert once == pytest.approx(1e9 * cost.generation_gflops(1, counted=True), rel=0.1)
    assert thrice == pytest.approx(1e9 * cost.generation_gflops(3, counted=True), rel=0.1)
    assert step == step_cost(recipe).flops_per_image
    for row in result.rows:
        assert row.batch_size == 4 and row.images_per_second == pytest.approx(4 / row.seconds)
        assert row.images_per_cpu_second == pytest.approx(4 / row.cpu_seconds)
        assert row.flops == pytest.approx(row.images_per_second * row.flops_per_image)
        assert row.of_peak == pytest.approx(row.flops / result.peaks[row.precision].flops)
        assert row.percentiles["p5"] <= row.percentiles["p50"] == row.seconds <= row.percentiles["p95"]
    assert result.machine["kind"] == "cpu" and result.machine["torch"] == torch.__version__
    values = result.as_dict()
    assert json.loads(json.dumps(values)) == values


@pytest.mark.parametrize("recipe", ["debug", "conv-debug", "flow-debug"])
def test_operations_do_not_depend_on_the_arithmetic(recipe: str) -> None:
    options: dict[str, Any] = {"what": ("sample",), "steps": (2,), "precisions": ["float32", "bf16"], "batch_size": 4}
    full, half = run(recipe=recipe, **options).rows
    assert half.flops_per_image == full.flops_per_image > 1e4


def test_a_busy_machine_is_told_by_processor_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = itertools.count()
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(ticks)))
    for rate, busy in ((0.1, True), (2.0, False)):
        monkeypatch.setattr(time, "process_time", lambda rate=rate: rate * next(ticks))
        result = run(what=("train",), batch_size=4)
        assert busy == any("the machine is busy" in note for note in result.notes)
        assert result.machine["cpu_share"] > 0


def test_results_are_compared_by_processor_seconds(tmp_path: Path) -> None:
    result = run(what=("train",), batch_size=4)
    saved = json.loads(json.dumps(result.as_dict()))
    saved["rows"][0]["images_per_cpu_second"] /= 2
    file = tmp_path / "saved.json"
    file.write_text(json.dumps(saved))
    assert compare(result, read_result(file)) == {"debug cpu train 1 float32 4": pytest.approx(2)}
    for other in ({**saved, "rows": []}, {**saved, "recipe": "another"}):
        with pytest.raises(ConfigError, match="in common"):
            compare(result, other)
    for wrong in ("", "[]", "{}", json.dumps({**saved, "rows": 1}), json.dumps({**saved, "machine": {}})):
        file.write_text(wrong)
        with pytest.raises(ConfigError, match=r"saved\.json"):
            read_result(file)
