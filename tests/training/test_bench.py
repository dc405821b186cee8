"""The benchmark: its figures fit together, its work is the library's own, and bad options are named."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
import torch

from spheregen.errors import ConfigError
from spheregen.evaluation.cost import autoencoder_cost
from spheregen.losses.perceptual import load_perceptual
from spheregen.training import bench as module
from spheregen.training.bench import BenchResult, bench, operator_group
from spheregen.training.recipe import load_recipe
from spheregen.training.systems import build_system

CPU = torch.device("cpu")


def run(*settings: str, **options: Any) -> BenchResult:
    small: dict[str, Any] = {"precisions": ["float32"], "repeats": 2, "peak_sizes": (64,)}
    return bench(load_recipe("debug", settings), device=CPU, **{**small, **options})


def test_the_figures_fit_together() -> None:
    lines: list[str] = []
    before = torch.get_rng_state()
    result = run(precisions=["float32", "bf16"], steps=(1, 3), progress=lines.append)
    assert torch.equal(before, torch.get_rng_state())
    assert lines
    recipe = load_recipe("debug")
    cost = autoencoder_cost(recipe.model)
    counted = {
        ("sample", 1): 1e9 * cost.generation_gflops(1),
        ("sample", 3): 1e9 * cost.generation_gflops(3),
        ("train", 1): build_system(recipe).flops_per_image(),
    }
    assert [(row.what, row.steps, row.precision) for row in result.rows] == [
        (*work, precision) for precision in ("float32", "bf16") for work in counted
    ]
    for row in result.rows:
        assert row.flops_per_image == counted[row.what, row.steps]
        assert row.batch_size == 16
        assert row.images_per_second == pytest.approx(16 / row.seconds)
        assert row.flops == pytest.approx(row.images_per_second * row.flops_per_image)
        assert row.of_peak == pytest.approx(row.flops / result.peaks[row.precision].flops)
        assert row.percentiles["p5"] <= row.percentiles["p50"] == row.seconds <= row.percentiles["p95"]
        assert row.peak_bytes is None or row.peak_bytes > 0
    assert result.machine.kind == "cpu" and result.machine.torch == torch.__version__
    values = result.as_dict()
    assert json.loads(json.dumps(values)) == values


def test_everything_takes_turns_with_the_products(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    sample, measure = module.PeakMeter.sample, module._Work.measure
    monkeypatch.setattr(module.PeakMeter, "sample", lambda self: (order.append("product"), sample(self)))
    monkeypatch.setattr(module._Work, "measure", lambda self: (order.append(self.name), measure(self)))
    run(repeats=3)
    assert order == ["product", "sample 1 step", "sample 4 steps", "train"] * 3


def test_options_are_read() -> None:
    result = run(batch_size=4, what=["train"])
    assert [(row.what, row.batch_size) for row in result.rows] == [("train", 4)]
    assert not result.profiles
    assert len(run(what=["sample"], steps=[2]).rows) == 1
    assert run("train.micro_batch=3", "train.recompute=true", what=["train"]).rows[0].batch_size == 16


def test_perceptual_networks_count(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def small_one() -> Any:
        asked.append("random")
        return load_perceptual("builtin")

    monkeypatch.setattr(module, "random_perceptual", small_one)
    plain, heavy = (
        run(f"perceptual={kind}", what=["train"], repeats=1, perceptual=random)
        for kind, random in (("none", None), ("none", "random"))
    )
    assert asked == ["random"]
    assert heavy.rows[0].flops_per_image > plain.rows[0].flops_per_image
    assert any("random" in note for note in heavy.notes) and not plain.notes


def test_the_profile_adds_up() -> None:
    result = run(what=["train"], repeats=1, profile=True)
    (rows,) = result.profiles.values()
    groups = [row for row in rows if row.name == "(all)"]
    assert sum(row.share for row in groups) == pytest.approx(1)
    assert "matrix products" in {row.group for row in groups}
    operators = [row for row in rows if row.name != "(all)"]
    assert 0 < len(operators) <= 15
    assert operators == sorted(operators, key=lambda row: -row.seconds)


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("aten::addmm", "matrix products"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu", "attention"),
        ("aten::convolution_backward", "convolutions"),
        ("aten::_fused_adamw_", "optimiser"),
        ("aten::_to_copy", "copies and casts"),
        ("aten::rms_norm", "norms and softmax"),
        ("aten::mul", "elementwise"),
        ("something", "other"),
    ],
)
def test_operators_have_groups(name: str, group: str) -> None:
    assert operator_group(name) == group


@pytest.mark.parametrize(("slow", "expected"), [(1e9, ("float32",)), (9e9, ("float32", "bf16"))])
def test_bf16_is_left_out_where_it_is_absurdly_slow(
    monkeypatch: pytest.MonkeyPatch, slow: float, expected: tuple[str, ...]
) -> None:
    monkeypatch.setattr(module, "matmul_peak", lambda _, precision, **__: 50e9 if precision == "float32" else slow)
    result = run(precisions=None, what=["sample"], steps=[1], repeats=1)
    assert tuple(result.peaks) == expected
    assert ("50 times slower" in " ".join(result.notes)) == (len(expected) == 1)


def test_percentiles_by_hand() -> None:
    assert module._percentile([4.0, 1.0, 3.0, 2.0], 50) == 2.5
    assert module._percentile([7.0], 95) == 7.0


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"precisions": ["fp8"]}, "unknown precision 'fp8'"),
        ({"what": ["sleep"]}, "unknown kind of work 'sleep'"),
        ({"what": []}, "at least one"),
        ({"steps": [0]}, "at least 1"),
        ({"repeats": 0}, "at least 1"),
        ({"batch_size": 0}, "at least 1"),
        ({"perceptual": "frog"}, "random"),
    ],
    ids=str,
)
def test_bad_options(options: dict[str, Any], part: str) -> None:
    with pytest.raises(ConfigError, match=part):
        run(**options)


def test_results_are_frozen() -> None:
    result = run(what=["sample"], steps=[1], repeats=1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.recipe = "other"  # type: ignore[misc]
