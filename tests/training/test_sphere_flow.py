"""System 3 trains through the one trainer: phases, separate optimisers, exact resume, several processes, any source."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import spheregen as sg
from spheregen.errors import ConfigError, ModelFileError, TrainingError
from spheregen.family.sphere_encoder.network import SphereAutoencoder
from spheregen.family.sphere_flow.network import RefinedGenerator
from spheregen.folders.model_folder import load_model, read_architecture
from spheregen.training.estimate import estimate_memory
from spheregen.training.recipe import build_recipe, load_recipe
from spheregen.training.trainer import train
from tests.training.runs import Messages, StopAt, assert_same_run


def run(folder: Path, *overrides: str, **options: object) -> Path:
    train(load_recipe("flow-debug", overrides), folder, device="cpu", **options)  # type: ignore[arg-type]
    return folder


BEHIND = ("autoencoder=null", "source=digits")
"""The refiner alone, behind the bundled model."""
TAUGHT = ("autoencoder=null", "teacher.model={}", "teacher.refinement_steps=3", "loss.start_share=1")
"""The refiner alone, which learns from one whose folder is to be put in."""
PHASES = ("phases.joint_from=0.25", "phases.refiner_from=0.5")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of all three phases: 10 steps of the autoencoder, 10 of both, 20 of the refiner."""
    return run(tmp_path_factory.mktemp("flow") / "run", *PHASES)


