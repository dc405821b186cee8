"""What is written is what the tokenizer gives, whoever writes it and however often it is interrupted."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from spheregen.data import ImageOptions, ImageSource, load_all, open_source, to_model_range
from spheregen.data.latent_cache import LatentCache, shards
from spheregen.distributed import World
from spheregen.errors import ConfigError, DataError, SphereGenError
from spheregen.progress import QuietReporter
from tests.data.kinds import all_kinds, contents, write_folder
from tests.data.latent_cache.toys import OPTIONS, Convolution, Pixels, Stopping, encode, files_of

# Python 3.12 warns about fork in a process with threads, which torch's own loader does by default.
pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


def pixels_of(source: ImageSource) -> Tensor:
    """Images (N, C, S, S) in [-1, 1], by another way than the cache's."""
    return to_model_range(load_all(source, OPTIONS, on_error="skip").images)


def test_shards_hold_latents_labels_and_numbers(source: ImageSource, tmp_path: Path) -> None:
    index = encode(Pixels(), source, tmp_path / "cache")
    found = [load_file(tmp_path / "cache" / f"shard-{number:05d}.safetensors") for number in range(4)]
    images = pixels_of(source)
    both = torch.stack([images, images.flip(-1)], 1).flatten(3).transpose(2, 3)
    assert [len(shard["indices"]) for shard in found] == [7, 7, 7, 2]
    assert torch.equal(torch.cat([shard["latents"] for shard in found]), both)
    assert torch.equal(torch.cat([shard["indices"] for shard in found]), torch.arange(23))
    assert source.labels is not None
    assert torch.equal(torch.cat([shard["labels"] for shard in found]), source.labels)
    assert sorted(path.name for path in (tmp_path / "cache").iterdir())[0] == "index.json"
    assert len(list((tmp_path / "cache").iterdir())) == 5, "nothing else stays there"
    assert (index.count, index.plan.views, index.plan.latent_shape, index.skipped) == (23, 2, (36, 3), ())


