"""A refined generator that starts from another one: whatever has the same name and shape is kept."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from spheregen.errors import ConfigError
from spheregen.models.autoencoder import SphereAutoencoder
from spheregen.models.flow_refiner import FlowRefiner, FlowRefinerConfig, RefinedGenerator
from spheregen.training.transfer.autoencoder import transfer
from spheregen.training.transfer.parts import Transfer, keep_matching, matching_classes


def transfer_refiner(
    target: FlowRefiner,
    autoencoder: SphereAutoencoder | None,
    source: RefinedGenerator,
    *,
    target_classes: Sequence[str] = (),
    source_classes: Sequence[str] = (),
) -> Transfer:
    """Put the weights of a refined generator into a fresh one, in place and on the CPU.

    Parameters of the refiner of the same name and shape are kept, and rows of the class table are matched by class
    name, or by number where a side has no names. The autoencoder starts from the one in front as `transfer` says.

    Args:
        target: freshly built, in float32.
        autoencoder: the one that is trained along, freshly built; None behind a frozen generator.
        source: on the CPU, in any type; it is not changed.
        target_classes, source_classes: names of the classes; empty where there are none.

    Raises:
        ConfigError: not one transformer block of the refiner, or of the autoencoder, fits.
        ModelFileError: a weight of the source is not finite.
    """
    check_refiner_fits(target.config, source.config)
    adapt, notes = matching_classes(target_classes, source_classes)
    parts = [
        dataclasses.replace(part, name=f"refiner.{part.name}") for part in keep_matching(target, source.refiner, adapt)
    ]
    if autoencoder is not None and isinstance(source.rough, SphereAutoencoder):
        found = transfer(autoencoder, source.rough, target_classes=target_classes, source_classes=source_classes)
        parts += found.parts
        notes += found.notes
    elif autoencoder is not None:
        notes.append("the generator in front is no Sphere Encoder: the autoencoder starts afresh")
    return Transfer(tuple(parts), tuple(dict.fromkeys(notes)))


def check_refiner_fits(target: FlowRefinerConfig, source: FlowRefinerConfig) -> None:
    """Refuse a refiner of which not one transformer block fits.

    Raises:
        ConfigError: the widths differ.
    """
    (ours,), (theirs,) = target.transformers, source.transformers
    if ours.width != theirs.width:
        raise ConfigError(
            f"nothing of the model fits: its refiner is {theirs.width} wide, the recipe's {ours.width}; set "
            "model.size to its size, or start afresh with --set init=null"
        )
