"""`spheregen convert`: what it prints and writes, and one clear line for every mistake."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from spheregen.family.sphere_encoder.network import SphereAutoencoder
from spheregen.folders.model_folder import load_model
from tests.cli.conftest import Run
from tests.folders.published import assert_same, model_of, published_config, published_state, untold, weight_file, write


@pytest.fixture(scope="module")
def published() -> SphereAutoencoder:
    return model_of()


def settings_of(model: SphereAutoencoder) -> list[str]:
    return [word for name, value in untold(model).items() for word in ("--set", f"{name}={value}")]


def test_a_training_checkpoint_with_its_configuration(run: Run, published: SphereAutoencoder, tmp_path: Path) -> None:
    averaged = model_of(max_angle=published.config.max_angle)
    with torch.no_grad():
        averaged.decoder.head.linear.bias.add_(0.2)
    checkpoint = {"model": published_state(published), "ema_model": published_state(averaged), "epoch": 12}
    torch.save(checkpoint, tmp_path / "ep12.pth")
    (tmp_path / "cfg.json").write_text(json.dumps(published_config(published)))
    for options, expected, which in (([], published, "raw weights"), (["--ema"], averaged, "EMA weights")):
        out = tmp_path / which.partition(" ")[0]
        result = run("convert", "sphere-encoder", "--weights", "ep12.pth", "--out", out, *options)
        assert result.code == 0, result.err
        assert which in result.out and "12" in result.out and "max angle" in result.out
        assert f"spheregen sample {out}" in result.err
        assert_same(load_model(out).model, expected)
    sampled = run("sample", "raw", "-n", 3, "--out", "grid.png", "--device", "cpu")
    assert sampled.code == 0, sampled.err
    assert Path("grid.png").is_file()


@pytest.mark.parametrize(
    ("how", "options"),
    [
        ("config", {"in_context_tokens": 2, "pixel_head": "conv"}),
        ("shapes", {"encoder_mixer_depth": 0, "decoder_mixer_depth": 0}),
        ("shapes", {"in_context_tokens": 2, "num_classes": 0}),
        ("shapes", {"image_size": 32, "patch_size": 16, "mixer_affine": False}),
    ],
    ids=str,
)
def test_configurations_with_and_without_a_file(how: str, options: dict[str, Any], run: Run, tmp_path: Path) -> None:
    model = model_of(**options)
    if how == "config":
        words = ["--weights", write(tmp_path, model)]
    else:
        words = ["--weights", weight_file(tmp_path, model, "w.pth"), *settings_of(model)]
    result = run("convert", "sphere-encoder", *words, "--out", "out", "--json")
    assert result.code == 0, result.err
    answer = json.loads(result.out)
    assert (answer["image_size"], answer["patch_size"]) == (model.config.image_size, model.config.patch)
    assert answer["num_classes"] == model.num_classes
    assert answer["weights"] == "bare" and answer["epoch"] is None
    assert ("input_size" in answer["inferred"]) == (how == "shapes")
    assert answer["assumed"] == ({"spherify_model": False} if how == "shapes" else {})
    assert_same(load_model("out").model, model)


def test_class_names_licence_and_dtype(run: Run, published: SphereAutoencoder, tmp_path: Path) -> None:
    write(tmp_path, published)
    Path("names.txt").write_text("tench, Tinca tinca\ngoldfish\nhen\n\n", encoding="utf-8")
    convert = ["convert", "sphere-encoder", "--weights", ".", "--config", "config.json"]
    assert run(*convert, "--out", "a", "--class-names", "names.txt", "--license", "cc-by-nc-4.0").code == 0
    assert run(*convert, "--out", "b", "--class-names", "cat, dog,fox", "--dtype", "bfloat16").code == 0
    a, b = load_model("a"), load_model("b")
    assert a.info.class_names == ("tench, Tinca tinca", "goldfish", "hen")
    assert a.info.provenance["license"] == "cc-by-nc-4.0"
    assert b.info.class_names == ("cat", "dog", "fox")
    assert next(b.model.parameters()).dtype == torch.bfloat16
    assert "the checkpoint's origin" in Path("b/README.md").read_text()


BAD: list[tuple[list[str], str]] = [
    (["sphere_encoder"], "did you mean 'sphere-encoder'"),
    (["--weights", "gone.pth"], "gone.pth"),
    (["--config", "gone.json"], "gone.json"),
    (["--set", "noise_sigma_max_angle"], "NAME=VALUE"),
    (["--set", "noise_sigma_max_angle=[80"], "YAML"),
    (["--set", "noise_max_angle=80"], "noise_max_angle"),
    (["--class-names", "a,b"], "2 class names"),
    (["--class-names", "gone.txt"], "gone.txt"),
    (["--class-names", "hole.txt"], "line 2"),
    (["--class-names", "weights.safetensors"], "weights.safetensors"),
    (["--ema"], "EMA"),
    (["--out", "."], "--out"),
    (["--out", "hole.txt/deep"], "hole.txt is a file"),
]


def test_mistakes_are_one_line(run: Run, published: SphereAutoencoder, tmp_path: Path) -> None:
    write(tmp_path, published)
    Path("hole.txt").write_text("a\n\nb\n")
    for words, reason in BAD:
        form = ["sphere-encoder"] if words[0].startswith("--") else []
        rest = [word for pair in (("--weights", "."), ("--out", "out")) if pair[0] not in words for word in pair]
        run("convert", *form, *words, *rest).fails(reason)
        assert not Path("out").exists()


def test_what_is_missing_is_asked_for_at_once(run: Run, published: SphereAutoencoder, tmp_path: Path) -> None:
    path = weight_file(tmp_path, published)
    result = run("convert", "sphere-encoder", "--weights", path, "--out", "out")
    result.fails(*untold(published), "--config", "--set")
    assert run("convert", "sphere-encoder", "--weights", path, "--out", "out", *settings_of(published)).code == 0


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.write_text, (Path("proof"), "executed"))


@pytest.mark.parametrize("zipped", [False, True])
def test_code_in_a_checkpoint_is_not_executed(
    zipped: bool, run: Run, published: SphereAutoencoder, tmp_path: Path
) -> None:
    content = {"model": published_state(published), "args": Evil()}
    torch.save(content, "evil.pth", _use_new_zipfile_serialization=zipped)
    result = run("convert", "sphere-encoder", "--weights", "evil.pth", "--out", "out", *settings_of(published))
    result.fails("evil.pth", "nothing of it was executed")
    assert not Path("proof").exists() and not Path("out").exists()
