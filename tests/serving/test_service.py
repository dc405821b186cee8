"""The HTTP service: what a request says is what `Pipeline` does, and what is wrong with one is a clear line."""

from __future__ import annotations

import io
import json
import logging
import re
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import spheregen as sg
from spheregen.pipeline.output import read_record
from spheregen.pipeline.tasks import task_operator
from spheregen.restoration import BlockMean, Blur, Denoise, gaussian_kernel
from tests.factories import tiny_pipeline, tiny_refined, tiny_text_pipeline
from tests.serving.calls import X, encoded, events, images, npy, opened, photo, picture, text

for _name in ("fastapi", "fastapi_offline", "prometheus_client", "greenlet", "httpx"):
    pytest.importorskip(_name, reason="needs the extra serve, and httpx")
from fastapi.testclient import TestClient  # noqa: E402

from spheregen.serving.observing import LOGGER  # noqa: E402
from spheregen.serving.service import create_app  # noqa: E402
from spheregen.serving.settings import Limits, Settings  # noqa: E402

PIPES = {"tiny": tiny_pipeline(), "flow": sg.Pipeline(tiny_refined(), device="cpu"), "plain": tiny_pipeline(0)}
TEXTS = tiny_text_pipeline()
LIMITS = Limits(images=9, steps=20, pixels=10_000, file_bytes=100_000, body_bytes=300_000)


def client_of(pipes: dict[str, sg.Pipeline] = PIPES, limits: Limits = LIMITS, **how: Any) -> TestClient:
    return TestClient(
        create_app(Settings(models=tuple(pipes), limits=limits, **how), pipes), base_url="http://127.0.0.1"
    )


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    with client_of() as found:
        yield found


@pytest.fixture(scope="module")
def texts() -> Iterator[TestClient]:
    with client_of({"texts": TEXTS}) as found:
        yield found


