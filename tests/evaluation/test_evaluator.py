"""Figures of a model's samples: repeatable, whoever shares the work, and told with their recipe."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from spheregen.data import ImageOptions, open_source, to_uint8
from spheregen.errors import ConfigError
from spheregen.evaluation.evaluator import Evaluator, evaluate, make_references
from spheregen.evaluation.images import GeneratedImages, RealImages, take
from spheregen.evaluation.protocol import EvaluationOptions
from spheregen.measure.metrics import frechet_distance, gaussian
from spheregen.pipeline import GenerationOptions, Pipeline
from tests.evaluation.stubs import TinyFeatures

COUNT = 120


@pytest.fixture(scope="module")
def pipe() -> Pipeline:
    return Pipeline.from_pretrained("digits", device="cpu", progress=False, quiet=True)


@pytest.fixture(scope="module")
def digits() -> RealImages:
    return RealImages(open_source("digits"), ImageOptions(image_size=8, channels=1))


@pytest.fixture
def evaluator(digits: RealImages, tmp_path: Path) -> Evaluator:
    extractors = {"tiny": TinyFeatures(64)}
    references, _ = make_references(digits, extractors, {}, tmp_path)
    return Evaluator(extractors, references, tmp_path)


def test_sample_i_has_seed_i_and_the_classes_take_turns(pipe: Pipeline) -> None:
    samples = GeneratedImages(pipe, 30, seed=7)
    assert samples.labels is not None
    assert samples.labels.tolist() == [(7 + i) % 10 for i in range(30)]
    (middle,) = samples.stream([slice(11, 14)])
    expected = pipe.generate(seeds=[18, 19, 20]).tensor
    assert torch.equal(middle, to_uint8(expected))


def test_the_figures_are_those_of_the_samples(pipe: Pipeline, digits: RealImages, evaluator: Evaluator) -> None:
    result, scores = evaluate(pipe, EvaluationOptions(count=COUNT), evaluator)
    samples = to_uint8(pipe.generate(COUNT, seed=0).tensor)
    tiny = evaluator.extractors["tiny"]
    real = tiny(take(digits, len(digits))).features
    expected = frechet_distance(gaussian(tiny(samples).features), gaussian(real))
    assert result["metrics"]["tiny"]["figures"]["frechet"] == pytest.approx(expected, rel=1e-6)
    assert scores.values["tiny"] == result["metrics"]["tiny"]["figures"]
    names = "frechet class_score class_score_deviation precision recall density coverage"
    assert set(scores.values["tiny"]) == set(names.split())
    assert "kid" in result["notes"][0], "too few samples for KID's subsets: told, not raised"
    json.dumps(result, allow_nan=False)


def test_the_line_says_everything(pipe: Pipeline, evaluator: Evaluator) -> None:
    generation = GenerationOptions(steps=2, schedule="decay", guidance=1.5, guidance_at="pixel", share_noise=False)
    options = EvaluationOptions(count=20, seed=5, generation=generation, rounding="floor", metrics=("frechet",))
    line = evaluate(pipe, options, evaluator)[0]["line"]
    parts = ["FD-tiny ", "1400 images", "digits/train", "8 px, crop, adm", "tiny@01234567", "seeds 5 to 24"]
    parts += [f"20 samples of digits ({pipe.identity})", "balanced labels", "2 steps", "decay schedule"]
    parts += ["fresh noise", "guidance 1.5 at pixel", "8 bits by floor", "batches of 256", torch.__version__]
    parts.append(f"float32 on cpu with {torch.get_num_threads()} threads")
    assert [part for part in parts if part not in line] == []


def test_moments_alone_allow_no_neighbours(pipe: Pipeline, evaluator: Evaluator) -> None:
    reference = dataclasses.replace(evaluator.references["tiny"], features=None, source="adm.npz")
    other = dataclasses.replace(evaluator, references={"tiny": reference})
    found = other.score(GeneratedImages(pipe, 20))
    assert set(found.values["tiny"]) == {"frechet", "class_score", "class_score_deviation"}
    with pytest.raises(ConfigError, match=r"adm\.npz"):
        other.score(GeneratedImages(pipe, 20), metrics=("manifold",))
