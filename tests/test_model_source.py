"""Models by name, without a network: what SphereGen asks of huggingface_hub is answered here."""

from __future__ import annotations

import fnmatch
import json
import shutil
import sys
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import errors
from safetensors.torch import load_file

import spheregen.model_source
from spheregen.errors import ConfigError, ModelFileError
from spheregen.model_folder import ModelInfo, load_model, model_fingerprint, save_model
from spheregen.model_source import (
    HubModel,
    bundled_models,
    find_model,
    list_hub_models,
    push_model,
    summarise_model,
)
from spheregen.models.autoencoder import SphereAutoencoder
from spheregen.models.flow_refiner import RefinedGenerator
from spheregen.training.recipe import load_recipe
from tests.models.test_flow_refiner import refined

INFO = ModelInfo(training={"recipe": "debug", "description": "Tiny\ndigits."}, provenance={"license": "MIT"})
FILES = ["README.md", "config.json", "model.safetensors"]


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
NOT_LOGGED_IN = hub_error("HfHubHTTPError", 401)
NO_RIGHTS = hub_error("HfHubHTTPError", 403)


class Hub:
    """Its repositories, what was asked of it, and what it does wrong."""

    def __init__(self, cache: Path) -> None:
        self.cache = cache
        self.repositories: dict[str, Path] = {}
        self.private: set[str] = set()
        self.calls: list[str] = []
        self.revisions: list[str | None] = []
        self.tokens: list[str | None] = []
        self.error: Callable[[], Exception] | None = None
        self.broken_off: Callable[[], Exception] | None = None  # after config.json

    def ask(self, call: str) -> None:
        self.calls.append(call)
        if self.error is not None:
            raise self.error()

    def files(self, repo: str) -> list[str]:
        if repo not in self.repositories:
            raise hub_error("RepositoryNotFoundError", 404)()
        place = self.repositories[repo]
        return sorted(path.relative_to(place).as_posix() for path in place.rglob("*") if path.is_file())


def copy(file: Path, to: Path) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(file, to)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, model: Path) -> Hub:
    state = Hub(tmp_path / "cache")
    state.repositories["me/good"] = tmp_path / "remote"
    shutil.copytree(model, state.repositories["me/good"])
    for name in ("model.pkl", "modeling.py"):
        (state.repositories["me/good"] / name).write_bytes(b"raise SystemExit")

    class Api:
        def __init__(self, token: str | None = None) -> None:
            state.tokens.append(token)

        def model_info(self, repo_id: str, *, revision: str | None = None, timeout: float) -> Any:
            state.ask("model_info")
            state.revisions.append(revision)
            siblings = [SimpleNamespace(rfilename=name) for name in state.files(repo_id)]
            return SimpleNamespace(private=repo_id in state.private, siblings=siblings)

        def create_repo(self, repo_id: str, *, private: bool | None, exist_ok: bool) -> str:
            assert exist_ok
            state.ask("create_repo")
            if repo_id not in state.repositories:
                state.repositories[repo_id] = tmp_path / "made"
                state.repositories[repo_id].mkdir()
                state.private |= {repo_id} if private else set()
            return f"https://huggingface.co/{repo_id}"

        def upload_folder(
            self, *, repo_id: str, folder_path: Path, allow_patterns: list[str], commit_message: str
        ) -> None:
            state.ask(f"upload_folder: {commit_message}")
            for path in folder_path.rglob("*"):
                name = path.relative_to(folder_path).as_posix()
                if path.is_file() and any(fnmatch.fnmatch(name, sign) for sign in allow_patterns):
                    copy(path, state.repositories[repo_id] / name)

        def list_models(self, *, author: str, filter: str, limit: int, expand: list[str]) -> Iterable[Any]:
            assert (filter, expand) == ("spheregen", ["downloads", "lastModified", "likes"])
            state.ask("list_models")
            day = datetime(2026, 2, 17, 23, tzinfo=UTC)
            found = [
                SimpleNamespace(id=f"{author}/a", downloads=3, likes=1, last_modified=day),
                SimpleNamespace(id=f"{author}/b", downloads=None, likes=None, last_modified=None),
            ]
            yield from found[:limit]

    def snapshot_download(
        repo_id: str, *, repo_type: str = "model", revision: str | None = None,
        allow_patterns: list[str] | None = None, local_files_only: bool = False,
    ) -> str:  # fmt: skip
        assert repo_type == "model"
        folder = state.cache / repo_id
        if local_files_only:
            if not folder.is_dir():
                raise hub_error("LocalEntryNotFoundError")()
            return str(folder)
        state.ask("snapshot_download")
        folder.mkdir(parents=True, exist_ok=True)
        assert allow_patterns is not None
        for name in state.files(repo_id):
            if any(fnmatch.fnmatch(name, sign) for sign in allow_patterns):
                if name == "model.safetensors" and state.broken_off is not None:
                    raise state.broken_off()
                copy(state.repositories[repo_id] / name, folder / name)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return state


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with random weights."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    save_model(folder, SphereAutoencoder(load_recipe("debug").model), INFO)
    return folder


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The working folder, with no bundled models."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setattr(spheregen.model_source, "_BUNDLED", tmp_path / "bundled")
    return folder


