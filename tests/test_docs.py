"""The documentation tells the truth: its links, settings, commands, options and Python names exist."""

from __future__ import annotations

import ast
import dataclasses
import functools
import importlib
import inspect
import json
import re
import shlex
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml

import spheregen as sg
from spheregen.cli.main import app
from spheregen.models.autoencoder import SphereAutoencoder
from spheregen.models.sizes import SIZES, TransformerSize
from spheregen.training.recipe import (
    FREE_TO_CHANGE,
    KINDS,
    AutoencoderRecipe,
    TeacherConfig,
    load_recipe,
    shipped_recipes,
)

REPOSITORY = Path(__file__).resolve().parents[1]
RECIPES = REPOSITORY / "docs" / "recipes.md"
PAGES = [
    page
    for page in (*sorted((REPOSITORY / "docs").glob("*.md")), REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md")
    if page.is_file()
]
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(REPOSITORY).as_posix())

LINK = re.compile(r"\[(?P<text>[^\]\[]*)\]\((?P<target>[^)\s]+)\)")
FENCE = re.compile(r"^[ ]*```(?P<language>\w*)[^\n]*\n(?P<body>.*?)^[ ]*```[ ]*$", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"`([^`\n]+)`")


def blocks(page: Path, *languages: str) -> list[str]:
    return [match["body"] for match in FENCE.finditer(page.read_text("utf-8")) if match["language"] in languages]


def prose(page: Path) -> str:
    """The page without its code blocks."""
    return FENCE.sub("", page.read_text("utf-8"))


# links


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ +(.+?) *$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@every_page
def test_relative_links_lead_to_files_and_headings(page: Path) -> None:
    for link in LINK.finditer(prose(page)):
        target, _, anchor = link["target"].partition("#")
        if re.match(r"[a-z]+:", target):
            continue
        place = (page.parent / target).resolve() if target else page
        assert place.exists(), f"{page.name} links to {target}, which does not exist"
        if anchor and place.suffix == ".md":
            assert anchor in anchors(place), f"{page.name} links to #{anchor}, which is no heading of {place.name}"


@every_page
def test_links_to_source_name_what_is_there(page: Path) -> None:
    for link in LINK.finditer(prose(page)):
        name = re.fullmatch(r"`([A-Za-z_]\w*(?:\.\w+)*)`", link["text"])
        target = (page.parent / link["target"].partition("#")[0]).resolve()
        if name is None or target.suffix != ".py" or not target.is_relative_to(REPOSITORY / "src"):
            continue
        if name[1] == target.name:
            continue
        parts = target.relative_to(REPOSITORY / "src").with_suffix("").parts
        resolve(importlib.import_module(".".join(parts)), name[1])


def resolve(start: Any, dotted: str) -> Any:
    return functools.reduce(getattr, dotted.split("."), start)


# recipe settings


