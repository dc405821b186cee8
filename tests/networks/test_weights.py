"""Finding, checking and fetching weight files of others."""

from __future__ import annotations

import email.message
import hashlib
import io
import urllib.error
from pathlib import Path

import pytest
import torch

from spheregen.errors import ModelFileError
from spheregen.networks.weights import WeightFile, download_files, find_files, locate_file

BODY = b"the weights"
BEST = WeightFile(
    name="best.pth", url="https://example.org/best.pth", sha256_start=hashlib.sha256(BODY).hexdigest()[:8]
)
OTHER = WeightFile(name="other.pt", url="https://example.org/other.pt")


@pytest.fixture
def hub(no_weights: Path) -> Path:
    """torch.hub's folder of checkpoints, empty; a download is an error."""
    return no_weights


def put(folder: Path, file: WeightFile, body: bytes = BODY) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / file.name).write_bytes(body)
    return folder / file.name


class Response(io.BytesIO):
    def info(self) -> email.message.Message:
        return email.message.Message()


def serve(monkeypatch: pytest.MonkeyPatch, answer: bytes | Exception) -> list[str]:
    asked: list[str] = []

    def urlopen(request: urllib.request.Request, **_: object) -> Response:
        asked.append(request.full_url)
        if isinstance(answer, Exception):
            raise answer
        return Response(answer)

    monkeypatch.setattr(torch.hub, "urlopen", urlopen)
    return asked


def locate(place: Path | str | None) -> Path:
    return locate_file(place, [BEST, OTHER], user="the network", other_way="use another")


def test_the_best_file_that_lies_anywhere_is_taken(hub: Path, tmp_path: Path) -> None:
    other = put(tmp_path, OTHER)
    assert locate(tmp_path) == other
    best = put(hub, BEST)
    assert locate(tmp_path) == locate(None) == best
    first = put(tmp_path, BEST)
    assert find_files([BEST, OTHER], [tmp_path, hub]) == {BEST: first, OTHER: other}
    assert locate(put(tmp_path / "x", BEST, b"anything")) == tmp_path / "x" / BEST.name  # a named file as it is
    put(hub, BEST, b"something else")
    with pytest.raises(ModelFileError, match=BEST.sha256_start):
        locate(None)
    with pytest.raises(ModelFileError, match="nowhere"):
        locate(tmp_path / "nowhere")


def test_what_is_nowhere_is_fetched_once(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = serve(monkeypatch, BODY)
    assert locate(None) == hub / BEST.name
    assert locate(None).read_bytes() == BODY
    assert asked == [BEST.url]  # the best alone, and once


def test_a_wrong_download_leaves_nothing(hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    serve(monkeypatch, b"another file")
    for named, folder in ((tmp_path / "named", tmp_path / "named"), (None, hub)):
        folder.mkdir(parents=True)
        with pytest.raises(ModelFileError, match=r"best\.pth"):
            locate(named)
        assert list(folder.iterdir()) == []


@pytest.mark.parametrize("error", [urllib.error.URLError("no route"), TimeoutError("no route")])
def test_without_network_the_error_says_what_to_put_where(
    error: Exception, hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(monkeypatch, error)
    with pytest.raises(ModelFileError) as caught:
        download_files([BEST, OTHER], [hub], user="the network", other_way="use another")
    message = str(caught.value)
    assert "\n" not in message
    assert all(part in message for part in ("no route", BEST.url, OTHER.url, str(hub), "use another"))
