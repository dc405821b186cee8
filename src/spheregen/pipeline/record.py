"""The record in an image's PNG: how it was made, read again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spheregen.data import read_metadata
from spheregen.errors import DataError
from spheregen.pipeline.options import DEFAULTS, FLOW_DEFAULTS, check_types

_LARGEST = 100_000  # characters of settings that are read


@dataclass(frozen=True, kw_only=True)
class ImageRecord:
    """How a generated image was made, as its PNG says."""

    model: str
    """The name or folder of the model, as its user wrote it."""
    fingerprint: str
    """Of the model's weights; empty if it is not known."""
    seed: int
    label: int | None
    settings: Mapping[str, Any]
    """The fields of `GenerationOptions`; those of a flow only where one refined the image."""


def read_record(path: Path) -> ImageRecord:
    """Read how an image was made that `Pipeline.generate` and `PipelineOutput.save` wrote.

    Raises:
        DataError: the file is missing or no image, or it does not say how a plain sample was made.
    """
    text = read_metadata(path)
    if "seed" not in text or "settings" not in text:
        raise DataError(
            f"{path} does not say how it was made; only single PNGs that `spheregen sample` or PipelineOutput.save "
            "wrote do, as long as no other program saved them again"
        )
    try:
        settings = json.loads(text["settings"][:_LARGEST])
        label = int(text["label"]) if "label" in text else None
        seed = int(text["seed"])
        if "edit" in settings:
            raise DataError(f"{path} was made by an edit of other images, which it does not hold")
        if "noise" in settings:
            raise DataError(f"{path} was made from given noise, which it does not hold; its seed cannot repeat it")
        if isinstance(settings["schedule"], list):
            settings["schedule"] = [float(r) for r in settings["schedule"]]
        names = DEFAULTS if "refinement_steps" not in settings else {**DEFAULTS, **FLOW_DEFAULTS}
        settings = {name: settings[name] for name in names}
        check_types(settings)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise DataError(f"{path} has a damaged record of how it was made ({error}); it cannot be repeated") from error
    origin = {name: text.get(name, "") for name in ("model", "fingerprint")}
    return ImageRecord(**origin, seed=seed, label=label, settings=settings)
