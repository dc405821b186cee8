"""Images changed, joined, varied, interpolated and restored by a pipeline; how images say that they were made."""

from __future__ import annotations

import dataclasses
import json
import math
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import spheregen as sg
from spheregen import batching
from spheregen.batching import images_at_once, in_batches
from spheregen.data import encode_png, read_metadata, save_png
from spheregen.errors import DataError
from spheregen.pipeline.output import read_record
from spheregen.sampling import crossover_mask, seeded_noise
from spheregen.sphere import angle_between
from tests.factories import KINDS, images_of, tiny_pipeline
from tests.sampling.latent_generator import LatentGenerator
from tests.sampling.test_restoration import dim
from tests.test_pipeline import close, refuses

Call = Callable[..., sg.PipelineOutput]

A, B = images_of(), images_of(seed=1)
HOLE = torch.zeros(1, 8, 8)
HOLE[:, 2:6, 3:8] = 1
IMAGES: dict[str, Call] = {  # methods of one image each
    "edit": lambda pipe, x, **o: pipe.edit(x, **o),
    "crossover": lambda pipe, x, **o: pipe.crossover(x, x.flip(0), **o),
    "inpaint": lambda pipe, x, **o: pipe.inpaint(x, HOLE, **o),
    "upscale": lambda pipe, x, **o: pipe.upscale(x, 2, **o),
}
RESTORATIONS = ("inpaint", "upscale")
ALL: dict[str, Call] = {
    **IMAGES,
    "vary": lambda pipe, x, **o: pipe.vary(x[0], 3, **o),
    "interpolate": lambda pipe, x, **o: pipe.interpolate([x[0], x[1]], 3, **o),
}


@pytest.fixture(scope="module", params=KINDS)
def pipe(request: pytest.FixtureRequest) -> sg.Pipeline:
    return tiny_pipeline(kind=request.param)


@pytest.fixture(scope="module", params=KINDS)
def unconditional(request: pytest.FixtureRequest) -> sg.Pipeline:
    return tiny_pipeline(0, kind=request.param)


def predicting(pipe: sg.Pipeline) -> torch.nn.Module:
    """The network that a step ends with."""
    model = pipe.model
    network = model.denoiser if isinstance(model, LatentGenerator) else model.decoder  # type: ignore[attr-defined]
    assert isinstance(network, torch.nn.Module)
    return network


# what all of them have in common --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
def test_shapes_seeds_trajectory_and_settings(pipe: sg.Pipeline, unconditional: sg.Pipeline, name: str) -> None:
    for given in (pipe, unconditional):
        for steps in (1, 3):
            own = {"angle": 20.0} if name in RESTORATIONS else {"strength": 0.3}
            output = ALL[name](given, A, steps=steps, seed=5, **own)
            assert output.tensor.shape == (3, 3, 8, 8) and output.tensor.dtype == torch.float32
            assert output.tensor.device.type == "cpu" and not output.tensor.requires_grad
            assert 0 <= output.tensor.min() <= output.tensor.max() <= 1
            assert len(output.trajectory) == steps and torch.equal(output.trajectory[-1], output.tensor)
            assert output.labels is None  # of the null class there is nothing to say
            assert {"edit": name, "steps": steps, "guidance": 1.0, **own}.items() <= output.settings.items()
            assert output.seeds == (5, 6, 7) or name == "interpolate"
            assert output.settings["schedule"] == ("decay" if name in RESTORATIONS else "fixed")


