"""Parameters and floating-point operations of a generator, by the convention of the published tables.

A multiply-add counts as two operations; linears and convolutions count, attention products do not; T steps of
generation take T decodes and T-1 encodes, or T calls of a denoiser and one decode, more under guidance. `counted` is
the same by PyTorch's counter, which sees attention too. Nothing is allocated: networks are traced on the meta device.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from spheregen.models.autoencoder import AutoencoderConfig, SphereAutoencoder
from spheregen.models.flow_refiner import FlowRefiner, FlowRefinerConfig, RefinedGenerator, RoughContext
from spheregen.models.latent_denoiser import LatentDenoiser, LatentDenoiserConfig, LatentGenerator
from spheregen.models.protocol import SphereGenerator, Tokenizer
from spheregen.sampling.flow import SOLVERS, evaluations

STEPS = (1, 2, 4, 6)


@dataclass(frozen=True)
class PartCost:
    """One network: parameters (the fixed position tables counted) and forward GFLOPs for one image."""

    params: int
    gflops: float
    """By the convention of the published tables."""
    counted_gflops: float
    """Of all matrix products that run, those of attention among them."""

    def of(self, counted: bool) -> float:
        """GFLOPs by PyTorch's counter, or by the convention."""
        return self.counted_gflops if counted else self.gflops


class GeneratorCost(Protocol):
    """The networks of a generator, and what generating one image takes."""

    @property
    def parts(self) -> Mapping[str, PartCost]:
        """The networks by their names."""

    def generation_gflops(
        self, steps: int, *, guided: bool = False, guidance_at: str = "both", counted: bool = False
    ) -> float:
        """GFLOPs of one image in `steps` steps; guidance doubles the networks where it acts.

        Args:
            counted: by PyTorch's counter instead of the convention of the published tables.
        """


@dataclass(frozen=True)
class AutoencoderCost:
    """Of a Sphere Encoder: T decodes and T-1 encodes."""

    encoder: PartCost
    decoder: PartCost

    @property
    def parts(self) -> Mapping[str, PartCost]:
        return vars(self)

    def generation_gflops(
        self, steps: int, *, guided: bool = False, guidance_at: str = "both", counted: bool = False
    ) -> float:
        """Guidance doubles the decoder (`pixel`), the encoder (`latent`) or both."""
        decode, encode = (part.of(counted) for part in (self.decoder, self.encoder))
        decode *= 2 if guided and guidance_at != "latent" else 1
        encode *= 2 if guided and guidance_at != "pixel" else 1
        return steps * decode + (steps - 1) * encode


@dataclass(frozen=True)
class LatentGeneratorCost:
    """Of a latent denoiser: T calls, and one decode of its tokenizer."""

    denoiser: PartCost
    tokenizer_encoder: PartCost | None
    """None where the tokenizer is not known."""
    tokenizer_decoder: PartCost | None

    @property
    def parts(self) -> Mapping[str, PartCost]:
        return {name: part for name, part in vars(self).items() if part is not None}

    def generation_gflops(
        self, steps: int, *, guided: bool = False, guidance_at: str = "both", counted: bool = False
    ) -> float:
        """Guidance doubles the denoiser. Without a known tokenizer its decode is left out."""
        decode = self.tokenizer_decoder.of(counted) if self.tokenizer_decoder is not None else 0.0
        return steps * self.denoiser.of(counted) * (2 if guided else 1) + decode


@dataclass(frozen=True)
class TokenizerCost:
    """Of a tokenizer, which generates nothing by itself."""

    encoder: PartCost
    decoder: PartCost

    @property
    def parts(self) -> Mapping[str, PartCost]:
        """The networks by their names."""
        return vars(self)


@dataclass(frozen=True)
class RefinedCost:
    """Of a refined generator: that of the generator in front, and a call of the refiner for each evaluation."""

    front: GeneratorCost
    refiner: PartCost

    @property
    def parts(self) -> Mapping[str, PartCost]:
        return {**self.front.parts, "refiner": self.refiner}

    def generation_gflops(
        self, steps: int, *, guided: bool = False, guidance_at: str = "both", counted: bool = False
    ) -> float:
        """Of the rough image alone."""
        return self.front.generation_gflops(steps, guided=guided, guidance_at=guidance_at, counted=counted)

    def refinement_gflops(self, steps: int, solver: str, *, guided: bool = False, counted: bool = False) -> float:
        """GFLOPs of the flow alone; guidance doubles the refiner."""
        return evaluations(steps, solver) * self.refiner.of(counted) * (2 if guided else 1)


def cost_table(cost: GeneratorCost | TokenizerCost) -> dict[str, Any]:
    """A cost as plain numbers, as `spheregen info --json` prints it."""
    parts = {name: vars(part) for name, part in cost.parts.items()}
    if isinstance(cost, TokenizerCost):
        return parts
    kinds = (("unguided", False), ("guided", True))
    table: dict[str, Any] = {
        **parts,
        "generation_gflops": {
            name: {str(steps): cost.generation_gflops(steps, guided=guided) for steps in STEPS}
            for name, guided in kinds
        },
    }
    if isinstance(cost, RefinedCost):
        table["refinement_gflops"] = {
            f"{name}, {solver}": {str(steps): cost.refinement_gflops(steps, solver, guided=guided) for steps in STEPS}
            for name, guided in kinds
            for solver in SOLVERS
        }
    return table


