"""A latent cache holds what the tokenizer gives, whoever writes it, and its batches come in the order of the images."""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from spheregen.data import (
    Batch,
    ImageOptions,
    ImageSource,
    TrainingBatches,
    encoding,
    load_all,
    open_source,
    to_model_range,
)
from spheregen.data.encoding import write_latent_cache
from spheregen.data.latent_cache import CacheIndex, LatentBatches, LatentCache, is_latent_cache
from spheregen.distributed import World, joined_world
from spheregen.errors import ConfigError, DataError, SphereGenError
from tests.data.kinds import contents, same, write_folder
from tests.processes import world

SIZE = 6
OPTIONS = ImageOptions(image_size=SIZE)
BAD = ("ant/000.png", "bee/001.png", "wasp é/020.png")


class Pixels(nn.Module):
    """A tokenizer of which every pixel is a token, so that a latent tells exactly which image it is of."""

    image_shape = (3, SIZE, SIZE)
    latent_shape = (SIZE * SIZE, 3)
    dtype = torch.float32

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def encode(self, images: Tensor) -> Tensor:
        self.calls += 1
        return images.flatten(2).transpose(1, 2)

    def decode(self, latents: Tensor) -> Tensor:
        return latents.transpose(1, 2).reshape(-1, 3, SIZE, SIZE)


class Convolution(Pixels):
    """Patches of 2 x 2 pixels: 9 tokens of 5 channels, an odd number of numbers. It may fail after some batches."""

    latent_shape = (9, 5)

    def __init__(self, after: int | None = None, error: BaseException | None = None) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.network = nn.Conv2d(3, 5, 2, stride=2).requires_grad_(False).eval()
        self.after, self.error = after, error or DataError("stopped")

    def encode(self, images: Tensor) -> Tensor:
        if self.calls == self.after:
            raise self.error
        return super().encode(self.network(images))


def encode(tokenizer: Pixels, source: ImageSource, out: Path, *, shard_images: int = 7, **changes: Any) -> CacheIndex:
    """Write a cache of small shards."""
    settings: dict[str, Any] = {
        "tokenizer_name": "toy",
        "tokenizer_fingerprint": "conv" * 4 if isinstance(tokenizer, Convolution) else "pixels" * 4,
        "flips": True,
        "dtype": "float32",
        "batch_size": 3,
    }
    with mock.patch.object(encoding, "SHARD_IMAGES", shard_images):
        return write_latent_cache(tokenizer, source, changes.pop("options", OPTIONS), out, **(settings | changes))


