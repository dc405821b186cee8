"""Models from and to other formats."""

from spheregen.folders.latents import convert_rae, convert_sphere_latent
from spheregen.folders.published import ConvertedModel
from spheregen.folders.sphere_encoder import convert_sphere_encoder, load_sphere_encoder
from spheregen.folders.sphere_encoder_2 import convert_sphere_encoder_2, load_sphere_encoder_2

__all__ = [
    "ConvertedModel",
    "convert_rae",
    "convert_sphere_encoder",
    "convert_sphere_encoder_2",
    "convert_sphere_latent",
    "load_sphere_encoder",
    "load_sphere_encoder_2",
]
