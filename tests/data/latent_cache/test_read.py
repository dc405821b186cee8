"""A cache answers with the rows that were written, and says by name what is wrong with it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spheregen.data import ImageSource
from spheregen.data.latent_cache import LatentCache, is_latent_cache
from spheregen.errors import DataError
from tests.data.latent_cache.toys import Convolution, Stopping, encode


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(wanted=st.lists(st.tuples(st.integers(0, 22), st.integers(0, 1)), max_size=40))
def test_rows_are_those_of_the_whole(encoded: Path, wanted: list[tuple[int, int]]) -> None:
    opened = LatentCache(encoded)
    numbers, views = [number for number, _ in wanted], [view for _, view in wanted]
    whole = opened.load()
    assert whole.shape == (23, 2, 36, 3)
    assert torch.equal(opened.rows(numbers, views), whole[numbers, views])
    assert torch.equal(opened.rows(torch.tensor(numbers, dtype=torch.int64)), whole[numbers, 0])


def test_rows_are_float32_and_stored_rows_are_not(source: ImageSource, tmp_path: Path) -> None:
    encode(Convolution(), source, tmp_path / "cache", dtype="bf16")
    cache = LatentCache(tmp_path / "cache")
    rows = cache.rows([3, 22], [1, 0])
    assert (rows.dtype, cache.stored_rows([3]).dtype, cache.load().dtype) == (
        torch.float32,
        torch.bfloat16,
        torch.bfloat16,
    )
    assert torch.equal(rows, cache.load()[[3, 22], [1, 0]].float())
    assert cache.nbytes == 23 * 2 * 9 * 5 * 2


@pytest.mark.parametrize(("numbers", "views"), [([23], None), ([-1], None), ([0], [2]), ([0], [-1])])
def test_no_such_row(encoded: Path, numbers: list[int], views: list[int] | None) -> None:
    with pytest.raises(IndexError):
        LatentCache(encoded).rows(numbers, views)


def test_what_it_says_of_itself(encoded: Path, source: ImageSource) -> None:
    opened = LatentCache(str(encoded))
    assert (opened.count, opened.views, opened.latent_shape, opened.image_size) == (23, 2, (36, 3), 6)
    assert opened.class_names == source.class_names
    assert opened.skipped == ()
    assert opened.fingerprint == json.loads((encoded / "index.json").read_text())["fingerprint"]


def test_a_copy_is_the_same_cache(encoded: Path, tmp_path: Path) -> None:
    opened = LatentCache(encoded)
    encoded.rename(tmp_path / "moved")
    assert LatentCache(tmp_path / "moved").fingerprint == opened.fingerprint
    assert torch.equal(opened.rows([5]), LatentCache(tmp_path / "moved").rows([5])), "what is mapped stays mapped"


# --- what is wrong with it


def edit_index(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    values = json.loads((folder / "index.json").read_text())
    change(values)
    (folder / "index.json").write_text(json.dumps(values))


def swap(folder: Path) -> None:
    """Two shards of the same size change places."""
    first, second = (folder / f"shard-0000{number}.safetensors" for number in (0, 1))
    first.rename(folder / "x")
    second.rename(first)
    (folder / "x").rename(second)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda f: (f / "index.json").unlink(), "no latent cache at .*spheregen encode TOKENIZER SRC --out"),
        (lambda f: (f / "index.json").write_text("{"), r"index\.json is broken.*delete the folder"),
        (lambda f: (f / "index.json").write_text("[]"), r"index\.json is broken"),
        (lambda f: edit_index(f, lambda v: v.update(version=2)), "format 2, and this spheregen reads format 1"),
        (lambda f: edit_index(f, lambda v: v.pop("mean")), r"index\.json is broken \(no 'mean'\)"),
        (lambda f: edit_index(f, lambda v: v["plan"].pop("dtype")), r"index\.json is broken .*dtype"),
        (lambda f: edit_index(f, lambda v: v["plan"].update(dtype="int4")), r"index\.json is broken .*int4"),
        (lambda f: edit_index(f, lambda v: v["shards"].pop()), "lists 3 shards, not 4"),
        (lambda f: (f / "shard-00001.safetensors").unlink(), r"shard-00001\.safetensors: it is missing"),
        (lambda f: (f / "shard-00003.safetensors").write_bytes(b"12"), r"shard-00003\.safetensors: it has 2 bytes"),
        (lambda f: (f / "shard-00002.safetensors").write_bytes(bytes(10_000)), "shard-00002"),
        (swap, r"shard-00000\.safetensors: it is shard 1"),
    ],
)
def test_broken_caches(encoded: Path, change: Callable[[Path], object], words: str) -> None:
    change(encoded)
    with pytest.raises(DataError, match=words) as caught:
        LatentCache(encoded)
    assert str(encoded) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_shard_of_another_cache_is_told(encoded: Path, source: ImageSource, tmp_path: Path) -> None:
    encode(Convolution(), source, tmp_path / "other")
    data = (tmp_path / "other" / "shard-00000.safetensors").read_bytes()
    (encoded / "shard-00000.safetensors").write_bytes(data)
    edit_index(encoded, lambda values: values["shards"][0].update(bytes=len(data)))
    with pytest.raises(DataError, match=r"shard-00000\.safetensors: it belongs to another cache"):
        LatentCache(encoded)


def test_verify_reads_every_byte(encoded: Path) -> None:
    LatentCache(encoded).verify()
    path = encoded / "shard-00002.safetensors"
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"shard-00002\.safetensors has changed"):
        LatentCache(encoded).verify()


def test_which_folders_are_caches(encoded: Path, pictures: Path, source: ImageSource, tmp_path: Path) -> None:
    assert is_latent_cache(encoded)
    assert is_latent_cache(str(encoded))
    with pytest.raises(DataError):
        encode(Stopping(1), source, tmp_path / "begun")
    assert is_latent_cache(tmp_path / "begun"), "so that users hear that it is unfinished"
    (pictures / "index.json").write_text('{"weight_map": {}}')
    for other in (pictures, tmp_path / "nothing", encoded / "index.json", "digits", "user/name", "x" * 5000):
        assert not is_latent_cache(other)


def test_a_cache_that_does_not_match_is_refused_by_name(encoded: Path) -> None:
    opened = LatentCache(encoded)
    opened.check_match()
    opened.check_match(tokenizer_fingerprint="pixels" * 4, latent_shape=(36, 3), image_size=6)
    with pytest.raises(DataError, match=r"cache does not match.*tokenizer toy \(pixelspi\), not of another;.*encode"):
        opened.check_match(tokenizer_fingerprint="another")
    with pytest.raises(DataError, match=r"\(36, 3\), not \(9, 3\); images of 6 px, not 12; use the one"):
        opened.check_match(latent_shape=(9, 3), image_size=12)
