"""Hub data sets without a network: the package `datasets` looks at the same files in a folder."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from spheregen.data import open_source
from spheregen.errors import DataError
from tests.data.kinds import contents, parquet_bytes, tar_bytes, write_folder, zip_bytes

datasets = pytest.importorskip("datasets")

FILES = contents(6)
CONFIGURATIONS = b"---\nconfigs:\n- config_name: en\n  data_dir: en\n- config_name: fr\n  data_dir: fr\n---\n"
SETS: dict[str, dict[str, bytes]] = {
    "me/tables": {
        "README.md": b"x",
        "data/train-00000-of-00001.parquet": parquet_bytes(FILES),
        "data/test-00000-of-00001.parquet": parquet_bytes(FILES),
    },
    "me/many": {"README.md": CONFIGURATIONS} | {f"{name}/train.parquet": parquet_bytes(FILES) for name in ("en", "fr")},
    "me/shards": {"classes.txt": b"owl\ncow", "t-0.tar": tar_bytes({"0.png": FILES["ant/000.png"], "0.cls": b"1"})},
    "me/packed": {"set.zip": zip_bytes({f"{split}/{name}": FILES[name] for split in ("a", "b") for name in FILES})},
    "me/loose": {f"train/{name}": data for name, data in FILES.items()},
    "me/script": {"load.py": b"raise SystemExit"},
}


class Hub:
    """What was asked of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.error: Exception | None = None
        self.revisions: list[str | None] = []


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Hub:
    state = Hub(tmp_path / "hub")
    for name, files in SETS.items():
        write_folder(state.folder / name, files)
    load = datasets.load_dataset_builder

    def load_dataset_builder(path: str, *arguments: Any, revision: str | None = None, **options: Any) -> Any:
        state.revisions.append(revision)
        if path in SETS:
            if state.error is not None:
                raise state.error
            path = str(state.folder / path)
        return load(path, *arguments, **options)

    def snapshot_download(repo_id: str, *, local_files_only: bool = False, **_: Any) -> str:
        return str(state.folder / repo_id)

    monkeypatch.setattr(datasets, "load_dataset_builder", load_dataset_builder)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.setattr("datasets.config.HF_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return state


def test_tables_have_splits_and_configurations(hub: Hub) -> None:
    source = open_source("me/tables")
    assert (len(source), source.split, source.name) == (6, "train", "tables")
    assert [source.read_bytes(i) for i in range(6)] == list(FILES.values())
    assert open_source("me/tables", split="test").split == "test"
    assert len(open_source("hf://datasets/me/tables@refs/convert/parquet/data", split="all")) == 12
    assert hub.revisions[-1] == "refs/convert/parquet"
    assert len(open_source("hf://datasets/me/many/fr")) == 6
    local = open_source(hub.folder / "me/tables")
    assert (source.fingerprint, source.class_names) == (local.fingerprint, local.class_names)
    for name, options, word in (
        ("me/tables", {"split": "val"}, "'val'"), ("me/many", {}, "'en', 'fr'"), ("me/script", {}, "me/script"),
        ("hf://datasets/me", {}, "user/name"), ("hf://datasets/me/many/de", {}, "de"),
    ):  # fmt: skip
        with pytest.raises(DataError, match=word) as caught:
            open_source(name, **options)  # type: ignore[arg-type]
        assert "\n" not in str(caught.value)


def test_other_kinds(hub: Hub) -> None:
    shards = open_source("me/shards")
    assert (shards.class_names, len(shards), shards.split) == (("owl", "cow"), 1, "train")
    packed = open_source("me/packed")
    assert (packed.class_names, len(packed)) == (("a", "b"), 12)
    loose = open_source("me/loose")
    assert (loose.name, len(loose), len(loose.class_names)) == ("loose", 6, 3)


def test_streams_read_where_the_files_are(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(*_: Any) -> Any:
        raise AssertionError

    expected = {name: open_source(name).fingerprint for name in ("me/tables", "me/shards")}
    monkeypatch.setattr(datasets.DownloadManager, "download", download)
    for name, fingerprint in expected.items():
        source = open_source(name, stream=True)
        assert source.read_bytes(0) == FILES["ant/000.png"]
        assert source.fingerprint == fingerprint
    with pytest.raises(DataError, match="stream"):
        open_source("me/loose", stream=True)


def test_without_a_network_what_was_downloaded_serves(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    first = open_source("me/tables")
    hub.error = ConnectionError("no route")
    assert open_source("me/tables").fingerprint == first.fingerprint
    with pytest.raises(DataError, match="no route"):
        open_source("me/tables", stream=True)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: 1 / 0)
    with pytest.raises(DataError, match="no route") as caught:
        open_source("me/packed")
    assert "there is no path me/packed here (a typo?)" in str(caught.value)
    hub.error = datasets.exceptions.DatasetNotFoundError("Dataset 'me/packed' doesn't exist on the Hub")
    with pytest.raises(DataError, match="doesn't exist"):
        open_source("hf://datasets/me/packed")


def test_the_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r'no path data/cats here .*pip install "spheregen\[data\]"'):
        open_source("data/cats")
    with pytest.raises(DataError, match="nor a Hub data set"):  # an archive that is not there is no Hub id
        open_source("data/cats.zip")
