"""Results side by side: better and worse, by how much, and when there is no telling."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from spheregen.errors import ConfigError, DataError
from spheregen.evaluation import compare as module
from spheregen.evaluation.compare import ComparedFigure, Comparison, compare
from tests.evaluation.report.examples import example_result

Change = Callable[[dict[str, Any]], None]
Compare = Callable[..., Comparison]


@pytest.fixture
def compared(tmp_path: Path) -> Compare:
    """Compare the example with changed copies of it, which are of other models."""

    def call(*changes: Change) -> Comparison:
        paths = []
        for place, change in enumerate((lambda result: None, *changes)):
            result = example_result()
            result["model"]["fingerprint"] = f"model{place}"
            change(result)
            paths.append(tmp_path / "abc"[place] / "evaluation.json")
            paths[-1].parent.mkdir(exist_ok=True)
            paths[-1].write_text(json.dumps(result), encoding="utf-8")
        return compare(paths)

    return call


def put(values: dict[str, Any]) -> Change:
    """A change of values of a result, by their paths with slashes."""

    def change(result: dict[str, Any]) -> None:
        for path, value in values.items():
            *way, last = path.split("/")
            part = result
            for key in way:
                part = part[key]
            part[last] = value

    return change


def figure_of(found: Comparison, key: str) -> ComparedFigure:
    (figure,) = [figure for figure in found.figures if figure.key == key]
    return figure


FIGURES = "metrics/own/figures/"
REFERENCE = "metrics/own/reference/"


@pytest.mark.parametrize(
    ("path", "key", "value", "best"),
    [
        (f"{FIGURES}frechet", "own/frechet", 20.0, 1),
        (f"{FIGURES}frechet", "own/frechet", 30.0, 0),
        (f"{FIGURES}frechet", "own/frechet", 23.41, None),
        (f"{FIGURES}frechet", "own/frechet", None, None),
        (f"{FIGURES}inception_score", "own/inception_score", 7.0, 1),
        (f"{FIGURES}precision", "own/precision", 0.5, 0),
        ("metrics/inception/figures/cmmd", "inception/cmmd", 0.5, None),
        ("reconstruction/psnr", "reconstruction/psnr", 30.0, 1),
        ("reconstruction/frechet/own", "reconstruction/frechet/own", 2.0, 1),
    ],
)
def test_the_better_one_is_known(compared: Compare, path: str, key: str, value: float | None, best: int | None) -> None:
    found = compared(put({path: value}))
    figure = figure_of(found, key)
    assert figure.best == best and figure.comparable and figure.values[1] == value
    assert found.warnings == ()


def test_differences_are_told_in_errors(compared: Compare) -> None:
    found = compared(put({f"{FIGURES}kid": 0.0133, f"{FIGURES}kid_error": 0.00015, f"{FIGURES}inception_score": 5.8}))
    kid, score, distance = (figure_of(found, f"own/{key}") for key in ("kid", "inception_score", "frechet"))
    assert kid.errors == (0.0002, 0.00015)
    assert kid.apart == (None, pytest.approx(0.001 / 0.00025))
    assert score.apart == (None, pytest.approx(-0.3 / math.hypot(0.1, 0.1)))
    assert distance.apart == (None, None) and distance.errors == (None, None)


def test_settings_of_the_model_are_no_obstacle(compared: Compare) -> None:
    protocol = {"steps": 2, "schedule": [1.0, 0.5], "seed": 7, "torch": "2.14", "share_noise": False}
    values = {f"protocol/{key}": value for key, value in protocol.items()}
    found = compared(put({**values, "model/training/steps": 40000}))
    assert found.warnings == ()
    assert found.settings == {
        "model.fingerprint": ("model0", "model1"),
        "model.training.steps": ("20000", "40000"),
        "seed": ("0", "7"),
        "steps": ("4", "2"),
        "schedule": ("fixed", "1.0, 0.5"),
        "share_noise": ("yes", "no"),
        "torch": ("2.13.0", "2.14"),
    }
    assert figure_of(found, "own/frechet").comparable
    assert figure_of(found, "cost/gflops").values == (pytest.approx(7.5), pytest.approx(3.3))
    assert figure_of(found, "cost/gflops").best == 1
    assert figure_of(found, "cost/images_per_second").values == (80.0, 160.0)


@pytest.mark.parametrize(
    ("path", "value", "words", "spoilt", "sound"),
    [
        ("protocol/count", 50000, "different count of the samples: 10000", "own/frechet", "reconstruction/psnr"),
        ("protocol/quantise", "floor", "quantise of the samples: round", "own/recall", "cost/gflops"),
        ("model/image_shape", [3, 64, 64], "3, 64, 64", "own/frechet", "cost/gflops"),
        ("metrics/own/features/weights", "ff", "own: different weights", "own/frechet", "inception/frechet"),
        (f"{REFERENCE}fingerprint", "00", "own: different images of the reference", "own/kid", "inception/frechet"),
        (f"{REFERENCE}resize", "nearest", "resize of the reference", "own/precision", "inception/frechet"),
        (f"{REFERENCE}kept", 500, "kept of the reference: 10000", "own/recall", "own/frechet"),
        ("reconstruction/count", 100, "count of the reconstructions", "reconstruction/psnr", "own/frechet"),
        ("cost/threads", 8, "different threads of the timing: 2", "cost/latency_p50", "own/frechet"),
    ],
)
def test_what_makes_figures_incomparable_is_told_once(
    compared: Compare, path: str, value: Any, words: str, spoilt: str, sound: str
) -> None:
    def change(result: dict[str, Any]) -> None:
        for entry in result["metrics"].values():  # better in everything, so that only comparability can prevent a mark
            entry["figures"] = {key: None if one is None else one * 0.5 for key, one in entry["figures"].items()}
        for key in ("psnr", "ssim"):
            result["reconstruction"][key] *= 2
        for row in result["cost"]["by_steps"]:
            row.update(gflops=row["gflops"] / 2, images_per_second=1.0, latency_ms={"p50": 1.0})
        put({path: value})(result)

    found = compared(change)
    (warning,) = found.warnings
    assert words in warning and "\n" not in warning
    assert all(name in warning for name in found.names)
    assert not figure_of(found, spoilt).comparable and figure_of(found, spoilt).best is None
    assert figure_of(found, sound).comparable and figure_of(found, sound).best is not None


def test_a_reference_may_go_by_another_name(compared: Compare) -> None:
    assert compared(put({f"{REFERENCE}source": "elsewhere/cifar10"})).warnings == ()
    published = {"file": "one.npz", "kept": 10000, "count": 50000}
    assert any("one.npz" in warning for warning in compared(put({"metrics/own/reference": published})).warnings)


def test_folders_stand_for_their_files(compared: Compare, tmp_path: Path) -> None:
    compared(put({f"{FIGURES}frechet": 20.0}))
    found = compare([tmp_path / "a", tmp_path / "b" / "evaluation.json"])
    assert found.names == (str(tmp_path / "a"), str(tmp_path / "b"))
    answer = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    assert answer["figures"][0]["title"] == "FD-own" and answer["figures"][0]["values"] == [23.41, 20.0]


def test_strange_values_are_not_figures(compared: Compare) -> None:
    found = compared(put({"protocol/dtype": "bfloat16", f"{FIGURES}frechet": 20.0}))
    assert len(found.warnings) == 1 and figure_of(found, "own/frechet").best == 1  # a warning alone
    found = compared(
        put({"protocol": {"images": "folder", "count": 10000}}), lambda result: result["metrics"].pop("own")
    )
    assert any("balanced" in warning and "not said" in warning for warning in found.warnings)
    assert not figure_of(found, "own/frechet").comparable and figure_of(found, "own/frechet").values[2] is None
    cost = {"by_steps": [{"steps": 4, "gflops": None, "latency_ms": 7}]}
    rebuilt = {"psnr": "high", "ssim": True}
    found = compared(put({"reconstruction": rebuilt, "cost": cost, f"{FIGURES}frechet": math.inf}))
    assert figure_of(found, "reconstruction/psnr").values == (28.3, None)
    assert figure_of(found, "own/frechet").values == (23.41, None)
    with pytest.raises(DataError, match="data"):
        compared(put({"data": "cheap"}))


OF_OWN = '{"format": 1, "model": {}, "protocol": {}, "metrics": {"own": {"features": {}, "figures": %s}}}'


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[" * 100_000, "no JSON"),
        ("9" * 10_000, "no JSON"),
        ("\ud800", "no JSON"),
        ("[]", "no object"),
        ('{"format": "' + "x" * 9999 + '"}', "format 'xxx"),
        ('{"format": 1}', "model"),
        (OF_OWN % '{"kid": true}', "metrics.own.figures.kid"),
    ],
    ids=lambda text: text[:25],
)
def test_files_that_are_no_results(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "good.json").write_text(json.dumps(example_result()))
    bad = tmp_path / "bad.json"
    bad.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(DataError, match=r"bad\.json") as caught:
        compare([tmp_path / "good.json", bad])
    assert words in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_missing_large_and_repeated_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "evaluation.json"
    file.write_text(json.dumps(example_result()))
    with pytest.raises(ConfigError):
        compare([file, tmp_path / "x" / ".." / "evaluation.json"])
    with pytest.raises(DataError, match="there is no"):
        compare([file, tmp_path.parent])
    monkeypatch.setattr(module, "MOST_BYTES", 100)
    with pytest.raises(DataError, match="larger"):
        compare([file, tmp_path / "none"])
