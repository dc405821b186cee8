"""The processes of a service, over real sockets: callers that send too much, too slowly or go away, workers that die,
and a stop that finishes what was begun."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.factories import tiny_model_folder

for _name in ("fastapi", "fastapi_offline", "uvicorn", "prometheus_client", "greenlet"):
    pytest.importorskip(_name, reason="needs the extra serve")

PATIENCE = 400.0
HOST = "127.0.0.1"
pytestmark = pytest.mark.timeout(900)  # processes that import everything, on machines that are busy


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def children(process: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


class Server:
    """`spheregen serve` of a tiny model, in processes of its own."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.port = free_port()
        command = [sys.executable, "-m", "spheregen", "--device", "cpu", "serve", f"tiny={folder}", "--threads", "1"]
        self.process = subprocess.Popen(
            [*command, "--port", str(self.port), *options],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            self.wait(lambda: self.get("/readyz")[0] == 200)
        except BaseException:
            self.process.kill()
            raise

    def wait(self, true: Callable[[], bool]) -> float:
        """Wait until it is true, and return the seconds."""
        begun = time.monotonic()
        while time.monotonic() - begun < PATIENCE:
            with contextlib.suppress(OSError):
                if true():
                    return time.monotonic() - begun
            assert self.process.poll() is None, self.process.communicate()
            time.sleep(0.05)
        raise AssertionError("it never came true")

    def get(self, path: str) -> tuple[int, str]:
        return self.ask(f"http://{HOST}:{self.port}{path}", None)

    def post(self, **body: Any) -> tuple[int, str]:
        return self.ask(f"http://{HOST}:{self.port}/v1/generate", json.dumps(body).encode())

    def ask(self, address: str, data: bytes | None) -> tuple[int, str]:
        request = urllib.request.Request(address, data, {"content-type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def metric(self, name: str) -> float:
        lines = self.get("/metrics")[1].splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith(name))

    def raw(self, *parts: bytes, pause: float = 0.0) -> bytes:
        """Send bytes, with pauses between, and return all that comes back."""
        with socket.create_connection((HOST, self.port), timeout=PATIENCE) as connection:
            answer = b""
            with contextlib.suppress(ConnectionError):
                for part in parts:
                    connection.sendall(part)
                    time.sleep(pause)
            with contextlib.suppress(ConnectionError):
                while got := connection.recv(1 << 16):
                    answer += got
            return answer

    def workers(self) -> list[int]:
        """The processes that have a model in memory."""
        return [worker for child in children(self.process.pid) for worker in children(child)]

    def stop(self) -> str:
        self.process.send_signal(signal.SIGTERM)
        _, errors = self.process.communicate(timeout=PATIENCE)
        assert "Traceback" not in errors
        return errors


HEAD = b"POST /v1/generate HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model_folder(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    found = Server(
        folder,
        "--workers",
        "2",
        "--body-bytes",
        "200000",
        "--seconds",
        "90",
        "--sending-seconds",
        "1",
        "--steps",
        "10000",
    )
    yield found
    if found.process.poll() is None:
        found.stop()


@pytest.mark.slow
def test_bodies_without_an_announced_length_are_bounded(server: Server) -> None:
    chunk = b"2710\r\n" + b" " * 10_000 + b"\r\n"
    assert server.raw(HEAD + b"transfer-encoding: chunked\r\n\r\n", *[chunk] * 40).startswith(b"HTTP/1.1 413 ")
    slowly = server.raw(HEAD + b"transfer-encoding: chunked\r\n\r\n", *[chunk] * 40, pause=0.01)
    assert slowly.startswith(b"HTTP/1.1 413 "), "the answer is lost to a caller who is still sending"
    assert server.raw(HEAD + b"content-length: 99999999\r\n\r\n{").startswith(b"HTTP/1.1 413 ")
    whole = b"2\r\n{}\r\n0\r\n\r\n"
    assert server.raw(HEAD + b"connection: close\r\ntransfer-encoding: chunked\r\n\r\n", whole).startswith(
        b"HTTP/1.1 200 "
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "request_",
    [
        b"POST /v1/generate HTTP/1.1\r\nhost: loc",
        b"",
        HEAD + b"content-length: 10\r\n\r\n{",
        HEAD + b"transfer-encoding: chunked\r\n\r\n5\r\n{",
    ],
    ids=["header", "nothing", "body", "chunk"],
)
def test_callers_that_send_too_slowly_are_told_so(server: Server, request_: bytes) -> None:
    answer = server.raw(request_)
    assert answer.startswith(b"HTTP/1.1 408 ") and b"in time" in answer


@pytest.mark.slow
def test_one_slow_byte_after_another_is_no_way_to_stay(server: Server) -> None:
    with socket.create_connection((HOST, server.port), timeout=PATIENCE) as connection:
        for letter in HEAD:
            connection.sendall(bytes([letter]))
            if select.select([connection], [], [], 0.05)[0]:
                break
        assert connection.recv(1 << 16).startswith(b"HTTP/1.1 408 ")
    assert server.post()[0] == 200


@pytest.mark.slow
@pytest.mark.parametrize(
    "request_",
    [b"\x16\x03\x01\x02\x00\x01\x00", b"GET / HTTP/9.9\r\n\r\n", b"A" * 100_000, HEAD + b"content-length: -1\r\n\r\n"],
    ids=["TLS", "version", "endless line", "negative length"],
)
def test_what_is_no_http_is_refused(server: Server, request_: bytes) -> None:
    answer = server.raw(request_, b"\r\n\r\n")
    assert answer[9:12] in (b"400", b"413", b"505"), answer[:200]
    assert server.post()[0] == 200


@pytest.mark.slow
def test_work_of_a_caller_who_went_away_is_given_up(server: Server) -> None:
    body = b'{"steps": 10000, "guidance": 1.0}'
    before = server.metric("spheregen_network_seconds_total")
    with socket.create_connection((HOST, server.port)) as connection:
        connection.sendall(HEAD + f"content-length: {len(body)}\r\n\r\n".encode() + body)
        server.wait(lambda: server.metric("spheregen_network_seconds_total") > before)
    gone = 'spheregen_requests_total{route="/v1/generate",status="499"}'
    server.wait(lambda: server.metric(gone) == 1)
    after = server.metric("spheregen_network_seconds_total")
    time.sleep(0.3)
    assert server.metric("spheregen_network_seconds_total") == after


EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("program", "file", "made"),
    [("bash", "service.sh", 3), (sys.executable, "service.py", 4), ("node", "service.mjs", 0)],
)
def test_the_examples_work(server: Server, program: str, file: str, made: int, tmp_path: Path) -> None:
    if not (EXAMPLES / file).is_file() or shutil.which(program) is None:
        pytest.skip(f"needs {program}, and the examples beside the tests")
    command = [program, str(EXAMPLES / file), f"http://{HOST}:{server.port}", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.glob("*.png"))) == made
    assert program != "node" or done.stdout.count("step") == 4


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_a_worker_that_is_killed_is_replaced(server: Server) -> None:
    killed, other = server.workers()
    os.kill(killed, signal.SIGKILL)
    assert server.post()[0] == 200  # by the other, or once a new one is there
    server.wait(lambda: len(server.workers()) == 2 and killed not in server.workers())
    os.kill(other, signal.SIGKILL)
    server.wait(lambda: server.post()[0] == 200)


