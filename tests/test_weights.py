"""Finding, checking and fetching weight files of others."""

from __future__ import annotations

import hashlib
import io
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import torch

from spheregen import weights
from spheregen.errors import ConfigError, ModelFileError
from spheregen.weights import (
    WeightFile,
    download_files,
    file_sha256,
    find_files,
    locate_file,
    weight_folders,
)

BODY = b"the weights"
BEST = WeightFile(
    name="best.pth", url="https://example.org/best.pth", sha256_start=hashlib.sha256(BODY).hexdigest()[:8]
)
OTHER = WeightFile(name="other.pt", url="https://example.org/other.pt")


@pytest.fixture(autouse=True)
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """torch.hub's folder of checkpoints, empty; a download is an error."""
    monkeypatch.delenv(weights.FOLDER_VARIABLE, raising=False)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("no test may use the network")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    return tmp_path / "hub" / "checkpoints"


def put(folder: Path, file: WeightFile, body: bytes = BODY) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / file.name).write_bytes(body)
    return folder / file.name


class Response(io.BytesIO):
    headers: dict[str, str] = {}  # noqa: RUF012


def serve(monkeypatch: pytest.MonkeyPatch, body: bytes) -> list[str]:
    asked: list[str] = []

    def urlopen(url: str, **_: object) -> Response:
        asked.append(url)
        return Response(body)

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    return asked


def locate(place: Path | str | None) -> Path:
    return locate_file(place, [BEST, OTHER], user="the network", other_way="use another")


def test_folders_come_in_order(hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert weight_folders() == [hub]
    monkeypatch.setenv(weights.FOLDER_VARIABLE, str(tmp_path / "mine"))
    assert weight_folders(tmp_path / "named") == [tmp_path / "named", tmp_path / "mine", hub]
    with pytest.raises(ConfigError, match=r"the VGG weights .*best\.pth are a file; give the folder"):
        weight_folders(put(tmp_path, BEST), title="VGG weights")


def test_the_first_folder_wins(hub: Path, tmp_path: Path) -> None:
    put(hub, BEST)
    assert find_files([BEST, OTHER], [tmp_path, hub]) == {BEST: hub / BEST.name}
    first = put(tmp_path, BEST)
    assert find_files([BEST, OTHER], [tmp_path, hub]) == {BEST: first}


def test_a_named_file_is_taken_as_it_is(tmp_path: Path) -> None:
    assert locate(put(tmp_path, BEST, b"anything")) == tmp_path / BEST.name


def test_the_best_file_that_lies_anywhere_is_taken(hub: Path, tmp_path: Path) -> None:
    other = put(tmp_path, OTHER)
    assert locate(tmp_path) == other
    best = put(hub, BEST)
    assert locate(tmp_path) == best
    assert locate(None) == best


def test_a_found_file_must_be_the_published_one(hub: Path) -> None:
    put(hub, BEST, b"something else")
    with pytest.raises(ModelFileError, match=rf"not {BEST.sha256_start}\.\.\. of the published file; delete it"):
        locate(None)


def test_a_missing_path_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"the weights .*nowhere of the network are missing"):
        locate(tmp_path / "nowhere")


def test_what_is_nowhere_is_fetched_once(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = serve(monkeypatch, BODY)
    assert locate(None) == hub / BEST.name
    assert locate(None).read_bytes() == BODY
    assert asked == [BEST.url]  # the best alone, and once


@pytest.mark.parametrize("place", ["named", "hub"])
def test_a_wrong_download_leaves_nothing(
    place: str, hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(monkeypatch, b"another file")
    folder = tmp_path / "named" if place == "named" else hub
    folder.mkdir(parents=True)
    with pytest.raises(ModelFileError, match=r"the network lacks weights and the download of best\.pth has SHA-256"):
        locate(folder if place == "named" else None)
    assert list(folder.iterdir()) == []


def test_without_network_the_error_says_what_to_put_where(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise urllib.error.URLError("no route")

    monkeypatch.setattr(urllib.request, "urlopen", fail)
    with pytest.raises(ModelFileError) as caught:
        download_files([BEST, OTHER], [hub], user="the network", other_way="use another")
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("the network lacks weights and best.pth could not be downloaded (no route); put best.pth")
    assert all(part in message for part in (BEST.url, OTHER.url, str(hub)))
    assert message.endswith("or use another")


def test_the_hash_of_a_file(tmp_path: Path) -> None:
    assert file_sha256(put(tmp_path, BEST)) == hashlib.sha256(BODY).hexdigest()
    with pytest.raises(ModelFileError, match="cannot read the weight file"):
        file_sha256(tmp_path)
