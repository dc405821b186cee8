"""From the result to sections: every figure is told, with its error, its yardstick and what it rests on."""

from __future__ import annotations

from typing import Any

import pytest

from spheregen.evaluation.report.figures import figures_in
from spheregen.evaluation.report.parts import Cell, Section, Table
from spheregen.evaluation.report.sections import (
    cost,
    curves,
    leaves,
    metrics,
    protocol,
    recipe,
    reconstruction,
    report_sections,
    summary,
    words,
)
from tests.evaluation.report.examples import example_result, example_studies, features


def rows_of(table: Table) -> dict[str, dict[str, Cell]]:
    """A table by the first cell of its rows and the header."""
    return {str(row[0]): dict(zip(table.header, row, strict=True)) for row in table.rows}


def section_of(section: Section | None) -> Section:
    assert section is not None
    return section


def test_all_sections_in_order_with_the_studies_inside() -> None:
    keys = [section.key for section in report_sections(example_result(), example_studies())]
    assert keys == [
        "summary",
        "metrics",
        "reconstruction",
        "curves",
        "classes",
        "originality",
        "cost",
        "protocol",
        "recipe",
    ]


def test_the_least_result_has_sections() -> None:
    result: dict[str, Any] = {
        "model": {"name": "pictures", "fingerprint": "ab", "class": "images"},
        "protocol": {"images": "pictures", "count": 10},
        "metrics": {"own": {"features": features("own", "FD-own"), "figures": {}}},
    }
    assert [section.key for section in report_sections(result)] == ["summary", "metrics", "protocol"]
    assert [section.key for section in report_sections({**result, "metrics": {}})] == ["summary", "protocol"]
    every: dict[str, Any] = {"reconstruction": {"psnr": 1.0}, "cost": {"device": "cpu"}, "curves": [{"points": []}]}
    keys = [section.key for section in report_sections({**result, **every})]
    assert keys == ["summary", "metrics", "reconstruction", "cost", "protocol"]


def test_the_summary_says_what_people_quote() -> None:
    result = example_result()
    section = summary(result)
    assert section.text[0] == result["line"]
    assert (
        "runs/cifar10" in section.text[1] and "1.14 M parameters" in section.text[1] and "ab12cd34" in section.text[1]
    )
    assert section.warnings == tuple(result["notes"])
    rows = rows_of(section.tables[0])
    assert rows["FD-own"] == {
        "figure": "FD-own",
        "samples": 23.41,
        "±": None,
        "held-out real images": 3.187,
        "better is": "lower",
    }
    assert rows["KID (own)"]["±"] == 0.0002
    assert rows["FID"]["samples"] == 18.02
    assert rows["reconstruction, PSNR, dB"]["samples"] == 28.3


def test_every_figure_of_every_network_is_told() -> None:
    result = example_result()
    figures, networks, references = section_of(metrics(result)).tables
    rows = rows_of(figures)
    own = result["metrics"]["own"]
    titles = {figure.key: figure.title for figure in figures_in(own["figures"])}
    assert len(titles) == 7
    for key, title in titles.items():
        assert rows[title]["own"] == own["figures"][key]
        assert rows[title]["own, held-out real"] == own["held_out"][key]
    assert rows["KID"]["own, ±"] == 0.0002 and rows["Inception Score"]["own, ±"] == 0.1
    assert rows["recall"]["inception"] is None and "inception, held-out real" not in figures.header
    assert rows_of(networks)["own"]["weights"] == "0123456789abcdef"
    assert rows_of(references)["own"] == {
        "network": "own",
        "source": "cifar10/train",
        "images": 50000,
        "px": 32,
        "fit": "crop",
        "resize": "adm",
        "kept for neighbours": 10000,
        "fingerprint": "fedcba9876543210",
    }


def test_a_published_reference_is_named_by_its_file() -> None:
    result = example_result()
    result["metrics"]["own"]["reference"] = {"file": "cifar10.npz", "kept": 0, "count": None}
    row = rows_of(section_of(metrics(result)).tables[2])["own"]
    assert (row["source"], row["images"], row["px"]) == ("cifar10.npz", None, None)


def test_figures_that_nobody_knows_are_told_last() -> None:
    found = figures_in(["new_figure", "kid_error", "kid", "frechet"])
    assert [figure.key for figure in found] == ["frechet", "kid", "new_figure"]
    assert found[-1].title == "new figure" and found[-1].better is None


