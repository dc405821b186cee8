"""The `spheregen` command: its list of commands, and how errors reach the user."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

import spheregen
from spheregen.allocator import keep_freed_memory
from spheregen.cli import (
    ablate,
    bench,
    compare,
    convert,
    crossover,
    demo,
    edit,
    encode,
    evaluate,
    info,
    inpaint,
    interpolate,
    models,
    plot,
    recipes,
    reconstruct,
    refine,
    sample,
    stats,
    suggest,
    sweep,
    train,
    upscale,
    vary,
)
from spheregen.errors import SphereGenError

app = typer.Typer(
    name="spheregen",
    help="Train, sample and measure image generators on a high-dimensional sphere.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (
    demo.demo,
    sample.sample,
    evaluate.evaluate,
    compare.compare,
    ablate.ablate,
    sweep.sweep,
    reconstruct.reconstruct,
    refine.refine,
    interpolate.interpolate,
    crossover.crossover,
    edit.edit,
    vary.vary,
    inpaint.inpaint,
    upscale.upscale,
    suggest.suggest,
    train.train,
    plot.plot,
    info.info,
    bench.bench,
    stats.stats,
    encode.encode,
    models.models,
    recipes.recipes,
    convert.convert,
):
    app.command()(command)


def _version(value: bool) -> None:
    if value:
        print(spheregen.__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Errors are one line, exit code 2; --debug anywhere shows the traceback."""


def run() -> None:
    """Entry point: user errors become one line on stderr and exit code 2."""
    debug = "--debug" in sys.argv
    if debug:
        sys.argv.remove("--debug")
    keep_freed_memory()
    try:
        app()
    except SphereGenError as error:
        if debug:
            raise
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted; the same command again continues where a run was saved", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # the reader of our output, such as `head`, went away
        sys.stderr.close()
        sys.exit(141)


if __name__ == "__main__":
    run()
