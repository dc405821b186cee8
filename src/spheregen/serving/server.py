"""The processes of a service: workers behind one socket, each with all models; one that dies is replaced."""

from __future__ import annotations

import asyncio
import functools
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import uvicorn
from uvicorn import _subprocess
from uvicorn.config import STARTUP_FAILURE
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.supervisors import Multiprocess

from spheregen.errors import ConfigError, SphereGenError
from spheregen.serving.settings import Settings

if TYPE_CHECKING:
    from fastapi import FastAPI

    from spheregen.pipeline import Pipeline

METRICS = "PROMETHEUS_MULTIPROC_DIR"
_HUNG = 30
"""Seconds without a sign of life after which a worker is killed; it gives one while it loads models, too."""
_LATE = (
    b"HTTP/1.1 408 Request Timeout\r\ncontent-type: text/plain; charset=utf-8\r\nconnection: close\r\n\r\n"
    b"the header of the request did not arrive in time; send it faster"
)


def serve(settings: Settings) -> int:
    """Serve until a signal says to stop; return the exit code.

    The socket is bound first, so that a port in use is told before a model is loaded. Workers are processes of their
    own, even a single one: this process loads no model and starts a new one whenever one dies.

    Raises:
        ConfigError: the address cannot be bound.
    """
    with tempfile.TemporaryDirectory(prefix="spheregen-metrics-") as folder:
        os.environ[METRICS] = folder
        try:
            config = server_config(settings)
            sockets = [bind(config)]
            _fork_workers()
            workers = Workers(config, sockets)
            workers.run()
            failed = any(process.exitcode == STARTUP_FAILURE for process in workers.processes)
        finally:
            del os.environ[METRICS]
    return 2 if failed else 0


def _fork_workers() -> None:
    """Let workers be forks of a process that has imported all they need, so that a new one begins at once.

    On Linux; elsewhere forks are not safe, and each worker imports torch for itself.
    """
    if sys.platform == "linux":
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["spheregen.serving.service"])
        _subprocess.spawn = context  # type: ignore[assignment]


def server_config(settings: Settings) -> uvicorn.Config:
    """Return the configuration of the server; it starts the application in the process of each worker."""
    from spheregen.serving.observing import log_config

    limits = settings.limits
    return uvicorn.Config(
        functools.partial(application, settings),
        factory=True,
        host=settings.host,
        port=settings.port,
        workers=settings.workers,
        http=functools.partial(Patient, patience=limits.sending_seconds),  # type: ignore[arg-type]
        ws="none",
        access_log=False,
        log_config=log_config("WARNING" if settings.quiet else "INFO"),
        server_header=False,
        proxy_headers=False,
        limit_concurrency=limits.concurrency,
        timeout_graceful_shutdown=int(limits.seconds) + 1,
        timeout_keep_alive=15,
        timeout_worker_healthcheck=_HUNG,
    )


def bind(config: uvicorn.Config) -> Any:
    """Return the bound socket of an address.

    Raises:
        ConfigError: it is in use, or not of this machine.
    """
    import socket

    host, port = str(config.host), int(config.port)
    found = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((host, port))
    except OSError as error:
        found.close()
        raise ConfigError(
            f"nothing can listen at {host}:{port} ({error.strerror or error}); choose another --port or --host"
        ) from error
    found.set_inheritable(True)
    return found


def application(settings: Settings) -> FastAPI:
    """Load the models of a service into this process, and return its application.

    A model that cannot be loaded ends the process as one that cannot start, after a line on stderr.
    """
    from spheregen.serving.service import create_app

    if (parent := multiprocessing.parent_process()) is not None:
        threading.Thread(target=_stop_without, args=(parent.sentinel,), daemon=True).start()
    try:
        return create_app(settings, load_pipelines(settings))
    except SphereGenError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
        sys.exit(STARTUP_FAILURE)


def _stop_without(parent: int) -> None:
    """Stop this worker when the process that started it is gone: nobody would stop it later."""
    multiprocessing.connection.wait([parent])
    signal.raise_signal(signal.SIGTERM)


def load_pipelines(settings: Settings) -> Mapping[str, Pipeline]:
    """Load the models of a service by their names, and set the number of threads of this process."""
    import torch

    from spheregen.pipeline import Pipeline

    torch.set_num_threads(settings.threads or max(1, (os.cpu_count() or 1) // settings.workers))
    pipes = {
        name: Pipeline.from_pretrained(place, device=settings.device, progress=False, quiet=True)
        for name, place in settings.named_models.items()
    }
    for pipe in pipes.values():
        if pipe.model.text_width:
            _ = pipe.text_encoder  # one that is missing is told before anybody calls
    return pipes


class Workers(Multiprocess):
    """The workers, whose last word on their metrics is dropped when they die."""

    def keep_subprocess_alive(self) -> None:
        """Replace workers that died."""
        before = {process.pid for process in self.processes}
        super().keep_subprocess_alive()
        for gone in before - {process.pid for process in self.processes}:
            for path in Path(os.environ[METRICS]).glob(f"gauge_live*_{gone}.db"):
                path.unlink(missing_ok=True)


class Patient(H11Protocol):
    """An HTTP connection that waits for the header of a request, but not for ever.

    Args:
        patience: seconds, from the connection or from the first byte of a further request.
    """

    def __init__(self, *, patience: float, **how: Any) -> None:
        super().__init__(**how)
        self.patience = patience
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect()

    def data_received(self, data: bytes) -> None:
        before = self.cycle
        super().data_received(data)
        if self.cycle is not before:  # a header is complete
            self._expect_no_more()
        elif self._timer is None and (before is None or before.response_complete):
            self._expect()

    def connection_lost(self, exc: Exception | None) -> None:
        self._expect_no_more()
        super().connection_lost(exc)

    def _expect(self) -> None:
        self._timer = self.loop.call_later(self.patience, self._give_up)

    def _expect_no_more(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _give_up(self) -> None:
        if not self.transport.is_closing():
            self.transport.write(_LATE)
            self.transport.close()
