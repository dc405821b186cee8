"""The models that come with the package are what their names say."""

from __future__ import annotations

import pytest
import torch

import spheregen as sg
from spheregen.evaluation.digits import DigitJudge
from spheregen.model_source import bundled_models


@pytest.mark.parametrize("name", bundled_models())
def test_a_bundled_model_makes_pictures_and_names_its_licence(name: str) -> None:
    pipe = sg.Pipeline.from_pretrained(name, device="cpu", quiet=True)
    assert pipe.info.provenance["license"] and pipe.info.provenance["source"]
    output = pipe.generate(3, seed=1)
    assert len(output.images) == 3 and output.origin["model"] == name
    assert sum(file.stat().st_size for file in bundled_models()[name].iterdir()) < 4 << 20  # it comes with every copy


def test_digits_are_digits() -> None:
    output = sg.Pipeline.from_pretrained("digits", device="cpu", quiet=True).generate(300, steps=4)
    score = DigitJudge().score(output.tensor, torch.tensor(output.labels))
    assert score.accuracy > 0.95  # 0.987 of 1000; the judge is right on 0.965 of real ones
    assert 0.7 < score.deviation_ratio < 1.1 and 0.8 < score.distance_ratio < 1.3
