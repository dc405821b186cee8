"""The documentation tells the truth: its links, settings, commands, options and Python names exist."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import shlex
import sys
from functools import reduce
from pathlib import Path
from typing import Any

import pytest
import typer.main

import spheregen as sg
from spheregen.cli.command import Making, Writing
from spheregen.cli.main import app
from spheregen.evaluation.ablation.plan import ALIASES
from spheregen.family.registry import trained_kinds
from spheregen.training.recipe import load_recipe, shipped_recipes

REPOSITORY = Path(__file__).resolve().parents[1]
DOCS = REPOSITORY / "docs"
if not DOCS.is_dir():
    pytest.skip("no documentation beside the tests", allow_module_level=True)
sys.path.append(str(DOCS / "_extensions"))
import reference  # noqa: E402

GENERATED = DOCS / "reference"
BESIDE = ("README.md", "CONTRIBUTING.md", "benchmarks/README.md")
PAGES = [page for page in (*sorted(DOCS.glob("*.md")), *(REPOSITORY / name for name in BESIDE)) if page.is_file()]
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(REPOSITORY).as_posix())

LINK = re.compile(r"\[[^\]\[]*\]\((?P<target>[^)\s]+)\)")
FENCE = re.compile(r"^[ ]*```(?P<language>\w*)[^\n]*\n(?P<body>.*?)^[ ]*```[ ]*$", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"`([^`\n]+)`")
COMMANDS: Any = typer.main.get_command(app)


def blocks(page: Path, *languages: str) -> list[str]:
    return [match["body"] for match in FENCE.finditer(page.read_text("utf-8")) if match["language"] in languages]


def prose(page: Path) -> str:
    """The page without its code blocks."""
    return FENCE.sub("", page.read_text("utf-8"))


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub and the site give the headings of a page."""
    headings = re.findall(r"^#+ +(.+?) *$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@every_page
def test_links_lead_to_files_and_headings(page: Path) -> None:
    for link in LINK.finditer(prose(page)):
        target, _, anchor = link["target"].partition("#")
        place = (page.parent / target).resolve() if target else page
        if re.match(r"[a-z]+:", target) or place.parent == GENERATED:
            continue
        assert place.exists(), f"{page.name} links to {target}, which does not exist"
        if anchor:
            assert anchor in anchors(place), f"{page.name} links to #{anchor}, which is no heading of {place.name}"


def test_the_site_lists_every_page() -> None:
    listed = "".join(FENCE.findall((DOCS / "index.md").read_text("utf-8"))[-2][1]).split()
    assert {page.stem for page in DOCS.glob("*.md")} - {"index"} <= {*listed}


# settings


def test_dotted_settings_in_the_text_exist() -> None:
    keys = {key for member in trained_kinds().values() for key, _, _ in reference.settings(member.recipe)}
    assert "model.image_size" in keys
    sections = {key.partition(".")[0] for key in keys if "." in key}
    keys |= {*ALIASES}
    for page in PAGES:
        for code in CODE.findall(prose(page)):
            match = re.match(r"(?:--set \"?)?(([a-z_]+)\.(?!pt$|safetensors$)[a-z_.]+)(?==|$)", code)
            if match and match[2] in sections and not exists(f"spheregen.{match[1]}"):
                name = match[1]
                assert name in keys or any(key.startswith(f"{name}.") for key in keys), f"{page.name}: {code}"


def test_yaml_examples_are_recipes(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    found = [body for page in PAGES for body in blocks(page, "yaml")]
    assert found
    for body in found:
        path.write_text(body, encoding="utf-8")
        assert load_recipe(path).name == "mine"


# commands


def commands(page: Path) -> list[list[str]]:
    """The `spheregen ...` command lines of a page, each as its words, without the program's name."""
    lines = [line for body in blocks(page, "bash", "") for line in body.replace("\\\n", " ").splitlines()]
    lines += CODE.findall(prose(page))
    found = []
    for line in lines:
        match = re.match(r"\s*(?:[A-Z_]+=\S+ )*(?:torchrun.* -m )?(?:\S*/)?spheregen(?P<rest>( .*)?)$", line)
        if match:
            found.append(shlex.split(match["rest"], comments=True))
    return found


def options_of(command: Any) -> set[str]:
    options = {"-h", "--help", *(["--overwrite"] if isinstance(command, Writing) else [])}
    options |= {"--prompt", "--prompts"} if isinstance(command, Making) else set()
    for parameter in [*command.params, *COMMANDS.params]:
        if parameter.param_type_name == "option":
            options |= {*parameter.opts, *parameter.secondary_opts}
    return options


@every_page
def test_commands_options_and_recipes_exist(page: Path) -> None:
    for words in commands(page):
        line = " ".join(["spheregen", *words])
        command = COMMANDS
        if words and not words[0].startswith("-"):
            assert words[0] in COMMANDS.commands, f"{page.name}: {line}: there is no command {words[0]}"
            command = COMMANDS.commands[words[0]]
        for word in words:
            if re.match(r"-{1,2}[a-zA-Z]", word):
                assert word.partition("=")[0] in options_of(command), f"{page.name}: {line}: there is no option {word}"
        if words[:1] == ["train"] and words[1] in shipped_recipes():
            load_recipe(words[1], [words[i + 1] for i, word in enumerate(words) if word == "--set"])


@every_page
def test_options_recipes_and_targets_in_the_text_exist(page: Path) -> None:
    known = options_of(COMMANDS).union(*map(options_of, COMMANDS.commands.values()))
    targets = re.findall(r"^([\w-]+):", (REPOSITORY / "Makefile").read_text("utf-8"), re.MULTILINE)
    for code in [*CODE.findall(prose(page)), *"\n".join(blocks(page, "bash")).splitlines()]:
        option, target = re.match(r"--[a-z][a-z-]*", code), re.match(r"make ([\w-]+)", code)
        assert not option or option[0] in known, f"{page.name} names the option {code}, which no command has"
        assert not target or target[1] in targets, f"{page.name}: {code}"
        if re.fullmatch(r"(sle|rae|flow)-\w[\w-]+|[\w-]+-laptop", code):
            assert code in shipped_recipes(), f"{page.name} names the recipe {code}, which is not shipped"


# Python


def exists(dotted: str) -> bool:
    """Whether a dotted name leads from a module of the package to something in it."""
    parts = dotted.split(".")
    for length in range(len(parts), 0, -1):
        try:
            module = importlib.import_module(".".join(parts[:length]))
        except ImportError:
            continue
        try:
            return reduce(getattr, parts[length:], module) is not None
        except AttributeError:
            return False
    return False


def test_every_function_of_the_method_exists() -> None:
    names = [code for code in CODE.findall(prose(DOCS / "method.md")) if re.fullmatch(r"[a-z_]+(\.\w+)+", code)]
    package = {path.stem for path in Path(sg.__file__).parent.iterdir()}
    found = [name for name in names if name.partition(".")[0] in package]
    settings = {key for member in trained_kinds().values() for key, _, _ in reference.settings(member.recipe)}
    assert len(found) > 50
    assert [name for name in found if name not in settings and not exists(f"spheregen.{name}")] == []


@pytest.mark.parametrize(
    "body",
    [pytest.param(body, id=f"{page.stem}-{n}") for page in PAGES for n, body in enumerate(blocks(page, "python"))],
)
def test_python_examples_compile_and_their_names_exist(body: str) -> None:
    tree = ast.parse(body)
    known: dict[str, Any] = {"sg": sg, "pipe": sg.Pipeline}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("spheregen"):
            module = importlib.import_module(str(node.module))
            known |= {name.asname or name.name: getattr(module, name.name) for name in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and (dotted := dotted_name(node.func)):
            start, _, rest = dotted.partition(".")
            if start in known:
                function = reduce(getattr, rest.split(".") if rest else [], known[start])
                check_arguments(node, function, bound=start == "pipe")


def dotted_name(node: ast.expr) -> str | None:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (front := dotted_name(node.value)):
        return f"{front}.{node.attr}"
    return None


def check_arguments(call: ast.Call, function: Any, *, bound: bool) -> None:
    """The call's keywords are parameters of what it calls, and there are not too many arguments before them."""
    if bound and function is sg.Pipeline:
        function = sg.Pipeline.__call__
    given: list[Any] = [None, *call.args] if bound else call.args  # self
    if not any(isinstance(argument, ast.Starred) for argument in call.args):
        keywords = {word.arg: word.value for word in call.keywords if word.arg}
        inspect.signature(function).bind_partial(*given, **keywords)
