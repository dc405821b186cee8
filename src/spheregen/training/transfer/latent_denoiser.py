"""A latent denoiser that starts from another one: whatever has the same name and shape is kept."""

from __future__ import annotations

from collections.abc import Sequence

from spheregen.errors import ConfigError
from spheregen.models.latent_denoiser import LatentDenoiser, LatentDenoiserConfig
from spheregen.training.transfer.parts import Transfer, keep_matching, matching_classes


def transfer_denoiser(
    target: LatentDenoiser,
    source: LatentDenoiser,
    *,
    target_classes: Sequence[str] = (),
    source_classes: Sequence[str] = (),
) -> Transfer:
    """Put the weights of `source` into `target`, in place and on the CPU; the same inputs give the same weights.

    Parameters of the same name and shape are kept, and rows of the class table are matched by class name, or by number
    where a side has no names. Everything else starts as the target was built: another tokenizer's channels, other
    parts of blocks, blocks that are added.

    Args:
        target: freshly built, in float32.
        source: on the CPU, in any type; it is not changed.
        target_classes, source_classes: names of the classes; empty where there are none.

    Raises:
        ConfigError: not one transformer block fits.
        ModelFileError: a weight of the source is not finite.
    """
    check_denoiser_fits(target.config, source.config)
    adapt, notes = matching_classes(target_classes, source_classes)
    parts = keep_matching(target, source, adapt)
    if target.config.prior != source.config.prior:
        notes.append(f"prior {source.config.prior} -> {target.config.prior}: weights are kept, and learn anew")
    return Transfer(parts, tuple(notes))


def check_denoiser_fits(target: LatentDenoiserConfig, source: LatentDenoiserConfig) -> None:
    """Refuse a denoiser of which not one transformer block fits.

    Raises:
        ConfigError: the widths differ.
    """
    (ours,), (theirs,) = target.transformers, source.transformers
    if ours.width != theirs.width:
        raise ConfigError(
            f"nothing of the model fits: its denoiser is {theirs.width} wide, the recipe's {ours.width}; set "
            "model.size to its size, or train without --init"
        )
