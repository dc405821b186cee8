"""The MLP-Mixer that spreads what a latent says over all its tokens."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from spheregen.nn.activations import computes_here
from spheregen.nn.alone import SiLU
from spheregen.nn.linear import NO_DECAY, Init, linear, tag
from spheregen.nn.norm import RMSNorm
from spheregen.sphere import upcast


class MixerBlock(nn.Module):
    """x + a1 * TokenMLP(norm(x)), then x + a2 * ChannelMLP(norm(x)); (B, N, C) to (B, N, C).

    TokenMLP: N -> N, SiLU, N -> N over the tokens. ChannelMLP: C -> 2C, SiLU, 2C -> C. a1 and a2 are learned scalars
    that start at 0, so a fresh block is the identity.
    """

    def __init__(self, tokens: int, channels: int, *, init: Init) -> None:
        super().__init__()
        self.token_norm = RMSNorm(channels)
        self.token_mlp = nn.Sequential(linear(tokens, tokens, init=init), SiLU(), linear(tokens, tokens, init=init))
        self.channel_norm = RMSNorm(channels)
        self.channel_mlp = nn.Sequential(
            linear(channels, 2 * channels, init=init), SiLU(), linear(2 * channels, channels, init=init)
        )
        self.token_gain = nn.Parameter(torch.zeros(1))
        self.channel_gain = nn.Parameter(torch.zeros(1))
        tag([self.token_gain, self.channel_gain], NO_DECAY)

    def forward(self, x: Tensor) -> Tensor:
        if computes_here(x) and torch.is_grad_enabled():
            return self._in_fewer_passes(x)
        # contiguous: one large product, and the same bits whether or not the weights take gradients
        by_channel = self.token_norm(x).transpose(1, 2).contiguous()
        x = x + self.token_gain * self.token_mlp(by_channel).transpose(1, 2)
        return x + self.channel_gain * self.channel_mlp(self.channel_norm(x))  # type: ignore[no-any-return]

    def _in_fewer_passes(self, x: Tensor) -> Tensor:
        """The same up to rounding: weights take the gains, and multiply the tokens of all samples from the left."""
        inner: Any
        outer: Any
        inner, act, outer = self.token_mlp
        by_token = self.token_norm(x).transpose(0, 1).flatten(1)  # (N, B C)
        hidden = act(torch.addmm(inner.bias[:, None], inner.weight, by_token))
        gain = self.token_gain
        mixed = torch.addmm((gain * outer.bias)[:, None], gain * outer.weight, hidden)
        x = x + mixed.unflatten(1, (len(x), -1)).transpose(0, 1)
        inner, act, outer = self.channel_mlp
        gain = self.channel_gain
        return x + functional.linear(act(inner(self.channel_norm(x))), gain * outer.weight, gain * outer.bias)


class Mixer(nn.Module):
    """`depth` >= 1 mixer blocks and a last RMSNorm, which bounds the latent's magnitude and keeps training stable.

    `affine=False` removes the gain of this last norm only.
    """

    def __init__(self, tokens: int, channels: int, depth: int, *, affine: bool, init: Init = "xavier") -> None:
        super().__init__()
        self.blocks = nn.ModuleList(MixerBlock(tokens, channels, init=init) for _ in range(depth))
        self.norm = RMSNorm(channels, affine=affine)

    def forward(self, x: Tensor) -> Tensor:
        x = upcast(x)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)  # type: ignore[no-any-return]
