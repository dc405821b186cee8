"""What training minimises; each loss returns its named terms."""

from spheregen.losses.autoencoder import AutoencoderLossConfig, AutoencoderObjective
from spheregen.losses.perceptual import PerceptualLoss, load_perceptual
from spheregen.losses.terms import LossTerms

__all__ = ["AutoencoderLossConfig", "AutoencoderObjective", "LossTerms", "PerceptualLoss", "load_perceptual"]
