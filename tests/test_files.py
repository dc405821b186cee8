"""Nothing half-written is ever found under the final name."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from spheregen.errors import SphereGenError
from spheregen.family.sphere_encoder.network import AutoencoderConfig, SphereAutoencoder
from spheregen.files import atomic_path, write_text
from spheregen.folders.model_folder import (
    ModelInfo,
    load_model,
    load_tensors,
    model_fingerprint,
    save_model,
    save_tensors,
)
from spheregen.nn.sizes import TransformerSize
from spheregen.tensors import MappedTensors


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("durable", [True, False])
def test_a_file_is_replaced_as_a_whole(tmp_path: Path, durable: bool) -> None:
    path = tmp_path / "a" / "file.txt"  # folders are made
    for text in ("first", "second"):
        with atomic_path(path, durable=durable) as temporary:
            temporary.write_text(text)
            assert temporary.parent == path.parent  # one file system, so that the rename is atomic
            assert not path.exists() or path.read_text() == "first"
        assert path.read_text() == text
        assert names(path.parent) == ["file.txt"]


@pytest.mark.parametrize("failure", [RuntimeError("a bug"), KeyboardInterrupt(), OSError(errno.ENOSPC, "full")])
@pytest.mark.parametrize("before", [True, False])
def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path, failure: BaseException, before: bool) -> None:
    path = tmp_path / "file.txt"
    if before:
        path.write_text("old")
    expected = SphereGenError if isinstance(failure, OSError) else type(failure)
    with pytest.raises(expected), atomic_path(path) as temporary:  # noqa: PT012
        temporary.write_text("half")
        raise failure
    assert names(tmp_path) == (["file.txt"] if before else [])
    if before:
        assert path.read_text() == "old"


@pytest.mark.skipif(os.name == "nt", reason="POSIX permissions")
def test_files_have_ordinary_permissions(tmp_path: Path) -> None:
    write_text(tmp_path / "a", "")
    (tmp_path / "b").write_text("")
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode


def test_tensors_round_trip(tmp_path: Path) -> None:
    tensors = {
        "transposed": torch.arange(6.0).reshape(2, 3).T,
        "half": torch.randn(3, dtype=torch.bfloat16),
        "gradient": torch.ones(2, requires_grad=True),
        "step": torch.tensor(7),
    }
    save_tensors(tmp_path / "a.safetensors", tensors, {"origin": "test"})
    loaded = load_tensors(tmp_path / "a.safetensors")
    assert loaded.keys() == tensors.keys()
    assert all(torch.equal(loaded[name], tensors[name]) for name in tensors)
    assert all(loaded[name].dtype == tensors[name].dtype for name in tensors)


def test_the_file_is_that_of_the_package_safetensors(tmp_path: Path) -> None:
    kinds = [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.int32, torch.int16]
    kinds += [torch.int8, torch.uint8, torch.bool]
    tensors = {f"{number % 3} \u00e9\n{kind}": torch.ones(number, 2).to(kind) for number, kind in enumerate(kinds)}
    tensors |= {"scalar": torch.tensor(2.0), "rows": torch.randn(3, 4).T}
    save_tensors(tmp_path / "ours", tensors, {"origin": "t\u00e9st"})
    theirs = save({name: each.contiguous() for name, each in tensors.items()}, {"origin": "t\u00e9st"})
    assert (tmp_path / "ours").read_bytes() == theirs
    save_tensors(tmp_path / "half", tensors, dtype=torch.bfloat16)
    for name, each in load_tensors(tmp_path / "half").items():
        assert torch.equal(each, tensors[name].to(torch.bfloat16 if tensors[name].is_floating_point() else each.dtype))


def test_a_file_is_mapped_anew_while_its_tensors_are_taken(tmp_path: Path) -> None:
    reads = []

    def read() -> dict[str, torch.Tensor]:
        reads.append(None)
        return {str(number): torch.full((3 << 20,), float(number)) for number in range(8)}  # of 12 MiB

    tensors = MappedTensors(read)
    assert len(tensors) == 8 and [float(each[-1]) for each in tensors.values()] == list(range(8))
    assert 2 <= len(reads) <= 4


def model_of(seed: int) -> SphereAutoencoder:
    torch.manual_seed(seed)
    size = TransformerSize(width=16, depth=1, heads=2)
    return SphereAutoencoder(
        AutoencoderConfig(image_size=8, patch_size=4, encoder=size, decoder=size, latent_channels=4)
    )


def test_a_failing_write_leaves_the_previous_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = model_of(0), model_of(1)
    save_model(tmp_path, old, ModelInfo(), title="old")

    def fail(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(SphereGenError, match="No space left on device") as caught:
        save_model(tmp_path, new, ModelInfo(), title="new")
    assert "\n" not in str(caught.value)
    assert names(tmp_path) == ["README.md", "config.json", "model.safetensors"]
    assert "# old" in (tmp_path / "README.md").read_text()
    loaded = load_model(tmp_path).model.state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in old.state_dict().items())


def test_fingerprints_tell_weights_apart_and_not_folders(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        save_model(tmp_path / name, model_of(seed), ModelInfo(), title=name)
    prints = {name: load_model(tmp_path / name).fingerprint for name in "abc"}
    assert prints["a"] == prints["b"] != prints["c"]
    assert len(prints["a"]) == 12 and int(prints["a"], 16) >= 0
    assert model_fingerprint(tmp_path / "a") == prints["a"]


def test_a_large_file_is_fingerprinted_all_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spheregen.folders.model_folder._FINGERPRINTED", 2560)
    monkeypatch.setattr("spheregen.folders.model_folder.inner_weights", lambda folder: [])
    path = tmp_path / "model.safetensors"
    content = bytearray(10_000)
    path.write_bytes(content)
    before = model_fingerprint(tmp_path)
    for place in (0, 5000, 9940):
        path.write_bytes(content[:place] + bytes([1]) * 60 + content[place + 60 :])
        assert model_fingerprint(tmp_path) != before
