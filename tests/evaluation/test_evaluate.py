"""Figures of a model's samples: repeatable, whoever shares the work, and told with their recipe."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from spheregen.data import ImageOptions, open_source, to_uint8
from spheregen.errors import ConfigError, DataError
from spheregen.evaluation.curves import check_curves, parse_curve, score_curves, usual_curves
from spheregen.evaluation.evaluate import EvaluationOptions, Evaluator, evaluate, make_references
from spheregen.evaluation.figures import choose_metrics, figures
from spheregen.evaluation.images import GeneratedImages, ImagesAsTheyAre, RealImages, take
from spheregen.evaluation.measure import measure
from spheregen.evaluation.metrics import frechet_distance, moments
from spheregen.pipeline import GenerationOptions, Pipeline
from tests.evaluation.stubs import RandomImages, TinyFeatures
from tests.models.test_flow_refiner import refined

COUNT = 300


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
    expected = frechet_distance(
        moments(tiny(samples).features).gaussian, moments(tiny(take(digits, len(digits))).features).gaussian
    )
    assert result["metrics"]["tiny"]["figures"]["frechet"] == pytest.approx(expected, rel=1e-6)
    assert scores.values["tiny"] == result["metrics"]["tiny"]["figures"]
    assert set(scores.values["tiny"]) == {
        "frechet",
        "class_score",
        "class_score_deviation",
        "precision",
        "recall",
        "density",
        "coverage",
    }
    assert result["notes"] and "kid" in result["notes"][0], (
        "300 samples are too few for KID's subsets: told, not raised"
    )
    json.dumps(result, allow_nan=False)


def test_repeated_runs_agree_to_the_last_digit(pipe: Pipeline, digits: RealImages, tmp_path: Path) -> None:
    found = []
    for work in ("one", "two"):
        extractors = {"tiny": TinyFeatures(64)}
        references, _ = make_references(digits, extractors, {}, tmp_path / work)
        evaluator = Evaluator(extractors, references, tmp_path / work)
        result, _ = evaluate(pipe, EvaluationOptions(count=COUNT), evaluator)
        found.append((result["metrics"], result["line"]))
    assert found[0] == found[1]


def test_the_line_says_everything(pipe: Pipeline, evaluator: Evaluator) -> None:
    generation = GenerationOptions(steps=2, schedule="decay", guidance=1.5, guidance_at="pixel", share_noise=False)
    options = EvaluationOptions(count=20, seed=5, generation=generation, rounding="floor", metrics=("frechet",))
    line = evaluate(pipe, options, evaluator)[0]["line"]
    for part in (
        "FD-tiny ",
        "1400 images",
        "digits/train",
        "8 px, crop, adm",
        "tiny@01234567",
        f"20 samples of digits ({pipe.fingerprint})",
        "seeds 5 to 24",
        "balanced labels",
        "2 steps",
        "decay schedule",
        "fresh noise",
        "guidance 1.5 at pixel",
        "8 bits by floor",
        f"float32 on cpu with {torch.get_num_threads()} threads, batches of 256",
        torch.__version__,
    ):
        assert part in line, part


def test_every_setting_of_the_protocol_changes_the_plan(pipe: Pipeline) -> None:
    base = GeneratedImages(pipe, 10).describe()
    for other in (
        GeneratedImages(pipe, 11),
        GeneratedImages(pipe, 10, seed=1),
        GeneratedImages(pipe, 10, rounding="floor"),
        GeneratedImages(pipe, 10, options=GenerationOptions(steps=7)),
        GeneratedImages(pipe, 10, options=GenerationOptions(schedule=[0.5, 0.2, 0.1])),
        GeneratedImages(pipe, 10, options=GenerationOptions(guidance=3.0)),
        GeneratedImages(pipe, 10, options=GenerationOptions(guidance_at="pixel")),
        GeneratedImages(pipe, 10, options=GenerationOptions(share_noise=False)),
    ):
        assert other.describe() != base
        json.dumps(other.describe())


def test_a_model_in_memory_is_known_by_its_weights(pipe: Pipeline) -> None:
    import copy

    same = Pipeline(copy.deepcopy(pipe.model), pipe.info, progress=False)
    assert same.identity == Pipeline(pipe.model, pipe.info, progress=False).identity
    with torch.no_grad():
        next(same.model.parameters()).add_(1e-3)
    assert same.identity != Pipeline(pipe.model, pipe.info, progress=False).identity


def test_too_few_images_are_an_error_only_for_a_metric_that_was_asked_for(pipe: Pipeline, evaluator: Evaluator) -> None:
    with pytest.raises(DataError, match="1000"):
        evaluate(pipe, EvaluationOptions(count=20, metrics=("kid",)), evaluator)
    result, _ = evaluate(pipe, EvaluationOptions(count=3), evaluator)
    assert any("full rank" in note for note in result["notes"])


def test_metrics_that_a_network_does_not_allow_are_refused() -> None:
    info = TinyFeatures(64).info
    assert choose_metrics(None, info) == ("frechet", "kid", "class_score", "manifold")
    with pytest.raises(ConfigError, match="unit norm"):
        choose_metrics(["cmmd"], info)
    with pytest.raises(ConfigError, match="did you mean 'frechet'"):
        choose_metrics(["frechett"], info)


def test_moments_alone_allow_no_neighbours(pipe: Pipeline, evaluator: Evaluator, tmp_path: Path) -> None:
    import dataclasses

    reference = dataclasses.replace(evaluator.references["tiny"], features=None, source="adm.npz")
    info = evaluator.extractors["tiny"].info
    measured = measure(GeneratedImages(pipe, 20), evaluator.extractors, tmp_path)
    assert set(figures(measured, reference, info).values) == {"frechet", "class_score", "class_score_deviation"}
    with pytest.raises(ConfigError, match=r"adm\.npz holds only moments"):
        figures(measured, reference, info, metrics=("manifold",))


def test_real_images_score_better_than_noise(digits: RealImages, evaluator: Evaluator) -> None:
    unseen = RealImages(open_source("digits", split="test"), digits.options)
    real = evaluator.score(unseen, metrics=("frechet",)).values["tiny"]["frechet"]
    noise = evaluator.score(RandomImages(397), metrics=("frechet",)).values["tiny"]["frechet"]
    assert real < noise / 10


def test_nothing_to_compare_with_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--data SRC"):
        make_references(None, {"tiny": TinyFeatures(64)}, {}, tmp_path)


def test_curves_measure_each_setting_once(pipe: Pipeline, evaluator: Evaluator) -> None:
    curves = (parse_curve("steps=1,4"), parse_curve("noise=shared,fresh"), parse_curve("angle=30,53"))
    options = EvaluationOptions(curves=curves, curve_count=64)
    tiny = evaluator.extractors["tiny"]
    assert isinstance(tiny, TinyFeatures)
    before = tiny.seen
    steps, noise, angle = score_curves(pipe, options, evaluator, repeats=1)
    assert tiny.seen - before == 5 * 64, "4 steps and shared noise are the model's own setting"
    assert [point["value"] for point in steps["points"]] == [1, 4]
    assert steps["points"][1] == {**noise["points"][0], "value": 4}
    assert steps["points"][0]["gflops_per_image"] < steps["points"][1]["gflops_per_image"]
    assert all(point["ms_per_image"] > 0 for curve in (steps, noise, angle) for point in curve["points"])
    # at the training's own angle the angle curve is the fixed schedule
    largest = pipe.model.config.max_angle
    assert largest == 53
    assert angle["points"][1]["figures"]["tiny"]["frechet"] == pytest.approx(
        steps["points"][1]["figures"]["tiny"]["frechet"], rel=1e-3
    )


def test_curves_over_a_refinement(tmp_path: Path) -> None:
    pipe = Pipeline(refined(), device="cpu", progress=False)
    names = [curve.name for curve in usual_curves(pipe, GenerationOptions(steps=1))]
    assert names == ["steps", "guidance", "refinement_steps", "refinement_guidance", "solver"]
    extractors = {"tiny": TinyFeatures(192)}
    pipe.generate(32, seed=99).save(tmp_path / "others")
    others = RealImages(open_source(tmp_path / "others", split="all"), ImageOptions(image_size=8))
    references, _ = make_references(others, extractors, {}, tmp_path)
    curves = tuple(map(parse_curve, ("refinement-steps=0,2", "refinement_guidance=1,2", "solver=euler,midpoint")))
    generation = GenerationOptions(steps=1, guidance=1.0, refinement_steps=2, solver="euler")
    options = EvaluationOptions(curves=curves, curve_count=16, generation=generation)
    steps, guidance, solver = score_curves(pipe, options, Evaluator(extractors, references, tmp_path), repeats=1)
    assert steps["points"][1] == {**guidance["points"][0], "value": 2} == {**solver["points"][0], "value": 2}
    scores = [p["figures"]["tiny"]["frechet"] for curve in (steps, guidance, solver) for p in curve["points"]]
    assert len({round(score, 6) for score in scores}) == 4, "every setting changes the samples"
    costs = [point["gflops_per_image"] for point in (*steps["points"], *solver["points"])]
    assert costs[0] < costs[1] == costs[2] < costs[3]


def test_a_model_without_a_refiner_has_no_curve_over_it(pipe: Pipeline) -> None:
    with pytest.raises(ConfigError, match="no refiner"):
        check_curves(pipe, GenerationOptions(), [parse_curve("refinement_steps=1,2")])


def test_usual_curves_suit_the_model(pipe: Pipeline) -> None:
    names = [curve.name for curve in usual_curves(pipe, GenerationOptions())]
    assert names == ["steps", "guidance", "schedule", "noise", "angle"]
    assert [curve.name for curve in usual_curves(pipe, GenerationOptions(steps=1))] == ["steps", "guidance"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("step=1", "did you mean 'steps'"),
        ("steps", "steps=VALUE"),
        ("steps=", "steps=VALUE"),
        ("steps=1,,2", "steps=VALUE"),
        ("steps=x", "steps=x"),
        ("schedule=linear", "fixed, decay"),
        ("noise=both", "shared or fresh"),
        ("angle=90", "degrees"),
        ("guidance=nan", "finite"),
        ("solver=rk4", "euler, heun, midpoint"),
        ("refinement-steps=x", "refinement-steps=x"),
    ],
)
def test_bad_curves_are_refused(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parse_curve(text)


def test_samples_of_several_sizes_are_refused(tmp_path: Path) -> None:
    from PIL import Image

    for number, size in enumerate(((8, 8), (8, 8), (9, 9))):
        Image.new("RGB", size).save(tmp_path / f"{number}.png")
    samples = ImagesAsTheyAre(open_source(tmp_path, split="all"))
    assert samples.shape == (3, 8, 8)
    with pytest.raises(DataError, match=r"2\.png is 9 x 9"):
        take(samples, 3)
    Image.new("RGB", (8, 9)).save(tmp_path / "0.png")
    with pytest.raises(DataError, match="square"):
        ImagesAsTheyAre(open_source(tmp_path, split="all"))


def test_saved_samples_have_the_figures_of_the_model(pipe: Pipeline, evaluator: Evaluator, tmp_path: Path) -> None:
    pipe.generate(40).save(tmp_path / "samples.tar")
    saved = ImagesAsTheyAre(open_source(tmp_path / "samples.tar", split="all"))
    direct = evaluator.score(GeneratedImages(pipe, 40), metrics=("frechet",)).values
    assert evaluator.score(saved, metrics=("frechet",)).values == direct