@pytest.mark.parametrize("name", ALL)
def test_the_settings_say_how_it_was_made(pipe: sg.Pipeline, name: str) -> None:
    own: dict[str, dict[str, Any]] = {
        "crossover": {"mask": "left-right"},
        "vary": {"angle": 30.0},
        "interpolate": {"path": "slerp", "frames": 3},
        "upscale": {"factor": 2},
    }
    place, *others = pipe.model.guidance_places
    options: dict[str, Any] = {"schedule": "decay", "guidance": 2.0, "guidance_at": place, "share_noise": False}
    output = ALL[name](pipe, A, labels="dog", steps=3, **options)
    assert {**options, **own.get(name, {})}.items() <= output.settings.items()
    assert json.loads(json.dumps(dict(output.settings))) == output.settings
    for change in (  # and each of them matters
        {"schedule": "fixed"},
        {"guidance": 1.0},
        *({"guidance_at": other} for other in others),
        {"angle": 70.0} if name in RESTORATIONS else {"strength": 0.9},
        {"steps": 4},
        {"share_noise": True},
    ):
        other = ALL[name](pipe, A, **{"labels": "dog", "steps": 3, **options, **change})
        assert not torch.allclose(other.tensor, output.tensor, atol=1e-5), change


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "call",
    [
        lambda pipe: pipe.edit(images_of(8, seed=3), [0, 1] * 4, steps=2, share_noise=False),
        lambda pipe: pipe.crossover(images_of(5), images_of(5, seed=1), mask="diagonal", labels="dog", steps=2),
        lambda pipe: pipe.inpaint(images_of(5), HOLE, steps=2),
        lambda pipe: pipe.upscale(images_of(5), 2, steps=2),
        lambda pipe: pipe.vary(A[0], 5, steps=2, labels=1),
        lambda pipe: pipe.interpolate([3, 4], 5, steps=2, share_noise=False),
        lambda pipe: pipe.interpolate([3, A[0], 4, A[1]], 3, steps=2),
    ],
    ids=range(7),
)
def test_images_do_not_depend_on_the_batch_size(call: Call, kind: str) -> None:
    results = []
    for size in (64, 3, 1):
        pipe = tiny_pipeline(kind=kind)
        pipe.batch_size = size
        results.append(call(pipe))
    for other in results[1:]:
        close(other.tensor, results[0].tensor)
        assert (other.seeds, other.labels, other.settings) == (results[0].seeds, results[0].labels, results[0].settings)
        for images, expected in zip(other.trajectory, results[0].trajectory, strict=True):
            close(images, expected)


@pytest.mark.parametrize("name", IMAGES)
def test_an_image_depends_on_its_own_seed_alone(pipe: sg.Pipeline, name: str) -> None:
    together = IMAGES[name](pipe, A.roll(1, 0), seed=10).tensor
    assert torch.equal(IMAGES[name](pipe, A.roll(1, 0), seed=10).tensor, together)
    if name != "crossover":  # which would have another partner
        close(IMAGES[name](pipe, A.roll(1, 0)[2:], seed=12).tensor[0], together[2])
    assert not torch.allclose(IMAGES[name](pipe, A.roll(1, 0), seed=11).tensor, together, atol=1e-4)


def test_a_guidance_and_a_schedule_of_your_own(pipe: sg.Pipeline, tmp_path: Path) -> None:
    for name, call in ALL.items():
        output = call(pipe, A, steps=2, guidance=dim, schedule=lambda t, steps: 0.5)
        assert output.tensor.sub(0.5).abs().max() < 0.1 + 1e-6 or name in RESTORATIONS, name
        assert "dim" in output.metadata(0)["settings"]
        output.save(tmp_path / name)


# step noise -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("name", ["edit", "generate", "inpaint"])
def test_given_noise_is_the_seeds_own(pipe: sg.Pipeline, name: str, share: bool) -> None:
    steps = 3
    drawn = seeded_noise(range(4, 7), pipe.model.latent_shape, steps - (name == "generate"), share=share)
    given = drawn.steps if isinstance(drawn.steps, Tensor) else list(drawn.steps)
    if name == "generate":
        expected = pipe.generate(3, seed=4, steps=steps, share_noise=share, labels=1)
        for batch_size in (1, 2, None):
            output = pipe.generate(noise=drawn.initial, step_noise=given, steps=steps, labels=1, batch_size=batch_size)
            close(output.tensor, expected.tensor)
        assert not torch.allclose(pipe.generate(3, steps=steps, labels=1).tensor, expected.tensor, atol=1e-3)
        only = pipe.generate(3, seed=4, steps=steps, share_noise=share, labels=1, noise=drawn.initial)
        assert torch.equal(only.tensor, expected.tensor)
        return
    expected = IMAGES[name](pipe, A, seed=4, steps=steps, share_noise=share)
    output = IMAGES[name](pipe, A, seed=99, steps=steps, step_noise=given)
    assert torch.equal(output.tensor, expected.tensor)
    assert not torch.allclose(IMAGES[name](pipe, A, seed=99, steps=steps).tensor, expected.tensor, atol=1e-4)


