"""`spheregen serve` before it listens: what cannot be served is told at once."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from tests.cli.conftest import Run
from tests.factories import tiny_model_folder

for _name in ("fastapi", "fastapi_offline", "uvicorn", "prometheus_client", "greenlet"):
    pytest.importorskip(_name, reason="needs the extra serve")


def test_what_cannot_be_served_is_told_at_once(run: Run, tmp_path: Path) -> None:
    folder = tiny_model_folder(tmp_path / "model")
    run("serve", folder, f"model={folder}").fails("NAME=MODEL")
    run("serve", folder, "--workers", 0).fails("workers")
    run("serve", folder, "--images", 0).fails("images")
    run("serve", folder, "--port", 99999).fails("port")
    run("serve", folder, "--tokens", tmp_path / "none").fails("--tokens")
    (tmp_path / "empty").write_text(" \n")
    run("serve", folder, "--tokens", tmp_path / "empty").fails("no token")


def test_a_port_in_use_is_told_before_a_model_is_loaded(run: Run, tmp_path: Path) -> None:
    folder = tiny_model_folder(tmp_path / "model")
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        run("-q", "serve", folder, "--port", other.getsockname()[1]).fails("--port")
