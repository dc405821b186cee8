"""Put a trained run among the models that come with the package: bfloat16 weights, a card with figures, no state.

    python scripts/bundle_model.py runs/letters letters --source "trained with ... on ..." --license apache-2.0 \\
        --figure "class accuracy, one decode=0.99 of that of real letters" --sampling '{"temperature": 1.5}'

The fitted prior is fitted to the codes of the rounded weights: give the data that it was trained on by --data.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import torch

from spheregen.folders.model_folder import load_model, save_model

MODELS = Path(__file__).resolve().parents[1] / "src" / "spheregen" / "assets" / "models"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("name")
    parser.add_argument("--source", required=True)
    parser.add_argument("--license", required=True)
    parser.add_argument("--data")
    parser.add_argument("--figure", action="append", default=[])
    parser.add_argument("--sampling", type=json.loads, default={})
    given = parser.parse_args()
    loaded = load_model(given.run, prior=False)
    training = {**loaded.info.training, "data": given.name}
    training.pop("init", None)  # a folder of whoever trained it; the source tells
    info = dataclasses.replace(
        loaded.info,
        training=training,
        provenance={"source": given.source, "license": given.license},
        sampling={**loaded.info.sampling, **given.sampling},
        figures=dict(figure.split("=", 1) for figure in given.figure),
    )
    folder = MODELS / given.name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    save_model(folder, loaded.model.to(torch.bfloat16), info)  # type: ignore[attr-defined]
    if given.data:
        command = [sys.executable, "-m", "spheregen", "fit-prior", str(folder), "--data", given.data]
        subprocess.run(command, check=True)
    print(f"{folder}: {sum(file.stat().st_size for file in folder.rglob('*') if file.is_file()) / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
