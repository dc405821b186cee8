"""A study trains what it must and no more, survives interruptions and failures, and tells true figures."""

from __future__ import annotations

import csv
import io
import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from spheregen.data import ImageOptions, open_source, to_uint8
from spheregen.errors import ConfigError, DataError, SphereGenError, TrainingError
from spheregen.evaluation.ablation import run as running
from spheregen.evaluation.ablation.plan import ALIASES, Plan, make_plan
from spheregen.evaluation.ablation.run import StudyOptions, run_study
from spheregen.evaluation.images import RealImages, take
from spheregen.measure.features import load_extractor
from spheregen.measure.fidelity import psnr
from spheregen.measure.metrics import frechet_distance, gaussian
from spheregen.pipeline import Pipeline
from spheregen.training.recipe import load_recipe
from spheregen.training.trainer import TrainingResult, train
from tests.evaluation.stubs import POOLED

COUNT = 40
SETTINGS = ("train.steps=2", "train.preview_every=0", "optimizer.warmup_steps=0")
FRECHET = f"frechet_{POOLED}"
Trained = list[float]


def plan(*over: str, **options: object) -> Plan:
    return make_plan("debug", over, **options)  # type: ignore[arg-type]


# the plan


@pytest.mark.parametrize(
    ("over", "message"),
    [
        (["=3"], "KEY=VALUE"),
        (["train.steps=1,,2"], "train.steps=1,,2"),
        (["model.patch_size={2,4"], "in YAML"),
        (["noise.alpha_max=60", "model.max_angle=70"], "same thing"),
        (["model.encoder=nano", "model.encoder.width=32"], "same thing"),
        (["train.log_every=1,2"], "nothing to compare"),
        (["noise.alpha_mx=60"], "noise.alpha_max"),
        (["loss.w5=0,0.1", "model.c=1,100"], "loss.w5=0, model.c=100"),
        (["sampling.schedule=fixed,decai"], "decay"),
        (["model.num_classes=0", "sampling.guidance=1.2"], "guidance"),
    ],
)
def test_impossible_studies_are_refused_in_one_line(over: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        plan(*over)
    assert message in str(caught.value) and "\n" not in str(caught.value) and "--set" not in str(caught.value)


def test_combinations_are_recipes_and_the_papers_names_are_keys() -> None:
    load_recipe("debug", [f"{setting}=2" for settings in ALIASES.values() for setting in settings])  # all are known
    (one,) = plan("model.encoder={width: 16, depth: 1, heads: 2}", settings=["train.seed=5"], seeds=3).combinations
    assert [each.recipe.train.seed for each in one.trainings] == [5, 6, 7] and one.recipe.model.encoder.width == 16
    made = plan("model.num_classes=0,10", "sampling.steps=1,2,4", settings=["sampling.guidance=1.5"])
    assert [tuple(one.values.values()) for one in made.combinations] == list(itertools.product((0, 10), (1, 2, 4)))
    assert len(made.trainings) == 2 and all(len(made.of(training)) == 3 for training in made.trainings)
    assert made.combinations[0].label == "model.num_classes=0, sampling.steps=1"
    assert [one.generation.guidance for one in made.combinations] == [1.0] * 3 + [1.5] * 3
    made = plan("noise.alpha_max=45,60", "model.mixer_depth=0", settings=["loss.w5=0.5"])
    assert [one.recipe.model.max_angle for one in made.combinations] == [45, 60]
    model = made.combinations[0].recipe.model
    assert (model.encoder_mixer_depth, model.decoder_mixer_depth) == (0, 0)
    assert made.base.loss.latent_consistency == 0.5


def test_names_are_readable_and_a_training_is_known_by_what_decides_its_weights() -> None:
    made = plan("model.encoder={width: 16, depth: 1, heads: 2},{width: 32, depth: 1, heads: 2}", seeds=2)
    names = [each.name for each in made.trainings]
    assert len(set(names)) == 4 and names[0].startswith("encoder-width-16-depth-1-heads-2-seed-0-")
    own = plan("loss.w5=0.1").trainings[0].digest  # the default
    assert plan("sampling.steps=2").trainings[0].digest == own
    assert plan("loss.w5=0.1", settings=["train.log_every=1", "name=other"]).trainings[0].digest == own
    assert plan("loss.w5=0.2").trainings[0].digest != own
    assert plan("loss.w5=0.1", settings=["train.seed=1"]).trainings[0].digest != own


# running it


def study(folder: Path, *over: str, settings: tuple[str, ...] = (), count: int = COUNT) -> dict[str, Any]:
    made = plan(*over, settings=(*SETTINGS, *settings))
    found = run_study(made, StudyOptions(out=folder, count=count, split="test", features=(POOLED,), device="cpu"))
    assert found is not None
    return found


def statuses(found: dict[str, Any]) -> list[str]:
    return [row["runs"][0]["status"] for row in found["rows"]]


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


@pytest.fixture(scope="module", autouse=True)
def few() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(running, "RECONSTRUCTED", 32)
        patch.setattr(
            running, "sampling_speed", lambda _, settings, **__: [{"images_per_second": 9.0} for _ in settings]
        )
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("study")
    return folder, study(folder, "noise.alpha_max=45,60", "sampling.steps=1,3")


def test_figures_are_those_of_the_trained_models(finished: tuple[Path, dict[str, Any]]) -> None:
    folder, found = finished
    extractor = load_extractor(POOLED)
    geometry = ImageOptions(image_size=8, channels=1)
    real = RealImages(open_source("digits", split="test"), geometry)
    reference = gaussian(extractor(take(real, len(real))).features)
    images = take(RealImages(real.source, geometry, limit=32), 32).float() / 255
    assert len(list((folder / "runs").iterdir())) == 2
    for row in found["rows"]:
        run = folder / "runs" / row["runs"][0]["run"]
        pipe = Pipeline.from_pretrained(run, device="cpu", quiet=True)
        assert pipe.model.config.max_angle == row["settings"]["noise.alpha_max"]
        samples = pipe.generate(COUNT, seed=0, steps=row["settings"]["sampling.steps"])
        ours = gaussian(extractor(to_uint8(samples.tensor)).features)
        assert row["mean"][FRECHET] == pytest.approx(frechet_distance(ours, reference), rel=1e-6)
        copies = to_uint8(pipe.reconstruct(images)).float() / 255
        assert row["mean"]["psnr"] == pytest.approx(float(psnr(copies, images).double().mean()), rel=1e-6)
        assert row["mean"]["loss"] == json.loads((run / "log.jsonl").read_text().splitlines()[-1])["loss"]
        assert row["mean"]["train_seconds"] > 0 and row["mean"]["ms_per_image"] > 0


def test_files_hold_the_same_table(finished: tuple[Path, dict[str, Any]]) -> None:
    folder, found = finished
    assert json.loads((folder / "ablation.json").read_text("utf-8")) == json.loads(json.dumps(found))
    rows = list(csv.DictReader(io.StringIO((folder / "ablation.csv").read_text("utf-8"))))
    assert [float(row[FRECHET]) for row in rows] == [row["mean"][FRECHET] for row in found["rows"]]
    assert [row["noise.alpha_max"] for row in rows] == ["45.0", "45.0", "60.0", "60.0"]
    page = (folder / "index.html").read_text("utf-8")
    for words in (
        f"FD-{POOLED} against noise.alpha_max",
        "sampling.steps=3",
    ):
        assert words in page
    assert page.count("data:image/png") == 4


def test_going_on_trains_what_is_new_alone(
    finished: tuple[Path, dict[str, Any]], trained: Callable[..., Trained]
) -> None:
    folder, before = finished
    angles = trained()
    again = study(folder, "noise.alpha_max=45,60", "sampling.steps=1,3")
    assert angles == [] and [row["mean"] for row in again["rows"]] == [row["mean"] for row in before["rows"]]
    # 0.1 is what the recipe says: these are the same models under a longer name
    found = study(folder, "noise.alpha_max=60,70,45", "loss.w5=0.1", "sampling.steps=1")
    assert angles == [70]
    known = {row["settings"]["noise.alpha_max"]: row for row in before["rows"][::2]}
    assert found["rows"][0]["mean"] == known[60]["mean"] and found["rows"][2]["mean"] == known[45]["mean"]
    assert found["rows"][0]["runs"][0]["run"] == known[60]["runs"][0]["run"]
    other = study(folder, "noise.alpha_max=45", "sampling.steps=1", count=COUNT + 20)["rows"][0]["mean"]
    assert other[FRECHET] != known[45]["mean"][FRECHET] and other["psnr"] == known[45]["mean"]["psnr"]


def test_a_killed_study_goes_on_and_a_broken_result_is_made_again(
    tmp_path: Path, trained: Callable[..., Trained]
) -> None:
    trained(stopping=(60,))
    with pytest.raises(KeyboardInterrupt):
        study(tmp_path, "noise.alpha_max=45,60")
    saved = json.loads((tmp_path / "ablation.json").read_text("utf-8"))
    assert statuses(saved) == ["done", "waiting"]
    angles = trained()
    found = study(tmp_path, "noise.alpha_max=45,60")
    assert angles == [60] and found["rows"][0] == saved["rows"][0]
    for result in (tmp_path / "results").iterdir():
        result.write_text("{", encoding="utf-8")
    again = study(tmp_path, "noise.alpha_max=45,60")
    assert [row["mean"][FRECHET] for row in again["rows"]] == [row["mean"][FRECHET] for row in found["rows"]]


def test_a_failed_training_is_noted_and_tried_again_last(tmp_path: Path, trained: Callable[..., Trained]) -> None:
    trained(failing=(45, 60))
    with pytest.raises(SphereGenError, match="on fire"):
        study(tmp_path, "noise.alpha_max=45,60")
    assert "the disk is on fire" in (tmp_path / "index.html").read_text("utf-8")
    angles = trained(failing=(45,))
    found = study(tmp_path, "noise.alpha_max=45,60")
    assert angles == [45, 60] and statuses(found) == ["failed", "done"]
    assert found["rows"][0]["runs"][0]["error"] == "the disk is on fire"
    assert "the disk is on fire" in (tmp_path / "ablation.csv").read_text("utf-8")
    angles = trained()
    assert set(statuses(study(tmp_path, "noise.alpha_max=45,60,70"))) == {"done"}
    assert angles == [70, 45]


@pytest.mark.parametrize(
    ("over", "settings", "error"),
    [
        ("model.num_classes=10,7", (), "num_classes"),
        ("data.split=train,nothing", (), "nothing"),
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
