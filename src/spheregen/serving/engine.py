"""The engine that many callers share: their network calls go through a model together.

Every caller's work is a plain function of a `Pipeline`, such as `lambda pipe: pipe.generate(...)`. It runs as a
greenlet on the engine's one thread, on a copy of the pipeline whose network hands its calls to the engine. Once all
work waits for a network, the calls of one kind go through it as one batch, whatever classes, seeds, steps, schedules
and guidance they came from; then the work goes on. New work joins between two such rounds. So everything that a
pipeline can do is batched across callers, each step anew, and an image is the same as alone.

Legend: B images of one call, of the network or of the caller.
"""

from __future__ import annotations

import copy
import functools
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import torch
from greenlet import getcurrent, greenlet
from torch import Tensor

from spheregen.batching import images_at_once, in_batches
from spheregen.conditioning import Condition, Labels
from spheregen.devices import own_defaults
from spheregen.errors import SphereGenError
from spheregen.pipeline import Pipeline
from spheregen.prior import Angle
from spheregen.protocol import Context, SphereGenerator
from spheregen.serving.settings import QUEUE

Result = TypeVar("Result")

TOGETHER = 64
"""Images that are worked on at a time, if as many ask."""
_SHARES = (
    8  # pieces of work that go on at a time, however large: a large one slows others, and they need not wait for it
)
_FIRST_GUESS = 0.05  # seconds an image takes, as long as none was made
_MEMORY = 0.9  # of the running mean of that


class BusyError(SphereGenError):
    """More work is waiting than the queue holds."""

    def __init__(self, waiting: int, seconds: float) -> None:
        super().__init__(f"{waiting} images are waiting already; try again in {seconds:.0f} s")
        self.retry_after = seconds
        """Seconds until there should be room."""


class DeadlineError(SphereGenError):
    """The work was not done in the time that it had."""


class ClosedError(SphereGenError):
    """The engine takes no more work."""


@dataclass
class Call:
    """A call of a network, whose rows are put behind those of other calls."""

    network: str
    """The model's name."""
    method: str
    tensors: tuple[Tensor, ...]
    """Each (B, ...)."""
    condition: Condition | None
    """Of the B samples, or of any number of them; None for a method that takes none."""
    angle: Angle | None = None
    """Radians, one or (B,); None for a method that takes none."""
    results: Sequence[Tensor] = ()
    error: Exception | None = None

    @property
    def kind(self) -> tuple[Any, ...]:
        """Calls of one kind can be one."""
        return self.network, self.method, *((each.shape[1:], each.dtype) for each in self.tensors)

    def __len__(self) -> int:
        return len(self.tensors[0])


