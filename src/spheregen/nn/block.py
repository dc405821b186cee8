"""A pre-norm transformer block, conditional or not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from spheregen.errors import check_choices
from spheregen.nn.attention import Attention
from spheregen.nn.gelu import GELUMLP
from spheregen.nn.modulation import Modulation, gated, modulate
from spheregen.nn.norm import LayerNorm, RMSNorm
from spheregen.nn.positions import AxialRotary
from spheregen.nn.swiglu import SwiGLU
from spheregen.nn.tags import HIDDEN, tag


@dataclass(frozen=True, kw_only=True)
class BlockOptions:
    """The choices that such backbones differ in; the defaults are those of the Sphere Encoder.

    Raises:
        ConfigError: a value that is none of the choices.
    """

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012  read by pydantic when a recipe holds this class

    norm: Literal["rms", "layer"] = "rms"
    """RMSNorm with a gain, or a layer norm without gain and shift, as in SiT and DiT."""
    mlp: Literal["swiglu", "gelu"] = "swiglu"
    """SwiGLU of hidden width int(W * 8/3), or two linears of hidden width 4 W with GELU: as many parameters."""
    qk_norm: bool = False
    """An RMSNorm on the queries and keys of each head."""
    rotary: bool = True
    """Rotary positions in the attention, beside the sin-cos table that is added to the tokens."""

    def __post_init__(self) -> None:
        check_choices(self)


class Block(nn.Module):
    """Attention, then an MLP, each behind a norm and on a residual path; (B, T, W) to (B, T, W).

    A conditional block modulates both by adaLN-Zero (shift, scale, gate of the attention, then of the MLP); an
    unconditional one has no modulation and gates of 1. The condition is an embedding (B, W), or what `modulation` made
    of it, where the same one is needed again and again.
    """

    def __init__(self, width: int, heads: int, *, conditional: bool, options: BlockOptions | None = None) -> None:
        super().__init__()
        options = options or BlockOptions()
        norm = RMSNorm if options.norm == "rms" else LayerNorm
        self.attention_norm = norm(width)
        self.attention = Attention(width, heads, qk_norm=options.qk_norm)
        self.mlp_norm = norm(width)
        self.mlp = SwiGLU(width) if options.mlp == "swiglu" else GELUMLP(width)
        self.modulation = Modulation(width, 6) if conditional else None
        hidden = (*self.attention.parameters(), *self.mlp.parameters())
        tag([parameter for parameter in hidden if parameter.ndim == 2], HIDDEN)
        self.recompute = False
        """Keep no activations for the backward pass but compute them again: less memory, a third more time."""

    def forward(self, x: Tensor, rotary: AxialRotary | None, condition: Tensor | tuple[Tensor, ...] | None) -> Tensor:
        if self.recompute and torch.is_grad_enabled():
            # blocks draw no random numbers, so there is no state to put back
            return checkpoint(self._compute, x, rotary, condition, use_reentrant=False, preserve_rng_state=False)  # type: ignore[no-any-return]
        return self._compute(x, rotary, condition)

    def _compute(self, x: Tensor, rotary: AxialRotary | None, condition: Tensor | tuple[Tensor, ...] | None) -> Tensor:
        if self.modulation is None or condition is None:
            x = x + self.attention(self.attention_norm(x), rotary)
            return x + self.mlp(self.mlp_norm(x))  # type: ignore[no-any-return]
        vectors = condition if isinstance(condition, tuple) else self.modulation(condition)
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = vectors
        x = gated(x, gate_a, self.attention(modulate(self.attention_norm(x), shift_a, scale_a), rotary))
        return gated(x, gate_m, self.mlp(modulate(self.mlp_norm(x), shift_m, scale_m)))


def blocks_of(model: nn.Module) -> Iterator[Block]:
    """The transformer blocks of a model: what is compiled, recomputed and sharded as one."""
    return (module for module in model.modules() if isinstance(module, Block))


def compile_blocks(model: nn.Module) -> None:
    """Compile the transformer blocks of a model by torch.compile, in place.

    Blocks of one shape share what is compiled, so this takes a fraction of the time that the whole network would; it
    happens at the first call, anew for each batch size. Results are equal up to rounding.
    """
    for block in blocks_of(model):
        block.compile(dynamic=False)
