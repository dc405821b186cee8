"""Models from and to other formats."""

from spheregen.folders.sphere_encoder import ConvertedModel, convert_sphere_encoder, load_sphere_encoder

__all__ = ["ConvertedModel", "convert_sphere_encoder", "load_sphere_encoder"]