def files_of(folder: Path) -> Mapping[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """23 images in three classes."""
    return write_folder(tmp_path / "pictures", contents())


@pytest.fixture
def source(pictures: Path) -> ImageSource:
    return open_source(pictures)


@pytest.fixture
def spoilt(pictures: Path) -> ImageSource:
    """The images, of which three are none."""
    for name in BAD:
        (pictures / name).write_bytes(b"junk")
    return open_source(pictures)


@pytest.fixture
def encoded(source: ImageSource, tmp_path: Path) -> Path:
    """All of them as pixels in both views, in four shards."""
    encode(Pixels(), source, tmp_path / "cache")
    return tmp_path / "cache"


# writing --------------------------------------------------------------------------------------------------------------


def test_shards_hold_latents_labels_and_numbers(encoded: Path, source: ImageSource) -> None:
    index = LatentCache(encoded).index
    assert sorted(files_of(encoded)) == ["index.json", *(f"shard-0000{number}.safetensors" for number in range(4))]
    found = [load_file(encoded / f"shard-{number:05d}.safetensors") for number in range(4)]
    images = to_model_range(load_all(source, OPTIONS).images)
    both = torch.stack([images, images.flip(-1)], 1).flatten(3).transpose(2, 3)
    assert torch.equal(torch.cat([shard["latents"] for shard in found]), both)
    assert torch.equal(torch.cat([shard["indices"] for shard in found]), torch.arange(23))
    assert source.labels is not None
    assert torch.equal(torch.cat([shard["labels"] for shard in found]), source.labels)
    assert [record.count for record in index.shards] == [7, 7, 7, 2]
    for record, (_, data) in zip(index.shards, list(files_of(encoded).items())[1:], strict=True):
        assert (record.bytes, record.sha256) == (len(data), hashlib.sha256(data).hexdigest())


def test_types_precision_views_and_shards(source: ImageSource, tmp_path: Path) -> None:
    def latents(name: str, **changes: Any) -> tuple[Tensor, str]:
        index = encode(Convolution(), source, tmp_path / name, **changes)
        return LatentCache(tmp_path / name).load(), index.fingerprint

    exact, fingerprint = latents("exact")
    assert torch.equal(exact.bfloat16(), latents("bf16", dtype="bf16")[0])
    coarse, _ = latents("autocast", precision="bf16")
    assert not torch.equal(exact, coarse) and torch.equal(coarse.bfloat16().float(), coarse)
    one, other = latents("one view", flips=False)
    assert torch.equal(one, exact[:, :1]) and other != fingerprint
    assert latents("large shards", shard_images=4096)[1] == fingerprint
    assert len(list((tmp_path / "large shards").iterdir())) == 2


@pytest.mark.parametrize(("after", "error"), [(0, DataError("stopped")), (9, KeyboardInterrupt())])
def test_an_interrupted_cache_continues(source: ImageSource, tmp_path: Path, after: int, error: BaseException) -> None:
    encode(whole := Convolution(), source, tmp_path / "whole")
    with pytest.raises(type(error)):
        encode(Convolution(after, error), source, tmp_path / "cache")
    shards = len(list((tmp_path / "cache").iterdir())) - 1
    assert shards == after // 6, "two views of three batches a shard; nothing half-written stays"
    assert is_latent_cache(tmp_path / "cache")
    with pytest.raises(DataError, match="unfinished"):
        LatentCache(tmp_path / "cache")
    (tmp_path / "cache" / ".shard-00003.safetensors.abc.tmp").write_bytes(b"left by a killed process")
    if after == 9:  # what versions before called it
        (tmp_path / "cache" / "index.json").rename(tmp_path / "cache" / "unfinished.json")
    encode(rest := Convolution(), source, tmp_path / "cache")
    assert files_of(tmp_path / "cache") == files_of(tmp_path / "whole")
    assert rest.calls == whole.calls - 6 * shards


def damage(path: Path, how: str) -> None:
    data = path.read_bytes()
    if how == "missing":
        path.unlink()
    elif how == "cut short":
        path.write_bytes(data[:-10])
    elif how == "another shard":
        path.write_bytes(path.with_name("shard-00001.safetensors").read_bytes())
    elif how == "another cache":
        path.write_bytes(data.replace(b'"key":"', b'"key":"f')[: len(data)])
    else:
        path.write_bytes(data[:-100] + bytes([data[-100] ^ 1]) + data[-99:])


def test_damage_is_found_and_mended(source: ImageSource, tmp_path: Path) -> None:
    encode(Convolution(), source, tmp_path / "cache")
    before = files_of(tmp_path / "cache")
    for how in ("missing", "cut short", "another shard", "another cache", "a bit"):
        damage(tmp_path / "cache" / "shard-00002.safetensors", how)
        encode(again := Convolution(), source, tmp_path / "cache", shard_images=4096)
        assert files_of(tmp_path / "cache") == before
        assert again.calls == 6
    encode(idle := Convolution(), source, tmp_path / "cache", batch_size=5, tokenizer_name="moved")
    assert idle.calls == 0 and files_of(tmp_path / "cache") == before


@pytest.mark.parametrize("shard_images", [1, 100])
def test_bad_images_are_fatal_or_left_out(spoilt: ImageSource, tmp_path: Path, shard_images: int) -> None:
    """Single shards and batches may be empty; the bytes of latents of 45 numbers need not be a multiple of 8."""
    with pytest.raises(DataError, match=BAD[0]):
        encode(Convolution(), spoilt, tmp_path / "cache", shard_images=shard_images, dtype="bf16")
    settings: dict[str, Any] = {"on_error": "skip", "shard_images": shard_images, "dtype": "bf16"}
    with pytest.raises(DataError, match="stopped"):
        encode(Convolution(9), spoilt, tmp_path / "cache", **settings)
    index = encode(Convolution(), spoilt, tmp_path / "cache", **settings)
    known, cache = load_all(spoilt, OPTIONS, on_error="skip"), LatentCache(tmp_path / "cache")
    assert torch.equal(cache.indices, known.indices)
    assert cache.labels is not None and known.labels is not None and torch.equal(cache.labels, known.labels)
    expected = Convolution().encode(to_model_range(known.images))
    torch.testing.assert_close(cache.rows(range(20)).float(), expected, atol=1e-2, rtol=1e-2)
    assert (index.data_fingerprint, cache.skipped) == (known.fingerprint, known.skipped)
    assert len(cache.skipped) == 3
    with pytest.raises(DataError, match="3 of 23"):
        encode(Convolution(), spoilt, tmp_path / "cache", shard_images=shard_images, dtype="bf16")


def test_another_cache_is_refused_by_what_differs(source: ImageSource, tmp_path: Path) -> None:
    encode(Convolution(), source, tmp_path / "cache")
    with pytest.raises(DataError):
        encode(Convolution(7), source, tmp_path / "half")
    other = ImageOptions(image_size=6, resize="bicubic", fit="pad", background=(0, 0, 0))
    for name in ("cache", "half"):
        before = files_of(tmp_path / name)
        for change, words in (
            ({"tokenizer_fingerprint": "another" * 3}, r"tokenizer: toy \(convconv\) -> toy \(anothera\)"),
            ({"dtype": "bf16"}, "dtype: float32 -> bf16"), ({"flips": False}, "flips: True -> False"),
            ({"precision": "bf16"}, "precision: float32 -> bf16"), ({"options": other}, "fit.*background.*resize"),
        ):  # fmt: skip
            with pytest.raises(ConfigError, match=words):
                encode(Convolution(), source, tmp_path / name, **change)
        assert files_of(tmp_path / name) == before


def test_other_data_and_other_folders_are_refused(source: ImageSource, pictures: Path, tmp_path: Path) -> None:
    encode(Convolution(), source, tmp_path / "cache")
    before = files_of(pictures / "bee")
    with pytest.raises(ConfigError, match="other files"):
        encode(Convolution(), source, pictures)
    assert files_of(pictures / "bee") == before
    (pictures / "bee" / "001.png").unlink()
    with pytest.raises(ConfigError, match="data: pictures/train"):
        encode(Convolution(), open_source(pictures), tmp_path / "cache")
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="is a file"):
        encode(Convolution(), source, tmp_path / "file")


