"""Restoration measured beside simple means."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from spheregen.errors import ConfigError
from spheregen.evaluation.restoration import TASKS, choose_tasks, evaluate_restoration, total_variation
from tests.factories import tiny_model_folder


def test_tasks_are_measured_beside_simple_means(tmp_path: Path) -> None:
    model = tiny_model_folder(tmp_path / "tiny")
    told: list[dict[str, object]] = []
    found = evaluate_restoration(str(model), "digits", ["denoise", "superres"], count=4, device="cpu", told=told.append)
    methods = [(row["task"], row["method"]) for row in found["rows"]]
    assert told == found["rows"] and methods[-1] == ("superres", "model") and ("denoise", "median") in methods
    assert all(row["psnr"] > 0 and row["residual"] >= 0 for row in found["rows"])
    assert found["protocol"]["noise"] == {"denoise": 0.2, "superres": 0.05}
    with pytest.raises(ConfigError, match="sharpen"):
        choose_tasks(["sharpen"])
    assert choose_tasks(["sp3"]) == tuple(TASKS)


def test_total_variation_takes_noise_away() -> None:
    clean = torch.zeros(1, 1, 16, 16)
    clean[..., 8:] = 1
    y = clean + 0.2 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    assert (total_variation(y, 0.2) - clean).square().mean() < 0.3 * (y - clean).square().mean()
