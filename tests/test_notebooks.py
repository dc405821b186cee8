"""The notebooks run, at small size, and come without outputs."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.random_networks import import_or_skip

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
if not NOTEBOOKS:
    pytest.skip("no notebooks beside the tests", allow_module_level=True)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.filterwarnings("ignore")  # of Jupyter's parts, about each other
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbformat, nbclient = import_or_skip("nbformat"), import_or_skip("nbclient")
    import_or_skip("ipykernel")
    monkeypatch.setenv("SPHEREGEN_NOTEBOOK_IMAGES", "4")
    monkeypatch.setenv("SPHEREGEN_NOTEBOOK_STEPS", "3")
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in code)  # results are of whoever runs it
    client = nbclient.NotebookClient(notebook, timeout=800, resources={"metadata": {"path": str(tmp_path)}})
    asyncio.run(client.async_execute())  # `execute` leaves its loop open, which another test would be blamed for
    shown = [output for cell in code for output in cell.outputs if "image/png" in output.get("data", {})]
    assert len(shown) >= 5