def schema(section: Any = AutoencoderRecipe, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Each setting of a recipe: its dotted key and its default, `"required"` where there is none."""
    for name, (annotation, default) in fields_of(section).items():
        if fields_of(annotation):
            yield from schema(annotation, f"{prefix}{name}.")
        else:
            yield prefix + name, default
            if annotation == str | TransformerSize:
                yield from schema(TransformerSize, f"{prefix}{name}.")
            elif annotation == TeacherConfig | None:
                yield from schema(TeacherConfig, f"{prefix}{name}.")


def fields_of(section: Any) -> dict[str, tuple[Any, Any]]:
    if hasattr(section, "model_fields"):
        return {
            name: (field.annotation, "required" if field.is_required() else field.default)
            for name, field in section.model_fields.items()
        }
    if isinstance(section, type) and dataclasses.is_dataclass(section):
        hints = typing.get_type_hints(section)
        return {
            field.name: (hints[field.name], "required" if field.default is dataclasses.MISSING else field.default)
            for field in dataclasses.fields(section)
        }
    return {}


def documented(text: str | None = None) -> list[tuple[str, str]]:
    """The rows of the tables of settings in a text, docs/recipes.md by default: key and default as written."""
    rows = []
    inside = False
    for line in (RECIPES.read_text("utf-8") if text is None else text).splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")] if line.startswith("|") else []
        if cells == ["key", "type", "default", "meaning"]:
            inside = True
        elif not cells:
            inside = False
        elif inside and not set(cells[0]) <= set("-: "):
            assert len(cells) == 4, line
            rows += [(key, cells[2].strip("`")) for key in CODE.findall(cells[0])]
    return rows


def check_defaults(rows: list[tuple[str, str]], defaults: dict[str, Any]) -> None:
    for key, written in rows:
        if key == "name":
            continue  # load_recipe takes it from the file's name
        default = defaults[key]
        shown: Any = yaml.safe_load(written)
        if isinstance(default, float):
            shown = float(shown)  # YAML reads 1e-4 as text
        assert shown == json.loads(json.dumps(default)), f"{key}: documented {written}, in the code {default!r}"


@pytest.mark.parametrize(
    ("kind", "page", "heading"),
    [
        ("latent-denoiser", "latents.md", "Settings of a latent denoiser"),
        ("representation", "latents.md", "Settings of a representation autoencoder"),
        ("sphere-flow", "flow.md", "Settings"),
    ],
)
def test_the_settings_of_other_kinds_are_documented(kind: str, page: str, heading: str) -> None:
    """Those that are not in every recipe: `model`, `loss`, and what the kind has of its own."""
    section = (REPOSITORY / "docs" / page).read_text("utf-8").partition(f"## {heading}\n")[2]
    rows = documented(section.partition("\n## ")[0])
    found = dict(schema(KINDS[kind]))
    own = {key: default for key, default in found.items() if key.startswith(("model.", "loss."))}
    if kind == "latent-denoiser":
        own |= {"tokenizer": None}
    if kind == "sphere-flow":
        usual = dict(schema())
        mine = ("source", "autoencoder", "teacher", "phases.", "sampling.")
        own |= {key: found[key] for key in found if key.startswith(mine) and found[key] != usual.get(key, "none such")}
        own = {key: default for key, default in own.items() if not key.startswith(("autoencoder_",))}
        own |= {"model.blocks.qk_norm": True}  # the one that a refiner has on unless it is told
    sizes = {f"{key}.{field.name}" for key in own for field in dataclasses.fields(TransformerSize)}
    assert {key for key, _ in rows} == own.keys() - sizes
    check_defaults(rows, own)


def test_every_setting_is_documented_and_every_documented_setting_exists() -> None:
    keys = [key for key, _ in documented()]
    assert len(keys) == len(set(keys))
    assert set(keys) == {key for key, _ in schema()}


def test_documented_defaults_are_those_of_the_code() -> None:
    check_defaults(documented(), dict(schema()))


def test_the_table_of_shipped_recipes_is_complete() -> None:
    text = RECIPES.read_text("utf-8")
    listed = set(re.findall(r"^\| `([\w-]+)` \|", text.partition("## Overrides")[0], re.MULTILINE))
    assert listed == set(shipped_recipes())


def test_the_documented_sizes_are_those_of_the_code() -> None:
    text = " ".join(RECIPES.read_text("utf-8").split())
    written = re.findall(r"`(\w+)` (\d+), (\d+), (\d+)[;.]", text)
    assert {name: tuple(map(int, numbers)) for name, *numbers in written} == {
        name: (size.width, size.depth, size.heads) for name, size in SIZES.items()
    }


def test_the_settings_that_may_change_are_those_of_the_code() -> None:
    section = RECIPES.read_text("utf-8").partition("## What may change when a run continues")[2]
    listed = [line for line in section.splitlines() if line.startswith("- ")]
    assert {key for line in listed for key in CODE.findall(line)} == FREE_TO_CHANGE


@every_page
def test_dotted_settings_in_the_text_exist(page: Path) -> None:
    keys = {key for recipe in KINDS.values() for key, _ in schema(recipe)}
    sections = {key.partition(".")[0] for key in keys if "." in key}
    for code in CODE.findall(prose(page)):
        match = re.match(r"(?:--set \"?)?([a-z_]+)\.([a-z_.]+)(?==|:|\"?$)", code)
        if match is None or match[1] not in sections or match[2] in ("safetensors", "pt"):
            continue
        if hasattr(SphereAutoencoder if match[1] == "model" else getattr(sg, match[1], None), match[2]):
            continue  # `model.encode`, `sampling.sample`: a function, not a setting
        assert f"{match[1]}.{match[2]}" in keys, f"{page.name} names the setting {code}, which does not exist"


@pytest.mark.parametrize("number", range(len(blocks(RECIPES, "yaml"))))
def test_yaml_examples_are_recipes(number: int, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(blocks(RECIPES, "yaml")[number], encoding="utf-8")
    assert load_recipe(path).name == "mine"


# commands


def commands(page: Path) -> list[list[str]]:
    """The `spheregen ...` command lines of a page, each as its words, without the program's name."""
    lines = [
        line for body in blocks(page, "bash", "sh", "console", "") for line in body.replace("\\\n", " ").splitlines()
    ]
    lines += CODE.findall(prose(page))
    found = []
    for line in lines:
        match = re.match(r"\s*(?:\$ )?(?:[A-Z_]+=\S+ )*(?:\S*/)?spheregen(?P<rest>( .*)?)$", line)
        if match:
            words = shlex.split(match["rest"], comments=True)
            end = next((i for i, word in enumerate(words) if word in ("|", ">", "&&", ";")), len(words))
            found.append(words[:end])
    return found


def options_of(command: Any) -> set[str]:
    options = {"-h", "--help", "--debug"}
    for parameter in command.params:
        if parameter.param_type_name == "option":
            options |= {*parameter.opts, *parameter.secondary_opts}
    return options


@every_page
def test_commands_and_their_options_exist(page: Path) -> None:
    group: Any = typer.main.get_command(app)
    for words in commands(page):
        line = " ".join(["spheregen", *words])
        command = group
        if words and not words[0].startswith("-"):
            assert words[0] in group.commands, f"{page.name}: {line}: there is no command {words[0]}"
            command = group.commands[words[0]]
        for word in words:
            option = word.partition("=")[0]
            if re.match(r"-{1,2}[a-zA-Z]", option):
                assert option in options_of(command), f"{page.name}: {line}: there is no option {option}"


@every_page
def test_options_in_the_text_exist(page: Path) -> None:
    group: Any = typer.main.get_command(app)
    known = options_of(group).union(*(options_of(command) for command in group.commands.values()))
    for code in CODE.findall(prose(page)):
        option = re.match(r"--[a-z][a-z-]*", code)
        assert option is None or option[0] in known, f"{page.name} names the option {code}, which no command has"


@every_page
def test_recipes_in_commands_resolve(page: Path) -> None:
    for words in commands(page):
        if len(words) > 1 and words[0] in ("train", "info") and words[1] in shipped_recipes():
            load_recipe(words[1], [words[i + 1] for i, word in enumerate(words[:-1]) if word == "--set"])


@every_page
def test_make_targets_exist(page: Path) -> None:
    makefile = REPOSITORY / "Makefile"
    if not makefile.is_file():
        pytest.skip("no Makefile")
    targets = set(re.findall(r"^([\w-]+):", makefile.read_text("utf-8"), re.MULTILINE))
    lines = [line for body in blocks(page, "bash", "sh", "console", "") for line in body.splitlines()]
    for line in [*lines, *CODE.findall(prose(page))]:
        match = re.fullmatch(r"(?:\$ )?make ([\w-]+)(?:\s.*)?", line)
        assert match is None or match[1] in targets, f"{page.name}: make {match and match[1]}"


# Python


def python_blocks() -> list[Any]:
    return [
        pytest.param(body, id=f"{page.name}-{number}")
        for page in PAGES
        for number, body in enumerate(blocks(page, "python"))
    ]


@pytest.mark.parametrize("body", python_blocks())
def test_python_examples_compile_and_their_names_exist(body: str) -> None:
    tree = ast.parse(body)
    known: dict[str, Any] = {"sg": sg, "pipe": sg.Pipeline}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("spheregen"):
            module = importlib.import_module(str(node.module))
            known |= {name.asname or name.name: getattr(module, name.name) for name in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and (dotted := dotted_name(node)):
            start, _, rest = dotted.partition(".")
            if start == "sg" or (
                start == "pipe" and rest not in ("model", "info", "image_options") and "." not in rest
            ):
                resolve(known[start], rest)
        if isinstance(node, ast.Call) and (dotted := dotted_name(node.func)) and dotted.partition(".")[0] in known:
            check_arguments(node, dotted, known)


def dotted_name(node: ast.expr) -> str | None:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (front := dotted_name(node.value)):
        return f"{front}.{node.attr}"
    return None


def check_arguments(call: ast.Call, dotted: str, known: dict[str, Any]) -> None:
    """The call's keywords are parameters of what it calls, and there are not too many arguments before them."""
    start, _, rest = dotted.partition(".")
    function = resolve(known[start], rest) if rest else known[start]
    signature = inspect.signature(function)
    bound = [None] if start == "pipe" else []  # self
    if not any(isinstance(argument, ast.Starred) for argument in call.args):
        signature.bind_partial(*bound, *call.args, **{word.arg: word.value for word in call.keywords if word.arg})
