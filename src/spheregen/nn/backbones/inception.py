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

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from spheregen.nn.backbones.state import load_renamed, read_torch_state

SIZE = 299
FEATURES = 2048
CLASSES = 1008

Extent = int | tuple[int, int]


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


def _row(inputs: int, outputs: int) -> Unit:
    return Unit(inputs, outputs, (1, 7), padding=(0, 3))


def _column(inputs: int, outputs: int) -> Unit:
    return Unit(inputs, outputs, (7, 1), padding=(3, 0))


class BlockA(nn.Module):
    """35 x 35: 1x1, 5x5, two 3x3, pool; (B, I, H, W) -> (B, 224 + P, H, W)."""

    def __init__(self, inputs: int, pool_outputs: int) -> None:
        super().__init__()
        self.branch1x1 = Unit(inputs, 64, 1)
        self.branch5x5_1 = Unit(inputs, 48, 1)
        self.branch5x5_2 = Unit(48, 64, 5, padding=2)
        self.branch3x3dbl_1 = Unit(inputs, 64, 1)
        self.branch3x3dbl_2 = Unit(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = Unit(96, 96, 3, padding=1)
        self.branch_pool = Unit(inputs, pool_outputs, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        single = self.branch1x1(x)
        five = self.branch5x5_2(self.branch5x5_1(x))
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([single, five, double, self.branch_pool(_average(x))], dim=1)


class BlockB(nn.Module):
    """35 x 35 -> 17 x 17, (B, 288, ...) -> (B, 768, ...)."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.branch3x3 = Unit(inputs, 384, 3, stride=2)
        self.branch3x3dbl_1 = Unit(inputs, 64, 1)
        self.branch3x3dbl_2 = Unit(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = Unit(96, 96, 3, stride=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch3x3(x), double, _shrink(x)], dim=1)


class BlockC(nn.Module):
    """17 x 17: 7x7 and two 7x7, each split into a row and a column; (B, 768, H, W) -> the same."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.branch1x1 = Unit(inputs, 192, 1)
        self.branch7x7_1 = Unit(inputs, width, 1)
        self.branch7x7_2 = _row(width, width)
        self.branch7x7_3 = _column(width, 192)
        self.branch7x7dbl_1 = Unit(inputs, width, 1)
        self.branch7x7dbl_2 = _column(width, width)
        self.branch7x7dbl_3 = _row(width, width)
        self.branch7x7dbl_4 = _column(width, width)
        self.branch7x7dbl_5 = _row(width, 192)
        self.branch_pool = Unit(inputs, 192, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        seven = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        double = self.branch7x7dbl_5(self.branch7x7dbl_4(double))
        return torch.cat([self.branch1x1(x), seven, double, self.branch_pool(_average(x))], dim=1)


class BlockD(nn.Module):
    """17 x 17 -> 8 x 8, (B, 768, ...) -> (B, 1280, ...)."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.branch3x3_1 = Unit(inputs, 192, 1)
        self.branch3x3_2 = Unit(192, 320, 3, stride=2)
        self.branch7x7x3_1 = Unit(inputs, 192, 1)
        self.branch7x7x3_2 = _row(192, 192)
        self.branch7x7x3_3 = _column(192, 192)
        self.branch7x7x3_4 = Unit(192, 192, 3, stride=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        three = self.branch3x3_2(self.branch3x3_1(x))
        seven = self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x)))
        return torch.cat([three, self.branch7x7x3_4(seven), _shrink(x)], dim=1)


class BlockE(nn.Module):
    """8 x 8: 3x3 split into a row and a column side by side; (B, I, H, W) -> (B, 2048, H, W).

    Args:
        last: the pool takes the maximum in place of the average, as in the last block of the network of 2015.
    """

    def __init__(self, inputs: int, *, last: bool) -> None:
        super().__init__()
        self.last = last
        self.branch1x1 = Unit(inputs, 320, 1)
        self.branch3x3_1 = Unit(inputs, 384, 1)
        self.branch3x3_2a = Unit(384, 384, (1, 3), padding=(0, 1))
        self.branch3x3_2b = Unit(384, 384, (3, 1), padding=(1, 0))
        self.branch3x3dbl_1 = Unit(inputs, 448, 1)
        self.branch3x3dbl_2 = Unit(448, 384, 3, padding=1)
        self.branch3x3dbl_3a = Unit(384, 384, (1, 3), padding=(0, 1))
        self.branch3x3dbl_3b = Unit(384, 384, (3, 1), padding=(1, 0))
        self.branch_pool = Unit(inputs, 192, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        three = self.branch3x3_1(x)
        double = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        pooled = functional.max_pool2d(x, 3, stride=1, padding=1) if self.last else _average(x)
        branches = [
            self.branch1x1(x),
            self.branch3x3_2a(three),
            self.branch3x3_2b(three),
            self.branch3x3dbl_3a(double),
            self.branch3x3dbl_3b(double),
            self.branch_pool(pooled),
        ]
        return torch.cat(branches, dim=1)


class FidInception(nn.Module):
    """Features (B, 2048) of images (B, 3, 299, 299), (8-bit value - 128) / 128; 23.9 M parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = Unit(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = Unit(32, 32, 3)
        self.Conv2d_2b_3x3 = Unit(32, 64, 3, padding=1)
        self.Conv2d_3b_1x1 = Unit(64, 80, 1)
        self.Conv2d_4a_3x3 = Unit(80, 192, 3)
        self.Mixed_5b = BlockA(192, 32)
        self.Mixed_5c = BlockA(256, 64)
        self.Mixed_5d = BlockA(288, 64)
        self.Mixed_6a = BlockB(288)
        self.Mixed_6b = BlockC(768, 128)
        self.Mixed_6c = BlockC(768, 160)
        self.Mixed_6d = BlockC(768, 160)
        self.Mixed_6e = BlockC(768, 192)
        self.Mixed_7a = BlockD(768)
        self.Mixed_7b = BlockE(1280, last=False)
        self.Mixed_7c = BlockE(2048, last=True)
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
    """The network with the weights of 2015-12-05, in evaluation mode.

    Args:
        source: pytorch-fid's or torch-fidelity's file, or its tensors. Counts of batches, which some copies have, are
            ignored.

    Raises:
        ModelFileError: a tensor is missing, left over or of another shape, or the file cannot be read.
    """
    state = read_torch_state(source) if isinstance(source, Path) else source
    origin = str(source) if isinstance(source, Path) else "the Inception weights"
    with torch.device("meta"):  # no random initialisation of what is overwritten at once
        net = FidInception()
    net.to_empty(device="cpu")
    kept = {name: tensor for name, tensor in state.items() if not name.endswith(".num_batches_tracked")}
    load_renamed(net, kept, {name: name for name in net.state_dict()}, origin)
    return net.eval()
