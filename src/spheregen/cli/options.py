"""Options that commands share, each declared once, alone or in groups, and what commands do with them."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

import spheregen
from spheregen.errors import ConfigError, did_you_mean
from spheregen.files import read_yaml

if TYPE_CHECKING:
    from spheregen.pipeline import Pipeline
    from spheregen.progress import Reporter

Part = TypeVar("Part")
_HOME = Path(spheregen.__file__).parent

# the options of every command --------------------------------------------------------------------------------------


@dataclass
class Everywhere:
    """The values of the options that every command takes, before its name or behind it."""

    device: str = "auto"
    as_json: bool = False
    quiet: bool = False
    debug: bool = False
    overwrite: bool = False
    """Of the commands of class `Writing` alone."""
    prompt: list[str] = dataclasses.field(default_factory=list)
    prompts: Path | None = None
    """Of the commands of class `Making` alone, as the one before."""


everywhere = Everywhere()


def keep(param: typer.CallbackParam, value: Any) -> Any:
    """Remember an option of every command, wherever it was given."""
    if value:
        setattr(everywhere, str(param.name), value)
    return value


# groups ---------------------------------------------------------------------------------------------------------------


_SAMPLER = "Sampling"
MOST = 10**9  # images: more is a typing error
SAMPLER_NAMES = (
    *("schedule", "guidance_at", "share_noise", "strength", "prior", "temperature", "prior_angle"),
    *("start_angle", "loop_angle", "negative_prompt"),
    *("refinement_steps", "solver", "refinement_guidance"),
)
TASK_NAMES = ("degrade", "quality", "levels")
RESTORE_NAMES = (
    *("angle", "lam", "scale", "stop", "discrepancy", "samples", "tiles", "schedule", "guidance", "guidance_at"),
    *("share_noise", "refinement_steps", "solver", "refinement_guidance"),
)
READING_NAMES = ("fit", "resize", "background", "on_error")
SamplerSet = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="NAME=VALUE",
        rich_help_panel=_SAMPLER,
        autocompletion=lambda incomplete: [f"{name}=" for name in SAMPLER_NAMES if name.startswith(incomplete)],
        help="Further options, repeatable: schedule=fixed, decay, angle or [1,0.5]; guidance_at=pixel, latent or both; "
        "share_noise=false for new noise at each step; strength=F, a factor of their noise; prior=fitted for points "
        "where the codes are, with temperature=T (below 1 nearer to a class's mean) and prior_angle=A (degrees towards "
        "uniform ones); start_angle=A and loop_angle=A, the degrees that the start and the steps have; "
        "negative_prompt=TEXT, which guidance pulls away from, of models that follow texts; of models that "
        "refine: refinement_steps=N (0 leaves images "
        "rough), solver=euler, heun or midpoint, refinement_guidance=S. Default: the model's.",
    ),
]


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """The few-step loop, as the model does it unless it is told."""

    steps: Annotated[
        int | None, typer.Option(rich_help_panel=_SAMPLER, help="Decodes; 1 is one step. Default: the model's.")
    ] = None
    guidance: Annotated[
        float | None,
        typer.Option(
            rich_help_panel=_SAMPLER,
            help="Classifier-free guidance scale; 1 is none. Degrees of models that are guided by rotation; 0 is none. "
            "Default: the model's; none without a class.",
        ),
    ] = None
    settings: SamplerSet = None

    def given(self) -> dict[str, Any]:
        """Return what was given, as `Pipeline` takes it; the rest is the model's default."""
        own = {key: value for key, value in vars(self).items() if key != "settings" and value is not None}
        return own | sampler_settings(self.settings)


