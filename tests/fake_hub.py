"""A stand-in for the Hugging Face Hub: folders in place of repositories, and the errors that it makes."""

from __future__ import annotations

import fnmatch
import shutil
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import errors


def hub_error(name: str, status: int | None = None) -> Callable[[], Exception]:
    """An error of huggingface_hub, whose constructors differ between its versions."""
    kind = getattr(errors, name)

    def make() -> Exception:
        error: Exception = kind.__new__(kind)
        if status is not None:
            error.response = SimpleNamespace(status_code=status)  # type: ignore[attr-defined]
        return error

    return make


NO_NETWORK = hub_error("OfflineModeIsEnabled")


class FakeHub:
    """Its repositories, what was asked of it, and what it does wrong; it stands in for huggingface_hub at once."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, cache: Path, **repositories: Path) -> None:
        self.cache = cache
        self.repositories: dict[str, Path] = {name.replace("__", "/"): path for name, path in repositories.items()}
        self.private: set[str] = set()
        self.calls: list[str] = []
        self.revisions: list[str | None] = []
        self.error: Callable[[], Exception] | None = None
        self.broken_off: Callable[[], Exception] | None = None  # before model.safetensors
        monkeypatch.setattr(huggingface_hub, "snapshot_download", self.snapshot_download)
        monkeypatch.setattr(huggingface_hub, "HfApi", lambda token=None: self)

    def ask(self, call: str) -> None:
        self.calls.append(call)
        if self.error is not None:
            raise self.error()

    def files(self, repo: str) -> list[str]:
        if repo not in self.repositories:
            raise hub_error("RepositoryNotFoundError", 404)()
        place = self.repositories[repo]
        return sorted(path.relative_to(place).as_posix() for path in place.rglob("*") if path.is_file())

    def snapshot_download(
        self, repo_id: str, *, revision: str | None, allow_patterns: list[str], etag_timeout: float
    ) -> str:
        self.revisions.append(revision)
        folder = self.cache / repo_id
        try:
            self.ask("snapshot_download")
        except Exception:
            if folder.is_dir():  # without a network it gives what it has
                return str(folder)
            raise
        for name in self.files(repo_id):
            if any(fnmatch.fnmatch(name, sign) for sign in allow_patterns):
                if name == "model.safetensors" and self.broken_off is not None:
                    raise self.broken_off()
                copy(self.repositories[repo_id] / name, folder / name)
        return str(folder)

    def model_info(self, repo_id: str, *, timeout: float) -> Any:
        self.ask("model_info")
        return SimpleNamespace(private=repo_id in self.private)

    def create_repo(self, repo_id: str, *, private: bool | None, exist_ok: bool) -> str:
        assert exist_ok
        self.ask("create_repo")
        if repo_id not in self.repositories:
            self.repositories[repo_id] = self.cache / "made" / repo_id
            self.repositories[repo_id].mkdir(parents=True)
            self.private |= {repo_id} if private else set()
        return f"https://huggingface.co/{repo_id}"

    def upload_folder(self, *, repo_id: str, folder_path: Path, allow_patterns: list[str], commit_message: str) -> None:
        self.ask(f"upload_folder: {commit_message}")
        for path in folder_path.rglob("*"):
            name = path.relative_to(folder_path).as_posix()
            if path.is_file() and any(fnmatch.fnmatch(name, sign) for sign in allow_patterns):
                copy(path, self.repositories[repo_id] / name)

    def list_models(self, *, author: str, filter: str, limit: int, expand: list[str]) -> Iterable[Any]:
        assert (filter, expand) == ("spheregen", ["downloads", "lastModified", "likes"])
        self.ask("list_models")
        day = datetime(2026, 2, 17, 23, tzinfo=UTC)
        found = [
            SimpleNamespace(id=f"{author}/a", downloads=3, likes=1, last_modified=day),
            SimpleNamespace(id=f"{author}/b", downloads=None, likes=None, last_modified=None),
        ]
        yield from found[:limit]


def copy(file: Path, to: Path) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(file, to)
