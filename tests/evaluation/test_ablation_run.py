"""A study trains what it must and no more, survives interruptions and failures, and tells true figures."""

from __future__ import annotations

import csv
import io
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from spheregen.data import ImageOptions, open_source, to_uint8
from spheregen.errors import ConfigError, DataError, SphereGenError, TrainingError
from spheregen.evaluation.ablation import run as running
from spheregen.evaluation.ablation.plan import make_plan
from spheregen.evaluation.ablation.record import best_rows, columns
from spheregen.evaluation.ablation.run import StudyOptions, run_study
from spheregen.evaluation.features import load_extractor
from spheregen.evaluation.fidelity import psnr
from spheregen.evaluation.images import RealImages, take
from spheregen.evaluation.metrics import frechet_distance, moments
from spheregen.pipeline import Pipeline
from spheregen.training.trainer import TrainingResult, train

COUNT = 40
SETTINGS = ("train.steps=2", "train.preview_every=0", "optimizer.warmup_steps=0")
Trained = list[float]


def study(
    folder: Path, *over: str, settings: tuple[str, ...] = (), count: int = COUNT, **options: Any
) -> dict[str, Any]:
    plan = make_plan("debug", over, settings=(*SETTINGS, *settings), **options)
    found = run_study(plan, StudyOptions(out=folder, count=count, split="test", device="cpu"))
    assert found is not None
    return found


def stripped(found: dict[str, Any]) -> list[Any]:
    return [(row["label"], row["mean"], [run["status"] for run in row["runs"]]) for row in found["rows"]]


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Trained]:
    """Watch trainings: the list gets the largest angle of each. Those of `failing` and `stopping` angles do not end."""

    def watch(*, failing: tuple[float, ...] = (), stopping: tuple[float, ...] = ()) -> Trained:
        angles: Trained = []

        def watched(recipe: Any, out: Path, **options: Any) -> TrainingResult:
            angles.append(recipe.model.max_angle)
            if recipe.model.max_angle in stopping:
                raise KeyboardInterrupt
            if recipe.model.max_angle in failing:
                raise TrainingError("the disk\nis on fire")
            return train(recipe, out, **options)

        monkeypatch.setattr(running, "train", watched)
        return angles

    return watch


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("study")
    return folder, study(folder, "noise.alpha_max=45,60", "sampling.steps=1,3")


# figures


def test_figures_are_those_of_the_trained_models(finished: tuple[Path, dict[str, Any]]) -> None:
    folder, found = finished
    extractor = load_extractor("own", device=torch.device("cpu"))
    geometry = ImageOptions(image_size=8, channels=1)
    real = RealImages(open_source("digits", split="test"), geometry)
    reference = moments(extractor(take(real, len(real))).features).gaussian
    for row in found["rows"]:
        pipe = Pipeline.from_pretrained(folder / "runs" / row["runs"][0]["run"], device="cpu", quiet=True)
        assert pipe.model.config.max_angle == row["settings"]["noise.alpha_max"]
        samples = pipe.generate(COUNT, seed=0, steps=row["settings"]["sampling.steps"])
        ours = moments(extractor(to_uint8(samples.tensor)).features).gaussian
        assert row["mean"]["frechet_own"] == pytest.approx(frechet_distance(ours, reference), rel=1e-6)
        images = take(RealImages(real.source, geometry, limit=256), 256).float() / 255
        copies = to_uint8(pipe.reconstruct(images)).float() / 255
        assert row["mean"]["psnr"] == pytest.approx(float(psnr(copies, images).double().mean()), rel=1e-6)
        log = (folder / "runs" / row["runs"][0]["run"] / "log.jsonl").read_text().splitlines()
        assert row["mean"]["loss"] == json.loads(log[-1])["loss"]
        assert row["mean"]["train_seconds"] > 0 and row["mean"]["ms_per_image"] > 0