def test_impossible_settings(source: ImageSource, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"batch_size": 0, "dtype": "float16", "precision": "fp8", "workers": -1}
    for name, value in settings.items():
        with pytest.raises(ConfigError, match=name):
            encode(Convolution(), source, tmp_path / "cache", **{name: value})
    with pytest.raises(ConfigError, match="mirror images of digits"):
        encode(Convolution(), open_source("digits"), tmp_path / "cache")
    with pytest.raises(ConfigError, match=r"\(3, 7, 7\)"):
        encode(Convolution(), source, tmp_path / "cache", options=ImageOptions(image_size=7))
    assert not (tmp_path / "cache").exists()


def test_tokenizers_that_are_wrong(source: ImageSource, tmp_path: Path) -> None:
    class Infinite(Pixels):
        def encode(self, images: Tensor) -> Tensor:
            latents = super().encode(images).clone()
            if self.calls == 3:
                latents[1, 0, 0] = float("nan")
            return latents

    class Wrong(Pixels):
        latent_shape = (9, 12)

    with pytest.raises(DataError, match="image 7 of pictures"):
        encode(Infinite(), source, tmp_path / "a", flips=False, shard_images=20)
    with pytest.raises(SphereGenError, match=r"\(36, 3\), not \(9, 12\)"):
        encode(Wrong(), source, tmp_path / "b")


# several processes ----------------------------------------------------------------------------------------------------