class Shared:
    """A generator whose network calls go to the engine that runs the current greenlet; all else is the model's own.

    Args:
        model: the generator.
        name: of the model, in calls.
    """

    def __init__(self, model: SphereGenerator, name: str) -> None:
        self.model, self.name = model, name
        known = torch.arange(model.num_classes, device=model_device(model)) if model.num_classes else None
        self._known = model.condition(known)

    def __getattr__(self, name: str) -> Any:
        if name in ("encode", "encode_raw", "decode"):  # made of the methods below
            value: Any = functools.partial(getattr(type(self.model), name), self)
        else:
            value = getattr(self.model, name)
        self.__dict__[name] = value  # a model that is shared does not change
        return value

    def condition(self, labels: Labels = None) -> Condition:
        """Return what `SphereGenerator.condition` does; those of class ids have their rows in common."""
        if isinstance(labels, Condition):
            return self.model.condition(labels)
        if labels is None:
            return Condition(self._known.rows)
        if labels.is_floating_point() or not self.model.num_classes:
            return self.model.condition(labels)
        return Condition(self._known.rows, labels)

    def predict(self, latents: Tensor, labels: Labels = None, angle: Angle = 0.0) -> Tensor:
        (found,) = self._call("predict", latents, condition=labels, angle=angle)
        return found

    def predict_with_context(
        self, latents: Tensor, labels: Labels = None, angle: Angle = 0.0
    ) -> tuple[Tensor, Context | None]:
        images, *context = self._call("predict_with_context", latents, condition=labels, angle=angle)
        return images, Context(*context) if context else None

    def to_latent(self, prediction: Tensor, labels: Labels = None) -> Tensor:
        if not self.model.predicts_images:
            return self.model.to_latent(prediction, labels)
        (found,) = self._call("to_latent", prediction, condition=labels)
        return found

    def to_image(self, prediction: Tensor) -> Tensor:
        if self.model.predicts_images:  # at most clamped
            return self.model.to_image(prediction)
        (found,) = self._call("to_image", prediction)
        return found

    def from_image(self, images: Tensor) -> Tensor:
        if self.model.predicts_images:
            return self.model.from_image(images)
        (found,) = self._call("from_image", images)
        return found

    def refined(
        self, x: Tensor, times: Tensor, labels: Labels, context: Context | None, rough: Tensor | None = None
    ) -> Tensor:
        of = () if context is None else (context.latent, *(() if context.tokens is None else (context.tokens,)))
        (found,) = self._call("refined", x, times, x if rough is None else rough, *of, condition=labels)
        return found

    def _call(
        self, method: str, *tensors: Tensor, condition: Any = False, angle: Angle | None = None
    ) -> Sequence[Tensor]:
        told = None if condition is False else self.condition(condition).check(len(tensors[0]))
        call = Call(self.name, method, tensors, told, angle)
        getcurrent().parent.switch(call)
        if call.error is not None:
            raise call.error
        return call.results


def model_device(model: SphereGenerator) -> torch.device:
    """Return the device of a model's weights."""
    return next(model.parameters()).device


def join_conditions(conditions: Sequence[Condition], counts: Sequence[int]) -> Condition:
    """Return the condition of the samples of several, one behind the other.

    Args:
        conditions: of one model.
        counts: samples of each, for those that are of any number.
    """
    first = conditions[0]
    if not first.rows or all(each.index is None for each in conditions):
        return first
    tables: list[Mapping[str, Tensor]] = []
    starts: dict[int, int] = {}
    found, rows = [], 0
    for each, count in zip(conditions, counts, strict=True):
        some = next(iter(each.rows.values()))
        if id(some) not in starts:
            starts[id(some)], rows = rows, rows + len(some)
            tables.append(each.rows)
        start = starts[id(some)]
        null = torch.full((count,), len(some) - 1, device=some.device)
        found.append(start + (null if each.index is None else each.index))
    if len(tables) == 1:
        return Condition(first.rows, torch.cat(found))
    return Condition({name: torch.cat([table[name] for table in tables]) for name in first.rows}, torch.cat(found))


def run_together(model: SphereGenerator, calls: Sequence[Call], at_once: int) -> None:
    """Run calls of one kind as one, in batches of at most `at_once` samples, and give each its result or its error."""
    counts = [len(call) for call in calls]
    tensors = [torch.cat(parts) for parts in zip(*(call.tensors for call in calls), strict=True)]
    condition = None
    if calls[0].condition is not None:
        condition = join_conditions([call.condition for call in calls if call.condition is not None], counts)
    angle = _join_angles([call.angle for call in calls], counts, tensors[0].device)
    method = functools.partial(_METHODS[calls[0].method], model)

    def run(part: slice) -> tuple[Tensor, ...]:
        of = None if condition is None else condition[part]
        how = angle[part] if isinstance(angle, Tensor) and angle.ndim else angle
        return method(of, how, *(each[part] for each in tensors))

    parts = [result for _, result in in_batches(len(tensors[0]), at_once, run)]
    results = [torch.cat(each) if len(each) > 1 else each[0] for each in zip(*parts, strict=True)]
    for call, *mine in zip(calls, *(each.split(counts) for each in results), strict=True):
        call.results = mine


