"""Being asked to stop, by a person or a cluster, and doing so after the step is saved."""

from __future__ import annotations

import contextlib
import signal
import threading
from types import FrameType
from typing import Any, NoReturn


class StopRequest(contextlib.AbstractContextManager["StopRequest"]):
    """Hears SIGTERM and SIGINT, so that a run can finish its step and save; a second signal acts at once."""

    def __init__(self) -> None:
        self.signal = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():  # Python delivers signals nowhere else
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._hear)
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def _hear(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()


def end_as_by(number: int) -> NoReturn:
    """End as a signal would have ended the program."""
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(128 + number)