def test_the_index_tells_hashes_and_moments(source: ImageSource, tmp_path: Path) -> None:
    index = encode(Convolution(), source, tmp_path / "cache", dtype="bf16")
    for number, shard in enumerate(index.shards):
        data = (tmp_path / "cache" / f"shard-{number:05d}.safetensors").read_bytes()
        assert (shard.bytes, shard.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    latents = LatentCache(tmp_path / "cache").load().double().flatten(0, 2)
    torch.testing.assert_close(torch.tensor(index.mean, dtype=torch.float64), latents.mean(0), rtol=1e-12, atol=1e-12)
    spread = latents.std(0, correction=0)
    torch.testing.assert_close(torch.tensor(index.std, dtype=torch.float64), spread, rtol=1e-10, atol=0)
    assert LatentCache(tmp_path / "cache").index == index


def test_bf16_is_float32_rounded(source: ImageSource, tmp_path: Path) -> None:
    for dtype in ("float32", "bf16"):
        encode(Convolution(), source, tmp_path / dtype, dtype=dtype)
    exact, rounded = (LatentCache(tmp_path / dtype).load() for dtype in ("float32", "bf16"))
    assert rounded.dtype == torch.bfloat16
    assert torch.equal(exact.bfloat16(), rounded)


def test_the_tokenizer_computes_in_the_precision_that_is_asked_for(source: ImageSource, tmp_path: Path) -> None:
    for precision in ("float32", "bf16"):
        encode(Convolution(), source, tmp_path / precision, precision=precision)
    exact, coarse = (LatentCache(tmp_path / precision).load() for precision in ("float32", "bf16"))
    assert not torch.equal(exact, coarse)
    assert torch.equal(coarse.bfloat16().float(), coarse), "autocast gives bf16"


def test_one_view_is_the_first_of_two(source: ImageSource, tmp_path: Path) -> None:
    encode(Convolution(), source, tmp_path / "two")
    encode(Convolution(), source, tmp_path / "one", flips=False)
    one, two = LatentCache(tmp_path / "one"), LatentCache(tmp_path / "two")
    assert one.views == 1
    assert torch.equal(one.load()[:, 0], two.load()[:, 0])
    assert one.fingerprint != two.fingerprint


def test_every_kind_of_source_and_any_workers(tmp_path: Path) -> None:
    kinds = all_kinds(tmp_path, contents())
    found = []
    for number, (kind, place) in enumerate(kinds.items()):
        workers = 2 if kind in ("folder", "parquet") else 0
        encode(Convolution(), open_source(place), tmp_path / f"cache {number}", workers=workers)
        cache = LatentCache(tmp_path / f"cache {number}")
        assert cache.class_names == ("ant", "bee", "wasp é")
        assert cache.labels is not None
        found.append((cache.load(), cache.labels))
    assert all(torch.equal(a, b) for other in found for a, b in zip(found[0], other, strict=True))


def test_without_labels(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "flat", {Path(name).name: data for name, data in contents(5).items()})
    encode(Pixels(), open_source(folder), tmp_path / "cache")
    assert LatentCache(tmp_path / "cache").labels is None


def test_the_size_of_shards_does_not_change_the_fingerprint(source: ImageSource, tmp_path: Path) -> None:
    few, many = (encode(Pixels(), source, tmp_path / str(size), shard_images=size) for size in (100, 4))
    assert (len(few.shards), len(many.shards)) == (1, 6)
    assert few.fingerprint == many.fingerprint
    assert torch.equal(LatentCache(tmp_path / "100").load(), LatentCache(tmp_path / "4").load())


# --- interruptions


@pytest.mark.parametrize("after", [0, 1, 5, 9, 13, 17])
@pytest.mark.parametrize("error", [DataError("stopped"), KeyboardInterrupt()])
def test_an_interrupted_cache_continues(source: ImageSource, tmp_path: Path, after: int, error: BaseException) -> None:
    encode(whole := Convolution(), source, tmp_path / "whole")
    with pytest.raises(type(error)):
        encode(Stopping(after, error), source, tmp_path / "cache")
    kept = sorted(path.name for path in (tmp_path / "cache").iterdir())
    assert kept[-1] == "unfinished.json"
    assert all(name.startswith("shard") for name in kept[:-1]), "nothing half-written stays"
    with pytest.raises(DataError, match="unfinished"):
        LatentCache(tmp_path / "cache")
    (tmp_path / "cache" / ".shard-00003.safetensors.abc.tmp").write_bytes(b"left by a killed process")
    encode(rest := Convolution(), source, tmp_path / "cache")
    assert files_of(tmp_path / "cache") == files_of(tmp_path / "whole")
    assert rest.calls == whole.calls - 6 * (len(kept) - 1), "two views of three batches a shard"


def damage(path: Path, how: str) -> None:
    data = path.read_bytes()
    if how == "missing":
        path.unlink()
    elif how == "cut short":
        path.write_bytes(data[:-10])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "another shard":
        path.write_bytes(path.with_name("shard-00001.safetensors").read_bytes())
    else:
        path.write_bytes(data.replace(b'"key": "', b'"key": "f')[: len(data)])


@pytest.mark.parametrize("how", ["missing", "cut short", "empty", "another shard", "another cache"])
def test_shards_that_are_not_right_are_encoded_again(source: ImageSource, tmp_path: Path, how: str) -> None:
    encode(Convolution(), source, tmp_path / "cache")
    before = files_of(tmp_path / "cache")
    damage(tmp_path / "cache" / "shard-00002.safetensors", how)
    with pytest.raises(DataError, match="shard-00002"):
        LatentCache(tmp_path / "cache")
    encode(again := Convolution(), source, tmp_path / "cache")
    assert files_of(tmp_path / "cache") == before
    assert again.calls == 6


def test_a_finished_cache_is_left_alone(source: ImageSource, tmp_path: Path) -> None:
    first = encode(Convolution(), source, tmp_path / "cache")
    again = encode(idle := Convolution(), source, tmp_path / "cache", batch_size=5, tokenizer_name="moved")
    assert idle.calls == 0
    assert again == first


def test_the_tokenizer_is_put_beside_the_latents_before_the_work(source: ImageSource, tmp_path: Path) -> None:
    def save(folder: Path) -> None:
        (folder / "tokenizer").mkdir(exist_ok=True)

    with pytest.raises(DataError, match="stopped"):
        encode(Stopping(0), source, tmp_path / "cache", save_tokenizer=save)
    assert (tmp_path / "cache" / "tokenizer").is_dir()
    encode(Convolution(), source, tmp_path / "cache", save_tokenizer=save)
    (tmp_path / "cache" / "tokenizer").rmdir()
    encode(Convolution(), source, tmp_path / "cache", save_tokenizer=save)
    assert (tmp_path / "cache" / "tokenizer").is_dir()


def test_a_full_disk_is_one_line(source: ImageSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = 0
    original = shards._put

    def put(file: Any, tensor: Tensor) -> None:
        nonlocal written
        written += 1
        if written == 10:
            raise OSError(28, "No space left on device")
        original(file, tensor)

    monkeypatch.setattr(shards, "_put", put)
    with pytest.raises(SphereGenError, match=r"cannot write .*shard-0000.*: No space left on device; free space"):
        encode(Convolution(), source, tmp_path / "cache")
    assert not list((tmp_path / "cache").glob(".*"))
    monkeypatch.undo()
    encode(Convolution(), source, tmp_path / "cache")


# --- pictures that cannot be read


BAD = ("ant/000.png", "bee/001.png", "wasp é/020.png")


@pytest.fixture
def spoilt(pictures: Path) -> ImageSource:
    """Pictures of which three are none."""
    for name in BAD:
        (pictures / name).write_bytes(b"junk")
    return open_source(pictures)


def test_a_bad_picture_is_fatal_and_named(spoilt: ImageSource, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"ant/000\.png: not an image"):
        encode(Pixels(), spoilt, tmp_path / "cache")


@pytest.mark.parametrize("shard_images", [1, 2, 7, 100])
@pytest.mark.parametrize("dtype", ["bf16", "float32"])
def test_bad_pictures_are_left_out(spoilt: ImageSource, tmp_path: Path, shard_images: int, dtype: str) -> None:
    """Single shards and batches may be empty; the bytes of latents of 45 numbers need not be a multiple of 8."""
    index = encode(
        Convolution(), spoilt, tmp_path / "cache", on_error="skip", shard_images=shard_images, dtype=dtype, flips=False
    )
    known = load_all(spoilt, OPTIONS, on_error="skip")
    cache = LatentCache(tmp_path / "cache")
    assert torch.equal(cache.indices, known.indices)
    assert cache.labels is not None
    assert known.labels is not None
    assert torch.equal(cache.labels, known.labels)
    expected = Convolution().encode(to_model_range(known.images))
    torch.testing.assert_close(cache.rows(range(20)), expected.to(cache.dtype).float(), atol=1e-2, rtol=1e-2)
    assert index.data_fingerprint == known.fingerprint
    assert cache.skipped == known.skipped
    assert len(cache.skipped) == 3


def test_skipping_continues_and_is_remembered(spoilt: ImageSource, tmp_path: Path) -> None:
    encode(Convolution(), spoilt, tmp_path / "whole", on_error="skip")
    with pytest.raises(DataError, match="stopped"):
        encode(Stopping(9), spoilt, tmp_path / "cache", on_error="skip")
    with pytest.raises(DataError, match="not an image"):
        encode(Convolution(), spoilt, tmp_path / "cache")
    encode(Convolution(), spoilt, tmp_path / "cache", on_error="skip")
    assert files_of(tmp_path / "cache") == files_of(tmp_path / "whole")
    with pytest.raises(DataError, match=r"not an image.*3 of 23 images are bad"):
        encode(Convolution(), spoilt, tmp_path / "cache")


def test_nothing_but_bad_pictures(pictures: Path, tmp_path: Path) -> None:
    for path in pictures.rglob("*.png"):
        path.write_bytes(b"junk")
    with pytest.raises(DataError, match="none of the 23 images can be read"):
        encode(Pixels(), open_source(pictures), tmp_path / "cache", on_error="skip")
    assert not (tmp_path / "cache" / "index.json").exists()


# --- what is refused


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"tokenizer_fingerprint": "another" * 3}, r"tokenizer: toy \(convconv\) -> toy \(anothera\)"),
        ({"dtype": "bf16"}, "dtype: float32 -> bf16"),
        ({"flips": False}, "flips: True -> False"),
        ({"shard_images": 8}, "shard_images: 7 -> 8"),
        ({"precision": "bf16"}, "precision: float32 -> bf16"),
        ({"options": ImageOptions(image_size=6, fit="pad")}, "fit: crop -> pad"),
        ({"options": ImageOptions(image_size=6, resize="bicubic", background=(0, 0, 0))}, "resize: adm.*background"),
    ],
)
@pytest.mark.parametrize("unfinished", [True, False])
def test_another_cache_is_refused_by_what_differs(
    source: ImageSource, tmp_path: Path, change: dict[str, Any], words: str, unfinished: bool
) -> None:
    if unfinished:
        with pytest.raises(DataError, match="stopped"):
            encode(Stopping(7), source, tmp_path / "cache")
    else:
        encode(Convolution(), source, tmp_path / "cache")
    before = files_of(tmp_path / "cache")
    with pytest.raises(ConfigError, match=rf"cache of other settings \({words}.*give another --out"):
        encode(Convolution(), source, tmp_path / "cache", **change)
    assert files_of(tmp_path / "cache") == before


