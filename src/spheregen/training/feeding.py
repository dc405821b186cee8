"""What a recipe is trained on: images, or a latent cache, each as batches that are functions of the step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from spheregen.data import Batch, ImageOptions, ImageSource, Progress, TrainingBatches, open_source
from spheregen.data.latent_cache import LatentBatches, LatentCache, is_latent_cache
from spheregen.distributed import World
from spheregen.errors import ConfigError
from spheregen.training.recipe import LatentDenoiserRecipe, Recipe


class Batches(Protocol):
    """The batches of a run."""

    @property
    def count(self) -> int:
        """Samples in an epoch."""

    @property
    def fingerprint(self) -> str:
        """Of the data, without what was skipped."""

    @property
    def skipped(self) -> Sequence[str]:
        """One line for each picture that was left out."""

    def __iter__(self) -> Iterator[Batch]:
        """The batches that are left."""

    def batch(self, step: int) -> Batch:
        """The batch of any step."""


@dataclass(frozen=True, kw_only=True)
class Feed:
    """How a run wants its batches."""

    device: torch.device
    world: World
    start: int
    """The first step."""
    steps: int
    """Length of the whole run."""
    remembered: Path
    """Where it is kept which images were found to be bad."""
    progress: Progress


class TrainingData(Protocol):
    """The data of a run, opened."""

    @property
    def name(self) -> str:
        """For people."""

    @property
    def count(self) -> int:
        """Images, before any is skipped."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Empty where there are no labels."""

    @property
    def preprocessing(self) -> Mapping[str, Any]:
        """How pictures were brought to the model's size, for `ModelInfo`."""

    def batches(self, feed: Feed) -> Batches:
        """The batches of a run; all processes must ask together."""


def open_data(recipe: Recipe) -> TrainingData:
    """The data of a recipe.

    Raises:
        ConfigError: it names none, or what it names has other classes, or latents where images are wanted.
        DataError: they cannot be read.
    """
    source = recipe.data.source
    if source is None:
        raise ConfigError(
            f"the recipe {recipe.name} brings no data: name a folder, files or a Hub data set with --data"
        )
    cached = is_latent_cache(Path(source))
    if isinstance(recipe, LatentDenoiserRecipe):
        if not cached:
            raise ConfigError(
                f"the recipe {recipe.name} is trained on a latent cache, and {source} is none: make one by "
                f"`spheregen encode TOKENIZER {source} --out CACHE` and name it with --data"
            )
        return CachedLatents(recipe, LatentCache(Path(source)))
    if cached:
        raise ConfigError(f"{source} is a latent cache, but the recipe {recipe.name} is trained on images; name those")
    return Images(recipe, open_source(source, split=recipe.data.split, stream=recipe.data.stream))


class Images:
    """Images of a source, decoded, cropped and mirrored as a recipe says."""

    def __init__(self, recipe: Recipe, source: ImageSource) -> None:
        check_classes(recipe.model.num_classes, source.name, source.class_names)
        self.recipe, self.source = recipe, source
        self.name, self.count = source.name, len(source)
        self.class_names = tuple(source.class_names)

    @property
    def preprocessing(self) -> Mapping[str, Any]:
        return {"fit": self.recipe.data.fit, "background": list(self.recipe.data.background)}

    def batches(self, feed: Feed) -> Batches:
        recipe = self.recipe
        return TrainingBatches(
            self.source,
            image_options(recipe),
            batch_size=recipe.train.batch_size,
            steps=max(feed.steps, feed.start),
            seed=recipe.train.seed,
            flips=recipe.data.flips,
            on_error=recipe.data.on_error,
            workers=recipe.data.workers,
            cache_bytes=recipe.data.cache_mb << 20,
            start_step=feed.start,
            rank=feed.world.rank,
            world_size=feed.world.size,
            shuffle=recipe.data.shuffle,
            validate=recipe.data.check,
            prefetch=recipe.data.prefetch,
            device=feed.device,
            gather=feed.world.gather_objects,
            remembered=feed.remembered,
            progress=feed.progress,
        )


class CachedLatents:
    """The latents of a cache, of which flips are second views."""

    def __init__(self, recipe: LatentDenoiserRecipe, cache: LatentCache) -> None:
        config = recipe.model
        check_classes(config.num_classes, cache.index.plan.source_name, cache.class_names)
        cache.check_match(latent_shape=(config.tokens, config.channels), image_size=config.image_size)
        self.recipe, self.cache = recipe, cache
        self.name, self.count = cache.index.plan.source_name, cache.count
        self.class_names = tuple(cache.class_names)

    @property
    def preprocessing(self) -> Mapping[str, Any]:
        image = self.cache.index.plan.image
        return {"fit": image.fit, "background": list(image.background)}

    def batches(self, feed: Feed) -> Batches:
        recipe = self.recipe
        return LatentBatches(
            self.cache,
            batch_size=recipe.train.batch_size,
            steps=max(feed.steps, feed.start),
            seed=recipe.train.seed,
            flips=recipe.data.flips,
            cache_bytes=recipe.data.cache_mb << 20,
            start_step=feed.start,
            rank=feed.world.rank,
            world_size=feed.world.size,
            prefetch=recipe.data.prefetch,
            device=feed.device,
        )


def image_options(recipe: Recipe) -> ImageOptions:
    """How a recipe turns pictures into tensors."""
    return ImageOptions(
        image_size=recipe.model.image_size,
        channels=recipe.model.image_channels,
        fit=recipe.data.fit,
        background=recipe.data.background,
        resize=recipe.data.resize,
    )


def check_classes(wanted: int, name: str, class_names: Sequence[str]) -> None:
    """Refuse data whose classes are not those that a model of `wanted` classes asks for.

    Raises:
        ConfigError: there are others, or none.
    """
    given = len(class_names)
    if not wanted or wanted == given:
        return
    if not given:
        raise ConfigError(
            f"{name} has no labels, but the recipe asks for {wanted} classes; sort the images into one folder a "
            "class, or train without classes: --set model.num_classes=0"
        )
    raise ConfigError(f"{name} has {given} classes, but the recipe asks for {wanted}: --set model.num_classes={given}")
