"""A prior fitted to the codes of data: where on the sphere a model has learned, and how to draw from there.

A model that was trained for minutes, or on few images, does not cover the sphere, and uniform points lie where nothing
was learned. A density of the codes mends that after training and touches no weight: a Gaussian for each class on the
leading directions of all codes, small and isotropic beside them, whose draws are put back onto the sphere. Classes of
few images lean on the covariance that all classes share.

One noise under all classes makes images that go together, such as letters of one typeface: a class's draws are those of
the covariance that all classes share, moved by as little as makes them the class's own.

Of texts in place of classes the mean is linear in the text's vector, and all texts share one covariance.

Legend: n codes of L numbers, K classes, the null class last: it stands for all codes; k directions.
Sources: Ghosh et al. 2020 (arXiv 1903.12436), ex-post density estimation (method.md, section 8); Olkin and Pukelsheim
1982, the least transport between Gaussians.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import torch
from torch import Tensor

from spheregen.errors import ConfigError, DataError
from spheregen.sphere import full_precision

DIRECTIONS = 64
"""k, at most."""
SHRINKAGE = 10.0
"""A class of so many codes has half its own covariance and half that of all classes."""
OWN_FACTORS = 1 << 20
"""Numbers of the factors of all classes beyond which classes share one: 256 classes of 64 directions."""
FLAT = 1e-3
"""Of the largest deviation: less is none."""
_ROUNDS, _SPARE = 4, 16  # of the subspace iteration
_BLOCK = 1024  # codes at a time

Gather = Callable[[Any], list[Any]]
"""All-gathers an object over processes; all of them call it together."""


def alone(value: Any) -> list[Any]:
    """Gather within one process."""
    return [value]


@dataclass(frozen=True)
class FittedPrior:
    """The density of a model's codes; all tensors are float32 and on the CPU."""

    centre: Tensor
    """(L,) the mean of all codes."""
    basis: Tensor
    """(L, k) orthonormal, the leading directions."""
    means: Tensor
    """(K+1, k) of the classes, as coordinates from the centre."""
    factors: Tensor
    """(K+1, k, k), or (2, k, k): one that the classes share, and that of the null class. Each times its transpose is a
    covariance of coordinates."""
    residual: Tensor
    """(K+1,) the deviation of each number beside the leading directions."""
    _constants: ClassVar[int] = 1
    """Weights beside those of classes, or beside the numbers of a text."""

    def check(self, numbers: int, label_width: int) -> None:
        """Raise a ConfigError unless this is the prior of latents of so many numbers, and of such labels."""
        k, rows = self.basis.shape[-1], label_width + self._constants
        shapes = ((numbers,), (numbers, k), (rows, k), (len(self.factors), k, k), (rows,))
        found = tuple(tuple(getattr(self, field.name).shape) for field in fields(self))
        if found != shapes or len(self.factors) not in (2, rows):
            raise ConfigError(f"a prior of shapes {found} does not fit {label_width} classes and {numbers} numbers")
        if not all(bool(getattr(self, field.name).isfinite().all()) for field in fields(self)):
            raise ConfigError("a prior of numbers that are not finite")

    def embed_labels(self, labels: Tensor | None) -> Tensor:
        """Return the weights (R, K+1) of the classes for labels, as `spheregen.conditioning` wants its rows."""
        rows = torch.eye(len(self.means), device=None if labels is None else labels.device)
        if labels is None or not labels.is_floating_point():
            return rows
        return torch.cat([labels.float(), rows[-1:]])

    def draw(self, noise: Tensor, weights: Tensor, temperature: Tensor | float = 1.0) -> Tensor:
        """Return raw latents (B, ...), to be projected into the latent space, for Gaussian noise of their shape.

        Args:
            noise: a draw is a smooth function of it.
            weights: (B or 1, K+1) of the classes; means, factors and deviations of a mixture are mixed by them.
            temperature: scales deviations from the means; 0 gives a class's mean, 1 the density as fitted.
        """
        e = noise.flatten(1).float()
        place = e.device
        centre, basis, means, factors, residual = (getattr(self, f.name).to(place) for f in fields(self))
        weights = weights.to(place, torch.float32).expand(len(e), -1)
        of_factors = self._weights_of_factors(weights)
        with full_precision(place.type):
            inside = e @ basis
            moved = weights @ means + temperature * torch.einsum("bc,cij,bj->bi", of_factors, factors, inside)
            beside = temperature * (weights @ residual)[:, None] * (e - inside @ basis.T)
            latent = centre + moved @ basis.T + beside
        found: Tensor = latent.reshape(noise.shape).to(noise.dtype)
        return found

    def noise_of(self, latents: Tensor, weights: Tensor) -> Tensor:
        """Return the noise whose draw these latents (B, ...) are: what is left of a code without its class.

        Under the weights of another class the same noise draws the point that stands there as these stand in theirs.
        Directions in which a class does not vary have no noise.

        Args:
            weights: (B or 1, K+1), each row of one class or one text.
        """
        v = latents.flatten(1).float()
        place = v.device
        of = weights.expand(len(v), -1).cpu()
        inverse = torch.stack([self._inverse(row) for row in self._weights_of_factors(of).argmax(1).tolist()]).to(place)
        means, residual = (of @ self.means).to(place), (of @ self.residual).to(place)
        centre, basis = self.centre.to(place), self.basis.to(place)
        with full_precision(place.type):
            inside = (v - centre) @ basis
            beside = (v - centre) - inside @ basis.T
            noise = torch.einsum("bij,bj->bi", inverse, inside - means) @ basis.T
            noise = noise + beside / residual[:, None].clamp_min(FLAT)
        found: Tensor = noise.reshape(latents.shape).to(latents.dtype)
        return found

    def _inverse(self, row: int) -> Tensor:
        """Return the pseudo-inverse (k, k) of a factor, which is kept: an edit of a small model is mostly that."""
        if row not in self._inverses:
            self._inverses[row] = torch.linalg.pinv(self.factors[row].double(), rtol=FLAT).float()
        return self._inverses[row]

    @functools.cached_property
    def _inverses(self) -> dict[int, Tensor]:
        return {}

    def _weights_of_factors(self, weights: Tensor) -> Tensor:
        """Return what `factors` count of weights (B, K+1): each one, or all classes together and the null."""
        if len(self.factors) == 2 != len(self.means):
            return torch.cat([weights[:, :-1].sum(1, keepdim=True), weights[:, -1:]], dim=1)
        return weights