@pytest.fixture
def bundled(tmp_path: Path, model: Path) -> Path:
    """The folder of a bundled model, `digits`, among others that are none."""
    folder = tmp_path / "bundled" / "digits"
    shutil.copytree(model, folder)
    (tmp_path / "bundled" / "half").mkdir()
    shutil.copy(model / "config.json", tmp_path / "bundled" / "half")
    (tmp_path / "bundled" / "LICENSE").write_text("")
    return folder


def refused(*words: str, name: str | Path, revision: str | None = None) -> None:
    with pytest.raises(ModelFileError) as caught:
        find_model(name, revision=revision)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 600
    for word in words:
        assert word in message


# here


def test_bundled_models_are_whole_folders(tmp_path: Path, model: Path) -> None:
    assert bundled_models() == {}
    (tmp_path / "bundled").mkdir()
    assert bundled_models() == {}
    for name in ("b", "a"):
        shutil.copytree(model, tmp_path / "bundled" / name)
    assert list(bundled_models()) == ["a", "b"]


def test_what_is_bundled_really_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    for name, folder in bundled_models().items():
        assert load_model(find_model(name)).model.config.image_size == summarise_model(folder).image_size


def test_a_folder_then_a_bundled_name(bundled: Path, here: Path, model: Path) -> None:
    assert find_model("digits") == bundled
    assert find_model(Path("digits")) == bundled
    assert find_model(str(model)) == find_model(model) == model
    shutil.copytree(model, here / "digits")
    assert find_model("digits") == Path("digits")  # the folder here wins
    (here / "digits" / "config.json").unlink()
    refused("hides the bundled model", "rename", name="digits")
    shutil.rmtree(here / "digits")
    (here / "run").mkdir()
    assert find_model("run") == Path("run")  # that it is no model folder is what load_model tells


def test_local_names_ask_nobody(hub: Hub, bundled: Path, here: Path, model: Path) -> None:
    shutil.copytree(model, here / "me" / "good")
    for name in ("digits", "me/good", "./me/good", str(model)):
        find_model(name)
    for name in ("../x", "/etc/none", "../me/good", "me/../good", "a/b/c", "~/none", "dgits", "", "me/x.pth"):
        refused(name=name)
    assert hub.calls == []


