"""Images as tensors of one size and number of channels; files and PIL images are read in `spheregen.pixels`."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from spheregen.pixels import ImageOptions, load_array


def load_image(image: Image.Image, options: ImageOptions) -> torch.Tensor:
    """Bring a PIL image of any mode and shape to uint8 (C, S, S), 0..255, as `pixels.load_array` does."""
    return torch.from_numpy(np.array(load_array(image, options), order="C"))


def to_model_range(images: torch.Tensor) -> torch.Tensor:
    """Convert uint8 0..255 to float32 in [-1, 1], which models read and write; same shape."""
    return images.to(torch.float32).div(127.5).sub_(1.0)
