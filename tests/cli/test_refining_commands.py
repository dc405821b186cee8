"""The commands on a model that refines its images by a flow."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from spheregen.data import read_metadata
from spheregen.model_folder import ModelInfo, save_model
from tests.cli.conftest import Run
from tests.cli.test_commands import assert_one_line_error
from tests.cli.test_editing_commands import pictures, sheet_size, size
from tests.models.test_flow_refiner import refined

__all__ = ["pictures"]  # a fixture


@pytest.fixture(scope="module")
def flow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("flow") / "model"
    sampling = {"steps": 1, "refinement_steps": 2, "solver": "euler", "guidance": 1.5}
    save_model(folder, refined(), ModelInfo(class_names=("a", "b", "c"), sampling=sampling))
    return folder


def test_samples_say_how_they_were_refined_and_are_made_again(run: Run, flow: Path) -> None:
    answer = json.loads(run("sample", flow, "-n", 3, "--out", "made", "--json").out)
    assert (answer["refinement_steps"], answer["solver"], answer["refinement_guidance"]) == (2, "euler", 1.5)
    again = run("sample", flow, "--like", "made/000001.png", "--out", "again", "--json")
    assert json.loads(again.out)["refinement_steps"] == 2
    assert Path("again/000001.png").read_bytes() == Path("made/000001.png").read_bytes()
    other = ["--refinement-steps", 3, "--solver", "heun", "--refinement-guidance", 1]
    told = json.loads(run("sample", flow, "--like", "made/000001.png", *other, "--out", "other", "--json").out)
    assert (told["refinement_steps"], told["solver"], told["refinement_guidance"]) == (3, "heun", 1.0)
    assert Path("other/000001.png").read_bytes() != Path("made/000001.png").read_bytes()


@pytest.mark.usefixtures("pictures")
def test_photos_are_refined_and_stand_beside_what_they_were(run: Run, flow: Path) -> None:
    done = run("refine", flow, "photos", "--label", "b", "--seed", 5, "--out", "fine", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["edit"] == "refine"
    assert sorted(path.name for path in Path("fine").iterdir()) == ["000000-0.png", "000001-1.png"]
    assert size("fine.png") == sheet_size(2, 2)
    assert read_metadata(Path("fine/000001-1.png"))["seed"] == "6"


@pytest.mark.usefixtures("pictures")
def test_reconstructions_are_refined_or_not(run: Run, flow: Path) -> None:
    found = [
        json.loads(run("reconstruct", flow, "photos", "--refinement-steps", steps, "--out", f"r{steps}", "--json").out)
        for steps in (0, 2)
    ]
    assert found[0]["psnr"] != found[1]["psnr"]
    rough = json.loads(run("reconstruct", flow / "source", "photos", "--out", "rough", "--json").out)
    assert rough["psnr"] == pytest.approx(found[0]["psnr"], abs=1e-3)


def test_info_counts_the_refiner(run: Run, flow: Path) -> None:
    answer = json.loads(run("info", flow, "--json").out)
    front = json.loads(run("info", flow / "source", "--json").out)
    assert answer["generation_gflops"] == front["generation_gflops"]
    calls = answer["refinement_gflops"]
    assert calls["unguided, heun"]["4"] == pytest.approx(7 * answer["refiner"]["gflops"])
    assert calls["guided, euler"]["4"] == pytest.approx(8 * answer["refiner"]["gflops"])
    assert answer["weights_bytes"] > front["weights_bytes"]
    assert answer["sampling_memory"]["total"] > 0
    assert "and to refine" in run("info", "flow-debug").out


def test_other_models_say_that_they_do_not_refine(run: Run, flow: Path) -> None:
    assert_one_line_error(run("sample", flow / "source", "--refinement-steps", 2), "no refiner")
    assert_one_line_error(run("refine", flow / "source", "digits"), "no refiner")
    assert_one_line_error(run("sample", flow, "--solver", "hune"), "heun")


def test_a_run_is_sampled_and_evaluated(run: Run) -> None:
    done = run("train", "flow-debug", "--set", "train.steps=4", "--out", "run", "--device", "cpu", "-q")
    assert done.code == 0, done.err
    done = run(
        "evaluate",
        "run",
        "--data",
        "digits",
        "--count",
        40,
        "--metrics",
        "frechet",
        "--features",
        "own",
        "--json",
        "-q",
    )
    assert done.code == 0, done.err
    answer = json.loads(done.out)
    assert "refined in 2 steps by heun" in answer["line"]


def test_a_study_varies_the_flow_and_its_solver(run: Run) -> None:
    over = ["--over", "model.rho=0.25,1", "--over", "sampling.refinement_steps=0,1"]
    done = run("ablate", "flow-debug", *over, "--set", "train.steps=2", "-n", 20, "--out", "study", "--json", "-q")
    assert done.code == 0, done.err
    assert len(Path("study/ablation.csv").read_text().splitlines()) == 1 + 4
    assert len(list(Path("study/runs").iterdir())) == 2  # a solver's steps need no training of their own


def test_its_speed_is_measured_with_the_flow(run: Run) -> None:
    what = ["--only", "sample", "--steps", 1, "--precision", "float32"]
    done = run("bench", "flow-debug", *what, "--repeats", 1, "--device", "cpu", "--json")
    assert done.code == 0, done.err
    (row,) = json.loads(done.out)["rows"]
    cost = json.loads(run("info", "flow-debug", "--json").out)
    expected = cost["generation_gflops"]["unguided"]["1"] + cost["refinement_gflops"]["unguided, heun"]["2"]
    assert row["flops_per_image"] == pytest.approx(1e9 * expected)