@pytest.mark.parametrize("shape", [(3, 4, 5), (1, 4, 4), ()])
def test_noise_of_another_shape_is_refused(pipe: sg.Pipeline, shape: tuple[int, ...]) -> None:
    bad, good = torch.zeros(shape), torch.zeros(3, 4, 4)
    expected = f"noise has shape {shape} instead of (3, 4, 4)"
    refuses(lambda: pipe.generate(3, noise=bad), expected)
    refuses(lambda: pipe.generate(3, step_noise=bad), expected)
    refuses(lambda: pipe.generate(3, steps=3, step_noise=[good, bad]), expected)
    refuses(lambda: pipe.edit(A, step_noise=bad), expected)
    refuses(lambda: pipe.edit(A, steps=2, step_noise=[good, bad]), expected)
    refuses(lambda: pipe.generate(3, steps=4, step_noise=[good] * 2), "2 step noises for 3")
    refuses(lambda: pipe.edit(A, steps=4, step_noise=[good] * 3), "3 step noises for 4")


# models that predict latents ------------------------------------------------------------------------------------------


def decodes_of(pipe: sg.Pipeline) -> list[int]:
    """The batch sizes of all images that the tokenizer decodes from now on."""
    counted: list[int] = []
    decoder = pipe.model.tokenizer.decoder  # type: ignore[attr-defined]
    decoder.register_forward_hook(lambda _, arguments, __: counted.append(len(arguments[0])))
    return counted


@pytest.mark.parametrize("name", ["generate", *ALL])
def test_the_pictures_of_steps_are_decoded_when_asked_for(name: str) -> None:
    pipe = tiny_pipeline(kind="latents")
    pipe.batch_size = 2
    counted = decodes_of(pipe)
    if name == "generate":
        output = pipe.generate(3, steps=3, trajectory=True)
    else:
        output = ALL[name](pipe, A, steps=3, labels="dog")
    each_step = name == "upscale"  # agrees with the small pictures at every step
    assert counted == [2] * (3 if each_step else 1) + [1] * (3 if each_step else 1)
    trajectory = output.trajectory
    assert torch.equal(trajectory[-1], output.tensor) and output.trajectory is trajectory
    assert sum(counted) == 3 * 3  # each picture of each step once
    for steps, images in enumerate(trajectory, 1):
        assert images.shape == output.tensor.shape and not images.requires_grad
        assert images.dtype == torch.float32 and 0 <= images.min() <= images.max() <= 1
        if name == "generate" and steps < 3:
            close(images, pipe.generate(3, steps=steps).tensor)


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_a_place_that_a_model_has_not_is_refused(guidance: float) -> None:
    pipe = tiny_pipeline(kind="latents")
    options: dict[str, Any] = {"guidance": guidance, "guidance_at": "pixel"}
    refuses(lambda: pipe.generate(2, **options), "no pixel guidance", "set guidance_at to latent or both")
    for call in ALL.values():
        refuses(lambda call=call: call(pipe, A, labels="dog", **options), "no pixel guidance")  # type: ignore[misc]
    both, latent = (pipe.generate(2, guidance=guidance, guidance_at=place).tensor for place in ("both", "latent"))
    assert torch.equal(both, latent)


# each of them ---------------------------------------------------------------------------------------------------------


def test_the_models_schedule_is_for_generation_alone() -> None:
    pipe = tiny_pipeline()
    pipe.info = dataclasses.replace(pipe.info, sampling={"schedule": "decay", "steps": 3, "guidance_at": "latent"})
    assert pipe.generate(1).settings["schedule"] == "decay"
    output = pipe.edit(A)
    assert output.settings["schedule"] == "fixed" and output.settings["steps"] == 4
    assert output.settings["guidance_at"] == "latent"


def test_a_mask_picture_equals_the_named_mask(pipe: sg.Pipeline, tmp_path: Path) -> None:
    expected = pipe.crossover(A, B, mask="left-right").tensor
    shape = crossover_mask("left-right", 8)[0]
    drawn = Image.fromarray((shape[0] * 255).byte().numpy())
    drawn.save(tmp_path / "mask.png")
    masks: dict[str, list[Any]] = {
        "image": [drawn, shape, shape[0].numpy(), np.asarray(drawn)],
        str(tmp_path / "mask.png"): [tmp_path / "mask.png", str(tmp_path / "mask.png")],
    }
    for shown, given in masks.items():
        for mask in given:
            output = pipe.crossover(A, B, mask=mask)
            assert torch.equal(output.tensor, expected)
            assert output.settings["mask"] == shown


