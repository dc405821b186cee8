"""Parameter groups, the learning rate's shape, and the moving average."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from spheregen.family.recipe import OptimizerConfig, ParameterGroup
from spheregen.family.sphere_encoder.network import AutoencoderConfig, SphereAutoencoder
from spheregen.nn.sizes import TransformerSize
from spheregen.training.ema import EMA
from spheregen.training.optimizer import Optimizer, learning_rate, tags_by_name

SIZE = TransformerSize(width=16, depth=1, heads=2)


def optimizer_of(model: nn.Module, **config: Any) -> Optimizer:
    return Optimizer(model, tags_by_name(model), [ParameterGroup("", OptimizerConfig(**config))])


def tiny() -> SphereAutoencoder:
    return SphereAutoencoder(
        AutoencoderConfig(image_size=8, patch_size=4, encoder=SIZE, decoder=SIZE, latent_channels=4, num_classes=2)
    )


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_every_parameter_is_in_one_group_with_its_rate_and_decay(name: str) -> None:
    model = tiny()
    groups = optimizer_of(model, name=name, weight_decay=0.1, encoder_lr=0.1).param_groups
    counted = [id(p) for group in groups for p in group["params"]]
    assert sorted(counted) == sorted(id(p) for p in model.parameters())
    encoder = {id(p) for p in model.encoder.parameters()}
    for group in groups:
        for parameter in group["params"]:
            assert group["lr_factor"] == (0.1 if id(parameter) in encoder else 1.0)
            assert (group["weight_decay"] > 0) <= (parameter.ndim > 1)  # vectors never decay
    norms = {id(m.weight) for m in model.modules() if type(m).__name__ == "RMSNorm" and m.weight is not None}
    assert all(not group["weight_decay"] for group in groups for p in group["params"] if id(p) in norms)


def test_an_untagged_parameter_is_an_error() -> None:
    model = tiny()
    model.extra = nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"extra\.weight needs exactly one"):
        tags_by_name(model)


def test_muon_takes_the_matrices_inside_blocks_and_leaves_thin_ones_alone() -> None:
    size = TransformerSize(width=32, depth=1, heads=2)
    model = SphereAutoencoder(
        AutoencoderConfig(image_size=8, patch_size=4, encoder=size, decoder=SIZE, latent_channels=4, num_classes=2)
    )
    names = {id(p): name for name, p in model.named_parameters()}
    groups = optimizer_of(model, name="muon").param_groups
    muon = {names[id(p)] for group in groups if group["muon"] for p in group["params"]}
    block = "encoder.trunk.blocks.0"
    layers = ("attention.qkv", "attention.out", "mlp.gate_value", "mlp.out")
    assert muon == {f"{block}.{layer}.weight" for layer in layers}  # the decoder is 16 wide: AdamW


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_the_optimisers_state_goes_out_and_in_by_name(name: str) -> None:
    size = TransformerSize(width=32, depth=1, heads=2)
    config = AutoencoderConfig(image_size=8, patch_size=4, encoder=size, decoder=size, latent_channels=4)

    def learner(seed: int) -> tuple[SphereAutoencoder, Optimizer]:
        torch.manual_seed(seed)
        model = SphereAutoencoder(config)
        return model, optimizer_of(model, name=name)

    def learn(model: SphereAutoencoder, optimizer: Optimizer) -> None:
        for index, parameter in enumerate(model.parameters()):
            parameter.grad = torch.full_like(parameter, 0.1 * (index + 1))
        optimizer.step({"": 0.01})
        assert all(parameter.grad is None for parameter in model.parameters())

    model, optimizer = learner(0)
    learn(model, optimizer)
    twin, other = learner(1)
    twin.load_state_dict(model.state_dict())
    parts: dict[str, dict[str, torch.Tensor]] = {}
    for key, value in optimizer.state().items():
        parameter, _, part = key.rpartition("|")
        parts.setdefault(parameter, {})[part] = value.clone()
    assert parts.keys() == dict(model.named_parameters()).keys()
    other.load_state(parts)
    learn(model, optimizer)
    learn(twin, other)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))
    del parts["encoder.trunk.blocks.0.mlp.out.weight"]
    with pytest.raises(KeyError, match=r"mlp\.out\.weight\|"):
        other.load_state(parts)


def test_learning_rate_shape() -> None:
    def rates(warmup: int, total: int, batch_size: int = 256, **config: Any) -> list[float]:
        config = {"lr": 1e-4, **config}
        return [
            learning_rate(OptimizerConfig(**config), step, batch_size=batch_size, warmup=warmup, total=total)
            for step in range(total + 1)
        ]

    rate = rates(10, 110, 512, min_lr=1e-6)  # scaled with batch/256
    assert rate[:11] == pytest.approx([*(2e-4 * (t + 1) / 11 for t in range(10)), 2e-4])
    assert rate[60] == pytest.approx((2e-4 + 1e-6) / 2) and rate[110] == pytest.approx(1e-6)
    assert rate[10:] == sorted(rate[10:], reverse=True)
    assert rates(0, 10, 512, scale_lr=False)[0] == 1e-4
    constant = rates(4, 50, schedule="constant")
    assert constant[0] < constant[3] < constant[4] and set(constant[4:]) == {1e-4}


def test_ema_follows_in_float32() -> None:
    model = nn.Linear(3, 3)
    average = EMA(model, decay=0.9)
    start = model.weight.detach().clone()
    with torch.no_grad():
        model.weight.add_(1.0)
    average.update(model)
    torch.testing.assert_close(average.model.weight, start + 0.1)
    assert not average.model.weight.requires_grad
    small = nn.Linear(2, 2).to(torch.bfloat16)
    assert EMA(small, 0.9999).model.weight.dtype == torch.float32  # bf16 would hardly move
