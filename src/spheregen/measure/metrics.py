"""Distances and scores of sets of features, exact: Frechet distance, KID, CMMD, Inception Score, precision and recall.

All take features as a tensor (N, D) of any floating type, in memory or a memory-mapped file, and sum in float64. What
grows with N alone is read block by block.

Legend: N images, D features, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from spheregen.errors import ConfigError, DataError

BLOCK = 4096
"""Rows that are summed at a time."""
PAIR_BLOCK = 1024
"""Rows whose distances to all others are held at a time."""
CMMD_SCALE, CMMD_WIDTH = 1000.0, 10.0
_EPS = torch.finfo(torch.float64).eps
_NEGATIVE = 1e-3  # of the largest eigenvalue: more is not rounding, not even that of files in half precision
_NORM_SLACK = 1e-2  # embeddings in bfloat16 are still of unit norm


# --- Mean and covariance, and the Frechet distance ---------------------------------------------------------------


@dataclass(frozen=True)
class Gaussian:
    """The normal distribution that stands for a set of features; reference files hold one."""

    mean: Tensor
    """(D,) float64."""
    covariance: Tensor
    """(D, D) float64, divided by N-1."""
    count: int | None = None
    """N, where it is known: published files do not say. Its rank is at most N-1, which makes distances more exact."""

    @property
    def dim(self) -> int:
        """D."""
        return self.mean.shape[0]


class Moments:
    """Count, mean and scatter of features, batch by batch in float64; stable for features with a mean far from 0.

    Batches join by the pairwise formula of Chan, Golub and LeVeque (1983): each is centred on its own mean before its
    squares are summed, so nothing large is ever subtracted from something large. The sums stay on the device of the
    first batch.
    """

    def __init__(self) -> None:
        self.count = 0
        """N so far."""
        self._mean = torch.zeros(0, dtype=torch.float64)
        self._scatter = torch.zeros(0, 0, dtype=torch.float64)

    def update(self, features: Tensor) -> None:
        """Take in one batch (n, D).

        Raises:
            DataError: the batch has another width than those before.
        """
        if len(features):
            features = exact(features)
            mean = features.mean(dim=0)
            centred = features - mean
            self._join(len(features), mean, centred.T @ centred)

    def merge(self, other: Moments) -> None:
        """Take in what another one has summed up, from another process for example.

        Raises:
            DataError: it saw features of another width.
        """
        if other.count:
            self._join(other.count, other._mean, other._scatter)

    @property
    def gaussian(self) -> Gaussian:
        """Mean, unbiased covariance and count.

        Raises:
            DataError: fewer than two images.
        """
        if self.count < 2:
            raise DataError(f"a covariance needs at least 2 images, not {self.count}; give more images")
        return Gaussian(mean=self._mean, covariance=self._scatter / (self.count - 1), count=self.count)

    def _join(self, count: int, mean: Tensor, scatter: Tensor) -> None:
        if not self.count:
            self.count, self._mean, self._scatter = count, mean, scatter
            return
        if mean.shape != self._mean.shape:
            raise DataError(
                f"features of width {len(mean)} follow others of width {len(self._mean)}; use one extractor"
            )
        device, total = self._mean.device, self.count + count
        step = mean.to(device) - self._mean
        scatter = self._scatter + scatter.to(device)  # new tensors: Gaussians hold the old ones
        self._scatter = scatter.addr_(step, step, alpha=self.count * count / total)
        self._mean = self._mean + step * (count / total)
        self.count = total


def gaussian(features: Tensor) -> Gaussian:
    """Return the mean and covariance of features (N, D).

    Raises:
        DataError: fewer than two images, or a number is not finite.
    """
    _check(features, 2, "a covariance")
    moments = Moments()
    for block in features.split(BLOCK):
        moments.update(block)
    return moments.gaussian


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """Return the Frechet distance of two normal distributions (Dowson and Landau 1982), FID for Inception's features.

    Heusel et al. 2017, arXiv 1706.08500: |m1 - m2|^2 + tr S1 + tr S2 - 2 tr (S1 S2)^(1/2). It is 0 for equal ones,
    symmetric, in squared units of the features. Fewer images look farther apart, so compare figures of equal numbers.

    The last trace is the sum of the singular values of F1^T F2 for any factors S = F F^T, since (S1 S2) and
    (F1^T F2)(F1^T F2)^T share their eigenvalues other than 0. This way no square root is taken of what rounding left
    where an eigenvalue should be 0: with fewer images than features such roots add up to errors that show in a FID.

    Raises:
        DataError: they differ in width, or one holds NaN, or a matrix that is no covariance.
    """
    if a.dim != b.dim:
        raise DataError(f"one distribution has {a.dim} features and the other {b.dim}; use one extractor for both")
    factor_a, factor_b = _factor(a), _factor(b)
    device = factor_a.device
    apart = (exact(a.mean).to(device) - exact(b.mean).to(device)).square().sum()
    shared = torch.linalg.svdvals(factor_a.T @ factor_b.to(device)).sum()
    spread = sum(float(exact(each.covariance).trace()) for each in (a, b))
    return max(0.0, float(apart) + spread - 2 * float(shared))


def _factor(of: Gaussian) -> Tensor:
    """Return F (D, R) with F F^T the covariance; R is D, or N-1 where fewer images can have filled no more."""
    mean, covariance = exact(of.mean), exact(of.covariance)
    finite = bool(mean.isfinite().all() and covariance.isfinite().all())
    if covariance.shape != (of.dim, of.dim) or not finite:
        raise DataError(
            f"a mean of {of.dim} features came with a covariance of shape {tuple(covariance.shape)}, or one of them "
            "holds NaN or infinite numbers; compute both afresh"
        )
    values, vectors = torch.linalg.eigh((covariance + covariance.T) / 2)  # ascending
    if float(values[0]) < -_NEGATIVE * float(values[-1].clamp_min(0)):
        raise DataError(
            f"a covariance has the eigenvalue {float(values[0]):.3g} and so is none; compute the statistics afresh"
        )
    rank = of.dim if of.count is None else min(of.dim, of.count - 1)
    values, vectors = values[of.dim - rank :], vectors[:, of.dim - rank :]
    factor: Tensor = vectors * values.clamp_min(0).sqrt()
    return factor


# --- Scores of class logits --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Score:
    """Inception Score over splits, between 1 and the number of classes."""

    value: float
    """Mean over splits."""
    deviation: float
    """Population standard deviation over splits, what the literature prints after the value; 0 for one split."""


def inception_score(logits: Tensor, splits: int = 10) -> Score:
    """Return the Inception Score of class logits (N, K) (Salimans et al. 2016, arXiv 1606.03498).

    exp(mean over images of KL(p(class | image) || mean p(class))) for each split. Split i holds the images from
    i * N // splits up to (i + 1) * N // splits, in the order given, as in the authors' program. So sorted images, class
    by class, score low; and small splits score low, for which the literature takes 10 splits of 5000.

    Raises:
        ConfigError: no splits.
        DataError: fewer images than splits, or NaN.
    """
    if splits < 1:
        raise ConfigError(f"an Inception Score takes at least 1 split, not {splits}")
    _check(logits, splits, f"an Inception Score of {splits} splits", cure="give more images, or fewer splits")
    scores = torch.empty(splits, dtype=torch.float64)
    for split in range(splits):
        part = logits[split * len(logits) // splits : (split + 1) * len(logits) // splits]
        log_p = exact(part).log_softmax(dim=1)
        p = log_p.exp()
        mean = p.mean(dim=0)
        scores[split] = ((p * log_p).sum() / len(p) - torch.xlogy(mean, mean).sum()).exp()
    return Score(value=float(scores.mean()), deviation=float(scores.std(correction=0)))


# --- Kernel distances --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class KernelDistance:
    """KID over subsets."""

    value: float
    """Mean over subsets. Unbiased, and so at times a little below 0 for sets that are alike."""
    deviation: float
    """Population standard deviation over subsets; what the literature and its tools print after the value."""
    error: float
    """`deviation / sqrt(subsets)`: how far the mean may be off for the draw of subsets, not for that of the images."""


def kernel_distance(
    samples: Tensor, reference: Tensor, *, subsets: int = 100, size: int = 1000, seed: int = 0
) -> KernelDistance:
    """Return KID, the kernel distance of two sets of features (Binkowski et al. 2018, arXiv 1801.01401).

    The unbiased estimate of the squared maximum mean discrepancy under the kernel (x.y / D + 1)^3, on random subsets.

    Args:
        samples: features (N, D).
        reference: features (N', D).
        subsets: how many subsets are drawn.
        size: images in a subset, drawn without replacement from each set.
        seed: of the draw, which is the same on all devices.

    Raises:
        ConfigError: no subsets, or subsets of fewer than two images.
        DataError: fewer images than `size`, another width, or NaN.
    """
    if subsets < 1 or size < 2:
        raise ConfigError(f"KID takes at least 1 subset of at least 2 images, not {subsets} of {size}")
    _check_pair(samples, reference, size, size, f"KID on subsets of {size}", cure="give more images, or lower `size`")
    generator = torch.Generator().manual_seed(seed)
    estimates = torch.empty(subsets, dtype=torch.float64)
    for subset in range(subsets):
        x, y = (exact(rows[torch.randperm(len(rows), generator=generator)[:size]]) for rows in (samples, reference))
        y = y.to(x.device)
        within = _kernel(x, x).triu_(1).sum() + _kernel(y, y).triu_(1).sum()  # an image does not meet itself
        estimates[subset] = float(2 * within / (size * (size - 1)) - 2 * _kernel(x, y).mean())
    deviation = float(estimates.std(correction=0))
    return KernelDistance(value=float(estimates.mean()), deviation=deviation, error=deviation / math.sqrt(subsets))


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    return (x @ y.T).div_(x.shape[1]).add_(1).pow_(3)


def cmmd(samples: Tensor, reference: Tensor) -> float:
    """Return CMMD, a kernel distance of CLIP embeddings of unit norm (Jayasumana et al. 2024, arXiv 2401.09603).

    1000 (mean k(x, x') + mean k(y, y') - 2 mean k(x, y)) with k(x, y) = exp(-|x - y|^2 / (2 * 10^2)) for embeddings
    (N, D) and (N', D). The means run over all pairs, an image with itself included: the biased estimate, as the
    authors' program has it, though the paper prints the unbiased one. It is never below 0, and too high by
    1000 (1 - mean k) / N for each set.

    Raises:
        DataError: no images, embeddings of another width or norm, or NaN.
    """
    _check_pair(samples, reference, 1, 1, "CMMD")
    x, y = exact(samples), exact(reference)
    y = y.to(x.device)
    for rows, name in ((x, "samples"), (y, "reference images")):
        norms = torch.linalg.vector_norm(rows, dim=1)
        if len(wrong := ((norms - 1).abs() > _NORM_SLACK).nonzero()):
            first = int(wrong[0, 0])
            raise DataError(f"CMMD takes CLIP's features of unit norm; that of image {first} of the {name} is another")
    return CMMD_SCALE * max(0.0, _mean_kernel(x, x) + _mean_kernel(y, y) - 2 * _mean_kernel(x, y))


def _mean_kernel(x: Tensor, y: Tensor) -> float:
    """Return the mean of k - 1 over all pairs: k of unit vectors is above 0.98, and the ones cancel in the end."""
    parts = x.split(PAIR_BLOCK)
    total = math.fsum(float(_squared_distances(p, y).mul_(-1 / (2 * CMMD_WIDTH**2)).expm1_().sum()) for p in parts)
    return total / (len(x) * len(y))


# --- Balls of nearest neighbours ---------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Manifold:
    """How the balls of two sets cover each other."""

    precision: float
    """Share of samples in the ball of some real image: are samples real-looking?"""
    recall: float
    """Share of real images in the ball of some sample: is everything real covered?"""
    density: float
    """Real balls that a sample lies in, on average, over `density_k`: precision that outliers do not inflate; may
    exceed 1."""
    coverage: float
    """Share of real images with a sample in their ball: recall that strange samples do not inflate."""


def manifold(samples: Tensor, reference: Tensor, *, k: int = 3, density_k: int = 5) -> Manifold:
    """Return precision and recall with `k` neighbours, density and coverage with `density_k`.

    Precision and recall: Kynkaanniemi et al. 2019, arXiv 1904.06991; density and coverage: Naeem et al. 2020, arXiv
    2002.09797. The ball of an image reaches to its k-th nearest neighbour in its own set, itself not counted, and the
    image at that distance is in it; a ball of radius 0, of copies of one image, holds exact copies alone. To keep
    rounding from deciding such ties, squared radii are raised by the rounding error of a squared distance.

    Time grows with the product of both numbers of images. All four depend on the number of images, so compare only
    figures of the same number (the literature: 10 000 or 50 000).

    Args:
        samples: features (N, D).
        reference: features (N', D) of real images.
        k: neighbours for precision and recall.
        density_k: neighbours for density and coverage.

    Raises:
        ConfigError: no neighbours.
        DataError: no more images than neighbours, another width, or NaN.
    """
    if min(k, density_k) < 1:
        raise ConfigError(f"precision and recall take at least 1 neighbour, not k {k} and density_k {density_k}")
    cure = "give more images, or lower the number of neighbours"
    _check_pair(samples, reference, k + 1, max(k, density_k) + 1, "precision and recall of that k", cure=cure)
    real = exact(reference)
    centre = real.mean(dim=0)  # taken off, so that less of the distances is lost to rounding
    real = real - centre
    fake = exact(samples).to(real.device) - centre
    real_ball, wide_ball = _squared_radii(real, (k, density_k)).unbind(dim=1)
    (fake_ball,) = _squared_radii(fake, (k,)).unbind(dim=1)
    precise = torch.zeros(len(fake), dtype=torch.bool, device=real.device)
    recalled, covered, contained = 0, 0, 0
    for part in _parts(real):
        squared = _squared_distances(real[part], fake)
        precise |= (squared <= real_ball[part, None]).any(dim=0)
        recalled += int((squared <= fake_ball).any(dim=1).count_nonzero())
        within = squared <= wide_ball[part, None]
        covered += int(within.any(dim=1).count_nonzero())
        contained += int(within.count_nonzero())
    return Manifold(
        precision=int(precise.count_nonzero()) / len(fake),
        recall=recalled / len(real),
        density=contained / (density_k * len(fake)),
        coverage=covered / len(real),
    )


def _squared_radii(rows: Tensor, neighbours: Sequence[int]) -> Tensor:
    """Return squared distances (N, len(neighbours)) to the k-th nearest other row, for each k, rounded up."""
    nearest = []
    for part in _parts(rows):
        squared = _squared_distances(rows[part], rows)
        squared[:, part].fill_diagonal_(torch.inf)
        nearest.append(squared.topk(max(neighbours), dim=1, largest=False).values)
    radii = torch.cat(nearest)[:, [k - 1 for k in neighbours]]
    # What lies on the edge has |y| <= |x| + r, so that |x|^2 + |y|^2 <= 3 |x|^2 + 2 r^2, and a squared distance of D
    # products is wrong by at most about D times the rounding error of that.
    return radii + (rows.shape[1] + 8) * _EPS * (3 * rows.square().sum(dim=1, keepdim=True) + 2 * radii)


# --- What all share ----------------------------------------------------------------------------------------------


def exact(values: Tensor) -> Tensor:
    """Return `values` in float64 where they lie, or on the CPU where a device has no float64 (Apple's)."""
    return (values.cpu() if values.device.type == "mps" else values).double()


def _parts(rows: Tensor) -> list[slice]:
    return [slice(start, min(start + PAIR_BLOCK, len(rows))) for start in range(0, len(rows), PAIR_BLOCK)]


def _squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """Return |x - y|^2 of all pairs (N, N') of rows (N, D) and (N', D) in float64, at least 0.

    From |x|^2 + |y|^2 - 2 x.y, so wrong by about (|x|^2 + |y|^2) times float64's rounding error.
    """
    squared = torch.addmm(x.square().sum(dim=1, keepdim=True), x, y.T, alpha=-2)
    return squared.add_(y.square().sum(dim=1)).clamp_min_(0)


def _check_pair(
    samples: Tensor, reference: Tensor, least: int, least_real: int, metric: str, cure: str = "give more images"
) -> None:
    """Check that two sets have one width and enough rows, all finite."""
    if samples.shape[1] != reference.shape[1]:
        raise DataError(
            f"samples have {samples.shape[1]} features, the reference {reference.shape[1]}; use one extractor for both"
        )
    _check(samples, least, metric, "samples", cure)
    _check(reference, least_real, metric, "reference images", cure)


def _check(rows: Tensor, least: int, metric: str, name: str = "images", cure: str = "give more images") -> None:
    if len(rows) < least:
        raise DataError(f"{metric} needs at least {least} {name}, not {len(rows)}; {cure}")
    for number, block in enumerate(rows.split(BLOCK)):
        if len(bad := (~torch.isfinite(block).all(dim=1)).nonzero()):
            raise DataError(
                f"the features of image {number * BLOCK + int(bad[0, 0])} hold NaN or infinite numbers; look at that "
                "image, and at whether the feature extractor overflows in its type"
            )