def test_a_crossover_is_an_edit_of_the_joined_picture(pipe: sg.Pipeline) -> None:
    joined = torch.cat([A[..., :4], B[..., 4:]], dim=-1)
    close(pipe.crossover(A, B, seed=3, labels="cat").tensor, pipe.edit(joined, "cat", seed=3).tensor)
    same = pipe.crossover(A, A, mask="diagonal", seed=3)
    close(same.tensor, pipe.edit(A, seed=3).tensor)


@pytest.mark.parametrize("angle", [5.0, 30.0, 90.0])
def test_variations_decode_points_at_their_angle(pipe: sg.Pipeline, angle: float) -> None:
    seen: list[Tensor] = []
    hook = predicting(pipe).register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    output = pipe.vary(A[0], 5, angle=angle, seed=3)
    hook.remove()
    v = pipe.encode(A[0])
    assert (angle_between(v.expand(5, 4, 4), seen[0]) - angle).abs().max() < 1e-3
    close(pipe.decode(seen[0]), output.tensor)
    one = pipe.vary(A[0], 1, angle=angle, seed=5).tensor  # each direction is its seed's
    close(one[0], output.tensor[2])
    refined = pipe.vary(A[0], 5, angle=angle, seed=3, steps=3)
    close(refined.trajectory[0], output.tensor)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("path", "steps", "schedule", "share"),
    [("slerp", 3, "fixed", True), ("slerp", 3, "decay", False), ("lerp", 1, "fixed", True)],
)
def test_the_ends_between_seeds_are_what_generate_makes(
    path: str, steps: int, share: bool, schedule: str, kind: str
) -> None:
    for classes in (3, 0):
        pipe = tiny_pipeline(classes, kind)
        # by default too, the steps go as the model's
        pipe.info = dataclasses.replace(pipe.info, sampling={**pipe.info.sampling, "schedule": schedule})
        output = pipe.interpolate([7, 11], 5, path=path, steps=steps, share_noise=share)
        expected = pipe.generate(seeds=[7, 11], steps=steps, share_noise=share)
        close(output.tensor[[0, -1]], expected.tensor, 1e-4)
        assert not torch.allclose(output.tensor[2], output.tensor[0], atol=1e-3)


@pytest.mark.parametrize("label", ["dog", None])
def test_the_ends_between_photos_are_reconstructions(pipe: sg.Pipeline, label: str | None) -> None:
    for ends in (A[:2], [A[0], A[1]], [A[0], (A[1] * 255).byte()]):
        output = pipe.interpolate(ends, 4, labels=label, guidance=1.0)
        close(output.tensor[[0, -1]], pipe.reconstruct(A[:2], label))
        assert output.labels == (None if label is None else (1,) * 4)


@pytest.mark.parametrize("steps", [1, 2])
def test_four_corners(pipe: sg.Pipeline, steps: int) -> None:
    seeds, frames = [3, 4, 5, 6], 4
    output = pipe.interpolate(seeds, frames, steps=steps)
    assert output.tensor.shape == (frames**2, 3, 8, 8) and len(output.seeds) == frames**2
    assert len(output.trajectory) == steps
    square = output.tensor.view(frames, frames, 3, 8, 8)
    corners = square[[0, 0, -1, -1], [0, -1, 0, -1]]
    close(corners, pipe.generate(seeds=seeds, steps=steps).tensor, 1e-4)
    close(square[0], pipe.interpolate(seeds[:2], frames, steps=steps).tensor, 1e-4)
    labelled = pipe.interpolate([3] * 4, 2, labels=[0, 1, 2, 1])
    close(labelled.tensor, pipe.generate(seeds=[3] * 4, labels=[0, 1, 2, 1], steps=1).tensor, 1e-4)