@dataclass(frozen=True, kw_only=True)
class Editing(Sampling):
    """A loop that starts from images."""

    steps: Annotated[
        int | None,
        typer.Option(
            rich_help_panel=_SAMPLER, help="Steps of encode and decode. Default: 4; one decode in vary and interpolate."
        ),
    ] = None
    strength: Annotated[
        float | None,
        typer.Option(
            rich_help_panel=_SAMPLER,
            help="Noise of a step as a fraction of the training noise, 0 to 1. Default: 0.25; 1 between seeds.",
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class Restoring:
    """A loop that restores."""

    steps: Annotated[
        int | None,
        typer.Option(
            "--steps",
            "--iterations",
            rich_help_panel=_SAMPLER,
            help="Steps of model and data. Default: what was recorded with the model for the task, else 20.",
        ),
    ] = None
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            rich_help_panel=_SAMPLER,
            help="Further options, repeatable: angle=A, degrees of noise; samples=N, results of each image; tiles=true "
            "for images as large as they are; scale=C, trust in the model (1); stop=F, end early at F times the noise; "
            "discrepancy=F, end F times the noise away from what was given (0.95); schedule, guidance, guidance_at, "
            "share_noise and those of a flow as in sample. Of restore also degrade=true, which makes the degraded "
            "image first; quality=Q of dejpeg (10); levels=N of dequantise (8).",
        ),
    ] = None

    def given(self, more: Sequence[str] = ()) -> dict[str, Any]:
        """Return what was given, as `Pipeline` takes it, and `more` names; the rest is a default."""
        own = {} if self.steps is None else {"steps": self.steps}
        return own | assignments(self.settings, (*RESTORE_NAMES, *more), "samples=8")


def sampler_settings(texts: Sequence[str] | None) -> dict[str, Any]:
    """Read the `--set` of a sampling command."""
    return assignments(texts, SAMPLER_NAMES, "schedule=decay")


def assignments(texts: Sequence[str] | None, known: Sequence[str], example: str) -> dict[str, Any]:
    """Read `--set NAME=VALUE` options, values as YAML.

    Args:
        known: the names that there are; empty for any.
    """
    values: dict[str, Any] = {}
    for text in texts or ():
        name, equals, value = text.partition("=")
        name = name.strip().replace("-", "_") if known else name.strip()
        if not equals or not name:
            raise ConfigError(f"--set {text!r} is not NAME=VALUE, such as {example}")
        if known and name not in known:
            raise ConfigError(f"--set {name}: no such option{did_you_mean(name, known)}; there are {', '.join(known)}")
        values[name] = read_yaml(value, f"--set {text!r}: the value")
    return values


# single options -------------------------------------------------------------------------------------------------------


def _completed(folder: str, suffix: str = "") -> Callable[[str], list[str]]:
    """Complete the names of what comes with the package in `folder`, and paths."""

    def complete(incomplete: str) -> list[str]:
        names = sorted(path.name.removesuffix(suffix) for path in (_HOME / folder).glob(f"*{suffix}"))
        paths = (path.as_posix() + "/" * path.is_dir() for path in Path().glob(f"{incomplete}*"))
        return [*(name for name in names if name.startswith(incomplete) and "_" not in name), *paths]

    return complete


_models, _recipes = _completed("assets/models"), _completed("recipes", ".yaml")
_MODEL = typer.Argument(
    help="A model folder, the name of a bundled model, or a Hub id.", metavar="MODEL", autocompletion=_models
)
SOURCE_HELP = (
    "`digits`, `letters`, a folder of images, .zip, .parquet, .tar files (or a pattern), a URL, a Hub data set."
)

