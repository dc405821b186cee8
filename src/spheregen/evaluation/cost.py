"""Parameters and floating-point operations of a generator, by the convention of the published tables.

A multiply-add counts as two operations; linears and convolutions count, attention products do not; T steps of
generation take T decodes and T-1 encodes, twice that under guidance. `counted` is the same by PyTorch's counter, which
sees attention too. Nothing is allocated: networks are traced on the meta device.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from spheregen.models.autoencoder import AutoencoderConfig, SphereAutoencoder

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
class GeneratorCost:
    """Encoder, decoder and what generating one image takes."""

    encoder: PartCost
    decoder: PartCost

    def generation_gflops(
        self, steps: int, *, guided: bool = False, guidance_at: str = "both", counted: bool = False
    ) -> float:
        """GFLOPs of one image in `steps` steps; guidance doubles the decoder (`pixel`), the encoder (`latent`) or both.

        Args:
            counted: by PyTorch's counter instead of the convention of the published tables.
        """
        decode, encode = (part.counted_gflops if counted else part.gflops for part in (self.decoder, self.encoder))
        decode *= 2 if guided and guidance_at != "latent" else 1
        encode *= 2 if guided and guidance_at != "pixel" else 1
        return steps * decode + (steps - 1) * encode

    def as_dict(self) -> dict[str, Any]:
        """The cost as plain numbers, as `spheregen info --json` prints it."""
        return {
            "encoder": vars(self.encoder),
            "decoder": vars(self.decoder),
            "generation_gflops": {
                name: {str(steps): self.generation_gflops(steps, guided=guided) for steps in STEPS}
                for name, guided in (("unguided", False), ("guided", True))
            },
        }


def autoencoder_cost(config: AutoencoderConfig) -> GeneratorCost:
    """The cost of a Sphere Encoder, from its configuration alone."""
    with torch.device("meta"):
        model = SphereAutoencoder(config)
        images = torch.empty(1, config.image_channels, config.image_size, config.image_size)
        latents = torch.empty(1, *model.latent_shape)
    labels = torch.zeros(1, dtype=torch.int64, device="meta") if config.num_classes else None
    return GeneratorCost(
        encoder=_part_cost(model.encoder, images, labels), decoder=_part_cost(model.decoder, latents, labels)
    )


def _part_cost(network: nn.Module, *inputs: Any) -> PartCost:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(*inputs)
    flops = count_flops(network, *inputs)
    return PartCost(count_parameters(network), flops / 1e9, counter.get_total_flops() / 1e9)


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
