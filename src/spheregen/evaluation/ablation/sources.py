"""The images of a study: what is trained on, what samples are compared with, what goes there and back."""

from __future__ import annotations

import contextlib

from spheregen.data import ImageOptions, ImageSource, open_source
from spheregen.data.latent_cache import is_latent_cache
from spheregen.errors import ConfigError, DataError
from spheregen.evaluation.images import RealImages
from spheregen.evaluation.run import HELD_OUT
from spheregen.training.feeding import open_data
from spheregen.training.recipe import Recipe

RECONSTRUCTED = 256
"""Real images that go there and back."""


class Sources:
    """Sources of images by recipe, each opened once.

    Args:
        images: what samples are compared with; None: what is trained on.
    """

    def __init__(self, images: str | None = None) -> None:
        self.images = images
        self._open: dict[tuple[str, str, bool], ImageSource] = {}

    def count(self, recipe: Recipe) -> int:
        """How many images, or latents of images, a recipe trains on.

        Raises:
            DataError: they cannot be had.
            ConfigError: they have other classes than the recipe asks for, or are latents where images are wanted.
        """
        return open_data(recipe).count

    def compared(self, recipe: Recipe, split: str | None) -> RealImages:
        """What samples are compared with, brought to size as `spheregen evaluate` does it.

        Args:
            split: None takes what is trained on.
        """
        return RealImages(self._get(recipe, split or recipe.data.split), _geometry(recipe), workers=recipe.data.workers)

    def held_out(self, recipe: Recipe) -> RealImages:
        """Images that the model never saw, where the data has such, else some of those it was trained on."""
        source = self._get(recipe, recipe.data.split)
        for split in HELD_OUT:
            with contextlib.suppress(DataError):
                if recipe.data.split not in (split, "all"):
                    source = self._get(recipe, split)
                    break
        return RealImages(source, _geometry(recipe), limit=RECONSTRUCTED)

    def _get(self, recipe: Recipe, split: str) -> ImageSource:
        source = self.images or recipe.data.source
        assert source is not None  # the plan refuses others
        if is_latent_cache(source):
            raise ConfigError(f"{source} holds latents: name the images that samples are compared with, by --images")
        key = (source, split, recipe.data.stream)
        if key not in self._open:
            self._open[key] = open_source(source, split=split, stream=recipe.data.stream)
        return self._open[key]


def _geometry(recipe: Recipe) -> ImageOptions:
    """How real images are brought to size where they are compared: held-out images are cropped the ADM way."""
    return ImageOptions(
        image_size=recipe.model.image_size,
        channels=recipe.model.image_channels,
        fit=recipe.data.fit,
        background=recipe.data.background,
    )
