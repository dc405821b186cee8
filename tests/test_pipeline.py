"""What people use: load, generate, reconstruct, save; outputs, callbacks, and errors that name what was typed."""

from __future__ import annotations

import io
import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

import spheregen as sg
from spheregen.family.sphere_encoder.network import SphereAutoencoder
from spheregen.folders.model_folder import ModelInfo
from spheregen.pipeline import GenerationOptions
from tests.factories import KINDS, images_of, tiny_pipeline


@pytest.fixture(scope="module", params=KINDS)
def pipe(request: pytest.FixtureRequest) -> sg.Pipeline:
    return tiny_pipeline(kind=request.param)


@pytest.fixture(scope="module", params=KINDS)
def unconditional(request: pytest.FixtureRequest) -> sg.Pipeline:
    return tiny_pipeline(0, kind=request.param)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny_pipeline().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def refuses(call: Callable[[], Any], *named: str) -> None:
    """The call fails with one line that names all of these."""
    with pytest.raises(sg.SphereGenError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    for each in named:
        assert each in message


def close(a: Tensor, b: Tensor, within: float = 2e-5) -> None:
    torch.testing.assert_close(a, b, atol=within, rtol=0)


# save and load --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("classes", "options"), [(3, {}), (0, {"image_channels": 1, "pixel_head": "conv"}), (3, {"in_context_tokens": 2})]
)
def test_a_saved_model_makes_the_same_images(classes: int, options: dict[str, Any], tmp_path: Path) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        pipe = tiny_pipeline(classes, **options).to(dtype)
        pipe.save_pretrained(tmp_path / str(dtype) / "model")  # folders are made
        again = sg.Pipeline.from_pretrained(tmp_path / str(dtype) / "model", device="cpu")
        assert (again.dtype, again.model.config, again.info) == (dtype, pipe.model.config, pipe.info)
        assert not again.model.training
        first, second = pipe(3, seed=5), again.generate(3, seed=5)
        assert torch.equal(first.tensor, second.tensor) and first.settings == second.settings
        assert first.tensor.std() > 0.01


def test_load_gives_the_bare_network(folder: Path) -> None:
    model = sg.load(folder, device="cpu")
    assert isinstance(model, SphereAutoencoder) and not model.training
    x = images_of(2) * 2 - 1
    with torch.no_grad():
        assert torch.equal(model(x), tiny_pipeline().model(x))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_a_model_loads_and_moves_into_the_type_that_is_asked_for(folder: Path, dtype: str) -> None:
    loaded = sg.Pipeline.from_pretrained(folder, device="cpu", dtype=dtype)
    moved = sg.Pipeline.from_pretrained(folder).to("cpu", getattr(torch, dtype))
    again = tiny_pipeline().to(dtype=dtype).to("cpu")
    assert loaded.dtype == moved.dtype == again.dtype == getattr(torch, dtype)
    result = moved.generate(2, seed=3, steps=1, guidance=1.0).tensor
    assert result.dtype == torch.float32
    plain = tiny_pipeline().generate(2, seed=3, steps=1, guidance=1.0).tensor
    close(result, plain, 0.1 if dtype == "bfloat16" else 1e-5)
    refuses(lambda: moved.to(dtype="bfloat"), "did you mean 'bfloat16'")
    refuses(lambda: moved.to("tpu9"), "tpu9")


@pytest.mark.parametrize("part", [None, 0.0, 0.1, 0.9999])
def test_truncated_weights_are_refused(folder: Path, part: float | None) -> None:
    weights = folder / "model.safetensors"
    data = weights.read_bytes()
    weights.unlink() if part is None else weights.write_bytes(data[: int(part * len(data))])
    refuses(lambda: sg.load(folder, device="cpu"), "model.safetensors")


@pytest.mark.parametrize(
    "text",
    ["", "{not json", "\xff", "[1, 2]", "null", '{"model_class": "Unet"}', '{"model_class": ["SphereAutoencoder"]}',
     '{"architecture": {}}', '{"model_class": "SphereAutoencoder"}'],
)  # fmt: skip
def test_broken_configurations_are_refused(folder: Path, text: str) -> None:
    (folder / "config.json").write_bytes(text.encode("latin-1"))
    refuses(lambda: sg.load(folder, device="cpu"), str(folder))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"image_size": "large"}, "image_size"),
        ({"from_the_future": 1}, "from_the_future"),
        ({"patch_size": 3}, "patch"),
        ({"decoder_mixer_depth": 2}, "decoder.mixer"),
        ({"latent_channels": 8}, "does not fit"),
    ],
)
def test_configurations_that_do_not_fit_are_refused(folder: Path, change: dict[str, Any], named: str) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["architecture"].update(change)
    (folder / "config.json").write_text(json.dumps(config))
    refuses(lambda: sg.load(folder, device="cpu"), named)


