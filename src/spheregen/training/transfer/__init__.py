"""Fine-tuning: the weights of a trained model in another one that may differ from it."""

from spheregen.training.transfer.autoencoder import check_fits, transfer
from spheregen.training.transfer.flow_refiner import check_refiner_fits, transfer_refiner
from spheregen.training.transfer.latent_denoiser import check_denoiser_fits, transfer_denoiser
from spheregen.training.transfer.parts import Part, Transfer, inherited_provenance
from spheregen.training.transfer.representation import check_representation_fits, transfer_representation

__all__ = [
    "Part",
    "Transfer",
    "check_denoiser_fits",
    "check_fits",
    "check_refiner_fits",
    "check_representation_fits",
    "inherited_provenance",
    "transfer",
    "transfer_denoiser",
    "transfer_refiner",
    "transfer_representation",
]