def test_names_that_are_nothing(bundled: Path, here: Path) -> None:
    refused("no model 'dgits'", "did you mean 'digits'?", "user/name", name="dgits")
    refused("is empty", "digits", name="")
    for name in ("../x", "/etc/none", "a/b/c", "..\\x", ".hidden/x", "../digits", "digits/", "half/../digits/x"):
        refused("no model folder at", "check for a typo", name=name)
    refused(name="digits\0x")
    refused("cannot be looked at", name="x" * 300)
    refused("cannot be looked at", name="~nobody-of-that-name/x")
    (here / "config.json").write_text("{}")
    refused("config.json is a file; give the model folder", name="config.json")
    refused("is a bundled model, which has no revisions", name="digits", revision="v1")
    refused("is a path here, which has no revisions", name=".", revision="v1")


def test_etc_is_a_folder_but_no_model() -> None:
    if not Path("/etc").is_dir():
        pytest.skip("there is no /etc here")
    with pytest.raises(ModelFileError, match="is not a model folder"):
        load_model(find_model("/etc"))


# from the Hub


def test_only_the_files_of_a_model_are_downloaded(hub: Hub) -> None:
    for name in ("me/good", "hf://me/good", "hf:/me/good", Path("me/good")):
        folder = find_model(name)
        assert sorted(path.name for path in folder.iterdir()) == FILES
        assert load_model(folder).info.training["recipe"] == "debug"


def test_revisions(hub: Hub) -> None:
    find_model("me/good@v1.0")
    find_model("hf://me/good", revision="refs/pr/1")
    find_model("me/good@main", revision="main")
    assert hub.revisions == ["v1.0", "refs/pr/1", "main"]
    refused("give one of them", name="me/good@a", revision="b")
    for bad in ("../../x", "/etc/passwd", "a//b", "a/../b", " ", ""):
        refused("is no", name=f"hf://me/good@{bad}")
        refused("is no revision", name="me/good", revision=bad)
    assert len(hub.revisions) == 3


@pytest.mark.parametrize(
    "name", ["", "me", "../x", "/etc", "me/good/file", "me/..", "me/a--b", "datasets/me/x", "a b/c"]
)
def test_the_hub_is_not_asked_for_what_it_cannot_have(hub: Hub, name: str) -> None:
    refused("is no model of the Hub", "user/name", name=f"hf://{name}")
    assert hub.calls == []


def test_a_local_folder_hides_the_hub_and_hf_goes_past_it(hub: Hub, here: Path) -> None:
    (here / "me" / "good").mkdir(parents=True)
    assert find_model("me/good") == Path("me/good")
    assert find_model("hf://me/good") == hub.cache / "me" / "good"


def test_without_a_network_what_was_downloaded_serves(hub: Hub) -> None:
    hub.error = NO_NETWORK
    refused("there is no folder me/good here (a typo?)", "cannot be reached; check the connection", name="me/good")
    hub.error = None
    first = find_model("me/good")
    for hub.error in (NO_NETWORK, hub_error("HfHubHTTPError", 503), hub_error("HfHubHTTPError", 429)):
        assert find_model("me/good") == first


def test_an_interrupted_download_is_no_model(hub: Hub) -> None:
    hub.broken_off = lambda: ConnectionError("reset by peer")
    refused("was not downloaded completely", "model.safetensors", "reset by peer", "goes on", name="me/good")
    assert [path.name for path in (hub.cache / "me" / "good").iterdir()] == ["README.md", "config.json"]
    hub.error = NO_NETWORK
    refused("was not downloaded completely", "cannot be reached", name="me/good")
    hub.error = hub.broken_off = None
    assert sorted(path.name for path in find_model("me/good").iterdir()) == FILES
    shutil.rmtree(hub.cache)
    hub.broken_off = lambda: OSError(28, "No space left on device")
    refused("free space", "HF_HOME", name="me/good")


