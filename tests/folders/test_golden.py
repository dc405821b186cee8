"""The published implementation's tensors, reproduced: float32 within 3e-5, float64 within 1e-5."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import typer.main
from safetensors.torch import load_file
from torch import Tensor

import spheregen as sg
from spheregen.cli.main import app
from spheregen.family.sphere_encoder.network import SphereAutoencoder
from spheregen.family.terms import latent_distance, pixel_distance, to_unit
from spheregen.folders.model_folder import load_model
from spheregen.sphere import scale_noise
from tests.conftest import GOLDEN_NAMES

PLACES = {"enc": "latent", "dec": "pixel", "combo": "both"}


def settings_of(name: str) -> dict[str, Any]:
    """The settings of a generate case, which its name holds."""
    told = dict(part.split("=") for part in name.split("/")[1:])
    place = PLACES[told["position"]]
    return {
        "steps": int(told["steps"]),
        "schedule": told["schedule"],
        "guidance": float(told["cfg"]),
        "guidance_at": place,
    }


@dataclass(frozen=True)
class Golden:
    model: SphereAutoencoder
    io: dict[str, Tensor]
    tolerance: float

    @property
    def labels(self) -> Tensor | None:
        return self.io.get("labels")

    def check(self, value: Tensor, name: str) -> None:
        expected = self.io[name].to(value.dtype)
        assert value.shape == expected.shape
        worst = (value - expected).abs().max().item()
        assert worst <= self.tolerance, f"{name} differs by {worst:.2e}"


@pytest.fixture(
    scope="module",
    params=[(name, dtype, way) for name in GOLDEN_NAMES for dtype, way in (("float32", "load"), ("float64", "shapes"))],
    ids="-".join,
)
def golden(request: pytest.FixtureRequest, shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Golden:
    """Each golden case as it is read, through `spheregen convert`, and through it without the configuration."""
    name, dtype_name, way = request.param
    folder = shared / "golden" / "official-sphere-encoder" / name
    dtype = getattr(torch, dtype_name)
    io = load_file(folder / "io.safetensors")
    io = {key: value.to(dtype) if value.is_floating_point() else value for key, value in io.items()}
    if way == "load":
        model = sg.interop.load_sphere_encoder(folder).to(dtype)
    else:
        model = converted(folder, tmp_path_factory.mktemp("converted")).to(dtype)
    return Golden(model, io, 3e-5 if dtype is torch.float32 else 1e-5)


def converted(folder: Path, place: Path) -> SphereAutoencoder:
    """The model that the command makes when it is told no more than what shapes cannot tell."""
    weights = shutil.copy(folder / "weights.safetensors", place / "alone.safetensors")
    told = json.loads((folder / "config.json").read_text())
    heads = {told["sizes"][told[f"{part}_model_size"]]["heads"] for part in ("vit_enc", "vit_dec")}
    assert heads == {2}
    settings = [f"noise_sigma_max_angle={told['noise_sigma_max_angle']}", "vit_enc_heads=2", "vit_dec_heads=2"]
    words = ["convert", "sphere-encoder", "--weights", str(weights), "--out", str(place / "out")]
    typer.main.get_command(app).main([*words, *(f"--set={setting}" for setting in settings)], standalone_mode=False)
    return load_model(place / "out").model


@torch.no_grad()
def test_networks(golden: Golden) -> None:
    model, io, y = golden.model, golden.io, golden.labels
    golden.check(model.encoder(io["x"], y), "encoder_out")
    golden.check(model.encode(io["x"], y), "latent")
    golden.check(model.decode(io["latent"], y), "decoded")
    if y is not None:
        golden.check(model.encoder(io["x"]), "encoder_out_null_class")
    golden.check(to_unit(sg.sampling.reconstruct(model, io["x"])), "reconstruct_null_class")


def test_generation(golden: Golden) -> None:
    cases = [name for name in golden.io if name.startswith("generate/")]
    assert len(cases) >= 5
    # through the command every third suffices, of the same weights
    for name in cases[:: 1 if golden.tolerance > 1e-5 else 3]:
        settings, io = settings_of(name), golden.io
        result = sg.sampling.sample(
            golden.model, io["initial_noise"], golden.labels, step_noise=io["step_noise"], **settings
        )
        golden.check(to_unit(result.images), name)
        assert len(result.trajectory) == settings["steps"]


def test_edit(golden: Golden) -> None:
    result = sg.sampling.edit(
        golden.model, golden.io["x"], golden.labels, steps=4, strength=0.25, step_noise=golden.io["step_noise"]
    )
    golden.check(to_unit(torch.stack(result.trajectory)), "edit/strength=0.25/steps=4")


@torch.no_grad()
def test_training_latents_and_losses(golden: Golden) -> None:
    model, io, y = golden.model, golden.io, golden.labels
    largest, latent, noise = math.radians(model.alpha_max), io["latent"], io["step_noise"]
    v_strong = model.prior.perturb(latent, noise, scale_noise(largest, io["train/r"]))
    v_weak = model.prior.perturb(latent, noise, scale_noise(largest, io["train/r"] * io["train/s"]))
    golden.check(v_strong, "train/v_NOISY")
    golden.check(v_weak, "train/v_noisy")
    strong, weak = model.decoder(v_strong, y), model.decoder(v_weak, y)
    golden.check(strong, "train/x_NOISY")
    golden.check(weak, "train/x_noisy")
    again = model.encoder(strong, y)
    golden.check(again, "train/encoder_x_NOISY")
    golden.check(pixel_distance(to_unit(weak), to_unit(io["x"])), "train/pix_recon_l1")
    golden.check(pixel_distance(to_unit(strong), to_unit(weak)), "train/pix_con_l1")
    golden.check(latent_distance(again, io["encoder_out"]), "train/lat_con")


@pytest.mark.parametrize("name", GOLDEN_NAMES)
def test_the_pipeline_of_a_converted_folder_and_of_one_saved_again(name: str, shared: Path, tmp_path: Path) -> None:
    source = shared / "golden" / "official-sphere-encoder" / name
    sg.interop.convert_sphere_encoder(source, tmp_path / "out")
    pipe = sg.Pipeline.from_pretrained(tmp_path / "out", device="cpu", quiet=True)
    io = load_file(source / "io.safetensors")
    labels, cases = io.get("labels"), [name for name in io if name.startswith("generate/")]

    def generated(pipe: sg.Pipeline, name: str) -> Tensor:
        noise = {"noise": io["initial_noise"], "step_noise": io["step_noise"]}
        return pipe.generate(labels=labels, **noise, **settings_of(name)).tensor

    for case in cases[::3]:  # of the same weights all are tested above
        torch.testing.assert_close(generated(pipe, case), io[case], atol=3e-5, rtol=0)
    output = pipe.edit((io["x"] + 1) / 2, labels, steps=4, strength=0.25, guidance=1.0, step_noise=io["step_noise"])
    expected = io["edit/strength=0.25/steps=4"]
    torch.testing.assert_close(torch.stack(output.trajectory), expected, atol=3e-5, rtol=0)
    assert torch.equal(output.tensor, output.trajectory[-1])
    pipe.save_pretrained(tmp_path / "again")
    again = sg.Pipeline.from_pretrained(tmp_path / "again", device="cpu", quiet=True)
    assert again.info.provenance == pipe.info.provenance != {}
    assert torch.equal(generated(again, cases[0]), generated(pipe, cases[0]))
    # random weights are harder than trained ones: nothing in them averages rounding away
    half = sg.Pipeline.from_pretrained(tmp_path / "again", device="cpu", dtype="bfloat16", quiet=True)
    difference = (generated(half, cases[0]) - io[cases[0]]).abs()
    assert difference.mean() <= 0.005 and difference.flatten().quantile(0.999) <= 0.05