Model = Annotated[str, _MODEL]
OptionalModel = Annotated[str | None, _MODEL]
Recipe = Annotated[
    str, typer.Argument(help="A shipped recipe (see `spheregen recipes`) or a YAML file.", autocompletion=_recipes)
]
OptionalRecipe = Annotated[
    str | None, typer.Argument(help="Print this recipe's YAML instead of the list.", autocompletion=_recipes)
]
ModelOrRecipe = Annotated[
    str,
    typer.Argument(
        help="A model folder, a bundled model, a shipped recipe or a YAML file.",
        metavar="MODEL|RECIPE",
        autocompletion=lambda incomplete: list(dict.fromkeys([*_models(incomplete), *_recipes(incomplete)])),
    ),
]
RecipeSet = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a setting of the recipe, a.b=c; repeatable."),
]
Source = Annotated[str, typer.Argument(help=SOURCE_HELP, metavar="SRC")]
Images = Annotated[list[str], typer.Argument(help=f"Image files, or any data set: {SOURCE_HELP}", metavar="IMAGES")]
Data = Annotated[str | None, typer.Option(help="Images: digits, letters, a folder, zip, parquet, tar, a Hub data set.")]
Split = Annotated[str, typer.Option(help="Which part of the data: train, test, all.")]
Stream = Annotated[bool, typer.Option("--stream", help="Read a Hub data set over the network, without a download.")]
Labels = Annotated[
    str | None,
    typer.Option(
        "--labels",
        "--label",  # its name before
        help="Classes by id or name, in turn: 3 or cat,dog. Default: the null class; all in turn in sample.",
    ),
]
Seed = Annotated[int, typer.Option(help="The noise of image i has seed SEED + i.")]
Count = Annotated[int, typer.Option("--count", "-n", help="How many images.")]
BatchSize = Annotated[
    int | None, typer.Option(help="Images in one pass through the network; does not change them. Default: what fits.")
]
ImageSize = Annotated[int | None, typer.Option(help="Side of the images in pixels.")]
Limit = Annotated[int | None, typer.Option(help="Look at this many images, evenly spread.")]
Workers = Annotated[int, typer.Option(help="Processes that decode images; 0 for this one.")]
FEATURES_HELP = (
    "Feature networks, with commas: own, classifier (a small one that learns the real images), inception, dinov2, "
    "dinov3, clip, convnext, NAME=FILE, module:factory."
)
Features = Annotated[
    str,
    typer.Option(help=FEATURES_HELP),
]
OUT_HELP = "A folder, .zip or .tar for single PNGs (a sheet comes beside it), or a .png for the sheet alone."
Out = Annotated[Path, typer.Option(help=OUT_HELP)]


# what commands do with them -------------------------------------------------------------------------------------------


def load_pipeline(model: str, batch_size: int | None = None, *, progress: bool = False) -> Pipeline:
    """Load the model of a command, which shows its progress by `watch`, or leaves it to the pipeline by `progress`."""
    from spheregen.pipeline import Pipeline

    shown = None if progress and not everywhere.quiet else False
    return Pipeline.from_pretrained(model, device=everywhere.device, batch_size=batch_size, progress=shown, quiet=True)


def class_list(pipe: Pipeline, text: str | None) -> list[str] | None:
    """Read `--labels`: a list, or the name of one class that has a comma; None where there are none.

    Of a model that follows texts, read the prompts.
    """
    prompts = [*everywhere.prompt, *_lines(everywhere.prompts)]
    if pipe.model.text_width:
        if text is not None:
            raise ConfigError("this model follows texts: give --prompt instead of --labels")
        return prompts or None
    if prompts:
        raise ConfigError("this model follows classes: give --labels instead of --prompt")
    found = [text] if text in pipe.classes.names else split_list(text)
    for label in found or ():
        pipe.classes.id(label)
    return found


def _lines(path: Path | None) -> list[str]:
    """Return the lines of a file of prompts, without empty ones."""
    if path is None:
        return []
    try:
        found = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise ConfigError(f"the prompts in {path} are no UTF-8 text; save them as UTF-8") from error
    except OSError as error:
        raise ConfigError(f"the prompts in {path} cannot be read ({error.strerror}); check the path") from error
    if not found:
        raise ConfigError(f"{path} holds no prompt; write one in each line")
    return found


def reporter() -> Reporter:
    """Return what shows progress: a bar on a terminal, plain lines elsewhere, nothing under --quiet."""
    from spheregen.progress import default_reporter

    return default_reporter(quiet=everywhere.quiet)


def watch(parts: Iterable[Part], count: int, size: Callable[[Part], int]) -> Iterator[Part]:
    """Pass on batches of `count` images and show progress, rate and remaining time where there are several."""
    from spheregen.progress import watched

    return watched(parts, count, size, reporter)


