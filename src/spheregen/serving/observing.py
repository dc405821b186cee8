"""What a service tells of itself: metrics for Prometheus, and a log of one JSON line for each request, without what
was in it."""

from __future__ import annotations

import json
import logging
import os
import time
import uuid
from typing import TYPE_CHECKING, Any

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
    multiprocess,
)

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOGGER = "spheregen.serving"
MULTIPROCESS = "PROMETHEUS_MULTIPROC_DIR"
"""The variable that names the folder through which workers add up their metrics; set before this is imported."""
_SAMPLES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class JsonLines(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a record; what it carries as `fields` are keys of their own."""
        line = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            "pid": record.process,
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def log_config(level: str = "INFO") -> dict[str, Any]:
    """Return the configuration of the logs of a service and of its server, all on stderr."""
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"json": {"()": f"{__name__}.JsonLines"}},
        "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "json", "stream": "ext://sys.stderr"}},
        "loggers": {name: {"handlers": ["stderr"], "level": level, "propagate": False} for name in (LOGGER, "uvicorn")},
    }


class Metrics:
    """The metrics of a process, or of all workers where they share a folder."""

    def __init__(self) -> None:
        self._own = registry = CollectorRegistry()
        self.requests = Counter(
            "spheregen_requests", "Requests by route and status.", ["route", "status"], registry=registry
        )
        self.seconds = Histogram("spheregen_request_seconds", "Time to the answer.", ["route"], registry=registry)
        self.images = Counter("spheregen_images", "Images made.", ["model"], registry=registry)
        self.samples = Histogram(
            "spheregen_batch_samples", "Samples in a call of a network.", ["model"], buckets=_SAMPLES, registry=registry
        )
        self.busy = Counter("spheregen_network_seconds", "Time in calls of networks.", ["model"], registry=registry)
        self.waiting = Gauge(
            "spheregen_waiting_images", "Images that wait.", registry=registry, multiprocess_mode="livesum"
        )

    def batch(self, model: str, samples: int, seconds: float) -> None:
        """Count a call of a network."""
        self.samples.labels(model).observe(samples)
        self.busy.labels(model).inc(seconds)

    def text(self) -> tuple[bytes, str]:
        """Return what Prometheus reads, and its media type."""
        registry = self._own
        if MULTIPROCESS in os.environ:
            registry = CollectorRegistry()
            multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return generate_latest(registry), CONTENT_TYPE_LATEST


class Observed:
    """The outermost layer of an application: counts, times and logs requests, and gives each an id."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app, self.metrics, self.log = app, metrics, logging.getLogger(LOGGER)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status, name = time.perf_counter(), 499, uuid.uuid4().hex[:16]  # 499: gone before the answer

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", name.encode())]
            await send(message)

        try:
            await self.app(scope, receive, answer)
        finally:
            seconds, route = time.perf_counter() - started, getattr(scope.get("route"), "path", "other")
            self.metrics.requests.labels(route, str(status)).inc()
            self.metrics.seconds.labels(route).observe(seconds)
            fields = {"id": name, "method": scope["method"], "route": route, "status": status}
            self.log.info("request", extra={"fields": {**fields, "seconds": round(seconds, 4)}})
