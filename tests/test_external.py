"""Finding networks of other packages, in folders and on the Hub."""

from __future__ import annotations

from pathlib import Path

import pytest

from spheregen import external
from spheregen.errors import ModelFileError, SphereGenError
from spheregen.external import import_package, locate, read_json, reason
from spheregen.hub import HubError
from tests.fake_hub import FakeHub


@pytest.fixture
def network(tmp_path: Path) -> Path:
    """A folder with a configuration."""
    folder = tmp_path / "network"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "vit"}')
    return folder


def refused(source: str, **options: str) -> str:
    with pytest.raises(ModelFileError) as caught:
        locate(source, "the encoder", **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_folder(network: Path) -> None:
    place = locate(str(network), "the encoder")
    assert (place.name, place.revision, place.config) == (str(network), None, network / "config.json")
    assert read_json(place.config, "it") == {"model_type": "vit"}
    assert "is a file; give the folder of the encoder" in refused(str(network / "config.json"))


@pytest.mark.parametrize("text", ["nothing", "/no/such/folder", "a/b/c", "../up@v1", "me/mine@../../up"])
def test_what_is_neither_a_folder_nor_on_the_hub(text: str) -> None:
    assert f"there is no folder {text} of the encoder" in refused(text)


def test_a_repository_of_the_hub(network: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = FakeHub(network)
    monkeypatch.setattr(external, "import_hub", lambda *_: hub)
    place = locate("me/mine@v1", "the encoder", also="nothing.json")
    assert (place.name, place.revision, place.config) == ("me/mine", "v1", network / "config.json")
    assert hub.asked == [("me/mine", "v1")]


def test_without_a_network_what_was_fetched_before_is_used(network: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(external, "import_hub", lambda *_: FakeHub(None))
    monkeypatch.setattr(external, "find_downloaded", lambda *_: None)
    assert "me/mine for the encoder: the Hugging Face Hub cannot be reached" in refused("me/mine")
    assert refused("me/mine", folder="vit=/path/to/folder").endswith("or give vit=/path/to/folder")
    monkeypatch.setattr(external, "find_downloaded", lambda *_: network)
    assert locate("me/mine", "the encoder").config == network / "config.json"


def test_an_unknown_repository_is_not_looked_for_in_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    def request(*_: object) -> None:
        raise HubError("the Hub has no such model", permanent=True)

    def refuse(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(external, "import_hub", lambda *_: FakeHub(None))
    monkeypatch.setattr(external, "request", request)
    monkeypatch.setattr(external, "find_downloaded", refuse)
    assert "me/typo for the encoder: the Hub has no such model" in refused("me/typo")


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "has no config.json"), ("{", "cannot be read"), ("[]", "is no object"), (b"\xff", "cannot be read")],
)
def test_broken_configurations_are_refused(content: str | bytes | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ModelFileError, match=message) as caught:
        read_json(path, "the folder")
    assert "\n" not in str(caught.value)


def test_a_package_that_is_not_installed() -> None:
    with pytest.raises(
        SphereGenError, match=r'the tokenizer needs the package no_such: pip install "spheregen\[mine\]"'
    ):
        import_package("no_such", "mine", "the tokenizer")


def test_reasons_have_one_line() -> None:
    assert reason(ValueError("\n first\nsecond")) == "ValueError: first"
    assert reason(KeyError()) == "KeyError"
    assert len(reason(OSError("x" * 1000))) < 250
