"""What the transformers of the family share: positions, blocks, the class embedding, the conditional output norm.

Legend: B samples, N = grid^2 tokens, W width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from spheregen.conditioning import ClassEmbedding
from spheregen.models.sizes import TransformerSize
from spheregen.nn.block import Block, BlockOptions
from spheregen.nn.modulation import Modulation, modulate
from spheregen.nn.norm import LayerNorm, RMSNorm
from spheregen.nn.positions import AxialRotary, sincos_table
from spheregen.nn.tags import NO_DECAY, tag
from spheregen.sphere import spherify, upcast


@dataclass(frozen=True)
class NetworkCondition:
    """What an encoder or a decoder makes of labels, before it sees any token; the batch axis may be 1 for all."""

    embedding: Tensor
    """(B, W) class embedding."""
    blocks: tuple[tuple[Tensor, ...], ...]
    """Of each block the six adaLN vectors (B, 1, W)."""
    output: tuple[Tensor, ...]
    """The output's shift and scale, (B, 1, W)."""

    def rows(self, index: Tensor) -> NetworkCondition:
        """The condition of these rows."""
        return NetworkCondition(
            self.embedding[index],
            tuple(tuple(vector[index] for vector in block) for block in self.blocks),
            tuple(vector[index] for vector in self.output),
        )


class Trunk(nn.Module):
    """What encoder and decoder share: positions, transformer blocks, the class embedding and in-context tokens.

    Tokens (B, N, W) and labels (B,), a prepared condition or None to tokens (B, N, W) and what the output is
    conditioned on: an embedding (B, W), its adaLN vectors, or None.

    Args:
        size: width, blocks and heads, and where in-context tokens join.
        grid: tokens along one side.
        num_classes: 0 for an unconditional trunk.
        context_tokens: extra tokens that carry the condition.
        spherify_blocks: spherify the tokens after every block but the last.
        options: what the blocks are made of.
        conditional: whether blocks take a condition; by default where there are classes.
        front_grids: tokens along one side of further grids that come in front of the trunk's own, which they cover.
    """

    positions: Tensor

    def __init__(
        self,
        size: TransformerSize,
        grid: int,
        num_classes: int,
        *,
        context_tokens: int = 0,
        spherify_blocks: bool = False,
        options: BlockOptions | None = None,
        conditional: bool | None = None,
        front_grids: tuple[int, ...] = (),
    ) -> None:
        super().__init__()
        options = options or BlockOptions()
        width = size.width
        self.labels = ClassEmbedding(num_classes, width) if num_classes else None
        conditional = num_classes > 0 if conditional is None else conditional
        self.register_buffer("positions", sincos_table(grid, width))
        self.rotary = AxialRotary(grid, width // size.heads, front_grids) if options.rotary else None
        self.blocks = nn.ModuleList(
            Block(width, size.heads, conditional=conditional, options=options) for _ in range(size.depth)
        )
        self.spherify_blocks = spherify_blocks
        self.context_tokens, self.context_start = context_tokens, size.in_context_start
        self.context = self.context_positions = None
        if context_tokens:
            if self.labels is None:
                self.context = _context_parameter(context_tokens, width)
            self.context_positions = _context_parameter(context_tokens, width)

    def forward(
        self, tokens: Tensor, labels: Tensor | NetworkCondition | None
    ) -> tuple[Tensor, Tensor | tuple[Tensor, ...] | None]:
        if isinstance(labels, NetworkCondition):
            return self.transform(tokens, labels.embedding, labels.blocks), labels.output
        embedding = self.embed(labels, tokens.shape[0])
        return self.transform(tokens, embedding), embedding

    def transform(
        self,
        tokens: Tensor,
        embedding: Tensor | None,
        blocks: tuple[tuple[Tensor, ...], ...] | None = None,
        front: Tensor | None = None,
    ) -> Tensor:
        """Tokens (B, N, W) through the blocks under an embedding (B, W), or None for an unconditional trunk.

        Args:
            blocks: what each block's modulation made of the embedding, where it is known.
            front: (B, F, W) tokens that come in front and are taken away again, of the `front_grids`.
        """
        x = upcast(tokens) + self.positions
        if front is not None:
            x = torch.cat([upcast(front), x], dim=1)
        for index, block in enumerate(self.blocks):
            if self.context_tokens and index == self.context_start:
                x = torch.cat([self._context(embedding, x), x], dim=1)
            x = block(x, self.rotary, embedding if blocks is None else blocks[index])
            if self.spherify_blocks and index < len(self.blocks) - 1:
                x = spherify(x)
        return x[:, -tokens.shape[1] :] if x.shape[1] > tokens.shape[1] else x

    def embed(self, labels: Tensor | None, batch: int) -> Tensor | None:
        """The class embedding (B, W) of labels; None for an unconditional model.

        Raises:
            ValueError: labels for an unconditional model, or for another number of samples.
        """
        if labels is not None:
            if self.labels is None:
                raise ValueError("this model is unconditional and takes no labels; leave them out")
            if labels.shape[0] != batch or labels.ndim != 1 + labels.is_floating_point():
                raise ValueError(f"{tuple(labels.shape)} labels for a batch of {batch}; give one for each")
        return None if self.labels is None else self.labels(labels, batch)

    def condition(self, labels: Tensor | None, output: Output | None) -> NetworkCondition:
        """Everything that this trunk and its output make of labels (B,), or of the null class for all."""
        embedding = self.embed(labels, 1 if labels is None else labels.shape[0])
        if embedding is None or output is None:
            raise ValueError("an unconditional model makes nothing of labels")
        blocks = tuple(block.modulation(embedding) for block in self.blocks)  # type: ignore[operator]
        return NetworkCondition(embedding, blocks, output.modulation(embedding))

    def _context(self, embedding: Tensor | None, x: Tensor) -> Tensor:
        content = self.context if embedding is None else embedding.unsqueeze(1)
        return (content + self.context_positions).to(x.dtype).expand(x.shape[0], -1, -1)  # type: ignore[operator]


class Output(nn.Module):
    """The conditional norm in front of an output linear: a norm as in the blocks, then adaLN shift and scale."""

    def __init__(self, width: int, options: BlockOptions | None = None) -> None:
        super().__init__()
        self.norm = LayerNorm(width) if options is not None and options.norm == "layer" else RMSNorm(width)
        self.modulation = Modulation(width, 2)

    def forward(self, x: Tensor, condition: Tensor | tuple[Tensor, ...]) -> Tensor:
        shift, scale = condition if isinstance(condition, tuple) else self.modulation(condition)
        return modulate(self.norm(x), shift, scale)


def _context_parameter(tokens: int, width: int) -> nn.Parameter:
    parameter = nn.Parameter(torch.randn(1, tokens, width) * 0.02)
    tag([parameter], NO_DECAY)
    return parameter
