"""Models from and to other formats."""

from spheregen.folders.latents import ConvertedPart, convert_rae, convert_sphere_latent
from spheregen.folders.sphere_encoder import ConvertedModel, convert_sphere_encoder, load_sphere_encoder
from spheregen.folders.sphere_encoder_2 import ConvertedModel2, convert_sphere_encoder_2, load_sphere_encoder_2

__all__ = [
    "ConvertedModel",
    "ConvertedModel2",
    "ConvertedPart",
    "convert_rae",
    "convert_sphere_encoder",
    "convert_sphere_encoder_2",
    "convert_sphere_latent",
    "load_sphere_encoder",
    "load_sphere_encoder_2",
]
