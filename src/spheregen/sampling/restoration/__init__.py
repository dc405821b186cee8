"""Restoration: known degradations, the solver that undoes them with the sphere as a prior, and its estimates."""

from spheregen.sampling.restoration.blurs import BlockMean, Blur, Subsample
from spheregen.sampling.restoration.estimates import (
    BINS,
    GENERIC,
    Spectrum,
    estimate_noise,
    gain_of,
    measure_spectrum,
)
from spheregen.sampling.restoration.kernels import (
    bicubic_kernel,
    box_mask,
    brush_mask,
    gaussian_kernel,
    motion_kernel,
    random_mask,
)
from spheregen.sampling.restoration.operators import (
    Composition,
    Linear,
    Operator,
    check_adjoint,
    conjugate_gradients,
    from_deepinv,
)
from spheregen.sampling.restoration.pixels import Denoise, Grey, Mask, SoftMask
from spheregen.sampling.restoration.roundings import Jpeg, Quantise
from spheregen.sampling.restoration.solver import image_shape_of, restore
from spheregen.sampling.restoration.tiles import TiledModel
from spheregen.sampling.restoration.transforms import TRANSFORMS, MaskedFourier, MaskedTransform, Separable

__all__ = [
    "BINS",
    "GENERIC",
    "TRANSFORMS",
    "BlockMean",
    "Blur",
    "Composition",
    "Denoise",
    "Grey",
    "Jpeg",
    "Linear",
    "Mask",
    "MaskedFourier",
    "MaskedTransform",
    "Operator",
    "Quantise",
    "Separable",
    "SoftMask",
    "Spectrum",
    "Subsample",
    "TiledModel",
    "bicubic_kernel",
    "box_mask",
    "brush_mask",
    "check_adjoint",
    "conjugate_gradients",
    "estimate_noise",
    "from_deepinv",
    "gain_of",
    "gaussian_kernel",
    "image_shape_of",
    "measure_spectrum",
    "motion_kernel",
    "random_mask",
    "restore",
]
