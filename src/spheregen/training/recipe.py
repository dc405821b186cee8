"""Recipes: shipped and own YAML files, with `--set a.b=c` in front, validated by the member that they train."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, get_args, get_type_hints

from pydantic import ValidationError

from spheregen.data.embedded import EMBEDDED
from spheregen.data.latent_cache import LatentCache, is_latent_cache
from spheregen.errors import ConfigError, SphereGenError, did_you_mean
from spheregen.family.recipe import Recipe
from spheregen.family.registry import blank_model, member_of_kind
from spheregen.files import read_yaml
from spheregen.folders.model_folder import read_architecture
from spheregen.folders.model_source import find_model
from spheregen.folders.summary import bundled_models
from spheregen.hub import REPO
from spheregen.nn.uninitialised import weightless
from spheregen.training.feeding import open_data


def shipped_recipes() -> dict[str, str]:
    """Return the recipes in the package: name to YAML text, by name."""
    folder = resources.files("spheregen.recipes")
    files = sorted((file.name, file) for file in folder.iterdir() if file.name.endswith(".yaml"))
    return {name.removesuffix(".yaml"): file.read_text(encoding="utf-8") for name, file in files}


def load_recipe(
    recipe: str | Path, overrides: Sequence[str] = (), *, data: str | None = None, init: str | None = None
) -> Recipe:
    """Read a recipe by its shipped name or from a YAML file, with `a.b=c` overrides in front of it.

    Args:
        data: becomes `data.source`, where it is given.
        init: becomes `init`, likewise.

    Raises:
        ConfigError: unknown recipe or key, impossible value; all problems in one line.
    """
    shipped = shipped_recipes()
    path = Path(recipe)
    if str(recipe) in shipped:
        text, origin = shipped[str(recipe)], f"recipe {recipe}"
    elif path.suffix in (".yaml", ".yml") or path.is_file():
        try:
            text, origin = path.read_text(encoding="utf-8"), str(path)
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"cannot read the recipe {path}: {getattr(error, 'strerror', None) or error}") from error
    else:
        hint = did_you_mean(str(recipe), shipped)
        raise ConfigError(f"unknown recipe {str(recipe)!r}{hint}; shipped: {', '.join(shipped)}, or give a .yaml file")
    values = read_yaml(text, origin)
    if not isinstance(values, dict):
        raise ConfigError(f"{origin} must be a mapping of settings such as `model:` and `train:`")
    values.setdefault("name", path.stem)
    own = str(recipe) not in shipped
    said = set(flatten(values)) if own else set[str]()
    if own:
        _find_paths(values, path.parent)
    if data is not None:
        _section(values, ["data"], "--data")["source"] = data
    if init is not None:
        values["init"] = init
    for override in overrides:
        key, value = _apply_override(values, override)
        said |= set(flatten({key: value}))
    with contextlib.suppress(SphereGenError):  # what is wrong is told where it is used
        _fit_to_others(values, said)
    return build_recipe(values, origin)


def check_recipe(recipe: Recipe) -> str | None:
    """Check that the data and models that a recipe names are there and fit, without a download.

    Returns:
        What has not been looked at, a line for people; None if nothing.

    Raises:
        SphereGenError: one is missing, or does not fit.
    """
    remote = []

    def read(name: str, part: str = "") -> Any:
        if _is_remote(name):
            return remote.append(name)
        return read_architecture(find_model(name) / part)

    member = member_of_kind(recipe.kind)
    inner = None if member.inner is None else member.inner_config(recipe, read)
    if inner is not None:
        with weightless():
            front = blank_model(inner)
        for name in ("image_size", "image_channels"):
            if getattr(inner, name) != getattr(recipe.model, name):
                raise ConfigError(
                    f"model.{name} is {getattr(recipe.model, name)}, but {getattr(inner, name)} in the model behind "
                    "which it stands; leave it out to have the same"
                )
        member.complete(recipe.model, front)
    if recipe.init is not None and (base := read(recipe.init)) is not None and type(base) is not type(recipe.model):
        raise ConfigError(f"the model to start from, {recipe.init}, is of another kind than the recipe {recipe.name}")
    if recipe.data.source is not None and not is_latent_cache(recipe.data.source) and _is_remote(recipe.data.source):
        remote.append(recipe.data.source)
    elif recipe.data.source is not None:
        open_data(recipe)
    return f"not here, and not looked at before the run: {', '.join(dict.fromkeys(remote))}" if remote else None


_NAMES_OF_THINGS = (("data", "source"), ("init",), ("source",), ("teacher", "model"), ("tokenizer",))


def _find_paths(values: dict[str, Any], folder: Path) -> None:
    """Let a relative path in a recipe that is not here mean the one beside the recipe."""
    for *sections, key in _NAMES_OF_THINGS:
        place: Any = values.get(sections[0]) if sections else values
        name = place.get(key) if isinstance(place, dict) else None
        if isinstance(name, str) and name and name not in EMBEDDED and name not in bundled_models():
            with contextlib.suppress(OSError, ValueError):
                if not Path(name).exists() and (folder / name).exists():
                    place[key] = str(folder / name)


def _fit_to_others(values: dict[str, Any], said: set[str]) -> None:
    """Take from the model or the latents behind which a model shall stand what nobody said otherwise.

    Args:
        said: the dotted keys that the user decided: all of a file of theirs, of a shipped one those in front.
    """
    found: dict[str, Any] = {}
    own, data = recipe_class(values), values.get("data")
    if any(key == "source" or key.startswith("teacher") for key in said):
        for other in ("source", "teacher", "autoencoder"):
            if not any(key.partition(".")[0] == other for key in said):
                values.pop(other, None)
    source = data.get("source") if isinstance(data, dict) else None
    if (name := own.model_behind(values)) is not None and not _is_remote(name):
        config = read_architecture(find_model(name))
        found = {each: getattr(config, each) for each in ("image_size", "image_channels", "num_classes")}
        found["patch_size"] = getattr(config, "patch", 0) or config.image_size // config.grid
    elif isinstance(source, str) and member_of_kind(str(values.get("kind", ""))).inputs == "latents":
        plan = LatentCache(source).index.plan
        tokens, channels = plan.latent_shape
        found = {"image_size": plan.image.image_size, "image_channels": plan.image.channels, "tokens": tokens}
        found |= {"channels": channels, "num_classes": len(plan.class_names)}
    model = values.setdefault("model", {}) if found else None
    if isinstance(model, dict):
        model.update({key: value for key, value in found.items() if f"model.{key}" not in said})


def _is_remote(name: str) -> bool:
    """Return whether a name of data or of a model can only be one of the Hub, or a URL."""
    if name in EMBEDDED or name in bundled_models():
        return False
    with contextlib.suppress(OSError, ValueError):
        if Path(name).expanduser().exists():
            return False
    return "://" in name or REPO.fullmatch(name.partition("@")[0]) is not None


def build_recipe(values: Mapping[str, Any], origin: str = "the recipe") -> Recipe:
    """Validate plain values into a recipe; every problem is named with its dotted path.

    Raises:
        ConfigError: one line with all problems.
    """
    try:
        return recipe_class(values, origin).model_validate(values)
    except ValidationError as error:
        # where a size may be a name or a mapping, only what is wrong with the mapping helps
        problems = [p for p in error.errors() if not (p["type"] == "string_type" and isinstance(p["input"], dict))]
        section = recipe_class(values, origin)
        raise ConfigError(f"{origin}: {'; '.join(_explain(problem, section) for problem in problems)}") from error


def recipe_class(values: Mapping[str, Any], origin: str = "the recipe") -> type[Recipe]:
    """Return the recipe class that plain values ask for by their `kind`; without one, an autoencoder's.

    Raises:
        ConfigError: there is no such kind.
    """
    try:
        found = member_of_kind(str(values.get("kind", "autoencoder"))).recipe
    except ConfigError as error:
        raise ConfigError(f"{origin}: {error}") from error
    assert found is not None
    return found


def recipe_differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Return what of two dumped recipes differs and would change the weights, as `key: old -> new` lines.

    A setting that `old` lacks, because it is older than the setting, had its default.
    """
    with contextlib.suppress(ValidationError, ConfigError):  # it is of a later version: compared as it is
        old = recipe_class(old).model_validate(old).model_dump(mode="json")
    before, after = flatten(old), flatten(new)
    decides = recipe_class(new).decides_weights
    return [
        f"{key}: {before.get(key)} -> {after.get(key)}"
        for key in sorted(before.keys() | after.keys())
        if decides(key) and before.get(key) != after.get(key)
    ]


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested mappings as one of dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _apply_override(values: dict[str, Any], override: str) -> tuple[str, Any]:
    """Put one setting in front of a recipe; return its key and value."""
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"--set takes key=value, for example train.steps=1000, not {override!r}")
    value = read_yaml(text, f"--set {override}")
    *sections, last = key.strip().split(".")
    _section(values, sections, f"--set {override}")[last] = value
    # one length and one warm-up at a time: setting one replaces its twin from the recipe
    twins = {"steps": "epochs", "warmup_steps": "warmup_epochs", "latent_channels": "compression"}
    twins |= {value: key for key, value in twins.items()}
    if last in twins and sections and value is not None:
        _section(values, sections, override).pop(twins[last], None)
    return key.strip(), value


