"""The precision of a network on a device: by instructions, by a remembered measurement, or as asked for."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest
import torch
from torch import nn

from spheregen.files import parse_json
from spheregen.measure import precision
from spheregen.measure.precision import Precision, choose_precision
from spheregen.pipeline import Pipeline
from spheregen.progress import LineReporter
from spheregen.training import load_recipe, train

CPU = torch.device("cpu")
WIDE = nn.Linear(512, 512)


@pytest.fixture
def processor(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Processor:
    monkeypatch.setenv("SPHEREGEN_CACHE", str(tmp_path))
    return Processor(monkeypatch)


class Processor:
    """A processor that is not this one: its instructions, and how fast it multiplies in bf16."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.has: dict[str, bool | None] = {"amx_tile": False, "avx512_bf16": False}
        self.ratio, self.measured = 1.0, 0
        patch.setattr(precision, "has_instructions", lambda name: self.has[name])
        patch.setattr(precision, "measured_speeds", self._measure)
        patch.setattr(platform, "machine", lambda: self.machine)
        self.machine = "x86_64"

    def _measure(self) -> tuple[float, float]:
        self.measured += 1
        return 1e10, self.ratio * 1e10


def test_instructions_decide_where_they_tell_enough(processor: Processor) -> None:
    assert choose_precision("auto", CPU, WIDE) == Precision("float32", "this processor has no bf16 units")
    processor.has["amx_tile"] = True
    chosen = choose_precision("auto", CPU, WIDE)
    assert chosen.name == "bf16" and "AMX" in chosen.because
    assert not processor.measured


@pytest.mark.parametrize(("machine", "units"), [("x86_64", True), ("x86_64", None), ("aarch64", False)])
def test_elsewhere_products_are_timed_once(processor: Processor, tmp_path: Path, machine: str, units: bool) -> None:
    processor.machine, processor.has["avx512_bf16"], processor.ratio = machine, units, 1.9
    assert [choose_precision("auto", CPU, WIDE).name for _ in range(3)] == ["bf16"] * 3
    assert processor.measured == 1
    (file,) = tmp_path.iterdir()
    keys = parse_json(file.read_bytes())
    assert len(keys) == 2
    for key in keys:
        assert torch.__version__ in key and f"{torch.get_num_threads()} threads" in key
    for broken in ("{", "[]", '{"a": "b"}', '{"a": null}'):
        file.write_text(broken)
        processor.ratio = 1.1
        assert choose_precision("auto", CPU, WIDE).name == "float32"
    assert processor.measured == 5 and list(tmp_path.iterdir()) == [file]


def test_a_cache_that_cannot_be_written_is_no_error(
    processor: Processor, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    processor.has["avx512_bf16"] = True
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("SPHEREGEN_CACHE", str(tmp_path / "file" / "below"))
    assert choose_precision("auto", CPU, WIDE).name == "float32"


def test_small_networks_stay_in_float32_and_a_wish_is_a_wish(processor: Processor) -> None:
    processor.has["amx_tile"] = True
    narrow = nn.Sequential(nn.Linear(64, 512), nn.Conv2d(64, 64, 3))
    chosen = choose_precision("auto", CPU, narrow)
    assert chosen.name == "float32" and "64" in chosen.reason
    assert choose_precision("bf16", CPU, narrow) == Precision("bf16")
    processor.has["amx_tile"] = False
    assert choose_precision("bf16", CPU, WIDE) == Precision("bf16")
    with torch.device("meta"):
        assert choose_precision("auto", CPU, nn.Linear(64, 64)).name == "float32"


def test_products_of_both_types_are_timed() -> None:
    assert min(precision.measured_speeds()) > 0
    assert precision.has_instructions("amx_tile") in (True, False, None)
    assert precision.has_instructions("of another planet") is None


def test_a_run_says_its_precision_and_a_pipeline_takes_it(
    processor: Processor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    processor.has["amx_tile"] = True
    monkeypatch.setattr(precision, "NARROW", 1)
    small = Pipeline.from_pretrained("digits", device="cpu", dtype="auto")
    assert small.dtype == torch.bfloat16 and "AMX" in capsys.readouterr().err
    plain = Pipeline.from_pretrained("digits", device="cpu", quiet=True)
    assert plain.dtype == torch.float32
    apart = (small.generate(4, steps=1).tensor - plain.generate(4, steps=1).tensor).abs()
    assert 0 < apart.mean() < 0.02  # the same seeds, another rounding
    recipe = load_recipe("debug", ["train.steps=1", "train.preview_every=0"])
    train(recipe, tmp_path / "run", device="cpu", reporter=LineReporter())
    assert "bf16 (this processor has AMX)" in capsys.readouterr().err
