"""The HTTP service: its routes, and the way of a request to the engine and back."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import logging
import re
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any, NamedTuple

from fastapi import Depends, FastAPI, Request
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse, Response, StreamingResponse
from fastapi_offline import FastAPIOffline
from starlette.middleware.trustedhost import TrustedHostMiddleware
from torch import Tensor

import spheregen
from spheregen.data.inputs import load_mask
from spheregen.errors import ConfigError, SphereGenError, did_you_mean
from spheregen.pipeline import Pipeline, PipelineOutput
from spheregen.serving import files, schemas
from spheregen.serving.engine import DeadlineError, Engine, Job
from spheregen.serving.observing import LOGGER, Metrics, Observed
from spheregen.serving.refusals import GONE, HANDLERS, Bounded, RefusedError, guard_of, refusal_body, status_of
from spheregen.serving.settings import Limits, Settings

_SMALL = 1 << 17  # numbers of images that are written at once, without another thread
_READERS = 2  # threads that decode images: each may hold one of the largest size
_EVENTS = "text/event-stream"


class Files(NamedTuple):
    """The files of a request, as pipelines take them."""

    images: Sequence[Tensor] = ()
    """Each (C, S, S) in [0, 1]."""
    mask: Tensor | None = None
    """(1, S, S) in [0, 1]."""
    latents: Tensor | None = None
    """(B, N, d)."""


def create_app(settings: Settings, pipelines: Mapping[str, Pipeline]) -> FastAPI:
    """Return the service of pipelines, as an ASGI application; the engine runs from its start to its end.

    Args:
        settings: whose models are those of the pipelines.
        pipelines: by the names that callers use; the first one is the default.
    """
    metrics = Metrics()
    service = Service(settings.limits, pipelines, metrics, queue=settings.queue)
    guard = Depends(guard_of(settings.tokens))
    app = FastAPIOffline(
        title="SphereGen",
        version=spheregen.__version__,
        description="Images in one to a few steps: generate, edit, interpolate, encode and decode.",
        redoc_url=None,
        lifespan=service.lifespan,
        responses={code: {"model": schemas.ErrorAnswer} for code in (400, 401, 404, 413, 422, 429, 503, 504)},
    )
    app.state.service = service
    for name, body, answer in (
        ("generate", schemas.Generate, schemas.ImagesAnswer),
        ("edit", schemas.Edit, schemas.ImagesAnswer),
        ("vary", schemas.Vary, schemas.ImagesAnswer),
        ("interpolate", schemas.Interpolate, schemas.ImagesAnswer),
        ("inpaint", schemas.Inpaint, schemas.ImagesAnswer),
        ("restore", schemas.Restore, schemas.ImagesAnswer),
        ("reconstruct", schemas.Reconstruct, schemas.ImagesAnswer),
        ("encode", schemas.Encode, schemas.LatentsAnswer),
        ("decode", schemas.Decode, schemas.ImagesAnswer),
    ):
        app.post(
            f"/v1/{name}",
            response_model=answer,
            dependencies=[guard],
            name=name,
            description=body.__doc__,
            tags=["images"],
        )(_route(service, body))

    @app.post("/v1/images/generations", response_model=schemas.Generations, dependencies=[guard], tags=["openai"])
    async def generations(body: schemas.Generation, request: Request) -> Response:
        """Images in the shape of OpenAI's images API."""
        return await service.generations(body, request)

    @app.get("/v1/models", response_model=schemas.Models, dependencies=[guard], tags=["models"])
    async def models() -> schemas.Models:
        """The models, with their classes and defaults."""
        return service.models

    @app.get("/healthz", tags=["health"])
    async def health() -> dict[str, str]:
        """The process is alive."""
        return {"status": "ok"}

    @app.get("/readyz", tags=["health"])
    async def ready() -> Response:
        """The models are loaded and requests are taken."""
        alive = service.engine is not None and service.engine.alive
        return JSONResponse({"status": "ready" if alive else "not ready"}, 200 if alive else 503)

    @app.get("/metrics", dependencies=[guard], tags=["health"])
    async def prometheus() -> Response:
        """Metrics for Prometheus."""
        if service.engine is not None:
            metrics.waiting.set(service.engine.waiting)
        text, media = metrics.text()
        return Response(text, media_type=media)

    for kind, handler in HANDLERS.items():
        app.add_exception_handler(kind, handler)
    if settings.cors:
        app.add_middleware(
            CORSMiddleware, allow_origins=settings.cors, allow_methods=["GET", "POST"], allow_headers=["*"]
        )
    if settings.is_local:  # a foreign page cannot reach us under its own name
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost", "[::1]"])
    app.add_middleware(Bounded, limits=settings.limits)
    app.add_middleware(Observed, metrics=metrics)
    return app