def _join_angles(angles: Sequence[Angle | None], counts: Sequence[int], device: torch.device) -> Angle | None:
    plain = [each.item() if isinstance(each, Tensor) and not each.ndim else each for each in angles]
    if not any(isinstance(each, Tensor) for each in plain) and len(set(plain)) == 1:
        return plain[0]
    wide = [torch.as_tensor(each, dtype=torch.float64, device=device) for each in plain]
    return torch.cat([each.expand(count) for each, count in zip(wide, counts, strict=True)])


def _with_context(model: SphereGenerator, of: Any, angle: Any, v: Tensor) -> tuple[Tensor, ...]:
    images, context = model.predict_with_context(v, of, angle)
    if context is None:
        return (images,)
    return images, context.latent, *(() if context.tokens is None else (context.tokens,))


def _refined(
    model: SphereGenerator, of: Any, angle: Any, x: Tensor, times: Tensor, rough: Tensor, *context: Tensor
) -> tuple[Tensor, ...]:
    told = Context(context[0], context[1] if len(context) > 1 else None) if context else None
    return (model.refined(x, times, of, told, rough),)


_METHODS: Mapping[str, Callable[..., tuple[Tensor, ...]]] = {
    "predict": lambda model, of, angle, v: (model.predict(v, of, angle),),
    "predict_with_context": _with_context,
    "to_latent": lambda model, of, angle, prediction: (model.to_latent(prediction, of),),
    "to_image": lambda model, of, angle, prediction: (model.to_image(prediction),),
    "from_image": lambda model, of, angle, images: (model.from_image(images),),
    "refined": _refined,
}


@dataclass(eq=False)
class Job(Generic[Result]):
    """A caller's work, waiting or going on. `future` has its result, or raises what it raised."""

    work: Callable[[Pipeline], Result]
    model: str
    images: int
    """How many it works on, for the bounds."""
    deadline: float | None
    """Of `time.monotonic`."""
    future: Future[Result] = field(default_factory=Future)
    cancelled: bool = False
    _let: greenlet | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        self.future.set_running_or_notify_cancel()  # it is given up by `cancel` alone

    def cancel(self) -> None:
        """Give the work up: nobody waits for it. It ends before its next network call."""
        self.cancelled = True

    def stopped(self) -> Exception | None:
        """Return the error of work that is not to go on."""
        if self.cancelled:
            return CancelledError()
        if self.deadline is not None and time.monotonic() > self.deadline:
            return DeadlineError("the time for this request ran out; ask for fewer images or steps, or later")
        return None