@pytest.mark.parametrize("names", [10**30, "three", {"a": 1}, True])
def test_class_names_are_a_list(folder: Path, names: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"class_names": names}))
    refuses(lambda: sg.load(folder, device="cpu"), "class_names")


@pytest.mark.parametrize("own", [{"guidance_at": 53.0}, {"schedule": 1}, {"steps": "many"}, {"strength": "much"}])
def test_sampling_defaults_of_another_type_are_refused(folder: Path, own: dict[str, Any]) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"sampling": own}))
    refuses(lambda: sg.Pipeline.from_pretrained(folder, device="cpu", quiet=True).generate(1), *own)


@pytest.mark.parametrize("kind", [torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn])
def test_weights_are_of_a_type_that_networks_compute_in(folder: Path, kind: torch.dtype) -> None:
    weights = load_file(folder / "model.safetensors")
    for names in (list(weights)[:1], list(weights)):
        save_file(weights | {name: weights[name].to(kind) for name in names}, folder / "model.safetensors")
        refuses(lambda: sg.load(folder, device="cpu"), "model.safetensors")


@pytest.mark.parametrize("given", [{"background": 3}, {"background": ["red"]}, {"fit": "stretch"}])
def test_impossible_preprocessing_is_refused(given: dict[str, Any]) -> None:
    refuses(lambda: sg.Pipeline(tiny_pipeline().model, ModelInfo(preprocessing=given), device="cpu"), *given)


# generate -------------------------------------------------------------------------------------------------------------


def test_counts_and_seeds(pipe: sg.Pipeline) -> None:
    one = pipe.generate()
    assert one.tensor.shape == (1, 3, 8, 8) and one.seeds == (0,)
    many = pipe.generate(5, seed=10)
    assert many.tensor.shape == (5, 3, 8, 8) and many.tensor.dtype == torch.float32
    assert 0 <= many.tensor.min() <= many.tensor.max() <= 1
    assert many.seeds == (10, 11, 12, 13, 14)
    assert (many.settings["steps"], many.settings["guidance"]) == (2, 1.3)
    assert many.labels is not None
    picked = pipe.generate(seeds=[12, 3, 12], labels=[many.labels[2], 0, many.labels[2]])
    assert picked.seeds == (12, 3, 12)
    for i in (0, 2):
        close(picked.tensor[i], many.tensor[2])
    assert not torch.allclose(picked.tensor[1], picked.tensor[0], atol=1e-3)
    assert len(pipe.generate(labels=[0, 1])) == 2
    assert pipe.generate(1, seed=2**63 - 1).seeds == (2**63 - 1,)


@pytest.mark.parametrize("label", [2, "2", "horse", np.int64(2)])
def test_labels_by_id_digits_and_name(pipe: sg.Pipeline, label: Any) -> None:
    result = pipe.generate(2, labels=label)
    assert result.labels == (2, 2)
    assert torch.equal(result.tensor, pipe.generate(2, labels=torch.tensor([2, 2])).tensor)
    assert pipe.generate(labels=[label, "dog"]).labels == (2, 1)


def test_without_labels_the_classes_are_spread_by_seed(pipe: sg.Pipeline, unconditional: sg.Pipeline) -> None:
    assert pipe.generate(7).labels == (0, 1, 2, 0, 1, 2, 0)
    late = pipe.generate(2, seed=4)
    assert late.labels == (1, 2)
    close(late.tensor, pipe.generate(7).tensor[4:6])
    assert unconditional.generate(2).labels is None


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("steps", [1, 3])
def test_an_image_is_the_same_in_a_batch_of_1_and_64(pipe: sg.Pipeline, steps: int, share: bool) -> None:
    results = [pipe.generate(5, steps=steps, share_noise=share, batch_size=size) for size in (1, 4, 64)]
    for other in results[1:]:
        close(other.tensor, results[0].tensor)
        assert (other.seeds, other.labels) == (results[0].seeds, results[0].labels)


def test_settings_matter_and_fall_back_to_the_models(pipe: sg.Pipeline) -> None:
    default = pipe.generate(2)
    given = pipe.generate(2, steps=2, guidance=1.3, schedule="fixed", guidance_at="both")
    assert torch.equal(given.tensor, default.tensor)
    changes: list[dict[str, Any]] = [
        {"steps": 1},
        {"guidance": 3.0},
        {"schedule": "decay"},
        {"schedule": [0.2]},
        {"schedule": sg.sampling.Angles((20,))},
    ]
    if "pixel" in pipe.model.guidance_places:
        changes.append({"guidance_at": "pixel"})
    for change in changes:
        result = pipe.generate(2, **change)
        assert not torch.allclose(result.tensor, default.tensor, atol=1e-4), change
        assert change.items() <= dict(result.settings).items()
    three = pipe.generate(2, steps=3)
    assert not torch.allclose(pipe.generate(2, steps=3, share_noise=False).tensor, three.tensor, atol=1e-4)


