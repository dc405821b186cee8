"""The adversarial term: a critic learns to tell decoded images from real ones, and the decoder to deceive it.

Both learn in one backward pass of one optimiser. The critic's own term sees decoded images without their gradient; the
decoder's term goes through the critic with its weights held fixed. So neither gradient mixes with the other.

Source: Lim and Ye 2017 (arXiv 1705.02894), the hinge loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from spheregen.errors import ConfigError
from spheregen.family.terms import LossConfig
from spheregen.networks.perceptual import PerceptualLoss
from spheregen.nn.critic import PatchCritic

CRITIC = "critic"
"""The name of the critic's own term, whose weight is 1 from when it begins to learn."""


@dataclass(frozen=True, kw_only=True)
class AdversarialConfig(LossConfig):
    """The settings of an adversarial term, which the configuration of a loss inherits.

    Raises:
        ConfigError: a value outside of its range.
    """

    weighted: ClassVar[tuple[str, ...]] = ("adversarial",)
    shares: ClassVar[tuple[str, ...]] = ("critic_lead",)

    adversarial: float = 0.0
    """Of minus the verdict of a patch critic, which learns beside what makes the images; 0.01 to 0.1 deceives it."""
    adversarial_start: float = 0.5
    """The share of the run after which the images' maker has that term."""
    critic_lead: float = 0.1
    """The share of the run by which the critic begins to learn before that."""
    critic_width: int = 64
    """Channels behind the critic's first convolution."""
    critic_features: bool = False
    """The critic judges the perceptual network's features beside the pixels. On photographs a critic of pixels alone
    wins by traces that nobody sees."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.adversarial_start < 1:
            raise ConfigError(f"loss.adversarial_start is a share of the run below 1, not {self.adversarial_start:g}")
        if self.critic_width < 1:
            raise ConfigError(f"loss.critic_width is at least 1, not {self.critic_width}")

    def weights(self) -> dict[str, float]:
        """Return the weight of each term, by its name; that of the critic's own is 1."""
        return {**super().weights(), CRITIC: 1.0}

    @property
    def judges_features(self) -> bool:
        """There is a critic that needs the perceptual network."""
        return self.critic_features and self.adversarial > 0

    def new_critic(self, channels: int, size: int, perceptual: PerceptualLoss | None = None) -> PatchCritic | None:
        """Return a fresh critic for images (B, channels, size, size); None where the adversarial term is off.

        Raises:
            ConfigError: it shall judge the features of a perceptual network, and there is none.
        """
        if self.judges_features and perceptual is None:
            raise ConfigError(
                "loss.critic_features needs a perceptual network; turn it off or choose a perceptual provider"
            )
        if not self.adversarial:
            return None
        widths = perceptual.widths if self.critic_features and perceptual is not None else ()
        return PatchCritic(channels, size, self.critic_width, widths)

    def adversarial_terms(
        self,
        critic: PatchCritic,
        real: Tensor,
        decoded: Tensor,
        progress: float,
        of_real: Sequence[Tensor] = (),
        of_decoded: Sequence[Tensor] = (),
    ) -> dict[str, Tensor]:
        """Return `adversarial` and `critic` of images (B, C, S, S) in [0, 1] and their features; 0 before it begins.

        Before the critic learns, it sees one image and its term is 0 times its verdict: its weights have gradients of
        0, as several processes need it that exchange the gradients of all weights.

        Args:
            progress: the share of the run that is done.
        """
        nothing = decoded.new_zeros(())
        if progress < self.adversarial_start - self.critic_lead:
            verdicts = critic(real[:1], [feature[:1] for feature in of_real])
            return {"adversarial": nothing, CRITIC: 0 * mean(verdicts)}
        on_real = critic(real, of_real)
        on_decoded = critic(decoded.detach(), [feature.detach() for feature in of_decoded])
        pull = nothing
        if progress >= self.adversarial_start:
            pull = -mean(critic(decoded, of_decoded, learn=False))
        return {"adversarial": pull, CRITIC: hinge(on_real, on_decoded)}


def mean(verdicts: Sequence[Tensor]) -> Tensor:
    """Return the mean verdict, where all maps of verdicts count the same."""
    return torch.stack([verdict.mean() for verdict in verdicts]).mean()


def hinge(real: Sequence[Tensor], decoded: Sequence[Tensor]) -> Tensor:
    """Return the critic's loss: verdicts shall be above 1 for real patches, below -1 for decoded ones."""
    return mean([functional.relu(1 - verdict) for verdict in real]) + mean(
        [functional.relu(1 + verdict) for verdict in decoded]
    )
