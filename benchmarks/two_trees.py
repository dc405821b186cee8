"""Two versions of the source in turn: processor seconds of a training step and of sampling.

    git worktree add ../before COMMIT
    python benchmarks/two_trees.py ../before/src src [--recipe digits] [--steps 1,4] [--batch-size 64] [--repeats 7]

Each version runs in a process of its own, and they take turns: one does a piece of work while the other waits. So a
machine whose speed drifts, or that has other work, is the same for both; the ratio is the answer, and the milliseconds
are this machine's. Weights are random, and so are images; those that start at zero are not left there, for their
gradients are too small for a processor to be fast.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
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
        precision, compiled = given.precision.replace("autocast", "bf16"), {}
        objective = build_objective(recipe)
        with contextlib.suppress(ImportError):  # a version before had it in the step
            from spheregen.training.arithmetic import choose_arithmetic

            chosen = choose_arithmetic(recipe, device, objective.model, recipe.total_steps(50_000))
            compiled = {"compiled": chosen.compiled}
            precision = chosen.precision.name if precision == "auto" else precision
        step = TrainingStep(objective, recipe, device=device, precision=precision, **compiled)
        with torch.no_grad():
            for parameter in step.model.parameters():
                parameter.add_(0.02 * torch.randn_like(parameter))
        batch, noise = synthetic_batch(step, batch_size)
        works["train"] = lambda: step(batch, noise, 1e-6)
    pipe = Pipeline(blank_of_recipe(recipe), device=device, progress=False)
    if given.precision == "auto":
        from spheregen.measure.precision import choose_precision

        pipe.to(dtype=choose_precision("auto", device, pipe.model).name.replace("bf16", "bfloat16"))
    if given.precision == "bf16":
        pipe.to(dtype="bfloat16")

    def sample(steps: int) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=given.precision == "autocast"):
            pipe.generate(given.images, steps=steps, guidance=given.guidance, prior="sphere")

    for steps in map(int, given.steps.split(",")) if given.steps else ():
        works[f"sample {steps}"] = functools.partial(sample, steps)
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
    parser.add_argument("--set-after", action="append", default=[], help="the same, of the second version alone")
    parser.add_argument("--precision", default="float32", help="float32, bf16 (its weights), autocast, or auto")
    parser.add_argument("--precision-before", help="of the version before; by default the same")
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
        if tree is given.before and given.precision_before:
            command += ["--precision", given.precision_before]
        if tree is given.after:
            command += [f"--set={each}" for each in given.set_after]
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
    types = f"{given.precision_before} and {given.precision}" if given.precision_before else given.precision
    print(f"{given.recipe} {' '.join(given.set)} in {types}, {given.threads} threads, CPU seconds")
    for name, (before, after) in times.items():
        ratios = sorted(a / b for a, b in zip(before, after, strict=True))
        times_ms = " ".join(f"{1000 * statistics.median(each):9.2f} ms" for each in (before, after))
        print(f"{name:10s} {times_ms}   before / after {statistics.median(ratios):.2f} ", end="")
        print(f"({ratios[0]:.2f} to {ratios[-1]:.2f})")


if __name__ == "__main__":
    main()
