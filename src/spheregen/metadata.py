"""What a picture's PNG says about how it was made, and how it is made again from that."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import spheregen
from spheregen.data import read_metadata
from spheregen.errors import DataError

_LARGEST = 100_000  # characters of settings that are read
_TYPES: Mapping[str, type | tuple[type, ...]] = {
    "steps": int,
    "schedule": (str, list),
    "guidance": (int, float),
    "guidance_at": str,
    "share_noise": bool,
}
_REFINED_TYPES: Mapping[str, type | tuple[type, ...]] = {
    "refinement_steps": int,
    "solver": str,
    "refinement_guidance": (int, float),
}
"""Of pictures that a flow refined."""


@dataclass(frozen=True, kw_only=True)
class PictureRecord:
    """How a generated picture was made, as its PNG says."""

    model: str
    """The name or folder of the model, as its user wrote it."""
    fingerprint: str
    """Of the model's weights; empty if it is not known."""
    seed: int
    label: int | None
    settings: Mapping[str, Any]
    """steps, schedule, guidance, guidance_at, share_noise; refinement_steps, solver, refinement_guidance if a flow
    refined it."""


def picture_metadata(
    origin: Mapping[str, str],
    settings: Mapping[str, Any],
    seed: int,
    label: int | None,
    class_names: Sequence[str] = (),
) -> dict[str, str]:
    """Seed, class and settings as PNG text: one line each for people, and all settings as JSON for programs."""
    metadata = {"Software": f"spheregen {spheregen.__version__}", **{k: v for k, v in origin.items() if v}}
    metadata["seed"] = str(seed)
    if label is not None:
        metadata["label"] = str(label)
        metadata["class"] = class_names[label] if class_names else str(label)
    metadata |= {name: str(value) for name, value in settings.items()}
    return metadata | {"settings": json.dumps(dict(settings), default=repr)}


def read_record(path: Path) -> PictureRecord:
    """How a picture was made that `Pipeline.generate` and `PipelineOutput.save` wrote.

    Raises:
        DataError: the file is missing or no picture, or it does not say how a plain sample was made.
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
            what = str(settings["edit"])
            what = what if what.isalpha() and len(what) < 20 else "an edit"
            raise DataError(f"{path} was made by {what} from other pictures, which it does not hold")
        if "noise" in settings:
            raise DataError(f"{path} was made from given noise, which it does not hold; its seed cannot repeat it")
        if isinstance(settings["schedule"], list):
            settings["schedule"] = [float(r) for r in settings["schedule"]]
        types = {**_TYPES, **_REFINED_TYPES} if "refinement_steps" in settings else _TYPES
        for name, kind in types.items():
            if not isinstance(settings[name], kind):
                raise ValueError(name)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise DataError(f"{path} has a damaged record of how it was made ({error}); it cannot be repeated") from error
    return PictureRecord(
        model=text.get("model", ""),
        fingerprint=text.get("fingerprint", ""),
        seed=seed,
        label=label,
        settings={name: settings[name] for name in types},
    )