def generator_cost(model: SphereGenerator) -> GeneratorCost:
    """The cost of a generator that is there, on the meta device or a real one; its tokenizer runs for one image."""
    if isinstance(model, SphereAutoencoder):
        return autoencoder_cost(model.config)
    if isinstance(model, LatentGenerator):
        return latent_generator_cost(model.config, model.tokenizer)
    if isinstance(model, RefinedGenerator):
        return RefinedCost(generator_cost(model.source), refiner_cost(model.config))
    raise TypeError(f"nothing is known of the cost of a {type(model).__name__}")


def autoencoder_cost(config: AutoencoderConfig) -> AutoencoderCost:
    """The cost of a Sphere Encoder, from its configuration alone."""
    with torch.device("meta"):
        model = SphereAutoencoder(config)
        images = torch.empty(1, config.image_channels, config.image_size, config.image_size)
        latents = torch.empty(1, *model.latent_shape)
    labels = torch.zeros(1, dtype=torch.int64, device="meta") if config.num_classes else None
    return AutoencoderCost(
        encoder=_part_cost(model.encoder, images, labels), decoder=_part_cost(model.decoder, latents, labels)
    )


def refiner_cost(config: FlowRefinerConfig) -> PartCost:
    """The cost of one call of a refiner, from its complete configuration alone."""
    tokens, width = config.context_tokens or 0, config.decoder_width or 0
    with torch.device("meta"):
        model = FlowRefiner(config)
        images = torch.empty(1, *model.image_shape)
        told = torch.empty(1, tokens, config.latent_channels or 0)
        context = RoughContext(told, torch.empty(1, tokens, width) if width else None)
        labels = torch.zeros(1, dtype=torch.int64) if config.num_classes else None
        return _part_cost(model, images, torch.zeros(1), labels, context)


def denoiser_cost(config: LatentDenoiserConfig) -> PartCost:
    """The cost of one call of a latent denoiser, from its configuration alone."""
    with torch.device("meta"):
        model = LatentDenoiser(config)
        latents = torch.empty(1, config.tokens, config.channels)
    labels = torch.zeros(1, dtype=torch.int64, device="meta") if config.num_classes else None
    return _part_cost(model, latents, labels)


def latent_generator_cost(config: LatentDenoiserConfig, tokenizer: Tokenizer | None) -> LatentGeneratorCost:
    """The cost of a latent denoiser with its tokenizer, on the meta device or a real one; None: unknown."""
    if tokenizer is None:
        return LatentGeneratorCost(denoiser_cost(config), None, None)
    cost = tokenizer_cost(tokenizer)
    return LatentGeneratorCost(denoiser_cost(config), cost.encoder, cost.decoder)


def tokenizer_cost(tokenizer: Tokenizer) -> TokenizerCost:
    """The cost of encoding and of decoding one image; each part is whatever modules its way goes through."""
    assert isinstance(tokenizer, nn.Module)
    found = next(itertools.chain(tokenizer.parameters(), tokenizer.buffers()), None)
    device = torch.device("cpu") if found is None else found.device
    images = torch.zeros(1, *tokenizer.image_shape, device=device)
    latents = torch.zeros(1, *tokenizer.latent_shape, device=device)
    return TokenizerCost(
        encoder=_part_cost(_Way(tokenizer, tokenizer.encode, images), images),
        decoder=_part_cost(_Way(tokenizer, tokenizer.decode, latents), latents),
    )


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


def _part_cost(network: nn.Module, *inputs: Any) -> PartCost:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(*inputs)
    flops = count_flops(network, *inputs)
    return PartCost(count_parameters(network), flops / 1e9, counter.get_total_flops() / 1e9)


def denoiser_flops(config: LatentDenoiserConfig) -> float:
    """Operations of one call of a latent denoiser for one latent, by the convention of the published tables."""
    return 1e9 * denoiser_cost(config).gflops


def count_parameters(network: nn.Module) -> int:
    """Parameters and fixed tables that a checkpoint stores (not the rotary tables, which it does not)."""
    return sum(tensor.numel() for tensor in network.state_dict().values())


@torch.no_grad()
def count_flops(network: nn.Module, *inputs: Any) -> float:
    """Operations of one forward pass in the linears and convolutions of `network`, for the batch in `inputs`."""
    total = 0

    def counter(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        if isinstance(layer, nn.Linear):
            total += 2 * output[..., 0].numel() * layer.out_features * layer.in_features  # without padding
        elif isinstance(layer, nn.Conv2d):
            total += 2 * output.numel() * layer.weight[0].numel()
        elif isinstance(layer, nn.ConvTranspose2d):  # every input number meets its whole kernel
            total += 2 * inputs[0].numel() * layer.weight[0].numel()

    counted = (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)
    handles = [m.register_forward_hook(counter) for m in network.modules() if isinstance(m, counted)]
    try:
        network(*inputs)
    finally:
        for handle in handles:
            handle.remove()
    return float(total)
