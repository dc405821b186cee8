"""`spheregen models`: bundled models without a network, those of the Hub when asked."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import spheregen.folders.summary
from spheregen.errors import ModelFileError
from spheregen.folders.model_source import HubModel
from tests.cli.conftest import Run

Offer = Callable[[str], list[HubModel]]


@pytest.fixture(autouse=True)
def bundled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, model: Path) -> Path:
    """One bundled model, `tiny`, and no huggingface_hub."""
    folder = tmp_path / "bundled"
    for name in ("config.json", "model.safetensors"):
        (folder / "tiny").mkdir(parents=True, exist_ok=True)
        shutil.copy(model / name, folder / "tiny" / name)
    config = json.loads((folder / "tiny" / "config.json").read_text("utf-8"))
    config["provenance"] = {"license": "CC-BY-4.0"}
    (folder / "tiny" / "config.json").write_text(json.dumps(config), "utf-8")
    monkeypatch.setattr(spheregen.folders.summary, "_BUNDLED", folder)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    return folder


@pytest.fixture
def offer(monkeypatch: pytest.MonkeyPatch) -> Callable[[Offer], None]:
    """What the Hub answers."""
    return lambda answer: monkeypatch.setattr(spheregen.folders.model_source, "list_hub_models", answer)


def some(organisation: str) -> list[HubModel]:
    return [HubModel(name=f"{organisation}/faces", downloads=12, likes=3, updated="2026-02-17")]


def unreachable(organisation: str) -> list[HubModel]:
    raise ModelFileError(f"the models of {organisation} cannot be listed: no route")


def test_the_bundled_models(run: Run, bundled: Path) -> None:
    result = run("models")
    assert (result.code, result.err) == (0, "")
    header, line = result.out.splitlines()
    assert header.split() == ["model", "images", "classes", "parameters", "licence", "what", "it", "is"]
    assert line.startswith("tiny   8 px    10       0.01 M      CC-BY-4.0")
    answer = run("models", "--json").json
    assert answer["hub"] is None
    (one,) = answer["bundled"]
    assert (one["name"], one["image_size"], one["num_classes"], one["license"]) == ("tiny", 8, 10, "CC-BY-4.0")
    shutil.rmtree(bundled)
    assert "no models come with this version" in run("models").out
    assert run("models", "--json").json == {"bundled": [], "hub": None}


def test_what_an_organisation_offers(run: Run, offer: Callable[[Offer], None]) -> None:
    offer(some)
    result = run("models", "--hub", "me")
    assert (result.code, result.err) == (0, "")
    mine, theirs = result.out.split("\n\n")
    assert "tiny" in mine
    assert theirs.splitlines()[1].split() == ["me/faces", "12", "3", "2026-02-17"]
    offered = run("models", "--hub", "me", "--json").json["hub"]
    assert offered == [{"name": "me/faces", "downloads": 12, "likes": 3, "updated": "2026-02-17"}]
    offer(lambda organisation: [])
    assert "me offers no SphereGen models" in run("models", "--hub", "me").out
    assert run("models", "--hub", "me", "--json").json["hub"] == []


def test_without_the_hub_the_bundled_models_are_listed_and_the_error_follows(
    run: Run, offer: Callable[[Offer], None]
) -> None:
    plain, as_json = run("models").out, run("models", "--json").out
    for words in ('pip install "spheregen[hub]"', "no route"):
        for arguments, out in ((("models", "--hub", "me"), plain), (("models", "--hub", "me", "--json"), as_json)):
            result = run(*arguments)
            assert (result.code, result.out) == (2, out)
            result.fails(words)
        offer(unreachable)
