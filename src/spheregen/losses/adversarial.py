"""The adversarial term: a critic learns to tell decoded images from real ones, and the decoder to deceive it.

Both learn in one backward pass of one optimiser. The critic's own term sees decoded images without their gradient; the
decoder's term goes through the critic with its weights held fixed. So neither gradient mixes with the other.

Source: Lim and Ye 2017 (arXiv 1705.02894), the hinge loss.
"""

from __future__ import annotations

from collections.abc import Sequence

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

    def __call__(
        self,
        real: Tensor,
        decoded: Tensor,
        progress: float,
        of_real: Sequence[Tensor] = (),
        of_decoded: Sequence[Tensor] = (),
    ) -> dict[str, Tensor]:
        """`adversarial` and `critic` for images (B, C, S, S) in [0, 1] and their features; what has not begun is 0.

        Before the critic learns, it sees one image and its term is 0 times its verdict: its weights have gradients of
        0, as several processes need it that exchange the gradients of all weights.
        """
        nothing = decoded.new_zeros(())
        if progress < self.start - self.lead:
            verdicts = self.critic(real[:1], [feature[:1] for feature in of_real])
            return {"adversarial": nothing, CRITIC: 0 * mean(verdicts)}
        on_real = self.critic(real, of_real)
        on_decoded = self.critic(decoded.detach(), [feature.detach() for feature in of_decoded])
        pull = nothing
        if progress >= self.start:
            pull = -mean(self.critic(decoded, of_decoded, learn=False))
        return {"adversarial": pull, CRITIC: hinge(on_real, on_decoded)}


def mean(verdicts: Sequence[Tensor]) -> Tensor:
    """The mean verdict, where all maps of verdicts count the same."""
    return torch.stack([verdict.mean() for verdict in verdicts]).mean()


def hinge(real: Sequence[Tensor], decoded: Sequence[Tensor]) -> Tensor:
    """The critic's loss: verdicts shall be above 1 for real patches and below -1 for decoded ones; 0 if all are."""
    return mean([functional.relu(1 - verdict) for verdict in real]) + mean(
        [functional.relu(1 + verdict) for verdict in decoded]
    )
