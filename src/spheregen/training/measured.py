"""What members of the family reached in so many minutes: the table of docs/choosing.md, which `suggest` quotes.

`benchmarks/members.py` measures it and writes it as the package has it.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Sequence
from importlib import resources
from typing import NamedTuple

OURS = "convolutional"
"""The member that `suggest` proposes for small images."""
STROKES_APART, SIDE_APART, IMAGES_APART = 10.0, 1.0, 0.2
"""How much unlike images are: drawings and photos, and for each factor e of side and number."""
NEARER, NAMED = 0.7, 0.7
"""A member is said to be better by images that are so much nearer and show so often what was asked for."""


class Measured(NamedTuple):
    """A data set of the table."""

    about: str
    side: int
    """Pixels."""
    images: int
    strokes: bool
    """Drawings or writing."""


class Reached(NamedTuple):
    """A row of the table: the best of a member's ways to sample, by the classifier's distance."""

    data: str
    minutes: float
    """Of training, on one core."""
    member: str
    """`convolutional`, `transformer`, `latent denoiser`, `Sphere Flow` or `plain flow`."""
    sampling: str
    right: float
    """How often a classifier sees what was asked for, relative to held-out images."""
    fd_own: float
    fd_classifier: float
    recall: float


DATA = {
    "letters": Measured("42,000 letters and digits in 62 classes at 32 px", 32, 42_000, True),
    "emoji": Measured("3300 emoji in 9 groups at 64 px", 64, 3277, True),
    "flowers": Measured("720 photos of 12 flowers at 64 px", 64, 720, False),
    "cifar10": Measured("50,000 photos of 10 kinds of things at 32 px", 32, 50_000, False),
}


@functools.cache
def measured() -> Sequence[Reached]:
    """Return all rows."""
    text = resources.files("spheregen").joinpath("assets/members.json").read_text(encoding="utf-8")
    return tuple(Reached(**row) for row in json.loads(text))


def comparable(strokes: bool, side: int, images: int, minutes: float) -> Sequence[Reached]:
    """Return the rows of the data set that is most like such images and of the nearest minutes, the best first."""

    def unlike(name: str) -> float:
        known = DATA[name]
        apart = SIDE_APART * abs(math.log(known.side / side)) + IMAGES_APART * abs(math.log(known.images / images))
        return apart + STROKES_APART * (known.strokes != strokes)

    likest = min({row.data for row in measured()}, key=unlike)
    rows = [row for row in measured() if row.data == likest]
    near = min({row.minutes for row in rows}, key=lambda known: abs(math.log(known / minutes)))
    return sorted((row for row in rows if row.minutes == near), key=lambda row: row.fd_classifier)


def expectation(rows: Sequence[Reached]) -> str:
    """Say in a line what the proposed member reached, and the others beside it; empty where it is not among them."""
    ours = next((row for row in rows if row.member == OURS), None)
    if ours is None:
        return ""
    others = ", ".join(f"{row.member} {row.right:.2f} and {row.fd_own:.0f}" for row in rows if row is not ours)
    told = (
        f"of {DATA[ours.data].about}, {ours.minutes:g} minutes of one core: a classifier sees what was asked for "
        f"{ours.right:.2f} times as often as in real images, FD-own {ours.fd_own:.0f} ({ours.sampling})"
    )
    told += f"; other members: {others}" if others else ""
    nearer = next((row for row in rows if row.fd_own < NEARER * ours.fd_own and row.right > NAMED), None)
    return f"{told}; images of a {nearer.member} are nearer to real ones, see docs/choosing.md" if nearer else told
