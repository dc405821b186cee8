"""The images of a study: what is trained on, what samples are compared with, what goes there and back."""

from __future__ import annotations

import contextlib

from spheregen.data import ImageOptions, ImageSource, open_source
from spheregen.errors import DataError
from spheregen.evaluation.images import RealImages
from spheregen.evaluation.run import HELD_OUT
from spheregen.training.recipe import Recipe
from spheregen.training.trainer import check_classes

RECONSTRUCTED = 256
"""Real images that go there and back."""


class Sources:
    """Sources of images by recipe, each opened once."""

    def __init__(self) -> None:
        self._open: dict[tuple[str, str, bool], ImageSource] = {}

    def training(self, recipe: Recipe) -> ImageSource:
        """What a recipe trains on.

        Raises:
            DataError: it cannot be had.
            ConfigError: it has other classes than the recipe asks for.
        """
        source = self._get(recipe, recipe.data.split)
        check_classes(recipe, source)
        return source

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
        assert recipe.data.source is not None  # the plan refuses others
        key = (recipe.data.source, split, recipe.data.stream)
        if key not in self._open:
            self._open[key] = open_source(recipe.data.source, split=split, stream=recipe.data.stream)
        return self._open[key]


def _geometry(recipe: Recipe) -> ImageOptions:
    """How real images are brought to size where they are compared: held-out images are cropped the ADM way."""
    return ImageOptions(
        image_size=recipe.model.image_size,
        channels=recipe.model.image_channels,
        fit=recipe.data.fit,
        background=recipe.data.background,
    )
