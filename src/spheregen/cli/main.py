"""The `spheregen` command: its commands in groups, and how errors reach the user."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import inspect
import os
import sys
from collections.abc import Callable, Sequence
from typing import Annotated, Any, NoReturn

import typer
import typer.main

import spheregen
from spheregen.cli.ablate import ablate
from spheregen.cli.app import app as app_page
from spheregen.cli.bench import bench
from spheregen.cli.command import Command, Making, Writing, expanded
from spheregen.cli.compare import compare
from spheregen.cli.convert import convert
from spheregen.cli.demo import demo
from spheregen.cli.edits import crossover, edit, interpolate, reconstruct, refine, vary
from spheregen.cli.encode import encode
from spheregen.cli.evaluate import evaluate
from spheregen.cli.export import export
from spheregen.cli.fit_prior import fit_prior
from spheregen.cli.info import info
from spheregen.cli.listing import models, recipes
from spheregen.cli.options import READING_NAMES, SAMPLER_NAMES, Everywhere, everywhere, keep
from spheregen.cli.plot import plot
from spheregen.cli.restore import inpaint, restore, upscale
from spheregen.cli.sample import sample
from spheregen.cli.serve import serve
from spheregen.cli.stats import stats
from spheregen.cli.suggest import suggest
from spheregen.cli.sweep import sweep
from spheregen.cli.train import train
from spheregen.cli.tune import tune
from spheregen.errors import SphereGenError

GROUPS: dict[str, Sequence[Callable[..., None]]] = {
    "Start": (demo, models, recipes),
    "Make and change images": (
        sample,
        edit,
        interpolate,
        crossover,
        vary,
        restore,
        inpaint,
        upscale,
        refine,
        reconstruct,
    ),
    "Train": (suggest, train, plot, encode, fit_prior, tune, stats, bench, info, convert),
    "Measure": (evaluate, compare, sweep, ablate),
    "Ship": (app_page, serve, export),
}
_MAKING = {*GROUPS["Make and change images"], sweep}
_WRITING = {suggest, plot, stats, export}
_GONE = {
    "force": "give --overwrite",
    "swap": "write B first",
    "all_steps": "leave it out: the sheet shows every step",
    "keep": "leave it out",
    "fresh_noise": "give --set share_noise=false",
    "shared_noise": "give --set share_noise=true",
    "noise": "give --set share_noise=true,false",
    "no_pictures": "give --out NAME.png for the sheet alone",
    "channels": "give --set channels=3",
    "shard_images": "leave it out",
    "strength": "give --set angle=DEGREES",
    "guidance": "give --set guidance=SCALE",
    "precision": "leave it out",
    "batch_size": "leave it out: batches are as large as they fit",
}
"""Options of before -> what to do instead."""
_EVERY = "Every command"
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -2, -4, -8  # glibc's malloc.h
_UsageError: type[Any] = typer.BadParameter.__bases__[0]  # of the parser; it has no public name of its own

app = typer.Typer(
    name="spheregen",
    help="Train, sample and measure image generators on a high-dimensional sphere.",
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _add(command: Callable[..., None], group: str) -> None:
    """Add a command under its help; the examples in its docstring come below the options."""
    text, _, examples = inspect.cleandoc(command.__doc__ or "").partition("\nExamples:\n")
    lines = inspect.cleandoc(examples).splitlines()
    app.command(
        cls=Making if command in _MAKING else Writing if command in _WRITING else Command,
        help="\n\n".join(" ".join(paragraph.split()) for paragraph in text.split("\n\n")),
        epilog="\n".join(["Examples:", *(f"  {line}" for line in lines)]) if lines else None,
        rich_help_panel=group,
    )(expanded(command))


for _group, _commands in GROUPS.items():
    for _command in _commands:
        _add(_command, _group)


def _version(value: bool) -> None:
    if value:
        print(spheregen.__version__)
        raise typer.Exit


def _option(*names: str, help: str) -> Any:
    return typer.Option(*names, callback=keep, expose_value=False, rich_help_panel=_EVERY, help=help)


@app.callback()
def _options(
    device: Annotated[
        str | None, _option("--device", help="auto, cpu, cuda, cuda:1, mps ... Default: the fastest one here.")
    ] = None,
    as_json: Annotated[bool, _option("--json", help="Print the answer as JSON on stdout.")] = False,
    quiet: Annotated[
        bool, _option("--quiet", "-q", help="No progress and no news on stderr, only warnings and errors.")
    ] = False,
    debug: Annotated[bool, _option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Errors are one line, exit code 2. `spheregen COMMAND --help` shows the options of a command with examples."""


@functools.cache
def command() -> Any:
    """Return the command that typer makes of the functions here."""
    return typer.main.get_command(app)


def keep_freed_memory() -> None:
    """Let the C library keep large blocks that are freed, instead of handing each back to the system.

    A pass over a batch on the CPU frees and takes the same blocks of tens of megabytes over and over, and a fresh one
    costs a page fault every 4 KiB: a tenth of a training step in all. The commands call this before anything else; a
    library must not decide it for its host. It does nothing outside of Linux with glibc, and nothing where a `MALLOC_`
    variable of the environment says how memory is to be managed.
    """
    if sys.platform != "linux" or any(name.startswith("MALLOC_") for name in os.environ):
        return
    with contextlib.suppress(OSError, AttributeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        for option, value in ((_M_ARENA_MAX, 1), (_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1), (_M_TOP_PAD, 64 << 20)):
            mallopt(option, value)


def run(arguments: Sequence[str] | None = None) -> None:
    """Run a command line: user errors become one line on stderr and exit code 2.

    Args:
        arguments: the words behind `spheregen`; by default those of the process.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    vars(everywhere).update(vars(Everywhere()))
    for stream in (sys.stdout, sys.stderr):  # letters that the terminal's encoding has not are escaped
        with contextlib.suppress(AttributeError):
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    keep_freed_memory()
    try:
        code = command()(words or ["--help"], prog_name="spheregen", standalone_mode=False)
    except _UsageError as error:
        name = getattr(error, "option_name", "").lstrip("-").replace("-", "_")
        named = f"give --set {name}=VALUE" if name in (*SAMPLER_NAMES, *READING_NAMES) else _GONE.get(name)
        hint = f"; {named}" if named else ""
        where = error.ctx.command_path if error.ctx else "spheregen"
        _fail(f"{error.format_message().rstrip('.')}{hint}; see: {where} --help")
    except SphereGenError as error:
        if "--debug" in words:
            raise
        _fail(str(error))
    except KeyboardInterrupt:
        code = 130
    except BrokenPipeError:  # the reader of our output, such as `head`, went away
        sys.stderr.close()
        sys.exit(141)
    if code == 130:
        print("interrupted; the same command again continues where a run was saved", file=sys.stderr)
    if code:
        sys.exit(code)


def _fail(message: str) -> NoReturn:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    run()