def _section(values: dict[str, Any], path: Sequence[str], what: str) -> dict[str, Any]:
    for name in path:
        if values.get(name) is None:
            values[name] = {}
        values = values[name]
        if not isinstance(values, dict):
            raise ConfigError(f"{what}: {name} is a single value, not a section")
    return values


_BRANCH = re.compile(r"TransformerSize|str|bool|constrained-int|literal\[.*\]")


def _explain(problem: Any, recipe: type[Recipe]) -> str:
    location = [str(part) for part in problem["loc"]]
    # pydantic names the branch of a union in the path; users know only the keys
    location = [part for part in location if not _BRANCH.fullmatch(part)]
    dotted = ".".join(location) or "settings"
    if problem["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        known = _known_keys(location[:-1], recipe)
        choices = f" (known here: {', '.join(known)})" if known else ""
        return f"unknown key {dotted}{did_you_mean(location[-1], known) or choices}"
    message = problem["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:] if not message[:2].isupper() else message
    if problem["type"] in ("value_error", "missing") or isinstance(problem["input"], dict):
        return f"{dotted}: {message}"
    return f"{dotted}: {message} (not {problem['input']!r})"


def _known_keys(path: Sequence[str], recipe: type[Recipe]) -> list[str]:
    """Return the keys of the section at `path`."""
    section: Any = recipe
    for name in path:
        annotation = get_type_hints(section).get(name)
        section = next((each for each in get_args(annotation) if hasattr(each, "__dataclass_fields__")), annotation)
    return list(getattr(section, "model_fields", getattr(section, "__dataclass_fields__", ())))
