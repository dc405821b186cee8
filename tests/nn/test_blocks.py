"""What models are made of: types, padding, recomputation, tags. Golden tensors hold the conventions."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from spheregen.family.sphere_encoder.network import AutoencoderConfig, SphereAutoencoder
from spheregen.nn.block import Block, attend, gated_silu
from spheregen.nn.linear import DECAY, ENCODER, NO_DECAY, PaddedLinear, tags_of
from spheregen.nn.mixer import Mixer
from spheregen.nn.norm import RMSNorm, normalised, unit_vectors
from spheregen.nn.patches import LinearPixelHead
from spheregen.nn.positions import AxialRotary
from spheregen.nn.sizes import TransformerSize


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def randomise(module: nn.Module, scale: float = 0.2) -> None:
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        parameter.add_(scale * torch.randn(parameter.shape, generator=generator))


# positions ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("front", [1, 3])
def test_rotary_leaves_tokens_in_front_alone(front: int) -> None:
    rotary = AxialRotary(2, 8)
    x = gaussian(2, front + 4, 3, 8)
    turned = rotary(x)
    assert torch.equal(turned[:, :front], x[:, :front])
    assert torch.equal(turned[:, front:], rotary(x[:, front:]))


# layers ---------------------------------------------------------------------------------------------------------------


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


# pixels ---------------------------------------------------------------------------------------------------------------


# conditions -----------------------------------------------------------------------------------------------------------


# initialisation and tags ----------------------------------------------------------------------------------------------


SMALL = TransformerSize(width=16, depth=2, heads=2, in_context_start=1)


@pytest.mark.parametrize(
    ("head", "mixer", "classes", "context", "affine"), [("linear", 1, 0, 2, True), ("conv", 1, 3, 2, False)]
)
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


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rms_norm_takes_its_statistics_in_float32(dtype: torch.dtype) -> None:
    norm = RMSNorm(64).to(dtype)
    x = (300 * gaussian(2, 3, 64)).to(dtype)  # squares overflow float16
    assert norm(x).dtype == dtype
    torch.testing.assert_close(norm(x), RMSNorm(64)(x.float()).to(dtype), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("factor", "shift"),
    [(None, None), ((16,), None), ((3, 1, 16), (3, 1, 16)), ((3, 4, 16), (3, 4, 16)), ((2, 1, 16), None)],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_norm_with_its_modulation_has_the_gradients_of_its_formula(
    factor: tuple[int, ...] | None, shift: tuple[int, ...] | None, dtype: torch.dtype
) -> None:
    shapes = ((3, 5, 2, 4, 16) if factor == (2, 1, 16) else (3, 4, 16), factor, shift)
    of = [None if s is None else gaussian(*s, seed=i).to(dtype).requires_grad_() for i, s in enumerate(shapes)]
    x, scale, moved = of
    assert x is not None
    plain = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-3)
    expected = plain * (1 if scale is None else scale) + (0 if moved is None else moved)
    ours = normalised(x, scale, moved, 1e-3)
    leaves = [each for each in of if each is not None]
    torch.testing.assert_close(ours, expected)
    grads = (torch.autograd.grad(found, leaves, gaussian(*x.shape, seed=9).to(dtype)) for found in (ours, expected))
    for by_hand, by_formula in zip(*grads, strict=True):
        torch.testing.assert_close(by_hand, by_formula, atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(normalised(x, scale, moved, 1e-3), expected)


@pytest.mark.parametrize("tokens", [5, 300])
@pytest.mark.parametrize("autocast", [False, True])
def test_attention_in_bf16_has_the_gradients_of_its_formula(tokens: int, autocast: bool) -> None:
    exact = [gaussian(2, 3, tokens, 8, seed=seed).double().requires_grad_() for seed in range(3)]
    q, k, v = exact
    out = torch.softmax(q @ k.mT / 8**0.5, -1) @ v
    out.backward(direction := gaussian(*out.shape, seed=3).double())
    given = [each.detach().bfloat16().requires_grad_() for each in exact]
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        made = attend(*given)
    made.backward(direction.bfloat16())
    assert made.dtype == torch.bfloat16
    for mine, right in zip([made, *(each.grad for each in given)], [out, *(each.grad for each in exact)], strict=True):
        assert mine is not None and right is not None
        assert (mine.double() - right).norm() < 0.02 * right.norm()


@pytest.mark.parametrize("units", [False, True])
@pytest.mark.parametrize("tokens", [5, 64, 300])
def test_attention_in_bf16_is_its_formula_with_and_without_matrix_units(
    tokens: int, units: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("spheregen.nn.block.has_instructions", lambda name: units)
    q, k, v = (gaussian(2, 3, tokens + (seed > 0), 8, seed=seed).double() for seed in range(3))
    expected = torch.softmax(q @ k.mT / 8**0.5, -1) @ v
    with torch.no_grad():
        made = attend(*(each.bfloat16() for each in (q, k, v)))
    assert made.dtype == torch.bfloat16 and made.shape == q.shape
    assert (made.double() - expected).norm() < 0.01 * expected.norm()


@pytest.mark.parametrize("samples", [3, 8, 12])
@pytest.mark.parametrize("tokens", [1, 4, 5, 17])
def test_samples_of_few_tokens_attend_to_their_own(samples: int, tokens: int) -> None:
    of = [gaussian(samples, 2, tokens, 8, seed=seed).requires_grad_() for seed in range(3)]
    q, k, v = of
    expected = torch.softmax(q @ k.mT / 8**0.5, -1) @ v
    ours = attend(q, k, v)
    torch.testing.assert_close(ours, expected)
    grads = (torch.autograd.grad(found, of, gaussian(*q.shape, seed=9)) for found in (ours, expected))
    for by_hand, by_formula in zip(*grads, strict=True):
        torch.testing.assert_close(by_hand, by_formula)


@pytest.mark.parametrize("channels", [1, 2])
def test_many_small_images_are_convolved_as_few_are(channels: int) -> None:
    head = LinearPixelHead(8, 2, channels, 2)
    randomise(head)
    tokens = gaussian(4 * 16 * channels, 4, 8).requires_grad_()
    of = [tokens, *head.parameters()]
    many, few = head(tokens), torch.cat([head(part) for part in tokens.split(8)])
    torch.testing.assert_close(many, few)
    grads = (torch.autograd.grad(found, of, gaussian(*few.shape, seed=9)) for found in (many, few))
    for mine, right in zip(*grads, strict=True):
        torch.testing.assert_close(mine, right, atol=1e-5, rtol=1e-5)


def test_a_mixer_that_learns_computes_what_one_that_samples_does() -> None:
    mixer = Mixer(4, 8, 2, affine=True)
    randomise(mixer)
    x = gaussian(3, 4, 8).requires_grad_()
    of = [x, *mixer.parameters()]
    ours = mixer(x)
    with torch.no_grad():
        torch.testing.assert_close(mixer(x), ours)
    (exact := copy.deepcopy(mixer).double()).zero_grad()  # which goes the plain way
    wide = x.detach().double().requires_grad_()
    exact(wide).backward(gaussian(3, 4, 8, seed=9).double())
    expected = [wide.grad, *(parameter.grad for parameter in exact.parameters())]
    for mine, right in zip(torch.autograd.grad(ours, of, gaussian(3, 4, 8, seed=9)), expected, strict=True):
        assert right is not None
        torch.testing.assert_close(mine.double(), right, atol=1e-5, rtol=1e-5)


def test_unit_vectors_have_the_gradients_of_their_formula() -> None:
    x = gaussian(3, 5, 6).requires_grad_()
    expected = x * torch.rsqrt(x.square().sum(-1, keepdim=True) + 0.1)
    torch.testing.assert_close(unit_vectors(x, 0.1), expected)
    by_hand, by_formula = (
        torch.autograd.grad(y, x, gaussian(3, 5, 6, seed=1)) for y in (unit_vectors(x, 0.1), expected)
    )
    torch.testing.assert_close(by_hand, by_formula)
