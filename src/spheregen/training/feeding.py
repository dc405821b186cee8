"""The data of a run, opened: images, or a latent cache, each as batches that are functions of the step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from spheregen.data import ImageOptions, Progress, TrainingBatches, open_source
from spheregen.data.captions import (
    CaptionLabels,
    Captions,
    read_captions,
    vectors_as_needed,
)
from spheregen.data.latent_cache import LatentBatches, LatentCache, is_latent_cache
from spheregen.data.loader import Batches
from spheregen.data.source import notes, renumbered
from spheregen.data.text_cache import cached_vectors
from spheregen.distributed import World
from spheregen.errors import ConfigError
from spheregen.family.recipe import Recipe
from spheregen.family.registry import member_of_kind
from spheregen.folders.tokenizers import TOKENIZER, open_tokenizer
from spheregen.networks.text import TextEncoder, open_text_encoder
from spheregen.protocol import Tokenizer


@dataclass(frozen=True, kw_only=True)
class TrainingData:
    """The data of a run, opened."""

    recipe: Recipe
    source: Any
    """An `ImageSource` or a `LatentCache`."""
    name: str
    """For people."""
    count: int
    """Images, before any is skipped."""
    class_names: tuple[str, ...]
    """Empty where there are no labels."""
    preprocessing: Mapping[str, Any]
    """How images were brought to the model's size, for `ModelInfo`."""
    captions: Captions | None = None
    """Of a model that follows texts, by the numbers of images in their source."""

    @cached_property
    def encoder(self) -> TextEncoder | None:
        """The text encoder; None of a model that follows no texts. It may have to be downloaded."""
        recipe = self.recipe
        return None if self.captions is None else open_text_encoder(recipe.text, recipe.model.text_width)

    @property
    def notes(self) -> list[str]:
        """Lines for the user: what is not read, and the like."""
        if isinstance(self.source, LatentCache):
            return []
        if self.captions is None:
            return notes(self.source)
        missing = int((self.captions.counts == 0).sum())
        found = notes(self.source, captions=True)
        if self.captions.of_classes:
            found.append(f"no captions: the names of classes are told, such as {self.captions.text(0)!r}")
        return [*found, f"{missing} of {self.count} images have no caption; they teach the null"] if missing else found

    @property
    def facts(self) -> dict[str, Any]:
        """What a run remembers of its data, to say what differs in others."""
        told = {} if self.captions is None else {"captions": self.captions.fingerprint}
        if isinstance(self.source, LatentCache):
            return {"images": self.count, "classes": list(self.class_names), **told}
        source = self.source
        return {
            **told,
            "images": self.count, "classes": list(self.class_names), "bytes": source.encoded_bytes,
            "names, sizes or labels": source.earlier_fingerprint,
        }  # fmt: skip

    def tokenizer(self) -> Tokenizer | None:
        """Open the tokenizer of the latents; None of images."""
        if not isinstance(self.source, LatentCache):
            return None
        opened = open_tokenizer(self.source.path / TOKENIZER)
        self.source.check_match(tokenizer_fingerprint=opened.fingerprint)
        return opened.tokenizer

    def batches(
        self, world: World, device: torch.device, *, start: int, steps: int, remembered: Path, progress: Progress
    ) -> Batches:
        """Return the batches of a run of `steps` from step `start` on; all processes must ask together.

        Args:
            remembered: where it is kept which images were found to be bad.
        """
        data, train = self.recipe.data, self.recipe.train
        options: dict[str, Any] = {
            "batch_size": train.batch_size,
            "seed": train.seed,
            "flips": data.flips,
            "cache_bytes": data.cache_mb << 20,
            "prefetch": data.prefetch,
            "steps": max(steps, start),
            "start_step": start,
            "rank": world.rank,
            "world_size": world.size,
            "device": device,
        }
        if self.captions is not None and self.encoder is not None:
            if self.encoder.slow:
                vectors = cached_vectors(self.captions, self.encoder, world=world, device=device, progress=progress)
            else:
                vectors = vectors_as_needed(self.captions, self.encoder)
            options["captions"] = CaptionLabels(self.captions, vectors, train.seed)
        if isinstance(self.source, LatentCache):
            return LatentBatches(self.source, **options)
        return TrainingBatches(
            self.source,
            image_options(self.recipe),
            on_error=data.on_error,
            workers=data.workers,
            shuffle=data.shuffle,
            validate=data.check,
            gather=world.gather_objects,
            remembered=remembered,
            progress=progress,
            **options,
        )


def open_data(recipe: Recipe, class_names: Sequence[str] = ()) -> TrainingData:
    """Open the data of a recipe; classes that a run knows already (`class_names`) keep their order.

    Raises:
        ConfigError: it names none, or what it names has other classes, or latents where images are wanted.
        DataError: they cannot be read.
    """
    name, config, member = recipe.data.source, recipe.model, member_of_kind(recipe.kind)
    if name is None:
        raise ConfigError(
            f"the recipe {recipe.name} brings no data: name a folder, files or a Hub data set with --data"
        )
    cached = is_latent_cache(Path(name))
    if cached != (member.inputs == "latents"):
        raise ConfigError(
            f"{name} is a latent cache, but the recipe {recipe.name} is trained on images; name those"
            if cached
            else f"the recipe {recipe.name} is trained on a latent cache, and {name} is none: make one by "
            f"`spheregen encode TOKENIZER {name} --out CACHE` and name it with --data"
        )
    source: Any
    if cached:
        source = LatentCache(Path(name))
        name, image = source.index.plan.source_name, source.index.plan.image
        source.check_match(latent_shape=member.input_shape(config), image_size=config.image_size)
    else:
        source = open_source(name, split=recipe.data.split, stream=recipe.data.stream)
        if set(class_names) == set(source.class_names):
            source = renumbered(source, class_names)
        name, image = source.name, recipe.data
    captions = None
    if (tokens := getattr(config, "text_tokens", 0)) and recipe.text.tokens != tokens:
        raise ConfigError(f"model.text_tokens is {tokens} and text.tokens {recipe.text.tokens}; set both alike")
    if getattr(config, "text_width", 0):
        captions = source.captions() if cached else read_captions(source, recipe.data.captions, recipe.data.templates)
    wanted, given = config.num_classes, len(source.class_names)
    if wanted and wanted != given:
        cure = "sort the images into one folder a class, or train without classes: --set model.num_classes=0"
        raise ConfigError(
            f"{name} has {given or 'no'} classes, but the recipe asks for {wanted}: "
            + (f"--set model.num_classes={given}" if given else cure)
        )
    return TrainingData(
        recipe=recipe,
        source=source,
        name=name,
        count=source.count if cached else len(source),
        class_names=tuple(source.class_names),
        preprocessing={"fit": image.fit, "background": list(image.background)},
        captions=captions,
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
