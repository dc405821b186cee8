"""Inception-v3 of 2015-12-05: the network of FID, the Inception Score, KID, precision and recall.

Two files of a user's do: the tensors that pytorch-fid and torch-fidelity publish, which our own network reads
(`FidInception`), and the TorchScript file of StyleGAN3, which brings its own network. Both see 8-bit
images resized to 299 px as TensorFlow 1 did.
"""

from __future__ import annotations

import contextlib
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from spheregen.errors import ModelFileError
from spheregen.measure.features.extractor import (
    FeatureBatch,
    FeatureExtractor,
    FeatureInfo,
    NetworkFeatures,
    full_float32,
)
from spheregen.measure.features.preprocessing import tf1_bilinear
from spheregen.networks.backbones.inception import CLASSES, FEATURES, SIZE
from spheregen.networks.backbones.inception import load_inception as load_network
from spheregen.networks.weights import WeightFile, file_sha256, locate_file
from spheregen.tensors import weights_hash

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
_CURE = f"give the file {PYTORCH_FID.name} of pytorch-fid"


def load_inception(weights: Path | str | None, device: torch.device) -> FeatureExtractor:
    """Load Inception from a file of either kind, which its contents tell.

    A TorchScript file is a program. It is run only if the user names it, or if it lies under StyleGAN3's name in a
    folder of weights; it is never downloaded.

    Args:
        weights: a file; or a folder to search before $SPHEREGEN_WEIGHTS and torch.hub's checkpoints; or None. If
            nothing is found, pytorch-fid's file is fetched.
        device: where it runs.

    Raises:
        ModelFileError: the file is missing, broken, of another kind, or cannot be fetched.
    """
    user, other_way = "the feature network inception", "give any of its files as inception=/path/to/file"
    path = locate_file(weights, FILES, user=user, other_way=other_way)
    if _is_torchscript(path):
        return _scripted_features(path, device)
    net = load_network(path)

    def extract(images: Tensor) -> FeatureBatch:
        x = (tf1_bilinear(images, SIZE) - 128) / 128
        x = x.contiguous(memory_format=torch.channels_last if x.device.type == "cpu" else torch.contiguous_format)
        features = net(x)
        return FeatureBatch(features, net.logits(features))  # without the bias, as the Inception Score is computed

    published = file_sha256(path).startswith(_HASH)
    title = _TITLE if published else f"{_TITLE}, but with weights of a file that is not the published one"
    return NetworkFeatures(net, _info(title, net), extract, device, channels_last=True)


def _scripted_features(path: Path, device: torch.device) -> FeatureExtractor:
    """Load StyleGAN3's TorchScript file, which takes 8-bit images and resizes them itself.

    It gives either features or probabilities. Where its last layer lies open, and gives the same probabilities, the
    logits are computed from the features; else each batch goes through the network twice, and the logits are the
    logarithms of the probabilities, which are the same after a softmax.
    """
    probe = (torch.arange(2 * 3 * SIZE * SIZE, device=device) % 251).to(torch.uint8).view(2, 3, SIZE, SIZE)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # torch would like another format; the file is of 2021
            net: Any = torch.jit.load(path, map_location="cpu").to(device)
        with torch.no_grad(), full_float32(device):
            features, chances = _run(net, probe, return_features=True), _run(net, probe, no_output_bias=True)
        shapes = f"it gives features {tuple(features.shape)} and probabilities {tuple(chances.shape)} of two images"
        if features.shape != (2, FEATURES) or chances.shape != (2, CLASSES):
            raise ValueError(shapes)
    except Exception as error:  # whatever code of another kind of file may raise
        reason = (str(error).strip().splitlines() or [""])[-1].strip() or type(error).__name__
        raise ModelFileError(f"{path} is no TorchScript of StyleGAN3's Inception ({reason}); {_CURE}") from error
    last = getattr(getattr(net, "output", None), "weight", None)
    is_open = False
    if isinstance(last, Tensor) and last.shape == (CLASSES, FEATURES):
        again = functional.linear(features, last.float()).softmax(dim=1)
        is_open = torch.allclose(again, chances, rtol=1e-3, atol=1e-6)

    def extract(images: Tensor) -> FeatureBatch:
        features = _run(net, images, return_features=True)
        if is_open:
            return FeatureBatch(features, functional.linear(features, net.output.weight.float()))
        chances = _run(net, images, no_output_bias=True)
        return FeatureBatch(features, chances.clamp(min=torch.finfo(torch.float32).tiny).log())

    return NetworkFeatures(net, _info(f"{_TITLE} (StyleGAN3's TorchScript)", net), extract, device)


def _info(title: str, net: nn.Module) -> FeatureInfo:
    return FeatureInfo(
        name="inception",
        title=title,
        distance="FID",
        dim=FEATURES,
        preprocessing=f"resized to {SIZE} px as TensorFlow 1 does (bilinear, not antialiased, no half-pixel centres), "
        "(x - 128) / 128",
        weights=weights_hash(net.state_dict()),
        classes=CLASSES,
    )


def _is_torchscript(path: Path) -> bool:
    """Tell an archive with code in it from a file of tensors."""
    with contextlib.suppress(OSError, zipfile.BadZipFile), zipfile.ZipFile(path) as archive:
        return any("/code/" in name for name in archive.namelist())
    return False


def _run(net: nn.Module, images: Tensor, **options: bool) -> Tensor:
    jit: Any = torch.jit
    with jit.optimized_execution(False):  # else the first batches run in another way than the later ones
        found: Tensor = net(images, **options)
    return found.float()
