"""Reference statistics: made, written, read, and refused where they do not fit."""

from __future__ import annotations

import dataclasses
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from spheregen.data import ImageOptions, open_source
from spheregen.errors import ConfigError, DataError, ModelFileError
from spheregen.evaluation.feature_cache import extract_features
from spheregen.evaluation.images import RealImages
from spheregen.evaluation.reference import (
    Reference,
    build_reference,
    check_reference,
    load_reference,
    load_references,
    save_reference,
)
from tests.evaluation.stubs import TinyFeatures


@pytest.fixture
def tiny() -> TinyFeatures:
    return TinyFeatures(64)


@pytest.fixture
def digits() -> RealImages:
    return RealImages(open_source("digits"), ImageOptions(image_size=8, channels=1))


@pytest.fixture
def reference(tmp_path: Path, tiny: TinyFeatures, digits: RealImages) -> Reference:
    return build_reference(extract_features(digits, {"tiny": tiny}, tmp_path / "work"), "tiny", tiny.info, keep=50)


def test_moments_are_of_all_images_and_features_of_some(
    reference: Reference, digits: RealImages, tiny: TinyFeatures
) -> None:
    (images,) = digits.stream([slice(0, len(digits))])
    features = tiny(images).features.double()
    assert reference.gaussian.count == len(digits) == 1400
    assert torch.allclose(reference.gaussian.mean, features.mean(0))
    assert torch.allclose(reference.gaussian.covariance, features.T.cov())
    assert reference.features is not None and reference.labels is not None and digits.labels is not None
    assert reference.features.shape == (50, 6)
    chosen = torch.arange(50) * 28
    assert torch.allclose(reference.features.double(), features[chosen], atol=1e-5)
    assert torch.equal(reference.labels, digits.labels[chosen])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"weights": "ffff"}, "weights"),
        ({"preprocessing": "something else"}, "preprocessing"),
        ({"name": "other"}, "name"),
        ({"dim": 7}, "numbers 6"),
    ],
)
def test_another_network_is_refused(
    reference: Reference, tiny: TinyFeatures, digits: RealImages, change: dict[str, object], said: str
) -> None:
    tiny.info = dataclasses.replace(tiny.info, **change)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=said):
        check_reference(reference, tiny, digits)


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (print, ("code ran",))


def test_bad_files_are_refused_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def bad(name: str) -> Path:
        return tmp_path / name

    bad("text.safetensors").write_text("no")
    bad("text.npz").write_text("no")
    np.savez(bad("names.npz"), a=np.zeros(3))
    np.savez(bad("shape.npz"), mu=np.zeros(3), sigma=np.zeros((2, 2)))
    np.savez(bad("pickle.npz"), mu=np.array([Evil()], dtype=object), sigma=np.zeros((1, 1)))
    bad("pickle2.npz").write_bytes(pickle.dumps(Evil()))
    np.savez(bad("nan.npz"), mu=np.full(2, np.nan), sigma=np.eye(2))
    save_file({"mean": torch.zeros(2)}, bad("foreign.safetensors"))
    record = {"format": "spheregen-reference-1", "network": {"from": "the future"}}
    tensors = {"mean": torch.zeros(2), "covariance": torch.eye(2)}
    save_file(tensors, bad("future.safetensors"), metadata={"reference": json.dumps(record)})
    for path in [*sorted(tmp_path.glob("*.npz")), *sorted(tmp_path.glob("*.safetensors")), bad("missing.npz")]:
        with pytest.raises((ModelFileError, DataError)) as caught:
            load_reference(path)
        assert "\n" not in str(caught.value) and str(path) in str(caught.value)
    assert capsys.readouterr().out == ""


def test_references_are_told_apart_by_network(reference: Reference, tmp_path: Path) -> None:
    ours, published = tmp_path / "ours.safetensors", tmp_path / "adm.npz"
    save_reference(ours, reference)
    np.savez(published, mu=np.zeros(4), sigma=np.eye(4))
    assert set(load_references([str(ours), str(published)], ["tiny", "inception"])) == {"tiny", "inception"}
    clip = load_references([f"clip={published}"], ["clip"])["clip"]
    assert clip.gaussian.count is None and clip.features is None and clip.info is None
    with pytest.raises(ConfigError, match="inception, which is not used"):
        load_references([str(published)], ["own"])
    with pytest.raises(ConfigError, match="two references of the network tiny"):
        load_references([str(ours), str(ours)], ["tiny"])
