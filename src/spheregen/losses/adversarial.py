"""The adversarial term: a critic learns to tell decoded images from real ones, and the decoder to deceive it.

Both learn in one backward pass of one optimiser. The critic's own term sees decoded images without their gradient; the
decoder's term goes through the critic with its weights held fixed. So neither gradient mixes with the other.

Source: Lim and Ye 2017 (arXiv 1705.02894), the hinge loss.
"""

from __future__ import annotations

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
        term = -self.critic(decoded, learn=False).mean() if progress >= self.start else nothing
        return {"adversarial": term, CRITIC: hinge(self.critic(real), self.critic(decoded.detach()))}


def hinge(real: Tensor, decoded: Tensor) -> Tensor:
    """The critic's loss: verdicts shall be above 1 for real patches and below -1 for decoded ones; 0 if all are."""
    return functional.relu(1 - real).mean() + functional.relu(1 + decoded).mean()
