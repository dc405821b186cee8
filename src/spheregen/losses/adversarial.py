"""The adversarial term: a critic learns to tell decoded images from real ones, and the decoder to deceive it.

Both learn in one backward pass of one optimiser. The critic's own term sees decoded images without their gradient; the
decoder's term goes through the critic with its weights held fixed. So neither gradient mixes with the other.

How steep a critic is depends on its size and changes as it learns, so the decoder follows the direction of its gradient
alone. The strength of the pull is a setting, in units of the L1 term's: at weight 1 both move the pixels of an image
equally much. (Measured on digits: plain gradients of weight 0.05 tripled the L1 error for a fifth of the run, of 0.01
they worked as well as pulls of 0.3; pulls of 0.1 to 0.6 stayed calm.)

Sources: Lim and Ye 2017 (arXiv 1705.02894), the hinge loss; Esser et al. 2021 (arXiv 2012.09841) and Defossez et al.
2022 (arXiv 2210.13438), weights that balance gradients, there of the last layer and of the output over a batch.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from spheregen.nn.critic import PatchCritic

CRITIC = "critic"
"""The name of the critic's own term, whose weight is 1 from when it begins to learn."""


class AdversarialTerms:
    """The two terms of a critic, by the share of the run that is done.

    Args:
        critic: learns.
        start: from when on the decoder has its term.
        lead: by how much earlier the critic begins to learn.
    """

    def __init__(self, critic: PatchCritic, *, start: float, lead: float) -> None:
        self.critic, self.start, self.lead = critic, start, lead

    def __call__(self, real: Tensor, decoded: Tensor, progress: float) -> dict[str, Tensor]:
        """`adversarial` and `critic` for images (B, C, S, S) in [0, 1]; what has not begun is 0.

        Before the critic learns, it sees one image and its term is 0 times its verdict: its weights have gradients of
        0, as several processes need it that exchange the gradients of all weights.
        """
        nothing = decoded.new_zeros(())
        if progress < self.start - self.lead:
            return {"adversarial": nothing, CRITIC: 0 * self.critic(real[:1]).mean()}
        return {
            "adversarial": self._pull(decoded) if progress >= self.start else nothing,
            CRITIC: hinge(self.critic(real), self.critic(decoded.detach())),
        }

    def _pull(self, decoded: Tensor) -> Tensor:
        """Minus the mean verdict, whose gradient has the size of a mean absolute difference's for each image."""
        images, zero = _EvenPull.apply(decoded)  # type: ignore[no-untyped-call]
        term: Tensor = zero - self.critic(images, learn=False).mean()
        return term


def hinge(real: Tensor, decoded: Tensor) -> Tensor:
    """The critic's loss: verdicts shall be above 1 for real patches and below -1 for decoded ones; 0 if all are."""
    return functional.relu(1 - real).mean() + functional.relu(1 + decoded).mean()


class _EvenPull(torch.autograd.Function):
    """Images (B, C, S, S) as they are, and 0. Backward, each image's gradient gets a root mean square of 1 over the
    numbers of the batch, times the gradient of the 0: that is the weight with which the term enters the loss."""

    @staticmethod
    def forward(ctx: Any, images: Tensor) -> tuple[Tensor, Tensor]:
        return images.view_as(images), images.new_zeros(())

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, weight: Tensor) -> Tensor:
        size = gradient.square().mean(dim=(1, 2, 3), keepdim=True).sqrt()
        return gradient / size.clamp_min(1e-30) * (weight / gradient.numel())
