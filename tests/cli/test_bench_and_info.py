"""`spheregen bench` and `spheregen info` as a user types them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from spheregen import devices
from spheregen.measure.timing import PeakMeter
from spheregen.training import bench as bench_module
from spheregen.training import estimate
from tests.cli.conftest import Run


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small products instead of those that take seconds."""

    def small(device: object, precision: str, **_: object) -> PeakMeter:
        return PeakMeter(device, precision, sizes=(64,))  # type: ignore[arg-type]

    monkeypatch.setattr(bench_module, "PeakMeter", small)
    monkeypatch.setattr(estimate, "PeakMeter", small)


@pytest.mark.usefixtures("quick")
def test_bench_as_json_and_as_a_table(run: Run, tmp_path: Path) -> None:
    options = ("bench", "debug", "--device", "cpu", "--precision", "float32", "--repeats", 2)
    answer = run(*options, "--only", "sample", "--steps", "1,2", "--json").json
    assert [(row["what"], row["steps"]) for row in answer["rows"]] == [("sample", 1), ("sample", 2)]
    assert set(answer) == {"recipe", "machine", "peaks", "rows", "notes", "profiles"}
    assert answer["peaks"]["float32"]["by_size"]
    shown = run(*options, "--only", "train", "--batch-size", 4, "--profile")
    assert shown.code == 0, shown.err
    assert "GFLOP/s" in shown.out and "of peak" in shown.out and "where the time of train float32 goes" in shown.out
    assert answer["machine"]["torch"] in shown.out
    assert "turn 2 of 2" in shown.err
    saved = tmp_path / "before.json"
    saved.write_text(json.dumps(answer))
    again = run(*options, "--only", "sample", "--steps", "1", "--against", saved)
    assert "now by then" in again.out and "debug cpu sample 1 float32" in again.out
    saved.write_text("[]")
    run(*options, "--only", "sample", "--steps", "1", "--against", saved).fails("spheregen bench")


BAD = [
    (["bench", "digitz"], "did you mean"),
    (["bench", "debug", "--precision", "fp8"], "unknown precision"),
    (["bench", "debug", "--steps", "two"], "--steps"),
    (["bench", "debug", "--only", "sleep"], "unknown kind of work"),
    (["bench", "debug", "--perceptual", "frog"], "random"),
    (["bench", "debug", "--against", "nowhere.json"], "nowhere.json"),
    (["bench", "rae-debug", "-q"], "samples nothing"),
    (["info", "debug", "--processes", "0"], "--processes"),
    (["info", "debug", "--processes", "3"], "multiple of 3"),
    (["info", "debug", "--device", "frog"], "frog"),
    (["info", "debug", "--tokenizer", "digits"], "--tokenizer belongs to latent denoisers"),
    (["info", "MODEL", "--data", "digits"], "--data"),
    (["info", "MODEL", "--time"], "recipe.json"),
]


def test_bad_options_are_one_line(run: Run, model: Path) -> None:
    for arguments, part in BAD:
        run(*(str(model) if a == "MODEL" else a for a in arguments)).fails(part)


def test_info_tells_the_memory_of_a_recipe(run: Run) -> None:
    answer = run("info", "debug", "--device", "cpu", "--json").json
    memory = answer["memory"]
    assert answer["time"] is None
    assert memory["total"] > memory["activations"] > 0
    assert (memory["micro_batch"], memory["device"], memory["processes"]) == (16, "cpu", 1)
    assert answer["sampling_memory"]["total"] > answer["sampling_memory"]["weights"]
    planned = run("info", "debug", "--device", "cuda", "--processes", 4, "--set", "train.parallel=fsdp", "--json")
    elsewhere = planned.json["memory"]
    assert elsewhere["micro_batch"] == 4 and elsewhere["weights"] < memory["weights"]
    text = run("info", "debug", "--set", "train.micro_batch=4").out
    assert re.search(r"memory micro batch +4\n", text) and re.search(r"sampling memory batch +16\n", text)
    assert re.search(r"memory total +[\d.]+ MiB\n", text) and re.search(r"\nencoder +\d+ ", text)


def test_info_warns_where_it_does_not_fit(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "available_memory", lambda _: 10_000)
    out = run("info", "debug", "--device", "cpu").out
    assert "this run needs about" in out and "a smaller model" in out


@pytest.mark.usefixtures("quick")
def test_info_tells_the_time(run: Run) -> None:
    time = run("info", "debug", "--device", "cpu", "--time", "--json").json["time"]
    assert time["steps"] == 40 and time["hours"] > 0


def test_info_of_a_run_and_of_a_bare_model(run: Run, trained: Path, model: Path) -> None:
    of_run = run("info", trained, "--json").json
    assert of_run["memory"]["total"] > 0
    answer = run("info", model, "--json").json
    assert answer["memory"] is None and answer["sampling_memory"]["total"] > 0


def test_a_tokenizer_s_recipe_has_parts_and_no_generation(run: Run) -> None:
    answer = run("info", "rae-debug", "--json").json
    assert answer["encoder"]["params"] > answer["decoder"]["params"] > 0
    assert "generation_gflops" not in answer and answer["sampling_memory"] is None


def test_a_latent_denoiser_counts_its_tokenizer_where_it_is_known(run: Run) -> None:
    known = run("info", "sle-debug", "--json").json
    assert known["tokenizer_decoder"]["gflops"] > 0
    one, two = (known["generation_gflops"]["unguided"][steps] for steps in ("1", "2"))
    assert two - one == pytest.approx(known["denoiser"]["gflops"])


@pytest.mark.usefixtures("quick")
def test_a_refiner_is_counted_and_its_speed_measured(run: Run) -> None:
    answer = run("info", "flow-debug", "--json").json
    calls = answer["refinement_gflops"]
    assert calls["unguided, heun"]["4"] == pytest.approx(7 * answer["refiner"]["gflops"])
    assert calls["guided, euler"]["4"] == pytest.approx(8 * answer["refiner"]["gflops"])
    what = ["--only", "sample", "--steps", 1, "--precision", "float32", "--repeats", 1, "--device", "cpu"]
    (row,) = run("bench", "flow-debug", *what, "--json").json["rows"]
    expected = answer["generation_gflops"]["unguided"]["1"] + calls["unguided, heun"]["2"]
    assert row["flops_per_image"] == pytest.approx(1e9 * expected, rel=0.1)  # attention is measured, too
