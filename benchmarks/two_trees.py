"""Two versions of the source in turn: processor seconds of a training step and of sampling.

    git worktree add ../before COMMIT
    python benchmarks/two_trees.py ../before/src src [--recipe digits] [--steps 1,4] [--batch-size 64] [--repeats 7]

Each version runs in a process of its own, and they take turns: one does a piece of work while the other waits. So a
machine whose speed drifts, or that has other work, is the same for both; the ratio is the answer, and the milliseconds
are this machine's. Weights are random, and so are images.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path


def work(given: argparse.Namespace) -> None:
    """Do what is asked for on stdin, a name in a line, and answer with processor seconds."""
    import torch

    from spheregen.cli.main import keep_freed_memory
    from spheregen.pipeline import Pipeline
    from spheregen.training.estimate import synthetic_batch
    from spheregen.training.frozen import blank_of_recipe, build_objective
    from spheregen.training.recipe import load_recipe
    from spheregen.training.step import TrainingStep

    keep_freed_memory()
    torch.manual_seed(0)
    device = torch.device("cpu")
    recipe = load_recipe(given.recipe, given.set)
    batch_size = given.batch_size or recipe.train.batch_size
    recipe = recipe.model_copy(update={"train": recipe.train.model_copy(update={"batch_size": batch_size})})
    works: dict[str, Callable[[], object]] = {}
    if given.train:
        step = TrainingStep(build_objective(recipe), recipe, device=device, precision=given.precision)
        batch, noise = synthetic_batch(step, batch_size)
        works["train"] = lambda: step(batch, noise, 1e-6)
    pipe = Pipeline(blank_of_recipe(recipe), device=device, progress=False)
    if given.precision == "bf16":
        pipe.to(dtype="bfloat16")
    for steps in map(int, given.steps.split(",")) if given.steps else ():
        works[f"sample {steps}"] = lambda steps=steps: pipe.generate(  # type: ignore[misc]
            given.images, steps=steps, guidance=given.guidance, prior="sphere"
        )
    counts = {}
    for name, call in works.items():
        for _ in range(2):
            call()
        begun = time.process_time()
        call()
        counts[name] = max(1, round(given.seconds / (time.process_time() - begun)))
    print(" ".join(name.replace(" ", "_") for name in works), flush=True)
    for line in sys.stdin:
        name = line.strip().replace("_", " ")
        begun = time.process_time()
        for _ in range(counts[name]):
            works[name]()
        print((time.process_time() - begun) / counts[name], flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path, help="the folder that holds the spheregen to compare with")
    parser.add_argument("after", type=Path)
    parser.add_argument("--recipe", default="digits")
    parser.add_argument("--set", action="append", default=[], help="as of `spheregen train`")
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--batch-size", type=int, help="of training; the recipe's by default")
    parser.add_argument("--images", type=int, default=64, help="of a call of sampling")
    parser.add_argument("--steps", default="1,4", help="of sampling; empty for none")
    parser.add_argument("--guidance", type=float, default=1.0)
    parser.add_argument("--no-train", dest="train", action="store_false")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=0.3, help="processor time of one piece of work, about")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        work(given)
        return
    workers = []
    for tree in (given.before, given.after):
        environment = {**os.environ, "PYTHONPATH": str(tree.resolve()), "OMP_NUM_THREADS": str(given.threads)}
        command = [sys.executable, *sys.argv, "--worker"]
        workers.append(
            subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        )
        names = workers[-1].stdout.readline().split()  # type: ignore[union-attr]
    times: dict[str, list[list[float]]] = {name: [[], []] for name in names}
    for turn in range(given.repeats):
        for name in names:
            for place in (0, 1) if turn % 2 else (1, 0):
                worker = workers[place]
                print(name, file=worker.stdin, flush=True)
                times[name][place].append(float(worker.stdout.readline()))  # type: ignore[union-attr]
    for worker in workers:
        worker.communicate()
    print(f"{given.recipe} {' '.join(given.set)} in {given.precision}, {given.threads} threads, CPU seconds")
    for name, (before, after) in times.items():
        ratios = sorted(a / b for a, b in zip(before, after, strict=True))
        times_ms = " ".join(f"{1000 * statistics.median(each):9.2f} ms" for each in (before, after))
        print(f"{name:10s} {times_ms}   before / after {statistics.median(ratios):.2f} ", end="")
        print(f"({ratios[0]:.2f} to {ratios[-1]:.2f})")


if __name__ == "__main__":
    main()
