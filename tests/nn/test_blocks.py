"""What models are made of: conventions recomputed with plain loops, fresh blocks that change nothing, tags."""

from __future__ import annotations

import copy
import itertools
import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from spheregen.family.sphere_encoder.network import AutoencoderConfig, SphereAutoencoder
from spheregen.nn.block import Attention, Block, ClassEmbedding, SwiGLU, gated_silu
from spheregen.nn.linear import DECAY, ENCODER, NO_DECAY, PaddedLinear, linear, tags_of
from spheregen.nn.mixer import Mixer
from spheregen.nn.norm import RMSNorm
from spheregen.nn.patches import ConvPixelHead, LinearPixelHead, PatchEmbedding
from spheregen.nn.positions import AxialRotary, sincos_table
from spheregen.nn.sizes import TransformerSize


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def randomise(module: nn.Module, scale: float = 0.2) -> None:
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        parameter.add_(scale * torch.randn(parameter.shape, generator=generator))


# positions ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("grid", "width"), [(1, 4), (3, 8), (4, 16)])
def test_sincos_table_by_the_mae_convention(grid: int, width: int) -> None:
    table = sincos_table(grid, width)
    assert table.shape == (1, grid * grid, width)
    quarter = width // 4
    for row, column in itertools.product(range(grid), repeat=2):
        expected: list[float] = []
        for position in (column, row):  # x first
            angles = [position / 10000 ** (k / quarter) for k in range(quarter)]
            expected += [math.sin(angle) for angle in angles] + [math.cos(angle) for angle in angles]
        torch.testing.assert_close(table[0, row * grid + column], torch.tensor(expected), atol=1e-6, rtol=0)