class Service:
    """The models, the engine, and what a route does with a request."""

    def __init__(self, limits: Limits, pipelines: Mapping[str, Pipeline], metrics: Metrics, *, queue: int) -> None:
        self.limits, self.pipelines, self.metrics, self.queue = limits, dict(pipelines), metrics, queue
        self.engine: Engine | None = None
        self.models = schemas.Models(data=[_card(name, pipe) for name, pipe in pipelines.items()])
        self._readers: asyncio.Semaphore | None = None

    @contextlib.asynccontextmanager
    async def lifespan(self, _app: FastAPI) -> AsyncIterator[None]:
        """Run the engine; at the end it finishes what was begun."""
        self.engine = Engine(self.pipelines, queue=self.queue, watch=self.metrics.batch)
        self._readers = asyncio.Semaphore(_READERS)
        try:
            yield
        finally:
            await asyncio.to_thread(self.engine.close, self.limits.seconds)

    def pipe(self, name: str | None) -> tuple[str, Pipeline]:
        """Return a model by its name; the first one by default."""
        name = next(iter(self.pipelines)) if name is None else name
        if name not in self.pipelines:
            hint = did_you_mean(name, self.pipelines)
            raise RefusedError(404, f"there is no model {name[:100]!r}{hint}; there are {', '.join(self.pipelines)}")
        return name, self.pipelines[name]

    async def answer(self, body: Any, request: Request) -> Response:
        """Do what a request says, and return the answer."""
        name, pipe = self.pipe(body.model)
        body.check(self.limits)
        sent = await self._read(body.sent(), pipe)
        if getattr(body, "stream", False):
            return self._streaming(name, body, sent, request)
        job = self._submit(name, body, lambda shared: body.do(shared, sent))
        made = await self._wait(job, request)
        self.metrics.images.labels(name).inc(body.count_of())
        if isinstance(body, schemas.Encode):
            latents = files.to_base64(files.write_npy(made))
            return _json(schemas.LatentsAnswer(model=name, shape=tuple(made.shape), latents=latents))
        output = _as_output(made, body)
        return await _aside(output, lambda: _answer(name, output, body))

    async def generations(self, body: schemas.Generation, request: Request) -> Response:
        """Answer a request in the shape of OpenAI's images API."""
        name, pipe = self.pipe(body.model)
        size = "x".join([str(pipe.image_options.image_size)] * 2)
        if body.size not in ("auto", size):
            raise ConfigError(f"{name} makes images of {size} pixels, not {body.size[:50]}; give size {size} or auto")
        seed = secrets.randbelow(2**31) if body.seed is None else body.seed
        how = schemas.Generate(count=body.n, seed=seed, format=body.output_format, quality=body.output_compression)
        if pipe.model.text_width:
            how.prompt = body.prompt
        else:
            how.labels = _class_in(body.prompt, pipe)
        how.check(self.limits)
        sent = Files()
        if body.stream:
            return self._streaming(name, how, sent, request, openai=body)
        made = await self._wait(self._submit(name, how, lambda shared: how.do(shared, sent)), request)
        self.metrics.images.labels(name).inc(body.n)

        def written() -> Response:
            data = [{"b64_json": files.to_base64(file)} for file in files.write_each(made, how.format, how.quality)]
            facts = {"created": int(time.time()), "data": data, "output_format": body.output_format, "size": size}
            return JSONResponse(facts)

        return await _aside(made, written)

    # the way of a request ---------------------------------------------------------------------------------------------

    async def _read(self, sent: schemas.Sent, pipe: Pipeline) -> Files:
        """Decode the files of a request, a few at a time."""
        if sent == schemas.Sent():
            return Files()
        assert self._readers is not None
        async with self._readers:
            return await asyncio.to_thread(self._decode, sent, pipe)

    def _decode(self, sent: schemas.Sent, pipe: Pipeline) -> Files:
        limits, options = self.limits, pipe.image_options
        side = max(1, options.image_size // sent.reduced)
        mask, latents = None, None
        drawn = None
        if sent.mask is not None:
            data = files.from_base64(sent.mask, "mask", limits.file_bytes)
            drawn = files.read_image(data, "mask", limits.pixels)
        images = []
        for number, text in enumerate(sent.images):
            name = f"image {number}"
            image = files.read_image(files.from_base64(text, name, limits.file_bytes), name, limits.pixels)
            if drawn is not None:
                mask = load_mask(drawn, image, options)[0]
            images.append(files.as_model_takes_it(image, dataclasses.replace(options, image_size=side)))
        if sent.latents is not None:
            data = files.from_base64(sent.latents, "latents", limits.file_bytes)
            latents = files.read_latents(data, "latents", tuple(pipe.model.latent_shape), limits.images)
        return Files(images, mask, latents)

    def _submit(self, name: str, body: Any, work: Callable[[Pipeline], Any]) -> Job[Any]:
        assert self.engine is not None
        seconds = min(body.deadline or self.limits.seconds, self.limits.seconds)
        return self.engine.submit(name, work, images=body.count_of(), seconds=seconds)

    async def _wait(self, job: Job[Any], request: Request) -> Any:
        """Return the result of work; give it up where the caller went away."""
        result = asyncio.wrap_future(job.future)
        gone = asyncio.create_task(_disconnected(request))
        try:
            left = None if job.deadline is None else max(0.0, job.deadline - time.monotonic()) + 0.1
            await asyncio.wait({result, gone}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            if result.done():
                return result.result()
            if gone.done():
                raise RefusedError(GONE, "the caller went away")
            raise DeadlineError("the time for this request ran out; ask for fewer images or steps, or later")
        finally:
            job.cancel()
            gone.cancel()
            result.add_done_callback(lambda done: done.cancelled() or done.exception())

    def _streaming(
        self, name: str, body: Any, sent: Files, request: Request, openai: schemas.Generation | None = None
    ) -> Response:
        """Answer by server-sent events: the images after each step, then the result."""
        loop, steps = asyncio.get_running_loop(), asyncio.Queue[tuple[int, int, Tensor]]()

        def tell(step: int, of: int, images: Tensor) -> None:
            loop.call_soon_threadsafe(steps.put_nowait, (step, of, images))

        job = self._submit(name, body, lambda shared: body.do(shared, sent, callback=tell))

        def step_events(step: int, of: int, images: Tensor) -> list[tuple[str, dict[str, Any]]]:
            shown = PipelineOutput(images, seeds=tuple(range(len(images))), labels=None, settings={})
            data = [files.to_base64(each) for each in files.write_each(shown, body.format, body.quality)]
            if openai is None:
                return [("step", {"step": step, "steps": of, "images": data})]
            kind = "image_generation.partial_image"
            if not openai.partial_images:
                return []
            return [(kind, {"type": kind, "b64_json": each, "partial_image_index": step - 1}) for each in data]

        def last_events(made: PipelineOutput) -> list[tuple[str, dict[str, Any]]]:
            found = _images_answer(name, made, body).model_dump()
            if openai is None:
                return [("result", found)]
            kind = "image_generation.completed"
            return [(kind, {"type": kind, "b64_json": each["data"]}) for each in found["images"]]

        async def events() -> AsyncIterator[str]:
            result = asyncio.ensure_future(self._wait(job, request))
            try:
                while not (result.done() and steps.empty()):
                    step = asyncio.ensure_future(steps.get())
                    await asyncio.wait({result, step}, return_when=asyncio.FIRST_COMPLETED)
                    if not step.done():
                        step.cancel()
                        continue
                    for kind, told in await asyncio.to_thread(step_events, *step.result()):
                        yield _event(kind, told)
                made = result.result()
                self.metrics.images.labels(name).inc(len(made))
                for kind, told in await asyncio.to_thread(last_events, made):
                    yield _event(kind, told)
            except (SphereGenError, RefusedError) as error:
                yield _event("error", refusal_body(*status_of(error)))
            except Exception:
                logging.getLogger(LOGGER).exception("stream")
                yield _event("error", refusal_body(500, "an error of the service; its log has the cause"))
            finally:
                job.cancel()
                result.cancel()

        return StreamingResponse(events(), media_type=_EVENTS, headers={"Cache-Control": "no-store"})


# answers --------------------------------------------------------------------------------------------------------------


def _route(service: Service, kind: type[Any]) -> Callable[..., Awaitable[Response]]:
    async def route(body: Any, request: Request) -> Response:
        return await service.answer(body, request)

    route.__annotations__ = {"body": kind, "request": Request, "return": Response}
    return route


def _card(name: str, pipe: Pipeline) -> schemas.ModelCard:
    channels, size, _ = pipe.model.image_shape
    names = pipe.classes.names or tuple(map(str, range(pipe.classes.count)))
    return schemas.ModelCard(
        id=name,
        image_size=size,
        channels=channels,
        latent_shape=tuple(pipe.model.latent_shape),
        classes=list(names),
        follows_texts=pipe.model.text_width > 0,
        fitted_prior=pipe.model.fitted is not None,
        refines=pipe.refines,
        sampling=pipe.settings(),
    )


def _class_in(prompt: str, pipe: Pipeline) -> int | None:
    """Return the class that a prompt names; None for any.

    Raises:
        ConfigError: it names none, or several.
    """
    text = prompt.strip()
    if not text:
        return None
    with contextlib.suppress(ConfigError):
        return pipe.classes.id(text)
    words = text.casefold()
    found = [
        number
        for number, name in enumerate(pipe.classes.names)
        if re.search(rf"(?<!\w){re.escape(name.casefold())}(?!\w)", words)
    ]
    if len(found) == 1:
        return found[0]
    return pipe.classes.id(text[:100])  # whose error says which classes there are


def _as_output(made: PipelineOutput | Tensor, body: Any) -> PipelineOutput:
    if isinstance(made, PipelineOutput):
        return made
    seeds = tuple(range(body.seed, body.seed + len(made)))
    return PipelineOutput(made, seeds=seeds, labels=None, settings={"edit": type(body).__name__.lower()})


def _images_answer(name: str, output: PipelineOutput, body: Any) -> schemas.ImagesAnswer:
    data = files.write_each(output, body.format, body.quality)
    images = [
        schemas.MadeImage(
            data=files.to_base64(file),
            seed=output.seeds[number],
            label=None if output.labels is None else output.labels[number],
            class_name=output.class_name(number) or None,
            prompt=None if output.prompts is None else output.prompts[number],
        )
        for number, file in enumerate(data)
    ]
    return schemas.ImagesAnswer(model=name, format=body.format, images=images, settings=dict(output.settings))


def _answer(name: str, output: PipelineOutput, body: Any) -> Response:
    if body.output == "file":
        return Response(files.write_all(output, body.format, body.quality), media_type=files.MEDIA[body.format])
    return _json(_images_answer(name, output, body))


def _json(answer: Any) -> Response:
    return Response(answer.model_dump_json(), media_type="application/json")


async def _aside(output: PipelineOutput, write: Callable[[], Response]) -> Response:
    """Write an answer; a large one beside the loop that serves the others."""
    return write() if output.tensor.numel() <= _SMALL else await asyncio.to_thread(write)


def _event(kind: str, data: Mapping[str, Any]) -> str:
    return f"event: {kind}\ndata: {json.dumps(data, default=repr)}\n\n"


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