def test_sampling_keys_share_what_training_decides(finished: tuple[Path, dict[str, Any]]) -> None:
    folder, found = finished
    assert len(list((folder / "runs").iterdir())) == 2
    for one, three in (found["rows"][:2], found["rows"][2:]):
        assert one["runs"][0]["run"] == three["runs"][0]["run"]
        assert all(one["mean"][key] == three["mean"][key] for key in ("psnr", "loss", "train_seconds"))
        assert one["mean"]["frechet_own"] != three["mean"]["frechet_own"]


def test_the_best_rows_are_marked() -> None:
    shown = columns({"own": "FD-own"})
    means = [
        {"frechet_own": 3.0, "psnr": 20.0},
        {},
        {"frechet_own": 2.0, "psnr": 20.0},
        {"frechet_own": 4.0, "psnr": 9},
    ]
    # both rows of a model that reconstructs best; nothing of times and losses
    assert best_rows([{"mean": mean} for mean in means], shown) == {"frechet_own": [2], "psnr": [0, 2]}
    assert best_rows([{"mean": means[0]}, {"mean": means[0]}, {"mean": {}}], shown) == {}


def test_files_hold_the_same_table(finished: tuple[Path, dict[str, Any]]) -> None:
    folder, found = finished
    assert json.loads((folder / "ablation.json").read_text("utf-8")) == json.loads(json.dumps(found))
    rows = list(csv.DictReader(io.StringIO((folder / "ablation.csv").read_text("utf-8"))))
    assert [float(row["frechet_own"]) for row in rows] == [row["mean"]["frechet_own"] for row in found["rows"]]
    assert [row["noise.alpha_max"] for row in rows] == ["45.0", "45.0", "60.0", "60.0"]
    page = (folder / "index.html").read_text("utf-8")
    assert "FD-own against noise.alpha_max" in page and "FD-own against sampling.steps" in page
    assert "data:image/png" in page
    assert found["protocol"]["count"] == COUNT and found["protocol"]["reference"]["count"] == 397
    assert any("full rank" in note for row in found["rows"] for note in row["runs"][0]["notes"])


def test_seeds_give_mean_and_deviation(tmp_path: Path) -> None:
    (row,) = study(tmp_path, "loss.w5=0", seeds=3)["rows"]
    assert [run["seed"] for run in row["runs"]] == [0, 1, 2]
    values = [run["figures"]["frechet_own"] for run in row["runs"]]
    assert len(set(values)) == 3
    assert row["mean"]["frechet_own"] == pytest.approx(statistics.fmean(values))
    assert row["deviation"]["frechet_own"] == pytest.approx(statistics.stdev(values))


# going on


def test_the_same_study_again_trains_nothing(
    finished: tuple[Path, dict[str, Any]], trained: Callable[..., Trained]
) -> None:
    folder, before = finished
    angles = trained()
    assert stripped(study(folder, "noise.alpha_max=45,60", "sampling.steps=1,3")) == stripped(before)
    assert angles == []


def test_more_values_need_the_new_trainings_alone(
    finished: tuple[Path, dict[str, Any]], trained: Callable[..., Trained]
) -> None:
    folder, before = finished
    angles = trained()
    # 0.1 is what the recipe says: these are the same models under a longer name
    found = study(folder, "noise.alpha_max=60,70,45", "loss.w5=0.1", "sampling.steps=1")
    assert angles == [70]
    known = {row["settings"]["noise.alpha_max"]: row["mean"] for row in before["rows"][::2]}
    assert found["rows"][0]["mean"] == known[60] and found["rows"][2]["mean"] == known[45]
    assert found["rows"][0]["runs"][0]["run"] == before["rows"][2]["runs"][0]["run"]


