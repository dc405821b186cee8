"""Ways to copy an image so that its bytes are others."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

MOVES = [(down, right) for down in (-1, 0, 1) for right in (-1, 0, 1) if (down, right) != (0, 0)]


def shifted(images: Tensor, mode: str) -> Tensor:
    """Images (n, C, S, S) uint8, each moved by a pixel; edges are repeated (`replicate`), mirrored or wrapped."""
    size = images.shape[-1]
    moved = []
    for number, image in enumerate(images.float()):
        down, right = MOVES[number % len(MOVES)]
        if mode == "wrap":
            moved.append(torch.roll(image, (down, right), (1, 2)))
        else:
            wide = functional.pad(image[None], (1, 1, 1, 1), mode=mode)[0]
            moved.append(wide[:, 1 - down : 1 - down + size, 1 - right : 1 - right + size])
    return torch.stack(moved).byte()


def recoloured(images: Tensor, generator: torch.Generator) -> Tensor:
    """Colour images of another brightness and contrast (up to 15 %), saturation (20 %) and hue (10 degrees)."""
    x = images.float()

    def factor(most: float) -> Tensor:
        drawn = torch.rand(len(x), 1, 1, 1, generator=generator)
        sign = torch.rand(len(x), 1, 1, 1, generator=generator).sub(0.5).sign()
        return 1 + sign * most * (0.5 + 0.5 * drawn)

    x = x * factor(0.15)
    mean = x.mean((1, 2, 3), keepdim=True)
    x = mean + (x - mean) * factor(0.15)
    grey = (x * torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True)
    x = grey + (x - grey) * factor(0.2)
    angle = torch.deg2rad(20 * torch.rand(len(x), generator=generator) - 10)
    cross = torch.tensor([[0.0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / 3**0.5
    cos, sin = angle.cos()[:, None, None], angle.sin()[:, None, None]
    turn = cos * torch.eye(3) + (1 - cos) / 3 + sin * cross
    return torch.einsum("nij,njhw->nihw", turn, x).round().clamp(0, 255).byte()
