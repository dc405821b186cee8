"""What tests of the service share: tiny models behind it, files as base64, and answers as arrays."""

from __future__ import annotations

import base64
import io
import json
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tests.factories import images_of

X = images_of(3)
"""(3, 3, 8, 8) in [0, 1], of 8 bits."""


def picture(number: int = 0, form: str = "PNG", size: int | None = None) -> bytes:
    """The file of an image of X."""
    image = Image.fromarray((X[number].permute(1, 2, 0).numpy() * 255).round().astype(np.uint8))
    return encoded(image if size is None else image.resize((size, size)), form)


def encoded(image: Image.Image, form: str = "PNG", **how: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **how)
    return file.getvalue()


def text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def photo(number: int = 0) -> str:
    """An image of X as base64."""
    return text(picture(number))


def npy(array: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, np.asarray(array))
    return file.getvalue()


def opened(data: str | bytes) -> Tensor:
    """A file of an answer, base64 or bytes, as (C, S, S) in [0, 1], or as the array that it is."""
    data = base64.b64decode(data) if isinstance(data, str) else data
    if data.startswith(b"\x93NUMPY"):
        return torch.from_numpy(np.load(io.BytesIO(data), allow_pickle=False))
    values = torch.from_numpy(np.array(Image.open(io.BytesIO(data)))).float() / 255
    return values[None] if values.ndim == 2 else values.permute(2, 0, 1)


def images(answer: dict[str, Any]) -> Tensor:
    """All images of an answer, (B, C, S, S)."""
    return torch.stack([opened(each["data"]) for each in answer["images"]])


def events(body: str) -> list[tuple[str, Any]]:
    """The server-sent events of an answer: their kinds and what they tell."""
    found = []
    for block in body.strip().split("\n\n"):
        kind, data = block.split("\n", 1)
        found.append((kind.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return found
