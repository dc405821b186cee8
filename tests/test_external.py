"""Finding networks of other packages, in folders and on the Hub."""

from __future__ import annotations

from pathlib import Path

import pytest

from spheregen.errors import ModelFileError, SphereGenError
from spheregen.external import import_package, locate, read_json
from tests.fake_hub import NO_NETWORK, FakeHub


@pytest.fixture
def network(tmp_path: Path) -> Path:
    """A folder with a configuration."""
    folder = tmp_path / "network"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "vit"}')
    (folder / "model.safetensors").write_text("")
    return folder


def refused(source: str, *words: str, **options: str) -> None:
    with pytest.raises(ModelFileError) as caught:
        locate(source, "the encoder", **options)
    assert "\n" not in str(caught.value)
    assert all(word in str(caught.value) for word in words)


def test_a_folder(network: Path) -> None:
    place = locate(str(network), "the encoder")
    assert (place.name, place.revision, place.config) == (str(network), None, network / "config.json")
    assert read_json(place.config, "it") == {"model_type": "vit"}
    refused(str(network / "config.json"), "is a file")
    for text in ("nothing", "/no/such/folder", "a/b/c", "../up@v1", "me/mine@../../up"):
        refused(text, text)


def test_a_repository_of_the_hub(network: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = FakeHub(monkeypatch, cache := tmp_path / "cache", me__mine=network)
    place = locate("me/mine@v1", "the encoder", also="nothing.json")
    assert (place.name, place.revision, place.config) == ("me/mine", "v1", cache / "me/mine" / "config.json")
    assert hub.revisions == ["v1"]
    (cache / "me/mine" / "model.safetensors").write_text("")  # as its package leaves it there
    hub.error = NO_NETWORK
    place = locate("me/mine", "the encoder")
    assert (place.name, place.revision) == (str(cache / "me/mine"), None)
    refused("me/other", "me/other", "cannot be reached", "vit=/path", folder="vit=/path")
    hub.error = None
    refused("me/typo", "no such model")


@pytest.mark.parametrize("content", [None, "{", "[]", b"\xff"])
def test_broken_configurations_are_refused(content: str | bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ModelFileError, match=r"config\.json") as caught:
        read_json(path, "the folder")
    assert "\n" not in str(caught.value)


def test_a_package_that_is_not_installed() -> None:
    with pytest.raises(SphereGenError, match=r'pip install "spheregen\[mine\]"'):
        import_package("no_such", "mine", "the tokenizer")