def work(folder: Path) -> None:
    """Write a cache, restore it after a loss, and begin another one in which the second process fails."""
    source = open_source(folder / "pictures")
    with joined_world("cpu") as ours:
        calls = []
        for lost in ((), (0, 2)):
            ours.wait_for_all()
            if ours.is_first:
                for shard in lost:
                    (folder / "cache" / f"shard-{shard:05d}.safetensors").unlink()
            ours.wait_for_all()
            tokenizer = Convolution()
            index = encode(tokenizer, source, folder / "cache", on_error="skip", world=ours)
            calls.append(ours.gather_objects(tokenizer.calls))
        print(json.dumps({"calls": calls, "fingerprint": index.fingerprint}), flush=True)
        failing = Convolution(None if ours.is_first else 9)
        encode(failing, source, folder / "stopped", on_error="skip", shard_images=4, world=ours)


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no distributed package")
def test_two_processes_write_the_bytes_of_one(spoilt: ImageSource, tmp_path: Path) -> None:
    processes = world(2, work, tmp_path)
    torch.set_num_threads(1)  # as they do, since the last bits of a convolution may depend on it
    index = encode(Convolution(), spoilt, tmp_path / "one", on_error="skip")
    codes, outputs, messages = zip(*(process.finish(150) for process in processes), strict=True)
    answers = [json.loads(output) for output in outputs]
    assert answers[0] == answers[1] == {"fingerprint": index.fingerprint, "calls": [[12, 8], [6, 6]]}
    assert files_of(tmp_path / "cache") == files_of(tmp_path / "one")
    assert codes == (1, 1)
    assert "DataError: stopped" in messages[1] and "process 1: stopped" in messages[0], "both say why"
    kept = len(list((tmp_path / "stopped").glob("shard-*")))
    assert 2 <= kept <= 5
    again = encode(rest := Convolution(), spoilt, tmp_path / "stopped", on_error="skip", shard_images=4)
    assert rest.calls <= 4 * (6 - kept) and again.fingerprint == index.fingerprint
    torch.testing.assert_close(LatentCache(tmp_path / "stopped").load(), LatentCache(tmp_path / "one").load())


def test_processes_of_different_settings_are_refused(source: ImageSource, tmp_path: Path) -> None:
    class Two(World):
        def gather_objects(self, value: Any) -> list[Any]:
            return [value, "another"]

    with pytest.raises(ConfigError, match="processes differ"):
        encode(Convolution(), source, tmp_path / "cache", world=Two(0, 2))


# reading --------------------------------------------------------------------------------------------------------------


def test_rows_are_those_of_the_whole(encoded: Path) -> None:
    opened = LatentCache(str(encoded))
    whole = opened.load()
    assert whole.shape == (23, 2, 36, 3) and opened.nbytes == whole.nbytes
    generator = torch.Generator().manual_seed(0)
    for count in (0, 1, 7, 60):
        numbers = torch.randint(23, (count,), generator=generator)
        views = torch.randint(2, (count,), generator=generator)
        assert torch.equal(opened.rows(numbers, views.tolist()), whole[numbers, views])
        assert torch.equal(opened.rows(numbers.tolist()), whole[numbers, 0])
    encoded.rename(encoded.with_name("moved"))
    assert LatentCache(encoded.with_name("moved")).fingerprint == opened.fingerprint
    assert torch.equal(opened.rows([5]), whole[[5], 0]), "what is mapped stays mapped"


def test_a_cache_of_the_version_before(tmp_path: Path) -> None:
    """Nine images, one of them bad, by `Convolution` in bf16 with flips in shards of 4."""
    shutil.copytree(Path(__file__).with_name("latent-cache-before"), tmp_path / "cache")
    files = contents(9) | {"bee/001.png": b"junk"}
    source = open_source(write_folder(tmp_path / "pictures", files))
    before = LatentCache(tmp_path / "cache")
    assert (before.count, before.views, before.indices.tolist()) == (8, 2, [0, 1, 2, 4, 5, 6, 7, 8])
    (tmp_path / "cache" / "shard-00001.safetensors").unlink()
    settings: dict[str, Any] = {"on_error": "skip", "dtype": "bf16", "shard_images": 4096}
    encode(Convolution(), source, tmp_path / "cache", **settings)
    encode(Convolution(), source, tmp_path / "new", **settings)
    mended, new = LatentCache(tmp_path / "cache"), LatentCache(tmp_path / "new")
    assert before.fingerprint == mended.fingerprint
    torch.testing.assert_close(mended.load(), new.load())


