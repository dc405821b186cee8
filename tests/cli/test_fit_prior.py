"""`spheregen fit-prior` as a user types it, in one process and in two, and the prior that training leaves."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.cli.conftest import Run
from tests.processes import command, world
from tests.training.runs import run as trained
from tests.training.runs import weights

SHORT = ("train.steps=12", "train.preview_every=0")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("fitted") / "run", *SHORT, recipe="conv-debug")


def prior(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "prior.safetensors")


def test_a_run_leaves_a_prior_and_the_same_weights(folder: Path, tmp_path: Path) -> None:
    plain = trained(tmp_path / "plain", *SHORT, "train.fit_prior=false", recipe="conv-debug")
    assert (folder / "prior.safetensors").exists() and not (plain / "prior.safetensors").exists()
    ours, theirs = weights(folder), weights(plain)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    kept = prior(folder)
    (folder / "prior.safetensors").unlink()  # as if it had been killed before it
    trained(folder, *SHORT, recipe="conv-debug")
    assert all(torch.equal(kept[name], tensor) for name, tensor in prior(folder).items())


def test_a_model_gets_a_prior(folder: Path, run: Run) -> None:
    shutil.copytree(folder, "model")
    Path("model/prior.safetensors").unlink()
    run("sample", "model", "--set", "prior=fitted").fails("fit-prior")
    answer = run("fit-prior", "model", "--data", "digits", "--json").json
    assert (answer["images"], answer["data"]) == (1400, "digits/train")
    made = run("sample", "model", "--set", "prior=fitted", "--set", "temperature=0.8", "-n", "3", "--out", "a.png")
    assert made.code == 0 and Path("a.png").exists()
    assert run("fit-prior", "model", "--data", "digits", "--limit", "50", "--json").json["images"] == 50
    Path("model/prior.safetensors").write_bytes(b"broken")  # is replaced, too
    assert run("fit-prior", "model", "--data", "digits", "--limit", "50").code == 0


def test_two_processes_fit_the_prior_of_one(folder: Path, run: Run) -> None:
    for name in ("one", "two"):
        shutil.copytree(folder, name)
    assert run("fit-prior", "one", "--data", "digits", "--limit", "333").code == 0
    arguments = ["fit-prior", "two", "--data", "digits", "--limit", "333", "--device", "cpu"]
    results = [process.finish() for process in world(2, command, arguments)]
    assert [code for code, _, _ in results] == [0, 0], results
    one, two = prior(Path("one")), prior(Path("two"))
    for name in ("centre", "residual"):
        torch.testing.assert_close(two[name], one[name], atol=1e-5, rtol=1e-5)
    for each in (one, two):  # directions may be turned and mirrored among themselves
        each["whole"] = torch.einsum("ik,ckl,jl->cij", each["basis"], each["factors"], each["basis"])
    torch.testing.assert_close(two["whole"], one["whole"], atol=1e-5, rtol=1e-5)


def test_data_that_the_model_does_not_know(folder: Path, run: Run) -> None:
    from tests.factories import image_folder

    shutil.copytree(folder, "model")
    image_folder(Path("photos"), classes=0)
    before = Path("model/prior.safetensors").read_bytes()
    run("fit-prior", "model", "--data", "photos").fails("photos")
    run("fit-prior", "digits", "--data", "digits").fails("save_pretrained")
    assert Path("model/prior.safetensors").read_bytes() == before
