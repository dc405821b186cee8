"""Networks that other packages wrote, in folders or on the Hub, and the packages that open them.

For transformers and diffusers, of feature networks, encoders and tokenizers.
"""

from __future__ import annotations

import contextlib
import importlib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spheregen.errors import ModelFileError, SphereGenError
from spheregen.files import parse_json
from spheregen.hub import REPO, REVISION, HubError, download


@dataclass(frozen=True)
class Place:
    """The place of a network."""

    name: str  # a folder, or user/name on the Hub
    revision: str | None  # on the Hub
    config: Path  # its configuration, here


def locate(
    source: str, what: str, *, file: str = "config.json", also: str | None = None, folder: str = "a folder"
) -> Place:
    """Find a network in a folder, or in a repository that the Hub has or had.

    Args:
        source: a folder, or user/name or user/name@revision on the Hub, of which `file` and `also` are fetched.
        what: is wanted, for the message.
        file: the configuration in it.
        also: another file, which need not be there.
        folder: how a folder is given, for the message.

    Raises:
        ModelFileError: there is neither, or the Hub cannot be reached and the repository was never fetched.
    """
    here = Path(source).expanduser()
    if here.is_dir():
        return Place(str(here), None, here / file)
    if here.is_file():
        raise ModelFileError(f"{here} is a file; give the folder of {what}")
    repo, _, given = source.partition("@")
    revision = given or None
    if not REPO.fullmatch(repo) or (revision is not None and not REVISION.fullmatch(revision)):
        raise ModelFileError(f"there is no folder {source} of {what}; give a folder, or user/name on the Hub")
    try:
        fetched = download(repo, revision, [name for name in (file, also) if name], what=repo)
    except HubError as error:
        raise ModelFileError(f"{repo} for {what}: {error}; or give {folder}") from error
    config = fetched / file
    if any(config.parent.glob("*.safetensors")):  # this very commit was fetched before
        return Place(str(fetched), None, config)
    return Place(repo, revision, config)


def read_json(path: Path, source: str) -> dict[str, Any]:
    """Read a configuration; a ModelFileError tells that it is missing or broken."""
    try:
        found = parse_json(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise TypeError("no object")
        return found
    except FileNotFoundError as error:
        raise ModelFileError(f"{source} has no {path.name}; give a folder that its package wrote") from error
    except (OSError, ValueError, TypeError) as error:
        raise ModelFileError(f"{path.name} of {source} cannot be read ({reason(error)}); fetch it again") from error


def import_package(name: str, extra: str, what: str) -> Any:
    """Import an optional package; a SphereGenError says how it is installed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of other packages, about each other
            return importlib.import_module(name)
    except ImportError as error:
        raise SphereGenError(f'{what} needs the package {name}: pip install "spheregen[{extra}]"') from error


@contextlib.contextmanager
def quiet(*packages: Any) -> Iterator[None]:
    """Silence progress bars, warnings and tables of transformers and diffusers."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        for package in packages:
            logging = package.utils.logging
            stack.callback(logging.set_verbosity, logging.get_verbosity())
            if logging.is_progress_bar_enabled():
                stack.callback(logging.enable_progress_bar)
            logging.set_verbosity_error()
            logging.disable_progress_bar()
        yield


def load_network(kind: Any, place: Place, *, unread: str | None = None, **options: Any) -> Any:
    """Load a network of transformers in float32. No code of a repository is run, only safetensors are read.

    Args:
        kind: its class in transformers.
        place: from `locate`.
        unread: a part of the names of tensors that it may lack.
        options: further ones of `from_pretrained`.

    Raises:
        ValueError: it lacks tensors; transformers, safetensors and HTTP libraries raise errors without a common base.
    """
    network, report = kind.from_pretrained(
        place.name,
        revision=place.revision or "main",
        dtype="float32",
        use_safetensors=True,
        trust_remote_code=False,
        output_loading_info=True,
        **options,
    )
    missing = sorted(name for name in report["missing_keys"] if unread is None or unread not in name)
    if missing:
        raise ValueError(f"it lacks {len(missing)} tensors, such as {missing[0]}")
    return network


def reason(error: BaseException) -> str:
    """Return the kind and the first line of another package's error."""
    text = (str(error).strip().splitlines() or [""])[0].strip()
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__
