"""What was measured on this machine, kept in the cache folder so that it is measured once."""

from __future__ import annotations

import contextlib

import torch

from spheregen.errors import SphereGenError
from spheregen.files import cache_folder, parse_json, write_json
from spheregen.measure.timing import processor_name


def recall(file: str, what: str) -> float | None:
    """Return a number that was measured on this machine, with this torch and so many threads; None: never."""
    return _known(file).get(_key(what))


def remember(file: str, what: str, value: float) -> None:
    """Keep a number in a file of the cache folder; where that cannot be written, it is measured again next time."""
    known = {**_known(file), _key(what): value}
    with contextlib.suppress(SphereGenError):
        write_json(cache_folder() / file, known)


def _key(what: str) -> str:
    return f"{what}, {processor_name()}, torch {torch.__version__}, {torch.get_num_threads()} threads"


def _known(file: str) -> dict[str, float]:
    with contextlib.suppress(OSError, ValueError, TypeError, AttributeError):
        return {str(name): float(value) for name, value in parse_json((cache_folder() / file).read_bytes()).items()}
    return {}
