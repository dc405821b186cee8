"""Exports are traced by torch, which writes a log of its own for every handler that listens; nobody reads it here."""

from __future__ import annotations

import logging

import pytest


@pytest.fixture(autouse=True)
def _no_trace_log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger("torch.__trace"), "disabled", True)
