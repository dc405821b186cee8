"""Pages that are made when the site is built: every setting of a recipe, every command, the benchmarks."""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import itertools
import sys
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer.main

from spheregen.cli.main import app as command_line
from spheregen.family.registry import trained_kinds

FOLDER = "reference"
BENCHMARKS = "benchmarks/README.md"


def setup(app: Any) -> dict[str, Any]:
    """Write the pages before sphinx reads its sources."""
    app.connect("builder-inited", lambda app: write_pages(Path(app.srcdir) / FOLDER))
    app.connect("source-read", _read)
    return {"parallel_read_safe": True}


def write_pages(folder: Path) -> None:
    """Write `settings.md`, `commands.md` and `benchmarks.md`."""
    folder.mkdir(exist_ok=True)
    (folder / "settings.md").write_text("\n".join(settings_page()) + "\n", encoding="utf-8")
    (folder / "commands.md").write_text("\n".join(commands_page()) + "\n", encoding="utf-8")
    benchmarks = (folder.parents[1] / BENCHMARKS).read_text("utf-8").replace("](../docs/", "](../")
    (folder / "benchmarks.md").write_text(benchmarks, encoding="utf-8")


def _read(app: Any, page: str, source: list[str]) -> None:
    """Let links to the benchmarks lead to their page in the site."""
    source[0] = source[0].replace(f"](../{BENCHMARKS})", f"]({FOLDER}/benchmarks.md)")


def settings_page() -> Iterator[str]:
    """List every key of every kind of recipe with its default and meaning."""
    yield "# Settings of recipes\n\nA recipe is a YAML file of these keys; `--set key=value` overrides one.\n"
    for kind, member in trained_kinds().items():
        yield f"## {kind}\n\n{inspect.getdoc(member.recipe)}\n\n| key | default | meaning |\n|---|---|---|"
        for key, default, text in settings(member.recipe):
            yield f"| `{key}` | `{default}` | {text} |"
        yield ""


def settings(section: Any, prefix: str = "") -> Iterator[tuple[str, Any, str]]:
    """List the dotted keys of a recipe class or of a section of it: key, default, meaning."""
    documented = attribute_docs(section)
    for name, (annotation, default) in fields(section).items():
        inner = next((each for each in (annotation, *typing.get_args(annotation)) if fields(each)), None)
        text = " ".join(documented.get(name, "").split()).replace("|", "\\|")
        if inner is None or default is None or isinstance(default, str):
            yield prefix + name, default, text
        if inner is not None:
            yield from settings(inner, f"{prefix}{name}.")


def fields(section: Any) -> dict[str, tuple[Any, Any]]:
    """Return the annotation and default of each field of a settings class; nothing for other types."""
    if hasattr(section, "model_fields"):
        found = section.model_fields.items()
        return {name: (field.annotation, "required" if field.is_required() else field.default) for name, field in found}
    if isinstance(section, type) and dataclasses.is_dataclass(section):
        hints = typing.get_type_hints(section)
        return {each.name: (hints[each.name], default_of(each)) for each in dataclasses.fields(section)}
    return {}


def default_of(field: dataclasses.Field[Any]) -> Any:
    """Return the default of a dataclass field, or `required`."""
    if field.default is not dataclasses.MISSING:
        return field.default
    return "required" if field.default_factory is dataclasses.MISSING else field.default_factory()


def attribute_docs(section: type) -> dict[str, str]:
    """Return the strings behind the attributes of a class and of those that it derives from."""
    found: dict[str, str] = {}
    for each in reversed(section.__mro__):
        if not each.__module__.startswith("spheregen"):
            continue
        for before, after in itertools.pairwise(classes_of(each.__module__)[each.__name__].body):
            named = isinstance(before, ast.AnnAssign) and isinstance(before.target, ast.Name)
            if named and isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
                found[before.target.id] = str(after.value.value)
    return found


@functools.cache
def classes_of(module: str) -> dict[str, ast.ClassDef]:
    """Return the classes of a module as they are written; each file is read once."""
    tree = ast.parse(inspect.getsource(sys.modules[module]))
    return {node.name: node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}


def commands_page() -> Iterator[str]:
    """List every command with its arguments and options."""
    group: Any = typer.main.get_command(command_line)
    yield "# Commands\n"
    for name, command in sorted(group.commands.items()):
        yield f"## spheregen {name}\n\n```text\n{inspect.cleandoc(command.help or '')}\n```\n"
        yield "| option | default | meaning |\n|---|---|---|"
        for parameter in command.params:
            names = ", ".join(f"`{each}`" for each in (*parameter.opts, *parameter.secondary_opts))
            help_text = " ".join((getattr(parameter, "help", None) or "").split()).replace("|", "\\|")
            default = "" if parameter.default in (None, False) else f"`{parameter.default}`"
            yield f"| {names} | {default} | {help_text} |"
        yield ""
