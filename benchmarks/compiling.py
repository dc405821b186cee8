"""What torch.compile brings to sampling: blocks or whole networks, with frozen weights, with tuned products.

    python benchmarks/compiling.py [--recipe cifar10-laptop] [--set KEY=VALUE] [--precision bf16] [--steps 4]
        [--batch-size 64] [--repeats 7] [--threads 1] [--ways blocks,network]

Random weights, no guidance. All ways take turns in one process, each with its own copy of the network, so a machine
whose speed drifts is the same for all. Ratios are against the eager mode. `seconds` is what the first call took beyond
the others, with an empty cache of torch's compiler.
"""

from __future__ import annotations

import argparse
import copy
import os
import statistics
import tempfile
import time
from collections.abc import Callable

WAYS = ("blocks", "network", "frozen", "tuned", "channels-last")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="cifar10-laptop")
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--precision", choices=("float32", "bf16"), default="bf16")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--ways", default=",".join(WAYS))
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
        measure(given)


def measure(given: argparse.Namespace) -> None:
    import torch

    from spheregen.nn.block import compile_blocks
    from spheregen.sampling import sample
    from spheregen.training.frozen import blank_of_recipe
    from spheregen.training.recipe import load_recipe

    torch.set_num_threads(given.threads)
    recipe = load_recipe(given.recipe, given.set)
    torch.manual_seed(0)
    dtype = torch.bfloat16 if given.precision == "bf16" else torch.float32
    blank = blank_of_recipe(recipe).eval().requires_grad_(False).to(dtype)
    with torch.no_grad():
        for parameter in blank.parameters():  # those that start at zero leave blocks out
            parameter.add_(0.02 * torch.randn_like(parameter))
    noise = torch.randn(given.batch_size, *blank.latent_shape).to(dtype)
    labels = torch.arange(given.batch_size) % max(1, getattr(recipe.model, "num_classes", 0) or 1)

    def prepared(way: str) -> Callable[[], torch.Tensor]:
        model = copy.deepcopy(blank)
        if way == "blocks":
            compile_blocks(model)
        elif way == "channels-last":
            model.to(memory_format=torch.channels_last)
        elif way != "eager":  # options, not settings of the process: those would not ask for anything new
            options = {"network": {}, "frozen": {"freezing": True}, "tuned": {"freezing": True, "max_autotune": True}}
            for network in model.children():
                network.compile(dynamic=False, options=options[way])

        def run() -> torch.Tensor:
            with torch.no_grad():
                return sample(model, noise, labels, steps=given.steps, step_noise=noise).images

        return run

    first: dict[str, float] = {}
    runs: dict[str, Callable[[], torch.Tensor]] = {}
    made: dict[str, torch.Tensor] = {}
    for way in ("eager", *given.ways.split(",")):
        runs[way] = prepared(way)
        begun = time.process_time() + os.times().children_user
        try:
            made[way] = runs[way]()
        except Exception as error:
            print(f"{way}: {type(error).__name__}: {str(error).splitlines()[0]}")
            del runs[way]
            continue
        runs[way]()
        first[way] = time.process_time() + os.times().children_user - begun
    times: dict[str, list[float]] = {way: [] for way in runs}
    for _ in range(given.repeats):
        for way, run in runs.items():
            begun = time.process_time()
            run()
            times[way].append(time.process_time() - begun)
    about = (given.recipe, given.precision, f"{given.batch_size} images", f"{given.steps} steps")
    print(*about, f"{given.threads} threads", sep=", ")
    for way, taken in times.items():
        error = float((made[way].float() - made["eager"].float()).square().mean().sqrt())
        median = statistics.median(taken)
        ratio = statistics.median(a / b for a, b in zip(times["eager"], taken, strict=True))
        print(
            f"  {way:14} {1e3 * median:8.1f} ms  x{ratio:.2f} ({1e3 * min(taken):.1f} the quickest)  "
            f"compile {max(0.0, first[way] - 2 * median):5.1f} s  rms from eager {error:.1e}",
            flush=True,
        )


if __name__ == "__main__":
    main()
