"""Hub data sets without a network: the library's two calls are replaced."""

from __future__ import annotations

import fnmatch
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import errors

from spheregen.data import open_source
from spheregen.errors import DataError
from tests.data.kinds import contents, in_memory, parquet_bytes, tar_bytes, write_folder, zip_bytes

FILES = contents(6)
SETS: dict[str, dict[str, bytes]] = {
    "me/tables": {
        "README.md": b"x",
        "load.py": b"raise SystemExit",
        "data/train-00000-of-00001.parquet": parquet_bytes(FILES),
        "data/test-00000-of-00001.parquet": parquet_bytes(FILES),
    },
    "me/many": {"en/train.parquet": parquet_bytes(FILES), "fr/train.parquet": parquet_bytes(FILES)},
    "me/shards": {"classes.txt": b"owl\ncow", "t-0.tar": tar_bytes({"0.png": FILES["ant/000.png"], "0.cls": b"1"})},
    "me/packed": {"set.zip": zip_bytes(FILES)},
    "me/loose": {f"train/{name}": data for name, data in FILES.items()},
    "me/script": {"load.py": b"raise SystemExit"},
}


class Hub:
    """What was asked of it."""

    def __init__(self) -> None:
        self.downloaded: list[str] = []
        self.error: Callable[[], Exception] | None = None


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Hub:
    state = Hub()

    def list_repo_files(self: Any, repo_id: str, *, repo_type: str, revision: str | None = None) -> list[str]:
        assert repo_type == "dataset"
        if state.error is not None:
            raise state.error()
        return list(SETS[repo_id])

    def snapshot_download(
        repo_id: str, *, repo_type: str, revision: str | None = None,
        allow_patterns: list[str] | None = None, local_files_only: bool = False,
    ) -> str:  # fmt: skip
        folder = tmp_path / "snapshots" / repo_id
        if local_files_only:
            if not folder.is_dir():
                raise FileNotFoundError
            return str(folder)
        wanted = [n for n in SETS[repo_id] if any(fnmatch.fnmatch(n, p) for p in allow_patterns or ["*"])]
        state.downloaded += wanted
        write_folder(folder, {name: SETS[repo_id][name] for name in wanted})
        return str(folder)

    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", list_repo_files)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.chdir(tmp_path)
    return state


def test_tables_are_downloaded_split_by_split(hub: Hub) -> None:
    source = open_source("me/tables")
    assert hub.downloaded == ["data/train-00000-of-00001.parquet"]
    assert (len(source), source.split, source.name) == (6, "train", "tables")
    assert open_source("me/tables", split="test").split == "test"
    for revision in ("main", "refs/convert/parquet"):
        assert len(open_source(f"hf://datasets/me/tables@{revision}/data", split="all")) == 12
    with pytest.raises(DataError, match="no split 'val'"):
        open_source("me/tables", split="val")


def test_other_kinds(hub: Hub) -> None:
    shards = open_source("me/shards")
    assert (shards.class_names, len(shards)) == (("owl", "cow"), 1)
    packed = open_source("me/packed")
    assert [packed.read_bytes(i) for i in range(6)] == list(FILES.values())
    loose = open_source("me/loose")
    assert (loose.name, len(loose), len(loose.class_names)) == ("loose", 6, 3)
    with pytest.raises(DataError, match=r"several data sets; choose one: hf://datasets/me/many/en"):
        open_source("me/many")
    assert len(open_source("hf://datasets/me/many/fr")) == 6
    with pytest.raises(DataError, match="no folder de"):
        open_source("hf://datasets/me/many/de")
    with pytest.raises(DataError, match="script"):
        open_source("me/script")
    with pytest.raises(DataError, match="is no Hub data set"):
        open_source("hf://datasets/me")


def test_streams_read_where_the_files_are(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("me/tables", "me/shards"):
        monkeypatch.setattr(
            "spheregen.data.hub.HUB", in_memory({f"{name}/{k}": v for k, v in SETS[name].items()}) + "/"
        )
        source = open_source(name, stream=True)
        assert source.remote
        assert source.read_bytes(0) == FILES["ant/000.png"]
        assert source.fingerprint == open_source(name).fingerprint
    with pytest.raises(DataError, match="too slow to stream"):
        open_source("me/loose", stream=True)


def test_without_a_network_what_was_downloaded_serves(hub: Hub) -> None:
    first = open_source("me/tables")
    hub.error = lambda: ConnectionError("no route")
    assert open_source("me/tables").fingerprint == first.fingerprint
    with pytest.raises(DataError, match=r"cannot be reached.*no route"):
        open_source("me/packed")
    with pytest.raises(DataError, match="cannot be reached"):
        open_source("me/tables", stream=True)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("RepositoryNotFoundError", "no such data set or revision, or it is private"),
        ("GatedRepoError", "access must be asked for"),
        ("OfflineModeIsEnabled", "cannot be reached"),
    ],
)
def test_the_errors_of_the_hub(hub: Hub, kind: str, words: str) -> None:
    error = getattr(errors, kind)
    hub.error = lambda: error.__new__(error)
    with pytest.raises(DataError, match=words) as caught:
        open_source("me/packed")
    assert "\n" not in str(caught.value)
    assert "there is no path me/packed here (a typo?)" in str(caught.value)
    with pytest.raises(DataError, match=r"^(?!.*typo.*here)"):
        open_source("hf://datasets/me/packed")


def test_the_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(DataError, match=r'no path data/cats here .*pip install "spheregen\[hub\]"'):
        open_source("data/cats")
    with pytest.raises(DataError, match="nor a Hub data set"):  # an archive that is not there is no Hub id
        open_source("data/cats.zip")
