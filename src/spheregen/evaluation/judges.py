"""Who can say whether samples of a model are any good."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from spheregen.data import to_uint8
from spheregen.evaluation.features import load_extractor
from spheregen.evaluation.images import RealImages, take
from spheregen.evaluation.measure import FEATURE_BATCH
from spheregen.evaluation.metrics import Moments, frechet_distance
from spheregen.model_folder import ModelInfo

REFERENCE_IMAGES = 10_000


class Judge(Protocol):
    """Scores samples of one kind of picture."""

    def figures(self, images: Tensor, labels: Tensor) -> dict[str, float]:
        """Named figures of images (B, C, S, S) in [0, 1] that were asked to show `labels` (B,)."""


class FrechetJudge:
    """The Frechet distance to real images under the package's own network: a quick look, see `evaluate` for figures.

    Args:
        data: what to compare with; at most 10 000 images of it are looked at.
        device: where the network runs.
    """

    def __init__(self, data: RealImages, device: torch.device) -> None:
        self.extractor = load_extractor("own", device=device)
        some = RealImages(data.source, data.options, limit=REFERENCE_IMAGES, workers=data.workers)
        self.reference = self._moments(take(some, len(some)))

    def figures(self, images: Tensor, labels: Tensor) -> dict[str, float]:
        """The distance of images (B, C, S, S) in [0, 1], B at least 2."""
        found = frechet_distance(self._moments(to_uint8(images)).gaussian, self.reference.gaussian)
        return {"fd_own": found}

    def _moments(self, images: Tensor) -> Moments:
        moments = Moments()
        for part in images.split(FEATURE_BATCH):
            moments.update(self.extractor(part).features.cpu())
        return moments


def find_judge(
    info: ModelInfo, image_shape: tuple[int, int, int], data: RealImages | None = None, device: str = "cpu"
) -> Judge | None:
    """The judge of a model's samples: by the data that is given, else by what it was trained on; None where there is
    none.

    Raises:
        SphereGenError: there is one, but the package that it needs is not installed.
    """
    if data is not None:
        return FrechetJudge(data, torch.device(device))
    if info.training.get("data") == "digits" and image_shape == (1, 8, 8):
        from spheregen.evaluation.digits import DigitJudge

        return DigitJudge()
    return None