def test_an_incomplete_snapshot_of_version_2_serves_if_it_has_the_model(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    class IncompleteSnapshotError(Exception):
        snapshot_path = str(find_model("me/good"))

    def incomplete(*_: Any, **__: Any) -> str:
        raise IncompleteSnapshotError

    hub.error = NO_NETWORK
    monkeypatch.setattr(errors, "IncompleteSnapshotError", IncompleteSnapshotError, raising=False)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", incomplete)
    assert find_model("me/good") == Path(IncompleteSnapshotError.snapshot_path)


def test_a_snapshot_that_lacks_the_weights_is_refused(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = find_model("me/good")
    (folder / "model.safetensors").unlink()
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(folder))
    refused("was not downloaded completely", "model.safetensors", name="me/good")


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors"])
def test_another_kind_of_repository_is_not_downloaded(hub: Hub, missing: str) -> None:
    (hub.repositories["me/good"] / missing).unlink()
    refused("me/good is on the Hub but is no SphereGen model", missing, name="me/good")
    assert hub.calls == ["model_info"]


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (hub_error("RepositoryNotFoundError", 401), "no such model or revision, or it is private"),
        (hub_error("RevisionNotFoundError", 404), "no such model or revision"),
        (hub_error("GatedRepoError", 403), "access must be asked for"),
        (NOT_LOGGED_IN, "the token is wrong or has expired: log in with `hf auth login`"),
        (NO_RIGHTS, "the Hub denies this"),
        (hub_error("HfHubHTTPError", 400), "the Hub refuses the request"),
        (hub_error("HfHubHTTPError", 429), "wait a few minutes"),
        (hub_error("HfHubHTTPError", 500), "cannot be reached"),
        (lambda: TimeoutError("two\nlines"), "cannot be reached"),
    ],
)
def test_the_errors_of_the_hub(hub: Hub, error: Callable[[], Exception], words: str) -> None:
    hub.error = error
    refused(words, "there is no folder me/good here (a typo?); as a Hub model: ", name="me/good")
    with pytest.raises(ModelFileError, match=r"^me/good: (?!.*typo\?)"):
        find_model("hf://me/good")
    assert set(hub.calls) == {"model_info"}


def test_a_name_that_is_neither(hub: Hub) -> None:
    refused(
        "there is no folder runs/digits here (a typo?); as a Hub model: the Hub has no such model", name="runs/digits"
    )


def test_the_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, model: Path, bundled: Path) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    refused("there is no folder me/good here", 'pip install "spheregen[hub]"', name="me/good")
    for action in (lambda: push_model(model, "me/new"), lambda: list_hub_models("me")):
        with pytest.raises(ModelFileError, match=r'pip install "spheregen\[hub\]"'):
            action()
    assert find_model("digits") == bundled


# to the Hub


def test_a_pushed_model_comes_back(hub: Hub, tmp_path: Path, model: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(model, folder)
    (folder / "state").mkdir()
    for name in ("log.jsonl", "state/config.json", "old.pkl"):
        (folder / name).write_text("{}")
    url = push_model(folder, "me/new", token="hf_right", message="First")
    assert url == "https://huggingface.co/me/new"
    assert hub.tokens == ["hf_right"]
    assert hub.calls == ["create_repo", "upload_folder: First"]
    assert hub.files("me/new") == FILES
    back = find_model("me/new")
    assert all((back / name).read_bytes() == (model / name).read_bytes() for name in FILES)
    assert push_model(folder, "me/new") == url  # once more


def test_models_in_a_model_go_along(hub: Hub, tmp_path: Path) -> None:
    """A refiner's generator in front, and the tokenizer of that one if it has one."""
    folder = tmp_path / "refined"
    save_model(folder, refined(), ModelInfo())
    (folder / "source" / "tokenizer").mkdir()
    (folder / "source" / "tokenizer" / "config.json").write_text("{}")
    (folder / "source" / "notes.txt").write_text("not mine")
    push_model(folder, "me/refined")
    found = find_model("me/refined")
    assert model_fingerprint(found) == model_fingerprint(folder)
    assert isinstance(load_model(found).model, RefinedGenerator)
    assert (found / "source" / "tokenizer" / "config.json").is_file()
    assert not (found / "source" / "notes.txt").exists()
    sizes = [sum(p.numel() for p in load_file(f).values()) for f in folder.rglob("model.safetensors")]
    assert len(sizes) == 2 and summarise_model(folder).parameters == sum(sizes)


def test_private_stays_private(hub: Hub, model: Path) -> None:
    push_model(model, "me/secret", private=True)
    assert "me/secret" in hub.private
    push_model(model, "me/secret", private=True)
    uploads = len([call for call in hub.calls if call.startswith("upload")])
    with pytest.raises(ModelFileError, match="already, and public: nothing was uploaded"):
        push_model(model, "me/good", private=True)
    assert uploads == len([call for call in hub.calls if call.startswith("upload")]) == 2


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (hub_error("LocalTokenNotFoundError"), "nobody is logged in"),
        (NOT_LOGGED_IN, "the token is wrong or has expired"),
        (NO_RIGHTS, "the Hub denies this to the account or its token"),
        (NO_NETWORK, "cannot be reached"),
    ],
)
def test_what_keeps_a_model_from_the_hub(hub: Hub, model: Path, error: Callable[[], Exception], words: str) -> None:
    hub.error = error
    with pytest.raises(ModelFileError, match=words) as caught:
        push_model(model, "me/new", token="hf_wrong")
    assert str(caught.value).startswith("me/new was not uploaded: ")
    assert "\n" not in str(caught.value)
    assert "hf_wrong" not in str(caught.value)


