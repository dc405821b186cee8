"""Networks by name, and networks of the user's own."""

from __future__ import annotations

import subprocess
import sys
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from spheregen.errors import ConfigError, SphereGenError
from spheregen.evaluation.features import EXTRACTORS, load_extractor
from spheregen.evaluation.features.transformers import FAMILIES
from tests.evaluation.features.conftest import random_images

Write = Callable[[str], str]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Write a module of a fresh name into the current directory."""
    monkeypatch.chdir(tmp_path)

    def write_module(text: str) -> str:
        name = f"mine_{uuid.uuid4().hex}"
        Path(f"{name}.py").write_text(text)
        return name

    return write_module


def message_of(name: str, weights: str | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        load_extractor(name, weights=weights)
    message = str(caught.value)
    assert "\n" not in message
    return message


# --- names ------------------------------------------------------------------------------------------------------


def test_every_name_has_a_line_for_the_help() -> None:
    assert list(EXTRACTORS) == ["own", "inception", "dinov2", "dinov3", "clip", "convnext"]
    assert set(FAMILIES) < set(EXTRACTORS)
    assert all(line and "\n" not in line for line in EXTRACTORS.values())


def test_own_by_name() -> None:
    assert load_extractor("own").info.name == "own"
    assert load_extractor("own", device="cpu").info == load_extractor("own", device=torch.device("cpu")).info


def test_unknown_names() -> None:
    message = message_of("incption")
    assert "did you mean 'inception'?" in message
    assert "use one of own, inception, dinov2, dinov3, clip, convnext, or module:factory" in message
    assert "no feature network ''" in message_of("")
    assert "no feature network 'fid'" in message_of("fid=/somewhere")


def test_weights_are_named_once() -> None:
    assert "give one of them" in message_of("inception=a.pth", "b.pth")
    assert "names no weights" in message_of("inception=")
    assert "takes no weights" in message_of("mine:make", "b.pth")


def test_a_path_may_hold_colons_and_equals_signs() -> None:
    with pytest.raises(SphereGenError, match=r"/a:b=c\.pth of the feature network inception are missing"):
        load_extractor("inception=/a:b=c.pth")


def test_importing_and_loading_own_needs_no_optional_package() -> None:
    code = (
        "import sys; from spheregen.evaluation.features import load_extractor; load_extractor('own'); "
        "print([n for n in ('transformers', 'huggingface_hub', 'scipy', 'torchvision') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# --- networks of the user's own ---------------------------------------------------------------------------------

CALLABLE = """
def make():
    return lambda images: images.float().mean(dim=(2, 3))[:, :2]
"""
MODULE = """
import torch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.linear = torch.nn.Linear(3 * 64 * 64, 5)

    def forward(self, images):
        return self.linear(images.flatten(1).float() / 255)
"""
EXTRACTOR = """
from spheregen.evaluation.features import FeatureBatch, FeatureInfo

class Mine:
    info = FeatureInfo(name="mine", title="Mine", distance="FD-mine", dim=1, preprocessing="none", weights="0" * 16)

    def __call__(self, images):
        return FeatureBatch(images.float().mean(dim=(1, 2, 3))[:, None])

    def to(self, device):
        self.device = device
        return self
"""


def test_a_callable(write: Write) -> None:
    name = f"{write(CALLABLE)}:make"
    path = list(sys.path)
    made = load_extractor(name)
    assert sys.path == path
    assert (made.info.name, made.info.dim, made.info.weights) == (name, 2, "unknown")
    assert made.info.distance == f"FD-{name}"
    grey = random_images(3, 1)
    assert torch.equal(made(grey).features, grey.float().mean(dim=(2, 3)).expand(-1, 2))
    with pytest.raises(ConfigError, match="uint8"):
        made(torch.rand(1, 3, 8, 8))


def test_a_module_that_takes_one_size_alone(write: Write) -> None:
    name = write(MODULE)
    first, second = load_extractor(f"{name}:Net"), load_extractor(f"{name}:Net")
    assert first.info.dim == 5
    assert first.info.weights == second.info.weights != "unknown"
    assert first(random_images(2, height=64)).features.shape == (2, 5)


def test_an_extractor_is_taken_as_it_is(write: Write) -> None:
    made = load_extractor(f"{write(EXTRACTOR)}:Mine", device="cpu")
    assert made.info.distance == "FD-mine"
    assert made.device == torch.device("cpu")  # type: ignore[attr-defined]
    assert made(random_images(2)).features.shape == (2, 1)


@pytest.mark.parametrize("name", [":make", "module:", ":"])
def test_half_a_name(name: str) -> None:
    assert "write module:factory" in message_of(name)


def test_a_module_that_is_nowhere(write: Write) -> None:
    assert "no module nowhere_at_all for nowhere_at_all:make; run from the folder" in message_of("nowhere_at_all:make")
    name = write("import nowhere_at_all")
    assert f"the module {name} of {name}:make needs nowhere_at_all" in message_of(f"{name}:make")
    plain = write("make = 1")
    assert f"there is no module {plain}.sub" in message_of(f"{plain}.sub:make")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("def make(:", "cannot be imported (SyntaxError"),
        ("1 / 0", "cannot be imported (ZeroDivisionError"),
        ("other = 1", "has no function make"),
        ("make = 1", "has no function make"),
        ("def make(size): ...", "failed (TypeError"),
        ("def make():\n    raise ValueError('two\\nlines')", "failed (ValueError: two lines)"),
        ("def make(): ...", "returned NoneType; return a FeatureExtractor, or a callable"),
        ("def make():\n    return lambda images: images.nothing", "takes no images (AttributeError"),
        (
            "def make():\n    return lambda images: images.float()",
            "returned torch.float32 (2, 3, 32, 32) for two images",
        ),
        ("def make():\n    return lambda images: images[:, 0, 0]", "returned torch.uint8 (2, 32) for two images"),
        ("def make():\n    return lambda images: images[:1, 0, 0].float()", "(1, 32) for two images"),
        ("def make():\n    return lambda images: 1", "returned int for two images"),
    ],
)
def test_faults_of_the_users_code_are_one_line(text: str, words: str, write: Write) -> None:
    assert words in message_of(f"{write(text)}:make")


def test_an_error_for_the_user_comes_through(write: Write) -> None:
    name = write("from spheregen.errors import ConfigError\ndef make():\n    raise ConfigError('put the file there')")
    assert message_of(f"{name}:make") == "put the file there"
