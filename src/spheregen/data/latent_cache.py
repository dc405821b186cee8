"""Latents of a data set, encoded once (`spheregen.data.encoding`) and mapped while a latent denoiser trains.

A cache is a folder of `index.json`, safetensors shards and a copy of the tokenizer. From its first moment on the index
holds the plan, so that the same command continues and another one is refused; its other parts come with the last shard.
Each shard covers consecutive images of the source:

    latents   (n, views, N, d)  bf16 or float32
    indices   (n,)  int64, numbers of the images in the source, ascending
    labels    (n,)  int64 class ids; only where the source has classes
    skipped   (m,)  uint8, JSON: the images that the shard covers and that could not be read; if there are any

The captions of all images of the source, where they were asked for, are in `captions.safetensors`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import TypeAdapter
from safetensors import SafetensorError, safe_open
from torch import Tensor

from spheregen.data.captions import CaptionLabels, Captions
from spheregen.data.decoding import BadImage
from spheregen.data.loader import Batch, Batches, to_device, with_captions
from spheregen.data.order import SampleOrder, flip_draws
from spheregen.data.source import digest
from spheregen.errors import ConfigError, DataError, ModelFileError, check_choices
from spheregen.files import parse_json, write_json
from spheregen.pixels import ImageOptions
from spheregen.tensors import load_tensors

Dtype = Literal["bf16", "float32"]
TORCH_DTYPES = {"bf16": torch.bfloat16, "float32": torch.float32}

INDEX = "index.json"
CAPTIONS = "captions.safetensors"
FORMAT, VERSION = "spheregen latent cache", 1  # which an index begins with


@dataclass(frozen=True, kw_only=True)
class CachePlan:
    """The future contents of a cache, known before the first image is encoded."""

    tokenizer_name: str  # as it was asked for
    tokenizer_fingerprint: str
    source_name: str
    split: str
    source_fingerprint: str  # of all images of the source, bad ones included
    source_images: int  # all of them
    class_names: tuple[str, ...]  # name of class i at place i; empty = unlabelled
    image: ImageOptions  # how images were brought to the tokenizer's size
    latent_shape: tuple[int, int]  # (N, d)
    dtype: Dtype  # of the latents on disk
    views: int  # latents of each image: 1, or 2 = the second is that of its mirror image
    precision: Literal["float32", "bf16"]  # in which the tokenizer computed; bf16 is autocast
    shard_images: int  # images of the source that a shard covers, >= 1; the last shard may cover fewer

    def __post_init__(self) -> None:
        check_choices(self)

    @property
    def shards(self) -> int:
        """Number of shards."""
        return -(-self.source_images // self.shard_images)

    def covered(self, shard: int) -> range:
        """Numbers in the source of the images of a shard."""
        start = shard * self.shard_images
        return range(start, min(start + self.shard_images, self.source_images))

    @property
    def settings(self) -> dict[str, Any]:
        """All that decides what a shard holds, by the names that users know; names and paths decide nothing."""
        return {
            "tokenizer": self.tokenizer_fingerprint,
            "data": self.source_fingerprint,
            **dataclasses.asdict(self.image),
            "background": list(self.image.background),
            "latent_shape": self.latent_shape,
            "dtype": self.dtype,
            "flips": self.views == 2,
            "precision": self.precision,
            "shard_images": self.shard_images,
        }

    @property
    def key(self) -> str:
        """A fingerprint of `settings`, which every shard carries."""
        return _fingerprint(self.settings)

    def differences(self, other: CachePlan) -> list[str]:
        """Return one `name: this -> other` for each setting that differs."""
        mine, theirs = (
            plan.settings
            | {
                "tokenizer": f"{plan.tokenizer_name} ({plan.tokenizer_fingerprint[:8]})",
                "data": f"{plan.source_name}/{plan.split} ({plan.source_fingerprint[:8]})",
            }
            for plan in (self, other)
        )
        differing = [name for name, value in self.settings.items() if value != other.settings[name]]
        return [f"{name}: {mine[name]} -> {theirs[name]}" for name in differing]


@dataclass(frozen=True, kw_only=True)
class ShardRecord:
    """One shard of a finished cache."""

    count: int  # images in it; fewer than it covers where some could not be read
    bytes: int  # size of the file
    sha256: str  # of the file, in hexadecimal


@dataclass(frozen=True, kw_only=True)
class CacheIndex:
    """The contents of a cache; all but the plan come with the last shard."""

    plan: CachePlan
    data_fingerprint: str = ""  # of the images that are in it, see `part_fingerprint`
    shards: tuple[ShardRecord, ...] = ()
    skipped: tuple[BadImage, ...] = ()  # images that could not be read, by number

    @property
    def count(self) -> int:
        """Images in the cache."""
        return sum(shard.count for shard in self.shards)

    @property
    def bytes(self) -> int:
        """Size of all shards together."""
        return sum(shard.bytes for shard in self.shards)

    @property
    def fingerprint(self) -> str:
        """Of tokenizer, images and settings; where the shards end does not matter, nor where anything lies."""
        settings = self.plan.settings | {"data": self.data_fingerprint}
        del settings["shard_images"]
        return _fingerprint(settings)


def shard_name(shard: int) -> str:
    return f"shard-{shard:05d}.safetensors"


def is_latent_cache(path: str | Path) -> bool:
    """Tell the folder of a latent cache, finished, unfinished or broken, from all other places."""
    try:
        with (Path(path) / INDEX).open("rb") as file:
            return FORMAT.encode() in file.read(200)
    except (OSError, ValueError):  # no such file, a name that is too long, no permission
        return False


def read_index(folder: Path) -> CacheIndex | None:
    """Read the index of a cache, finished or not; None where there is none."""
    path = folder / INDEX
    if not path.exists():
        return None
    try:
        values = parse_json(path.read_text(encoding="utf-8"))
        if (values["format"], values["version"]) != (FORMAT, VERSION):
            raise ValueError(f"it is of format {values['version']}, and this spheregen reads {VERSION}")
        return TypeAdapter(CacheIndex).validate_python(values)
    except (OSError, ValueError, KeyError, TypeError) as error:  # pydantic's is a ValueError
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{path} is broken ({reason}); delete the folder and encode again") from error


def write_index(folder: Path, index: CacheIndex) -> None:
    """Write the index of a cache, finished or not."""
    about = {"format": FORMAT, "version": VERSION, "fingerprint": index.fingerprint, "count": index.count}
    write_json(folder / INDEX, about | dataclasses.asdict(index))


def open_shard(folder: Path, plan: CachePlan, shard: int) -> dict[str, Tensor]:
    """Map the tensors of a shard; of latents, only the parts that are used are read from disk.

    Raises:
        ValueError: it is missing, broken, or no such shard of such a cache. The message says which, without the path.
    """
    try:
        with safe_open(folder / shard_name(shard), "pt") as file:
            key = (file.metadata() or {}).get("key")
            tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            numbers = [*tensors["indices"].tolist(), *(image.index for image in skipped_images(tensors))]
    except FileNotFoundError as error:
        raise ValueError("it is missing") from error
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"it is broken: {' '.join(str(error).split())}") from error
    if key != plan.key:
        raise ValueError("it belongs to another cache")
    if sorted(numbers) != list(plan.covered(shard)):
        raise ValueError("it does not hold the images that it should")
    return tensors


def skipped_images(tensors: Mapping[str, Tensor]) -> list[BadImage]:
    """Return the images that a shard covers and lacks."""
    if "skipped" not in tensors:
        return []
    return [BadImage(**image) for image in parse_json(tensors["skipped"].numpy().tobytes())]


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class LatentCache:
    """Latents of images, numbered from 0 to count - 1 in the order of the source.

    Opening reads labels, not latents; the system maps the latents into memory and lets go of them as it likes.

    Raises:
        DataError: there is no cache, it is unfinished, of another version, or broken: its index or a shard, by name.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        index = read_index(self.path)
        if index is None:
            raise DataError(f"no latent cache at {path}; make one with `spheregen encode TOKENIZER SRC --out {path}`")
        if not index.shards:
            raise DataError(f"the latent cache {path} is unfinished; the `spheregen encode` that began it continues it")
        self.index, plan = index, index.plan
        self.count = self.index.count
        self.latent_shape = plan.latent_shape  # (N, d)
        self.views = plan.views  # latents of each image; with 2 the second is that of its mirror image
        self.image_size = plan.image.image_size  # S in pixels, of the images that were encoded
        self.class_names = plan.class_names  # name of class i at place i; empty = unlabelled
        self.fingerprint = self.index.fingerprint  # of tokenizer, images and settings
        self.skipped = tuple(image.reason for image in self.index.skipped)  # a line for each image that is not here
        self.dtype = TORCH_DTYPES[plan.dtype]
        if len(self.index.shards) != plan.shards:
            raise self._broken(f"its index lists {len(self.index.shards)} shards, not {plan.shards}")
        shards = [self._open(shard) for shard in range(plan.shards)]
        self.indices = torch.cat([shard["indices"] for shard in shards])  # (count,) int64, ascending, in the source
        self.labels = torch.cat([shard["labels"] for shard in shards]) if self.class_names else None  # (count,) int64
        self._rows = [shard["latents"].flatten(0, 1).flatten(1) for shard in shards]  # each (n * views, N * d)
        self._starts = torch.tensor([0, *(len(rows) for rows in self._rows)], device="cpu").cumsum(0)

    @property
    def nbytes(self) -> int:
        """Bytes of all latents together, as they are stored."""
        return sum(rows.nbytes for rows in self._rows)

    def captions(self) -> Captions:
        """Read the captions of all images of the source, by their numbers there.

        Raises:
            DataError: there are none, or their file is broken.
        """
        path = self.path / CAPTIONS
        if not path.is_file():
            raise DataError(
                f"the latent cache {self.path} has no captions; the `spheregen encode` that made it adds them with "
                "--set captions=auto"
            )
        try:
            return Captions.of_tensors(load_tensors(path))
        except (ModelFileError, KeyError) as error:
            raise DataError(f"{path} is broken ({error}); encode with --set captions=auto again") from error

    def rows(self, numbers: Tensor | Sequence[int], views: Tensor | Sequence[int] | None = None) -> Tensor:
        """Return latents (B, N, d) in the type in which they are stored.

        Args:
            numbers: (B,) of images, 0 .. count - 1.
            views: (B,) of each: 0, or 1 for that of the mirror image; None = 0 for all.
        """
        numbers = torch.as_tensor(numbers, dtype=torch.int64, device="cpu")
        views = torch.zeros_like(numbers) if views is None else torch.as_tensor(views, dtype=torch.int64, device="cpu")
        places = numbers * self.views + views
        shards = torch.searchsorted(self._starts, places, right=True) - 1
        found = torch.empty(len(numbers), *self.latent_shape, dtype=self.dtype, device="cpu")
        for shard in shards.unique().tolist():
            here = (shards == shard).nonzero()[:, 0]
            # not by two indices at once, which torch copies number by number
            rows = self._rows[shard].index_select(0, places[here] - self._starts[shard])
            found.flatten(1).index_copy_(0, here, rows)
        return found

    def load(self) -> Tensor:
        """Read all latents into memory: (count, views, N, d) in the type in which they are stored."""
        return torch.cat(self._rows).view(self.count, self.views, *self.latent_shape)

    def check_match(
        self,
        *,
        tokenizer_fingerprint: str | None = None,
        latent_shape: tuple[int, int] | None = None,
        image_size: int | None = None,
    ) -> None:
        """Refuse with a DataError a cache that is not the one that is wanted; None = any will do."""
        plan = self.index.plan
        known = (
            (plan.tokenizer_fingerprint, tokenizer_fingerprint, f"latents of the tokenizer {plan.tokenizer_name}"),
            (plan.latent_shape, latent_shape and tuple(latent_shape), "latents of (tokens, channels)"),
            (self.image_size, image_size, "images of a size in pixels"),
        )
        problems = [f"{what}: {there}, not {wanted}" for there, wanted, what in known if wanted not in (None, there)]
        if problems:
            raise DataError(f"the latent cache {self.path} holds {'; '.join(problems)}; make one by `spheregen encode`")

    def _open(self, shard: int) -> dict[str, Tensor]:
        path, record = self.path / shard_name(shard), self.index.shards[shard]
        try:
            if path.is_file() and path.stat().st_size != record.bytes:
                raise ValueError(f"it has {path.stat().st_size} bytes, not {record.bytes}")
            return open_shard(self.path, self.index.plan, shard)
        except ValueError as error:
            raise self._broken(f"{path.name}: {error}") from error

    def _broken(self, reason: str) -> DataError:
        return DataError(
            f"the latent cache {self.path} is broken ({reason}); the `spheregen encode` that made it mends it"
        )


