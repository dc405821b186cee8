"""The whole report, on the bundled model and on toys."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import spheregen
from spheregen.data import ImageOptions, load_all, open_source
from spheregen.errors import DataError
from spheregen.evaluation.report.parts import Section
from spheregen.evaluation.sphere import SphereReport, StudySizes, sphere_report
from spheregen.prior import GaussianPrior
from tests.evaluation.sphere.test_studies import PixelFeatures
from tests.evaluation.sphere.toys import Mirror, generator

SMALL = StudySizes(turned=8, looped=8, random=40, unrelated=16)


def uniform_images(count: int, seed: int = 1, size: int = 8) -> Tensor:
    """Images whose latents are all but uniform under `Mirror`."""
    latents = torch.randn(count, 1, size, size, generator=generator(seed))
    return ((0.2 * latents + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def report_of(model: Any, images: Tensor, labels: Tensor | None = None, **options: Any) -> SphereReport:
    return sphere_report(model, images, labels, **{"sizes": SMALL, **options})


def check_section(report: SphereReport) -> Section:
    section = report.section()
    for table in section.tables:
        assert table.rows and all(len(row) == len(table.header) for row in table.rows)
    for plot in section.plots:
        for series in plot.series:
            assert len(series.x) == len(series.y) > 0 and np.isfinite([*series.x, *series.y]).all()
            assert not plot.log_y or min(series.y) > 0
            assert not plot.log_x or min(series.x) > 0
    assert all(picture.image.mode == "RGB" and picture.caption for picture in section.pictures)
    plain = report.as_dict()
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    assert plain["warnings"] == list(section.warnings)
    return section


@pytest.fixture(scope="module")
def digits() -> SphereReport:
    pipeline = spheregen.Pipeline.from_pretrained("digits", device="cpu")
    data = load_all(open_source("digits"), ImageOptions(image_size=8, channels=1), limit=600)
    return sphere_report(pipeline.model, data.images, data.labels, class_names=data.class_names)


def test_digits(digits: SphereReport) -> None:
    section = check_section(digits)
    assert digits.dim == 24 and digits.main == "own class" and list(digits.latents) == ["null class", "own class"]
    assert len(digits.latents["own class"].classes) == 10
    assert digits.null_to_own is not None and 0 < digits.null_to_own < 30
    assert digits.denoising.gain[5] > 5  # the bundled model takes noise away
    assert digits.loops[1].contraction[0] < 1 < 4 * digits.loops[1].contraction[0]
    drift = digits.loops[0].drift
    assert drift[-1] < 0.2 * drift[0]
    assert any("not uniform" in warning for warning in section.warnings)
    titles = [table.title for table in section.tables]
    assert "Classes on the sphere" in titles and "Tests of uniformity" in titles
    assert len(section.pictures) == 2 and len(section.plots) == 6


def test_the_same_call_gives_the_same_report() -> None:
    model, images = Mirror(fraction=0.5), uniform_images(60)
    one, again, other = (report_of(model, images, seed=seed) for seed in (3, 3, 4))
    assert one.as_dict() == again.as_dict() != other.as_dict()
    for first, second in zip(one.section().pictures, again.section().pictures, strict=True):
        assert first.image.tobytes() == second.image.tobytes()


def test_a_uniform_model_is_warned_of_nothing_but_its_size() -> None:
    found = report_of(Mirror(), uniform_images(600), sizes=dataclasses.replace(SMALL, random=200))
    check_section(found)
    assert list(found.latents) == ["latents"] and found.null_to_own is None
    assert found.latents["latents"].effective_dimension == pytest.approx(64, rel=0.05)
    assert not found.latents["latents"].uniformity.rejected
    # a loop that changes nothing takes no noise away: the toy's one fault
    assert [warning.split(":")[0] for warning in found.warnings()] == ["one pass takes little noise away"]


def test_collapse_is_said() -> None:
    found = report_of(Mirror(pull=3.0), uniform_images(600))
    words = " ".join(found.warnings())
    for expected in ("not uniform", "lean to one side", "dimensions evenly, in effect", "huddle"):
        assert expected in words
    check_section(found)


def test_every_finding_has_its_words(digits: SphereReport) -> None:
    """Findings of no toy, put into a report by hand."""
    loop, noise, angles, cones = digits.loops[0], digits.denoising, digits.angles, digits.cones
    far, near = torch.full((9,), 85.0, dtype=torch.float64), torch.full((9,), 5.0, dtype=torch.float64)
    pixels = dataclasses.replace(angles.pixels, mean=(0.0, 0.1), unrelated=1.0, half_angle=7.0)
    bad = dataclasses.replace(
        digits,
        loops=(dataclasses.replace(loop, contraction=(1.5, *loop.contraction[1:])), digits.loops[1]),
        denoising=dataclasses.replace(noise, after=tuple(90.0 for _ in noise.after)),
        angles=dataclasses.replace(angles, pixels=pixels),
        cones=dataclasses.replace(cones, samples_to_data=far, random_in_cones=0.0),
    )
    copied = dataclasses.replace(digits, cones=dataclasses.replace(cones, samples_to_data=near))
    for report, expected in (
        (bad, "two of them 2 degrees apart are 3.0 after one pass"),
        (bad, "a clean latent of data comes back 90 degrees away"),
        (bad, "one pass takes little noise away"),
        (bad, "changes an image by 10% of the difference of two real images"),
        (bad, "half of all change of an image happens within 7 degrees"),
        (bad, "random points decode where training hardly was: 0.0%"),
        (bad, "stray from those of data: 85.0 degrees"),
        (copied, "one-step samples sit on single images"),
    ):
        assert expected in " ".join(report.warnings())
        assert expected not in " ".join(digits.warnings())


@pytest.mark.parametrize("labels", [None, torch.arange(40) % 3])
def test_classes_of_a_conditional_model(labels: Tensor | None) -> None:
    model = Mirror(classes=3)
    found = report_of(model, uniform_images(40), labels, class_names=("a", "b", "c"))
    section = check_section(found)
    assert found.main == ("null class" if labels is None else "own class")
    assert [of.name for of in found.latents[found.main].classes] == ([] if labels is None else ["a", "b", "c"])
    assert any("only 40 images" in warning for warning in section.warnings)


def test_classes_of_data_for_an_unconditional_model() -> None:
    found = report_of(Mirror(), uniform_images(40), torch.arange(40) % 5 + 10)
    check_section(found)
    assert [of.name for of in found.latents["latents"].classes] == ["10", "11", "12", "13", "14"]


def test_a_model_without_a_sphere_is_studied_by_directions() -> None:
    model = Mirror()
    model.prior = GaussianPrior()
    found = report_of(model, uniform_images(40))
    check_section(found)
    assert not found.on_sphere and "do not lie on a sphere" in found.warnings()[0]
    assert found.loops[0].drift == pytest.approx([0] * 8, abs=2)  # pixels are clamped
    assert found.denoising.gain[3] == pytest.approx(0, abs=2)


def test_features() -> None:
    found = report_of(Mirror(), uniform_images(30), extractor=PixelFeatures())
    section = check_section(found)
    assert found.angles.features is not None and found.as_dict()["angles"]["features"]["unrelated"] > 0
    (table,) = (table for table in section.tables if table.title == "How fast the image changes")
    assert len(table.rows) == 2


@pytest.mark.parametrize("count", [2, 5])
def test_a_handful_of_images(count: int) -> None:
    check_section(report_of(Mirror(), uniform_images(count)))
    check_section(report_of(Mirror(size=2), uniform_images(count, size=2)))


def test_twins_are_left_out() -> None:
    images = uniform_images(30)
    found = report_of(Mirror(), torch.cat([images, images[:4]]))
    assert found.duplicates == 4 and found.latents["latents"].count == 30
    assert found.warnings()[0].startswith("4 images have the same pixels")


def test_more_images_than_enough() -> None:
    found = report_of(Mirror(), uniform_images(30), sizes=dataclasses.replace(SMALL, images=20))
    assert found.left_out == 10 and found.latents["latents"].count == 20
    assert "random choice" in found.section().text[0]


def test_the_model_is_given_back_as_it_was() -> None:
    class Network(Mirror, nn.Module):
        def __init__(self) -> None:
            nn.Module.__init__(self)
            Mirror.__init__(self)
            self.weight = nn.Parameter(torch.ones(1))

        def decode(self, latents: Tensor, labels: Any = None) -> Tensor:
            assert not self.training
            return super().decode(latents * self.weight, labels)

    model = Network()
    found = report_of(model, uniform_images(20), batch_size=8)
    assert model.training and model.weight.grad is None
    assert not found.latents["latents"].nearest.requires_grad


@pytest.mark.parametrize(
    ("images", "labels", "words"),
    [
        (uniform_images(5).float(), None, "float32 of shape"),
        (uniform_images(5)[..., :4], None, r"uint8 images \(n, 1, 8, 8\)"),
        (uniform_images(1).repeat(6, 1, 1, 1), None, "1 different images are too few"),
        (uniform_images(5)[:0], None, "0 different images are too few"),
        (uniform_images(5), torch.arange(4), "for 5 images"),
        (uniform_images(5), torch.arange(5), "classes 0 to 2"),
        (uniform_images(5), torch.rand(5), "one class id for each"),
    ],
)
def test_data_that_do_not_fit(images: Tensor, labels: Tensor | None, words: str) -> None:
    with pytest.raises(DataError, match=words):
        report_of(Mirror(classes=3), images, labels)
