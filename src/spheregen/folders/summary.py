"""The files of a model folder, the bundled models, and what a folder tells without its network: no torch is needed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from spheregen.errors import ModelFileError
from spheregen.files import parse_json

CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
PRIOR = "prior.safetensors"
"""The prior fitted to a model's codes, if there is one."""
_BUNDLED = Path(__file__).resolve().parents[1] / "assets" / "models"


@dataclass(frozen=True, kw_only=True)
class ModelSummary:
    """The content of a model folder, told without loading the weights."""

    image_size: int  # side of an image in pixels
    num_classes: int  # 0 for an unconditional model
    parameters: int  # numbers in the weight file
    license: str | None  # an SPDX id or words
    description: str | None  # the purpose of its training, or the name of its recipe


def bundled_models() -> Mapping[str, Path]:
    """Name -> folder of the models that come with SphereGen, sorted by name."""
    if not _BUNDLED.is_dir():
        return {}
    return {folder.name: folder for folder in sorted(_BUNDLED.iterdir()) if not missing_files(folder)}


def missing_files(folder: Path) -> list[str]:
    """Return what a folder lacks to be that of a model."""
    return [name for name in (CONFIG, WEIGHTS) if not (folder / name).is_file()]


def summarise_model(folder: str | Path) -> ModelSummary:
    """Return what the folder of a generator holds, from its configuration and the headers of its weights.

    Raises:
        ModelFileError: the folder is broken.
    """
    path = Path(folder)
    try:
        config = parse_json((path / CONFIG).read_text(encoding="utf-8"))
        size, classes = (int(config["architecture"][name]) for name in ("image_size", "num_classes"))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ModelFileError(f"cannot read {path / CONFIG}: {error!r}; get the model folder again") from error
    return ModelSummary(
        image_size=size,
        num_classes=classes,
        parameters=sum(map(_numbers, sorted(path.rglob(WEIGHTS)))),
        license=_text(config, "provenance", "license"),
        description=_text(config, "training", "description") or _text(config, "training", "recipe"),
    )


def _numbers(file: Path) -> int:
    """Count the numbers in a safetensors file, by its header."""
    try:
        with safe_open(file, framework="numpy") as weights:
            return sum(math.prod(weights.get_slice(name).get_shape()) for name in weights.keys())  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise ModelFileError(f"cannot read {file}: {error}; the file is broken, get it again") from error


def _text(config: Mapping[str, Any], section: str, name: str) -> str | None:
    """Return a line of a section of config.json, if it is there."""
    values = config.get(section)
    value = values.get(name) if isinstance(values, dict) else None
    return " ".join(value.split()) or None if isinstance(value, str) else None
