"""The judge: a small classifier of the data that says whether samples show what was asked for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from spheregen.data import ImageOptions, open_source
from spheregen.errors import ConfigError, ModelFileError
from spheregen.evaluation.images import RealImages, take
from spheregen.evaluation.judge import make_judge, turned
from spheregen.evaluation.protocol import EvaluationOptions
from spheregen.evaluation.request import Request, run
from spheregen.measure.features import classifier, load_extractor
from spheregen.measure.features.classifier import SmallClassifier, load_judge, train_classifier
from tests.evaluation.stubs import POOLED


def digits(split: str = "train", limit: int | None = None) -> RealImages:
    return RealImages(open_source("digits", split=split), ImageOptions(image_size=8, channels=1), limit=limit)


def test_it_learns_the_classes_once_and_says_how_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classifier, "SEEN", 12_800)
    held_out = digits("test")
    judge = make_judge(digits(), tmp_path, held_out=held_out)
    made = judge(take(held_out, len(held_out)))
    assert made.logits is not None and judge.info.classes == 10
    right = made.logits.argmax(dim=1) == torch.as_tensor(held_out.labels)
    assert judge.info.accuracy == pytest.approx(float(right.float().mean())) and judge.info.accuracy > 0.9
    monkeypatch.setattr("spheregen.evaluation.judge.train_classifier", None)  # what is there is taken
    again = make_judge(digits(), tmp_path, held_out=held_out)
    assert again.info == judge.info
    with pytest.raises(TypeError):
        make_judge(digits(limit=500), tmp_path, held_out=held_out)  # other images, another judge


def test_the_same_images_make_the_same_judge_whatever_the_caller_drew() -> None:
    images, labels = torch.randint(256, (40, 3, 16, 16), dtype=torch.uint8), torch.arange(40) % 4
    one = train_classifier(images, labels, 4, flips=True)
    torch.rand(7)
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
    judge = make_judge(data, tmp_path, class_names=classes)
    assert judge.info.accuracy is None and judge(take(data, 4)).logits is None
    images, quarters = turned(take(data, 8))
    back = [image.rot90(-int(quarter), (1, 2)) for image, quarter in zip(images, quarters, strict=True)]
    assert torch.equal(torch.stack(back), take(data, 8)) and sorted(set(quarters.tolist())) == [0, 1, 2, 3]


def test_a_file_of_something_else_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "judge.safetensors"
    path.write_bytes(b"nonsense")
    with pytest.raises(ModelFileError, match="no file of a judge"):
        load_judge(path)
    with pytest.raises(ConfigError, match="learns from labelled images"):
        load_extractor("judge")


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
        features=(POOLED, "judge"),
        options=EvaluationOptions(metrics=("right_class", "frechet")),
        device="cpu",
    )
    result = run(asked)
    assert result is not None
    figures = result["metrics"]["judge"]["figures"]
    assert 0 <= figures["right_class"] <= 1 and figures["frechet"] > 0
    (tmp_path / "samples" / "d3").rename(tmp_path / "samples" / "other")
    result = run(asked)
    assert result is not None and "right_class" not in result["metrics"]["judge"]["figures"]
    assert any("no right_class" in note for note in result["notes"])