def test_what_is_not_sent_at_all(hub: Hub, here: Path, model: Path) -> None:
    for repo in ("new", "me/new/x", "../new", "me/", "/etc", "me/a b", "me/a--b", "me/new@v1", "hf://me/new", ""):
        with pytest.raises(ConfigError, match="is no name for a Hub model; write user/name"):
            push_model(model, repo)
    for token in ("hf_a\n", "hf_ä", ""):
        with pytest.raises(ConfigError, match="token") as caught:
            push_model(model, "me/new", token=token)
        assert "hf_" not in str(caught.value)
    with pytest.raises(ModelFileError, match="no model folder"):
        push_model(here / "none", "me/new")
    with pytest.raises(ModelFileError, match="is not a model folder"):
        push_model(here, "me/new")
    assert hub.calls == []


# lists


def test_the_models_of_an_organisation(hub: Hub) -> None:
    first = HubModel(name="me/a", downloads=3, likes=1, updated="2026-02-17")
    assert list_hub_models("me") == [first, HubModel(name="me/b", downloads=0, likes=0, updated=None)]
    assert list_hub_models("me", limit=1) == [first]
    hub.error = NO_NETWORK
    with pytest.raises(ModelFileError, match=r"models of me cannot be listed: .* cannot be reached"):
        list_hub_models("me")
    for name in ("", "me/x", "../x", "a b"):
        with pytest.raises(ConfigError, match="no name of a user or organisation"):
            list_hub_models(name)
    with pytest.raises(ConfigError, match="at least 1"):
        list_hub_models("me", limit=0)


def test_a_summary_needs_no_weights(model: Path, tmp_path: Path) -> None:
    loaded = load_model(model).model
    summary = summarise_model(model)
    assert summary.parameters == sum(tensor.numel() for tensor in loaded.state_dict().values())
    assert (summary.image_size, summary.num_classes) == (loaded.config.image_size, loaded.num_classes)
    assert (summary.license, summary.description) == ("MIT", "Tiny digits.")
    copy = tmp_path / "copy"
    shutil.copytree(model, copy)
    config = json.loads((copy / "config.json").read_text("utf-8"))
    config |= {"training": {"recipe": "debug"}, "provenance": ["MIT"]}
    (copy / "config.json").write_text(json.dumps(config), "utf-8")
    assert (summarise_model(copy).license, summarise_model(copy).description) == (None, "debug")
    (copy / "model.safetensors").write_bytes(b"half")
    with pytest.raises(ModelFileError, match=r"cannot read .*get it again"):
        summarise_model(copy)
