"""How fast are rotary positions in real and in complex arithmetic? Prints a Markdown table.

    python benchmarks/rotary.py

Forward and backward of the rotation alone on queries and keys, medians, the two forms in turn in one process.
"""

from __future__ import annotations

import statistics
import time

import torch
from torch import Tensor

from spheregen.nn.positions import _turn_complex, _turn_real

SHAPES = ((512, 4, 4, 16), (64, 64, 3, 32))  # samples, tokens, heads, channels of a head
REPEATS = 15


def milliseconds(turn: object, x: Tensor, turns: Tensor) -> float:
    """Wall time of one forward and backward pass."""
    begun = time.perf_counter()
    turn(x.unflatten(-1, (-1, 2)), turns).sum().backward()  # type: ignore[operator]
    return (time.perf_counter() - begun) * 1e3


def main() -> None:
    torch.set_num_threads(1)
    print("| queries and keys | real arithmetic | complex |\n|---|---|---|")
    for samples, tokens, heads, channels in SHAPES:
        x = torch.randn(samples, tokens, 2, heads, channels, requires_grad=True)
        turns = torch.randn(tokens, 1, 1, channels // 2, 2)
        times: dict[str, list[float]] = {"real": [], "complex": []}
        for _ in range(REPEATS + 2):
            times["real"].append(milliseconds(_turn_real, x, turns))
            times["complex"].append(milliseconds(_turn_complex, x, turns))
        real, by_complex = (statistics.median(values[2:]) for values in times.values())
        print(f"| {samples} x {tokens} tokens, {heads} heads of {channels} | {real:.2f} ms | {by_complex:.2f} ms |")


if __name__ == "__main__":
    main()