class LatentBatches(Batches):
    """Batches of latents, in the order of `TrainingBatches` over the same images, fully shuffled, and with its flips.

    A cache of up to `cache_bytes` is read into memory here; rows of a larger one are read from disk, `prefetch` batches
    ahead. The other arguments are those of `TrainingBatches`; flips take the latent of the mirror image.

    Raises:
        ConfigError: an argument is impossible, or flips is on and the cache has one view of each image.
    """

    def __init__(
        self,
        cache: LatentCache,
        *,
        batch_size: int,
        steps: int,
        seed: int = 0,
        flips: bool = False,
        cache_bytes: int = 2 << 30,
        start_step: int = 0,
        rank: int = 0,
        world_size: int = 1,
        prefetch: int = 2,
        device: torch.device | None = None,
        captions: CaptionLabels | None = None,
    ) -> None:
        super().__init__(seed, steps, start_step, prefetch, device, flips=flips)
        if flips and cache.views < 2:
            raise ConfigError(f"flips is on: encode {cache.path} again with --flips, or set data.flips=false")
        self.cache = cache
        self.captions, self.count = captions, cache.count
        self.fingerprint = with_captions(cache.fingerprint, captions)
        self.skipped, self.class_names = cache.skipped, cache.class_names
        self._indices = cache.indices.numpy()
        self.order = SampleOrder(self._indices, batch_size=batch_size, seed=seed, rank=rank, world_size=world_size)
        self._latents: Tensor | None = None  # (count * views, N, d) as they are stored
        if cache.nbytes <= cache_bytes:
            self._latents = self.kept(cache.load().flatten(0, 1))

    def __iter__(self) -> Iterator[Batch]:
        steps = range(self.start_step, self.steps)
        if self._latents is not None:
            yield from map(self.batch, steps)
            return
        ahead: deque[Future[Batch]] = deque()
        executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="spheregen-latents")
        try:
            for step in steps:
                ahead.append(executor.submit(self.batch, step))
                if len(ahead) > self.prefetch:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            executor.shutdown(cancel_futures=True)

    def batch(self, step: int) -> Batch:
        """Return the batch of any step >= 0; `inputs` are latents (B, N, d) in float32."""
        order = self.order.batch(step)
        numbers = torch.from_numpy(np.searchsorted(self._indices, order.indices))
        views = torch.from_numpy(flip_draws(self.seed, order)).long() if self.flips else torch.zeros_like(numbers)
        if self._latents is None:
            latents = self.cache.rows(numbers, views)
        else:
            latents = self._latents[to_device(numbers * self.cache.views + views, self._latents.device)]
        return Batch(
            inputs=to_device(latents, self.device).float(),
            labels=self.labels_of(order, None if self.cache.labels is None else self.cache.labels[numbers]),
            indices=torch.from_numpy(order.indices),
            step=step,
            texts=self.texts_of(order),
        )


def _fingerprint(settings: Mapping[str, Any]) -> str:
    return digest(json.dumps(settings, sort_keys=True).encode())
