"""Parameters and floating-point operations of networks, by the convention of the published tables.

A multiply-add counts as two operations; linears and convolutions count, attention products do not. `counted_gflops` is
the same by PyTorch's counter, which sees attention too. Networks on the meta device are counted without allocation.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from spheregen.protocol import Tokenizer
from spheregen.sampling.flow import SOLVERS

STEPS = (1, 2, 4, 6)


@dataclass(frozen=True)
class PartCost:
    """One network: parameters (the fixed position tables counted) and forward GFLOPs for one image."""

    params: int
    gflops: float
    """By the convention of the published tables."""
    counted_gflops: float
    """Of all matrix products that run, those of attention among them."""


@dataclass(frozen=True)
class Cost:
    """The networks of a model, and how often each runs to generate one image.

    A tokenizer, which generates nothing by itself, has parts alone.
    """

    parts: Mapping[str, PartCost]
    calls: Callable[[int, bool, str], Mapping[str, int]] | None = None
    """Runs of each part: (steps, guided, guidance_at) -> by name; guidance is at `pixel`, `latent` or `both`."""
    refinement_calls: Callable[[int, str, bool], Mapping[str, int]] | None = None
    """Runs of each part to refine a generated image: (flow steps, solver, guided) -> by name; None: nothing refines."""
    unguided: float = 1.0
    """The guidance that is none."""

    def generation_gflops(
        self, steps: int, *, guided: bool = False, guidance_at: str = "both", counted: bool = False
    ) -> float:
        """Return the GFLOPs of one image in `steps` steps, without its refinement.

        Args:
            counted: by PyTorch's counter instead of the convention of the published tables.
        """
        assert self.calls is not None, "a tokenizer generates nothing"
        return self._total(self.calls(steps, guided, guidance_at), counted)

    def refinement_gflops(self, steps: int, solver: str, *, guided: bool = False, counted: bool = False) -> float:
        """Return the GFLOPs of refining one image; 0 where nothing refines."""
        if self.refinement_calls is None:
            return 0.0
        return self._total(self.refinement_calls(steps, solver, guided), counted)

    def sampling_gflops(self, settings: Mapping[str, Any], *, counted: bool = False) -> float:
        """Return the GFLOPs of a sample under the settings of a sampler, those of its refinement among them."""
        steps, guided, at = settings["steps"], settings["guidance"] != self.unguided, settings["guidance_at"]
        total = self.generation_gflops(steps, guided=guided, guidance_at=at, counted=counted)
        if self.refinement_calls is not None:
            steps, solver, guidance = (settings[name] for name in ("refinement_steps", "solver", "refinement_guidance"))
            total += self.refinement_gflops(steps, solver, guided=guidance != 1, counted=counted)
        return total

    def as_dict(self) -> dict[str, Any]:
        """Return plain numbers, as `spheregen info --json` prints them."""
        kinds = {"unguided": False, "guided": True}
        table: dict[str, Any] = {name: vars(part) for name, part in self.parts.items()}
        if self.calls is not None:
            table["generation_gflops"] = {
                name: {str(steps): self.generation_gflops(steps, guided=guided) for steps in STEPS}
                for name, guided in kinds.items()
            }
        if self.refinement_calls is not None:
            table["refinement_gflops"] = {
                f"{name}, {solver}": {str(k): self.refinement_gflops(k, solver, guided=guided) for k in STEPS}
                for name, guided in kinds.items()
                for solver in SOLVERS
            }
        return table

    def _total(self, calls: Mapping[str, int], counted: bool) -> float:
        parts = [(self.parts[name], count) for name, count in calls.items()]
        return sum(count * (part.counted_gflops if counted else part.gflops) for part, count in parts)


def part_cost(network: nn.Module, *inputs: Any) -> PartCost:
    """Return the cost of one forward pass of a network, for inputs of one image."""
    with FlopCounterMode(display=False) as counter:
        flops = count_flops(network, *inputs)
    return PartCost(count_parameters(network), flops / 1e9, counter.get_total_flops() / 1e9)


def tokenizer_cost(tokenizer: Tokenizer) -> Cost:
    """Return the cost of encoding and decoding one image; each part is whatever modules its way goes through."""
    assert isinstance(tokenizer, nn.Module)
    found = next(itertools.chain(tokenizer.parameters(), tokenizer.buffers()), None)
    device = torch.device("cpu") if found is None else found.device
    images = torch.zeros(1, *tokenizer.image_shape, device=device)
    latents = torch.zeros(1, *tokenizer.latent_shape, device=device)
    encoder, decoder = _Way(tokenizer, tokenizer.encode, images), _Way(tokenizer, tokenizer.decode, latents)
    return Cost({"encoder": part_cost(encoder, images), "decoder": part_cost(decoder, latents)})


class _Way(nn.Module):
    """One of the two ways through a tokenizer, as a module that holds what is used on it."""

    def __init__(self, tokenizer: nn.Module, call: Callable[[Tensor], Tensor], inputs: Tensor) -> None:
        super().__init__()
        self._call = call
        used: list[nn.Module] = []
        handles = [
            module.register_forward_hook(lambda module, *_: used.append(module))
            for module in tokenizer.modules()
            if next(module.parameters(recurse=False), None) is not None
        ]
        try:
            with torch.no_grad():
                call(inputs)
        finally:
            for handle in handles:
                handle.remove()
        inner = {inner for module in used for inner in module.modules() if inner is not module}
        self.used = nn.ModuleList(module for module in dict.fromkeys(used) if module not in inner)

    def forward(self, inputs: Tensor) -> Tensor:
        return self._call(inputs)


def count_parameters(network: nn.Module) -> int:
    """Count parameters and fixed tables that a checkpoint stores (not the rotary tables, which it does not)."""
    return sum(tensor.numel() for tensor in network.state_dict().values())


@torch.no_grad()
def count_flops(network: nn.Module, *inputs: Any) -> float:
    """Count the operations of one forward pass in linears and convolutions, for the batch in `inputs`."""
    total = 0

    def count(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        if isinstance(layer, nn.Linear):
            total += 2 * output[..., 0].numel() * layer.out_features * layer.in_features  # without padding
        elif isinstance(layer, nn.Conv2d):
            total += 2 * output.numel() * layer.weight[0].numel()
        elif isinstance(layer, nn.ConvTranspose2d):  # every input number meets its whole kernel
            total += 2 * inputs[0].numel() * layer.weight[0].numel()

    counted = (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)
    handles = [m.register_forward_hook(count) for m in network.modules() if isinstance(m, counted)]
    try:
        network(*inputs)
    finally:
        for handle in handles:
            handle.remove()
    return float(total)
