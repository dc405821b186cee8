"""Known degradations y = A(x) + noise: what all have in common, and those that are functions or compositions of others.

`prox(v, y, lam)` is the minimiser of |A x - y|^2 + lam |x - v|^2, which for a linear A is

    v + A' (A A' + lam)^-1 (y - A v).

With a `gain` G over frequencies, the prior's error is not white but of amplitude G, as that of a network that keeps
coarse things better or worse than fine ones: |A x - y|^2 + lam |G^-1 (x - v)|^2 is minimal at

    v + G G' A' (A G G' A' + lam)^-1 (y - A v).

Names are those of deepinv, whose linear physics `from_deepinv` takes as they are. All are differentiable in x, v and y,
and work on any device and in any floating type.

Source: SP3 (arXiv 2606.16396), the data step; method.md, section 5, its closed forms. Legend: B samples, images
(B, C, H, W) of any range: a linear operator does not mind. `lam` is one number or (B,).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self, TypeVar

import torch
from torch import Tensor

from spheregen.errors import ConfigError
from spheregen.sphere import per_sample

T = TypeVar("T")

Lam = Tensor | float
"""Weight of the prior's image against the squared residual, from 0 up: one number, or (B,)."""
CG_ITERATIONS = 50
FEW = 12
"""Of conjugate gradients within a loop."""
LEAST = 1e-4
"""The least weight of the prior for operators that lose some of an image for good but have no exact limit at 0."""


