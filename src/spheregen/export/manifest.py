"""The manifest of an exported model: all that a program needs beside the graphs, in `manifest.json`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from spheregen.errors import ModelFileError
from spheregen.files import parse_json

MANIFEST = "manifest.json"
FORMAT = 1
"""Raised when a reader of the one before would misread it."""
_KEYS = (
    *("image_shape", "latent_shape", "num_classes", "class_names", "predicts", "guidance_law", "guidance_places"),
    *("unguided", "alpha_max", "max_angle", "start_angle", "reuses_noise", "sampling", "preprocessing", "graphs"),
)


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read what an exported folder says of itself.

    Raises:
        ModelFileError: there is none, it is broken, or a later version wrote it.
    """
    path = folder / MANIFEST
    try:
        found = parse_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelFileError(
            f"{folder} has no {MANIFEST}; give a folder that `spheregen export MODEL --to onnx --out FOLDER` wrote"
        ) from error
    except (OSError, ValueError) as error:
        raise ModelFileError(f"{path} cannot be read ({error}); export the model again") from error
    if not isinstance(found, dict) or "format" not in found or "graphs" not in found:
        raise ModelFileError(f"{path} is no manifest of an exported model; export the model again")
    if found["format"] != FORMAT:
        raise ModelFileError(f"{path} has format {found['format']}, and this version reads {FORMAT}; export it again")
    if lacking := [name for name in _KEYS if name not in found]:
        raise ModelFileError(f"{path} lacks {lacking[0]}; export the model again")
    outside = [each["file"] for each in found["graphs"].values() if Path(each["file"]).name != each["file"]]
    if outside:
        raise ModelFileError(f"{path} names {outside[0]}, which is not beside it; export the model again")
    return found
