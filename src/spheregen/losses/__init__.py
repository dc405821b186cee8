"""What training minimises; each loss returns its named terms."""

from spheregen.losses.autoencoder import AutoencoderLossConfig, AutoencoderObjective
from spheregen.losses.perceptual import PerceptualLoss, load_perceptual
from spheregen.losses.terms import LossTerms
from spheregen.losses.uniformity import hyperspherical_energy, sliced_wasserstein

__all__ = [
    "AutoencoderLossConfig",
    "AutoencoderObjective",
    "LossTerms",
    "PerceptualLoss",
    "hyperspherical_energy",
    "load_perceptual",
    "sliced_wasserstein",
]
