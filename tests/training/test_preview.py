"""Preview sheets: what their rows are, the same noise every time, nothing written without a path."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from spheregen.data import read_image, read_metadata
from spheregen.errors import ConfigError
from spheregen.models.autoencoder import SphereAutoencoder
from spheregen.sampling import reconstruct
from spheregen.sphere import angle_between, angle_to_sigma
from spheregen.training.preview import save_preview, shown_angles
from spheregen.training.recipe import load_recipe


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


@pytest.fixture
def originals() -> Tensor:
    return torch.rand(12, 1, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1


LABELS = torch.arange(12) % 10


def rows_of(path: Path) -> list[str]:
    return read_metadata(path)["rows"].split("; ")


def pixels(path: Path, row: int, columns: int = 10, cell: int = 48) -> Tensor:
    """A row of a sheet, (columns, 8, 8) in [0, 1]."""
    sheet = read_image(path).convert("L")
    cells = []
    for column in range(columns):
        left, top = 2 + column * (cell + 2), 2 + row * (cell + 2)
        small = sheet.crop((left, top, left + cell, top + cell)).resize((8, 8), Image.Resampling.NEAREST)
        cells.append(torch.tensor(list(small.tobytes()), dtype=torch.float32).reshape(8, 8) / 255)
    return torch.stack(cells)


def test_the_sheet_says_what_its_rows_are(model: SphereAutoencoder, originals: Tensor, tmp_path: Path) -> None:
    path = tmp_path / "preview.png"
    save_preview(model, originals, path, {"step": "7"}, labels=LABELS, guidance=1.3)
    assert read_metadata(path)["step"] == "7"
    assert rows_of(path) == [
        "1: originals",
        "2: reconstructions, null class",
        "3: latents rotated by 0 degrees, their classes",
        "4: latents rotated by 25 degrees, their classes",
        "5: latents rotated by 50 degrees, their classes",
        "6: latents rotated by 75 degrees, their classes",
        "7-8: samples in 1 step, seeds 0 to 19, guidance 1.3",
        "9-10: samples in 4 steps, seeds 0 to 19, guidance 1.3",
    ]
    assert read_image(path).size == (10 * 50 + 2, 10 * 50 + 2)


def test_rows_hold_what_they_say(model: SphereAutoencoder, originals: Tensor, tmp_path: Path) -> None:
    path = tmp_path / "preview.png"
    save_preview(model, originals, path, {}, labels=LABELS, angles=(0,), steps=(1,))
    ten, labels = originals[:10], LABELS[:10]
    for row, images in enumerate((ten, reconstruct(model, ten), reconstruct(model, ten, labels))):
        expected = ((images[:, 0] + 1) / 2).clamp(0, 1)
        torch.testing.assert_close(pixels(path, row), expected, atol=0.003, rtol=0)


def test_without_labels_angle_zero_would_repeat_the_reconstruction(
    model: SphereAutoencoder, originals: Tensor, tmp_path: Path
) -> None:
    path = tmp_path / "preview.png"
    save_preview(model, originals, path, {}, steps=(1,))
    assert rows_of(path)[2] == "3: latents rotated by 25 degrees, null class"


def test_an_unconditional_model_is_sampled_without_guidance(originals: Tensor, tmp_path: Path) -> None:
    path = tmp_path / "preview.png"
    save_preview(build(num_classes=0), originals, path, {}, labels=LABELS, guidance=1.5)
    rows = rows_of(path)
    assert rows[1] == "2: reconstructions"
    assert rows[2] == "3: latents rotated by 25 degrees"
    assert rows[-1] == "8-9: samples in 4 steps, seeds 0 to 19"


@pytest.mark.parametrize("batch", [1, 3])
def test_a_small_batch_makes_a_narrow_sheet(
    model: SphereAutoencoder, originals: Tensor, tmp_path: Path, batch: int
) -> None:
    path = tmp_path / "preview.png"
    save_preview(model, originals[:batch], path, {}, labels=LABELS[:batch])
    assert read_image(path).size == (batch * 50 + 2, 10 * 50 + 2)


def test_pictures_are_the_same_every_time(model: SphereAutoencoder, originals: Tensor, tmp_path: Path) -> None:
    paths = [tmp_path / f"{i}.png" for i in range(2)]
    for path in paths:
        state = torch.random.get_rng_state()
        save_preview(model, originals, path, {}, labels=LABELS, share_noise=False, schedule="decay")
        assert torch.equal(state, torch.random.get_rng_state())  # training goes on as without a preview
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_settings_of_sampling_are_used(model: SphereAutoencoder, originals: Tensor, tmp_path: Path) -> None:
    sheets = set()
    for number, options in enumerate(
        (
            {},
            {"guidance": 3.0},
            {"guidance": 3.0, "guidance_at": "pixel"},
            {"schedule": "decay"},
            {"share_noise": False},
        )
    ):
        path = tmp_path / f"{number}.png"
        save_preview(model, originals, path, {}, angles=(), steps=(4,), **options)  # type: ignore[arg-type]
        sheets.add(read_image(path).tobytes())
    assert len(sheets) == 5


def test_without_a_path_all_is_computed_and_nothing_written(
    model: SphereAutoencoder, originals: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: dict[str, list[int]] = {"with": [], "without": []}
    for name, path in (("with", tmp_path / "preview.png"), ("without", None)):
        handle = model.decoder.register_forward_pre_hook(
            lambda _, inputs, seen=calls[name]: seen.append(inputs[0].shape[0])
        )
        save_preview(model, originals, path, {}, labels=LABELS, guidance=1.2)
        handle.remove()
    assert calls["with"] == calls["without"] and len(calls["with"]) == 10
    assert [file.name for file in tmp_path.iterdir()] == ["preview.png"]


def test_wrong_settings_are_refused_before_a_file_is_there(
    model: SphereAutoencoder, originals: Tensor, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="steps is at least 1"):
        save_preview(model, originals, tmp_path / "preview.png", {}, steps=(0,))
    assert list(tmp_path.iterdir()) == []


def test_angles_end_at_the_training_noise() -> None:
    assert shown_angles((0, 25, 50, 75), angle_to_sigma(80)) == (0, 25, 50, 75)
    assert shown_angles((0, 25, 50, 75), angle_to_sigma(53)) == (0, 25, 50, 53)
    assert shown_angles((0, 60, 75), angle_to_sigma(53)) == (0, 53)


def test_latents_are_rotated_by_the_angle_that_is_named(originals: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build()
    v = model.encode(originals[:10], LABELS[:10])
    decoded: list[Tensor] = []
    decode = model.decode
    monkeypatch.setattr(model, "decode", lambda z, labels=None: (decoded.append(z), decode(z, labels))[1])
    save_preview(model, originals, None, {}, labels=LABELS, angles=(0, 25, 50), steps=(1,))
    for z, angle in zip(decoded[1:4], (0, 25, 50), strict=True):
        torch.testing.assert_close(angle_between(v, z), torch.full((10,), float(angle)), atol=0.01, rtol=0)