def test_stream_makes_batches_lazily_and_in_constant_memory(pipe: sg.Pipeline) -> None:
    parts = list(pipe.stream(range(5), labels="dog", batch_size=2))
    assert [part.seeds for part in parts] == [(0, 1), (2, 3), (4,)]
    close(torch.cat([part.tensor for part in parts]), pipe.generate(5, labels="dog").tensor)
    options = GenerationOptions(steps=1)
    for labels in (1, None):
        next(pipe.stream(range(4), labels=labels, options=options, batch_size=2))  # warm up
        tracemalloc.start()
        try:
            first = next(pipe.stream(range(10**7), labels=labels, options=options, batch_size=2))
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert first.seeds == (0, 1) and peak < 5e6  # a list of ten million labels would take 80 MB


def test_a_callback_sees_the_images_of_each_step_and_changes_nothing(pipe: sg.Pipeline) -> None:
    x = images_of(2)
    calls: list[tuple[Callable[..., sg.PipelineOutput], int]] = [
        (lambda **o: pipe.generate(2, steps=3, labels=1, trajectory=True, **o), 3),
        (lambda **o: pipe.edit(x, "dog", steps=2, **o), 2),
        (lambda **o: pipe.vary(x[0], 2, **o), 1),
        (lambda **o: pipe.interpolate([1, 2], 3, steps=2, **o), 2),
    ]
    for call, steps in calls:
        seen: list[tuple[int, int, Tensor]] = []
        output = call(callback=lambda *told: seen.append(told))  # noqa: B023
        assert [told[:2] for told in seen] == [(step, steps) for step in range(1, steps + 1)]
        for (_, _, images), expected in zip(seen, output.trajectory, strict=True):
            close(images, expected)
        assert torch.equal(output.tensor, call().tensor)


# outputs --------------------------------------------------------------------------------------------------------------


def test_an_output_is_a_sequence_of_images() -> None:
    output = tiny_pipeline().generate(5, seed=3, steps=2, trajectory=True)
    assert len(output) == 5
    assert [(image.mode, image.size) for image in output] == [("RGB", (8, 8))] * 5
    pixels = np.asarray(output[1]) / 255
    assert np.abs(pixels - output.tensor[1].permute(1, 2, 0).numpy()).max() <= 0.5 / 255 + 1e-6
    part = output[1:3]
    assert (part.seeds, part.labels) == ((4, 5), (1, 2))
    assert torch.equal(part.tensor, output.tensor[1:3])
    assert torch.equal(part.trajectory[0], output.trajectory[0][1:3])
    assert output.grid(columns=5, scale=1).size == (5 * 10 + 2, 12)
    grey = tiny_pipeline(image_channels=1).generate(2)
    assert [image.mode for image in grey.images] == ["L", "L"]


def test_an_output_shows_itself_in_a_notebook() -> None:
    output = tiny_pipeline().generate(70, steps=1)
    with Image.open(io.BytesIO(output._repr_png_())) as shown:
        assert shown.format == "PNG" and shown.size == output[:64].grid().size


# images in ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
def test_pil_of_any_mode_and_size(channels: int) -> None:
    pipe = tiny_pipeline(image_channels=channels)
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "I;16"):
        for size in ((40, 13), (3, 5)):
            result = pipe.reconstruct([Image.new(mode, size)] * 2)
            assert result.shape == (2, channels, 8, 8) and 0 <= result.min() <= result.max() <= 1, mode


