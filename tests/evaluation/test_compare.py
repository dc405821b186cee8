"""Results side by side: better and worse, by how much, and when there is no telling."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from spheregen.errors import DataError
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
