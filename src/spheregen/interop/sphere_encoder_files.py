"""Files of the published Sphere Encoder implementation: weights as plain tensors, options as a mapping.

Nothing in a file is executed: safetensors and JSON hold no code, `.pth` files go through `weights_only=True`, which
knows tensors and plain containers alone. Only dense, finite floating-point tensors leave this module.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from spheregen.errors import ModelFileError

FIXED_TABLES = re.compile(r"(encoder|decoder)\.(inctx_)?rope")
"""Rotary tables that `ema_model` carries beside the weights; they follow from the configuration."""
_PREFIXES = re.compile(r"\b(_orig_mod|module)\.")
_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_SHOWN = 8


@dataclass(frozen=True)
class Checkpoint:
    """The weights of a published checkpoint."""

    path: Path
    """The file they were read from."""
    state: Mapping[str, Tensor]
    """Dense floating-point tensors under the published names, without wrappers' prefixes and fixed tables."""
    weights: str
    """`model`, `ema_model`, or `bare` for a file that is a state dictionary itself."""
    epoch: int | None
    """The epoch that a training checkpoint tells."""


def listed(names: Iterable[str]) -> str:
    """The first names, on one line whatever is in them, and how many more there are."""
    every = [name[:200] if name.isprintable() else repr(name[:200]) for name in names]
    more = f" and {len(every) - _SHOWN} more" if len(every) > _SHOWN else ""
    return ", ".join(every[:_SHOWN]) + more


def find_weights(path: Path) -> Path:
    """The weight file that `path` is, or the only one in the folder `path`.

    Raises:
        ModelFileError: there is none, or there are several.
    """
    if path.is_file():
        return path
    if not path.is_dir():
        raise ModelFileError(f"no checkpoint at {path}: give a folder or a .safetensors or .pth file")
    found = sorted([*path.glob("*.safetensors"), *path.glob("*.pth")])
    found = [file for file in found if file.name != "io.safetensors"]  # golden folders keep inputs and outputs there
    if len(found) != 1:
        names = listed(file.name for file in found) or "none"
        raise ModelFileError(f"{path} must hold one weight file (.safetensors or .pth), found {names}; name the file")
    return found[0]


def read_options(config: str | Path | Mapping[str, Any] | None, folder: Path) -> dict[str, Any] | None:
    """The options of a configuration; of `config.json` or `cfg.json` in `folder` where none is given.

    Returns:
        The options, or None where none is given and the folder has no such file.

    Raises:
        ModelFileError: a file that is missing or holds no JSON object.
    """
    if isinstance(config, Mapping):
        return dict(config)
    if config is None:
        path = next((folder / name for name in ("config.json", "cfg.json") if (folder / name).is_file()), None)
        if path is None:
            return None
    else:
        path = Path(config)
    try:
        options = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelFileError(f"cannot read the configuration {path}: {_first_line(error)}; correct the file") from error
    if not isinstance(options, dict):
        raise ModelFileError(f"{path} is not a JSON object of options; give the training's cfg.json")
    return options


def read_checkpoint(path: Path, *, ema: bool) -> Checkpoint:
    """Read a weight file.

    Args:
        path: `.safetensors`; every other suffix is read as a `.pth` file.
        ema: take `ema_model` of a training checkpoint instead of `model`.

    Raises:
        ModelFileError: a broken file, one with code or objects in it, or one that holds other things than weights.
    """
    content = _load(path)
    weights, epoch = "bare", None
    if any(isinstance(content.get(name), Mapping) for name in ("model", "ema_model")):
        weights, other = ("ema_model", "model") if ema else ("model", "ema_model")
        if not isinstance(content.get(weights), Mapping):
            cure = "leave ema (--ema) out" if ema else "ask for them with ema (--ema)"
            raise ModelFileError(f"{path} holds no {weights}, only {other}; {cure}")
        epoch = content.get("epoch")
        content = content[weights]
    elif ema:
        raise ModelFileError(f"{path} is a bare state dictionary without EMA weights; load it without ema (--ema)")
    return Checkpoint(
        path=path,
        state=_plain_state(content, path),
        weights=weights,
        epoch=epoch if isinstance(epoch, int) and not isinstance(epoch, bool) else None,
    )