@pytest.mark.slow
def test_a_stop_finishes_what_was_begun_and_metrics_are_of_all_workers(server: Server) -> None:
    for _ in range(20):
        assert server.post()[0] == 200
    total = 'spheregen_requests_total{route="/v1/generate",status="200"}'
    count = server.metric(total)
    assert count >= 20 and {server.metric(total) for _ in range(8)} == {count}  # whichever worker tells
    body = b'{"steps": 100, "guidance": 1.0, "output": "file"}'
    with socket.create_connection((HOST, server.port), timeout=PATIENCE) as connection:
        before = server.metric("spheregen_network_seconds_total")
        connection.sendall(HEAD + f"connection: close\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body)
        server.wait(lambda: server.metric("spheregen_network_seconds_total") > before)
        server.process.send_signal(signal.SIGTERM)
        answer = b""
        while got := connection.recv(1 << 16):
            answer += got
    assert answer.startswith(b"HTTP/1.1 200 ") and b"PNG" in answer
    errors = server.stop()
    assert server.process.returncode == 0
    lines = [json.loads(line) for line in errors.splitlines() if line.startswith("{")]
    assert {"/v1/generate"} <= {line.get("route") for line in lines}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_workers_do_not_outlive_the_process_that_started_them(folder: Path) -> None:
    server = Server(folder, "-q")
    (worker,) = server.workers()
    server.process.kill()
    server.process.communicate(timeout=PATIENCE)
    begun = time.monotonic()
    while Path(f"/proc/{worker}").is_dir() and b"forkserver" in Path(f"/proc/{worker}/cmdline").read_bytes():
        assert time.monotonic() - begun < PATIENCE
        time.sleep(0.05)


def test_a_model_that_cannot_be_loaded_ends_a_worker_by_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from uvicorn.config import STARTUP_FAILURE

    from spheregen.serving.server import application
    from spheregen.serving.settings import Settings

    broken = tiny_model_folder(tmp_path / "broken")
    (broken / "model.safetensors").write_bytes(b"1234")
    for model, named in ((str(broken), "model.safetensors"), ("nothing-here", "nothing-here")):
        with pytest.raises(SystemExit) as caught:
            application(Settings(models=(model,), device="cpu", threads=1))
        assert caught.value.code == STARTUP_FAILURE  # after which nobody starts another one
        errors = capsys.readouterr().err
        assert errors.startswith("error: ") and errors.count("\n") == 1 and named in errors
