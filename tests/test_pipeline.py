"""What people use: load, generate, reconstruct, save, and errors of one line."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import spheregen as sg
from spheregen.model_folder import ModelInfo, read_architecture
from spheregen.models.autoencoder import AutoencoderConfig, SphereAutoencoder
from spheregen.models.sizes import TransformerSize
from spheregen.pipeline import GenerationOptions
from tests.sampling.latent_generator import latent_generator

SIZE = TransformerSize(width=16, depth=1, heads=2)
NAMES = ("cat", "dog", "horse")


def pipeline_of(classes: int = 3, kind: str = "images", **options: Any) -> sg.Pipeline:
    """Of a small model that predicts images, or latents."""
    info = ModelInfo(class_names=NAMES[:classes], sampling={"steps": 2, "guidance": 1.3 if classes else 1.0})
    if kind == "latents":
        return sg.Pipeline(latent_generator(classes, **options), info, device="cpu")
    torch.manual_seed(0)
    config = AutoencoderConfig(
        image_size=8,
        patch_size=4,
        encoder=SIZE,
        decoder=SIZE,
        num_classes=classes,
        encoder_mixer_depth=1,
        decoder_mixer_depth=1,
        **{"latent_channels": 4, **options},
    )
    model = SphereAutoencoder(config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return sg.Pipeline(model, info, device="cpu")


KINDS = ("images", "latents")
"""What models predict."""


@pytest.fixture(scope="module", params=KINDS)
def pipe(request: pytest.FixtureRequest) -> sg.Pipeline:
    return pipeline_of(kind=request.param)


@pytest.fixture(scope="module")
def autoencoding() -> sg.Pipeline:
    """Where a test needs a model that encodes and decodes at every step, or a folder."""
    return pipeline_of()


@pytest.fixture(scope="module", params=KINDS)
def unconditional(request: pytest.FixtureRequest) -> sg.Pipeline:
    return pipeline_of(0, kind=request.param)


@pytest.fixture
def folder(autoencoding: sg.Pipeline, tmp_path: Path) -> Path:
    autoencoding.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def refuses(call: Callable[[], Any], *reasons: str) -> None:
    """The call fails with one line that holds all reasons."""
    with pytest.raises(sg.SphereGenError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    for reason in reasons:
        assert reason in message


# save and load --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [0, 3])
@pytest.mark.parametrize("options", [{}, {"image_channels": 1, "pixel_head": "conv"}, {"in_context_tokens": 2}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_saved_model_makes_the_same_pictures(
    classes: int, options: dict[str, Any], dtype: torch.dtype, tmp_path: Path
) -> None:
    pipe = pipeline_of(classes, **options)
    pipe.model.to(dtype)
    pipe.save_pretrained(tmp_path / "a" / "model")  # folders are made
    again = sg.Pipeline.from_pretrained(tmp_path / "a" / "model", device="cpu")
    assert again.dtype == dtype
    assert again.model.config == pipe.model.config
    assert again.info == pipe.info
    assert not again.model.training
    first, second = pipe.generate(3, seed=5), again.generate(3, seed=5)
    assert torch.equal(first.tensor, second.tensor)
    assert first.settings == second.settings
    assert first.tensor.std() > 0.01
    assert sorted(path.name for path in (tmp_path / "a" / "model").iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]


def test_load_gives_the_bare_network(folder: Path, autoencoding: sg.Pipeline) -> None:
    model = sg.load(folder, device="cpu")
    assert isinstance(model, SphereAutoencoder)
    assert not model.training
    x = torch.rand(2, 3, 8, 8) * 2 - 1
    with torch.no_grad():
        assert torch.equal(model(x), autoencoding.model(x))
    assert read_architecture(folder) == autoencoding.model.config


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_a_model_loads_in_the_type_that_is_asked_for(folder: Path, autoencoding: sg.Pipeline, dtype: str) -> None:
    other = sg.Pipeline.from_pretrained(folder, device="cpu", dtype=dtype)
    assert other.dtype == getattr(torch, dtype)
    assert sg.Pipeline.from_pretrained(folder, device=torch.device("cpu"), dtype=other.dtype).dtype == other.dtype
    result = other.generate(2, seed=3, steps=1, guidance=1.0).tensor
    assert result.dtype == torch.float32
    torch.testing.assert_close(
        result,
        autoencoding.generate(2, seed=3, steps=1, guidance=1.0).tensor,
        atol=0.1 if dtype == "bfloat16" else 1e-5,
        rtol=0,
    )


# generate -------------------------------------------------------------------------------------------------------------


def test_generate_counts_and_seeds(pipe: sg.Pipeline) -> None:
    one = pipe.generate()
    assert one.tensor.shape == (1, 3, 8, 8)
    assert one.seeds == (0,)
    many = pipe.generate(5, seed=10)
    assert many.tensor.shape == (5, 3, 8, 8)
    assert many.tensor.dtype == torch.float32
    assert 0 <= many.tensor.min() <= many.tensor.max() <= 1
    assert many.seeds == (10, 11, 12, 13, 14)
    assert many.settings["steps"] == 2
    assert many.settings["guidance"] == 1.3
    picked = pipe.generate(seeds=[12, 3, 12], labels=[many.labels[2], 0, many.labels[2]])  # type: ignore[index]
    assert picked.seeds == (12, 3, 12)
    for i in (0, 2):
        torch.testing.assert_close(picked.tensor[i], many.tensor[2], atol=2e-5, rtol=0)
    assert not torch.allclose(picked.tensor[1], picked.tensor[0], atol=1e-3)
    assert pipe.generate(labels=[0, 1]).tensor.shape[0] == 2
    assert pipe.generate(2, seeds=[4, 5]).seeds == (4, 5)
    assert pipe.generate(1, seed=2**63 - 1).seeds == (2**63 - 1,)


def test_generate_images_are_pil(pipe: sg.Pipeline) -> None:
    result = pipe.generate(2)
    assert [(image.mode, image.size) for image in result.images] == [("RGB", (8, 8))] * 2
    grey = pipeline_of(image_channels=1).generate(2)
    assert grey.tensor.shape == (2, 1, 8, 8)
    assert [(image.mode, image.size) for image in grey.images] == [("L", (8, 8))] * 2
    assert (
        np.abs(np.asarray(result.images[0]) / 255 - result.tensor[0].permute(1, 2, 0).numpy()).max() <= 0.5 / 255 + 1e-6
    )


@pytest.mark.parametrize("label", [2, "2", "horse"])
def test_labels_by_id_digits_and_name(pipe: sg.Pipeline, label: int | str) -> None:
    assert pipe.classes.id(label) == 2
    result = pipe.generate(2, labels=label)
    assert result.labels == (2, 2)
    assert torch.equal(result.tensor, pipe.generate(2, labels=[2, 2]).tensor)
    assert pipe.generate(labels=[label, "dog"]).labels == (2, 1)


def test_without_labels_the_classes_are_spread_by_seed(pipe: sg.Pipeline, unconditional: sg.Pipeline) -> None:
    assert pipe.generate(7).labels == (0, 1, 2, 0, 1, 2, 0)
    late = pipe.generate(2, seed=4)
    assert late.labels == (1, 2)
    torch.testing.assert_close(late.tensor, pipe.generate(7).tensor[4:6], atol=2e-5, rtol=0)
    assert unconditional.generate(2).labels is None


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("steps", [1, 3])
def test_the_batch_size_does_not_matter(pipe: sg.Pipeline, steps: int, share: bool) -> None:
    results = [pipe.generate(9, steps=steps, share_noise=share, batch_size=size) for size in (1, 7, 64)]
    for other in results[1:]:
        torch.testing.assert_close(other.tensor, results[0].tensor, atol=2e-5, rtol=0)
        assert (other.seeds, other.labels) == (results[0].seeds, results[0].labels)


def test_settings_matter_and_fall_back_to_the_models(pipe: sg.Pipeline) -> None:
    default = pipe.generate(2)
    assert torch.equal(
        pipe.generate(2, steps=2, guidance=1.3, schedule="fixed", guidance_at="both").tensor, default.tensor
    )
    changes: list[dict[str, Any]] = [{"steps": 1}, {"guidance": 3.0}, {"schedule": "decay"}, {"schedule": [0.2]}]
    if "pixel" in pipe.model.guidance_places:
        changes.append({"guidance_at": "pixel"})
    for change in changes:
        result = pipe.generate(2, **change)
        assert not torch.allclose(result.tensor, default.tensor, atol=1e-4), change
        assert change.items() <= dict(result.settings).items()
    three = pipe.generate(2, steps=3)
    assert not torch.allclose(pipe.generate(2, steps=3, share_noise=False).tensor, three.tensor, atol=1e-4)


@pytest.mark.parametrize("odd", [{"latent_channels": 5}, {"latent_channels": 1}])
def test_one_step_is_the_start_of_more_steps(odd: dict[str, int]) -> None:
    """The same seed starts at the same point whatever the number of steps, for latents of any length."""
    pipe = pipeline_of(**odd)
    start = pipe.generate(2, steps=1).tensor
    still = [0.0]  # refinement without noise: the picture stays near its start, and repeats with its seed
    from_same_start = pipe.generate(2, steps=2, schedule=still).tensor
    torch.testing.assert_close(
        from_same_start,
        torch.stack([_refined_once(pipe, picture, index) for index, picture in enumerate(start)]),
        atol=1e-4,
        rtol=0,
    )


def _refined_once(pipe: sg.Pipeline, picture: torch.Tensor, label: int) -> torch.Tensor:
    """One noiseless refinement of a finished picture, guided as the pipeline does by default."""
    guided = sg.sampling.guide(pipe.model, torch.tensor([label]), 1.3, "both")
    with torch.no_grad():
        refined = sg.sampling.refine(guided, picture[None] * 2 - 1, 0.0, torch.zeros(1, *pipe.model.latent_shape))
    return (refined[0] + 1) / 2


def test_stream_makes_batches_lazily(pipe: sg.Pipeline) -> None:
    parts = list(pipe.stream(range(5), labels="dog", batch_size=2))
    assert [part.seeds for part in parts] == [(0, 1), (2, 3), (4,)]
    whole = pipe.generate(5, labels="dog").tensor
    torch.testing.assert_close(torch.cat([part.tensor for part in parts]), whole, atol=2e-5, rtol=0)


@pytest.mark.parametrize("labels", [1, None])
def test_stream_takes_constant_memory(pipe: sg.Pipeline, labels: int | None) -> None:
    """A list of ten million labels would take 80 MB."""
    next(pipe.stream(range(4), labels=labels, options=GenerationOptions(steps=1), batch_size=2))  # warm up
    tracemalloc.start()
    try:
        stream = pipe.stream(range(10**7), labels=labels, options=GenerationOptions(steps=1), batch_size=2)
        first = next(stream)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert first.seeds == (0, 1)
    assert first.labels == ((1, 1) if labels else (0, 1))
    assert peak < 5e6


# pictures in ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "I;16"])
@pytest.mark.parametrize("size", [(8, 8), (40, 13), (3, 5)])
@pytest.mark.parametrize("channels", [1, 3])
def test_pil_of_any_mode_and_size(mode: str, size: tuple[int, int], channels: int) -> None:
    pipe = _pipelines(channels)
    image = Image.new(mode, size)
    result = pipe.reconstruct([image, image])
    assert result.shape == (2, channels, 8, 8)
    assert 0 <= result.min() <= result.max() <= 1


_cache: dict[int, sg.Pipeline] = {}


def _pipelines(channels: int) -> sg.Pipeline:
    if channels not in _cache:
        _cache[channels] = pipeline_of(image_channels=channels)
    return _cache[channels]


def test_reconstruct_takes_tensors_pictures_and_paths(pipe: sg.Pipeline, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    image.save(tmp_path / "a.png")
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255
    expected = pipe.reconstruct(tensor)
    for given in (image, [image], tmp_path / "a.png", str(tmp_path / "a.png"), [tmp_path / "a.png"]):
        torch.testing.assert_close(pipe.reconstruct(given), expected, atol=1e-5, rtol=0)
    v = pipe.encode(tensor)
    assert v.shape == (1, 4, 4)
    torch.testing.assert_close(v.norm(), torch.tensor(4.0))
    torch.testing.assert_close(pipe.decode(v), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(pipe.decode(3 * v), expected, atol=1e-5, rtol=0)  # decode spherifies
    labelled = pipe.reconstruct(tensor, labels="dog")
    torch.testing.assert_close(pipe.decode(pipe.encode(tensor, labels=1), labels=[1]), labelled, atol=1e-5, rtol=0)
    assert not torch.allclose(labelled, expected, atol=1e-4)
    assert not expected.requires_grad


def test_a_tensor_of_bytes_is_refused_or_read_as_bytes(pipe: sg.Pipeline) -> None:
    """uint8 pictures must not silently overflow."""
    pixels = torch.randint(0, 256, (1, 3, 8, 8), dtype=torch.uint8)
    try:
        result = pipe.reconstruct(pixels)
    except sg.SphereGenError:
        return
    torch.testing.assert_close(result, pipe.reconstruct(pixels.float() / 255), atol=1e-4, rtol=0)


# errors ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "reasons"),
    [
        ({"labels": 3}, ["label 3 is outside the 3 classes", "cat"]),
        ({"labels": -1}, ["label -1 is outside"]),
        ({"labels": "7"}, ["label 7 is outside"]),
        ({"labels": "hors"}, ["unknown class 'hors'", "did you mean 'horse'", "cat, dog, horse"]),
        ({"labels": ["cat", "zebra"]}, ["unknown class 'zebra'"]),
        ({"labels": "-1"}, ["unknown class '-1'"]),
        ({"count": 2, "labels": [1]}, ["1 labels for 2 pictures"]),
        ({"labels": []}, ["at least 1, not 0"]),
        ({"steps": 0}, ["steps is at least 1, not 0"]),
        ({"steps": -2}, ["steps is at least 1, not -2"]),
        ({"steps": 0, "share_noise": False}, ["steps is at least 1, not 0"]),
        ({"count": 0}, ["at least 1, not 0"]),
        ({"count": -1}, ["at least 1, not -1"]),
        ({"seeds": []}, ["at least 1"]),
        ({"seed": -1}, ["not -1"]),
        ({"seeds": [0, -4, 0]}, ["not -4"]),
        ({"seed": 2**63 - 1, "count": 2}, ["2^63"]),
        ({"count": 3, "seeds": [1]}, ["1 seeds for 3 pictures"]),
        ({"batch_size": 0}, ["batch_size"]),
        ({"guidance": -1.0}, ["guidance is not negative"]),
        ({"guidance": 2.0, "guidance_at": "pixels"}, ["did you mean 'pixel'"]),
        ({"schedule": "fix"}, ["did you mean 'fixed'"]),
        ({"schedule": [1, 1]}, ["schedule of 2 numbers"]),
    ],
)
def test_impossible_requests_are_refused(pipe: sg.Pipeline, options: dict[str, Any], reasons: list[str]) -> None:
    refuses(lambda: pipe.generate(**options), *reasons)


def test_an_unconditional_model_refuses_labels(unconditional: sg.Pipeline) -> None:
    image = Image.new("RGB", (8, 8))
    for call in (
        lambda: unconditional.generate(labels=0),
        lambda: unconditional.generate(labels=["cat"]),
        lambda: unconditional.reconstruct(image, labels=1),
        lambda: unconditional.encode(image, labels="cat"),
        lambda: unconditional.classes.id(0),
    ):
        refuses(call, "unconditional", "leave the label out")
    refuses(lambda: unconditional.generate(guidance=1.5), "give labels")


def test_impossible_pictures_are_refused(pipe: sg.Pipeline, tmp_path: Path) -> None:
    refuses(lambda: pipe.reconstruct(torch.zeros(1, 4, 8, 8)), "(4, 8, 8)", "1 or 3 channels")
    refuses(lambda: pipe.reconstruct(torch.zeros(8, 8)), "(8, 8)")
    refuses(lambda: pipe.reconstruct(torch.full((1, 3, 8, 8), -1.0)), "values from -1 to -1", "[0, 1]")
    refuses(lambda: pipe.encode(torch.full((3, 8, 8), float("nan"))), "nan", "[0, 1]")
    refuses(lambda: pipe.encode(torch.zeros(3, 8, 8, dtype=torch.int32)), "int32", "uint8")
    refuses(lambda: pipe.reconstruct([3.5]), "float is no picture")  # type: ignore[list-item]
    refuses(lambda: pipe.reconstruct([]), "no images")
    refuses(lambda: pipe.reconstruct(tmp_path / "nothing.png"), "nothing.png")
    (tmp_path / "broken.png").write_bytes(b"not a picture")
    refuses(lambda: pipe.reconstruct([tmp_path / "broken.png"]), "broken.png")
    refuses(lambda: pipe.reconstruct(torch.zeros(2, 3, 8, 8), labels=[0]), "1 labels for 2 pictures")


@pytest.mark.parametrize("shape", [(1, 4, 9), (1, 5, 4), (4, 4)])
def test_impossible_latents_are_refused(pipe: sg.Pipeline, shape: tuple[int, ...]) -> None:
    refuses(lambda: pipe.decode(torch.zeros(shape)), str(shape))


def test_missing_folders_are_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for path, *reasons in (("nothing", "no model folder", "nothing"), ("empty", "config.json")):
        refuses(lambda path=path: sg.Pipeline.from_pretrained(tmp_path / path, device="cpu"), *reasons)  # type: ignore[misc]
    refuses(lambda: sg.Pipeline.from_pretrained(folder, dtype="bfloat"), "unknown dtype", "did you mean 'bfloat16'")
    refuses(lambda: sg.Pipeline.from_pretrained(folder, dtype=torch.float16), "unknown dtype 'float16'")
    refuses(lambda: sg.Pipeline.from_pretrained(folder, device="tpu9"), "tpu9")


@pytest.mark.parametrize("part", [None, 0.0, 0.001, 0.1, 0.5, 0.9999])
def test_truncated_weights_are_refused(folder: Path, part: float | None) -> None:
    weights = folder / "model.safetensors"
    data = weights.read_bytes()
    if part is None:
        weights.unlink()
    else:
        weights.write_bytes(data[: int(part * len(data))])
    refuses(lambda: sg.load(folder, device="cpu"), "model.safetensors")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "config.json"),
        ("{not json", "config.json"),
        ("\xff", "config.json"),
        ("[1, 2]", "config.json"),
        ("null", "config.json"),
        ('{"model_class": "Unet"}', "model class"),
        ('{"model_class": ["SphereAutoencoder"]}', "model class"),
        ('{"architecture": {}}', "model class"),
        ('{"model_class": "SphereAutoencoder"}', "describes no possible model"),
    ],
)
def test_broken_configurations_are_refused(folder: Path, text: str, reason: str) -> None:
    (folder / "config.json").write_bytes(text.encode("latin-1"))
    refuses(lambda: sg.load(folder, device="cpu"), reason, str(folder))


@pytest.mark.parametrize(
    ("change", "reasons"),
    [
        ({"image_size": "large"}, ["describes no possible model", "image_size"]),
        ({"pixel_head": "deep"}, ["describes no possible model", "pixel_head"]),
        ({"from_the_future": 1}, ["describes no possible model", "from_the_future"]),
        ({"patch_size": 3}, ["describes no possible model", "does not divide"]),
        ({"decoder_mixer_depth": 2}, ["does not fit", "decoder.mixer"]),
        ({"latent_channels": 8}, ["does not fit"]),
    ],
)
def test_configurations_that_do_not_fit_are_refused(folder: Path, change: dict[str, Any], reasons: list[str]) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["architecture"].update(change)
    (folder / "config.json").write_text(json.dumps(config))
    refuses(lambda: sg.load(folder, device="cpu"), *reasons)


@pytest.mark.parametrize(
    ("preprocessing", "reason"),
    [
        ({"background": 3}, "background"),
        ({"background": ["red"]}, "background"),
        ({"fit": "stretch"}, "fit is 'stretch'"),
    ],
)
def test_impossible_preprocessing_is_refused(pipe: sg.Pipeline, preprocessing: dict[str, Any], reason: str) -> None:
    refuses(lambda: sg.Pipeline(pipe.model, ModelInfo(preprocessing=preprocessing), device="cpu"), reason)


def test_pictures_are_padded_as_in_training(pipe: sg.Pipeline) -> None:
    wide = Image.new("RGB", (16, 8), (255, 0, 0))
    padding = sg.Pipeline(pipe.model, ModelInfo(preprocessing={"fit": "pad", "background": [0, 0, 255]}), device="cpu")
    square = Image.new("RGB", (8, 8), (0, 0, 255))
    square.paste((255, 0, 0), (0, 2, 8, 6))
    torch.testing.assert_close(padding.encode(wide), pipe.encode(square), atol=1e-5, rtol=0)