@pytest.mark.parametrize("channels", [4, 8, 16])
def test_rotary_by_a_plain_loop(channels: int) -> None:
    grid, half = 3, channels // 2
    x = gaussian(1, grid * grid, 1, channels)
    turned = AxialRotary(grid, channels)(x)
    for token, pair in itertools.product(range(grid * grid), range(half)):
        row, column = divmod(token, grid)
        in_rows = pair < half // 2
        frequency = 10000 ** (-2 * (pair if in_rows else pair - half // 2) / half)
        angle = (row if in_rows else column) * frequency
        even, odd = (float(number) for number in x[0, token, 0, 2 * pair : 2 * pair + 2])
        expected = [
            even * math.cos(angle) - odd * math.sin(angle),
            even * math.sin(angle) + odd * math.cos(angle),
        ]
        torch.testing.assert_close(turned[0, token, 0, 2 * pair : 2 * pair + 2], torch.tensor(expected))


@pytest.mark.parametrize("front", [1, 3])
def test_rotary_leaves_tokens_in_front_alone(front: int) -> None:
    rotary = AxialRotary(2, 8)
    x = gaussian(2, front + 4, 3, 8)
    turned = rotary(x)
    assert torch.equal(turned[:, :front], x[:, :front])
    assert torch.equal(turned[:, front:], rotary(x[:, front:]))


@pytest.mark.parametrize("cast", [torch.bfloat16, torch.float16])
def test_rotary_tables_stay_wide(cast: torch.dtype) -> None:
    rotary = AxialRotary(5, 16)
    turns = rotary.turns.clone()
    rotary.to(cast)
    assert rotary.turns.dtype == torch.float32
    assert torch.equal(rotary.turns, turns)
    x = gaussian(1, 25, 2, 16).to(cast)
    assert rotary(x).dtype == cast
    torch.testing.assert_close(rotary(x), AxialRotary(5, 16)(x.float()).to(cast), rtol=0, atol=0)
    assert not rotary.state_dict()
    rotary.to(torch.float64)
    assert rotary.turns.dtype == torch.float64
    assert rotary(x.double()).dtype == torch.float64
    assert torch.equal(copy.deepcopy(rotary).turns, rotary.turns)


# layers ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("affine", [True, False])
def test_rms_norm(affine: bool) -> None:
    norm = RMSNorm(8, affine=affine)
    assert len(list(norm.parameters())) == affine
    randomise(norm)
    gain = norm.weight if norm.weight is not None else torch.ones(8)
    x = 1e-3 * gaussian(2, 3, 8)  # small, so that a wrong epsilon shows
    torch.testing.assert_close(norm(x), x / torch.sqrt((x**2).mean(-1, keepdim=True) + 1e-6) * gain)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rms_norm_takes_its_statistics_in_float32(dtype: torch.dtype) -> None:
    norm = RMSNorm(64).to(dtype)
    x = (300 * gaussian(2, 3, 64)).to(dtype)  # squares overflow float16
    assert norm(x).dtype == dtype
    torch.testing.assert_close(norm(x), RMSNorm(64)(x.float()).to(dtype), rtol=0, atol=0)


@pytest.mark.parametrize(("width", "hidden"), [(512, 1365), (768, 2048), (1024, 2730), (1152, 3072), (1664, 4437)])
def test_swiglu_hidden_width_of_the_published_sizes(width: int, hidden: int) -> None:
    with torch.device("meta"):
        assert SwiGLU(width).out.in_features == hidden


def test_attention_by_a_plain_loop() -> None:
    width, heads, grid = 16, 2, 2
    attention, rotary = Attention(width, heads), AxialRotary(grid, width // heads)
    randomise(attention)
    x = gaussian(2, 5, width)  # one token in front of the grid
    q, k, v = (part.unflatten(-1, (heads, -1)) for part in attention.qkv(x).chunk(3, dim=-1))
    q, k = rotary(q), rotary(k)
    mixed = torch.zeros(2, 5, heads, width // heads)
    for sample, head, token in itertools.product(range(2), range(heads), range(5)):
        scores = torch.stack([q[sample, token, head] @ k[sample, other, head] for other in range(5)])
        mixed[sample, token, head] = torch.softmax(scores / math.sqrt(width // heads), 0) @ v[sample, :, head]
    torch.testing.assert_close(attention(x, rotary), attention.out(mixed.flatten(2)))


@pytest.mark.parametrize("init", ["xavier", "normal", "scaled"])
@pytest.mark.parametrize("affine", [True, False])
def test_a_fresh_mixer_is_its_norm(init: str, affine: bool) -> None:
    mixer = Mixer(9, 4, depth=2, affine=affine, init=init)  # type: ignore[arg-type]
    x = gaussian(2, 9, 4)
    torch.testing.assert_close(mixer(x), RMSNorm(4)(x))
    assert (mixer.norm.weight is not None) == affine
    assert all(block.token_norm.weight is not None for block in mixer.blocks)  # type: ignore[union-attr]


def test_a_mixer_mixes_tokens_and_channels_by_the_formula() -> None:
    mixer = Mixer(9, 4, depth=1, affine=True)
    randomise(mixer)
    (block,) = mixer.blocks
    x = gaussian(2, 9, 4)
    first, _, second = block.token_mlp  # type: ignore[misc]
    tokens = functional.silu(torch.einsum("on,bnc->boc", first.weight, block.token_norm(x)) + first.bias[:, None])  # type: ignore[operator]
    y = x + block.token_gain * (torch.einsum("on,bnc->boc", second.weight, tokens) + second.bias[:, None])
    first, _, second = block.channel_mlp  # type: ignore[misc]
    assert first.out_features == 2 * 4
    y = y + block.channel_gain * second(functional.silu(first(block.channel_norm(y))))  # type: ignore[operator]
    torch.testing.assert_close(mixer(x), mixer.norm(y))
    # the latent's magnitude is bounded by the last norm
    assert mixer(1e4 * x).abs().max() < 20


def test_a_block_by_its_formula() -> None:
    rotary = AxialRotary(2, 8)
    x, condition = gaussian(3, 4, 16), gaussian(3, 16, seed=1)
    block = Block(16, 2, conditional=True)
    randomise(block)
    assert block.modulation is not None
    six = functional.linear(functional.silu(condition), block.modulation.linear.weight, block.modulation.linear.bias)
    shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = (six[:, None, 16 * i : 16 * (i + 1)] for i in range(6))
    y = x + gate_a * block.attention(block.attention_norm(x) * (1 + scale_a) + shift_a, rotary)
    y = y + gate_m * block.mlp(block.mlp_norm(y) * (1 + scale_m) + shift_m)
    torch.testing.assert_close(block(x, rotary, condition), y)


def test_an_unconditional_block_has_gates_of_one() -> None:
    rotary = AxialRotary(2, 8)
    block, x = Block(16, 2, conditional=False), gaussian(3, 4, 16)
    assert block.modulation is None
    y = x + block.attention(block.attention_norm(x), rotary)
    torch.testing.assert_close(block(x, rotary, None), y + block.mlp(block.mlp_norm(y)))


# pixels ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
def test_patch_embedding_is_row_major(channels: int) -> None:
    embed = PatchEmbedding(channels, 4, 16)
    empty = embed(torch.zeros(1, channels, 12, 12))
    assert empty.shape == (1, 9, 16)
    assert torch.equal(empty, torch.zeros_like(empty))  # no bias but the second one's, which starts at zero
    for row, column in itertools.product(range(3), repeat=2):
        images = torch.zeros(1, channels, 12, 12)
        images[:, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] = gaussian(channels, 4, 4)
        touched = embed(images)[0].abs().sum(dim=1) > 0
        assert touched.nonzero().flatten().tolist() == [3 * row + column]
    assert embed.patches.bias is None
    assert embed.mix.bias is not None


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("patch", [1, 2, 4])
def test_linear_head_pixel_layout(channels: int, patch: int) -> None:
    """Channel slowest, then row, then column inside a patch; patches row-major."""
    grid, width = 3, 16
    head = LinearPixelHead(width, patch, channels, grid, init="xavier")
    with torch.no_grad():  # an identity in place of the 3x3 convolution
        head.smooth.weight.zero_()
        for channel in range(channels):
            head.smooth.weight[channel, channel, 1, 1] = 1
    tokens = gaussian(2, grid * grid, width)
    numbers = head.linear(tokens)
    images = head(tokens)
    assert images.shape == (2, channels, grid * patch, grid * patch)
    size = range(grid * patch)
    for channel, y, x in itertools.product(range(channels), size, size):
        token = (y // patch) * grid + x // patch
        number = channel * patch * patch + (y % patch) * patch + x % patch
        torch.testing.assert_close(images[:, channel, y, x], numbers[:, token, number])


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("patch", [1, 2, 4, 8])
def test_conv_head(patch: int, channels: int) -> None:
    grid = 2
    head = ConvPixelHead(16, patch, channels, grid, init="xavier")
    randomise(head)
    tokens = gaussian(2, grid * grid, 16)
    images = head(tokens)
    assert images.shape == (2, channels, grid * patch, grid * patch)
    maps = functional.linear(tokens, head.linear.weight, head.linear.bias).transpose(1, 2).reshape(2, 32, grid, grid)
    padded = functional.pad(maps, (1, 1, 1, 1), mode="reflect")
    maps = functional.silu(functional.conv2d(padded, head.smooth.weight, head.smooth.bias))
    expected = functional.conv_transpose2d(maps, head.up.weight, head.up.bias, stride=patch, padding=1)
    assert head.up.kernel_size == (patch + 2, patch + 2)
    torch.testing.assert_close(images, expected)


# conditions -----------------------------------------------------------------------------------------------------------


def test_class_embedding() -> None:
    embedding = ClassEmbedding(50, 64)
    assert embedding.table.weight.shape == (51, 64)
    assert abs(embedding.table.weight.std().item() - 0.02) < 0.002
    assert torch.equal(embedding(None), embedding.table.weight)  # all rows, of which a condition picks
    mixtures = torch.eye(51)[[2, 0]]
    assert torch.equal(embedding(mixtures), embedding.table.weight[[2, 0, 50]])


# initialisation and tags ----------------------------------------------------------------------------------------------


def test_linear_initialisations() -> None:
    def std(init: str) -> float:
        layer = linear(100, 400, init=init)  # type: ignore[arg-type]
        assert torch.equal(layer.bias, torch.zeros(400))
        return layer.weight.std(correction=0).item()

    assert std("zero") == 0
    assert std("normal") == pytest.approx(1, rel=0.03)
    assert std("scaled") == pytest.approx(0.1, rel=0.03)
    assert std("xavier") == pytest.approx(math.sqrt(2 / 500), rel=0.03)


SMALL = TransformerSize(width=16, depth=2, heads=2, in_context_start=1)


@pytest.mark.parametrize("head", ["linear", "conv"])
@pytest.mark.parametrize("mixer", [0, 1])
@pytest.mark.parametrize("classes", [0, 3])
@pytest.mark.parametrize("context", [0, 2])
@pytest.mark.parametrize("affine", [True, False])
def test_every_parameter_is_tagged_once(head: str, mixer: int, classes: int, context: int, affine: bool) -> None:
    model = SphereAutoencoder(
        AutoencoderConfig(
            image_size=8,
            patch_size=4,
            encoder=SMALL,
            decoder=SMALL,
            latent_channels=4,
            num_classes=classes,
            encoder_mixer_depth=mixer,
            decoder_mixer_depth=mixer,
            mixer_affine=affine,
            pixel_head=head,  # type: ignore[arg-type]
            in_context_tokens=context,
        )
    )
    for name, parameter in model.named_parameters():
        tags = tags_of(parameter)
        assert len(tags & {DECAY, NO_DECAY}) == 1, name
        assert (ENCODER in tags) == name.startswith("encoder."), name
        # matrices and kernels decay; biases, gains, tables and learned tokens do not
        embedding = ".labels." in name or ".context" in name
        assert (DECAY in tags) == (parameter.ndim >= 2 and not embedding), name


def test_rotary_is_the_same_in_complex_and_real_arithmetic() -> None:
    from spheregen.nn.positions import _turn_complex, _turn_real

    generator = torch.Generator().manual_seed(0)
    for dtype in (torch.float32, torch.float64):
        pairs = torch.randn(2, 9, 3, 4, 2, generator=generator, dtype=dtype)
        turns = AxialRotary(3, 8).to(dtype).turns.view(9, 1, 4, 2)
        torch.testing.assert_close(_turn_complex(pairs, turns), _turn_real(pairs, turns))


@pytest.mark.parametrize(("pad_inputs", "pad_outputs", "parts"), [(0, 0, 1), (3, 0, 1), (0, 2, 2), (1, 5, 3)])
def test_a_padded_linear_computes_what_a_plain_one_does(pad_inputs: int, pad_outputs: int, parts: int) -> None:
    torch.manual_seed(0)
    padded = PaddedLinear(7, 6, parts=parts, pad_inputs=pad_inputs, pad_outputs=pad_outputs)
    plain = nn.Linear(7, 6)
    plain.load_state_dict(padded.state_dict())  # the padding is no parameter
    x = torch.randn(5, 7)
    extended = functional.pad(x, (0, pad_inputs), value=3.0)  # what lies in the padding does not count
    y = padded(extended).unflatten(-1, (parts, -1))
    assert y.shape == (5, parts, 6 // parts + pad_outputs)
    ours, rest = y[..., : 6 // parts].flatten(1), y[..., 6 // parts :]
    torch.testing.assert_close(ours, plain(x))
    assert not rest.any()
    ours.square().sum().backward()
    plain(x).square().sum().backward()
    torch.testing.assert_close(padded.weight.grad, plain.weight.grad)
    torch.testing.assert_close(padded.bias.grad, plain.bias.grad)


@pytest.mark.parametrize("width", [16, 64, 96])  # hidden widths of 42, 170 and 256: padded and not
def test_swiglu_is_the_formula(width: int) -> None:
    torch.manual_seed(0)
    mlp = SwiGLU(width)
    x = torch.randn(3, 5, width)
    gate, value = functional.linear(x, mlp.gate_value.weight, mlp.gate_value.bias).chunk(2, dim=-1)
    expected = functional.linear(functional.silu(gate) * value, mlp.out.weight, mlp.out.bias)
    torch.testing.assert_close(mlp(x), expected)
    assert mlp.gate_value.weight.shape == (2 * int(width * 8 / 3), width)


@pytest.mark.parametrize("conditional", [False, True])
def test_recomputed_activations_give_the_same_gradients_to_the_bit(conditional: bool) -> None:
    torch.manual_seed(0)
    block = Block(16, 2, conditional=conditional)
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.3)
    rotary = AxialRotary(2, 8)
    condition = torch.randn(3, 16) if conditional else None
    grads = []
    for recompute in (False, True):
        block.recompute = recompute
        block.zero_grad()
        x = torch.randn(3, 4, 16, generator=torch.Generator().manual_seed(1)).requires_grad_()
        block(x, rotary, condition).square().sum().backward()
        grads.append([x.grad, *(parameter.grad for parameter in block.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_gated_silu_has_the_gradients_of_its_formula(dtype: torch.dtype) -> None:
    x = gaussian(3, 4, 10).to(dtype).requires_grad_()
    grad = gaussian(3, 4, 5, seed=1).to(dtype)
    gate, value = x.chunk(2, dim=-1)
    expected = functional.silu(gate) * value
    (by_formula,) = torch.autograd.grad(expected, x, grad)
    ours = gated_silu(x)
    (by_hand,) = torch.autograd.grad(ours, x, grad)
    with torch.no_grad():
        torch.testing.assert_close(gated_silu(x), ours)
    torch.testing.assert_close(ours, expected)
    torch.testing.assert_close(by_hand, by_formula)
    if dtype == torch.float64:
        torch.autograd.gradcheck(gated_silu, x)


# choices of a block ---------------------------------------------------------------------------------------------------


def test_a_layer_norm_has_mean_0_and_variance_1() -> None:
    from spheregen.nn.norm import LayerNorm

    x = 3 * gaussian(4, 5, 32) + 2
    normed = LayerNorm(32)(x)
    torch.testing.assert_close(normed.mean(-1), torch.zeros(4, 5), atol=1e-5, rtol=0)
    torch.testing.assert_close(normed.var(-1, correction=0), torch.ones(4, 5), atol=1e-4, rtol=0)
    assert LayerNorm(32)(x.bfloat16()).dtype == torch.bfloat16
    assert not list(LayerNorm(32).parameters())


def test_qk_norm_makes_attention_blind_to_the_size_of_queries_and_keys() -> None:
    torch.manual_seed(0)
    attention = Attention(16, 2, qk_norm=True).eval()
    x = gaussian(2, 4, 16)
    before = attention(x, None)
    with torch.no_grad():
        attention.qkv.weight[:32] *= 7  # q and k
    torch.testing.assert_close(attention(x, None), before, atol=1e-4, rtol=1e-4)
