"""Positions of tokens (a fixed 2-D sin-cos table, 2-D rotary turns in the attention) and of a flow in time."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from spheregen.nn.alone import silu
from spheregen.nn.linear import linear
from spheregen.nn.norm import Wide
from spheregen.sphere import upcast

BASE = 10000.0


def sincos_table(grid: int, width: int) -> Tensor:
    """The fixed position table (1, grid*grid, width), row-major.

    Half of the channels for each axis, x (column) first; for each axis sines, then cosines (the DiT and MAE
    convention). `width` must be a multiple of 4.
    """
    if width % 4:
        raise ValueError(f"a 2-D sin-cos table needs a width that is a multiple of 4, not {width}")
    with torch.device("cpu"):
        frequencies = BASE ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))
        angles = torch.arange(grid, dtype=torch.float64)[:, None] * frequencies
    axis = torch.cat([angles.sin(), angles.cos()], dim=1)  # (grid, width / 2)
    x = axis[None, :, :].expand(grid, grid, -1)
    y = axis[:, None, :].expand(grid, grid, -1)
    return _placed(torch.cat([x, y], dim=-1).reshape(1, grid * grid, width).float())


class AxialRotary(Wide):
    """Axial 2-D rotary positions for queries and keys on a square grid.

    The first half of a head's channels rotates by the row, the second half by the column; channels turn in
    interleaved pairs (0, 1), (2, 3), ... The table has no parameters, is not part of the state dictionary, and stays
    in float32 when the model is cast to a half type.

    Args:
        grid: tokens along one side.
        head_channels: channels D of a head, a multiple of 4.
        front_grids: tokens along one side of other grids over the same square, whose tokens come in front.
    """

    turns: Tensor

    def __init__(self, grid: int, head_channels: int, front_grids: tuple[int, ...] = ()) -> None:
        super().__init__()
        if head_channels % 4:
            raise ValueError(f"2-D rotary positions need head channels in multiples of 4, not {head_channels}")
        half = head_channels // 2
        with torch.device("cpu"):
            frequencies = BASE ** -(torch.arange(0, half, 2, dtype=torch.float64) / half)  # half / 2 pairs an axis
            table = torch.cat([_rotary_angles(side, grid, frequencies) for side in (*front_grids, grid)])
        turns = torch.stack([table.cos(), table.sin()], dim=-1)  # (N, D/2, 2)
        self.register_buffer("turns", _placed(turns.float()), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Rotate (B, T, ..., D): of T tokens the last ones belong to the grids, those in front keep angle 0."""
        front = x.shape[1] - self.turns.shape[0]
        turns = self.turns.view(-1, *(1 for _ in range(x.ndim - 3)), *self.turns.shape[1:])
        pairs = upcast(x[:, front:] if front else x).unflatten(-1, (-1, 2))
        turn = _turn_real if torch.compiler.is_compiling() else _turn_complex
        if x.device.type == "cpu" and turn is _turn_complex:  # for all heads: rows of a few numbers are slow
            turns = turns.expand(-1, *pairs.shape[2:-2], -1, -1).contiguous()
        turned = turn(pairs, turns).flatten(-2).to(x.dtype)
        return torch.cat([x[:, :front], turned], dim=1) if front else turned


def _placed(table: Tensor) -> Tensor:
    """Return a table on the default device; it is made on the CPU, so it holds the same numbers on each."""
    return table.to(torch.get_default_device())


def _rotary_angles(side: int, grid: int, frequencies: Tensor) -> Tensor:
    """The angles (side^2, D/2) of a grid of `side` tokens a side, in places of one of `grid` over the same square."""
    places = (torch.arange(side, dtype=torch.float64) + 0.5) * (grid / side) - 0.5
    angles = places[:, None] * frequencies
    rows = angles[:, None, :].expand(side, side, -1)
    columns = angles[None, :, :].expand(side, side, -1)
    return torch.cat([rows, columns], dim=-1).reshape(side * side, 2 * len(frequencies))


def _turn_complex(pairs: Tensor, turns: Tensor) -> Tensor:
    """Turn channel pairs (..., 2) as complex numbers: one pass over memory, several times faster in eager mode."""
    return torch.view_as_real(torch.view_as_complex(pairs) * torch.view_as_complex(turns))


def _turn_real(pairs: Tensor, turns: Tensor) -> Tensor:
    """The same in real arithmetic: compilers and exporters know no complex numbers, and fuse this by themselves."""
    (even, odd), (cos, sin) = pairs.unbind(-1), turns.unbind(-1)
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1)


def sinusoids(values: Tensor, after: float = 1.0) -> Tensor:
    """Return 128 cosines, then 128 sines (B, 256) float32 of numbers (B,), at rates from 1 down to nearly 1/10000.

    Args:
        values: of any float type, computed in float32.
        after: multiplies the products of values and rates.
    """
    angles = upcast(values)[:, None] * sinusoid_rates(values.device) * after
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def sinusoid_rates(device: torch.device | str | None = None) -> Tensor:
    """Return the 128 rates exp(-ln(10000) i / 128), float32.

    Exports have them as numbers: where phases reach `SCALE`, the last bit of another runtime's exponential moves a wave
    by 1e-4.
    """
    if torch.compiler.is_exporting():
        return torch.tensor(_RATES, device=device, dtype=torch.float32)
    return _rates(device)


def _rates(device: torch.device | str | None) -> Tensor:
    numbers = torch.arange(FREQUENCIES, device=device, dtype=torch.float32)
    return torch.exp(-math.log(LOWEST) * numbers / FREQUENCIES)


FREQUENCIES = 128
LOWEST = 10_000.0  # the slowest wave has this period, for times of 0 to SCALE
SCALE = 1000.0
_RATES = _rates("cpu").tolist()


class TimeEmbedding(nn.Module):
    """Times (B,) in [0, 1] to (B, W): 128 cosines, then sines, linear, SiLU, linear (as in DiT)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = linear(2 * FREQUENCIES, width)
        self.outer = linear(width, width)

    def forward(self, times: Tensor) -> Tensor:
        return self.embed(sinusoids(SCALE * upcast(times)))

    def embed(self, waves: Tensor) -> Tensor:
        """Return the embeddings (B, W) of waves (B, 256)."""
        return self.outer(silu(self.inner(waves.to(self.inner.weight.dtype))))  # type: ignore[no-any-return]