@pytest.fixture(scope="module")
def behind(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(tmp_path_factory.mktemp("flow") / "behind", *BEHIND)


def taught_by(folder: Path) -> tuple[str, ...]:
    return tuple(value.format(folder) for value in TAUGHT)


def entries(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_each_part_learns_in_its_phase(whole: Path) -> None:
    log = entries(whole)
    for entry in log:
        assert ("pixel_reconstruction" in entry) == ("lr_autoencoder" in entry) == (entry["step"] <= 20)
        assert ("velocity" in entry) == ("lr_refiner" in entry) == (entry["step"] > 10)
    assert log[-1]["velocity"] < 0.8 * log[2]["velocity"]
    assert log[0]["lr_autoencoder"] > log[3]["lr_autoencoder"]  # its cosine ends with its phase
    assert len(list((whole / "previews").glob("*.png"))) == 2


def test_an_autoencoder_learns_what_it_learns_alone(tmp_path: Path) -> None:
    """The bar is 0.3 dB; the weights are the same to the bit."""
    both = run(tmp_path / "both")
    recipe = load_recipe("flow-debug")
    alone = build_recipe(
        {
            "name": "alone",
            "data": {"source": "digits"},
            "model": recipe.model_dump(mode="json")["autoencoder"],
            "perceptual": "none",
            "optimizer": recipe.model_dump(mode="json")["autoencoder_optimizer"],
            "train": recipe.train.model_dump(mode="json"),
        }
    )
    train(alone, tmp_path / "alone", device="cpu")
    ours = load_file(both / "source" / "model.safetensors")
    theirs = load_file(tmp_path / "alone" / "model.safetensors")
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert torch.equal(ours[name], value), name


def test_the_folder_needs_nothing_else(whole: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere"
    shutil.copytree(whole, moved)
    shutil.rmtree(moved / "state")
    pipe = sg.Pipeline.from_pretrained(moved, device="cpu", quiet=True)
    assert isinstance(pipe.model, RefinedGenerator)
    assert isinstance(load_model(moved / "source").model, SphereAutoencoder)
    out = pipe.generate(12, seed=3)
    assert out.tensor.shape == (12, 1, 8, 8)
    assert (out.settings["steps"], out.settings["refinement_steps"]) == (1, 2)
    pipe.save_pretrained(tmp_path / "copy")
    copy = sg.Pipeline.from_pretrained(tmp_path / "copy", device="cpu", quiet=True)
    assert copy.fingerprint == pipe.fingerprint
    assert torch.equal(copy.generate(12, seed=3).tensor, out.tensor)
    assert "Sphere Flow" in (moved / "README.md").read_text()


@pytest.mark.parametrize("step", [13, 27])
def test_an_interrupted_run_continues_to_the_bit(whole: Path, tmp_path: Path, step: int) -> None:
    folder = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        run(folder, *PHASES, reporter=StopAt(step))
    run(folder, *PHASES)
    assert_same_run(folder, whole)


def test_behind_a_trained_generator(behind: Path) -> None:
    log = entries(behind)
    assert log[-1]["velocity"] < 0.9 * log[0]["velocity"]
    assert "pixel_reconstruction" not in log[0]
    digits = sg.load("digits")
    front = load_model(behind / "source").model
    assert all(torch.equal(a, b) for a, b in zip(digits.parameters(), front.parameters(), strict=True))
    again = run(behind, *BEHIND, reporter=(said := Messages()))
    assert again == behind and any("complete" in line for line in said.lines)


def test_behind_a_latent_denoiser(cache: Path, tmp_path: Path) -> None:
    train(load_recipe("sle-debug", ["train.steps=1"], data=str(cache)), tmp_path / "sle", device="cpu")
    folder = run(tmp_path / "run", "autoencoder=null", f"source={tmp_path / 'sle'}", "train.steps=2")
    shutil.rmtree(tmp_path / "sle")
    pipe = sg.Pipeline.from_pretrained(folder, device="cpu", quiet=True)
    assert pipe.generate(4, steps=2).tensor.shape == (4, 1, 8, 8)
    assert read_architecture(folder).decoder_width == 0


def test_behind_the_fitted_prior_of_its_source(tmp_path: Path) -> None:
    source = train(load_recipe("debug", ["train.steps=2", "train.fit_prior=true"]), tmp_path / "source", device="cpu")
    behind = ("autoencoder=null", f"source={source.folder}", "loss.random_prior=fitted", "train.steps=2")
    assert estimate_memory(load_recipe("flow-debug", behind), precision="float32").total > 0
    folder = run(tmp_path / "run", *behind)
    assert load_model(folder).model.fitted is not None
    turned = run(tmp_path / "turned", *behind, "loss.random_angle=40", "loss.random_share=1")
    straight = run(tmp_path / "straight", *behind, "loss.random_share=1")
    ours, theirs = (load_file(each / "model.safetensors") for each in (turned, straight))
    assert any(not torch.equal(ours[name], theirs[name]) for name in ours)
    for angle in (91, -1, "nan"):
        with pytest.raises(ConfigError, match="random_angle"):
            load_recipe("flow-debug", [*behind, f"loss.random_angle={angle}"])
    with pytest.raises(ConfigError, match="random_angle"):
        load_recipe("flow-debug", ["loss.random_angle=10"])
    (source.folder / "prior.safetensors").unlink()
    with pytest.raises(ConfigError, match="fit-prior"):
        run(tmp_path / "other", *behind)


def test_another_source_is_another_run(behind: Path, whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(behind, folder)
    with pytest.raises(TrainingError, match="source"):
        run(folder, "autoencoder=null", f"source={whole / 'source'}")
    with pytest.raises(ConfigError, match="refined already"):
        run(tmp_path / "other", "autoencoder=null", f"source={whole}")
    with pytest.raises(ModelFileError, match="nowhere"):
        run(tmp_path / "other", "autoencoder=null", "source=./nowhere")


def test_a_refiner_learns_from_another(whole: Path, tmp_path: Path) -> None:
    teacher = tmp_path / "teacher"
    shutil.copytree(whole, teacher)
    config = json.loads((teacher / "config.json").read_text())
    config["provenance"] = {"license": "CC-BY-4.0"}
    (teacher / "config.json").write_text(json.dumps(config))
    folder = run(tmp_path / "run", *taught_by(teacher), "sampling.refinement_steps=1", "train.steps=20")
    log = entries(folder)
    assert log[-1]["velocity"] < 0.9 * log[0]["velocity"]
    assert json.loads((folder / "config.json").read_text())["provenance"]["license"] == "CC-BY-4.0"
    shutil.rmtree(teacher)
    pipe = sg.Pipeline.from_pretrained(folder, device="cpu", quiet=True)
    before = load_model(whole / "source").model
    assert all(torch.equal(a, b) for a, b in zip(pipe.model.source.parameters(), before.parameters(), strict=True))
    assert pipe.generate(2).tensor.shape == (2, 1, 8, 8)
    assert pipe.reconstruct(pipe.generate(2).images).shape == (2, 1, 8, 8)


def test_a_refiner_starts_from_its_teacher_unless_told_otherwise(behind: Path, tmp_path: Path) -> None:
    assert load_recipe("flow-debug", taught_by(behind)).init == str(behind)
    small = ("init=null", "model.size={width: 8, depth: 1, heads: 1}", "train.steps=1")
    taught = load_recipe("flow-debug", (*taught_by(behind), *small))
    assert taught.init is None and build_recipe(taught.model_dump(mode="json")) == taught
    folder = run(tmp_path / "run", *taught_by(behind), *small)
    assert read_architecture(folder).transformers[0].width == 8
    alone = load_recipe("flow-debug", BEHIND)
    sizes = [estimate_memory(each, precision="float32", device_type="cpu").frozen for each in (taught, alone)]
    assert sizes[0] > sizes[1]


def test_a_broken_source_is_named(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "broken"
    shutil.copytree(whole, folder)
    (folder / "source" / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(ModelFileError, match="source"):
        load_model(folder)
    shutil.rmtree(folder / "source")
    with pytest.raises(ModelFileError, match="source"):
        load_model(folder)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (("source=digits", "teacher={model: digits}"), "one of them"),
        (("autoencoder=null",), "one of them"),
        (("autoencoder=null", "teacher={}"), "teacher.model"),
        (("autoencoder=null", "teacher={model: digits, solver: rk4}"), "euler"),
        (("autoencoder=null", "teacher={model: digits, guidance: .inf}"), "guidance"),
        (("model.image_size=16",), "agree"),
        (("phases.refiner_from=0",), "never learn"),
        (("phases.joint_from=0.7", "phases.refiner_from=0.5"), "nothing would learn"),
        (("loss.rough=strongest",), "strong"),
    ],
)
def test_impossible_recipes_are_refused(overrides: tuple[str, ...], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load_recipe("flow-debug", overrides)


def test_a_critic_learns_beside_the_refiner_and_stays_out_of_the_folder(tmp_path: Path) -> None:
    folder = run(tmp_path / "run", *PHASES, "loss.adversarial=0.1", "loss.critic_width=4")
    log = entries(folder)
    assert log[-1]["critic"] > 0 and log[-1]["adversarial"] != 0
    assert "critic" not in log[0]
    assert not [name for name in load_file(folder / "model.safetensors") if "critic" in name]
    assert load_model(folder).model.num_classes == 10