# errors ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"steps": 0}, "steps"),
        ({"steps": "two"}, "steps"),
        ({"strength": -0.1}, "strength"),
        ({"schedule": "fix"}, "did you mean 'fixed'"),
        ({"schedule": [1, 1, 1], "steps": 2}, "schedule of 3 numbers"),
        ({"schedule": lambda t, steps: -1.0, "steps": 2}, "finite numbers"),
        ({"guidance_at": "pixels", "labels": 1}, "did you mean 'pixel'"),
        ({"labels": "hors"}, "did you mean 'horse'"),
        ({"labels": [0, 1, 2, 0]}, "4 labels"),
        ({"seed": -1}, "not -1"),
        ({"stepps": 3}, "did you mean 'steps'"),
    ],
)
def test_impossible_options_are_refused(pipe: sg.Pipeline, options: dict[str, Any], named: str) -> None:
    for call in ALL.values():
        refuses(lambda call=call: call(pipe, A, **options), named)  # type: ignore[misc]


@pytest.mark.parametrize("name", ALL)
def test_guidance_wants_labels_and_labels_want_classes(
    pipe: sg.Pipeline, unconditional: sg.Pipeline, name: str
) -> None:
    refuses(lambda: ALL[name](unconditional, A, labels="cat"), "unconditional")
    refuses(lambda: ALL[name](unconditional, A, guidance=1.5), "give labels")
    if name != "interpolate":
        refuses(lambda: ALL[name](pipe, A, guidance=1.5), "give labels")


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda pipe: pipe.edit([]), "no images"),
        (lambda pipe: pipe.crossover(A, B[:2]), "3 and 2"),
        (lambda pipe: pipe.crossover(A, B, mask="left-rigth"), "did you mean 'left-right'"),
        (lambda pipe: pipe.crossover(A, B, mask=Path("none.png")), "none.png"),
        (lambda pipe: pipe.crossover(A, B, mask=torch.zeros(1, 5, 5)), "5 x 5"),
        (lambda pipe: pipe.vary(A), "one image"),
        (lambda pipe: pipe.vary(A[0], 0), "not 0"),
        (lambda pipe: pipe.vary(A[0], angle=200), "200"),
        (lambda pipe: pipe.interpolate([1, 2], 1), "frames"),
        (lambda pipe: pipe.interpolate([1, 2, 3], 4), "not 3"),
        (lambda pipe: pipe.interpolate([1, -2], 4), "not -2"),
        (lambda pipe: pipe.interpolate([1, 2], 4, path="slurp"), "did you mean 'slerp'"),
        (lambda pipe: pipe.interpolate([1, 2], 4, labels=["cat"]), "1 labels"),
        (lambda pipe: pipe.interpolate([3.5, 2], 4), "float"),
        (lambda pipe: sg.Pipeline(pipe.model, device="cpu", batch_size=0), "batch_size"),
    ],
)
def test_impossible_requests_are_refused(call: Call, named: str) -> None:
    refuses(lambda: call(tiny_pipeline()), named)


# batches --------------------------------------------------------------------------------------------------------------


def full_beyond(most: int, sizes: list[int]) -> Callable[[slice], tuple[int, int]]:
    """Runs that fail as a full GPU does."""

    def run(part: slice) -> tuple[int, int]:
        sizes.append(part.stop - part.start)
        if sizes[-1] > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return part.start, part.stop

    return run


@pytest.mark.parametrize(("count", "size", "most"), [(1, 5, 64), (7, 5, 1), (7, 100, 3), (20, 8, 5), (20, 100, 2)])
def test_a_full_device_gets_smaller_parts(count: int, size: int, most: int) -> None:
    sizes: list[int] = []
    results = [result for part, result in in_batches(count, size, full_beyond(most, sizes))]
    assert [i for start, stop in results for i in range(start, stop)] == list(range(count))  # each once, in order
    done = [stop - start for start, stop in results]
    assert max(done) <= min(size, most, count)
    assert max(done) > min(size, most, count) / 2 - 1  # halved, no more
    failures = [index for index, tried in enumerate(sizes) if tried > most]
    assert len(failures) <= math.ceil(math.log2(max(1, min(size, count) / most)))
    assert failures == list(range(len(failures)))  # a size that failed is not tried again


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["generate", "edit", "upscale"])
def test_a_pipeline_goes_on_where_memory_is_short(name: str, kind: str) -> None:
    def call(pipe: sg.Pipeline) -> Tensor:
        return (pipe.generate(5, steps=1) if name == "generate" else IMAGES[name](pipe, images_of(5), steps=1)).tensor

    def short_of(most: int) -> sg.Pipeline:
        pipe = tiny_pipeline(kind=kind)

        def fill(module: torch.nn.Module, arguments: tuple[Tensor, ...]) -> None:
            if arguments[0].shape[0] > most:
                raise torch.OutOfMemoryError("CUDA out of memory")

        predicting(pipe).register_forward_pre_hook(fill)
        return pipe

    close(call(short_of(2)), call(tiny_pipeline(kind=kind)))
    refuses(lambda: call(short_of(0)), "not even one image")


