"""The Inception-v3 of 2015-12-05 that FID and the Inception Score are defined by.

Szegedy et al. 2016 (arXiv 1512.00567), as TensorFlow published it and as PyTorch ports of its weights lay it out. It
differs from the Inception-v3 of today's model collections: 1008 classes; average pools that leave the padding out of
the average; a maximum in place of the average in the very last block; another batch-norm epsilon than torch's default.

Its tensors bear the names of the files `pt_inception-2015-12-05-6726825d.pth` (pytorch-fid) and
`weights-inception-2015-12-05-6726825d.pth` (torch-fidelity), two names of one file: `Conv2d_1a_3x3.conv.weight`,
`Mixed_5b.branch1x1.bn.running_mean`, `fc.weight`. Hence the spelling of the attributes here.

Shapes: images (B, 3, 299, 299) in [-1, 1); 35 x 35 positions in blocks 5, 17 x 17 in 6, 8 x 8 in 7.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from spheregen.networks.backbones.state import load_published

SIZE = 299
FEATURES = 2048
CLASSES = 1008

Extent = int | tuple[int, int]
Chain = Sequence[tuple[str, int, Extent]]
_ROW, _COLUMN = (1, 7), (7, 1)


class FrozenBatchNorm(nn.Module):
    """Batch norm with the statistics of the file, (B, W, H, W') -> the same."""

    running_mean: torch.Tensor
    running_var: torch.Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))
        self.register_buffer("running_mean", torch.zeros(width))
        self.register_buffer("running_var", torch.ones(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=1e-3)


class Unit(nn.Module):
    """Convolution without bias, batch norm, ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: Extent, *, stride: int = 1, padding: Extent = 0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=padding, bias=False)
        self.bn = FrozenBatchNorm(outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.relu(self.bn(self.conv(x)))


def _average(x: torch.Tensor) -> torch.Tensor:
    """3x3 mean of the neighbours that exist: TensorFlow does not count the padding."""
    return functional.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


def _shrink(x: torch.Tensor) -> torch.Tensor:
    return functional.max_pool2d(x, 3, stride=2)


class Mixed(nn.Module):
    """Chains of units side by side, and a pool; (B, I, H, W) -> (B, sum of the widths, H, W).

    Args:
        inputs: channels I.
        chains: units by the name, the outputs and the kernel of each; chains may begin with the same units.
        pool: outputs of the unit behind the pool.
        halve: the last unit of each chain and the pool go in steps of 2, and no unit stands behind the pool.
        last: the pool takes the maximum in place of the average, as in the last block of the network of 2015.
    """

    def __init__(
        self,
        inputs: int,
        *chains: Chain,
        pool: int = 0,
        halve: bool = False,
        last: bool = False,
    ) -> None:
        super().__init__()
        self.chains, self.halve, self.last = [[name for name, *_ in chain] for chain in chains], halve, last
        for chain in chains:
            width = inputs
            for name, outputs, kernel in chain:
                rows, columns = kernel if isinstance(kernel, tuple) else (kernel, kernel)
                if halve and name == chain[-1][0]:
                    self.add_module(name, Unit(width, outputs, kernel, stride=2))
                elif not hasattr(self, name):
                    self.add_module(name, Unit(width, outputs, kernel, padding=(rows // 2, columns // 2)))
                width = outputs
        if not halve:
            self.branch_pool = Unit(inputs, pool, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        made: dict[str, torch.Tensor] = {}
        for chain in self.chains:
            y = x
            for name in chain:
                if name not in made:
                    made[name] = self.get_submodule(name)(y)
                y = made[name]
        branches = [made[chain[-1]] for chain in self.chains]
        if self.halve:
            return torch.cat([*branches, _shrink(x)], dim=1)
        pooled = functional.max_pool2d(x, 3, stride=1, padding=1) if self.last else _average(x)
        return torch.cat([*branches, self.branch_pool(pooled)], dim=1)


def block_a(inputs: int, pool: int) -> Mixed:
    """35 x 35: 1x1, 5x5, two 3x3, pool."""
    return Mixed(
        inputs,
        [("branch1x1", 64, 1)],
        [("branch5x5_1", 48, 1), ("branch5x5_2", 64, 5)],
        [("branch3x3dbl_1", 64, 1), ("branch3x3dbl_2", 96, 3), ("branch3x3dbl_3", 96, 3)],
        pool=pool,
    )


def block_b(inputs: int) -> Mixed:
    """35 x 35 -> 17 x 17."""
    double = [("branch3x3dbl_1", 64, 1), ("branch3x3dbl_2", 96, 3), ("branch3x3dbl_3", 96, 3)]
    return Mixed(inputs, [("branch3x3", 384, 3)], double, halve=True)


def block_c(inputs: int, width: int) -> Mixed:
    """17 x 17: 7x7 and two 7x7, each split into a row and a column."""
    double: Chain = [
        ("branch7x7dbl_2", width, _COLUMN),
        ("branch7x7dbl_3", width, _ROW),
        ("branch7x7dbl_4", width, _COLUMN),
    ]
    return Mixed(
        inputs,
        [("branch1x1", 192, 1)],
        [("branch7x7_1", width, 1), ("branch7x7_2", width, _ROW), ("branch7x7_3", 192, _COLUMN)],
        [("branch7x7dbl_1", width, 1), *double, ("branch7x7dbl_5", 192, _ROW)],
        pool=192,
    )


def block_d(inputs: int) -> Mixed:
    """17 x 17 -> 8 x 8."""
    long: Chain = [("branch7x7x3_1", 192, 1), ("branch7x7x3_2", 192, _ROW), ("branch7x7x3_3", 192, _COLUMN)]
    return Mixed(
        inputs, [("branch3x3_1", 192, 1), ("branch3x3_2", 320, 3)], [*long, ("branch7x7x3_4", 192, 3)], halve=True
    )


def block_e(inputs: int, *, last: bool) -> Mixed:
    """8 x 8: 3x3 split into a row and a column side by side."""
    single: Chain = [("branch3x3_1", 384, 1)]
    double: Chain = [("branch3x3dbl_1", 448, 1), ("branch3x3dbl_2", 384, 3)]
    return Mixed(
        inputs,
        [("branch1x1", 320, 1)],
        [*single, ("branch3x3_2a", 384, (1, 3))],
        [*single, ("branch3x3_2b", 384, (3, 1))],
        [*double, ("branch3x3dbl_3a", 384, (1, 3))],
        [*double, ("branch3x3dbl_3b", 384, (3, 1))],
        pool=192,
        last=last,
    )


class FidInception(nn.Module):
    """Features (B, 2048) of images (B, 3, 299, 299), (8-bit value - 128) / 128; 23.9 M parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = Unit(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = Unit(32, 32, 3)
        self.Conv2d_2b_3x3 = Unit(32, 64, 3, padding=1)
        self.Conv2d_3b_1x1 = Unit(64, 80, 1)
        self.Conv2d_4a_3x3 = Unit(80, 192, 3)
        self.Mixed_5b = block_a(192, 32)
        self.Mixed_5c = block_a(256, 64)
        self.Mixed_5d = block_a(288, 64)
        self.Mixed_6a = block_b(288)
        self.Mixed_6b = block_c(768, 128)
        self.Mixed_6c = block_c(768, 160)
        self.Mixed_6d = block_c(768, 160)
        self.Mixed_6e = block_c(768, 192)
        self.Mixed_7a = block_d(768)
        self.Mixed_7b = block_e(1280, last=False)
        self.Mixed_7c = block_e(2048, last=True)
        self.fc = nn.Linear(FEATURES, CLASSES)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """The last block averaged over its 8 x 8 positions."""
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(images)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(_shrink(x)))
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(_shrink(x))))
        x = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))))
        last: torch.Tensor = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x)))
        return last.mean(dim=(2, 3))

    def logits(self, features: torch.Tensor) -> torch.Tensor:
        """Scores (B, 1008) of features (B, 2048) without the bias, which the published Inception Scores leave out."""
        return functional.linear(features, self.fc.weight)


def load_inception(source: Path | Mapping[str, torch.Tensor]) -> FidInception:
    """Return the network with the weights of 2015-12-05, from pytorch-fid's or torch-fidelity's file or its tensors.

    Counts of batches, which some copies have, are ignored. See `load_published`.
    """
    return load_published(FidInception, source, ignored=r"\.num_batches_tracked$")
