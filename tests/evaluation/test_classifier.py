"""The classifier: a small classifier of the data that says whether samples show what was asked for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from spheregen.data import ImageOptions, open_source
from spheregen.errors import ConfigError, ModelFileError
from spheregen.evaluation.classifier import make_classifier, turned
from spheregen.evaluation.images import RealImages, take
from spheregen.evaluation.protocol import EvaluationOptions
from spheregen.evaluation.request import Request, run
from spheregen.evaluation.scorers import DataScorer
from spheregen.measure.features import classifier, load_extractor
from spheregen.measure.features.classifier import SmallClassifier, load_classifier, train_classifier
from tests.evaluation.stubs import POOLED


def digits(split: str = "train", limit: int | None = None) -> RealImages:
    return RealImages(open_source("digits", split=split), ImageOptions(image_size=8, channels=1), limit=limit)


def test_it_learns_the_classes_once_and_says_how_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classifier, "SEEN", 12_800)
    held_out = digits("test")
    found = make_classifier(digits(), tmp_path, held_out=held_out)
    made = found(take(held_out, len(held_out)))
    assert made.logits is not None and found.info.classes == 10
    right = made.logits.argmax(dim=1) == torch.as_tensor(held_out.labels)
    assert found.info.accuracy == pytest.approx(float(right.float().mean())) and found.info.accuracy > 0.9
    monkeypatch.setattr("spheregen.evaluation.classifier.train_classifier", None)  # what is there is taken
    again = make_classifier(digits(), tmp_path, held_out=held_out)
    assert again.info == found.info
    with pytest.raises(TypeError):
        make_classifier(digits(limit=500), tmp_path, held_out=held_out)  # other images, another classifier


def test_the_same_images_make_the_same_judge_whatever_the_caller_drew() -> None:
    images, labels = torch.randint(256, (40, 3, 16, 16), dtype=torch.uint8), torch.arange(40) % 4
    one = train_classifier(images, labels, 4, flips=True)
    torch.rand(7)
    with torch.inference_mode():  # nor whether it wanted gradients
        two = train_classifier(images, labels, 4, flips=True)
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))


@pytest.mark.parametrize("size", [8, 28, 32, 48, 60, 64, 96])
def test_every_size_is_seen(size: int) -> None:
    model = SmallClassifier(3, size, 5).eval()
    assert model(torch.zeros(2, 3, size, size, dtype=torch.uint8)).shape == (2, 5)


@pytest.mark.parametrize("classes", [(), ("red", "blue")])
def test_without_the_classes_of_the_model_it_learns_how_images_were_turned(
    tmp_path: Path, classes: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = digits(limit=40)
    if not classes:
        data.labels = None
    found = make_classifier(data, tmp_path, class_names=classes)
    assert found.info.accuracy is None and found(take(data, 4)).logits is None
    images, quarters = turned(take(data, 8))
    back = [image.rot90(-int(quarter), (1, 2)) for image, quarter in zip(images, quarters, strict=True)]
    assert torch.equal(torch.stack(back), take(data, 8)) and sorted(set(quarters.tolist())) == [0, 1, 2, 3]


def test_a_file_of_something_else_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "classifier.safetensors"
    path.write_bytes(b"nonsense")
    with pytest.raises(ModelFileError, match="no file of a classifier"):
        load_classifier(path)
    with pytest.raises(ConfigError, match="learns from real images"):
        load_extractor("classifier")


def test_what_it_cannot_give_is_one_line_before_any_work(tmp_path: Path) -> None:
    for metric in ("cmmd", "class_score"):
        options = EvaluationOptions(metrics=(metric,), count=4)
        with pytest.raises(ConfigError, match=f"the metric {metric} needs"):
            run(Request(model="digits", data="digits", features=("classifier",), options=options, device="cpu"))
    with pytest.raises(ConfigError, match="--data"):
        run(Request(model="digits", features=(POOLED, "classifier"), device="cpu"))


def test_samples_without_classes_have_no_class_accuracy() -> None:
    scorer = DataScorer(digits(limit=60))
    images = take(digits("test"), 20) / 255
    assert scorer.real_accuracy is not None
    found = scorer.figures(images, None)
    assert found.keys() == {"fd_own", "fd_classifier"}
    assert scorer.figures(images, torch.zeros(20)).keys() == {*found, "class_accuracy"}


def test_samples_in_a_folder_are_judged_by_the_classes_of_their_folders(tmp_path: Path) -> None:
    for split, start in (("samples", 0), ("real", 300)):
        source = open_source("digits")
        assert source.labels is not None
        for number in range(start, start + 60):
            place = tmp_path / split / f"d{int(source.labels[number])}"
            place.mkdir(parents=True, exist_ok=True)
            source.read(number).save(place / f"{number}.png")
    asked = Request(
        images=str(tmp_path / "samples"),
        data=str(tmp_path / "real"),
        split="all",
        features=(POOLED, "classifier"),
        options=EvaluationOptions(metrics=("class_accuracy", "frechet")),
        device="cpu",
    )
    result = run(asked)
    assert result is not None
    figures = result["metrics"]["classifier"]["figures"]
    assert 0 <= figures["class_accuracy"] <= 1 and figures["frechet"] > 0
    (tmp_path / "samples" / "d3").rename(tmp_path / "samples" / "other")
    result = run(asked)
    assert result is not None and "class_accuracy" not in result["metrics"]["classifier"]["figures"]
    assert any("no class_accuracy" in note for note in result["notes"])
