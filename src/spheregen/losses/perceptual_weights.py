"""The three weight files of the published perceptual loss; `spheregen.weights` finds and fetches them."""

from __future__ import annotations

from pathlib import Path

from spheregen.weights import (
    FOLDER_VARIABLE,
    DownloadError,
    WeightFile,
    download_files,
    find_files,
)
from spheregen.weights import weight_folders as _weight_folders

__all__ = [
    "CONVNEXT_SMALL",
    "FOLDER_VARIABLE",
    "LPIPS_VGG",
    "PUBLISHED_FILES",
    "VGG16",
    "DownloadError",
    "WeightFile",
    "download_weights",
    "find_weights",
    "weight_folders",
]

VGG16 = WeightFile(
    name="vgg16-397923af.pth",
    url="https://download.pytorch.org/models/vgg16-397923af.pth",
    sha256_start="397923af",
)
CONVNEXT_SMALL = WeightFile(
    name="convnext_small-0c510722.pth",
    url="https://download.pytorch.org/models/convnext_small-0c510722.pth",
    sha256_start="0c510722",
)
LPIPS_VGG = WeightFile(
    name="vgg.pth",
    url="https://raw.githubusercontent.com/richzhang/PerceptualSimilarity/master/lpips/weights/v0.1/vgg.pth",
)
PUBLISHED_FILES = (VGG16, CONVNEXT_SMALL, LPIPS_VGG)


def weight_folders(weights: Path | str | None = None) -> list[Path]:
    """The folders to search, first one first; a missing file is downloaded into the first.

    Raises:
        ConfigError: `weights` is a file.
    """
    return _weight_folders(weights, title="perceptual weights")


def find_weights(weights: Path | str | None = None) -> dict[WeightFile, Path]:
    """Where each of the three files lies; a file that is nowhere is left out."""
    return find_files(PUBLISHED_FILES, weight_folders(weights))


def download_weights(weights: Path | str | None = None) -> dict[WeightFile, Path]:
    """Where each of the three files lies, after fetching those that were nowhere (about 730 MB in all).

    Raises:
        SphereGenError: a file cannot be fetched or written.
    """
    return download_files(
        PUBLISHED_FILES,
        weight_folders(weights),
        user="the published perceptual loss",
        other_way="choose perceptual 'builtin'",
    )
