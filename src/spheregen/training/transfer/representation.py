"""A representation autoencoder that starts from another one: whatever has the same name and shape is kept."""

from __future__ import annotations

from spheregen.errors import ConfigError
from spheregen.tokenizers.codec import TokenCodec
from spheregen.tokenizers.representation import RepresentationAutoencoder, RepresentationConfig
from spheregen.training.transfer.parts import Transfer, keep_matching

STATISTICS = "the statistics of the latents are measured anew, on this run's images"


def transfer_representation(target: TokenCodec, source: RepresentationAutoencoder) -> Transfer:
    """Put projection and decoder of `source` into `target`, in place and on the CPU, where names and shapes agree.

    The encoder is the recipe's own: it is frozen and never transferred.

    Raises:
        ConfigError: not one transformer block fits.
        ModelFileError: a weight of the source is not finite.
    """
    check_representation_fits(target.config, source.config)
    return Transfer(keep_matching(target, source.codec), (STATISTICS,))


def check_representation_fits(target: RepresentationConfig, source: RepresentationConfig) -> None:
    """Refuse an autoencoder of which not one transformer block fits.

    Raises:
        ConfigError: the decoders differ in width.
    """
    (ours,), (theirs,) = target.transformers, source.transformers
    if ours.width != theirs.width:
        raise ConfigError(
            f"nothing of the model fits: its decoder is {theirs.width} wide, the recipe's {ours.width}; set "
            "model.decoder to its size, or train without --init"
        )