def answer(value: Any, text: str | Callable[[], str]) -> None:
    """Print the answer of a command: `value` as JSON under --json, else `text`, both on stdout."""
    if everywhere.as_json:
        shown = json.dumps(value, indent=2, ensure_ascii=False)
        try:
            shown.encode(sys.stdout.encoding or "utf-8")
        except UnicodeEncodeError:
            shown = json.dumps(value, indent=2)
        print(shown)
    else:
        print(text if isinstance(text, str) else text())


def finish(value: Any, text: str) -> None:
    """End a command whose work is in files: `value` as JSON on stdout under --json, else `text` on stderr."""
    if everywhere.as_json:
        answer(value, "")
    say(text)


def say(text: str) -> None:
    """Print a line of news for people on stderr, unless --quiet or --json: stdout is for answers."""
    if not everywhere.quiet and not everywhere.as_json:
        warn(text)


def warn(text: str) -> None:
    """Print a line on stderr that nobody may miss, --quiet or not."""
    print(text, file=sys.stderr, flush=True)


def count_of(count: int) -> str:
    """`1 image`, `2 images`."""
    return f"{count} image{'' if count == 1 else 's'}"


def split_numbers(text: str, name: str, kind: Callable[[str], Part]) -> list[Part]:
    """Read `1,2,4`."""
    try:
        return [kind(item) for item in text.split(",")]
    except ValueError as error:
        raise ConfigError(f"{name} takes numbers such as 1,2,4, not {text!r}") from error


def split_list(text: str | None) -> list[str] | None:
    """Read `3,7,cat`; None stays None."""
    if text is None:
        return None
    items = [item.strip() for item in text.split(",")]
    if not all(items):
        raise ConfigError(f"{text!r} is not a list such as 3,7 or cat,dog")
    return items


def details(values: Mapping[str, Any]) -> str:
    """Return names and values as a plain table; mappings of mappings are tables of their own below it."""
    plain: list[tuple[str, Any]] = []
    tables = []
    for key, value in values.items():
        inner = value if isinstance(value, Mapping) else {"": value}
        if inner and all(isinstance(each, Mapping) for each in inner.values()):
            tables.append("\n" + table([{key: name, **each} for name, each in inner.items()]))
        else:
            plain += [
                (f"{key} {name}".rstrip(), "none" if each in (None, "") else each) for name, each in inner.items()
            ]
    return "\n".join([table([(name.replace("_", " "), value) for name, value in plain]), *tables])


def table(rows: Iterable[Sequence[Any] | Mapping[str, Any]], header: Sequence[Any] = ()) -> str:
    """Return a plain table with aligned columns, numbers in four digits.

    Args:
        rows: the cells of each row, or its columns' titles with their cells; what a row lacks stays empty.
        header: the titles; by default those of the rows, if they have any.
    """
    given = list(rows)
    titles = list(header) or list(dict.fromkeys(name for row in given if isinstance(row, Mapping) for name in row))
    lines: list[list[Any]] = [titles] if titles else []
    lines += [[row.get(name, "") for name in titles] if isinstance(row, Mapping) else list(row) for row in given]
    cells = [[cell(each) for each in line] for line in lines]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in cells)


def cell(value: Any) -> str:
    """Return a value as it stands in a table: one line without control sequences, `-` for None."""
    if isinstance(value, list | tuple):
        return ", ".join(map(cell, value)) or "none"
    text = "-" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
    return "".join(sign if sign.isprintable() else "\ufffd" for sign in text)


def check_count(count: int, name: str = "--count") -> None:
    """Refuse an impossible --count, or another number of that kind."""
    if not 1 <= count <= MOST:
        raise ConfigError(f"{name} is at least 1, and at most {MOST}, not {count}")


def in_turn(values: Sequence[Part] | None, count: int, start: int = 0) -> list[Part] | None:
    """Return `count` values, these over and over, from number `start` on; None stays None."""
    return None if values is None else [values[i % len(values)] for i in range(start, start + count)]
