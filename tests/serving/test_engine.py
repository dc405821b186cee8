"""The engine: what comes together goes through the network together, and is the same as alone."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from typing import Any

import pytest
import torch
from torch import Tensor

import spheregen as sg
from spheregen.errors import ConfigError
from spheregen.fitted import fit_prior
from tests.factories import KINDS, images_of, rand, shaken, tiny_pipeline, tiny_refined

pytest.importorskip("greenlet", reason="needs the extra serve")
from spheregen.serving.engine import BusyError, ClosedError, DeadlineError, Engine

MEMBERS = (*KINDS, "flow", "fitted", "rotation", "unconditional")
Work = Callable[[sg.Pipeline], Any]


def pipeline(member: str) -> sg.Pipeline:
    """A tiny pipeline of each kind of network and guidance."""
    if member == "flow":
        return sg.Pipeline(tiny_refined(), device="cpu")
    if member == "rotation":
        from spheregen.family.sphere_encoder_2.config import SphereEncoder2Config
        from spheregen.family.sphere_encoder_2.network import SphereEncoder2
        from tests.family.test_sphere_encoder_2 import OWN

        torch.manual_seed(0)
        return sg.Pipeline(shaken(SphereEncoder2(SphereEncoder2Config(**{**OWN, "num_classes": 4}))), device="cpu")
    if member == "unconditional":
        return tiny_pipeline(0)
    pipe = tiny_pipeline(kind=member if member in KINDS else "images")
    if member == "fitted":
        codes = pipe.encode(images_of(30))
        pipe.model.fitted = fit_prior(codes, torch.arange(30) % 3, 3, directions=4)
    return pipe


@pytest.fixture(scope="module", params=MEMBERS)
def pipe(request: pytest.FixtureRequest) -> sg.Pipeline:
    return pipeline(request.param)


@pytest.fixture
def tiny() -> Iterator[Engine]:
    engine = Engine({"tiny": tiny_pipeline()})
    yield engine
    engine.close(10)


def some_work(pipe: sg.Pipeline) -> list[Work]:
    """Work of all kinds, with classes, seeds, steps and guidance of their own."""
    x = images_of(2, size=pipe.image_options.image_size)
    mask = torch.zeros(1, *x.shape[2:])
    mask[:, :4] = 1
    some: list[Work] = [
        lambda pipe: pipe.generate(seed=3),
        lambda pipe: pipe.generate(3, seed=2**40, steps=1),
        lambda pipe: pipe.generate(2, seed=5, steps=4, share_noise=False, schedule="decay"),
        lambda pipe: pipe.edit(x, steps=2, seed=4),
        lambda pipe: pipe.inpaint(x, mask, steps=2),
        lambda pipe: pipe.interpolate([3, x[0]], 3),
        lambda pipe: pipe.interpolate([3, 4, 5, 6], 2, steps=2),
        lambda pipe: pipe.vary(x[0], 2, angle=50),
        lambda pipe: pipe.encode(x),
        lambda pipe: pipe.decode(pipe.encode(x)),
        lambda pipe: pipe.reconstruct(x[:1]),
    ]
    if pipe.classes.count:
        guidance = 20.0 if pipe.model.guidance_law == "rotation" else 1.7
        some += [
            lambda pipe: pipe.generate(2, labels=[0, 2], seed=7, steps=3, guidance=guidance),
            lambda pipe: pipe.generate(labels=1, seed=8, steps=3, guidance=guidance),
            lambda pipe: pipe.edit(x, [1, 2], guidance=guidance, steps=2),
            lambda pipe: pipe.interpolate([1, 2], 3, labels=[0, 1]),
            lambda pipe: pipe.interpolate([1, 2], 3, labels=[0, 1], class_path="hard"),
            lambda pipe: pipe.encode(x, [0, 1]),
        ]
    if pipe.model.fitted is not None:
        some += [
            lambda pipe: pipe.generate(2, labels=[0, 2], prior="fitted", temperature=0.7, prior_angle=20),
            lambda pipe: pipe.edit(x, 2, prior="fitted"),
        ]
    return some


def tensor(made: Any) -> Tensor:
    return made if isinstance(made, Tensor) else made.tensor


def test_together_all_is_the_same_as_alone(pipe: sg.Pipeline) -> None:
    some = some_work(pipe)
    alone = [tensor(work(pipe)) for work in some]
    sizes: list[int] = []
    engine = Engine({"tiny": pipe}, watch=lambda name, samples, seconds: sizes.append(samples))
    jobs = [engine.submit("tiny", work) for work in some]
    together = [tensor(job.future.result(60)) for job in jobs]
    engine.close(10)
    for mine, other in zip(alone, together, strict=True):
        torch.testing.assert_close(other, mine, atol=1e-6, rtol=0)
        assert mine.shape == other.shape and mine.std() > 0.01
    assert max(sizes) > max(len(each) for each in alone)  # calls did go together


def test_settings_seeds_and_labels_come_back(tiny: Engine) -> None:
    work: Work = lambda pipe: pipe.generate(2, labels=["dog", 2], seed=9, steps=3)  # noqa: E731
    made, alone = tiny.run("tiny", work), work(tiny.pipelines["tiny"])
    assert (made.seeds, made.labels, made.settings) == (alone.seeds, alone.labels, alone.settings)


def test_two_models_share_an_engine() -> None:
    pipes = {"a": tiny_pipeline(), "b": tiny_pipeline(kind="latents"), "c": tiny_pipeline(0)}
    engine = Engine(pipes)
    jobs = [(name, engine.submit(name, lambda pipe: pipe.generate(2, seed=1))) for name in pipes for _ in range(3)]
    for name, job in jobs:
        made = job.future.result(60).tensor
        torch.testing.assert_close(made, pipes[name].generate(2, seed=1).tensor, atol=2e-5, rtol=0)
    engine.close(10)


def test_large_batches_are_split() -> None:
    pipe = tiny_pipeline()
    sizes: list[int] = []
    forward = pipe.model.predict

    def counted(v: Tensor, *rest: Any) -> Tensor:
        sizes.append(len(v))
        return forward(v, *rest)

    engine = Engine({"tiny": pipe})
    engine._at_once["tiny"] = 4
    want = pipe.generate(7, seed=1, steps=2, guidance=1.0).tensor
    pipe.model.predict = counted  # type: ignore[method-assign]
    made = engine.run("tiny", lambda shared: shared.generate(7, seed=1, steps=2, guidance=1.0)).tensor
    engine.close(10)
    assert sizes == [4, 3, 4, 3]
    torch.testing.assert_close(made, want, atol=2e-5, rtol=0)


def test_errors_are_their_callers_alone(tiny: Engine) -> None:
    jobs = [
        tiny.submit("tiny", lambda pipe: pipe.generate(1, seed=1)),
        tiny.submit("tiny", lambda pipe: pipe.generate(1, labels="unicorn")),
        tiny.submit("tiny", lambda pipe: pipe.model.predict(rand(1, 4, 4), torch.tensor([99]))),
        tiny.submit("tiny", lambda pipe: pipe.generate(1, seed=2)),
    ]
    assert len(jobs[0].future.result(60)) == 1
    with pytest.raises(ConfigError, match="unicorn"):
        jobs[1].future.result(60)
    assert isinstance(jobs[2].future.exception(60), IndexError)
    assert len(jobs[3].future.result(60)) == 1


class Gate:
    """Work that holds the engine until it is let go."""

    def __init__(self, engine: Engine) -> None:
        self.began, self.let = threading.Event(), threading.Event()
        self.job = engine.submit("tiny", self.work)
        assert self.began.wait(30)

    def work(self, pipe: sg.Pipeline) -> int:
        self.began.set()
        assert self.let.wait(30)
        return len(pipe.generate(1))


def test_a_full_queue_refuses_and_says_when_to_come_back() -> None:
    engine = Engine({"tiny": tiny_pipeline()}, queue=3)
    gate = Gate(engine)
    kept = engine.submit("tiny", lambda pipe: pipe.generate(3), images=3)
    with pytest.raises(BusyError) as caught:
        engine.submit("tiny", lambda pipe: pipe.generate(1))
    assert caught.value.retry_after >= 1 and engine.waiting == 3
    gate.let.set()
    assert len(kept.future.result(60)) == 3
    assert len(engine.run("tiny", lambda pipe: pipe.generate(1))) == 1
    engine.close(10)


def test_a_large_request_does_not_keep_small_ones_waiting(tiny: Engine) -> None:
    small: list[Any] = []

    def ask(step: int, *_: Any) -> None:
        if step == 1:
            small.append(tiny.submit("tiny", lambda pipe: pipe.generate(1, steps=1)))

    tiny.run("tiny", lambda pipe: pipe.generate(64, steps=40, callback=ask), images=64)
    assert small[0].future.done()


def test_what_nobody_waits_for_is_given_up(tiny: Engine) -> None:
    steps: list[int] = []
    gate = Gate(tiny)
    never = tiny.submit("tiny", lambda pipe: steps.append(99))
    never.cancel()
    gate.let.set()
    with pytest.raises(CancelledError):
        never.future.result(60)

    def count(step: int, *_: Any) -> None:
        steps.append(step)
        if step == 3:
            job.cancel()

    begin = threading.Event()
    job = tiny.submit("tiny", lambda pipe: begin.wait(30) and pipe.generate(1, steps=50, callback=count))
    begin.set()
    with pytest.raises(CancelledError):
        job.future.result(60)
    assert steps == [1, 2, 3]


def test_deadlines_end_work_and_what_waits(tiny: Engine) -> None:
    gate = Gate(tiny)
    late = tiny.submit("tiny", lambda pipe: pipe.generate(1), seconds=0.01)
    time.sleep(0.05)
    gate.let.set()
    with pytest.raises(DeadlineError):
        late.future.result(60)
    slow = tiny.submit("tiny", lambda pipe: pipe.generate(1, steps=5000, guidance=1.0), seconds=0.05)
    with pytest.raises(DeadlineError):
        slow.future.result(60)


def test_an_engine_that_closes_finishes_its_work() -> None:
    engine = Engine({"tiny": tiny_pipeline()})
    gate = Gate(engine)
    waiting = engine.submit("tiny", lambda pipe: pipe.generate(2), images=2)
    closing = threading.Thread(target=engine.close, args=(30,))
    closing.start()
    while engine.alive:
        time.sleep(0.001)
    with pytest.raises(ClosedError):
        engine.submit("tiny", lambda pipe: pipe.generate(1))
    gate.let.set()
    assert len(waiting.future.result(60)) == 2
    closing.join(30)
    assert not closing.is_alive()


def test_the_callers_default_type_is_left_alone(tiny: Engine) -> None:
    torch.set_default_dtype(torch.float64)
    try:
        made = tiny.run("tiny", lambda pipe: pipe.generate(2, seed=1)).tensor
        assert made.dtype == torch.float32 and torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
