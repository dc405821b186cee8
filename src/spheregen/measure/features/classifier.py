"""A small classifier that learns from labelled images in about a minute: do samples show what was asked for?

It shares nothing with the generators: a plain convolutional network that has never seen one of their images. Its
accuracy on held-out real images is the yardstick of that on samples.

Legend: N images, C channels, S their side, K classes.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn import functional

from spheregen.devices import own_defaults
from spheregen.errors import ModelFileError
from spheregen.files import parse_json
from spheregen.measure.features.extractor import FeatureBatch, FeatureExtractor, FeatureInfo, NetworkFeatures
from spheregen.measure.features.preprocessing import antialiased
from spheregen.tensors import save_tensors, weights_hash

SEEN, FEWEST_SEEN, EPOCHS = 60_000, 6_400, 80
"""Images that it learns from, repetitions included: of small sets so many epochs, or the lower number."""
BATCH = 64
LARGEST = 64  # pixels; larger images are brought to it
_WIDTH, _MOST_STAGES = 32, 4
_LR, _DECAY, _SMOOTHING, _DROPOUT, _WARMUP = 3e-3, 0.02, 0.05, 0.2, 50
_MOVED, _SHADED = 0.15, 0.2
"""Augmentation: logarithm of the scale, radians, half widths; contrast, and brightness in halves of the range."""
FORMAT = "spheregen-classifier-1"


@dataclass(frozen=True, kw_only=True)
class ClassifierFacts:
    """What a figure of a classifier must say of it."""

    class_names: tuple[str, ...]
    labelled: bool
    """The classes are those of the images; else they say how images were turned."""
    data: str
    """What it learned from."""
    images: int
    accuracy: float
    """Share of held-out real images whose class it sees."""
    held_out: int


class SmallClassifier(nn.Module):
    """Images uint8 (N, C, S, S) to logits (N, K); `features` gives the (N, 128) before the last linear."""

    def __init__(self, channels: int, size: int, classes: int) -> None:
        super().__init__()
        self.shape = (channels, size, classes)
        self.side = LARGEST if size > LARGEST * 3 // 4 else size
        cells = self.side // 2 if self.side == LARGEST else self.side
        patch = self.side // cells
        stages = max(1, min(_MOST_STAGES, round(math.log2(cells / 2))))
        widths = [_WIDTH * 2 ** min(stage, 2) for stage in range(stages)]
        layers: list[nn.Module] = [nn.PixelUnshuffle(patch)] if patch > 1 else []
        for inputs, outputs in zip([channels * patch**2, *widths], widths, strict=False):
            layers += [*_conv(inputs, outputs, 2), *_conv(outputs, outputs, 1)]
        self.trunk = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(widths[-1], classes)

    def features(self, images: Tensor) -> Tensor:
        """Return features (N, D) of images (N, C, S, S) from 0 to 255."""
        x = images.float()
        if images.shape[-1] != self.side:
            x = antialiased(x, self.side, "bilinear")
        found: Tensor = self.trunk((x / 127.5 - 1).contiguous(memory_format=torch.channels_last))
        return found

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(functional.dropout(self.features(images), _DROPOUT, self.training))
        return logits

    @torch.no_grad()
    def classes(self, images: Tensor) -> Tensor:
        """Return the class ids (N,) that it sees."""
        return torch.cat([self(part).argmax(1) for part in images.split(512)])


@own_defaults()
@torch.inference_mode(False)
@torch.enable_grad()
def train_classifier(
    images: Tensor,
    labels: Tensor,
    classes: int,
    *,
    flips: bool = False,
    seen: int | None = None,
    seed: int = 0,
) -> SmallClassifier:
    """Train a classifier; the same arguments give the same one.

    Args:
        images: uint8 (N, C, S, S).
        labels: (N,) int64.
        classes: K.
        flips: mirror images at random.
        seen: images that it learns from, repetitions included; by default up to `SEEN`: a minute of two cores.
    """
    total = -(-(seen or min(SEEN, max(FEWEST_SEEN, EPOCHS * len(images)))) // BATCH)
    generator = torch.Generator().manual_seed(seed)
    order = torch.empty(0, dtype=torch.int64)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = SmallClassifier(images.shape[1], images.shape[2], classes)
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        optimizer = torch.optim.AdamW(model.parameters(), lr=_LR, weight_decay=_DECAY)
        for step in range(total):
            rate = _LR * min(1, (step + 1) / _WARMUP) * (0.5 + 0.5 * math.cos(math.pi * step / total))
            optimizer.param_groups[0]["lr"] = rate
            while len(order) < BATCH:
                order = torch.cat([order, torch.randperm(len(images), generator=generator)])
            chosen, order = order[:BATCH], order[BATCH:]
            batch = _augmented(images[chosen].float(), flips, generator)
            loss = functional.cross_entropy(model(batch), labels[chosen], label_smoothing=_SMOOTHING)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    model.eval()
    return model


def save_classifier(path: Path, model: SmallClassifier, facts: ClassifierFacts) -> None:
    """Write a trained classifier with what figures say of it, as safetensors."""
    record = {"format": FORMAT, "shape": model.shape, **vars(facts)}
    save_tensors(path, model.state_dict(), {"classifier": json.dumps(record)})


def load_classifier(path: Path | str, device: torch.device | str = "cpu") -> FeatureExtractor:
    """Return the feature extractor `classifier` of a file of `save_classifier`.

    Raises:
        ModelFileError: the file is missing, broken or another one.
    """
    try:
        with safe_open(path, "pt") as file:
            record = parse_json((file.metadata() or {})["classifier"])
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if record.pop("format") != FORMAT:
            raise ValueError("another format")
        channels, size, classes = (min(int(number), 1 << 16) for number in record.pop("shape"))
        facts = ClassifierFacts(**{**record, "class_names": tuple(record["class_names"])})
        model = SmallClassifier(channels, size, classes)
        model.load_state_dict(state)
        return classifier_features(model, facts, torch.device(device))
    except (OSError, KeyError, ValueError, TypeError, RuntimeError, SafetensorError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ModelFileError(f"{path} is no file of a classifier ({reason})") from error


def classifier_features(model: SmallClassifier, facts: ClassifierFacts, device: torch.device) -> FeatureExtractor:
    """Return a classifier as a feature extractor, whose logits tell whether images show what was asked for."""
    channels = model.shape[0]

    def extract(images: Tensor) -> FeatureBatch:
        features = model.features(images[:, :channels])
        return FeatureBatch(features, model.head(features) if facts.labelled else None)

    what = f"{len(facts.class_names)} classes" if facts.labelled else "how images were turned"
    info = FeatureInfo(
        name="classifier",
        title=f"a small classifier that learned {what} from {facts.images} images of {facts.data}; right on "
        f"{facts.accuracy:.1%} of {facts.held_out} held-out ones; comparable with itself alone",
        distance="FD-classifier",
        dim=model.head.in_features,
        preprocessing=f"[-1, 1]; {model.side} px (bilinear, antialiased)",
        weights=weights_hash(model.state_dict()),
        classes=len(facts.class_names) if facts.labelled else 0,
        accuracy=facts.accuracy if facts.labelled else None,
    )
    return NetworkFeatures(model, info, extract, device, channels_last=True)


def _augmented(x: Tensor, flips: bool, generator: torch.Generator) -> Tensor:
    """Return images (N, C, S, S) from 0 to 255, each moved, scaled, turned a little, and darker or lighter."""
    count = len(x)

    def some(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator) * 2 - 1

    sign = torch.where(some(count) < 0, -1.0, 1.0) if flips else torch.ones(count)
    scale, aspect, turn = (_MOVED * some(count) for _ in range(3))
    wide, high = torch.exp(scale + aspect / 2), torch.exp(scale - aspect / 2)
    cos, sin = torch.cos(turn), torch.sin(turn)
    moved = _MOVED * some(count, 2)
    rows = (
        torch.stack([sign * wide * cos, -wide * sin, moved[:, 0]], dim=1),
        torch.stack([sign * high * sin, high * cos, moved[:, 1]], dim=1),
    )
    grid = functional.affine_grid(torch.stack(rows, dim=1), list(x.shape), align_corners=False)
    x = functional.grid_sample(x, grid, padding_mode="reflection", align_corners=False)
    mean = x.mean(dim=(1, 2, 3), keepdim=True)
    contrast, light = (_SHADED * some(count, 1, 1, 1) for _ in range(2))
    return ((x - mean) * contrast.exp() + mean + 127.5 * light).clamp(0, 255)


def _conv(inputs: int, outputs: int, stride: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
