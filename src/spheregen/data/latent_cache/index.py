"""What a latent cache says about itself.

A cache is a folder of shards with `index.json`. Until the last shard is there, `unfinished.json` stands in its place:
it says what the cache is going to hold, so that the same command continues it and another one is refused.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from spheregen.data.decoding import BadImage
from spheregen.data.images import ImageOptions
from spheregen.data.sources import digest
from spheregen.errors import ConfigError, DataError
from spheregen.files import write_json

Dtype = Literal["bf16", "float32"]

INDEX, UNFINISHED = "index.json", "unfinished.json"
_FORMAT, _VERSION = "spheregen latent cache", 1


@dataclass(frozen=True, kw_only=True)
class CachePlan:
    """What a cache is going to hold, known before the first image is encoded.

    Raises:
        ConfigError: a value is outside the range given below.
    """

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
    precision: str  # in which the tokenizer computed: float32 or bf16 (autocast)
    shard_images: int  # images of the source that a shard covers, >= 1; the last shard may cover fewer

    def __post_init__(self) -> None:
        if self.dtype not in get_args(Dtype):
            raise ConfigError(f"dtype is {self.dtype!r}; choose one of {', '.join(get_args(Dtype))}")
        if self.precision not in ("float32", "bf16"):
            raise ConfigError(f"precision is {self.precision!r}; choose float32 or bf16")
        if self.shard_images < 1:
            raise ConfigError(f"shard_images is {self.shard_images}; give a number of images from 1 up")

    @property
    def shards(self) -> int:
        """How many there are."""
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
            "image_size": self.image.image_size,
            "channels": self.image.channels,
            "fit": self.image.fit,
            "resize": self.image.resize,
            "background": list(self.image.background),
            "latent_shape": list(self.latent_shape),
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
        """One `name: this -> other` for each setting that differs."""
        mine, theirs = self._readable(), other._readable()
        differing = [name for name, value in self.settings.items() if value != other.settings[name]]
        return [f"{name}: {mine[name]} -> {theirs[name]}" for name in differing]

    def _readable(self) -> dict[str, Any]:
        return self.settings | {
            "tokenizer": f"{self.tokenizer_name} ({self.tokenizer_fingerprint[:8]})",
            "data": f"{self.source_name}/{self.split} ({self.source_fingerprint[:8]})",
        }


@dataclass(frozen=True, kw_only=True)
class ShardRecord:
    """One shard of a finished cache."""

    count: int  # images in it; fewer than it covers where some could not be read
    bytes: int  # size of the file
    sha256: str  # of the file, in hexadecimal


@dataclass(frozen=True, kw_only=True)
class CacheIndex:
    """What a finished cache holds."""

    plan: CachePlan
    data_fingerprint: str  # of the images that are in it, see `part_fingerprint`
    shards: tuple[ShardRecord, ...]
    skipped: tuple[BadImage, ...]  # images that could not be read, by number
    mean: tuple[float, ...]  # (d,) of each channel over all images, views and tokens
    std: tuple[float, ...]  # (d,) likewise, the deviation of the population

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
    """The file name of a shard."""
    return f"shard-{shard:05d}.safetensors"


def is_latent_cache(path: str | Path) -> bool:
    """Whether a path is the folder of a latent cache, finished or not."""
    folder = Path(path)
    try:
        return any(_is_ours(folder / name) for name in (INDEX, UNFINISHED))
    except OSError:  # a name that is too long, no permission
        return False


def write_index(folder: Path, index: CacheIndex) -> None:
    """Finish a cache, whose shards are all there."""
    values = {
        "fingerprint": index.fingerprint,
        "count": index.count,
        "plan": dataclasses.asdict(index.plan),
        "data_fingerprint": index.data_fingerprint,
        "shards": [dataclasses.asdict(shard) for shard in index.shards],
        "skipped": [dataclasses.asdict(image) for image in index.skipped],
        "mean": index.mean,
        "std": index.std,
    }
    write_json(folder / INDEX, {"format": _FORMAT, "version": _VERSION, **values})
    (folder / UNFINISHED).unlink(missing_ok=True)


def write_plan(folder: Path, plan: CachePlan) -> None:
    """Begin a cache."""
    write_json(folder / UNFINISHED, {"format": _FORMAT, "version": _VERSION, "plan": dataclasses.asdict(plan)})


def read_index(folder: Path) -> CacheIndex:
    """The index of a finished cache.

    Raises:
        DataError: there is no cache, it is unfinished, its index is broken or of another version.
    """
    if not (folder / INDEX).exists():
        if (folder / UNFINISHED).exists():
            raise DataError(
                f"the latent cache {folder} is unfinished; the `spheregen encode` that began it continues it"
            )
        raise DataError(f"no latent cache at {folder}; make one with `spheregen encode TOKENIZER SRC --out {folder}`")
    values = _read(folder / INDEX)
    try:
        return CacheIndex(
            plan=_plan(values["plan"]),
            data_fingerprint=str(values["data_fingerprint"]),
            shards=tuple(ShardRecord(**shard) for shard in values["shards"]),
            skipped=tuple(BadImage(**image) for image in values["skipped"]),
            mean=tuple(map(float, values["mean"])),
            std=tuple(map(float, values["std"])),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise _broken(folder / INDEX, error) from error


def read_plan(folder: Path) -> CachePlan | None:
    """What a cache holds or is going to hold; None where there is none.

    Raises:
        DataError: what says so is broken or of another version.
    """
    for name in (INDEX, UNFINISHED):
        if (folder / name).exists():
            values = _read(folder / name)
            try:
                return _plan(values["plan"])
            except (KeyError, TypeError, ValueError) as error:
                raise _broken(folder / name, error) from error
    return None


def _plan(values: Mapping[str, Any]) -> CachePlan:
    tokens, channels = values["latent_shape"]
    image = values["image"]
    return CachePlan(
        **{
            **values,
            "class_names": tuple(map(str, values["class_names"])),
            "image": ImageOptions(**{**image, "background": tuple(image["background"])}),
            "latent_shape": (int(tokens), int(channels)),
        }
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _broken(path, error) from error
    if not isinstance(values, dict) or values.get("format") != _FORMAT:
        raise _broken(path, ValueError("it is no index of a latent cache"))
    if values.get("version") != _VERSION:
        raise DataError(
            f"the latent cache {path.parent} is of format {values.get('version')}, and this spheregen reads format "
            f"{_VERSION}; use the spheregen that wrote it, or encode again to another folder"
        )
    return values


def _broken(path: Path, error: Exception) -> DataError:
    reason = f"no {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
    return DataError(f"{path} is broken ({reason}); delete the folder {path.parent} and encode again")


def _is_ours(path: Path) -> bool:
    """Whether a file begins like one of ours, broken further on or not: others have an index.json, too."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return _FORMAT.encode() in file.read(200)


def _fingerprint(settings: Mapping[str, Any]) -> str:
    return digest(json.dumps(settings, sort_keys=True).encode())
