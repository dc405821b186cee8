"""The published tensors as a user reaches them: convert, the saved folder, the pipeline with given noise."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import spheregen as sg
from spheregen.interop import convert_sphere_encoder
from tests.conftest import GOLDEN_NAMES
from tests.folders.test_golden import settings_of


@dataclass(frozen=True)
class Golden:
    folder: Path
    pipe: sg.Pipeline
    io: dict[str, Tensor]
    cases: list[str]

    def generated(self, pipe: sg.Pipeline, name: str) -> Tensor:
        """A generate case; its name holds the settings."""
        settings = settings_of(name)
        return pipe.generate(
            labels=self.io.get("labels"), noise=self.io["initial_noise"], step_noise=self.io["step_noise"], **settings
        ).tensor


@pytest.fixture(scope="module", params=GOLDEN_NAMES)
def golden(request: pytest.FixtureRequest, shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Golden:
    source = shared / "golden" / "official-sphere-encoder" / request.param
    out = tmp_path_factory.mktemp("models") / request.param
    convert_sphere_encoder(source, out)
    pipe = sg.Pipeline.from_pretrained(out, device="cpu", quiet=True)
    io = load_file(source / "io.safetensors")
    return Golden(out, pipe, io, [name for name in io if name.startswith("generate/")])


def test_generation_through_the_pipeline(golden: Golden) -> None:
    assert len(golden.cases) >= 5
    for name in golden.cases:
        torch.testing.assert_close(golden.generated(golden.pipe, name), golden.io[name], atol=3e-5, rtol=0)


def test_editing_through_the_pipeline(golden: Golden) -> None:
    output = golden.pipe.edit(
        (golden.io["x"] + 1) / 2,
        golden.io.get("labels"),
        steps=4,
        strength=0.25,
        guidance=1.0,
        step_noise=golden.io["step_noise"],
    )
    expected = golden.io["edit/strength=0.25/steps=4"]
    torch.testing.assert_close(torch.stack(output.trajectory), expected, atol=3e-5, rtol=0)
    assert torch.equal(output.tensor, output.trajectory[-1])


def test_a_model_saved_again_gives_the_same_bits(golden: Golden, tmp_path: Path) -> None:
    golden.pipe.save_pretrained(tmp_path / "again")
    again = sg.Pipeline.from_pretrained(tmp_path / "again", device="cpu", quiet=True)
    assert again.info.provenance == golden.pipe.info.provenance != {}
    assert torch.equal(golden.generated(again, golden.cases[-1]), golden.generated(golden.pipe, golden.cases[-1]))


def test_bf16_stays_near_float32(golden: Golden) -> None:
    """Random weights are harder than trained ones: nothing in them averages rounding away."""
    half = sg.Pipeline.from_pretrained(golden.folder, device="cpu", dtype="bfloat16", quiet=True)
    for name in golden.cases[:2]:
        difference = (golden.generated(half, name) - golden.io[name]).abs()
        assert difference.mean() <= 0.005, f"{name}: {difference.mean():.4f}"
        assert difference.flatten().quantile(0.999) <= 0.05, f"{name}: {difference.flatten().quantile(0.999):.4f}"
