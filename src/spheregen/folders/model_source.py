"""Models by name: a folder, a model that comes with SphereGen, or one of the Hugging Face Hub; and models to the Hub.

Of a repository only the files of a model folder, and of the models in it, are read or written: no code, no pickles.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from spheregen.errors import ConfigError, ModelFileError, did_you_mean
from spheregen.family.registry import inner_folders
from spheregen.folders.model_folder import read_architecture
from spheregen.folders.summary import CARD, CONFIG, PRIOR, WEIGHTS, bundled_models, missing_files
from spheregen.hub import REPO, REVISION, USER, HubError, download, import_hub, request

_FILES = (CONFIG, WEIGHTS, CARD, PRIOR, "LICENSE*.txt")
_INNER_FILES = ("*.json", "*.safetensors", CARD)
_PATIENCE = 15.0  # seconds that the Hub has for its first answer
_TAG = "spheregen"  # of every model card that we write
_FILE_KINDS = (".safetensors", ".json", ".yaml", ".pth", ".pt", ".ckpt")  # a name that ends so is a path


@dataclass(frozen=True, kw_only=True)
class HubModel:
    """A model that somebody offers on the Hub."""

    name: str  # user/name, as `find_model` takes it
    downloads: int  # of the last 30 days
    likes: int
    updated: str | None  # the day of its last change, such as 2026-02-17


def find_model(name: str | Path, *, revision: str | None = None) -> Path:
    """Return the model folder that a name stands for.

    Args:
        name: an existing folder; else the name of a bundled model; else a model of the Hub, user/name or
            user/name@revision. `hf://user/name` is always the Hub's. What comes from the Hub is kept in its usual
            cache; without a network, what was downloaded before is used.
        revision: a branch, tag or commit of a Hub model, where the name has none.

    Returns:
        A folder. One from here may still be no model folder, which `load_model` tells; a bundled or downloaded one has
        its configuration and its weights.

    Raises:
        ModelFileError: there is no such model; or it is on the Hub and cannot be had.
    """
    text = name.as_posix() if isinstance(name, Path) else name
    if prefix := re.match(r"hf:/{1,2}", text):  # pathlib makes one slash of two
        return _from_hub(text[prefix.end() :], revision, path_too=False)
    path = Path(text)
    try:
        path = path.expanduser()
        is_folder, is_there = path.is_dir(), path.exists()
    except (OSError, RuntimeError) as error:  # no permission, a name that is too long, ~ of nobody
        reason = getattr(error, "strerror", None) or error
        raise ModelFileError(f"{path} cannot be looked at ({reason}); check path and permissions") from error
    bundled = bundled_models()
    if revision is not None and (is_there or text in bundled):
        raise ModelFileError(
            f"{text} is here and has no revisions; leave {revision} out, or write hf://user/name for a model of the Hub"
        )
    if is_folder and text:
        if text in bundled and not (path / CONFIG).is_file():
            raise ModelFileError(
                f"the folder {text}, without {CONFIG}, hides the bundled model of that name; rename it"
            )
        return path
    if text in bundled:
        return bundled[text]
    if not is_there and REPO.fullmatch(text.partition("@")[0]) and path.suffix.lower() not in _FILE_KINDS:
        return _from_hub(text, revision, path_too=True)
    hint = did_you_mean(text, bundled)
    problem = f"{path} is a file" if path.is_file() else f"there is no model folder at {text!r}{hint}"
    names = ", ".join(bundled) or "none"
    raise ModelFileError(f"{problem}; give a model folder, a bundled model ({names}) or one of the Hub (user/name)")


def push_model(
    folder: Path,
    repo: str,
    *,
    private: bool = False,
    token: str | None = None,
    message: str = "Upload a SphereGen model",
) -> str:
    """Put a model folder on the Hub, in one commit: its configuration, weights and card, nothing else.

    Args:
        repo: user/name; it is made if it is not there.
        private: for your eyes only. Otherwise a new repository is as the account's settings say, usually public.
        token: an access token that may write; by default that of `hf auth login`.
        message: of the commit.

    Returns:
        The URL of the repository.

    Raises:
        ConfigError: `repo` or `token` cannot be one.
        ModelFileError: `folder` is no model folder, the Hub does not take it, or a private upload would be public.
    """
    if not REPO.fullmatch(repo):
        raise ConfigError(f"{repo!r} is no name for a Hub model; write user/name, of letters, digits, _ - and .")
    if token is not None and not re.fullmatch(r"[!-~]+", token):  # an HTTP library would print it in its error
        raise ConfigError("the token holds characters that no token has; copy it again, without spaces")
    read_architecture(folder)
    api = import_hub(repo, ModelFileError).HfApi(token=token)
    upload = partial(api.upload_folder, repo_id=repo, folder_path=folder, allow_patterns=_patterns())
    try:
        url = request(lambda: api.create_repo(repo, private=private or None, exist_ok=True), "model")
        if private and not request(lambda: api.model_info(repo, timeout=_PATIENCE), "model").private:
            raise ModelFileError(f"{repo} is on the Hub already, and public; make it private, or use another name")
        request(partial(upload, commit_message=message), "model")
    except HubError as error:
        raise ModelFileError(f"{repo} was not uploaded: {error}") from error
    return str(url)


def list_hub_models(organisation: str, *, limit: int = 100) -> list[HubModel]:
    """Return up to `limit` (1 or more) SphereGen models of an organisation or user of the Hub, in the Hub's order."""
    if not USER.fullmatch(organisation) or limit < 1:
        raise ConfigError(f"no models of {organisation!r} with limit {limit}; name a user of the Hub, and 1 or more")
    api = import_hub(f"what {organisation} offers", ModelFileError).HfApi()
    fields = ["downloads", "lastModified", "likes"]
    ask = partial(api.list_models, author=organisation, filter=_TAG, limit=limit, expand=fields)
    try:
        found = request(lambda: list(ask()), "model")
    except HubError as error:
        raise ModelFileError(f"the models of {organisation} cannot be listed: {error}") from error
    return [
        HubModel(
            name=model.id,
            downloads=model.downloads or 0,
            likes=model.likes or 0,
            updated=model.last_modified.date().isoformat() if model.last_modified else None,
        )
        for model in found
    ]


def _from_hub(reference: str, revision: str | None, *, path_too: bool) -> Path:
    """Download user/name[@revision]; `path_too`: the name could also have been meant as a path, the error says so."""
    repo, at, named = reference.partition("@")
    if not REPO.fullmatch(repo) or (at and not REVISION.fullmatch(named)):
        raise ModelFileError(f"{reference} is no model of the Hub; write user/name or user/name@revision")
    if revision is not None and (not REVISION.fullmatch(revision) or named not in ("", revision)):
        raise ModelFileError(f"{revision!r} is no revision for {reference}; give one branch, tag or commit")
    typo = f"there is no folder {reference} here (a typo?); as a Hub model: " if path_too else ""
    try:
        folder = download(repo, named or revision, _patterns(), what=f"{typo}{repo}")
    except HubError as error:
        raise ModelFileError(f"{typo or f'{repo}: '}{error}") from error
    if lacking := missing_files(folder):
        raise ModelFileError(
            f"{typo}{repo} has no {' and no '.join(lacking)}: it is no SphereGen model, or did not come completely; "
            "check the name, or repeat (published checkpoints are read by `spheregen convert`)"
        )
    return folder


def _patterns() -> list[str]:
    return [*_FILES, *(f"{folder}/{name}" for folder in inner_folders() for name in _INNER_FILES)]
