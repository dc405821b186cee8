"""How functions become commands: options that all commands, or all of a class, take, and groups of options.

A group is a dataclass whose fields are options; `expanded` makes them parameters of a command that takes the group.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
import typer.main
from typer.core import TyperCommand

from spheregen.cli.options import everywhere, keep


class Command(TyperCommand):
    """A command that also takes the options of the program."""

    def get_params(self, ctx: Any) -> list[Any]:
        own = super().get_params(ctx)
        shared = [p for p in ctx.find_root().command.params if p.name in vars(everywhere)]
        return [*own[:-1], *shared, own[-1]]  # the last one is --help


Overwrite = Annotated[
    bool,
    typer.Option(
        "--overwrite",
        callback=keep,
        expose_value=False,
        help="Replace files that we did not make, and write beside images that are there already.",
    ),
]
Prompt = Annotated[
    list[str] | None,
    typer.Option(
        "--prompt",
        callback=keep,
        expose_value=False,
        help="What to make, in words, of models that follow texts; repeatable, in turn as --labels are.",
    ),
]
PromptFile = Annotated[
    Path | None,
    typer.Option("--prompts", callback=keep, expose_value=False, help="A text file with a prompt in each line."),
]


@functools.cache
def _shared() -> dict[str, Any]:
    """Return the options that classes of commands share, which typer makes of parameters."""
    some = typer.Typer()

    @some.command()
    def _(overwrite: Overwrite = False, prompt: Prompt = None, prompts: PromptFile = None) -> None:
        pass

    return {str(param.name): param for param in typer.main.get_command(some).params}


class Writing(Command):
    """A command that writes images or other files where the user says."""

    def get_params(self, ctx: Any) -> list[Any]:
        *others, last = super().get_params(ctx)
        return [*others, _shared()["overwrite"], last]


class Making(Writing):
    """A command that makes or changes images, under prompts where the model follows texts."""

    def get_params(self, ctx: Any) -> list[Any]:
        *others, last = super().get_params(ctx)
        return [*others, _shared()["prompt"], _shared()["prompts"], last]


def expanded(command: Callable[..., None]) -> Callable[..., None]:
    """Make a command for typer of one whose parameters may be groups of options."""
    own = inspect.signature(command, eval_str=True).parameters
    groups: dict[str, Any] = {name: p.annotation for name, p in own.items() if dataclasses.is_dataclass(p.annotation)}
    options = {name: inspect.signature(group, eval_str=True).parameters for name, group in groups.items()}
    parameters = [
        parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        for name in own
        for parameter in (options[name].values() if name in groups else [own[name]])
    ]

    @functools.wraps(command)
    def run(**values: Any) -> None:
        for name, group in groups.items():
            values[name] = group(**{option: values.pop(option) for option in options[name]})
        command(**values)

    del run.__wrapped__
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run
