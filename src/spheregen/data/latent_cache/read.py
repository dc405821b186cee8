"""A finished latent cache, mapped: rows are gathered from disk as they are asked for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from spheregen.data.latent_cache.index import read_index, shard_name
from spheregen.data.latent_cache.shards import TORCH_DTYPES, MappedShard, file_sha256, open_shard
from spheregen.errors import DataError


class LatentCache:
    """Latents of images, numbered from 0 to count - 1 in the order of the source.

    Opening reads labels, not latents; the system maps the latents into memory and lets go of them as it likes.

    Attributes:
        index: what the cache says about itself.
        indices: (count,) int64, the numbers of the images in the source, ascending.
        labels: (count,) int64 class ids; None = unlabelled.

    Raises:
        DataError: there is no cache, it is unfinished, of another version, or broken: its index or a shard, by name.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.index = read_index(self.path)
        plan = self.index.plan
        if len(self.index.shards) != plan.shards:
            raise self._broken(f"its index lists {len(self.index.shards)} shards, not {plan.shards}")
        shards = [self._open(shard) for shard in range(plan.shards)]
        self.indices = torch.cat([shard.indices for shard in shards])
        self.labels = torch.cat([s.labels for s in shards if s.labels is not None]) if plan.class_names else None
        self.dtype = TORCH_DTYPES[plan.dtype]
        self._rows = [shard.latents.flatten(0, 1).flatten(1) for shard in shards]  # each (n * views, N * d)
        self._starts = torch.tensor([0, *(len(shard.indices) for shard in shards)]).cumsum(0)

    @property
    def count(self) -> int:
        """Images."""
        return self.index.count

    @property
    def latent_shape(self) -> tuple[int, int]:
        """(N, d)."""
        return self.index.plan.latent_shape

    @property
    def views(self) -> int:
        """Latents of each image; with 2 the second is that of its mirror image."""
        return self.index.plan.views

    @property
    def image_size(self) -> int:
        """S in pixels, of the images that were encoded."""
        return self.index.plan.image.image_size

    @property
    def class_names(self) -> tuple[str, ...]:
        """Name of class i at place i; empty = unlabelled."""
        return self.index.plan.class_names

    @property
    def fingerprint(self) -> str:
        """Of tokenizer, images and settings."""
        return self.index.fingerprint

    @property
    def skipped(self) -> tuple[str, ...]:
        """One line for each image that could not be read and is not here."""
        return tuple(image.reason for image in self.index.skipped)

    @property
    def nbytes(self) -> int:
        """Of all latents together, as they are stored."""
        return sum(rows.nbytes for rows in self._rows)

    def rows(self, numbers: Tensor | Sequence[int], views: Tensor | Sequence[int] | None = None) -> Tensor:
        """Latents (B, N, d) in float32.

        Args:
            numbers: (B,) of images, 0 .. count - 1.
            views: (B,) of each: 0, or 1 for that of the mirror image; None = 0 for all.

        Raises:
            IndexError: there is no such image or view.
        """
        return self.stored_rows(numbers, views).float()

    def stored_rows(self, numbers: Tensor | Sequence[int], views: Tensor | Sequence[int] | None = None) -> Tensor:
        """`rows` in the type in which they are stored."""
        numbers = torch.as_tensor(numbers, dtype=torch.int64)
        views = torch.zeros_like(numbers) if views is None else torch.as_tensor(views, dtype=torch.int64)
        if len(numbers) and (int(numbers.min()) < 0 or int(numbers.max()) >= self.count):
            raise IndexError(f"the cache has images 0 to {self.count - 1}")
        if len(views) and (int(views.min()) < 0 or int(views.max()) >= self.views):
            raise IndexError(f"the cache has {self.views} views of each image")
        tokens, channels = self.latent_shape
        found = torch.empty(len(numbers), tokens * channels, dtype=self.dtype)
        shards = torch.searchsorted(self._starts, numbers, right=True) - 1
        places = (numbers - self._starts[shards]) * self.views + views
        for shard in shards.unique().tolist():
            here = (shards == shard).nonzero()[:, 0]
            # not by two indices at once, which torch copies number by number
            found.index_copy_(0, here, self._rows[shard].index_select(0, places[here]))
        return found.view(-1, tokens, channels)

    def load(self) -> Tensor:
        """All latents in memory, (count, views, N, d), in the type in which they are stored."""
        found = torch.empty(self.count, self.views, *self.latent_shape, dtype=self.dtype)
        flat = found.view(self.count * self.views, -1)
        for start, rows in zip((self._starts * self.views).tolist(), self._rows, strict=False):
            flat[start : start + len(rows)] = rows
        return found

    def check_match(
        self,
        *,
        tokenizer_fingerprint: str | None = None,
        latent_shape: tuple[int, int] | None = None,
        image_size: int | None = None,
    ) -> None:
        """Refuse a cache that is not the one that is wanted; None = any will do.

        Raises:
            DataError: names the cache, what it holds and what is wanted.
        """
        plan = self.index.plan
        problems = []
        if tokenizer_fingerprint is not None and tokenizer_fingerprint != plan.tokenizer_fingerprint:
            problems.append(
                f"latents of the tokenizer {plan.tokenizer_name} ({plan.tokenizer_fingerprint[:8]}), not of "
                f"{tokenizer_fingerprint[:8]}"
            )
        if latent_shape is not None and tuple(latent_shape) != plan.latent_shape:
            problems.append(f"latents of (tokens, channels) {plan.latent_shape}, not {tuple(latent_shape)}")
        if image_size is not None and image_size != self.image_size:
            problems.append(f"images of {self.image_size} px, not {image_size}")
        if problems:
            raise DataError(
                f"the latent cache {self.path} does not match: it holds {'; '.join(problems)}; use the one that "
                "belongs to this tokenizer, or make it with `spheregen encode`"
            )

    def verify(self) -> None:
        """Read all shards and compare their SHA-256 with the index.

        Raises:
            DataError: a shard has changed.
        """
        for shard, record in enumerate(self.index.shards):
            path = self.path / shard_name(shard)
            if file_sha256(path) != record.sha256:
                raise self._broken(f"{path.name} has changed since it was written")

    def _open(self, shard: int) -> MappedShard:
        path = self.path / shard_name(shard)
        record = self.index.shards[shard]
        try:
            if path.is_file() and path.stat().st_size != record.bytes:
                raise ValueError(f"it has {path.stat().st_size} bytes, not {record.bytes}")
            mapped = open_shard(path, self.index.plan, shard)
            if len(mapped.indices) != record.count:
                raise ValueError(f"it holds {len(mapped.indices)} images, not {record.count}")
        except ValueError as error:
            raise self._broken(f"{path.name}: {error}") from error
        return mapped

    def _broken(self, reason: str) -> DataError:
        return DataError(
            f"the latent cache {self.path} is broken ({reason}); the `spheregen encode` that made it restores shards "
            "that are missing or cut short, else delete the folder and encode again"
        )