class Engine:
    """Runs the work of many callers on the models of a process.

    Args:
        pipelines: by the names that callers use.
        queue: images that may wait; a request beyond is refused, unless nothing waits.
        together: images that are worked on at a time.
        watch: told of every batch: the model's name, how many samples, seconds.
    """

    def __init__(
        self,
        pipelines: Mapping[str, Pipeline],
        *,
        queue: int = QUEUE,
        together: int = TOGETHER,
        watch: Callable[[str, int, float], None] = lambda name, samples, seconds: None,
    ) -> None:
        self.pipelines = dict(pipelines)
        self.queue, self.together, self._watch = queue, together, watch
        self._at_once = {name: images_at_once(pipe.model, pipe.device) for name, pipe in self.pipelines.items()}
        self._shared = {name: _shared(pipe, name, self._at_once[name]) for name, pipe in self.pipelines.items()}
        self._waiting: deque[Job[Any]] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._pace, self._busy = _FIRST_GUESS, 0.0
        self._active: list[Job[Any]] = []
        self._thread = threading.Thread(target=self._run, name="spheregen-engine", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Images of work that has not begun."""
        with self._changed:
            return sum(job.images for job in self._waiting)

    @property
    def alive(self) -> bool:
        """Work that is submitted is done."""
        return self._thread.is_alive() and not self._closing

    def submit(
        self, model: str, work: Callable[[Pipeline], Result], *, images: int = 1, seconds: float | None = None
    ) -> Job[Result]:
        """Queue work, and return at once.

        Args:
            model: a name of a pipeline.
            work: called with the pipeline, on the engine's thread: it must not block.
            images: how many it works on.
            seconds: that it may take, waiting included.

        Raises:
            BusyError: too much is waiting.
            ClosedError: the engine is closed.
        """
        deadline = None if seconds is None else time.monotonic() + seconds
        job = Job(work, model, images, deadline)
        with self._changed:
            if self._closing:
                raise ClosedError("the service is stopping; try again later")
            waiting = sum(each.images for each in self._waiting if not each.cancelled)
            if waiting and waiting + images > self.queue:
                raise BusyError(waiting, max(1.0, waiting * self._pace))
            self._waiting.append(job)
            self._changed.notify()
        return job

    def run(self, model: str, work: Callable[[Pipeline], Result], *, images: int = 1) -> Result:
        """Do work together with that of others, and return its result."""
        return self.submit(model, work, images=images).future.result()

    def close(self, seconds: float | None = None) -> None:
        """Take no more work, finish what there is, and end the thread.

        Args:
            seconds: to wait for that; what is not done then is given up.
        """
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(seconds)
        with self._changed:
            for job in [*self._waiting, *self._active]:
                job.cancel()
        self._thread.join(seconds)

    # on the engine's thread ------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            with torch.no_grad():
                while self._take():
                    with own_defaults():
                        self._round()
        except BaseException as error:  # an error of ours: nobody may wait for ever
            with self._changed:
                self._closing = True
                for job in [*self._active, *self._waiting]:
                    if not job.future.done():
                        job.future.set_exception(error)
            raise

    def _take(self) -> bool:
        """Wait for work, and let it begin; return false when there will be none."""
        with self._changed:
            while not self._waiting and not self._active:
                if self._closing:
                    return False
                self._changed.wait()
            self._admit()
        return True

    def _admit(self) -> None:
        """Let waiting work begin, in the order of its coming, as far as there is room."""
        room = self.together - sum(job.images for job in self._active)
        while self._waiting and (self._waiting[0].images <= room or len(self._active) < _SHARES):
            job = self._waiting.popleft()
            room -= job.images
            self._active.append(job)

    def _round(self) -> None:
        """Take all work to its next network call, and run the calls."""
        started, done = time.perf_counter(), 0
        calls: dict[tuple[Any, ...], list[Call]] = {}
        for job in list(self._active):
            call = self._resume(job)
            if call is None:
                self._active.remove(job)
                done += job.images
            else:
                calls.setdefault(call.kind, []).append(call)
        for kind, together in calls.items():
            self._run_calls(kind[0], together)
        self._busy += time.perf_counter() - started
        if done:
            self._pace = _MEMORY * self._pace + (1 - _MEMORY) * self._busy / done
            self._busy = 0.0

    def _resume(self, job: Job[Any]) -> Call | None:
        """Go on with work until its next network call, which is returned; None when it has ended."""
        stop = job.stopped()
        try:
            if job._let is None:
                if stop is not None:
                    raise stop
                job._let = greenlet(job.work)
                found = job._let.switch(self._shared[job.model])
            elif stop is not None:
                found = job._let.throw(stop)
            else:
                found = job._let.switch()
        except BaseException as error:
            job.future.set_exception(error)
            return None
        if job._let.dead:
            job.future.set_result(found)
            return None
        assert isinstance(found, Call)
        return found

    def _run_calls(self, name: str, calls: Sequence[Call]) -> None:
        model, at_once = self.pipelines[name].model, self._at_once[name]
        samples, started = sum(map(len, calls)), time.perf_counter()
        try:
            run_together(model, calls, at_once)
        except Exception as error:
            if len(calls) == 1:
                calls[0].error = error
                return
            for call in calls:  # only the one that is to blame shall fail
                self._run_calls(name, [call])
            return
        self._watch(name, samples, time.perf_counter() - started)


def _shared(pipe: Pipeline, name: str, at_once: int) -> Pipeline:
    """Return a copy of a pipeline whose network calls go to the engine.

    Its batches are of a size that is found once: looking at the memory for each request costs half a millisecond.
    """
    mine = copy.copy(pipe)
    mine.batch_size = pipe.batch_size or at_once
    mine.model = Shared(pipe.model, name)  # type: ignore[assignment]
    mine.progress = False
    return mine