@pytest.mark.parametrize("kind", KINDS)
def test_batches_follow_the_memory(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = tiny_pipeline(kind=kind)
    cpu = torch.device("cpu")

    def with_memory(available: int | None) -> int:
        monkeypatch.setattr(batching, "available_memory", lambda device: available)
        return images_at_once(pipe.model, cpu)

    sizes = [with_memory(available) for available in (0, 10**4, 10**5, 10**6, 10**9, 10**12)]
    assert sizes[0] == 1 and sizes == sorted(sizes) and len(set(sizes)) > 2
    assert with_memory(None) == sizes[-1]  # more is no faster
    assert images_at_once(pipe.model, cpu, guided=True) == sizes[-1] // 2  # condition and null class go together
    with monkeypatch.context() as context:
        context.setattr(batching, "_MOST", 1 << 40)
        wide = images_at_once(pipe.model, cpu)
        assert images_at_once(tiny_pipeline(kind=kind).to(dtype="bfloat16").model, cpu) > wide
    if kind == "images":
        larger = tiny_pipeline(latent_channels=64)
        monkeypatch.setattr(batching, "available_memory", lambda device: 3 * 10**5)
        assert images_at_once(larger.model, cpu) <= images_at_once(pipe.model, cpu)
    monkeypatch.setattr(batching, "available_memory", lambda device: 0)
    fresh = tiny_pipeline(kind=kind)
    counted: list[int] = []
    predicting(fresh).register_forward_pre_hook(lambda _, arguments: counted.append(len(arguments[0])))
    close(fresh.generate(3, guidance=1.0).tensor, pipe.generate(3, guidance=1.0).tensor)
    assert set(counted) == {1}


def test_progress_is_told_for_several_batches(capsys: pytest.CaptureFixture[str]) -> None:
    pipe = tiny_pipeline()
    pipe.progress, pipe.batch_size = True, 2
    pipe.edit(A, steps=1)
    assert "3/3" in capsys.readouterr().err
    pipe.batch_size = 3
    pipe.edit(A, steps=1)
    assert capsys.readouterr().err == ""


# records and files ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("classes", "options"),
    [(0, {}), (3, {"steps": 3, "schedule": [0.5, 0.25]}), (3, {"share_noise": False, "guidance_at": "pixel"})],
)
def test_a_saved_picture_can_be_made_again(classes: int, options: dict[str, Any], tmp_path: Path) -> None:
    pipe = tiny_pipeline(classes)
    pipe.name, pipe.fingerprint = "digits", "abc"
    output = pipe.generate(3, seed=40, **options)
    output.save(tmp_path)
    for number, path in enumerate(sorted(tmp_path.glob("*.png"))):
        assert path.name == f"{40 + number:06d}.png"
        record = read_record(path)
        assert (record.model, record.fingerprint, record.seed) == ("digits", "abc", 40 + number)
        assert record.label == (None if output.labels is None else output.labels[number])
        assert record.settings == output.settings
        again = pipe.generate(seeds=[record.seed], labels=record.label, **record.settings)
        close(again.tensor[0], output.tensor[number])
        text = read_metadata(path)
        assert text == output.metadata(number)
        if classes:
            assert record.label is not None
            assert text["class"] == pipe.info.class_names[record.label]


OF_START: dict[str, Any] = {"strength": 1.0, "prior": "sphere", "temperature": 1.0, "prior_angle": 0.0}
GOOD: dict[str, Any] = {
    **{"steps": 2, "schedule": "fixed", "guidance": 1.3, "guidance_at": "both", "share_noise": True},
    **OF_START,
}
DAMAGED: list[dict[str, str | None]] = [
    {"seed": None},
    {"settings": None},
    {"seed": "many"},
    {"seed": "9" * 5000},
    {"label": "cat"},
    *[{"settings": text} for text in ("", "{", "null", "5", '"edit"', "[]", "{}", "[" * 99_999)],
    {"settings": " " * 200_000 + json.dumps(GOOD)},
    *[{"settings": json.dumps(GOOD | {name: None})} for name in GOOD],
    *[{"settings": json.dumps(GOOD | more)} for more in ({"steps": "2"}, {"edit": "vary"}, {"noise": "given"})],
]


