"""The service on Ray Serve, with two replicas on this machine."""

from __future__ import annotations

import concurrent.futures
import json
import re
import socket
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import spheregen as sg
from tests.factories import tiny_model_folder
from tests.random_networks import import_or_skip
from tests.serving.calls import images

pytestmark = [
    pytest.mark.timeout(900),
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),
]  # of Ray's parts, about each other
ray = import_or_skip("ray")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """A model folder, and the address of two replicas with it."""
    from ray import serve

    from spheregen.serving.serve_ray import build

    folder, port = tiny_model_folder(tmp_path_factory.mktemp("models") / "tiny"), _free_port()
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        serve.run(build({"models": f"tiny={folder}", "replicas": 2, "cpus": 0.5, "device": "cpu"}))
        yield folder, f"http://127.0.0.1:{port}"
    finally:
        serve.shutdown()
        ray.shutdown()


def test_two_replicas_answer_as_the_pipeline_does(served: tuple[Path, str]) -> None:
    from ray import serve

    folder, address = served
    (deployment,) = serve.status().applications["default"].deployments.values()
    assert {str(state): count for state, count in deployment.replica_states.items()} == {"RUNNING": 2}
    pipe = sg.Pipeline.from_pretrained(folder, device="cpu", quiet=True)

    def ask(seed: int) -> torch.Tensor:
        body = json.dumps({"seed": seed, "steps": 1 + seed % 3, "format": "npy"}).encode()
        request = urllib.request.Request(f"{address}/v1/generate", body, {"content-type": "application/json"})
        with urllib.request.urlopen(request, timeout=120) as answer:
            return images(json.load(answer))

    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        made = list(threads.map(ask, range(24)))
    for seed, mine in enumerate(made):
        wanted = pipe.generate(1, seed=seed, steps=1 + seed % 3).tensor
        torch.testing.assert_close(mine, wanted, atol=2e-5, rtol=0)
    counts: set[int] = set()
    begun = time.monotonic()
    while not counts or {24 - count for count in counts} != counts:  # whichever replica answers, it tells of itself
        assert time.monotonic() - begun < 60, counts
        with urllib.request.urlopen(f"{address}/metrics", timeout=60) as answer:
            found = re.search(r'^spheregen_images_total\{model="tiny"\} (\S+)$', answer.read().decode(), re.MULTILINE)
        counts.add(int(float(found[1])) if found else 0)