def float32_weights(state: Mapping[str, Tensor], file: str) -> dict[str, Tensor]:
    """The weights in float32.

    Raises:
        ModelFileError: numbers that are not finite.
    """
    converted = {name: tensor.float() for name, tensor in state.items()}
    broken = [name for name, tensor in converted.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise ModelFileError(
            f"{file} holds NaN or infinite numbers in {listed(broken)}: its training diverged or the file is "
            "damaged; take another checkpoint"
        )
    return converted


def _load(path: Path) -> Mapping[Any, Any]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols: what cannot be read is an error below
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a broken pickle can raise anything
        raise ModelFileError(f"cannot read weights from {path}: {_reason(error)}") from error
    if not isinstance(content, Mapping):
        raise ModelFileError(
            f"{path} holds no Sphere Encoder: it is a {type(content).__name__}, not a dictionary of weights; give a "
            "training checkpoint or a state dictionary"
        )
    return content


def _reason(error: Exception) -> str:
    """Why reading failed, in one line; torch's own text recommends to load the file in the unsafe way."""
    text = str(error)
    unsafe = re.search(r"GLOBAL ([\w.]+)", text)
    if unsafe:
        return (
            f"it holds code or objects ({unsafe[1]}) beside tensors, and nothing of it was executed; ask for a file "
            "of tensors alone, such as .safetensors"
        )
    if "Weights only load failed" in text:
        return (
            "it is a pickle of more than tensors, or damaged, and nothing of it was executed; ask for a file of "
            "tensors alone"
        )
    reason = _first_line(error).split(". ")[0].rstrip(".")
    if " " not in reason:  # a number or a key out of the unpickler's depths
        reason = "its data are damaged"
    return f"{reason}; the file is truncated or of another kind, get it again"


def _plain_state(content: Mapping[Any, Any], path: Path) -> dict[str, Tensor]:
    """Names without wrappers' prefixes, tensors that are dense and floating-point; fixed tables are dropped."""
    if not content:
        raise ModelFileError(f"{path} holds no Sphere Encoder: its state dictionary is empty; give another checkpoint")
    state: dict[str, Tensor] = {}
    for key, value in content.items():
        name = _PREFIXES.sub("", str(key))
        if FIXED_TABLES.fullmatch(name):
            continue
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise ModelFileError(
                f"{path} is not a Sphere Encoder checkpoint: its entry {str(key)[:80]!r} is a {type(value).__name__}, "
                "not a tensor with a name; give a dictionary of `model` and `ema_model`, or a state dictionary"
            )
        if name in state:
            raise ModelFileError(f"{path} holds {listed([name])} twice, under different prefixes; save one of them")
        problem = _problem(value)
        if problem:
            raise ModelFileError(f"{path}: {listed([name])} {problem}; save it as a dense float32 tensor")
        state[name] = value.detach()
    return state


def _problem(tensor: Tensor) -> str | None:
    """What makes a tensor unfit to be a weight."""
    if type(tensor) not in (Tensor, nn.Parameter) or tensor.is_nested:
        return f"is a {type(tensor).__name__} and not a plain tensor"
    if tensor.layout is not torch.strided:
        return f"is stored sparse ({tensor.layout})"
    if tensor.device.type != "cpu":
        return "has no numbers, only a shape"
    if tensor.dtype not in _DTYPES:
        return f"is {str(tensor.dtype).removeprefix('torch.')}, and weights are float32, bfloat16, float16 or float64"
    if not tensor.numel():
        return "is empty"
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        return "is an expanded view that stores fewer numbers than its shape has"
    return None


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
