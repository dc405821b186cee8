"""Frozen codecs between images and token grids, in whose latent space a denoiser lives; each is a `Tokenizer`."""

from spheregen.tokenizers.diffusers_models import DiffusersTokenizer, open_diffusers
from spheregen.tokenizers.encoders import EncoderConfig, FrozenEncoder, build_encoder
from spheregen.tokenizers.mae import MAEDecoder, MAEDecoderConfig
from spheregen.tokenizers.normaliser import Normaliser, measure
from spheregen.tokenizers.published_rae import PublishedRAE, PublishedRAEConfig, read_published_rae
from spheregen.tokenizers.representation import RepresentationAutoencoder, RepresentationConfig
from spheregen.tokenizers.sphere import SphereTokenizer

__all__ = [
    "DiffusersTokenizer",
    "EncoderConfig",
    "FrozenEncoder",
    "MAEDecoder",
    "MAEDecoderConfig",
    "Normaliser",
    "PublishedRAE",
    "PublishedRAEConfig",
    "RepresentationAutoencoder",
    "RepresentationConfig",
    "SphereTokenizer",
    "build_encoder",
    "measure",
    "open_diffusers",
    "read_published_rae",
]
