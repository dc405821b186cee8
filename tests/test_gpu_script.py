"""`benchmarks/gpu.sh` as far as a CPU goes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.skipif(not (shutil.which("bash") and shutil.which("timeout")), reason="needs bash and GNU timeout")
def test_the_script_for_a_gpu_runs_on_a_cpu(tmp_path: Path) -> None:
    environment = {**os.environ, "TINY": "1", "PYTHON": sys.executable}
    script = REPOSITORY / "benchmarks" / "gpu.sh"
    done = subprocess.run(["bash", script, tmp_path / "out"], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    for part in ("tests", "bench", "train", "continue", "sample"):
        assert f"{part}: done in" in done.stdout
    assert "sample.png" in {path.name for path in (tmp_path / "out").iterdir()}
    broken = subprocess.run(
        ["bash", script, tmp_path / "none"],
        env={**environment, "PYTHON": "false"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert broken.returncode == 5 and "bench: FAILED" in broken.stdout