def test_broken_caches(encoded: Path) -> None:
    index = encoded / "index.json"
    values = json.loads(text := index.read_text())
    plan = values["plan"]
    without = {name: value for name, value in plan.items() if name != "dtype"}
    for change, words in (
        ("{", r"index\.json"), ("[]", r"index\.json"), ({"version": 2}, "format 2"),
        ({"plan": without}, r"index\.json.*dtype"), ({"plan": plan | {"dtype": "int4"}}, r"index\.json.*plan\.dtype"),
        ({"shards": values["shards"][:3]}, "3 shards, not 4"), (None, "spheregen encode TOKENIZER SRC --out"),
        (text, "shard-00002"),
    ):  # fmt: skip
        if change is None:
            index.unlink()
        elif change == text:
            index.write_text(text)
            (encoded / "shard-00002.safetensors").write_bytes(bytes(10_000))
        else:
            index.write_text(change if isinstance(change, str) else json.dumps(values | change))
        with pytest.raises(DataError, match=words) as caught:
            LatentCache(encoded)
        assert str(encoded) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_cache_that_does_not_match_is_refused_by_name(encoded: Path) -> None:
    opened = LatentCache(encoded)
    opened.check_match(tokenizer_fingerprint="pixels" * 4, latent_shape=(36, 3), image_size=6)
    with pytest.raises(DataError, match=r"tokenizer toy: pixelspixels\w+, not another"):
        opened.check_match(tokenizer_fingerprint="another")
    with pytest.raises(DataError, match=r"\(9, 3\); images .*: 6, not 12"):
        opened.check_match(latent_shape=(9, 3), image_size=12)


# batches --------------------------------------------------------------------------------------------------------------


def images_of(batch: Batch) -> Batch:
    """A batch of images from the latents of `Pixels`."""
    return Batch(inputs=Pixels().decode(batch.inputs), labels=batch.labels, indices=batch.indices, step=batch.step)


@pytest.mark.parametrize(("cache_bytes", "flips"), [(0, True), (1 << 30, False)])
def test_the_order_is_that_of_the_images(spoilt: ImageSource, tmp_path: Path, cache_bytes: int, flips: bool) -> None:
    encode(Pixels(), spoilt, tmp_path / "cache", on_error="skip")
    images = TrainingBatches(spoilt, OPTIONS, batch_size=5, steps=20, seed=3, flips=flips, on_error="skip")
    settings: dict[str, Any] = {"batch_size": 5, "steps": 20, "seed": 3, "flips": flips, "cache_bytes": cache_bytes}
    latents = LatentBatches(LatentCache(tmp_path / "cache"), **settings)
    assert (len(latents), latents.count, latents.class_names) == (20, 20, spoilt.class_names)
    assert latents.skipped == images.skipped
    pairs = list(zip(images, latents, strict=True))
    assert all(same(first, images_of(second)) for first, second in pairs)
    assert same(images.batch(7), images_of(latents.batch(7)))


@pytest.mark.parametrize("cache_bytes", [0, 1 << 30])
def test_any_start_and_any_ranks(source: ImageSource, tmp_path: Path, cache_bytes: int) -> None:
    encode(Convolution(), source, tmp_path / "cache", dtype="bf16")
    opened = LatentCache(tmp_path / "cache")
    settings: dict[str, Any] = {"batch_size": 6, "steps": 10, "flips": True}
    whole = list(LatentBatches(opened, **settings))
    assert whole[0].inputs.dtype == torch.float32
    for start in (0, 9, 10):
        rest = LatentBatches(opened, start_step=start, cache_bytes=cache_bytes, **settings)
        assert len(rest) == 10 - start
        assert all(same(first, second) for first, second in zip(whole[start:], rest, strict=True))
    shares = [LatentBatches(opened, rank=rank, world_size=3, cache_bytes=cache_bytes, **settings) for rank in range(3)]
    for batch, *parts in zip(whole, *shares, strict=True):
        assert torch.equal(batch.inputs, torch.cat([part.inputs for part in parts]))
        assert torch.equal(batch.indices, torch.cat([part.indices for part in parts]))


def test_a_loop_that_is_left_ends_its_thread(encoded: Path) -> None:
    before = threading.active_count()
    for _ in LatentBatches(LatentCache(encoded), batch_size=4, steps=1000, cache_bytes=0):
        break
    assert threading.active_count() == before
