"""Batch norm: what it computes in training and in use, and that its statistics can be measured exactly."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from spheregen.nn.norm import BatchNorm, Moments, recalibrate


def rows(*shape: int, seed: int = 0, mean: float = 0.0, deviation: float = 1.0) -> Tensor:
    return mean + deviation * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_in_training_it_is_torchs_own() -> None:
    x = rows(5, 7, 3, mean=2, deviation=4).requires_grad_()
    ours, theirs = BatchNorm(3), nn.BatchNorm1d(3, affine=False)
    result, expected = ours(x), theirs(x.transpose(1, 2)).transpose(1, 2)
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-6)
    (gradient,) = torch.autograd.grad(result.pow(3).sum(), x)
    (reference,) = torch.autograd.grad(expected.pow(3).sum(), x)
    torch.testing.assert_close(gradient, reference, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(ours.running_mean, theirs.running_mean)
    # ours is the variance of the rows themselves, by which they are normalised, torch's that of a larger population
    torch.testing.assert_close((ours.running_variance - 0.9) * 35 / 34, theirs.running_var - 0.9)


def test_in_use_a_sample_does_not_depend_on_its_batch() -> None:
    norm = BatchNorm(3)
    for seed in range(20):
        norm(rows(8, 4, 3, seed=seed, mean=1, deviation=2))
    norm.eval()
    x = rows(6, 4, 3, seed=99)
    before = {name: value.clone() for name, value in norm.state_dict().items()}
    together = norm(x)
    assert all(torch.equal(norm(x[i : i + 1])[0], together[i]) for i in range(6))
    assert all(torch.equal(before[name], value) for name, value in norm.state_dict().items())
    assert before.keys() == {"running_mean", "running_variance"}
    assert not list(norm.parameters())


def test_a_single_row_and_equal_rows_are_finite() -> None:
    norm = BatchNorm(3)
    x = rows(1, 1, 3)
    torch.testing.assert_close(norm(x), x / (1 + 1e-5) ** 0.5)  # nothing is known yet: mean 0, variance 1
    assert torch.equal(norm.running_mean, torch.zeros(3))
    same = torch.ones(4, 2, 3, requires_grad=True)
    result = norm(same)
    result.sum().backward()
    assert torch.equal(result, torch.zeros(4, 2, 3))
    assert same.grad is not None and bool(same.grad.isfinite().all())


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.linear, self.second = BatchNorm(3), nn.Linear(3, 5), BatchNorm(5)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.second(self.linear(self.first(x)))
        return result


def test_recalibration_is_exact_and_leaves_nothing_behind() -> None:
    torch.manual_seed(0)
    model = Small().eval()
    x = rows(60, 4, 3, mean=3, deviation=2)
    weights = {name: value.clone() for name, value in model.named_parameters()}
    for sizes in ([60], [7, 13, 40]):
        model.second.running_mean.fill_(7)  # what was there before does not matter
        seen = model.linear(model.first(x))
        recalibrate(model, model, x.split(sizes))
        for norm, values in ((model.second, seen), (model.first, x)):
            flat = values.detach().flatten(0, 1).double()
            torch.testing.assert_close(norm.running_mean.double(), flat.mean(0), rtol=1e-6, atol=1e-6)
            torch.testing.assert_close(norm.running_variance.double(), flat.var(0, correction=0), rtol=1e-6, atol=0)
        model.first.running_mean.zero_()
        model.first.running_variance.fill_(1)
    assert all(torch.equal(weights[name], value) for name, value in model.named_parameters())
    assert not model.first._forward_pre_hooks and not model.second._forward_pre_hooks


def test_processes_share_the_data() -> None:
    """What each process finds of its part is put together."""
    x = rows(60, 4, 3, mean=3, deviation=2)
    alone, together = BatchNorm(3).eval(), BatchNorm(3).eval()
    recalibrate(alone, alone, [x])
    other = [[Moments.of(x[20:])]]  # of the one norm, as the other process sends it
    recalibrate(together, together, [x[:20]], gather=lambda mine: [mine, other])
    torch.testing.assert_close(together.running_mean, alone.running_mean)
    torch.testing.assert_close(together.running_variance, alone.running_variance)