def test_reconstruction() -> None:
    section = section_of(reconstruction(example_result()))
    assert section.text[0].startswith("2000 test images were encoded")
    assert section.tables[0].rows == (
        ("PSNR, dB", 28.3, "higher"),
        ("SSIM", 0.9, "higher"),
        ("LPIPS", None, "lower"),
        ("FD-own of reconstructions", 3.2, "lower"),
    )


def test_curves_go_over_settings_and_costs() -> None:
    section = section_of(curves(example_result()))
    assert [(plot.title, plot.log_x) for plot in section.plots] == [
        ("FD-own over steps", False),
        ("FD-own over guidance scale", False),
        ("FD-own over milliseconds per image", True),
        ("FD-own over GFLOPs per image", True),
    ]
    steps, _, times, _ = section.plots
    assert steps.series[0].x == (1, 2, 4, 6) and steps.series[0].y[0] == 40.0
    assert [series.name for series in times.series] == ["steps", "guidance", "schedule"]
    assert [series.kind for series in times.series] == ["line", "line", "line"]
    assert times.series[0].labels == ("1", "2", "4", "6")
    assert times.series[0].x == pytest.approx((3.1, 6.2, 9.3, 12.4))
    assert [table.title for table in section.tables] == [
        "Sweep of steps, 2000 samples each",
        "Sweep of guidance, 2000 samples each",
        "Sweep of schedule, 2000 samples each",
    ]
    assert rows_of(section.tables[0])["1"]["FD-own"] == 40.0
    assert rows_of(section.tables[0])["2"]["±"] == 0.001


def test_curves_with_gaps() -> None:
    result = example_result()
    points = result["curves"][0]["points"]
    points[0]["figures"] = {}
    points[1]["ms_per_image"] = None
    section = section_of(curves(result))
    assert section.plots[0].series[0].x == (2, 4, 6)
    assert section.plots[2].series[0].labels == ("4", "6")
    assert rows_of(section.tables[0])["1"]["FD-own"] is None
    for curve in result["curves"]:
        for point in curve["points"]:
            point["figures"] = {"own": {"kid": 0.5, "kid_error": 0.25}}
    plot = section_of(curves(result)).plots[0]
    assert plot.title == "KID (own) over steps" and plot.series[0].error == (0.25,) * 4


def test_settings_that_cost_the_same_are_points_without_labels() -> None:
    result = example_result()
    for point in result["curves"][1]["points"]:
        point["gflops_per_image"] = 2.0
    times = section_of(curves(result)).plots[2].series
    assert [(one.kind, one.labels is None) for one in times] == [("line", False), ("points", True), ("line", False)]


def test_cost() -> None:
    section = section_of(cost(example_result()))
    networks, generation = section.tables
    assert networks.rows[-1] == ("together", 1_140_000, None, None)
    assert rows_of(generation)["4"] == {
        "steps": 4,
        "batch": 64,
        "GFLOPs per image": pytest.approx(7.5),
        "images per second": 80.0,
        "latency p50, ms": 12.0,
        "latency p90, ms": 14.0,
        "latency p99, ms": 16.0,
        "peak memory, MiB": 300.0,
    }
    assert section.text[0] == "Measured on a CPU of the tests (2 threads, float32, guidance 1)."


def test_protocol_and_recipe_hold_every_setting() -> None:
    result = example_result()
    tables = {table.title: dict(table.rows) for table in protocol(result).tables}
    sampling = tables["Sampling and measuring"]
    assert sampling.keys() == {*result["protocol"], "spheregen", "created"}
    assert (sampling["steps"], sampling["share_noise"], sampling["guidance"]) == ("4", "yes", "1.0")
    assert tables["Model"]["image_shape"] == "3, 32, 32" and "training" not in tables["Model"]
    assert tables["Data"]["resize"] == "adm"
    assert section_of(recipe(result)).tables[0].rows == (
        ("recipe", "cifar10"),
        ("steps", "20000"),
        ("optimizer.lr", "0.0001"),
        ("optimizer.betas", "0.9, 0.95"),
    )


def test_long_lists_and_hashes_are_cut() -> None:
    assert words("ab" * 20) == "ab" * 8 + "…" and words("ab" * 20 + "x") == "ab" * 20 + "x"
    text = words([f"class {i}" for i in range(1000)])
    assert text.startswith("class 0, class 1") and text.endswith("class 23 and 976 more")
    assert (words({}), words(None), words([True, [1, 2.5]])) == ("none", "none", "yes, 1, 2.5")
    assert list(leaves({"a": {}, "b": 1, "c": {"d": {"e": []}}})) == [("a", {}), ("b", 1), ("c.d.e", [])]
