"""Models that follow texts: every member trains, continues to the bit and is prompted."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import spheregen as sg
from spheregen.data import open_source
from spheregen.data.captions import Captions
from spheregen.data.encoding import write_latent_cache
from spheregen.data.text_cache import cached_vectors
from spheregen.distributed import joined_world
from spheregen.errors import ConfigError, DataError, ModelFileError, TrainingError
from spheregen.fitted import FittedTextPrior
from spheregen.folders.tokenizers import TOKENIZER, open_tokenizer, save_tokenizer
from spheregen.networks.text import TextEncoderConfig, open_text_encoder
from spheregen.pixels import ImageOptions
from spheregen.training.recipe import load_recipe
from tests.data.test_captions import captioned
from tests.networks.test_text import encoder_folder
from tests.processes import Started, command, world
from tests.training.runs import Messages, assert_same_run, interrupted, run, wait_for_a_checkpoint

TEXT = ("model.num_classes=0", "model.text_width=64", "data.templates=['digit {}', 'the number {}']")
SHORT = ("train.steps=6", "train.checkpoint_every=3", "train.preview_every=6", "train.log_every=3")
MEMBERS: Mapping[str, tuple[str, ...]] = {
    "debug": (),
    "conv-debug": (),
    "flow-debug": ("autoencoder.num_classes=0", "autoencoder.text_width=64"),
    "se2-debug": ("loss.score_matching=0", "loss.frechet_encoder=0"),
    "sle-debug": (),
}
"""The recipes that train in seconds, and what else they need."""


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Latents of some digits with captions."""
    folder, source = tmp_path_factory.mktemp("latents"), open_source("digits", split="test")
    opened = open_tokenizer("digits")
    write_latent_cache(
        opened.tokenizer, source, ImageOptions(image_size=8, channels=1), folder, tokenizer_name="digits",
        tokenizer_fingerprint=opened.fingerprint, captions=Captions([("some digit",)] * len(source)),
        save_tokenizer=lambda place: save_tokenizer(opened.tokenizer, place / TOKENIZER),
    )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of convolutions that was trained for a second or two."""
    return run(tmp_path_factory.mktemp("text") / "run", *TEXT, recipe="conv-debug")


@pytest.fixture
def pipe(folder: Path) -> sg.Pipeline:
    return sg.Pipeline.from_pretrained(folder, device="cpu", quiet=True)


# training -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", MEMBERS)
def test_every_member_trains_continues_and_is_prompted(tmp_path: Path, cache: Path, recipe: str) -> None:
    settings = (*TEXT, *SHORT, *MEMBERS[recipe])
    data = cache if recipe == "sle-debug" else None
    whole = run(tmp_path / "whole", *settings, recipe=recipe, data=data)
    again = interrupted(tmp_path / "again", *settings, stop=4, recipe=recipe, data=data)
    assert_same_run(run(again, *settings, recipe=recipe, data=data), whole)
    pipe = sg.Pipeline.from_pretrained(whole, device="cpu", quiet=True)
    assert pipe.model.text_width == 64 and isinstance(pipe.model.fitted, FittedTextPrior)
    assert json.loads((whole / "config.json").read_text())["text"]["name"] == "ngrams"
    one, other, null = (pipe.generate(2, prompt=text, seed=5).tensor for text in ("digit 1", "the number 8", ""))
    assert one.shape == (2, 1, 8, 8) and not torch.equal(one, other) and not torch.equal(one, null)
    assert torch.equal(null, pipe.generate(2, seed=5, guidance=pipe.model.unguided).tensor)
    with pytest.raises(TrainingError, match="the data set is another one"):
        run(again, *settings, "data.templates=['number {}']", recipe=recipe, data=data) if data is None else run(
            again, *settings, recipe=recipe, data=_other(cache, tmp_path)
        )


def _other(cache: Path, place: Path) -> Path:
    """The same latents with other captions."""
    from spheregen.tensors import save_tensors

    shutil.copytree(cache, place / "other")
    save_tensors(place / "other" / "captions.safetensors", Captions([("no digit",)] * 397).tensors)
    return place / "other"


def test_blocks_that_attend_to_words_train_and_are_prompted(tmp_path: Path) -> None:
    settings = ("model.num_classes=0", "model.text_width=64", "model.text_tokens=3", "text.tokens=3", *TEXT[2:], *SHORT)
    made = run(tmp_path / "run", *settings)
    pipe = sg.Pipeline.from_pretrained(made, device="cpu", quiet=True)
    assert pipe.text_encoder.identity["tokens"] == 3
    assert isinstance(pipe.model.fitted, FittedTextPrior) and len(pipe.model.fitted.means) == 16 + 2
    one, other = (pipe.generate(2, prompt=text, seed=5, prior="fitted").tensor for text in ("digit 1", "number 8"))
    assert not torch.equal(one, other)
    way = pipe.interpolate([3, 3], 3, prompt=["digit 1", "digit 8"])
    ends = pipe.generate(2, prompt=["digit 1", "digit 8"], seeds=[3, 3], steps=1)
    torch.testing.assert_close(way.tensor[[0, 2]], ends.tensor, atol=1e-4, rtol=0)
    for wrong in ("model.text_tokens=4", "model.text_tokens=1", "text.tokens=0"):
        with pytest.raises(ConfigError, match="text_tokens"):
            run(tmp_path / "other", *settings, wrong)
    assert not (tmp_path / "other").exists()


def test_kill_minus_nine_and_continued_equals_uninterrupted(tmp_path: Path, folder: Path) -> None:
    again = tmp_path / "run"
    settings = [each for text in TEXT for each in ("--set", text)]
    process = Started(command, ["train", "conv-debug", *settings, "--out", str(again), "--device", "cpu"])
    wait_for_a_checkpoint(again, process)
    process.send_signal(signal.SIGKILL)
    process.finish()
    assert_same_run(run(again, *TEXT, recipe="conv-debug"), folder)


def test_images_without_a_caption_teach_the_null(tmp_path: Path) -> None:
    source = captioned(tmp_path / "images", {"000.txt": "one", "001.txt": "two"})
    settings = ("data.resize=nearest", "train.batch_size=6", *TEXT[:2], *SHORT)
    made = run(tmp_path / "run", *settings, "model.image_channels=3", recipe="conv-debug", data=source)
    pipe = sg.Pipeline.from_pretrained(made, device="cpu", quiet=True)
    assert pipe.generate(prompt="one").prompts == ("one",)


def test_names_of_classes_in_place_of_captions_are_told(tmp_path: Path) -> None:
    reporter = Messages()
    run(tmp_path / "run", "model.num_classes=0", "model.text_width=64", *SHORT, recipe="conv-debug", reporter=reporter)
    assert any("names of classes" in line for line in reporter.lines)


def test_a_model_of_texts_wants_captions_and_an_encoder_of_its_width(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="classes or texts"):
        load_recipe("conv-debug", ["model.text_width=64"])
    with pytest.raises(ConfigError, match="text_width=2"):
        run(tmp_path / "a", *TEXT, "text.name=tests.networks.test_text:Own", recipe="conv-debug")
    with pytest.raises(DataError, match="no captions"):
        run(tmp_path / "b", *TEXT, recipe="conv-debug", data=captioned(tmp_path / "images", {}))


# the fitted prior -----------------------------------------------------------------------------------------------------


def test_a_prior_of_texts_finds_the_means_of_texts_and_its_noise_again() -> None:
    from spheregen.conditioning import text_labels
    from spheregen.fitted import fit_text_prior

    generator = torch.Generator().manual_seed(0)
    vectors = torch.nn.functional.normalize(torch.eye(8, 12), dim=1)
    which, means = torch.arange(4000) % 8, torch.randn(8, 20, generator=generator)
    codes = means[which] + 0.1 * torch.randn(4000, 20, generator=generator)
    told = torch.arange(4000) % 10 != 0
    prior = fit_text_prior(codes, text_labels(vectors[which], told))
    prior.check(20, 12)
    weights = prior.embed_labels(text_labels(vectors))
    assert weights.shape == (9, 14) and weights[-1].tolist() == [0.0] * 13 + [1.0]
    drawn = prior.draw(torch.zeros(8, 20), weights[:8])
    torch.testing.assert_close(drawn, means, atol=0.1, rtol=0.0)  # the ridge leans to the mean of all
    noise = torch.randn(8, 20, generator=generator)
    torch.testing.assert_close(prior.noise_of(prior.draw(noise, weights[:8]), weights[:8]), noise, atol=1e-2, rtol=1e-2)
    null = prior.draw(torch.randn(4000, 20, generator=generator), weights[-1:])
    torch.testing.assert_close(null.std(0), codes.std(0), atol=0.1, rtol=0.1)
    half = fit_text_prior(codes[:100], text_labels(vectors[which])[:100])
    with pytest.raises(ConfigError):
        half.check(20, 13)


# use ------------------------------------------------------------------------------------------------------------------


def test_an_image_depends_on_its_seed_and_prompt_alone(pipe: sg.Pipeline, tmp_path: Path) -> None:
    prompts = ["digit 3", "the number 4", "", "digit 3"]
    together = pipe.generate(prompt=prompts, seed=7)
    assert together.prompts == tuple(prompts) and together.labels is None
    for i, text in enumerate(prompts):
        alone = pipe.generate(prompt=text, seed=7 + i)
        torch.testing.assert_close(alone.tensor[0], together.tensor[i], atol=1e-5, rtol=1e-4)
    assert torch.equal(pipe.generate(labels=prompts, seed=7).tensor, together.tensor)
    assert torch.equal(pipe.generate(4, prompt=" digit   3 ").tensor, pipe.generate(4, prompt="digit 3").tensor)
    together.save(tmp_path / "out")
    from spheregen.pipeline.output import read_record

    record = read_record(tmp_path / "out" / "000008.png")
    assert record.prompt == "the number 4" and record.seed == 8
    pipe.prompts = ("digit 1", "digit 2")
    torch.testing.assert_close(pipe.generate(3).tensor[2], pipe.generate(prompt="digit 1", seed=2).tensor[0])


def test_guidance_pulls_towards_the_prompt_and_away_from_another(pipe: sg.Pipeline) -> None:
    plain, guided = (pipe.generate(4, prompt="digit 3", guidance=scale).tensor for scale in (1.0, 2.0))
    assert not torch.equal(plain, guided)
    away = pipe.generate(4, prompt="digit 3", negative_prompt="digit 8", guidance=2.0)
    assert not torch.equal(away.tensor, guided) and away.settings["negative_prompt"] == "digit 8"
    same = pipe.generate(4, prompt="digit 3", negative_prompt="digit 3", guidance=3.0).tensor
    torch.testing.assert_close(same, plain, atol=1e-5, rtol=1e-4)
    assert torch.equal(pipe.generate(4, prompt="digit 3", negative_prompt="  ", guidance=2.0).tensor, guided)
    with pytest.raises(ConfigError, match="guidance"):
        pipe.generate(4, guidance=2.0)


def test_edits_follow_prompts(pipe: sg.Pipeline) -> None:
    images = pipe.generate(2, prompt="digit 3").tensor
    for call in (
        lambda **how: pipe.edit(images, **how),
        lambda **how: pipe.edit(images, prior="sphere", **how),
        lambda **how: pipe.vary(images[:1], 2, **how),
        lambda **how: pipe.inpaint(images, torch.ones(1, 8, 8), **how),
        lambda **how: pipe.crossover(images, images.flip(0), **how),
        lambda **how: pipe.upscale(images, 2, **how),
    ):
        one, other = (call(prompt=text).tensor for text in ("digit 1", "digit 7"))
        assert one.shape[0] == 2 and not torch.equal(one, other)
    one, other = (pipe.encode(images, labels=text) for text in ("digit 1", "digit 7"))
    assert not torch.equal(one, other)


def test_prompts_interpolate_with_their_ends_exact(pipe: sg.Pipeline) -> None:
    ends = ["digit 1", "digit 7"]
    found = pipe.interpolate([4, 4], 5, prompt=ends)
    assert found.settings["class_path"] == "slerp"
    for frame, text in ((0, ends[0]), (4, ends[1])):
        exact = pipe.interpolate([4, 4], 5, prompt=text).tensor[frame]
        torch.testing.assert_close(found.tensor[frame], exact, atol=1e-4, rtol=1e-3)
    assert not torch.equal(found.tensor[2], pipe.interpolate([4, 4], 5, prompt=ends, class_path="lerp").tensor[2])
    corners = pipe.interpolate([1, 2, 3, 4], 2, prompt=["digit 1", "", "digit 2", "digit 3"])
    assert len(corners) == 4


def test_what_a_model_does_not_follow_is_refused(pipe: sg.Pipeline) -> None:
    for options, named in (
        ({"prompt": "x" * 20_000}, "20000 characters"),
        ({"prompt": ["a", "b"], "count": 3}, "2 prompts for 3"),
        ({"labels": 3}, "follows texts"),
        ({"prompt": "a", "labels": "b"}, "not both"),
        ({"prompt": ["a", 3]}, "is text, not 3"),
    ):
        with pytest.raises(ConfigError, match=named):
            pipe.generate(**options)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="not classes"):
        pipe.model.condition(torch.tensor([1]))
    classes = sg.Pipeline.from_pretrained("digits", device="cpu", quiet=True)
    for options in ({"prompt": "a cat"}, {"negative_prompt": "a cat"}):
        with pytest.raises(ConfigError, match="follows classes"):
            classes.generate(**options)  # type: ignore[arg-type]


def test_a_model_without_caption_dropout_refuses_guidance(tmp_path: Path) -> None:
    made = run(tmp_path / "run", *TEXT, *SHORT, "loss.label_dropout=0", recipe="conv-debug")
    pipe = sg.Pipeline.from_pretrained(made, device="cpu", quiet=True)
    pipe.generate(prompt="digit 1")
    with pytest.raises(ConfigError, match="dropout"):
        pipe.generate(prompt="digit 1", guidance=1.4)


def test_a_model_folder_names_a_missing_or_changed_encoder(folder: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(folder, moved)
    config = json.loads((moved / "config.json").read_text())
    for text, named in (
        ({"name": "ngrams", "width": 64, "version": 0}, "version is 1, not 0"),
        ({"name": "someone/not-there-at-all", "width": 64}, "not-there-at-all"),
        ({}, "described wrongly"),
    ):
        (moved / "config.json").write_text(json.dumps({**config, "text": text}))
        pipe = sg.Pipeline.from_pretrained(moved, device="cpu", quiet=True)
        with pytest.raises(sg.SphereGenError, match=named):
            pipe.generate(prompt="digit 1")
        pipe.text_encoder = open_text_encoder(TextEncoderConfig(), 64)  # the user has it elsewhere
        pipe.generate(prompt="digit 1")


# encoders of transformers ---------------------------------------------------------------------------------------------


def test_a_model_trains_on_cached_vectors_of_a_transformer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net = encoder_folder(tmp_path / "net", "bert")
    monkeypatch.setenv("SPHEREGEN_CACHE", str(tmp_path / "kept"))
    settings = (*TEXT, *SHORT, f"text.name={net}", "model.text_width=16", "data.templates=['red {}', 'two blue {}']")
    whole = run(tmp_path / "whole", *settings, recipe="conv-debug")
    (kept,) = (tmp_path / "kept" / "texts").iterdir()
    before = {path.name: path.read_bytes() for path in kept.iterdir()}
    again = interrupted(tmp_path / "again", *settings, stop=4, recipe="conv-debug")
    assert_same_run(run(again, *settings, recipe="conv-debug"), whole)
    assert {path.name: path.read_bytes() for path in kept.iterdir()} == before
    pipe = sg.Pipeline.from_pretrained(whole, device="cpu", quiet=True)
    pipe.generate(prompt="a red heart")
    encoder_folder(net, "bert", seed=1)
    with pytest.raises(TrainingError, match="text"):
        run(again, *settings, "train.checkpoint_every=2", recipe="conv-debug")
    pipe = sg.Pipeline.from_pretrained(whole, device="cpu", quiet=True)
    with pytest.raises(ModelFileError, match="weights"):
        pipe.generate(prompt="a red heart")


class Slow:
    """An encoder that is worth a cache."""

    width, slow = 8, True

    def __init__(self, weights: str = "1") -> None:
        self.identity: Mapping[str, Any] = {"name": "slow", "width": 8, "weights": weights}
        self.encoded = 0

    def encode(self, texts: Any) -> torch.Tensor:
        self.encoded += len(texts)
        return open_text_encoder(TextEncoderConfig(), 16).encode(texts)[:, :8]


MANY = Captions([(f"text {i % 300}", f"other {i}") for i in range(5000)])


def test_each_text_is_encoded_once_and_only_for_its_encoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPHEREGEN_CACHE", str(tmp_path))
    encoder = Slow()
    vectors = cached_vectors(MANY, encoder)
    assert encoder.encoded == 5300
    numbers = np.array([0, 1, 9999, 600])
    expected = encoder.encode([MANY.text(number) for number in numbers.tolist()])
    torch.testing.assert_close(vectors(numbers), expected, atol=1e-3, rtol=1e-3)
    again = Slow()
    assert torch.equal(cached_vectors(MANY, again)(numbers), vectors(numbers)) and again.encoded == 0
    other = Slow("2")
    cached_vectors(MANY, other)
    assert other.encoded == 5300


def test_a_cache_that_is_broken_is_mended_and_one_of_others_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPHEREGEN_CACHE", str(tmp_path))
    cached_vectors(MANY, Slow())
    (place,) = (tmp_path / "texts").iterdir()
    shard = place / "vectors-00001.safetensors"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:100])
    cached_vectors(MANY, again := Slow())
    assert shard.read_bytes() == whole and 0 < again.encoded < 5300
    about = json.loads((place / "index.json").read_text())
    for text, named in ((json.dumps({**about, "count": 1}), "delete it"), ("{", "cannot be read")):
        (place / "index.json").write_text(text)
        with pytest.raises(DataError, match=named):
            cached_vectors(MANY, Slow())


def work(folder: str) -> None:
    """Fill a cache."""
    os.environ["SPHEREGEN_CACHE"] = folder
    with joined_world("cpu") as ours:
        cached_vectors(MANY, Slow(), world=ours)


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no distributed package")
def test_two_processes_fill_a_cache_as_one_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for size in (1, 2):
        monkeypatch.setenv("SPHEREGEN_CACHE", str(tmp_path / str(size)))
        if size == 1:
            cached_vectors(MANY, Slow())
        else:
            assert all(process.finish()[0] == 0 for process in world(2, work, str(tmp_path / "2")))
        files = sorted(path for path in (tmp_path / str(size)).rglob("*") if path.is_file())
        found.append({path.name: path.read_bytes() for path in files})
    assert found[0] == found[1] and len(found[0]) == 3
