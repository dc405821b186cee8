"""What sampling costs beside the networks: guidance, steps, and the number of pictures asked for.

    python benchmarks/sampling_cost.py [--model FOLDER | --recipe cifar10-laptop] [--count 64] [--repeats 7]

Every setting is timed in turn, round after round, and the medians are compared, so that a machine whose speed drifts
does not favour one of them. Ratios are the answer; milliseconds are this machine's.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

from spheregen.family.sphere_encoder.network import SphereAutoencoder
from spheregen.pipeline import Pipeline
from spheregen.training.recipe import load_recipe


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a model; by default random weights of the recipe")
    parser.add_argument("--recipe", default="cifar10-laptop")
    parser.add_argument("--count", type=int, default=64, help="pictures of a call; batches are the pipeline's own")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--device", default="auto")
    given = parser.parse_args()
    if given.model:
        pipe = Pipeline.from_pretrained(given.model, device=given.device)
    else:
        torch.manual_seed(0)
        pipe = Pipeline(SphereAutoencoder(load_recipe(given.recipe).model), device=given.device)
    count = given.count
    settings = {
        "1 step": (count, {"steps": 1, "guidance": 1.0}),
        "2 steps": (count, {"steps": 2, "guidance": 1.0}),
        "4 steps": (count, {"steps": 4, "guidance": 1.0}),
        "8 steps": (count, {"steps": 8, "guidance": 1.0}),
        "4 steps, 4 times the pictures": (4 * count, {"steps": 4, "guidance": 1.0}),
        "4 steps, guidance at pixels": (count, {"steps": 4, "guidance": 1.4, "guidance_at": "pixel"}),
        "4 steps, guidance at latents": (count, {"steps": 4, "guidance": 1.4, "guidance_at": "latent"}),
        "4 steps, guidance at both": (count, {"steps": 4, "guidance": 1.4, "guidance_at": "both"}),
    }
    times: dict[str, list[float]] = {name: [] for name in settings}
    for turn in range(given.repeats + 1):  # the first round warms up
        for name, (pictures, options) in settings.items():
            begun = time.perf_counter()
            pipe.generate(pictures, seed=turn * pictures, **options)
            if turn:
                times[name].append((time.perf_counter() - begun) / pictures)
    base = statistics.median(times["4 steps"])
    print(f"{given.model or given.recipe}, {count} pictures a call, {pipe.place}, {torch.get_num_threads()} threads")
    for name, measured in times.items():
        median = statistics.median(measured)
        print(f"{name:32s} {1000 * median:8.2f} ms a picture   {median / base:5.2f} of 4 steps")


if __name__ == "__main__":
    main()
