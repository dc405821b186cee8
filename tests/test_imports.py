"""What is imported when, and that the public door opens on every name."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import spheregen as sg

PACKAGE = Path(sg.__file__).parent
OPTIONAL = {
    *("transformers", "diffusers", "datasets", "gradio", "torchmetrics", "scipy", "matplotlib", "torchvision"),
    *("sklearn", "timm", "tensorboard", "wandb", "huggingface_hub"),
    *("fastapi", "uvicorn", "greenlet", "prometheus_client", "ray"),
}
NOT_IN_THE_MATHS = OPTIONAL | {"pydantic", "PIL", "pyarrow", "yaml", "rich", "typer"}
MATHS = ("sphere", "prior", "noise", "conditioning", "protocol", "nn", "sampling")


def maths_modules() -> list[str]:
    """Every module of the maths, the ones in folders included."""
    files = [*PACKAGE.glob("family/*/network.py"), *PACKAGE.glob("family/*/loss.py")]
    for name in MATHS:
        path = PACKAGE / name
        files += path.rglob("*.py") if path.is_dir() else [path.with_suffix(".py")]
    parts = [file.relative_to(PACKAGE.parent).with_suffix("").parts for file in files]
    return sorted(".".join(part for part in each if part != "__init__") for each in parts)


@pytest.fixture(scope="module")
def loaded() -> dict[str, set[str]]:
    """Top-level modules in a fresh interpreter after each of three stages, one upon the other."""
    stages = {
        "package": "import spheregen as sg",
        "maths": "\n".join(f"import {name}" for name in maths_modules()),
        "main path": "sg.Pipeline, sg.load, sg.sampling, sg.interop",
    }
    snapshot = "print(' '.join({name.partition('.')[0] for name in sys.modules}))"
    script = "\n".join(["import sys", *(f"{code}\n{snapshot}" for code in stages.values())])
    done = subprocess.run([sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return {stage: set(line.split()) for stage, line in zip(stages, done.stdout.splitlines(), strict=True)}


def test_the_package_alone_loads_nothing_heavy(loaded: dict[str, set[str]]) -> None:
    assert not loaded["package"] & (NOT_IN_THE_MATHS | {"torch", "numpy"})


def test_the_maths_loads_torch_alone(loaded: dict[str, set[str]]) -> None:
    assert "spheregen.family.sphere_encoder.loss" in maths_modules()
    assert "torch" in loaded["maths"]
    assert not loaded["maths"] & NOT_IN_THE_MATHS


def test_the_main_path_loads_no_optional_package(loaded: dict[str, set[str]]) -> None:
    assert not loaded["main path"] & OPTIONAL


def commands(*lines: str) -> set[str]:
    """Modules of a fresh interpreter that has run these commands."""
    script = "\n".join(
        [
            "import contextlib, sys",
            "from spheregen.cli.main import run",
            *(f"with contextlib.suppress(SystemExit):\n    run({line.split()!r})" for line in lines),
            "print('modules:', *sys.modules)",
        ]
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.rpartition("modules:")[2].split())


def test_help_mistakes_and_the_list_of_models_need_no_torch() -> None:
    loaded = commands("--help", "sample --help", "sampel", "sample", "sample digits --nope", "train", "models")
    assert "torch" not in loaded


def test_a_sample_needs_no_compiler_and_no_other_member(tmp_path: Path) -> None:
    loaded = commands(f"sample digits -n 1 --out {tmp_path / 'one.png'}")
    assert (tmp_path / "one.png").is_file()
    assert "torch" in loaded
    assert not loaded & {"torch._dynamo", "torch._inductor", "sympy", "matplotlib", "pyarrow"}
    assert "spheregen.family.sphere_encoder.network" in loaded
    assert "spheregen.family.sphere_flow.network" not in loaded


@pytest.mark.parametrize("name", sg.__all__)
def test_every_public_name_resolves(name: str) -> None:
    assert getattr(sg, name) is not None
    assert name in dir(sg)


@pytest.mark.parametrize("module", ["sampling", "data", "evaluation", "family", "interop", "training"])
def test_what_modules_export_exists(module: str) -> None:
    imported = importlib.import_module(f"spheregen.{module}")
    for name in getattr(imported, "__all__", ()):
        assert hasattr(imported, name), f"{module}.{name}"


def test_unknown_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="nothing_like_it"):
        _ = sg.nothing_like_it
    assert (PACKAGE / "py.typed").is_file()
