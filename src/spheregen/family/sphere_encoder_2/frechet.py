"""A Frechet distance that can be learned from: of the latents, or a judge's features, of decoded and of real images.

Sources: *Sphere Encoder 2* (arXiv 2610.02208) and facts of its code. Legend: B samples, T tokens of D features, n rows
(samples or tokens), w weights (B,).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from spheregen.errors import ConfigError, Settings, check_choices

Total = Callable[[str, Tensor], Tensor]
"""The sum of a tensor of this name over the global batch, whose gradient is that of the global loss here."""
_LEAST_WEIGHT, _LEAST_ROWS = 1e-3, 2


@dataclass(frozen=True, kw_only=True)
class FrechetConfig(Settings):
    """The settings of a Frechet loss. Defaults are those of the published code, not of its recipes.

    Raises:
        ConfigError: a value outside of its range.
    """

    pool: Literal["mean", "token", "cls"] = "mean"
    """One row for each image, the mean of its tokens; or one for each token; or, of the encoder's term, the class token
    of a frozen encoder, and the mean of other features."""
    norm_eps: float = 1e-2
    """The loss is FD / (FD without gradient + this): its value is near 1 and its gradient that of ln FD."""
    decay: float = 0.999
    """Of the histories."""
    keeps_real: bool = True
    """Real images count with a history of earlier batches."""
    keeps_generated: bool = False
    """Decoded ones too; then the gradient has the share of this batch, 1 - decay."""
    start: float = 0.0
    """The share of the run from which it counts; before that histories are gathered."""

    def __post_init__(self) -> None:
        check_choices(self, "loss.frechet.")
        if not self.norm_eps > 0:
            raise ConfigError(f"loss.frechet.norm_eps is a positive number, not {self.norm_eps:g}")
        for name in ("decay", "start"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"loss.frechet.{name} is a share from 0 to less than 1, not {getattr(self, name):g}")


@dataclass(frozen=True)
class Sums:
    """The sums of weighted rows, of which statistics are made."""

    weight: Tensor
    """Sum of w, a scalar."""
    first: Tensor
    """(D,): sum of w x."""
    second: Tensor
    """(D, D): sum of w x x^T."""
    rows: Tensor
    """n, a scalar."""

    @staticmethod
    def of(rows: Tensor, weights: Tensor | None = None) -> Sums:
        """Return those of rows (n, D) and weights (n,), in float64."""
        x = rows.double()
        w = x.new_ones(len(x)) if weights is None else weights.double()
        weighted = w[:, None] * x
        return Sums(w.sum(), weighted.sum(0), weighted.T @ x, x.new_tensor(float(len(x))))

    def over_all(self, name: str, total: Total) -> Sums:
        """Return those of the global batch."""
        size = len(self.first)
        flat = torch.cat([self.weight[None], self.rows[None], self.first, self.second.flatten()])
        weight, rows, first, second = total(name, flat).split([1, 1, size, size * size])
        return Sums(weight[0], first, second.view(size, size), rows[0])

    def moments(self) -> tuple[Tensor, Tensor]:
        """Return the mean (D,) and the mean of x x^T (D, D)."""
        weight = self.weight.clamp_min(1e-12)
        return self.first / weight, self.second / weight


class History(nn.Module):
    """Running moments of rows, float64."""

    mean: Tensor
    second: Tensor
    count: Tensor

    def __init__(self, features: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(features, dtype=torch.float64))
        self.register_buffer("second", torch.zeros(features, features, dtype=torch.float64))
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))

    def blended(self, moments: tuple[Tensor, Tensor], share: Tensor) -> tuple[Tensor, Tensor]:
        """Return `share` of the history and the rest of new moments."""
        mean, second = moments
        return share * self.mean + (1 - share) * mean, share * self.second + (1 - share) * second

    @torch.no_grad()
    def store(self, moments: tuple[Tensor, Tensor], rows: Tensor, where: Tensor) -> None:
        """Keep moments of so many more rows, where that is true."""
        self.mean.copy_(torch.where(where, moments[0], self.mean))
        self.second.copy_(torch.where(where, moments[1], self.second))
        self.count += torch.where(where, rows, 0.0)


class FrechetLoss(nn.Module):
    """The normalised Frechet distance of decoded images' features to those of real ones.

    Args:
        features: D.
        config: how.
        name: of its sums.
        floor: the least eigenvalue.
        ridge: added to the diagonals of covariances.
        seed: decoded images from which the generated history begins: of those, the rows with a weight of at least 1/2
            count, all alike, and the loss is 0 until they have been seen.
    """

    seen: Tensor

    def __init__(
        self,
        features: int,
        config: FrechetConfig,
        name: str,
        *,
        floor: float = 1e-10,
        ridge: float = 1e-6,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.config, self.name, self.floor, self.ridge, self.seed = config, name, floor, ridge, seed
        self.real, self.generated = History(features), History(features)
        if seed:
            self.register_buffer("seen", torch.zeros((), dtype=torch.float64))
        self.fixed = False
        """The real moments are those of a data set and stay as they are."""
        self._pending: list[Callable[[], object]] = []

    def set_reference(self, mean: Tensor, covariance: Tensor) -> None:
        """Compare with these moments (D,) and (D, D) of a data set for good."""
        mean, covariance = mean.double(), covariance.double()
        self.real.mean.copy_(mean)
        self.real.second.copy_(covariance + mean[:, None] * mean)
        self.real.count.fill_(2.0)
        self.fixed = True

    def commit(self) -> None:
        """Take the last batch into the histories; until then it may be computed again."""
        for take in self._pending:
            take()
        self._pending = []

    def rows(self, features: Tensor, weights: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Return features (B, T, D) or (B, D) as rows (n, D), and their weights."""
        if features.ndim == 2:
            return features, weights
        if self.config.pool != "token":
            return features.mean(dim=1), weights
        return features.flatten(0, 1), None if weights is None else weights.repeat_interleave(features.shape[1])

    @torch.no_grad()
    def gather(self, real: Tensor | None, generated: Tensor, weights: Tensor, total: Total) -> None:
        """Take a batch into the histories, before the loss counts. Arguments as below."""
        self._pending = []
        if self.seed:  # its history begins when the loss does
            return
        both = ((self.real, real, None, self.config.keeps_real), (self.generated, generated, weights, True))
        for side, (history, features, w, keeps) in zip(("real", "generated"), both, strict=True):
            if features is None or not keeps or (history is self.generated and not self.config.keeps_generated):
                continue
            sums = Sums.of(*self.rows(features, w)).over_all(f"{self.name}.{side}", total)
            share = (history.count / (history.count + sums.rows)).clamp(max=self.config.decay)
            enough = sums.weight >= _LEAST_WEIGHT
            self._pending.append(partial(history.store, history.blended(sums.moments(), share), sums.rows, enough))

    def forward(self, real: Tensor | None, generated: Tensor, weights: Tensor, total: Total) -> Tensor:
        """Return the loss, a scalar; 0 where there are too few rows.

        Args:
            real: features of real images, (B, T, D) or (B, D); None where the reference is fixed.
            generated: those of decoded ones, with gradients.
            weights: of the decoded ones, (B,).
            total: sums over the global batch.
        """
        loss, _ = self.measure(real, generated, weights, total)
        return loss

    def measure(self, real: Tensor | None, generated: Tensor, weights: Tensor, total: Total) -> tuple[Tensor, Tensor]:
        """Return the loss and the Frechet distance behind it."""
        config, self._pending = self.config, []
        begins = self.seen < self.seed if self.seed else None
        if begins is not None:
            weights = torch.where(begins, (weights >= 0.5).to(weights.dtype), weights)
        sums = Sums.of(*self.rows(generated, weights)).over_all(f"{self.name}.generated", total)
        enough = (sums.weight >= _LEAST_WEIGHT) & (sums.weight + self.generated.count >= _LEAST_ROWS)
        if self.fixed or real is None:
            reference = self.real.mean, self.real.second
        else:
            with torch.no_grad():
                theirs = Sums.of(*self.rows(real)).over_all(f"{self.name}.real", total)
                reference = self._with_history(self.real, theirs, config.keeps_real, enough)
        ours = self._with_history(self.generated, sums, config.keeps_generated, enough, begins)
        distance = frechet(reference, ours, floor=self.floor, ridge=self.ridge)
        loss = distance / (distance.detach() + config.norm_eps)
        return torch.where(enough if begins is None else enough & ~begins, loss, 0 * loss).float(), distance

    def _with_history(
        self, history: History, sums: Sums, keeps: bool, enough: Tensor, begins: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        if not keeps:
            return sums.moments()
        share, rows = self.config.decay * (history.count > 0).double(), sums.rows.detach()
        if begins is not None:
            self._pending.append(partial(self.seen.add_, rows))
            new = sums.weight.detach()
            share = torch.where(begins, history.count / (history.count + new).clamp_min(1), share)
            rows, enough = torch.where(begins, new, rows), torch.where(begins, new > 0, enough)
        blended = history.blended(sums.moments(), share)
        kept = blended[0].detach(), blended[1].detach()
        self._pending.append(partial(history.store, kept, rows, enough))
        return blended


def frechet(
    reference: tuple[Tensor, Tensor], moments: tuple[Tensor, Tensor], *, floor: float = 1e-10, ridge: float = 1e-6
) -> Tensor:
    """Return the squared Frechet distance of two sets by their mean (D,) and mean of x x^T (D, D).

    Gradients are those of the second one.

    |m - m_r|^2 + tr S + tr S_r - 2 sum sqrt(eig(S_r^1/2 S S_r^1/2)), S biased, eigenvalues not below `floor`.
    """
    (mean_r, second_r), (mean, second) = reference, moments
    with torch.no_grad():
        theirs = _covariance(mean_r, second_r, ridge)
        values, vectors = torch.linalg.eigh(theirs)
        root = (vectors * values.clamp_min(floor).sqrt()) @ vectors.T
    ours = _covariance(mean, second, ridge)
    between = root @ ours @ root
    shared = torch.linalg.eigvalsh((between + between.T) / 2).clamp_min(floor).sqrt().sum()
    found: Tensor = (mean - mean_r).square().sum() + ours.trace() + theirs.trace() - 2 * shared
    return found


def _covariance(mean: Tensor, second: Tensor, ridge: float) -> Tensor:
    covariance = second - mean[:, None] * mean
    return (covariance + covariance.T) / 2 + ridge * torch.eye(len(mean), dtype=mean.dtype, device=mean.device)
