"""Previews: rows and words for them, the same noise every time, for every kind of model."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from spheregen.data import Batch, read_image, read_metadata
from spheregen.family.recipe import SamplingConfig
from spheregen.family.sphere_encoder.network import SphereAutoencoder
from spheregen.sampling import reconstruct
from spheregen.training.preview import PreviewHook, preview_rows
from spheregen.training.recipe import load_recipe
from tests.training.test_hooks import view

LABELS = torch.arange(10) % 10
ORIGINALS = torch.rand(10, 1, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1


def build(**changes: object) -> SphereAutoencoder:
    torch.manual_seed(0)
    config = dataclasses.replace(load_recipe("debug").model, **changes)  # type: ignore[arg-type]
    model = SphereAutoencoder(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return model


@pytest.fixture(scope="module")
def model() -> SphereAutoencoder:
    return build()


def test_rows_are_what_their_words_say(model: SphereAutoencoder) -> None:
    rows = preview_rows(model, ORIGINALS, LABELS, SamplingConfig(guidance=1.3))
    angles = [f"latents rotated by {angle} degrees, their classes" for angle in (0, 25, 50, 75)]
    assert list(rows) == [
        "originals",
        "reconstructions, null class",
        *angles,
        "samples in 1 step, seeds 0 to 19, guidance 1.3",
        "samples in 4 steps, seeds 0 to 19, guidance 1.3",
    ]
    assert torch.equal(rows["originals"], ORIGINALS)
    assert torch.equal(rows["reconstructions, null class"], reconstruct(model, ORIGINALS))
    torch.testing.assert_close(rows[angles[0]], reconstruct(model, ORIGINALS, LABELS))


def test_settings_of_sampling_are_used_and_random_state_is_not(model: SphereAutoencoder) -> None:
    state = torch.get_rng_state()
    options = ({}, {"guidance": 3.0}, {"guidance": 3.0, "guidance_at": "pixel"}, {"schedule": "decay"}, {})
    last = [
        list(preview_rows(model, ORIGINALS[:2], None, SamplingConfig(**each)).values())[-1]  # type: ignore[arg-type]
        for each in options
    ]
    assert torch.equal(state, torch.get_rng_state())
    assert len({images.numpy().tobytes() for images in last}) == 4 and torch.equal(last[0], last[-1])


def test_the_hook_writes_a_sheet(model: SphereAutoencoder, tmp_path: Path) -> None:
    batch = Batch(inputs=torch.cat([ORIGINALS, ORIGINALS]), labels=torch.cat([LABELS, LABELS]), indices=LABELS, step=0)

    def call(**options: Any) -> Any:
        hook = PreviewHook(20, computes=options.pop("computes", True))
        run = dataclasses.replace(view(tmp_path, step=20, model=model, **options), first_batch=lambda: batch)
        return hook.after_step(run, 20)

    assert call(is_first=False) is None and call(computes=False) is None and not list(tmp_path.iterdir())
    path = call()["preview"]
    assert path == tmp_path / "previews" / "step-000000020.png"
    about = read_metadata(path)
    assert (about["step"], about["recipe"]) == ("20", "debug")
    assert about["rows"].startswith("1: originals; 2: reconstructions") and "9-10: samples in 4 steps" in about["rows"]
    assert read_image(path).width > 10 * 50 + 2  # with captions at the left
