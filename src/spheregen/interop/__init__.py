"""Models from and to other formats."""

from spheregen.interop.sphere_encoder import load_sphere_encoder

__all__ = ["load_sphere_encoder"]
