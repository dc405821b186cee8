"""The generators of the family; each file holds one model and its configuration."""

from spheregen.models.autoencoder import AutoencoderConfig, SphereAutoencoder
from spheregen.models.protocol import SphereGenerator
from spheregen.models.sizes import SIZES, TransformerSize

__all__ = ["SIZES", "AutoencoderConfig", "SphereAutoencoder", "SphereGenerator", "TransformerSize"]
