"""A small classifier that learns from labelled images in about a minute: do samples show what was asked for?

It shares nothing with the generators: a plain convolutional network that has never seen one of their images. Its
accuracy on held-out real images is the yardstick of that on samples.

Legend: N images, C channels, S their side, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from spheregen.devices import own_defaults

WIDTH = 32
BATCH = 128
SEEN = 60_000
"""Images that it learns from, repetitions included, at 32 px; fewer where they are larger."""
_LR, _SMOOTHING, _DROPOUT = 3e-3, 0.05, 0.2


class SmallClassifier(nn.Module):
    """Images uint8 (N, C, S, S) to logits (N, K); `features` gives the (N, 128) before the last linear."""

    def __init__(self, channels: int, size: int, classes: int) -> None:
        super().__init__()
        stages = max(1, min(4, round(math.log2(size / 4))))
        widths = [WIDTH * 2 ** min(stage, 2) for stage in range(stages)]
        layers: list[nn.Module] = []
        for inputs, outputs in zip([channels, *widths], widths, strict=False):
            layers += [*_conv(inputs, outputs, 2), *_conv(outputs, outputs, 1)]
        self.trunk = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(widths[-1], classes)

    def features(self, images: Tensor) -> Tensor:
        found: Tensor = self.trunk(_prepared(images))
        return found

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(functional.dropout(self.features(images), _DROPOUT, self.training))
        return logits

    @torch.no_grad()
    def classes(self, images: Tensor) -> Tensor:
        """Return the class ids (N,) that it sees."""
        return torch.cat([self(part).argmax(1) for part in images.split(512)])


@own_defaults()
def train_classifier(
    images: Tensor,
    labels: Tensor,
    classes: int,
    *,
    flips: bool = False,
    seen: int | None = None,
    seed: int = 0,
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> SmallClassifier:
    """Train a classifier; the same arguments give the same one.

    Args:
        images: uint8 (N, C, S, S).
        labels: (N,) int64.
        classes: K.
        flips: mirror images at random.
        seen: images that it learns from, repetitions included; by default what takes about a minute of a core.
        progress: told how many are done, of how many.
    """
    channels, size = images.shape[1:3]
    total = -(-(seen or int(SEEN * min(1.0, (32 / size) ** 2))) // BATCH)
    shift = max(1, size // 16)
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = SmallClassifier(channels, size, classes)
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        optimizer = torch.optim.AdamW(model.parameters(), lr=_LR, weight_decay=0.02)
        for step in range(total):
            optimizer.param_groups[0]["lr"] = _LR * (0.5 + 0.5 * math.cos(math.pi * step / total))
            chosen = torch.randint(len(images), (BATCH,), generator=generator)
            batch = images[chosen]
            if flips:
                mirrored = torch.rand(BATCH, generator=generator) < 0.5
                batch = torch.where(mirrored[:, None, None, None], batch.flip(3), batch)
            rows, columns = torch.randint(2 * shift + 1, (2,), generator=generator).tolist()
            wide = functional.pad(batch.float(), (shift,) * 4, mode="replicate")
            batch = wide[:, :, rows : rows + size, columns : columns + size]
            loss = functional.cross_entropy(model(batch), labels[chosen], label_smoothing=_SMOOTHING)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            progress((step + 1) * BATCH, total * BATCH)
    model.eval()
    return model


def _conv(inputs: int, outputs: int, stride: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()


def _prepared(images: Tensor) -> Tensor:
    return (images.float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)
