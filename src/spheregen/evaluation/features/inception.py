"""Inception-v3 of 2015-12-05: the network of FID, the Inception Score, KID, precision and recall.

Two files of a user's do: the tensors that pytorch-fid and torch-fidelity publish, which our own network reads
(`nn/backbones/inception.py`), and the TorchScript file of StyleGAN3, which brings its own network. Both see 8-bit
images resized to 299 px as TensorFlow 1 did.
"""

from __future__ import annotations

import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from spheregen.errors import ModelFileError
from spheregen.evaluation.features.base import FeatureBatch, FeatureInfo
from spheregen.evaluation.features.network import NetworkFeatures, full_float32
from spheregen.evaluation.features.preprocessing import tf1_bilinear
from spheregen.model_folder import weights_hash
from spheregen.nn.backbones.inception import CLASSES, FEATURES, SIZE, FidInception
from spheregen.nn.backbones.inception import load_inception as load_network
from spheregen.weights import WeightFile, file_sha256, locate_file

# pytorch-fid's and torch-fidelity's names of one file, whose names bear the hash; StyleGAN3 states none for its own.
_HASH = "6726825d"
PYTORCH_FID = WeightFile(
    name="pt_inception-2015-12-05-6726825d.pth",
    url="https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth",
    sha256_start=_HASH,
)
TORCH_FIDELITY = WeightFile(
    name="weights-inception-2015-12-05-6726825d.pth",
    url="https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth",
    sha256_start=_HASH,
)
STYLEGAN3 = WeightFile(
    name="inception-2015-12-05.pt",
    url="https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/inception-2015-12-05.pt",
)
FILES = (PYTORCH_FID, TORCH_FIDELITY, STYLEGAN3)

_TITLE = "Inception-v3 of 2015-12-05"
_PREPROCESSING = (
    f"resized to {SIZE} px as TensorFlow 1 does (bilinear, not antialiased, no half-pixel centres), (x - 128) / 128"
)
_CURE = f"give the file {PYTORCH_FID.name} of pytorch-fid"


class InceptionFeatures(NetworkFeatures):
    """Our network: pool features (B, 2048), and logits (B, 1008) without the bias, as the Inception Score is computed.

    Args:
        net: the network with its weights.
        device: where it runs.
        published: whether the weights are those of 2015-12-05; if not, the title says so.
    """

    net: FidInception
    channels_innermost = True

    def __init__(self, net: FidInception, device: torch.device, *, published: bool) -> None:
        title = _TITLE if published else f"{_TITLE}, but with weights of a file that is not the published one"
        super().__init__(net, _info(title, weights_hash(net.state_dict())), device)

    def see(self, images: Tensor) -> FeatureBatch:
        features = self.net(self.arranged((tf1_bilinear(images, SIZE) - 128) / 128))
        return FeatureBatch(features, self.net.logits(features))


class ScriptedInceptionFeatures(NetworkFeatures):
    """StyleGAN3's TorchScript file, which takes 8-bit images and resizes them itself.

    It gives either features or probabilities. Where its last layer lies open, and gives the same probabilities, the
    logits are computed from the features; else each batch goes through the network twice, and the logits are the
    logarithms of the probabilities, which are the same after a softmax.

    Args:
        net: the module as loaded.
        device: where it runs.
        origin: the file, for the message.

    Raises:
        ModelFileError: the module is another network.
    """

    def __init__(self, net: torch.jit.ScriptModule, device: torch.device, origin: str) -> None:
        title = f"{_TITLE} (StyleGAN3's TorchScript)"
        super().__init__(net, _info(title, weights_hash(net.state_dict())), device)
        self._last: Tensor | None = None
        probe = (torch.arange(2 * 3 * SIZE * SIZE, device=device) % 251).to(torch.uint8).view(2, 3, SIZE, SIZE)
        try:
            with torch.no_grad(), full_float32(device):
                features, chances = self._features(probe), self._chances(probe)
        except Exception as error:  # whatever code of another kind of file may raise
            reason = (str(error).strip().splitlines() or [""])[-1].strip() or type(error).__name__
            raise ModelFileError(f"{origin} is no TorchScript of StyleGAN3's Inception ({reason}); {_CURE}") from error
        if features.shape != (2, FEATURES) or chances.shape != (2, CLASSES):
            found = f"features {tuple(features.shape)} and probabilities {tuple(chances.shape)} of two images"
            raise ModelFileError(f"{origin} is no TorchScript of StyleGAN3's Inception: it gives {found}; {_CURE}")
        last = getattr(getattr(net, "output", None), "weight", None)
        if isinstance(last, Tensor) and last.shape == (CLASSES, FEATURES):
            again = functional.linear(features, last.float()).softmax(dim=1)
            if torch.allclose(again, chances, rtol=1e-3, atol=1e-6):
                self._last = last.float()

    def see(self, images: Tensor) -> FeatureBatch:
        features = self._features(images)
        if self._last is not None:
            return FeatureBatch(features, functional.linear(features, self._last.to(features.device)))
        chances = self._chances(images)
        return FeatureBatch(features, chances.clamp(min=torch.finfo(torch.float32).tiny).log())

    def _features(self, images: Tensor) -> Tensor:
        return _run(self.net, images, return_features=True)

    def _chances(self, images: Tensor) -> Tensor:
        return _run(self.net, images, no_output_bias=True)


def load_inception(weights: Path | str | None, device: torch.device) -> InceptionFeatures | ScriptedInceptionFeatures:
    """Inception from a file of either kind, which its contents tell.

    A TorchScript file is a program. It is run only if the user names it, or if it lies under StyleGAN3's name in a
    folder of weights; it is never downloaded.

    Args:
        weights: a file; or a folder to search before $SPHEREGEN_WEIGHTS and torch.hub's checkpoints; or None. If
            nothing is found, pytorch-fid's file is fetched.
        device: where it runs.

    Raises:
        ModelFileError: the file is missing, broken, of another kind, or cannot be fetched.
    """
    path = locate_file(
        weights,
        FILES,
        user="the feature network inception",
        other_way="give any of its files as inception=/path/to/file",
    )
    if _is_torchscript(path):
        return ScriptedInceptionFeatures(_load_script(path), device, str(path))
    return InceptionFeatures(load_network(path), device, published=file_sha256(path).startswith(_HASH))


def _info(title: str, weights: str) -> FeatureInfo:
    return FeatureInfo(
        name="inception",
        title=title,
        distance="FID",
        dim=FEATURES,
        preprocessing=_PREPROCESSING,
        weights=weights,
        classes=CLASSES,
    )


def _is_torchscript(path: Path) -> bool:
    """Whether the file is an archive with code in it; files of tensors have none."""
    if not zipfile.is_zipfile(path):
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            return any("/code/" in name for name in archive.namelist())
    except (OSError, zipfile.BadZipFile) as error:
        raise ModelFileError(f"cannot read the weight file {path} ({error}); delete it and fetch it again") from error


def _run(net: nn.Module, images: Tensor, **options: bool) -> Tensor:
    jit: Any = torch.jit
    with jit.optimized_execution(False):  # else the first batches run in another way than the later ones
        found: Tensor = net(images, **options)
    return found.float()


def _load_script(path: Path) -> torch.jit.ScriptModule:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # torch would like another format; the file is of 2021
            loaded: torch.jit.ScriptModule = torch.jit.load(path, map_location="cpu")
    except (OSError, RuntimeError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelFileError(
            f"cannot read the TorchScript file {path} ({reason}); fetch it again, or {_CURE}"
        ) from error
    return loaded