def test_another_protocol_is_another_figure(
    finished: tuple[Path, dict[str, Any]], trained: Callable[..., Trained]
) -> None:
    folder, before = finished
    found = study(folder, "noise.alpha_max=45", "sampling.steps=1", count=COUNT + 20)
    assert found["rows"][0]["mean"]["frechet_own"] != before["rows"][0]["mean"]["frechet_own"]
    assert found["rows"][0]["mean"]["psnr"] == before["rows"][0]["mean"]["psnr"]


def test_a_killed_study_goes_on(tmp_path: Path, trained: Callable[..., Trained]) -> None:
    angles = trained(stopping=(60,))
    with pytest.raises(KeyboardInterrupt):
        study(tmp_path, "noise.alpha_max=45,60")
    assert angles == [45, 60]
    saved = json.loads((tmp_path / "ablation.json").read_text("utf-8"))
    assert [row["runs"][0]["status"] for row in saved["rows"]] == ["done", "waiting"]
    angles = trained()
    found = study(tmp_path, "noise.alpha_max=45,60")
    assert angles == [60]
    assert found["rows"][0] == saved["rows"][0]


def test_a_broken_result_is_made_again(tmp_path: Path) -> None:
    before = study(tmp_path, "loss.w5=0")
    (result,) = (tmp_path / "results").iterdir()
    result.write_text("{", encoding="utf-8")
    after = study(tmp_path, "loss.w5=0")
    assert after["rows"][0]["mean"]["frechet_own"] == before["rows"][0]["mean"]["frechet_own"]


# failures


def test_a_failed_training_is_noted_and_tried_again_last(tmp_path: Path, trained: Callable[..., Trained]) -> None:
    trained(failing=(45,))
    found = study(tmp_path, "noise.alpha_max=45,60", "sampling.steps=1,2")
    assert [row["runs"][0]["status"] for row in found["rows"]] == ["failed", "failed", "done", "done"]
    assert found["rows"][0]["runs"][0]["error"] == "the disk is on fire"
    assert "the disk is on fire" in (tmp_path / "index.html").read_text("utf-8")
    assert "the disk is on fire" in (tmp_path / "ablation.csv").read_text("utf-8")
    angles = trained()
    found = study(tmp_path, "noise.alpha_max=45,60,70", "sampling.steps=1,2")
    assert angles == [70, 45]
    assert {row["runs"][0]["status"] for row in found["rows"]} == {"done"}


def test_a_diverged_training_is_a_row(tmp_path: Path) -> None:
    found = study(tmp_path, "optimizer.lr=1e-3,1e30", settings=("train.steps=8",))
    assert found["rows"][0]["runs"][0]["status"] == "done"
    failed = found["rows"][1]["runs"][0]
    assert failed["status"] == "failed" and "not finite" in failed["error"]


def test_if_nothing_succeeds_the_study_fails_with_the_reason(tmp_path: Path, trained: Callable[..., Trained]) -> None:
    trained(failing=(45, 60))
    with pytest.raises(SphereGenError, match=r"none of the 2 combinations .* on fire"):
        study(tmp_path, "noise.alpha_max=45,60")
    assert (tmp_path / "index.html").is_file()


@pytest.mark.parametrize(
    ("over", "settings", "error"),
    [
        ("model.num_classes=10,7", (), "model.num_classes=10"),
        ("data.split=train,nothing", (), "no split"),
        ("noise.alpha_max=45", ("data.source=nowhere/at.zip",), "nowhere"),
    ],
)
def test_data_that_do_not_fit_are_found_before_any_training(
    tmp_path: Path, trained: Callable[..., Trained], over: str, settings: tuple[str, ...], error: str
) -> None:
    angles = trained()
    with pytest.raises((ConfigError, DataError), match=error):
        study(tmp_path, over, settings=settings)
    assert angles == [] and list(tmp_path.iterdir()) == []


def test_options_are_checked() -> None:
    with pytest.raises(ConfigError, match="at least 2"):
        StudyOptions(out=Path("x"), count=1)
    with pytest.raises(ConfigError, match="feature network"):
        StudyOptions(out=Path("x"), features=())
