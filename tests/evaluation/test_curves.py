"""Curves of quality over settings of sampling: each setting is measured once; bad requests are refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from spheregen.data import ImageOptions, open_source
from spheregen.errors import ConfigError
from spheregen.evaluation.curves import check_curves, parse_curve, usual_curves
from spheregen.evaluation.evaluator import Evaluator, make_references
from spheregen.evaluation.images import RealImages
from spheregen.evaluation.protocol import EvaluationOptions
from spheregen.evaluation.studies import score_curves
from spheregen.pipeline import GenerationOptions, Pipeline
from tests.evaluation.stubs import TinyFeatures
from tests.family.test_sphere_flow import refined
from tests.training.runs import run


@pytest.fixture(scope="module")
def pipe() -> Pipeline:
    return Pipeline.from_pretrained("digits", device="cpu", progress=False, quiet=True)


@pytest.fixture
def evaluator(tmp_path: Path) -> Evaluator:
    digits = RealImages(open_source("digits"), ImageOptions(image_size=8, channels=1))
    extractors = {"tiny": TinyFeatures(64)}
    references, _ = make_references(digits, extractors, {}, tmp_path)
    return Evaluator(extractors, references, tmp_path)


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


def test_usual_curves_suit_the_model(pipe: Pipeline, tmp_path: Path) -> None:
    names = [curve.name for curve in usual_curves(pipe, GenerationOptions())]
    assert names == ["steps", "prior", "guidance", "schedule", "noise", "angle"]
    assert [curve.name for curve in usual_curves(pipe, GenerationOptions(steps=1))] == ["steps", "prior", "guidance"]
    with pytest.raises(ConfigError, match="no refiner"):
        check_curves(pipe, GenerationOptions(), [parse_curve("refinement_steps=1,2")])
    model = run(tmp_path / "model", "train.steps=2", "train.preview_every=0", recipe="conv-debug")
    fitted = Pipeline.from_pretrained(model, device="cpu", progress=False, quiet=True)
    assert "prior" in [curve.name for curve in usual_curves(fitted, GenerationOptions())], "both, side by side"
    assert "temperature" in [curve.name for curve in usual_curves(fitted, GenerationOptions(prior="fitted"))]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("step=1", "did you mean 'steps'"),
        ("steps=1,,2", "steps=VALUE"),
        ("schedule=linear", "fixed.*decay"),
        ("noise=both", "shared.*fresh"),
        ("angle=91", "90"),
        ("guidance=nan", "finite"),
    ],
)
def test_bad_curves_are_refused(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parse_curve(text)
