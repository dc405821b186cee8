"""What a recipe is trained on: images, or a latent cache, each as batches that are functions of the step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from spheregen.data import Batch, ImageOptions, Progress, TrainingBatches, open_source
from spheregen.data.latent_cache import LatentBatches, LatentCache, is_latent_cache
from spheregen.distributed import World
from spheregen.errors import ConfigError
from spheregen.family.recipe import Recipe
from spheregen.family.registry import member_of_kind
from spheregen.folders.tokenizers import TOKENIZER, open_tokenizer
from spheregen.protocol import Tokenizer


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
        """One line for each image that was left out."""

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

    def options(self, recipe: Recipe) -> dict[str, Any]:
        """Return what batches of all kinds take."""
        return {
            "batch_size": recipe.train.batch_size,
            "seed": recipe.train.seed,
            "flips": recipe.data.flips,
            "cache_bytes": recipe.data.cache_mb << 20,
            "prefetch": recipe.data.prefetch,
            "steps": max(self.steps, self.start),
            "start_step": self.start,
            "rank": self.world.rank,
            "world_size": self.world.size,
            "device": self.device,
        }


@dataclass(frozen=True, kw_only=True)
class TrainingData:
    """The data of a run, opened."""

    name: str
    """For people."""
    count: int
    """Images, before any is skipped."""
    class_names: tuple[str, ...]
    """Empty where there are no labels."""
    preprocessing: Mapping[str, Any]
    """How images were brought to the model's size, for `ModelInfo`."""
    batches: Callable[[Feed], Batches]
    """The batches of a run; all processes must ask together."""
    tokenizer: Callable[[], Tokenizer | None] = lambda: None
    """Opens the tokenizer of its latents; None of images."""


def open_data(recipe: Recipe) -> TrainingData:
    """Open the data of a recipe.

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
    if member_of_kind(recipe.kind).inputs == "latents":
        if not cached:
            raise ConfigError(
                f"the recipe {recipe.name} is trained on a latent cache, and {source} is none: make one by "
                f"`spheregen encode TOKENIZER {source} --out CACHE` and name it with --data"
            )
        return _latents(recipe, LatentCache(Path(source)))
    if cached:
        raise ConfigError(f"{source} is a latent cache, but the recipe {recipe.name} is trained on images; name those")
    return _images(recipe, source)


def _images(recipe: Recipe, name: str) -> TrainingData:
    """Open images, which are decoded, cropped and mirrored as the recipe says."""
    settings = recipe.data
    source = open_source(name, split=settings.split, stream=settings.stream)
    _check_classes(recipe, source.name, source.class_names)

    def batches(feed: Feed) -> Batches:
        return TrainingBatches(
            source,
            image_options(recipe),
            on_error=settings.on_error,
            workers=settings.workers,
            shuffle=settings.shuffle,
            validate=settings.check,
            gather=feed.world.gather_objects,
            remembered=feed.remembered,
            progress=feed.progress,
            **feed.options(recipe),
        )

    return TrainingData(
        name=source.name,
        count=len(source),
        class_names=tuple(source.class_names),
        preprocessing={"fit": settings.fit, "background": list(settings.background)},
        batches=batches,
    )


def _latents(recipe: Recipe, cache: LatentCache) -> TrainingData:
    """Open the latents of a cache, of which flips are second views."""
    config, plan = recipe.model, cache.index.plan
    _check_classes(recipe, plan.source_name, cache.class_names)
    tokens, channels = member_of_kind(recipe.kind).input_shape(config)
    cache.check_match(latent_shape=(tokens, channels), image_size=config.image_size)

    def tokenizer() -> Tokenizer:
        opened = open_tokenizer(cache.path / TOKENIZER)
        cache.check_match(tokenizer_fingerprint=opened.fingerprint)
        return opened.tokenizer

    return TrainingData(
        name=plan.source_name,
        count=cache.count,
        class_names=tuple(cache.class_names),
        preprocessing={"fit": plan.image.fit, "background": list(plan.image.background)},
        batches=lambda feed: LatentBatches(cache, **feed.options(recipe)),
        tokenizer=tokenizer,
    )


def image_options(recipe: Recipe) -> ImageOptions:
    """Return how a recipe turns images into tensors."""
    return ImageOptions(
        image_size=recipe.model.image_size,
        channels=recipe.model.image_channels,
        fit=recipe.data.fit,
        background=recipe.data.background,
        resize=recipe.data.resize,
    )


def _check_classes(recipe: Recipe, name: str, class_names: Sequence[str]) -> None:
    """Refuse data whose classes are not those that a model asks for."""
    wanted, given = recipe.model.num_classes, len(class_names)
    if not wanted or wanted == given:
        return
    if not given:
        raise ConfigError(
            f"{name} has no labels, but the recipe asks for {wanted} classes; sort the images into one folder a "
            "class, or train without classes: --set model.num_classes=0"
        )
    raise ConfigError(f"{name} has {given} classes, but the recipe asks for {wanted}: --set model.num_classes={given}")
