"""What a study has found so far: a small file for each result, and the table that is made of them."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import spheregen
from spheregen.evaluation.ablation.plan import Combination, Plan, Training
from spheregen.evaluation.report.page import to_json
from spheregen.files import write_text

FORMAT = 1
TABLE, RESULTS, SAMPLES = "ablation", "results", "samples"
"""Names in the folder of a study: the table as .json and .csv, the single results, pictures of each."""
FRECHET = "frechet_"
"""Begins the name of a Frechet distance; the network follows."""


@dataclass(frozen=True)
class Column:
    """One figure of the table."""

    key: str
    title: str
    better: str | None = None
    """`lower` or `higher`; None where the best is not marked."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """What came of one combination under one training seed."""

    figures: Mapping[str, float] = field(default_factory=dict)
    """By the keys of the columns."""
    error: str | None = None
    """Why there are no figures."""
    notes: tuple[str, ...] = ()
    made_with: Mapping[str, str] = field(default_factory=dict)
    """Versions and device."""


class Results:
    """The results in a study's folder. Each is a file of its own, so a killed study loses at most the one in work.

    Args:
        folder: of the study.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._found: dict[str, Result] = {}

    def key(self, training: Training, combination: Combination, protocol: Mapping[str, Any]) -> str:
        """Names a result by all that decides it."""
        decisive = [training.digest, vars(combination.generation), protocol]
        return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:16]

    def get(self, key: str) -> Result | None:
        """A result of this call or of an earlier one. A file that cannot be read counts as none: it is made again."""
        if key not in self._found:
            try:
                values = json.loads((self.folder / RESULTS / f"{key}.json").read_text("utf-8"))
                self._found[key] = Result(**{**values, "notes": tuple(values["notes"])})
            except (OSError, ValueError, TypeError, KeyError):
                return None
        return self._found[key]

    def put(self, key: str, result: Result) -> None:
        """Keep a result.

        Raises:
            SphereGenError: the folder cannot be written to.
        """
        write_text(self.folder / RESULTS / f"{key}.json", to_json(vars(result)) + "\n")
        self._found[key] = result

    def samples(self, key: str) -> Path:
        """Where the pictures of a result are."""
        return self.folder / SAMPLES / f"{key}.png"


def columns(distances: Mapping[str, str]) -> tuple[Column, ...]:
    """The figures of a study.

    Args:
        distances: what the Frechet distance of each network is called, by the network's name.
    """
    return (
        *(Column(FRECHET + network, title, "lower") for network, title in distances.items()),
        Column("psnr", "PSNR, dB", "higher"),
        Column("loss", "final loss"),
        Column("train_seconds", "training, s"),
        Column("ms_per_image", "ms/image"),
    )


def table_rows(plan: Plan, results: Mapping[tuple[int, int], Result], names: Mapping[str, str]) -> list[dict[str, Any]]:
    """The rows of the table, plain JSON values, in the order of the plan.

    Args:
        results: by the numbers of combination and seed; what is missing is still to come.
        names: the run folder of each training, by digest.
    """
    rows = []
    for number, combination in enumerate(plan.combinations):
        runs = []
        for place, training in enumerate(combination.trainings):
            result = results.get((number, place))
            run: dict[str, Any] = {"seed": training.recipe.train.seed, "run": names[training.digest]}
            if result is None:
                run["status"] = "waiting"
            elif result.error is not None:
                run |= {"status": "failed", "error": result.error}
            else:
                run |= {"status": "done", "figures": dict(result.figures), "notes": list(result.notes)}
                run |= {"made_with": dict(result.made_with)}
            runs.append(run)
        done = [run["figures"] for run in runs if run["status"] == "done"]
        keys = list(dict.fromkeys(key for figures in done for key in figures))
        rows.append(
            {
                "settings": dict(combination.values),
                "texts": dict(combination.texts),
                "label": combination.label,
                "varies": combination.varies,
                "sampling": {name: value for name, value in vars(combination.generation).items() if value is not None},
                "parameters": combination.trainings[0].parameters,
                "runs": runs,
                "mean": {key: statistics.fmean(each[key] for each in done) for key in keys},
                "deviation": {key: statistics.stdev(each[key] for each in done) for key in keys if len(done) > 1},
            }
        )
    return rows


def best_rows(rows: Sequence[Mapping[str, Any]], shown: Sequence[Column]) -> dict[str, list[int]]:
    """The numbers of the best rows by each figure that has a better direction; none where all are equally good."""
    found = {}
    for column in shown:
        values = {number: row["mean"][column.key] for number, row in enumerate(rows) if column.key in row["mean"]}
        values = {number: value for number, value in values.items() if math.isfinite(value)}
        if column.better and len(set(values.values())) > 1:
            best = (min if column.better == "lower" else max)(values.values())
            found[column.key] = [number for number, value in values.items() if value == best]
    return found


def note_of(row: Mapping[str, Any]) -> str:
    """What of a row's runs did not end well, in a few words."""
    runs = row["runs"]
    failed = [run for run in runs if run["status"] == "failed"]
    waiting = sum(run["status"] == "waiting" for run in runs)
    parts = []
    if failed:
        parts.append(f"failed{f' {len(failed)} of {len(runs)}' if len(runs) > 1 else ''}: {failed[0]['error']}")
    if waiting:
        parts.append(f"waiting{f' {waiting} of {len(runs)}' if len(runs) > 1 else ''}")
    return "; ".join(parts)


def study_json(
    plan: Plan, rows: list[dict[str, Any]], shown: Sequence[Column], protocol: Mapping[str, Any]
) -> dict[str, Any]:
    """The whole study as plain JSON values, with all that is needed to repeat it."""
    return {
        "format": FORMAT,
        "spheregen": spheregen.__version__,
        "recipe": plan.base.model_dump(mode="json"),
        "over": [
            {
                "key": axis.key,
                "settings": list(axis.settings),
                "values": list(axis.texts),
                "needs_training": not axis.of_sampling,
            }
            for axis in plan.axes
        ],
        "one_by_one": plan.one_by_one,
        "seeds": plan.seeds,
        "protocol": dict(protocol),
        "columns": [vars(column) for column in shown],
        "best": best_rows(rows, shown),
        "rows": rows,
    }


def study_csv(study: Mapping[str, Any]) -> str:
    """A line for each training of each combination, with a header."""
    keys = [axis["key"] for axis in study["over"]]
    figures = [column["key"] for column in study["columns"]]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*keys, "train_seed", "run", "status", "parameters", *figures, "error"])
    for row in study["rows"]:
        for run in row["runs"]:
            writer.writerow(
                [
                    *(_cell(row["settings"][key]) for key in keys),
                    run["seed"],
                    run["run"],
                    run["status"],
                    row["parameters"],
                    *(run.get("figures", {}).get(figure, "") for figure in figures),
                    run.get("error", ""),
                ]
            )
    return text.getvalue()


def write_study(folder: Path, study: Mapping[str, Any]) -> None:
    """Write the table as JSON and CSV, each as a whole or not at all.

    Raises:
        SphereGenError: the folder cannot be written to.
    """
    write_text(folder / f"{TABLE}.json", to_json(study) + "\n")
    write_text(folder / f"{TABLE}.csv", study_csv(study))


def _cell(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, dict | list) else value