def test_other_data_are_refused(source: ImageSource, pictures: Path, tmp_path: Path) -> None:
    encode(Convolution(), source, tmp_path / "cache")
    (pictures / "bee" / "001.png").unlink()
    with pytest.raises(ConfigError, match=r"data: pictures/train \(\w{8}\) -> pictures/train \(\w{8}\)"):
        encode(Convolution(), open_source(pictures), tmp_path / "cache")


def test_a_folder_of_other_things_is_refused(source: ImageSource, pictures: Path, tmp_path: Path) -> None:
    before = sorted(pictures.rglob("*"))
    with pytest.raises(ConfigError, match="holds other files and no latent cache"):
        encode(Convolution(), source, pictures)
    assert sorted(pictures.rglob("*")) == before
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="is a file"):
        encode(Convolution(), source, tmp_path / "file")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"batch_size": 0}, "batch_size is 0"),
        ({"shard_images": 0}, "shard_images is 0"),
        ({"dtype": "float16"}, "dtype is 'float16'"),
        ({"precision": "fp8"}, "precision is 'fp8'"),
        ({"workers": -1}, "workers is -1"),
        ({"on_error": "ignore"}, "on_error is 'ignore'"),
        ({"options": ImageOptions(image_size=7)}, r"\(3, 6, 6\), not \(3, 7, 7\)"),
    ],
)
def test_impossible_arguments(source: ImageSource, tmp_path: Path, change: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        encode(Convolution(), source, tmp_path / "cache", **change)
    assert not (tmp_path / "cache").exists()


def test_mirror_images_of_digits_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="mirror images of digits are no digits; leave --flips out"):
        encode(Convolution(), open_source("digits"), tmp_path / "cache")


