"""Load of `spheregen serve` on loopback: requests of mixed kinds from 1, 8 and 64 clients at a time.

Every answer is compared with what `Pipeline` makes of the same request alone. Then, on request, a soak that watches the
worker's memory, and the time until the next answer after a worker was killed.

    python benchmarks/serving.py digits
    python benchmarks/serving.py runs/mine --requests 500 --soak 300 --kill
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from PIL import Image

import spheregen as sg

HOST, DISTINCT = "127.0.0.1", 250


def bodies(pipe: sg.Pipeline, count: int) -> list[tuple[str, dict[str, Any]]]:
    """Return route and body of requests of all kinds: mostly images of seeds, then changes of images."""
    draw, classes = random.Random(0), pipe.classes.count
    photos = [base64_of(image) for image in pipe.generate(8, seed=10**6).images]
    size = pipe.image_options.image_size
    mask = np.zeros((size, size), np.uint8)
    mask[: size // 2] = 255
    hole = base64_of(Image.fromarray(mask))
    latents = io.BytesIO()
    np.save(latents, pipe.encode(pipe.generate(2, seed=10**6).images).numpy())
    points = base64.b64encode(latents.getvalue()).decode()
    found = []
    for number in range(count):
        label = draw.randrange(classes) if classes else None
        one = {"images": [draw.choice(photos)], "labels": label, "format": draw.choice(["png", "npy"])}
        kind = draw.choices(KINDS, WEIGHTS)[0]
        body: dict[str, Any] = {"format": draw.choice(["png", "npy"]), "seed": number}
        if kind == "generate":
            body |= {"labels": label, "steps": draw.choice([None, None, 1, 2, 3])}
            if classes and pipe.model.guidance_law == "scale":
                body |= {"guidance": draw.choice([None, None, 1.0, 1.7])}
        elif kind == "encode":
            body = {"images": one["images"]}
        elif kind == "decode":
            body |= {"latents": points}
        elif kind == "interpolate":
            body |= {"ends": [number, number + 1], "frames": 4}
        elif kind == "vary":
            body |= {"image": one["images"][0], "count": 2}
        else:
            body |= one | ({"mask": hole} if kind == "inpaint" else {})
        found.append((f"/v1/{kind}", {name: value for name, value in body.items() if value is not None}))
    return found


KINDS = ("generate", "edit", "reconstruct", "encode", "decode", "interpolate", "inpaint", "vary")
WEIGHTS = (60, 8, 8, 6, 6, 4, 4, 4)


def base64_of(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def opened(data: bytes) -> np.ndarray:
    """Return a file of an answer as an array of floats in [0, 1]."""
    if data.startswith(b"\x93NUMPY"):
        return np.load(io.BytesIO(data), allow_pickle=False)
    image = np.asarray(Image.open(io.BytesIO(data)), np.float32) / 255
    return image[None] if image.ndim == 2 else image.transpose(2, 0, 1)


def arrays(answer: dict[str, Any]) -> list[np.ndarray]:
    """Return the images, or latents, of an answer."""
    files = [answer["latents"]] if "latents" in answer else [each["data"] for each in answer["images"]]
    return [opened(base64.b64decode(each)) for each in files]


def expected(pipe: sg.Pipeline, route: str, body: dict[str, Any]) -> list[np.ndarray]:
    """Return what the pipeline makes of a request, by itself."""
    from spheregen.serving import schemas

    request = getattr(schemas, route.rpartition("/")[2].title()).model_validate(body)
    sent = request.sent()

    images = [Image.open(io.BytesIO(base64.b64decode(each))) for each in sent.images]
    mask = None if sent.mask is None else Image.open(io.BytesIO(base64.b64decode(sent.mask)))
    latents = None if sent.latents is None else torch.from_numpy(opened(base64.b64decode(sent.latents)))
    made = request.do(pipe, SimpleNamespace(images=images, mask=mask, latents=latents))
    tensor = made if not hasattr(made, "tensor") else made.tensor
    if route == "/v1/encode":
        return [tensor.numpy()]
    if body.get("format") == "npy":
        return list(tensor.numpy())
    return [(each.numpy() * 255).round() / 255 for each in tensor]


class Client:
    """One connection, kept open."""

    def __init__(self, port: int) -> None:
        self.port, self.streams = port, None

    async def post(self, route: str, body: bytes) -> tuple[int, bytes]:
        if self.streams is None:
            self.streams = await asyncio.open_connection(HOST, self.port)
        reader, writer = self.streams
        head = f"POST {route} HTTP/1.1\r\nhost: {HOST}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}"
        writer.write(head.encode() + b"\r\n\r\n" + body)
        answer = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        length = int(answer.partition("content-length: ")[2].partition("\r\n")[0])
        return int(answer.split()[1]), await reader.readexactly(length)


async def load(
    port: int, requests: list[tuple[str, dict[str, Any]]], clients: int, count: int, seconds: float = 1e9
) -> tuple[list[float], Counter[int], dict[int, bytes], float]:
    """Send `count` requests, or for so many seconds.

    Return the seconds of each, statuses, an answer of each distinct one, and the time.
    """
    encoded = [(route, json.dumps(body).encode()) for route, body in requests]
    times: list[float] = []
    statuses: Counter[int] = Counter()
    answers: dict[int, bytes] = {}
    following, started = iter(range(count)), time.perf_counter()

    async def client() -> None:
        connection = Client(port)
        for number in following:
            if time.perf_counter() - started > seconds:
                return
            begun = time.perf_counter()
            status, answer = await connection.post(*encoded[number % len(encoded)])
            times.append(time.perf_counter() - begun)
            statuses[status] += 1
            if status == 200:
                answers[number % len(encoded)] = answer
            elif status != 429:
                print(f"  {status}: {answer[:300]!r}")

    await asyncio.gather(*(client() for _ in range(clients)))
    return times, statuses, answers, time.perf_counter() - started


def bad_requests() -> list[tuple[bytes, float]]:
    """Return what is sent by callers who mean no good or make mistakes, and how long they stay when it is sent."""
    whole = base64_of(Image.new("L", (8000, 8000)))  # 64 megapixels in a small file
    cut = base64_of(Image.effect_noise((64, 64), 99))[:-400]
    bodies: list[Any] = [
        {"images": [whole]},
        {"images": [cut]},
        {"images": ["../../../etc/passwd"]},
        {"images": ["http://169.254.169.254/"]},
        {"images": ["A" * (20 << 20)]},
        {"images": [{"$gt": ""}]},
        {"images": 7},
        {"images": ["iVBORw0KGgo="] * 65},
        {"images": [whole], "steps": -1, "labels": ["x"] * 5000},
        [[[[[[]]]]]],
    ]
    found = []
    for body in bodies:
        data = json.dumps(body).encode()
        found.append((head("/v1/edit", len(data)) + data, 0.0))
    normal = json.dumps({"steps": 50, "count": 64}).encode()
    found.append((head("/v1/generate", 64 << 20), 0.0))  # announces too much
    found.append((head("/v1/generate", 500) + b"{", 1.0))  # leaves in the middle of its body
    found.append((head("/v1/generate", len(normal)) + normal, 0.02))  # asks for much and leaves
    found.append((b"GET /../../etc/passwd HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n", 0.0))
    found.append((b"\x16\x03\x01\x02\x00\r\n\r\n", 0.0))
    found.append((b"POST /v1/gen", 1.0))
    return found


def head(route: str, length: int) -> bytes:
    return (
        f"POST {route} HTTP/1.1\r\nhost: {HOST}\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n"
    ).encode()


async def harass(port: int, count: int, clients: int) -> Counter[str]:
    """Send bad requests; return how they were answered."""
    bad, answers = bad_requests(), Counter[str]()
    following = iter(range(count))

    async def client() -> None:
        for number in following:
            data, stay = bad[number % len(bad)]
            reader, writer = await asyncio.open_connection(HOST, port)
            try:
                writer.write(data)
                if stay:
                    await asyncio.sleep(stay)
                    answers["left"] += 1
                    continue
                answers[(await asyncio.wait_for(reader.readline(), 60)).decode().split()[1]] += 1
            except (OSError, IndexError):
                answers["closed"] += 1
            finally:
                writer.close()

    await asyncio.gather(*(client() for _ in range(clients)))
    return answers


def processor_seconds(pid: int) -> float:
    """Return the seconds of processors that a process took."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def children(pid: int) -> list[int]:
    """Return the processes that a process started."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def workers(server: int) -> list[int]:
    """Return the workers of a server: forks of its one process that has imported everything."""
    return [worker for child in children(server) for worker in children(child)]


def memory(pid: int) -> int:
    """Return the resident bytes of a process."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmRSS"))


