"""`spheregen encode` as a user types it, in one process and in two."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import torch

from spheregen.cli import main
from spheregen.data import ImageOptions, load_all, open_source, to_model_range
from spheregen.data.latent_cache import LatentCache
from spheregen.folders.tokenizers import open_tokenizer
from tests.cli.conftest import Run
from tests.data.kinds import contents, write_folder
from tests.processes import common_store


def processes(count: int, *arguments: str) -> list[tuple[int | None, str]]:
    """Exit code and answer of each process of `spheregen encode`, forked so that nothing is imported again."""
    store, shared = common_store(count)

    def encode(rank: int) -> None:
        os.environ.update({**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)})
        torch.set_num_threads(1)
        with Path(f"answer{rank}").open("w") as answer, contextlib.redirect_stdout(answer):
            main.run(["encode", *arguments])

    running = [multiprocessing.get_context("fork").Process(target=encode, args=(rank,)) for rank in range(count)]
    for process in running:
        process.start()
    for process in running:
        process.join(timeout=150)
    del store
    answers = [Path(f"answer{rank}").read_text() for rank in range(count)]
    return list(zip([process.exitcode for process in running], answers, strict=True))


def files_of(folder: Path) -> Mapping[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_digits(run: Run) -> None:
    """The latents are those of the tokenizer, which lies beside them and is told by its fingerprint."""
    command = ("encode", "digits", "digits", "--split", "test", "--out", "latents", "--dtype", "float32")
    answer = run(*command, "--json").json
    assert (answer["count"], answer["shards"], answer["data"], answer["views"]) == (397, 1, "digits/test", 1)
    cache = LatentCache(answer["out"])
    opened = open_tokenizer("latents/tokenizer")
    cache.check_match(tokenizer_fingerprint=opened.fingerprint, latent_shape=opened.tokenizer.latent_shape)
    loaded = load_all(open_source("digits", split="test"), ImageOptions(image_size=8, channels=1))
    latents = opened.tokenizer.encode(to_model_range(loaded.images))
    torch.testing.assert_close(cache.rows(range(397)), latents, atol=1e-5, rtol=1e-5)
    assert cache.labels is not None
    assert loaded.labels is not None
    assert torch.equal(cache.labels, loaded.labels)


def test_the_same_again_and_another(run: Run) -> None:
    command = ("encode", "digits", "digits", "--split", "test", "--out", "latents")
    assert "397 images of digits/test as latents of 4 x 6 in bf16" in run(*command).err
    before = files_of(Path("latents"))
    assert run(*command).code == 0
    for options, words in (
        (["--dtype", "float32"], "dtype: bf16 -> float32"),
        (["--split", "train"], "data: digits/test"),
        (
            ["--set", "fit=pad", "--set", "background=[0,0,0]"],
            "fit: crop -> pad; background: [255, 255, 255] -> [0, 0, 0]",
        ),
        (["--set", "resize=nearest"], "resize: adm -> nearest"),
    ):
        run(*command, *options).fails(words)
    assert files_of(Path("latents")) == before


def test_pictures_flips_and_what_cannot_be_read(run: Run) -> None:
    write_folder(Path("pictures"), contents(9) | {"ant/900.png": b"junk"})
    command = ("encode", "digits", "pictures", "--out", "latents", "--flips", "--batch-size", "4", "--workers", "1")
    refused = run(*command)
    assert refused.code == 2
    assert "ant/900.png: not an image" in refused.err.splitlines()[-1]
    done = run(*command, "--set", "on_error=skip")
    assert done.code == 0, done.err
    assert "skipped: " in done.err
    assert "9 images" in done.err
    assert "mirror images too" in done.err
    cache = LatentCache("latents")
    assert (cache.views, cache.index.plan.image.shape) == (2, (1, 8, 8)), "as the tokenizer wants them"


BAD: list[tuple[list[str], str]] = [
    (["missing", "digits"], "no tokenizer 'missing'"),
    (["digits", "missing"], "check the path for a typo"),
    (["digits", "digits", "--flips"], "mirror images of digits are no digits"),
    (["digits", "digits", "--set", "fit=stretch"], "fit is 'stretch'"),
    (["digits", "digits", "--set", "resize=area"], "resize is 'area'"),
    (["digits", "digits", "--set", "background=white"], "background"),
    (["digits", "digits", "--set", "on_error=ignore"], "on_error is 'ignore'"),
    (["digits", "digits", "--image-size", "8"], "has an image size"),
    (["digits", "digits", "--pack", "2"], "packing"),
    (["digits", "digits", "--stream", "--split", "tset"], "did you mean 'test'"),
    (["digits", "digits", "--device", "abacus"], "device 'abacus' is not available"),
]


def test_bad_input_is_one_line(run: Run) -> None:
    for arguments, words in BAD:
        run("encode", *arguments, "--out", "latents").fails(words)
        assert not list(Path().iterdir())


@pytest.fixture
def _one_thread() -> Iterator[None]:
    """As in the processes, since the last bits of a network may depend on it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("_one_thread")
@pytest.mark.skipif(
    not torch.distributed.is_available() or "fork" not in multiprocessing.get_all_start_methods(),
    reason="needs torch.distributed and processes that fork",
)
def test_two_processes_write_the_files_of_one(run: Run) -> None:
    arguments = ("digits", "digits", "--split", "test", "--device", "cpu", "--json")
    results = processes(2, *arguments, "--out", "two")
    assert run("encode", *arguments, "--out", "one").code == 0
    assert [code for code, _ in results] == [0, 0], results
    assert json.loads(results[0][1])["shards"] == 1
    assert not results[1][1], "the first process alone answers"
    assert files_of(Path("two")) == files_of(Path("one"))