@dataclass(frozen=True)
class Operator:
    """A degradation. A subclass is a frozen dataclass whose tensors have the batch, or 1, as their first axis.

    It defines `A` and `A_adjoint`, and `prox` where it has a closed form; what is no linear map has no adjoint and says
    so by `linear`.
    """

    linear = True
    """`A` is linear, so a shift and a scale of images mean those of y."""
    image_like = True
    """Neighbours in y are neighbours in the image, so that noise can be told from it."""
    task = ""
    """The name under which a model's best settings for it are recorded; empty: nothing is."""
    least_lambda = LEAST
    """The least `lam` that `prox` takes; 0 where the limit exists in closed form: the nearest image that agrees."""

    def _kept(self, name: str, of: Tensor, how: object, make: Callable[[], T]) -> T:
        """Return what `make` makes of a tensor, kept from the call before if that saw the same: a loop asks for it in
        each of its steps.

        Args:
            of: the tensor; one that takes part in gradients is asked anew each time.
            how: what else decides.
        """
        if torch.is_grad_enabled() or of.is_inference() or torch.compiler.is_compiling():
            return make()
        held = self.__dict__.setdefault("_held", {})
        known = held.get(name)
        if known is None or known[0] is not of or known[1:3] != (of._version, how):
            known = held[name] = (of, of._version, how, make())
        found: T = known[3]
        return found

    def A(self, x: Tensor) -> Tensor:
        """Return the observation of images (B, C, H, W), without noise."""
        raise NotImplementedError

    def A_adjoint(self, y: Tensor) -> Tensor:
        """Return the adjoint's image (B, C, H, W) of an observation: <A x, y> = <x, A' y>."""
        raise NotImplementedError

    def prox(self, v: Tensor, y: Tensor, lam: Lam, gain: Tensor | None = None) -> Tensor:
        """Return the images x that minimise |A x - y|^2 + lam |G^-1 (x - v)|^2; here by conjugate gradients.

        Args:
            v: the prior's images (B, C, H, W).
            y: observations.
            lam: not below `least_lambda`.
            gain: G, real and above 0, (H, W // 2 + 1) over the frequencies of `torch.fft.rfft2`; None: 1.

        Raises:
            ConfigError: an impossible `lam`.
        """
        return conjugate_gradients(self, v, y, self._lam(lam, v), gain)

    def step(self, v: Tensor, y: Tensor, lam: Lam, gain: Tensor | None = None) -> Tensor:
        """Return what a loop takes for `prox`: the same, or nearly so at a small share of the cost."""
        return self.prox(v, y, lam, gain)

    def last_step(self, v: Tensor, y: Tensor, lam: Lam, gain: Tensor | None = None) -> Tensor:
        """Return what a loop ends with: `prox`, by `FEW` iterations where it has no closed form."""
        return self.step(v, y, lam, gain)

    def residual(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the root mean square of A x - y over what is known, (B,): the noise's deviation, where x is right."""
        square = (self.A(x) - y).abs().square()
        known = getattr(self, "known", None)
        if known is None:
            return square.flatten(1).mean(1).sqrt()
        seen = (known > 0).to(square.dtype).expand_as(square)
        mean: Tensor = (square * seen).flatten(1).sum(1) / seen.flatten(1).sum(1).clamp_min(1)
        return mean.sqrt()

    def bounded(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the result of a restoration as images in [-1, 1]."""
        return x.clamp(-1, 1)

    def init(self, y: Tensor) -> Tensor:
        """Return first guesses (B, C, H, W) that have no holes."""
        return y

    def each(self, change: Callable[[Tensor], Tensor]) -> Self:
        """Return the same with every tensor changed, also those of operators inside."""

        def changed(value: Any) -> Any:
            if isinstance(value, Operator):
                return value.each(change)
            return change(value) if isinstance(value, Tensor) else value

        fields = [field.name for field in dataclasses.fields(self) if field.init]
        return dataclasses.replace(self, **{name: changed(getattr(self, name)) for name in fields})

    def to(self, *where: Any) -> Self:
        """Return the same on a device, or in a floating type."""
        return self.each(lambda tensor: tensor.to(*where))

    def __getitem__(self, part: slice) -> Self:
        """Return the operator of these samples."""
        return self.each(lambda tensor: tensor if len(tensor) == 1 else tensor[part])

    def __matmul__(self, inner: Operator) -> Composition:
        """Return the composition: `inner` first, then this."""
        return Composition(self, inner)

    def _lam(self, lam: Lam, like: Tensor) -> Tensor:
        """Return the weight, checked, shaped to multiply samples."""
        each = torch.as_tensor(lam, device=like.device, dtype=like.real.dtype)
        if not bool((torch.isfinite(each) & (each >= self.least_lambda)).all()):
            kind = type(self).__name__
            raise ConfigError(
                f"lambda of {kind} is finite and at least {self.least_lambda:g}, not {lam}: "
                + ("it is a weight" if self.least_lambda == 0 else "below it the data step is singular")
            )
        return per_sample(each, like)


def check_adjoint(operator: Operator, shape: tuple[int, ...], *, tolerance: float = 1e-3) -> None:
    """Refuse an operator whose adjoint is none, by the dot-product test on images of `shape` (C, H, W).

    Raises:
        ConfigError: <A x, y> and <x, A' y> differ by more than `tolerance` of |A x| |y|; or A is not linear.
    """
    generator = torch.Generator("cpu").manual_seed(0)
    x = torch.randn((2, *shape), generator=generator).double().to(_place(operator))
    try:
        seen = operator.A(x)
    except RuntimeError:  # one in a narrower type
        x = x.float()
        seen = operator.A(x)
    y = torch.randn(seen.shape, generator=generator).to(seen.device, seen.real.dtype).to(seen.dtype)
    back = operator.A_adjoint(y)
    if back.shape != x.shape:
        raise ConfigError(
            f"A_adjoint of {type(operator).__name__} gives shape {tuple(back.shape)}, and images have {tuple(x.shape)}"
        )
    left, right = (seen * y.conj()).real.sum(), (x * back).sum()
    scale = torch.linalg.vector_norm(seen) * torch.linalg.vector_norm(y)
    if not float((left - right).abs()) <= tolerance * float(scale):
        raise ConfigError(
            f"A_adjoint of {type(operator).__name__} is not the adjoint of A: <A x, y> = {float(left):.6g} and "
            f"<x, A_adjoint y> = {float(right):.6g}; they must be equal for all x and y"
        )
    if not torch.allclose(operator.A(-2 * x), -2 * seen, rtol=1e-3, atol=1e-3 * float(seen.abs().max())):
        raise ConfigError(f"A of {type(operator).__name__} is not linear: A(-2 x) is not -2 A(x)")


def _place(operator: Operator) -> torch.device:
    values = (getattr(operator, field.name) for field in dataclasses.fields(operator))
    return next((value.device for value in values if isinstance(value, Tensor)), torch.device("cpu"))


@dataclass(frozen=True)
class Linear(Operator):
    """Any linear map given as two functions; the data step is by conjugate gradients.

    `check_adjoint` tells whether the second function is the adjoint of the first one; `restore` asks it.
    """

    image_like = False

    forward: Callable[[Tensor], Tensor]
    """A: images (B, C, H, W) to observations, sample by sample."""
    adjoint: Callable[[Tensor], Tensor]
    """A': back."""

    def A(self, x: Tensor) -> Tensor:
        return self.forward(x)

    def A_adjoint(self, y: Tensor) -> Tensor:
        return self.adjoint(y)

    def step(self, v: Tensor, y: Tensor, lam: Lam, gain: Tensor | None = None) -> Tensor:
        """Return `prox`, by few iterations."""
        return conjugate_gradients(self, v, y, self._lam(lam, v), gain, FEW)

    def init(self, y: Tensor) -> Tensor:
        """Return the least-squares image of least norm, nearly."""
        return conjugate_gradients(self, torch.zeros_like(self.A_adjoint(y)), y, 1e-2)


def from_deepinv(physics: Any) -> Linear:
    """Return a linear physics of deepinv as an operator; its noise model is left out.

    Raises:
        ConfigError: it has not `A` and `A_adjoint`.
    """
    if not callable(getattr(physics, "A", None)) or not callable(getattr(physics, "A_adjoint", None)):
        raise ConfigError(f"a linear physics has A and A_adjoint; {type(physics).__name__} has not")
    return Linear(physics.A, physics.A_adjoint)


@dataclass(frozen=True)
class Composition(Operator):
    """One operator after another; the data step is by conjugate gradients."""

    outer: Operator
    inner: Operator

    def __post_init__(self) -> None:
        for part in (self.outer, self.inner):
            if not part.linear:
                raise ConfigError(f"only linear operators can be composed, and {type(part).__name__} is not linear")

    def A(self, x: Tensor) -> Tensor:
        return self.outer.A(self.inner.A(x))

    def A_adjoint(self, y: Tensor) -> Tensor:
        return self.inner.A_adjoint(self.outer.A_adjoint(y))

    def step(self, v: Tensor, y: Tensor, lam: Lam, gain: Tensor | None = None) -> Tensor:
        """Return `prox`, by few iterations."""
        return conjugate_gradients(self, v, y, self._lam(lam, v), gain, FEW)

    @property
    def image_like(self) -> bool:  # type: ignore[override]
        return self.outer.image_like

    def init(self, y: Tensor) -> Tensor:
        return self.inner.init(self.outer.init(y))


def conjugate_gradients(
    operator: Operator,
    v: Tensor,
    y: Tensor,
    lam: Lam,
    gain: Tensor | None = None,
    iterations: int = CG_ITERATIONS,
) -> Tensor:
    """Return the data step of any linear operator: (G A'A G + lam) u = G A'(y - A v), x = v + G u.

    Of each sample it ends where the residual is a millionth of rounding, or after `iterations` products with A'A.
    """

    def coloured(x: Tensor) -> Tensor:
        return x if gain is None else filtered(x, gain)

    residual = coloured(operator.A_adjoint(y - operator.A(v)))
    change, step = torch.zeros_like(residual), residual
    power = _dot(residual, residual)
    floor = torch.finfo(residual.dtype).eps ** 2 * power
    for _ in range(iterations):
        seen = coloured(operator.A_adjoint(operator.A(coloured(step)))) + lam * step
        curve = _dot(step, seen)
        going = (power > floor) & (curve > 0)
        if not bool(going.any()):
            break
        length = torch.where(going, power / torch.where(going, curve, torch.ones_like(curve)), torch.zeros_like(power))
        change = change + length * step
        residual = residual - length * seen
        after = _dot(residual, residual)
        ratio = torch.where(going, after / torch.where(going, power, torch.ones_like(power)), torch.zeros_like(power))
        step, power = residual + ratio * step, torch.where(going, after, torch.zeros_like(power))
    return v + coloured(change)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return per_sample((a * b).flatten(1).sum(1), a)


def filtered(x: Tensor, transfer: Tensor) -> Tensor:
    """Return images whose frequencies, those of `torch.fft.rfft2`, are multiplied by a transfer or a gain."""
    found: Tensor = torch.fft.irfft2(torch.fft.rfft2(x) * transfer, s=x.shape[-2:])
    return found


def both_halves(gain: Tensor, size: tuple[int, int]) -> Tensor:
    """Return a gain over the frequencies of `torch.fft.fft2`, from that over half of them."""
    whole: Tensor = torch.fft.fft2(torch.fft.irfft2(gain, s=size)).real
    return whole