async def ready(port: int, seconds: float = 600) -> None:
    """Wait until the service answers."""
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        try:
            status, _ = await asyncio.wait_for(Client(port).post("/v1/generate", b"{}"), 5)
            if status == 200:
                return
        except (OSError, TimeoutError, asyncio.IncompleteReadError):
            pass
        await asyncio.sleep(0.05)
    raise SystemExit("the service did not start")


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--clients", default="1,8,64")
    parser.add_argument("--kinds", choices=("mixed", "generate"), default="mixed")
    parser.add_argument("--port", type=int, default=8123)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--soak", type=float, default=0, help="seconds")
    parser.add_argument("--hostile", type=int, default=0, help="bad requests beside good ones")
    parser.add_argument("--kill", action="store_true", help="kill a worker and time the next answer")
    given = parser.parse_args()
    pipe = sg.Pipeline.from_pretrained(given.model, device="cpu", progress=False, quiet=True)
    requests = [each for each in bodies(pipe, 4 * DISTINCT) if given.kinds == "mixed" or each[0] == "/v1/generate"]
    requests = requests[:DISTINCT]
    wanted = [expected(pipe, *each) for each in requests]
    command = [sys.executable, "-m", "spheregen", "-q", "--device", "cpu", "serve", given.model, "--threads", "1"]
    command += ["--port", str(given.port), "--workers", str(given.workers)]
    server = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"})
    try:
        await ready(given.port)
        await load(given.port, requests, 8, 100)  # first calls are slow
        rates, costs = {}, {}
        for clients in map(int, given.clients.split(",")):
            spent = sum(map(processor_seconds, workers(server.pid)))
            times, statuses, answers, seconds = await load(given.port, requests, clients, given.requests)
            costs[clients] = (sum(map(processor_seconds, workers(server.pid))) - spent) / len(times)
            far, same, images = 0.0, 0, 0
            for number, answer in answers.items():
                for one, other in zip(arrays(json.loads(answer)), wanted[number], strict=True):
                    difference = float(np.abs(one - other).max())
                    is_file = requests[number][1].get("format") == "png"
                    far, same, images = max(far, difference), same + (difference == 0 or not is_file), images + 1
            rates[clients] = len(times) / seconds
            ordered = sorted(times)
            print(
                f"{clients:3} clients: {rates[clients]:6.1f} requests/s, p50 {statistics.median(times) * 1e3:6.1f} ms, "
                f"p99 {ordered[int(0.99 * len(ordered))] * 1e3:6.1f} ms, {dict(statuses)}; furthest from Pipeline "
                f"{far:.1e}, PNG files of other values {images - same} of {images}; {1e3 * costs[clients]:.1f} ms of a "
                f"processor a request; {rates[clients] / rates[min(rates)]:.2f} x the requests of {min(rates)}, "
                f"{costs[min(costs)] / costs[clients]:.2f} x by processor time",
                flush=True,
            )
        if given.hostile:
            alone, *_ = await load(given.port, requests, 8, 400)
            (beside, statuses, *_), answers = await asyncio.gather(
                load(given.port, requests, 8, 400), harass(given.port, given.hostile, 4)
            )
            print(
                f"{given.hostile} bad requests: {dict(answers)}; of good ones beside them {dict(statuses)}, p50 "
                f"{statistics.median(beside) * 1e3:.1f} ms instead of {statistics.median(alone) * 1e3:.1f} ms",
                flush=True,
            )
        if given.soak:
            (worker,) = workers(server.pid)
            before, until = memory(worker), time.perf_counter() + given.soak
            print(f"soak: {before / 2**20:.0f} MiB at the beginning", flush=True)
            highest = 0
            while time.perf_counter() < until:
                _, statuses, *_ = await load(given.port, requests, 16, 10**9, min(30, given.soak))
                highest = max(highest, memory(worker))
            grown = (memory(worker) - before) / 2**20
            most = (highest - before) / 2**20
            print(f"soak of {given.soak:.0f} s: {grown:+.1f} MiB, at most {most:+.1f} MiB; {dict(statuses)}")
        if given.kill:
            os.kill(workers(server.pid)[0], signal.SIGKILL)
            begun = time.perf_counter()
            await ready(given.port)
            print(f"killed a worker: the next answer came after {time.perf_counter() - begun:.2f} s")
    finally:
        server.terminate()
        server.wait(90)


if __name__ == "__main__":
    asyncio.run(main())
