"""A stand-in for the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any


class FakeHub:
    """Stands in for huggingface_hub: one repository that lies in a folder, or none."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.asked: list[tuple[str, str | None]] = []

    def HfApi(self) -> Any:  # noqa: N802
        def model_info(repo: str, *, revision: str | None, timeout: float) -> None:
            self.asked.append((repo, revision))
            if self.folder is None:
                raise ConnectionError("no route\nto host")

        return SimpleNamespace(model_info=model_info)

    def hf_hub_download(self, repo: str, name: str, *, revision: str | None) -> str:
        assert self.folder is not None
        if not (self.folder / name).is_file():
            raise FileNotFoundError(name)
        return str(self.folder / name)
