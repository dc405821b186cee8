"""Transformers: pre-norm blocks of attention and an MLP, modulated by a condition or not, and the trunk of them.

Shapes: B samples, T tokens, N = grid^2 tokens of a grid, W width, H heads, D = W / H channels of a head.

Source: Yue et al. 2026 (arXiv 2602.15030), the block (method.md, section 1.1); Peebles and Xie 2023 (arXiv 2212.09748),
adaLN-Zero.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from spheregen.conditioning import Condition, Labels, Modulated, NetworkCondition, embeddings_for, make_condition
from spheregen.devices import has_instructions
from spheregen.errors import ConfigError, Settings, check_choices
from spheregen.nn.activations import gated_silu
from spheregen.nn.alone import gelu, silu
from spheregen.nn.linear import HIDDEN, NO_DECAY, PaddedLinear, linear, prepared, tag
from spheregen.nn.norm import LayerNorm, RMSNorm, multiply_add, normalised
from spheregen.nn.positions import AxialRotary, sincos_table
from spheregen.nn.sizes import TransformerSize
from spheregen.sphere import EPS, full_precision, spherify, upcast

NORM_EPS = 1e-6
"""Of the norms of the Sphere Encoder; Sphere Encoder 2 has 1e-5."""


FEW_TOKENS = 256
TOGETHER = 16
"""Samples of fewer tokens attend side by side in training: a CPU takes as long for 4 tokens as for 16."""


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return `softmax(q k^T / sqrt(D)) v` (B, H, T, D).

    Of few tokens in bf16 on a CPU these products are faster than torch's own: three to six times with its gradient, and
    about twice without on processors that have no matrix units.
    """
    learns = torch.is_grad_enabled()
    few = v.device.type == "cpu" and k.shape[-2] <= FEW_TOKENS and q.dtype == k.dtype == v.dtype == torch.bfloat16
    if few and (learns or not (torch.compiler.is_compiling() or has_instructions("amx_tile"))):
        with full_precision("cpu"):  # which keeps the types as they are
            return _by_products(q, k, v)
    if v.device.type != "cpu" or not learns:
        return functional.scaled_dot_product_attention(q, k, v)
    tokens = q.shape[-2]
    count = math.gcd(len(q), max(1, TOGETHER // tokens))
    if count == 1 or q.shape != k.shape or torch.compiler.is_compiling():
        return functional.scaled_dot_product_attention(q, k, v)
    q, k, v = (each.transpose(1, 2).unflatten(0, (-1, count)).flatten(1, 2).transpose(1, 2) for each in (q, k, v))
    mask = _apart(count, tokens).to(q.dtype)
    mixed: Tensor = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return mixed.transpose(1, 2).reshape(-1, tokens, *mixed.shape[1::2]).transpose(1, 2)


def _by_products(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    rows, keys, values = (each.flatten(0, 1) for each in (q, k, v))
    scores = torch.baddbmm(q.new_zeros(1, 1, 1), rows, keys.transpose(-1, -2), beta=0, alpha=q.shape[-1] ** -0.5)
    mixed: Tensor = torch.bmm(scores.softmax(-1), values).unflatten(0, q.shape[:2])
    return mixed


@cache
def _apart(samples: int, tokens: int) -> Tensor:
    """Return the mask that keeps the tokens of samples side by side to their own sample."""
    own: Tensor = torch.block_diag(*torch.ones(samples, tokens, tokens, device="cpu"))
    return own.log()


class Attention(nn.Module):
    """Self-attention: one linear for queries, keys and values, rotary positions on q and k, an output linear.

    Shapes: (B, T, W) to (B, T, W); W = heads * D.

    Args:
        qk_norm: an RMSNorm with a gain over the channels of each head of q and of k, before they are rotated.
        eps: of that norm.
    """

    def __init__(self, width: int, heads: int, *, qk_norm: bool = False, eps: float = NORM_EPS) -> None:
        super().__init__()
        self.heads, self.eps = heads, eps
        self.qkv = linear(width, 3 * width)
        self.out = linear(width, width)
        self.q_norm = RMSNorm(width // heads, eps=eps) if qk_norm else None
        self.k_norm = RMSNorm(width // heads, eps=eps) if qk_norm else None

    def forward(self, x: Tensor, rotary: AxialRotary | None) -> Tensor:
        """`rotary=None`: no rotary positions."""
        qkv = self.qkv(x).unflatten(-1, (3, self.heads, -1))  # (B, T, 3, H, D)
        qk, v = qkv.split((2, 1), dim=2)
        if self.q_norm is not None and self.k_norm is not None:
            # both at once, in one pass over memory
            wide = upcast(qk)
            weights: list[Tensor] = [norm.weight for norm in (self.q_norm, self.k_norm) if norm.weight is not None]
            gains = torch.stack(weights).to(wide.dtype).unsqueeze(1)  # (2, 1, D)
            qk = normalised(wide, gains, None, self.eps).to(qk.dtype)
        if rotary is not None:
            qk = rotary(qk)
        q, k = qk.unbind(2)
        q, k, v = (each.transpose(1, 2) for each in (q, k, v.squeeze(2)))
        mixed = attend(q, k, v)
        return self.out(mixed.transpose(1, 2).flatten(-2))  # type: ignore[no-any-return]


class CrossAttention(nn.Module):
    """Attention of tokens (B, N, W) to others (B or 1, T, W), which are normed first; nothing at the start.

    Tokens of zeros stand where a text has none: they take a share of the attention and give nothing.
    """

    def __init__(self, width: int, heads: int, eps: float = NORM_EPS) -> None:
        super().__init__()
        self.heads = heads
        self.norm = RMSNorm(width, eps=eps)
        self.q, self.kv = linear(width, width), linear(width, 2 * width)
        self.out = linear(width, width, init="zero")

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        q = self.q(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, H, N, D)
        kv = self.kv(self.norm(tokens)).expand(len(x), -1, -1).unflatten(-1, (2, self.heads, -1))
        k, v = kv.transpose(1, 3).unbind(2)  # (B, H, T, D)
        mixed = attend(q, k, v)
        return self.out(mixed.transpose(1, 2).flatten(-2))  # type: ignore[no-any-return]


ALIGNMENT = 8
"""The hidden width is computed as a multiple of this, with zeros; see `PaddedLinear`."""


class SwiGLU(nn.Module):
    """`out(silu(gate) * value)` with hidden width int(W * 4 * 2/3); gate and value in one linear, gate first."""

    def __init__(self, width: int) -> None:
        super().__init__()
        hidden = int(width * 4 * 2 / 3)
        extra = -hidden % ALIGNMENT
        self.gate_value = prepared(PaddedLinear(width, 2 * hidden, parts=2, pad_outputs=extra))
        self.out = prepared(PaddedLinear(hidden, width, pad_inputs=extra))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(gated_silu(self.gate_value(x)))  # type: ignore[no-any-return]


class GELUMLP(nn.Module):
    """`out(gelu(hidden(x)))` with hidden width 4 W and the tanh form of GELU, as in SiT and DiT."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.hidden = linear(width, 4 * width)
        self.out = linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(gelu(self.hidden(x), approximate="tanh"))  # type: ignore[no-any-return]


class Modulation(nn.Module):
    """SiLU and a linear W -> count*W, zero at the start: `count` vectors (B, 1, W) from a condition (B, W)."""

    def __init__(self, width: int, count: int) -> None:
        super().__init__()
        self.count = count
        self.linear = linear(width, count * width, init="zero")

    def forward(self, condition: Tensor) -> tuple[Tensor, ...]:
        return self.linear(silu(condition)).unsqueeze(1).chunk(self.count, dim=-1)  # type: ignore[no-any-return]


def gated(x: Tensor, gate: Tensor, change: Tensor) -> Tensor:
    """`x + gate * change`."""
    return multiply_add(x, gate, change)


@dataclass(frozen=True, kw_only=True)
class BlockOptions(Settings):
    """The choices that such backbones differ in; the defaults are those of the Sphere Encoder.

    Raises:
        ConfigError: a value that is none of the choices.
    """

    norm: Literal["rms", "layer"] = "rms"
    """RMSNorm with a gain, or a layer norm without gain and shift, as in SiT and DiT."""
    mlp: Literal["swiglu", "gelu"] = "swiglu"
    """SwiGLU of hidden width int(W * 8/3), or two linears of hidden width 4 W with GELU: as many parameters."""
    qk_norm: bool = False
    """An RMSNorm on the queries and keys of each head."""
    rotary: bool = True
    """Rotary positions in the attention, beside the sin-cos table that is added to the tokens."""
    eps: float = NORM_EPS
    """Of all norms, those of queries and keys among them."""

    def __post_init__(self) -> None:
        check_choices(self)
        if not 0 < self.eps < 1:
            raise ConfigError(f"eps of a norm is a small positive number, not {self.eps:g}")

    def new_norm(self, width: int) -> RMSNorm | LayerNorm:
        """Return a norm of tokens of this width."""
        return RMSNorm(width, eps=self.eps) if self.norm == "rms" else LayerNorm(width, eps=self.eps)


class Block(nn.Module):
    """Attention, then an MLP, each behind a norm and on a residual path; (B, T, W) to (B, T, W).

    A conditional block modulates both by adaLN-Zero (shift, scale, gate of the attention, then of the MLP); an
    unconditional one has no modulation and gates of 1. The condition is an embedding (B, W), or what `vectors` made of
    it, where the same one is needed again and again; a block without a modulation of its own takes such vectors too.
    A block that follows `texts` attends to their tokens between the two.
    """

    gathered_methods: tuple[str, ...] = ("vectors",)

    def __init__(
        self, width: int, heads: int, *, conditional: bool, options: BlockOptions | None = None, texts: bool = False
    ) -> None:
        super().__init__()
        options = options or BlockOptions()
        self.attention_norm = options.new_norm(width)
        self.attention = Attention(width, heads, qk_norm=options.qk_norm, eps=options.eps)
        self.text_norm = options.new_norm(width) if texts else None
        self.text_attention = CrossAttention(width, heads, options.eps) if texts else None
        self.mlp_norm = options.new_norm(width)
        self.mlp = SwiGLU(width) if options.mlp == "swiglu" else GELUMLP(width)
        self.modulation = Modulation(width, 6) if conditional else None
        parts = (self.attention, self.text_attention, self.mlp)
        hidden = [parameter for part in parts if part is not None for parameter in part.parameters()]
        tag([parameter for parameter in hidden if parameter.ndim == 2], HIDDEN)
        self.recompute = False
        """Keep no activations for the backward pass but compute them again: less memory, a third more time."""

    def vectors(self, embedding: Tensor) -> tuple[Tensor, ...]:
        """Return the six vectors (B, 1, W) that embeddings (B, W) modulate the block by."""
        assert self.modulation is not None
        return self.modulation(embedding)  # type: ignore[no-any-return]

    def forward(
        self,
        x: Tensor,
        rotary: AxialRotary | None,
        condition: Modulated | None,
        kept: Tensor | None = None,
        text: Tensor | None = None,
    ) -> Tensor:
        """Transform tokens (B, T, W).

        Args:
            kept: (B, 2) factors of the attention and of the MLP for each sample: stochastic depth. None: 1.
            text: (B or 1, T', W) the tokens of texts.
        """
        if self.recompute and torch.is_grad_enabled():
            # blocks draw no random numbers, so there is no state to put back
            given = (x, rotary, condition, kept, text)
            return checkpoint(self._compute, *given, use_reentrant=False, preserve_rng_state=False)  # type: ignore[no-any-return]
        return self._compute(x, rotary, condition, kept, text)

    def _read(self, x: Tensor, text: Tensor | None) -> Tensor:
        if text is None or self.text_attention is None or self.text_norm is None:
            return x
        return x + self.text_attention(self.text_norm(x), text)  # type: ignore[no-any-return]

    def _compute(
        self,
        x: Tensor,
        rotary: AxialRotary | None,
        condition: Modulated | None,
        kept: Tensor | None,
        text: Tensor | None,
    ) -> Tensor:
        first, second = (None, None) if kept is None else kept.to(x.dtype)[:, :, None, None].unbind(1)
        if condition is None:
            change = self.attention(self.attention_norm(x), rotary)
            x = self._read(x + change if first is None else gated(x, first, change), text)
            change = self.mlp(self.mlp_norm(x))
            return x + change if second is None else gated(x, second, change)
        if isinstance(condition, tuple):
            vectors = condition
        else:
            assert self.modulation is not None
            vectors = self.modulation(condition)
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = vectors
        if first is not None and second is not None:
            gate_a, gate_m = gate_a * first, gate_m * second
        x = gated(x, gate_a, self.attention(self.attention_norm(x, shift_a, scale_a), rotary))
        x = self._read(x, text)
        return gated(x, gate_m, self.mlp(self.mlp_norm(x, shift_m, scale_m)))


class ClassEmbedding(nn.Module):
    """A table of label_width + 1 embeddings; the last is the null class, which means "no condition".

    Of classes there is one for each; of texts it is the matrix that projects their vectors.
    """

    def __init__(self, label_width: int, width: int) -> None:
        super().__init__()
        self.table = nn.Embedding(label_width + 1, width)
        nn.init.normal_(self.table.weight, std=0.02)
        tag(self.table.parameters(), NO_DECAY)

    def forward(self, labels: Tensor | None) -> Tensor:
        """Return the rows (R, W) that a condition on these labels needs, see `conditioning.embeddings_for`."""
        return embeddings_for(labels, self.table.weight)


class TextEmbedding(nn.Module):
    """Projections of a text's vector and of its tokens, and the null, which has no tokens.

    Args:
        numbers: of a text, (1 + T) times those of its vector, which is followed by its tokens.
        tokens: T, of a text.
        width: W, of an embedding.
    """

    def __init__(self, numbers: int, tokens: int, width: int) -> None:
        super().__init__()
        self.tokens, self.numbers = tokens, numbers // (1 + tokens)
        self.table = nn.Embedding(self.numbers + 1, width)
        self.token_table = nn.Embedding(self.numbers, width)
        for table in (self.table, self.token_table):
            nn.init.normal_(table.weight, std=0.02)
        tag(self.parameters(), NO_DECAY)

    def forward(self, labels: Tensor | None) -> Tensor:
        """Return the rows (R, 1 + T, W) of texts (B, (1 + T) D + 1), the null last."""
        table, d = self.table.weight, self.numbers
        null = functional.pad(table[-1:, None], (0, 0, 0, self.tokens))
        if labels is None:
            return null
        told = labels.to(table.dtype)
        vectors = torch.cat([told[:, :d], told[:, -1:]], dim=1) @ table
        tokens = told[:, d:-1].unflatten(1, (self.tokens, d)) @ self.token_table.weight
        return torch.cat([torch.cat([vectors[:, None], tokens], dim=1), null])


class Trunk(nn.Module):
    """Positions, transformer blocks, the class embedding and in-context tokens: a transformer but for its ends.

    Tokens (B, N, W) under a condition, or None for an unconditional trunk, to tokens (B, N, W).

    Args:
        size: width, blocks and heads, and where in-context tokens join.
        grid: tokens along one side.
        label_width: classes, or numbers of a text's vector; 0 for an unconditional trunk.
        name: the network's in a `Condition`.
        context_tokens: extra tokens that carry the condition.
        text_tokens: tokens of a text that blocks attend to, see `ConditionConfig`.
        spherify_blocks: spherify the grid's tokens after every block but the last.
        sphere_eps: of that sphere.
        options: what the blocks are made of.
        conditional: whether blocks take a condition; by default where there are labels.
        front_grids: tokens along one side of further grids that come in front of the trunk's own, which they cover.
    """

    gathered_methods: tuple[str, ...] = ("embed_labels",)
    positions: Tensor

    def __init__(
        self,
        size: TransformerSize,
        grid: int,
        label_width: int,
        *,
        name: str = "",
        text_tokens: int = 0,
        context_tokens: int = 0,
        spherify_blocks: bool = False,
        sphere_eps: float = EPS,
        options: BlockOptions | None = None,
        conditional: bool | None = None,
        front_grids: tuple[int, ...] = (),
    ) -> None:
        super().__init__()
        options = options or BlockOptions()
        self.name, self.label_width, width = name, label_width, size.width
        self.labels: nn.Module | None = None
        if label_width:
            self.labels = (
                TextEmbedding(label_width, text_tokens, width) if text_tokens else ClassEmbedding(label_width, width)
            )
        conditional = label_width > 0 if conditional is None else conditional
        self.register_buffer("positions", sincos_table(grid, width))
        self.rotary = AxialRotary(grid, width // size.heads, front_grids) if options.rotary else None
        self.blocks = nn.ModuleList(
            Block(width, size.heads, conditional=conditional, options=options, texts=text_tokens > 0)
            for _ in range(size.depth)
        )
        self.spherify_blocks, self.sphere_eps = spherify_blocks, sphere_eps
        self.context_tokens, self.context_start = context_tokens, size.in_context_start
        self.context = self.context_positions = None
        if context_tokens:
            if not conditional:
                self.context = _context_parameter(context_tokens, width)
            self.context_positions = _context_parameter(context_tokens, width)

    def embed_labels(self, labels: Tensor | None) -> Tensor | None:
        """Return the embeddings (R, W) that labels need; None for an unconditional trunk."""
        return None if self.labels is None else self.labels(labels)

    def told(self, labels: Labels, batch: int) -> NetworkCondition | None:
        """Return what labels, or the condition of a whole model, mean for this network; None if it is unconditional.

        Raises:
            ConfigError: labels for an unconditional network, or for another number of samples.
        """
        condition: Condition = make_condition(labels, self.label_width, {self.name: self.embed_labels})
        told = condition.of(self.name) if self.label_width else None
        if told is not None and len(told.embedding) not in (1, batch):
            raise ConfigError(f"{len(told.embedding)} labels for a batch of {batch}; give one for each")
        return told

    def forward(
        self,
        tokens: Tensor,
        told: NetworkCondition | Tensor | None = None,
        front: Tensor | None = None,
        kept: Tensor | None = None,
    ) -> Tensor:
        """Transform tokens (B, N, W).

        Args:
            tokens: of the grid.
            told: of `told`, or an embedding (B, W) of anything; None for an unconditional trunk.
            front: (B, F, W) tokens that come in front and are taken away again, of the `front_grids`.
            kept: (B, blocks, 2) factors of stochastic depth, see `Block`.
        """
        x = upcast(tokens) + self.positions
        if front is not None:
            x = torch.cat([upcast(front), x], dim=1)
        for index, block in enumerate(self.blocks):
            if self.context_tokens and index == self.context_start:
                x = torch.cat([self._context(told, x), x], dim=1)
            condition = told.of(block) if isinstance(told, NetworkCondition) else told
            text = told.tokens if isinstance(told, NetworkCondition) else None
            x = block(x, self.rotary, condition, None if kept is None else kept[:, index], text)
            if self.spherify_blocks and index < len(self.blocks) - 1:
                extra = x.shape[1] - tokens.shape[1]
                grid = spherify(x[:, extra:], self.sphere_eps)
                x = torch.cat([x[:, :extra], grid], dim=1) if extra else grid
        return x[:, -tokens.shape[1] :] if x.shape[1] > tokens.shape[1] else x

    def _context(self, told: NetworkCondition | Tensor | None, x: Tensor) -> Tensor:
        embedding = told.embedding if isinstance(told, NetworkCondition) else told
        content = self.context if embedding is None else embedding.unsqueeze(1)
        return (content + self.context_positions).to(x.dtype).expand(x.shape[0], -1, -1)  # type: ignore[operator]


class Output(nn.Module):
    """The conditional norm in front of an output linear: a norm as in the blocks, then adaLN shift and scale."""

    def __init__(self, width: int, options: BlockOptions | None = None) -> None:
        super().__init__()
        self.norm = (options or BlockOptions()).new_norm(width)
        self.modulation = Modulation(width, 2)

    def vectors(self, embedding: Tensor) -> tuple[Tensor, ...]:
        """Return shift and scale (B, 1, W) for embeddings (B, W)."""
        return self.modulation(embedding)  # type: ignore[no-any-return]

    def forward(self, x: Tensor, told: NetworkCondition | Tensor | None) -> Tensor:
        condition = told.of(self) if isinstance(told, NetworkCondition) else told
        assert condition is not None  # a conditional network has one, if it is but the null class
        shift, scale = condition if isinstance(condition, tuple) else self.modulation(condition)
        return self.norm(x, shift, scale)  # type: ignore[no-any-return]


def _context_parameter(tokens: int, width: int) -> nn.Parameter:
    parameter = nn.Parameter(torch.randn(1, tokens, width) * 0.02)
    tag([parameter], NO_DECAY)
    return parameter


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
