"""What a picture's PNG says about how it was made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import spheregen
from spheregen.pipeline import Pipeline


def metadata_of(
    pipe: Pipeline, model: str, settings: Mapping[str, Any], *, seed: int, label: int | None
) -> dict[str, str]:
    """Seed, class and settings, with which the picture can be made again."""
    metadata = {"Software": f"spheregen {spheregen.__version__}", "model": model, "seed": str(seed)}
    if label is not None:
        names = pipe.info.class_names
        metadata["label"] = str(label)
        metadata["class"] = names[label] if names else str(label)
    return metadata | {name: str(value) for name, value in settings.items()}