class FittedTextPrior(FittedPrior):
    """The density of the codes of a model that follows texts.

    Its weights are the D numbers of a text's vector, 1, and 0; those of the null are 0, 0 and 1. So `means` (D+2, k)
    and `residual` (D+2,), which is 0 but for the last two, have a row for each of them; `factors` are (2, k, k).
    """

    _constants: ClassVar[int] = 2

    def embed_labels(self, labels: Tensor | None) -> Tensor:
        """Return the weights (R, D+2) of texts (B, D+1), see `conditioning.text_labels`; the null is the last row.

        What tells of their tokens, between the D numbers and the last one, is not looked at.
        """
        null = torch.zeros(1, len(self.means), device=None if labels is None else labels.device)
        null[:, -1] = 1
        if labels is None:
            return null
        told, numbers = labels.float(), len(self.means) - self._constants
        return torch.cat([torch.cat([told[:, :numbers], 1 - told[:, -1:], told[:, -1:]], dim=1), null])

    def _weights_of_factors(self, weights: Tensor) -> Tensor:
        return weights[:, -2:]


@torch.no_grad()
def fit_prior(
    codes: Tensor,
    labels: Tensor | None,
    num_classes: int,
    *,
    directions: int = DIRECTIONS,
    shrinkage: float = SHRINKAGE,
    gather: Gather = alone,
) -> FittedPrior:
    """Fit the prior of codes, exactly as all processes see them: the result depends on the set of codes alone.

    Args:
        codes: (n, ...) points of the latent space, those of this process.
        labels: (n,) int64 class ids; None without classes.
        num_classes: K.
        directions: k at most; fewer where there are fewer codes or numbers.
        shrinkage: codes of a class at which its covariance counts half, 0 for none.
        gather: of the processes that hold the rest.

    Raises:
        DataError: fewer than two codes.
    """
    x = codes.flatten(1)
    numbers = x.shape[1]
    ids = torch.full((len(x),), num_classes) if labels is None else labels.cpu()
    blocks, centre, basis, _ = _measured(x, directions, gather)
    rank = basis.shape[1]

    sums = torch.zeros(num_classes + 1, rank + rank * rank + 2, dtype=torch.float64)
    for block, of in zip(blocks, ids.split(_BLOCK), strict=True):
        centred = block.double() - centre
        y = centred @ basis
        beside = centred.square().sum(1) - y.square().sum(1)
        rows = torch.cat([y, (y[:, :, None] * y[:, None]).flatten(1), beside[:, None], torch.ones(len(y), 1)], dim=1)
        sums.index_add_(0, of, rows)
    sums = _summed(sums, gather)
    if num_classes:  # the null class stands for all
        sums[-1] = sums.sum(0)
    members = sums[:, -1]
    each = sums / members.clamp_min(1)[:, None]
    means, beside = each[:, :rank], each[:, -2]
    scatter = each[:, rank:-2].unflatten(1, (rank, rank)) - means[:, :, None] * means[:, None]
    own = members[:-1] if num_classes else members
    within = (own[:, None, None] * scatter[: len(own)]).sum(0) / own.sum()
    lean = torch.where(members > 0, shrinkage / (members + shrinkage), torch.ones_like(members))
    lean[-1] = 0  # all codes know their covariance themselves
    covariance = torch.lerp(scatter, within.expand_as(scatter), lean[:, None, None])
    outside = torch.lerp(beside, beside[-1].expand_as(beside), lean).clamp_min(0) / max(1, numbers - rank)
    if num_classes > 1 and covariance.numel() > OWN_FACTORS:
        covariance = torch.stack([within, covariance[-1]])
    factors = torch.cat([_moved(within, covariance[:-1]), _root(covariance[-1:])])
    found = (centre, basis, means, factors, outside.sqrt())
    return FittedPrior(*(part.float().contiguous() for part in found))


