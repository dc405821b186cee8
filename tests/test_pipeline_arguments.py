"""Arguments of other types: taken where their meaning is clear, else refused in one line that names the argument."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import spheregen as sg
from spheregen.errors import ConfigError
from spheregen.sampling import seeded_noise

SEEDS = (0, 5, 2**32 - 1, 2**32, 2**32 + 5, 2**33 + 5, 2**40 + 5, 5 << 32, 2**63 - 1)


@pytest.fixture(scope="module")
def pipe() -> sg.Pipeline:
    return sg.Pipeline.from_pretrained("digits", quiet=True, device="cpu")


@pytest.mark.parametrize(
    ("method", "named", "values"),
    [
        ("generate", "count", ["3", 2.5, True, np.array([1, 2])]),
        ("generate", "steps", ["4", 4.0, np.array([1.0])]),
        ("generate", "guidance", ["high", [1.0], float("nan"), float("inf")]),
        ("generate", "seed", [None, "5", 1.5, -1, 2**63, 10**30]),
        ("generate", "seeds", ["abc", 3.5, [1.5], [None], [[1], [2]], [-1], [2**63], []]),
        ("generate", "labels", [3.5, True, {3, 4}, [[1], [2]], "none", b"3", 10**30]),
        ("generate", "noise", ["x", [1], 5]),
        ("generate", "step_noise", ["x", 5]),
        ("generate", "batch_size", ["8", 0]),
        ("generate", "callback", [3]),
        ("generate", "share_noise", ["no"]),
        ("generate", "trajectory", ["no"]),
        ("stream", "seeds", [None, "abc", 5]),
        ("encode", "images", [None, 5, []]),
        ("decode", "latents", [None, [1, 2], "x", np.zeros(())]),
        ("edit", "images", [None]),
        ("vary", "image", [None]),
        ("interpolate", "ends", [None, 5, "ab", [1]]),
    ],
)
def test_what_has_no_meaning_is_refused_in_one_line(
    pipe: sg.Pipeline, method: str, named: str, values: list[Any]
) -> None:
    needed = {"edit": {}, "generate": {"steps": 2} if named == "step_noise" else {}}.get(method, {})
    for value in values:
        with pytest.raises(ConfigError) as refused:
            list(getattr(pipe, method)(**needed, **{named: value}))
        assert "\n" not in str(refused.value)
        assert named.rstrip("s") in str(refused.value) or named == "ends" or "number of images" in str(refused.value)


@pytest.mark.parametrize("options", [{"strength": "x"}, {"seed": None}, {"steps": "2"}, {"strength": float("nan")}])
def test_options_of_edits_are_named(pipe: sg.Pipeline, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(options))):
        pipe.edit(pipe.generate(1).images[0], **options)


def test_numbers_of_any_library_mean_what_they_say(pipe: sg.Pipeline) -> None:
    plain = pipe.generate(seeds=[1, 2], labels=[3, 4], steps=2, guidance=1.5)
    for made in (
        pipe.generate(seeds=np.array([1, 2]), labels=np.array([3, 4]), steps=np.int32(2), guidance=np.float32(1.5)),
        pipe.generate(seeds=torch.tensor([1, 2]), labels=torch.tensor([3, 4]), steps=torch.tensor(2), guidance=1.5),
        pipe.generate(np.int64(2), seed=np.uint64(1), labels=np.array(["3", "4"]), steps=2, guidance=torch.tensor(1.5)),
    ):
        assert made.seeds == (1, 2) and made.labels == (3, 4) and torch.equal(made.tensor, plain.tensor)
        assert made.metadata(0) == plain.metadata(0)
    assert pipe.generate(1, labels=torch.tensor(3)).labels == pipe.generate(labels=np.array(3)).labels == (3,)
    points = pipe.encode(plain.tensor)
    assert torch.equal(pipe.decode(points.numpy().astype(">f4")), pipe.decode(points))


def test_every_seed_has_noise_of_its_own() -> None:
    noise = seeded_noise(SEEDS, (4, 500), 1)
    for values in (noise.initial, noise.steps):
        assert isinstance(values, torch.Tensor)
        apart = torch.corrcoef(values.flatten(1)) - torch.eye(len(SEEDS))
        assert apart.abs().max() < 0.12
        assert abs(values[3:].mean()) < 0.03 and abs(values[3:].std() - 1) < 0.03
    alone = [torch.randn(4, 500, generator=torch.Generator().manual_seed(seed)) for seed in SEEDS[:3]]
    assert torch.equal(noise.initial[:3], torch.stack(alone))  # as it always was
