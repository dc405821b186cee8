"""Two processes write the bytes of one, and what they began one can finish."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from spheregen.data import open_source
from spheregen.data.latent_cache import LatentCache
from tests.conftest import REPOSITORY
from tests.data.latent_cache.toys import Convolution, encode, files_of

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no distributed package")


@pytest.fixture
def _one_thread() -> Iterator[None]:
    """As in the processes, since the last bits of a convolution may depend on it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("_one_thread")
def test_two_processes(pictures: Path, tmp_path: Path) -> None:
    (pictures / "bee" / "001.png").write_bytes(b"junk")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.data.latent_cache.worker", str(tmp_path)],
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    index = encode(Convolution(), open_source(pictures), tmp_path / "one", on_error="skip")
    outputs = [process.communicate(timeout=150) for process in processes]
    answers = [json.loads(output) for output, _ in outputs]
    assert answers[0] == answers[1], "all get the index"
    assert answers[0]["fingerprint"] == index.fingerprint
    assert answers[0]["calls"] == [[12, 8], [6, 6]], "they take shards in turn, of what is missing"
    assert files_of(tmp_path / "cache") == files_of(tmp_path / "one")
    # the second one failed in its third shard, and both say so
    assert [process.returncode for process in processes] == [1, 1]
    assert "DataError: stopped" in outputs[1][1]
    assert "stopped because another process failed: process 1: stopped" in outputs[0][1]
    kept = {path.name for path in (tmp_path / "stopped").glob("*")}
    # one batch is in flight, so the second shard of the failing process was not whole yet
    assert kept == {"unfinished.json", *(f"shard-0000{number}.safetensors" for number in (0, 1, 2, 4))}
    again = encode(rest := Convolution(), open_source(pictures), tmp_path / "stopped", on_error="skip", shard_images=4)
    assert rest.calls == 6
    assert again.fingerprint == index.fingerprint
    stopped, whole = LatentCache(tmp_path / "stopped"), LatentCache(tmp_path / "one")
    stopped.verify()
    torch.testing.assert_close(stopped.load(), whole.load())