@torch.no_grad()
def fit_text_prior(
    codes: Tensor,
    labels: Tensor,
    *,
    directions: int = DIRECTIONS,
    shrinkage: float = SHRINKAGE,
    gather: Gather = alone,
) -> FittedTextPrior:
    """Fit the prior of codes and their texts; the mean of a text is a ridge regression on its vector.

    Args:
        codes, directions, gather: as in `fit_prior`, whose errors it has.
        labels: (n, D+1) texts, see `conditioning.text_labels`; those of the null count for the null alone.
        shrinkage: codes of one text at which their mean counts half, and half what is known of others.
    """
    x = codes.flatten(1)
    blocks, centre, basis, count = _measured(x, directions, gather)
    rank, width = basis.shape[1], labels.shape[1]  # the vector and a constant are as many as the vector and the null

    def seen() -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        for block, of in zip(blocks, labels.cpu().double().split(_BLOCK), strict=True):
            centred = block.double() - centre
            yield torch.cat([of[:, :-1], 1 - of[:, -1:]], dim=1), centred @ basis, centred

    gram = _summed(_total((told.T @ told for told, _, _ in seen()), width, width), gather)
    moments = _summed(_total((told.T @ y for told, y, _ in seen()), width, rank), gather)
    ridge = torch.full((width,), shrinkage, dtype=torch.float64)
    ridge[-1] = FLAT  # the constant is free
    weights = torch.linalg.solve(gram + ridge.diag(), moments)

    def sums(told: Tensor, y: Tensor, centred: Tensor) -> Tensor:
        left = (y - told @ weights) * told[:, -1:]
        beside = (centred.square().sum() - y.square().sum()).expand(1)
        return torch.cat([(left.T @ left).flatten(), (y.T @ y).flatten(), beside])

    found = _summed(_total((sums(*each) for each in seen()), 2 * rank * rank + 1), gather)
    of_texts, of_all = found[: rank * rank].view(rank, rank), found[rank * rank : -1].view(rank, rank)
    factors = torch.stack([_root(of_texts / gram[-1, -1].clamp_min(1)), _root(of_all / count)])
    means = torch.cat([weights, torch.zeros(1, rank, dtype=torch.float64)])
    residual = torch.zeros(len(means), dtype=torch.float64)
    residual[-2:] = (found[-1].clamp_min(0) / count / max(1, x.shape[1] - rank)).sqrt()
    return FittedTextPrior(*(part.float().contiguous() for part in (centre, basis, means, factors, residual)))


def _measured(x: Tensor, directions: int, gather: Gather) -> tuple[list[Tensor], Tensor, Tensor, int]:
    """Return codes (n, L) in blocks on the CPU, the mean and the leading directions of all, and the number of all."""
    total = _summed(torch.tensor([float(len(x))], dtype=torch.float64), gather)
    count = int(total.item())
    if count < 2:
        raise DataError(f"a prior needs at least 2 codes, not {count}; give more images")
    blocks = [block.cpu() for block in x.split(_BLOCK)]
    centre = _summed(_total((block.double().sum(0) for block in blocks), x.shape[1]), gather) / count
    return blocks, centre, _leading(blocks, centre, min(directions, x.shape[1], count - 1), gather), count


def _leading(blocks: Sequence[Tensor], centre: Tensor, rank: int, gather: Gather) -> Tensor:
    """Return the leading directions (L, k) of codes, by subspace iteration with a few to spare."""
    numbers = len(centre)
    wide = min(numbers, rank + _SPARE)

    def seen(basis: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        for block in blocks:
            centred = block.double() - centre
            yield centred, centred @ basis

    basis = torch.linalg.qr(torch.randn(numbers, wide, generator=torch.Generator().manual_seed(0)).double()).Q
    if wide < numbers:
        for _ in range(_ROUNDS):
            moved = _summed(_total((centred.T @ y for centred, y in seen(basis)), numbers, wide), gather)
            basis = torch.linalg.qr(moved).Q
    inside = _summed(_total((y.T @ y for _, y in seen(basis)), wide, wide), gather)
    found: Tensor = basis @ torch.linalg.eigh(inside).eigenvectors.flip(1)[:, :rank]
    return found


def _root(covariance: Tensor) -> Tensor:
    """Return the symmetric square roots of covariances (..., k, k)."""
    values, vectors = torch.linalg.eigh(covariance)
    root: Tensor = (vectors * values.clamp_min(0).sqrt()[..., None, :]) @ vectors.mT
    return root


def _moved(shared: Tensor, covariance: Tensor) -> Tensor:
    """Return factors F (..., k, k) of covariances F F^T: the root of a shared one, moved by the least transport."""
    root = _root(shared)
    back = torch.linalg.pinv(root, rtol=1e-6, hermitian=True)
    found: Tensor = back @ _root(root @ covariance @ root)
    return found


def _total(parts: Iterable[Tensor], *shape: int) -> Tensor:
    return sum(parts, torch.zeros(shape, dtype=torch.float64))


def _summed(part: Tensor, gather: Gather) -> Tensor:
    return _total(gather(part), *part.shape)