def post(client: TestClient, route: str, **body: Any) -> Any:
    answer = client.post(f"/v1/{route}", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def close(a: Tensor, b: Tensor, within: float = 2e-5) -> None:
    torch.testing.assert_close(a, b, atol=within, rtol=0)


def refused(answer: Any, status: int, *named: str) -> None:
    """The answer is a refusal of one line, which names all of these."""
    assert answer.status_code == status, answer.text
    problem = answer.json()["error"]
    assert problem["message"] and "\n" not in problem["message"] and problem["code"] == str(status)
    for each in named:
        assert each in problem["message"]


# what it makes --------------------------------------------------------------------------------------------------------


REQUESTS: dict[str, tuple[dict[str, Any], Any]] = {
    "generate": (
        {"count": 2, "labels": ["cat", 2], "seed": 4, "steps": 3, "guidance": 1.5, "schedule": "decay"},
        lambda pipe: pipe.generate(2, labels=["cat", 2], seed=4, steps=3, guidance=1.5, schedule="decay"),
    ),
    "edit": (
        {"images": [photo(0), photo(1)], "labels": "dog", "strength": 0.4, "steps": 2, "seed": 3},
        lambda pipe: pipe.edit(X[:2], "dog", strength=0.4, steps=2, seed=3),
    ),
    "vary": (
        {"image": photo(1), "count": 3, "angle": 40, "labels": 1, "seed": 6},
        lambda pipe: pipe.vary(X[1], 3, angle=40, labels=1, seed=6),
    ),
    "interpolate": (
        {"ends": [7, photo(2)], "frames": 4, "path": "lerp", "labels": [0, 2]},
        lambda pipe: pipe.interpolate([7, X[2]], 4, path="lerp", labels=[0, 2]),
    ),
    "reconstruct": (
        {"images": [photo(0), photo(2)], "labels": [1, 0]},
        lambda pipe: pipe.reconstruct(X[[0, 2]], [1, 0]),
    ),
    "inpaint": (
        {"images": [photo(0)], "mask": text(encoded(Image.fromarray(np.eye(8, dtype=np.uint8) * 255))), "steps": 2},
        lambda pipe: pipe.inpaint(X[:1], np.eye(8, dtype=np.uint8) * 255, steps=2),
    ),
    "restore": (
        {
            "images": [photo(0), photo(1)],
            "task": "deblur",
            "kernel": "gaussian:1",
            "noise": 0.0,
            "steps": 2,
            "seed": 3,
            "angle": 20.0,
        },
        lambda pipe: pipe.restore(X[:2], Blur(gaussian_kernel(1.0).float(), "reflect"), steps=2, seed=3, angle=20.0),
    ),
}


@pytest.mark.parametrize("route", REQUESTS)
def test_a_route_does_what_the_pipeline_does(client: TestClient, route: str) -> None:
    body, call = REQUESTS[route]
    made = call(PIPES["tiny"])
    wanted = made if isinstance(made, Tensor) else made.tensor
    answer = post(client, route, **body, format="npy")
    close(images(answer), wanted)
    if not isinstance(made, Tensor):
        assert [each["seed"] for each in answer["images"]] == [*made.seeds]
        assert answer["settings"]["steps"] == made.settings["steps"]
        assert [each["label"] for each in answer["images"]] == [*(made.labels or [None] * len(made))]
    close(images(post(client, route, **body)), wanted, 0.51 / 255)  # PNG, rounded to 8 bits


def test_the_noise_of_a_task_is_the_command_s(client: TestClient) -> None:
    answer = post(client, "restore", images=[photo(0)], task="denoise", steps=2, format="npy")
    close(images(answer), PIPES["tiny"].restore(X[:1], Denoise(), noise="auto", steps=2).tensor)


def test_small_images_are_enlarged(client: TestClient) -> None:
    small = X[0, :, ::2, ::2]
    data = text(encoded(Image.fromarray((small.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8))))
    answer = post(client, "restore", images=[data], task="superres", factor=2, steps=2, format="npy")
    made = images(answer)
    assert made.shape == (1, 3, 8, 8)
    close(made, PIPES["tiny"].restore(small[None], BlockMean(2), steps=2).tensor)


def test_codes_go_out_and_come_back(client: TestClient) -> None:
    answer = post(client, "encode", images=[photo(0), photo(1)], labels=1)
    points = opened(answer["latents"])
    close(points, PIPES["tiny"].encode(X[:2], 1))
    assert answer["shape"] == list(points.shape)
    decoded = post(client, "decode", latents=answer["latents"], labels=1, format="npy")
    close(images(decoded), PIPES["tiny"].decode(points, 1))


def test_every_model_answers_by_its_name_and_the_first_one_by_default(client: TestClient) -> None:
    for name, pipe in PIPES.items():
        close(images(post(client, "generate", model=name, seed=3, format="npy")), pipe.generate(1, seed=3).tensor)
    rough = post(client, "generate", model="flow", seed=3, refinement_steps=0, format="npy")
    close(images(rough), PIPES["flow"].generate(1, seed=3, refinement_steps=0).tensor)
    listed = client.get("/v1/models").json()["data"]
    assert [each["id"] for each in listed] == [*PIPES]
    assert listed[0]["classes"] == ["cat", "dog", "horse"] and listed[1]["refines"] and not listed[2]["classes"]
    refused(client.post("/v1/generate", json={"model": "tinny"}), 404, "did you mean 'tiny'")


def test_a_png_holds_what_makes_it_again(client: TestClient, tmp_path: Any) -> None:
    file = client.post("/v1/generate", json={"seed": 5, "labels": "dog", "steps": 3, "output": "file"})
    assert file.headers["content-type"] == "image/png"
    (tmp_path / "one.png").write_bytes(file.content)
    record = read_record(tmp_path / "one.png")
    assert (record.seed, record.label, record.settings["steps"]) == (5, 1, 3)


@pytest.mark.parametrize(("form", "kind"), [("png", "PNG"), ("webp", "WEBP"), ("jpeg", "JPEG")])
def test_formats(client: TestClient, form: str, kind: str, tmp_path: Any) -> None:
    answer = client.post("/v1/generate", json={"count": 4, "format": form, "output": "file", "quality": 50})
    assert answer.headers["content-type"] == f"image/{form}"
    (tmp_path / "sheet").write_bytes(answer.content)
    with Image.open(tmp_path / "sheet") as sheet:
        assert sheet.format == kind and sheet.width > 2 * 8  # all four, enlarged
    (one,) = post(client, "generate", format=form)["images"]
    assert tuple(opened(one["data"]).shape) == (3, 8, 8)
    array = client.post("/v1/generate", json={"count": 4, "format": "npy", "output": "file"})
    close(opened(array.content), PIPES["tiny"].generate(4).tensor)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
def test_images_come_in_many_formats_and_sizes_and_as_data_urls(client: TestClient, form: str) -> None:
    data = picture(0, form, size=50)
    path = Image.open(io.BytesIO(data))
    wanted = PIPES["tiny"].reconstruct(path)
    for sent in (text(data), f"data:image/{form.lower()};base64,{text(data)}"):
        close(images(post(client, "reconstruct", images=[sent], format="npy")), wanted)


# streams --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("route", ["generate", "edit", "inpaint"])
def test_a_stream_tells_every_step_and_then_the_result(client: TestClient, route: str) -> None:
    body, _ = REQUESTS[route]
    answer = client.post(f"/v1/{route}", json={**body, "stream": True, "format": "npy"})
    assert answer.headers["content-type"].startswith("text/event-stream")
    told = events(answer.text)
    steps = body["steps"]
    assert [kind for kind, _ in told] == ["step"] * steps + ["result"]
    assert [(each["step"], each["steps"]) for _, each in told[:-1]] == [(i + 1, steps) for i in range(steps)]
    last = torch.stack([opened(each) for each in told[-2][1]["images"]])
    close(images(told[-1][1]), last)  # nothing comes behind the last step
    close(last, images(post(client, route, **body, format="npy")))


def test_an_error_in_a_stream_is_an_event(client: TestClient) -> None:
    ((kind, told),) = events(client.post("/v1/generate", json={"labels": "unicorn", "stream": True}).text)
    assert kind == "error" and "unicorn" in told["error"]["message"]


# OpenAI's shape -------------------------------------------------------------------------------------------------------


def test_the_shape_of_openai(client: TestClient) -> None:
    body = {"prompt": "a photo of a Dog.", "model": "tiny", "n": 2, "seed": 9, "quality": "hd", "user": "somebody"}
    answer = post(client, "images/generations", **body)
    assert answer["created"] > 0 and answer["output_format"] == "png" and answer["size"] == "8x8"
    made = torch.stack([opened(each["b64_json"]) for each in answer["data"]])
    close(made, PIPES["tiny"].generate(2, labels="dog", seed=9).tensor, 0.51 / 255)
    first, second = (post(client, "images/generations", prompt="")["data"] for _ in range(2))
    assert first != second  # another seed
    stream = client.post("/v1/images/generations", json={"prompt": "1", "stream": True, "partial_images": 2, "seed": 1})
    kinds = [kind for kind, _ in events(stream.text)]
    assert kinds == ["image_generation.partial_image"] * 2 + ["image_generation.completed"]
    refused(client.post("/v1/images/generations", json={"prompt": "a cat and a dog"}), 400, "cat, dog, horse")
    refused(client.post("/v1/images/generations", json={"prompt": "cat", "size": "1024x1024"}), 400, "8x8")
    refused(client.post("/v1/images/generations", json={"prompt": "cat", "response_format": "url"}), 422, "b64_json")


PROMPTED: dict[str, tuple[dict[str, Any], Any]] = {
    "generate": (
        {"prompt": ["a red cup", "a cup"], "negative_prompt": "blue", "guidance": 2.0, "seed": 4},
        lambda: TEXTS.generate(prompt=["a red cup", "a cup"], negative_prompt="blue", guidance=2.0, seed=4),
    ),
    "edit": (
        {"images": [photo(0)], "prompt": "a cup", "strength": 0.4, "steps": 2},
        lambda: TEXTS.edit(X[:1], prompt="a cup", strength=0.4, steps=2),
    ),
    "vary": ({"image": photo(1), "count": 2, "prompt": "a cup"}, lambda: TEXTS.vary(X[1], 2, prompt="a cup")),
    "interpolate": (
        {"ends": [7, 7], "frames": 3, "prompt": ["a red cup", "a tree"]},
        lambda: TEXTS.interpolate([7, 7], 3, prompt=["a red cup", "a tree"]),
    ),
    "reconstruct": ({"images": [photo(0)], "prompt": "a cup"}, lambda: TEXTS.reconstruct(X[:1], prompt="a cup")),
    "restore": (
        {"images": [photo(0)], "task": "dequantise", "steps": 2, "prompt": "a cup"},
        lambda: TEXTS.restore(X[:1], task_operator(TEXTS, "dequantise", [X[0]]), steps=2, prompt="a cup"),
    ),
}


@pytest.mark.parametrize("route", PROMPTED)
def test_a_route_follows_prompts(texts: TestClient, route: str) -> None:
    body, call = PROMPTED[route]
    made = call()
    answer = post(texts, route, **body, format="npy")
    close(images(answer), made if isinstance(made, Tensor) else made.tensor)
    if route == "generate":
        assert [each["prompt"] for each in answer["images"]] == ["a red cup", "a cup"]
        other = post(texts, route, **body | {"prompt": "a tree", "count": 2}, format="npy")
        assert (images(other) - images(answer)).abs().max() > 1e-3


def test_openais_shape_takes_prompts(texts: TestClient) -> None:
    (answer,) = post(texts, "images/generations", prompt="a red cup", seed=3)["data"]
    close(opened(answer["b64_json"]), TEXTS.generate(prompt="a red cup", seed=3).tensor[0], 0.51 / 255)
    (answer,) = post(texts, "images/generations", prompt="", seed=3)["data"]
    close(opened(answer["b64_json"]), TEXTS.generate(seed=3).tensor[0], 0.51 / 255)
    assert texts.get("/v1/models").json()["data"][0]["follows_texts"]


def test_prompts_that_cannot_be_are_refused(client: TestClient, texts: TestClient) -> None:
    for body, named in (
        ({"prompt": "a", "labels": "b"}, "not both"),
        ({"prompt": ["a", "b"], "count": 3}, "2 prompts for 3"),
        ({"prompt": "x" * 20_000}, "20000 characters"),
    ):
        refused(texts.post("/v1/generate", json=body), 400, named)
    refused(texts.post("/v1/generate", json={"prompt": [1]}), 422, "prompt")
    refused(client.post("/v1/generate", json={"prompt": "a cup"}), 400, "labels")


# bad requests ---------------------------------------------------------------------------------------------------------


def bomb(side: int) -> bytes:
    """A PNG of side * side white pixels, which packs to little."""
    chunk = lambda kind, data: (  # noqa: E731
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    )
    rows = zlib.compress(b"\0" * (side * ((side + 7) // 8 + 1)), 9)
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>'
BAD_IMAGES: dict[str, str] = {
    "empty": "",
    "no base64": "///etc/passwd!!",
    "path": "../../etc/passwd",
    "file url": "file:///etc/passwd",
    "address": "http://169.254.169.254/latest/meta-data",
    "not an image": text(b"hello"),
    "svg": text(SVG),
    "truncated": text(picture(0, size=64)[:-60]),
    "cut in its header": text(picture()[:20]),
    "postscript": text(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"),
    "tiff": text(picture(0, "TIFF")),
    "bomb": text(bomb(3000)),
    "wide bomb": text(encoded(Image.new("L", (10_001, 1)))),
    "too many bytes": text(b"\x89PNG" + b"0" * 100_001),
    "zeros": text(b"\0" * 1000),
    "null sign": "\x00",
    "letters beyond ASCII": "π" * 40,
}


@pytest.mark.parametrize("name", BAD_IMAGES)
@pytest.mark.parametrize("route", ["edit", "encode", "vary", "interpolate", "inpaint"])
def test_bad_images_are_refused(client: TestClient, route: str, name: str) -> None:
    bad = BAD_IMAGES[name]
    body: dict[str, Any] = {"images": [photo(), bad]}
    body = {"vary": {"image": bad}, "interpolate": {"ends": [1, bad]}}.get(route, body)
    if route == "inpaint":
        body = {"images": [photo()], "mask": bad}
    answer = client.post(f"/v1/{route}", json=body)
    refused(answer, 400, "mask" if route == "inpaint" else "image")
    assert "passwd" not in answer.text and "root:" not in answer.text


BAD_BODIES: dict[str, tuple[int, str, Any]] = {
    "unknown field": (422, "generate", {"guidance_scal": 2, "guidanc": 1}),
    "type": (422, "generate", {"steps": "four"}),
    "number as text": (422, "generate", {"steps": "4"}),
    "fraction": (422, "generate", {"count": 1.5}),
    "null": (422, "edit", {"images": None}),
    "no body": (422, "edit", {}),
    "list": (422, "generate", [1, 2]),
    "object for a number": (422, "generate", {"seed": {"$gt": 0}}),
    "too many": (400, "generate", {"count": 10}),
    "far too many": (400, "generate", {"count": 10**12}),
    "too many frames": (400, "interpolate", {"ends": [1, 2, 3, 4], "frames": 4}),
    "too many steps": (400, "generate", {"steps": 21}),
    "too many flow steps": (400, "generate", {"model": "flow", "refinement_steps": 21}),
    "none": (422, "generate", {"count": 0}),
    "task": (400, "restore", {"images": [photo()], "task": "deblurr"}),
    "kernel": (400, "restore", {"images": [photo()], "task": "deblur", "kernel": "gaussian:1e9"}),
    "mask of another task": (400, "restore", {"images": [photo()], "task": "denoise", "mask": photo()}),
    "restoring steps": (400, "restore", {"images": [photo()], "task": "denoise", "steps": 21}),
    "negative seed": (400, "generate", {"seed": -1}),
    "huge seed": (400, "generate", {"seed": 10**40}),
    "class": (400, "generate", {"labels": "unicorn"}),
    "class number": (400, "generate", {"labels": 3}),
    "classes of a model without": (400, "generate", {"model": "plain", "labels": 0}),
    "labels and count": (400, "generate", {"count": 3, "labels": [1, 2]}),
    "schedule": (400, "generate", {"schedule": "fixd"}),
    "long schedule": (400, "generate", {"schedule": [1.0] * 5000}),
    "endless lists": (422, "generate", {"seeds": [1] * 20_000}),
    "endless fields": (422, "generate", {str(i): i for i in range(5000)}),
    "solver without a flow": (400, "generate", {"solver": "heun"}),
    "guidance": (400, "generate", {"guidance": -1.0}),
    "three ends": (400, "interpolate", {"ends": [1, 2, 3]}),
    "one end": (422, "interpolate", {"ends": [1]}),
    "boolean end": (422, "interpolate", {"ends": [True, False]}),
    "path": (400, "interpolate", {"ends": [1, 2], "path": "../slerp"}),
    "many images": (400, "encode", {"images": [photo()] * 10}),
    "mask of another size": (400, "inpaint", {"images": [photo()], "mask": text(picture(0, size=9))}),
    "latents of another shape": (400, "decode", {"latents": text(npy(np.zeros((1, 4, 5), np.float32)))}),
    "latents that are objects": (400, "decode", {"latents": text(npy(np.array([{}], dtype=object)))}),
    "latents with a lying header": (400, "decode", {"latents": text(npy(np.zeros((2, 4, 4), np.float32))[:-9])}),
    "latents that are not finite": (400, "decode", {"latents": text(npy(np.full((1, 4, 4), np.nan, np.float32)))}),
    "no latents": (400, "decode", {"latents": text(b"hello")}),
    "deadline": (422, "generate", {"deadline": -1.0}),
    "quality": (422, "generate", {"quality": 101}),
    "format": (422, "generate", {"format": "exe"}),
    "stream of what has no steps": (422, "reconstruct", {"images": [photo()], "stream": True}),
}


@pytest.mark.parametrize("name", BAD_BODIES)
def test_bad_bodies_are_refused(client: TestClient, name: str) -> None:
    status, route, body = BAD_BODIES[name]
    refused(client.post(f"/v1/{route}", json=body), status)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b'{"seed": 1',
        b"null",
        b'"text"',
        b'{"guidance": NaN}',
        b'{"guidance": 1e999}',
        b"[" * 9999,
    ],
)
def test_bodies_that_are_no_json_of_ours_are_refused(client: TestClient, body: bytes) -> None:
    answer = client.post("/v1/generate", content=body, headers={"content-type": "application/json"})
    assert answer.status_code in (400, 422)
    refused(answer, answer.status_code)
    assert client.post("/v1/generate", content=b"seed=1", headers={"content-type": "text/plain"}).status_code == 422


def test_large_bodies_are_refused_before_they_are_read(client: TestClient) -> None:
    refused(client.post("/v1/edit", json={"images": ["A" * 400_000]}), 413, "300000")


@pytest.mark.parametrize(
    "path",
    ["/../etc/passwd", "/static-offline-docs/../../app.py", "/%2e%2e/%2e%2e/etc/passwd", "/v1/generate/..", "/v2"],
)
def test_paths_that_are_none_of_ours_are_refused(client: TestClient, path: str) -> None:
    refused(client.get(path), 404)


def test_other_methods_are_refused(client: TestClient) -> None:
    refused(client.get("/v1/generate"), 405)


def test_a_refusal_names_what_was_meant(client: TestClient) -> None:
    refused(client.post("/v1/generate", json={"guidanc": 1}), 422, "guidanc", "did you mean 'guidance'")


# who may call ---------------------------------------------------------------------------------------------------------


def test_tokens() -> None:
    with client_of(tokens=("one", "other")) as client:
        for given in (None, "Bearer wrong", "Bearer ", "Basic one", "Bearer öne", "one"):
            headers = {} if given is None else {"authorization": given.encode("latin-1")}
            refused(client.post("/v1/generate", json={}, headers=headers), 401, "Bearer")
        for path in ("/v1/models", "/metrics"):
            assert client.get(path).status_code == 401
            assert client.get(path, headers={"authorization": "Bearer other"}).status_code == 200
        assert client.get("/healthz").status_code == client.get("/docs").status_code == 200


def test_other_pages_may_call_only_where_they_are_named(client: TestClient) -> None:
    asked = {"origin": "https://a.example", "access-control-request-method": "POST"}
    assert "access-control-allow-origin" not in client.get("/healthz", headers=asked).headers
    with client_of(cors=("https://a.example",)) as named:
        assert (
            named.options("/v1/generate", headers=asked).headers["access-control-allow-origin"] == "https://a.example"
        )
        assert named.options("/v1/generate", headers=asked | {"origin": "https://b.example"}).status_code == 400
    assert client.get("/healthz", headers={"host": "evil.example"}).status_code == 400  # a name that leads to loopback


# those who run it -----------------------------------------------------------------------------------------------------


def test_health_and_readiness() -> None:
    client = client_of()
    assert client.get("/healthz").status_code == 200
    assert client.get("/readyz").status_code == 503  # not begun
    with client:
        assert client.get("/readyz").json() == {"status": "ready"}
    assert client.get("/readyz").status_code == 503


def test_metrics_count_requests_images_and_batches(client: TestClient) -> None:
    def value(name: str) -> float:
        found = re.search(rf"^{re.escape(name)} (\S+)$", client.get("/metrics").text, re.MULTILINE)
        return float(found[1]) if found else 0

    names = ('spheregen_images_total{model="tiny"}', 'spheregen_requests_total{route="/v1/generate",status="200"}')
    before = [value(name) for name in names]
    post(client, "generate", count=3)
    assert [value(name) for name in names] == [before[0] + 3, before[1] + 1]
    assert value('spheregen_batch_samples_count{model="tiny"}') > 0
    assert value("spheregen_waiting_images") == 0


def test_the_log_has_a_line_for_each_request_without_what_is_in_it(
    client: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    from spheregen.serving.observing import JsonLines

    with caplog.at_level(logging.INFO, LOGGER):
        answer = client.post("/v1/images/generations", json={"prompt": "horse", "seed": 98765})
    (record,) = [each for each in caplog.records if each.name == LOGGER]
    line = json.loads(JsonLines().format(record))
    assert line["route"] == "/v1/images/generations" and line["status"] == 200
    assert line["id"] == answer.headers["x-request-id"]
    assert "horse" not in str(line) and "98765" not in str(line)


def test_an_error_of_ours_is_logged_and_told_without_its_text(caplog: pytest.LogCaptureFixture) -> None:
    pipe = tiny_pipeline()
    with client_of({"tiny": pipe}) as client:
        quiet = TestClient(client.app, base_url="http://127.0.0.1", raise_server_exceptions=False)
        pipe.model.predict = lambda *_: 1 / 0  # type: ignore[method-assign]
        answer = quiet.post("/v1/generate", json={})
        refused(answer, 500)
        assert "division" not in answer.text
        assert quiet.post("/v1/encode", json={"images": [photo()]}).status_code == 200  # and it goes on
    assert "division" in caplog.text


def test_the_documentation_needs_no_other_host(client: TestClient) -> None:
    page = client.get("/docs").text
    assert not re.search(r"""(src|href)=["']https?://""", page)
    for place in re.findall(r"""(?:src|href)=["'](/[^"']+)""", page):
        assert client.get(place).status_code == 200
    described = client.get("/openapi.json").json()
    assert {"/v1/generate", "/v1/images/generations", "/v1/decode"} <= described["paths"].keys()
    assert "guidance" in described["components"]["schemas"]["Generate"]["properties"]


def test_work_beyond_the_queue_or_the_deadline_is_refused() -> None:
    import threading

    with client_of(queue=1) as client:
        engine, begun, let = client.app.state.service.engine, threading.Event(), threading.Event()  # type: ignore[attr-defined]
        engine.submit("tiny", lambda pipe: (begun.set(), let.wait(30)), images=64)
        assert begun.wait(30)
        waiting = engine.submit("tiny", lambda pipe: None)
        busy = client.post("/v1/generate", json={})
        refused(busy, 429)
        assert int(busy.headers["retry-after"]) >= 1
        let.set()
        waiting.future.result()
        refused(client.post("/v1/generate", json={"steps": 20, "count": 9, "deadline": 1e-6}), 504, "time")
