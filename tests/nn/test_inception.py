"""Inception-v3 of 2015: its size and names, its peculiar pools, and both layouts of its file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from spheregen.errors import ModelFileError
from spheregen.nn.backbones.inception import BlockA, BlockC, BlockE, FidInception, Unit, load_inception


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Such small work is slower on two threads, far slower when other programs keep the cores busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def randomise(net: nn.Module) -> None:
    """Weights that keep a signal alive through all layers, and statistics other than 0 and 1."""
    for name, tensor in net.state_dict().items():
        if name.endswith("conv.weight"):
            nn.init.kaiming_normal_(tensor)
        elif name.endswith("running_var"):
            tensor.uniform_(0.5, 1.5)
        elif "bn." in name:
            tensor.normal_(1.0 if name.endswith("bn.weight") else 0.0, 0.1)


@pytest.fixture(scope="module")
def inception() -> FidInception:
    torch.manual_seed(0)
    net = FidInception()
    randomise(net)
    return net.eval()


def test_size_and_names() -> None:
    with torch.device("meta"):
        net = FidInception()
    assert sum(parameter.numel() for parameter in net.parameters()) == 23_850_960
    state = net.state_dict()
    assert len(state) == 94 * 5 + 2
    assert state["Conv2d_1a_3x3.conv.weight"].shape == (32, 3, 3, 3)
    assert state["Mixed_5b.branch1x1.bn.running_mean"].shape == (64,)
    assert state["Mixed_6c.branch7x7dbl_2.conv.weight"].shape == (160, 160, 7, 1)
    assert state["Mixed_7c.branch3x3dbl_3a.conv.weight"].shape == (384, 384, 1, 3)
    assert state["fc.weight"].shape == (1008, 2048)
    assert state["fc.bias"].shape == (1008,)


def test_positions_and_features(inception: FidInception) -> None:
    shapes: dict[str, tuple[int, ...]] = {}

    def note(name: str) -> None:
        def hook(_: nn.Module, __: object, out: torch.Tensor) -> None:
            shapes[name] = tuple(out.shape[1:])

        handles.append(getattr(inception, name).register_forward_hook(hook))

    handles: list[torch.utils.hooks.RemovableHandle] = []
    for name in ("Conv2d_4a_3x3", "Mixed_5b", "Mixed_5d", "Mixed_6a", "Mixed_6e", "Mixed_7a", "Mixed_7c"):
        note(name)
    with torch.no_grad():
        features = inception(torch.rand(2, 3, 299, 299) * 2 - 1)
    for handle in handles:
        handle.remove()
    assert shapes == {
        "Conv2d_4a_3x3": (192, 71, 71),
        "Mixed_5b": (256, 35, 35),
        "Mixed_5d": (288, 35, 35),
        "Mixed_6a": (768, 17, 17),
        "Mixed_6e": (768, 17, 17),
        "Mixed_7a": (1280, 8, 8),
        "Mixed_7c": (2048, 8, 8),
    }
    assert features.shape == (2, 2048)
    assert features.min() >= 0  # means of what a ReLU lets through
    assert features.std() > 1e-3


def test_logits_leave_the_bias_out(inception: FidInception) -> None:
    features = torch.rand(3, 2048)
    torch.testing.assert_close(inception.logits(features), inception.fc(features) - inception.fc.bias)
    assert inception.logits(torch.zeros(1, 2048)).abs().max() == 0


def test_a_unit_follows_its_formula() -> None:
    torch.manual_seed(0)
    unit = Unit(4, 6, 3, padding=1)
    randomise(unit)
    x = torch.randn(2, 4, 5, 5)
    bn = unit.bn
    shift, scale = (each.detach().view(1, -1, 1, 1) for each in (bn.running_mean, torch.sqrt(bn.running_var + 1e-3)))
    expected = bn.weight.view(1, -1, 1, 1) * (unit.conv(x) - shift) / scale + bn.bias.view(1, -1, 1, 1)
    torch.testing.assert_close(unit(x), expected.clamp(min=0), rtol=1e-5, atol=1e-5)


def pass_through(unit: Unit) -> None:
    """Make a 1x1 unit hand on its first channels."""
    outputs, inputs = unit.conv.weight.shape[:2]
    with torch.no_grad():
        unit.conv.weight.copy_(torch.eye(outputs, inputs).view(outputs, inputs, 1, 1))
        unit.bn.running_var.fill_(1 - 1e-3)


@pytest.mark.parametrize(
    ("block", "channels", "width"),
    [(BlockA(16, 8), 16, 8), (BlockC(16, 8), 16, 192), (BlockE(16, last=False), 16, 192)],
)
def test_average_pools_leave_the_padding_out(block: BlockA | BlockC | BlockE, channels: int, width: int) -> None:
    pass_through(block.branch_pool)
    flat = torch.full((1, channels, 9, 9), 5.0)
    pooled = block(flat)[:, -width:][:, : min(width, channels)]
    torch.testing.assert_close(pooled, torch.full_like(pooled, 5.0))  # with the padding corners would be 4/9 of it
    corner = torch.zeros(1, channels, 9, 9)
    corner[..., 0, 0] = 8.0
    assert block(corner)[0, -width, 0, 0].item() == pytest.approx(2.0)  # of 4 neighbours


def test_the_last_block_takes_the_maximum() -> None:
    with torch.device("meta"):
        net = FidInception()
    assert (net.Mixed_7b.last, net.Mixed_7c.last) == (False, True)
    block = BlockE(16, last=True)
    pass_through(block.branch_pool)
    corner = torch.zeros(1, 16, 9, 9)
    corner[..., 0, 0] = 8.0
    pooled = block(corner)[0, -192]
    assert pooled[:2, :2].unique().tolist() == [8.0]
    assert pooled.sum().item() == pytest.approx(4 * 8.0)


@pytest.mark.parametrize("counts", [False, True])
def test_files_round_trip(inception: FidInception, counts: bool, tmp_path: Path) -> None:
    state = dict(inception.state_dict())
    if counts:  # as batch norms of torch save themselves
        for name in [name for name in state if name.endswith("running_var")]:
            state[name.replace("running_var", "num_batches_tracked")] = torch.tensor(0)
    file = tmp_path / "weights.pth"
    torch.save(state, file)
    loaded = load_inception(file)
    assert not loaded.training
    assert loaded.state_dict().keys() == inception.state_dict().keys()
    for name, tensor in inception.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name


def test_other_files_are_refused(inception: FidInception) -> None:
    state = dict(inception.state_dict())
    with pytest.raises(ModelFileError, match=r"1 missing tensors such as 'fc\.bias'"):
        load_inception({name: tensor for name, tensor in state.items() if name != "fc.bias"})
    with pytest.raises(ModelFileError, match="1 unexpected tensors such as 'AuxLogits"):
        load_inception({**state, "AuxLogits.fc.bias": torch.zeros(1)})
    with pytest.raises(ModelFileError, match=r"\(1000, 2048\), not \(1008, 2048\)"):
        load_inception({**state, "fc.weight": torch.zeros(1000, 2048)})
