"""Who can say whether samples of a model are any good."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from spheregen.model_folder import ModelInfo


class Judge(Protocol):
    """Scores samples of one kind of picture."""

    def figures(self, images: Tensor, labels: Tensor) -> dict[str, float]:
        """Named figures of images (B, C, S, S) in [0, 1] that were asked to show `labels` (B,)."""


def find_judge(info: ModelInfo, image_shape: tuple[int, int, int]) -> Judge | None:
    """The judge of what a model was trained on; None where there is none.

    Raises:
        SphereGenError: there is one, but the package that it needs is not installed.
    """
    if info.training.get("data") == "digits" and image_shape == (1, 8, 8):
        from spheregen.evaluation.digits import DigitJudge

        return DigitJudge()
    return None