def test_latents_that_are_not_finite_are_refused(source: ImageSource, tmp_path: Path) -> None:
    class Broken(Pixels):
        def encode(self, images: Tensor) -> Tensor:
            latents = super().encode(images).clone()
            if self.calls == 3:
                latents[0, 0, 0] = float("nan")
            return latents

    with pytest.raises(DataError, match="toy gives NaN, infinite or huge latents for image 6 of pictures"):
        encode(Broken(), source, tmp_path / "cache", flips=False)


def test_a_tokenizer_of_other_latents_than_it_says(source: ImageSource, tmp_path: Path) -> None:
    class Wrong(Pixels):
        latent_shape = (9, 12)

    with pytest.raises(SphereGenError, match=r"latents \(36, 3\), not \(9, 12\)"):
        encode(Wrong(), source, tmp_path / "cache")


def test_processes_of_different_settings_are_refused(source: ImageSource, tmp_path: Path) -> None:
    class Two(World):
        def gather_objects(self, value: Any) -> list[Any]:
            return [value, "another"]

    with pytest.raises(ConfigError, match="the processes differ"):
        encode(Convolution(), source, tmp_path / "cache", world=Two(0, 2))


# --- the rest


def test_progress_is_told(source: ImageSource, tmp_path: Path) -> None:
    class Listening(QuietReporter):
        def __init__(self) -> None:
            self.begun: list[tuple[int, int]] = []
            self.steps: list[int] = []

        def start(self, total: int, done: int, unit_images: int) -> None:
            self.begun.append((total, done))

        def step(self, done: int, metrics: object) -> None:
            self.steps.append(done)

    with pytest.raises(DataError):
        encode(Stopping(8), source, tmp_path / "cache")
    encode(Convolution(), source, tmp_path / "cache", reporter=(reporter := Listening()))
    assert reporter.begun == [(23, 7)]
    assert reporter.steps == [10, 13, 14, 17, 20, 21, 23]


def test_latents_begin_at_a_page_and_the_key_is_in_the_header(source: ImageSource, tmp_path: Path) -> None:
    index = encode(Convolution(), source, tmp_path / "cache")
    path = tmp_path / "cache" / "shard-00000.safetensors"
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"key": index.plan.key, "shard": "0"}
        latents = file.get_tensor("latents")
    start = path.read_bytes().find(latents.numpy().tobytes())
    assert start % 4096 == 0


def test_images_are_read_as_they_are_shaped(tmp_path: Path) -> None:
    """Grey pictures of another size go through the options that were given."""
    (tmp_path / "grey").mkdir()
    for number in range(3):
        Image.new("L", (9 + number, 6), 40 * number).save(tmp_path / "grey" / f"{number}.png")
    source = open_source(tmp_path / "grey")
    encode(Pixels(), source, tmp_path / "cache")
    rows = LatentCache(tmp_path / "cache").rows([0, 1, 2])
    assert torch.equal(Pixels().decode(rows), pixels_of(source))
