"""A network of the user's own, named as `module:factory`."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from spheregen.errors import ConfigError, SphereGenError
from spheregen.evaluation.features.base import FeatureBatch, FeatureExtractor, FeatureInfo
from spheregen.evaluation.features.network import NetworkFeatures, full_float32
from spheregen.model_folder import weights_hash

_PROBES = (32, 64, 128, 256, 512)  # sides in pixels; some networks take no small images
_WANTED = "a callable that takes uint8 images (B, 3, H, W) and returns features (B, D)"


class CustomFeatures(NetworkFeatures):
    """A callable of the user's that maps uint8 images (B, 3, H, W) to features (B, D); its preprocessing is its own.

    Args:
        network: the callable; a module is put into evaluation mode and moved to the device.
        name: `module:factory`.
        device: where the images are when it is called.

    Raises:
        ConfigError: it takes no such images or returns something else.
    """

    def __init__(self, network: Callable[[Tensor], Tensor], name: str, device: torch.device) -> None:
        net = network if isinstance(network, nn.Module) else _Wrapped(network)
        net = net.eval().to(device)
        info = FeatureInfo(
            name=name,
            title=f"a network of the user's own ({name})",
            distance=f"FD-{name}",
            dim=_probe(net, name, device),
            preprocessing="its own, of 8-bit images",
            weights=weights_hash(net.state_dict()) if net is network else "unknown",
        )
        super().__init__(net, info, device)

    def see(self, images: Tensor) -> FeatureBatch:
        return FeatureBatch(self.net(images).float())


class _Wrapped(nn.Module):
    """A plain callable in place of a module."""

    def __init__(self, network: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images)


def load_custom(name: str, device: torch.device) -> FeatureExtractor:
    """Import `module`, with the current directory among the places to look, and call its `factory` without arguments.

    Args:
        name: `module:factory`. The factory returns a `FeatureExtractor`, or a module or another callable that takes
            uint8 images (B, 3, H, W) on the device and returns features (B, D).
        device: where it shall run.

    Raises:
        ConfigError: there is no such module or factory, it fails, or it returns something else.
    """
    module, _, factory = name.partition(":")
    if not module or not factory:
        raise ConfigError(f"{name!r} names no network of your own; write module:factory, such as mynet:make")
    make = getattr(_imported(module, name), factory, None)
    if not callable(make):
        raise ConfigError(f"the module {module} has no function {factory} for {name}; check both names")
    try:
        made = make()
    except SphereGenError:
        raise
    except Exception as error:  # anything, it is the user's code
        raise ConfigError(f"{name}() failed ({_reason(error)}); it is called without arguments") from error
    if isinstance(getattr(made, "info", None), FeatureInfo) and callable(made) and hasattr(made, "to"):
        return cast(FeatureExtractor, made).to(device)
    if not callable(made):
        raise ConfigError(f"{name}() returned {type(made).__name__}; return a FeatureExtractor, or {_WANTED}")
    return CustomFeatures(made, name, device)


def _imported(module: str, name: str) -> Any:
    here = str(Path.cwd())
    importlib.invalidate_caches()  # the file may have been written a moment ago
    sys.path.insert(0, here)
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is not None and (module == error.name or module.startswith(f"{error.name}.")):
            raise ConfigError(
                f"there is no module {module} for {name}; run from the folder that holds {module.split('.')[0]}.py, or "
                "install it"
            ) from error
        raise ConfigError(f"the module {module} of {name} needs {error.name}; install it") from error
    except Exception as error:
        raise ConfigError(f"the module {module} of {name} cannot be imported ({_reason(error)}); mend it") from error
    finally:
        sys.path.remove(here)


def _probe(net: nn.Module, name: str, device: torch.device) -> int:
    """D, by trying two images of one size after the other until one is taken."""
    failure: Exception | None = None
    for side in _PROBES:
        images = torch.randint(0, 256, (2, 3, side, side), generator=torch.Generator().manual_seed(0))
        try:
            with torch.no_grad(), full_float32(device):
                found = net(images.to(torch.uint8).to(device))
        except Exception as error:
            failure = failure or error
            continue
        if not isinstance(found, Tensor) or found.ndim != 2 or len(found) != 2 or not found.is_floating_point():
            shape = f"{found.dtype} {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
            raise ConfigError(f"{name} returned {shape} for two images; return floating-point features (2, D)")
        return found.shape[1]
    assert failure is not None
    raise ConfigError(f"{name} takes no images ({_reason(failure)}); return {_WANTED}") from failure


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__