def test_damaged_records_are_refused(tmp_path: Path) -> None:
    output, path = tiny_pipeline().generate(1, labels=1), tmp_path / "a.png"
    for changes in [{}, *DAMAGED]:
        text = {key: value for key, value in {**output.metadata(0), **changes}.items() if value is not None}
        save_png(output.images[0], path, text)
        if not changes:
            assert read_record(path).settings == GOOD
            of_a_version_before = {name: value for name, value in GOOD.items() if name not in OF_START}
            save_png(output.images[0], path, {**text, "settings": json.dumps(of_a_version_before)})
            assert read_record(path).settings == GOOD
            continue
        with pytest.raises(DataError, match=path.name) as caught:
            read_record(path)
        assert "\n" not in str(caught.value)


def test_what_cannot_be_repeated_says_so(tmp_path: Path) -> None:
    pipe = tiny_pipeline()
    pipe.generate(1, step_noise=torch.zeros(1, 4, 4)).save(tmp_path / "noise.png")
    image = Image.new("RGB", (8, 8))
    image.save(tmp_path / "plain.png")
    image.save(tmp_path / "photo.jpg")
    (tmp_path / "text.png").write_text("no image")
    for name, call in ALL.items():
        call(pipe, A, steps=1)[:1].save(tmp_path / f"{name}.png")
    for name in ("noise.png", "plain.png", "photo.jpg", "text.png", "none.png", *(f"{each}.png" for each in ALL)):
        with pytest.raises(DataError, match=name):
            read_record(tmp_path / name)


@pytest.mark.parametrize("labelled", [True, False])
def test_output_in_a_folder_a_zip_and_a_tar(pipe: sg.Pipeline, tmp_path: Path, labelled: bool) -> None:
    output = pipe.edit(A, ["cat", "dog", "cat"] if labelled else None, seed=7, steps=1)
    keys = ["000007", "000008", "000009"]
    output.save(tmp_path / "made")
    output.save(str(tmp_path / "made.zip"))
    output.save(tmp_path / "made.tar")
    pngs = [encode_png(image, output.metadata(i)) for i, image in enumerate(output.images)]
    assert {path.name: path.read_bytes() for path in (tmp_path / "made").iterdir()} == {
        f"{key}.png": png for key, png in zip(keys, pngs, strict=True)
    }
    with zipfile.ZipFile(tmp_path / "made.zip") as archive:
        folders = ["cat/", "dog/", "cat/"] if labelled else [""] * 3
        assert {name: archive.read(name) for name in archive.namelist()} == {
            f"{folder}{key}.png": png for folder, key, png in zip(folders, keys, pngs, strict=True)
        }
    with tarfile.open(tmp_path / "made.tar") as archive:
        members = {member.name: archive.extractfile(member).read() for member in archive}  # type: ignore[union-attr]
    for i, (key, png) in enumerate(zip(keys, pngs, strict=True)):
        assert members[f"{key}.png"] == png
        assert json.loads(members[f"{key}.json"]) == output.metadata(i)
        assert members.get(f"{key}.cls") == (b"010"[i : i + 1] if labelled else None)


def test_a_seed_that_occurs_twice_has_two_files(pipe: sg.Pipeline, tmp_path: Path) -> None:
    pipe.generate(seeds=[12, 3, 12], labels=["cat", "cat", "dog"]).save(tmp_path / "made")
    assert sorted(path.name for path in (tmp_path / "made").iterdir()) == ["000000.png", "000001.png", "000002.png"]


def test_output_as_a_sheet_or_as_one_image(tmp_path: Path) -> None:
    output = tiny_pipeline().generate(4, seed=3, steps=1)
    output.save(tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == output.grid().size
    output[2:3].save(tmp_path / "one.png")
    assert read_record(tmp_path / "one.png").seed == 5
    with Image.open(tmp_path / "one.png") as image:
        assert np.array_equal(np.asarray(image), np.asarray(output[2]))
    (tmp_path / "file").write_text("")
    refuses(lambda: output.save(tmp_path / "file" / "made"), "file")