def test_reconstruct_takes_tensors_images_and_paths(pipe: sg.Pipeline, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    image.save(tmp_path / "a.png")
    bytes_ = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    tensor = bytes_.float() / 255
    expected = pipe.reconstruct(tensor)
    assert not expected.requires_grad
    for given in (bytes_, image, [image], tmp_path / "a.png", str(tmp_path / "a.png"), [tmp_path / "a.png"]):
        close(pipe.reconstruct(given), expected)
    v = pipe.encode(tensor)
    assert v.shape == (1, 4, 4)
    close(v.norm(), torch.tensor(4.0))
    close(pipe.decode(v), expected)
    close(pipe.decode(3 * v), expected)  # points are put on the sphere
    labelled = pipe.reconstruct(tensor, labels="dog")
    close(pipe.decode(pipe.encode(tensor, labels=1), labels=[1]), labelled)
    assert not torch.allclose(labelled, expected, atol=1e-4)


def test_images_are_padded_as_in_training() -> None:
    pipe = tiny_pipeline()
    padding = sg.Pipeline(pipe.model, ModelInfo(preprocessing={"fit": "pad", "background": [0, 0, 255]}), device="cpu")
    square = Image.new("RGB", (8, 8), (0, 0, 255))
    square.paste((255, 0, 0), (0, 2, 8, 6))
    close(padding.encode(Image.new("RGB", (16, 8), (255, 0, 0))), pipe.encode(square))


# errors ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"labels": 3}, "label 3"),
        ({"labels": "hors"}, "did you mean 'horse'"),
        ({"labels": 0.5}, "0.5"),
        ({"count": 2, "labels": [1]}, "1 labels"),
        ({"labels": []}, "not 0"),
        ({"steps": 0}, "steps"),
        ({"steps": "four"}, "steps"),
        ({"count": -1}, "not -1"),
        ({"seed": -1}, "not -1"),
        ({"seed": 1.5}, "1.5"),
        ({"seed": 2**63 - 1, "count": 2}, "2^63"),
        ({"count": 3, "seeds": [1]}, "1 seeds"),
        ({"batch_size": 0}, "batch_size"),
        ({"guidance": -1.0}, "guidance"),
        ({"share_noise": 1}, "share_noise"),
        ({"guidance": 2.0, "guidance_at": "pixels"}, "did you mean 'pixel'"),
        ({"schedule": "fix"}, "did you mean 'fixed'"),
        ({"schedule": [1, 1]}, "schedule of 2 numbers"),
    ],
)
def test_impossible_requests_are_refused(pipe: sg.Pipeline, options: dict[str, Any], named: str) -> None:
    refuses(lambda: pipe.generate(**options), named)


@pytest.mark.parametrize(
    ("method", "name", "meant"),
    [
        ("__call__", "guidance_scale", "use guidance"),
        ("generate", "num_inference_steps", "use steps"),
        ("generate", "stepps", "did you mean 'steps'"),
        *((method, "label", "use labels") for method in ("edit", "crossover", "vary", "inpaint", "encode", "stream")),
        ("interpolate", "num_frames", "use frames"),
        ("encode", "prompt", "use labels"),
        ("from_pretrained", "torch_dtype", "use dtype"),
    ],
)
def test_arguments_of_other_names_are_refused_with_the_right_one(method: str, name: str, meant: str) -> None:
    call: Any = getattr(tiny_pipeline(), method)
    refuses(lambda: call(**{name: 1}), f"'{name}'", meant)
    with pytest.raises(TypeError, match=name):
        call(**{name: 1})


def test_an_unconditional_model_refuses_labels(unconditional: sg.Pipeline) -> None:
    image = Image.new("RGB", (8, 8))
    for call in (
        lambda: unconditional.generate(labels=0),
        lambda: unconditional.generate(labels=["cat"]),
        lambda: unconditional.reconstruct(image, labels=1),
        lambda: unconditional.encode(image, labels="cat"),
    ):
        refuses(call, "unconditional")
    refuses(lambda: unconditional.generate(guidance=1.5), "labels")


def test_two_classes_of_one_name_are_told_apart_by_number() -> None:
    pipe = sg.Pipeline(tiny_pipeline().model, ModelInfo(class_names=("crane", "dog", "crane")), device="cpu")
    refuses(lambda: pipe.generate(labels="crane"), "0 and 2")
    assert pipe.generate(labels=2).labels == (2,)


def test_impossible_images_and_latents_are_refused(pipe: sg.Pipeline, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"not a picture")
    given: list[tuple[Any, str]] = [
        (torch.zeros(1, 4, 8, 8), "(4, 8, 8)"),
        (torch.zeros(8, 8), "(8, 8)"),
        (torch.full((1, 3, 8, 8), -1.0), "[0, 1]"),
        (torch.full((3, 8, 8), float("nan")), "nan"),
        (torch.zeros(3, 8, 8, dtype=torch.int32), "int32"),
        ([3.5], "float"),
        ([], "no images"),
        (tmp_path / "nothing.png", "nothing.png"),
        ([tmp_path / "broken.png"], "broken.png"),
    ]
    for images, named in given:
        refuses(lambda images=images: pipe.reconstruct(images), named)  # type: ignore[misc]
    refuses(lambda: pipe.reconstruct(torch.zeros(2, 3, 8, 8), labels=[0]), "1 labels for 2")
    for shape in ((1, 4, 9), (1, 5, 4), (4, 4)):
        refuses(lambda shape=shape: pipe.decode(torch.zeros(shape)), str(shape))  # type: ignore[misc]
