"""What the service does not do, and how that is told: errors as one line each, callers without a token, and bodies that
are too large or come too slowly."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import Depends, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.exceptions import HTTPException as StarletteHTTPException

from spheregen.errors import SphereGenError, did_you_mean
from spheregen.serving.engine import BusyError, ClosedError, DeadlineError
from spheregen.serving.observing import LOGGER
from spheregen.serving.settings import Limits

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

GONE = 499
"""The status of a request whose caller went away: nobody reads the answer."""

LINGERING_SECONDS = 2.0
"""For how long a refused caller may go on sending; what comes is thrown away."""


class RefusedError(Exception):
    """A request that is refused by its status."""

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.headers = status, headers


def refusal_body(status: int, message: str, param: str | None = None) -> dict[str, Any]:
    """Return the body of a refusal, in the shape of OpenAI's."""
    kinds = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
    kind = kinds.get(status, "invalid_request_error" if status < 500 else "server_error")
    line = " ".join(message.split())
    return {"error": {"message": line, "type": kind, "param": param, "code": str(status)}}


def status_of(error: Exception) -> tuple[int, str]:
    """Return the status of an error, and its text."""
    if isinstance(error, RefusedError):
        return error.status, str(error)
    known = ((BusyError, 429), (ClosedError, 503), (DeadlineError, 504))
    return next((status for kind, status in known if isinstance(error, kind)), 400), str(error)


async def _on_error(_request: Request, error: Exception) -> Response:
    status, message = status_of(error)
    headers = dict(error.headers or {}) if isinstance(error, RefusedError) else {}
    if isinstance(error, BusyError):
        headers["Retry-After"] = f"{error.retry_after:.0f}"
    return JSONResponse(refusal_body(status, message), status, headers)


async def _on_invalid(request: Request, error: Exception) -> Response:
    """Tell all that is wrong with a body in one line."""
    assert isinstance(error, RequestValidationError)
    told, places = [], []
    for each in error.errors()[:5]:
        place = ".".join(str(part) for part in each["loc"][1:]) or "the body"
        problem = each["msg"]
        if each["type"] == "extra_forbidden":
            problem = "there is no such field" + did_you_mean(str(each["loc"][-1]), _fields(request))
        if each["type"] == "json_invalid":
            place, problem = "the body", "no JSON"
        places.append(place)
        told.append(f"{place[:100]}: {problem}")
    return JSONResponse(refusal_body(422, "; ".join(told)[:1000], places[0][:100]), 422)


def _fields(request: Request) -> list[str]:
    kind = getattr(request.scope.get("endpoint"), "__annotations__", {}).get("body")
    return list(getattr(kind, "model_fields", ()))


async def _on_http(_request: Request, error: Exception) -> Response:
    assert isinstance(error, StarletteHTTPException)
    cures = {404: "no such address; /docs lists them", 405: "not by this method; /docs says which"}
    message = cures.get(error.status_code, str(error.detail))
    return JSONResponse(refusal_body(error.status_code, message), error.status_code, error.headers)


async def _on_crash(request: Request, error: Exception) -> Response:
    logging.getLogger(LOGGER).error("crash", exc_info=error)
    return JSONResponse(refusal_body(500, "an error of the service; its log has the cause"), 500)


HANDLERS: Mapping[Any, Any] = {
    SphereGenError: _on_error,
    RefusedError: _on_error,
    RequestValidationError: _on_invalid,
    StarletteHTTPException: _on_http,
    Exception: _on_crash,
}


def guard_of(tokens: tuple[str, ...]) -> Callable[..., Awaitable[None]]:
    """Return what lets requests pass that bring one of the tokens; all where there are none."""

    async def check(
        given: Annotated[HTTPAuthorizationCredentials | None, Depends(HTTPBearer(auto_error=False))],
    ) -> None:
        own = "" if given is None else given.credentials
        if tokens and not any([hmac.compare_digest(own.encode(), token.encode()) for token in tokens]):  # noqa: C419
            raise HTTPException(401, "give a token: Authorization: Bearer TOKEN", {"WWW-Authenticate": "Bearer"})

    return check


class Bounded:
    """Receives the whole body of a request before anybody looks at it: not too large, and not too slowly."""

    def __init__(self, app: ASGIApp, limits: Limits) -> None:
        self.app, self.limits = app, limits
        self._held = 0
        """Bytes of all bodies at hand."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        parts: list[bytes] = []
        try:
            async with asyncio.timeout(self.limits.sending_seconds):
                await self._take(scope, receive, parts)
            body: list[bytes] = [b"".join(parts)]

            async def replay() -> Message:
                if not body:
                    return await receive()
                return {"type": "http.request", "body": body.pop(), "more_body": False}

            await self.app(scope, replay, send)
        except TimeoutError:
            refusal = RefusedError(408, "the body did not arrive in time; send it faster")
            await _refuse(receive, send, refusal)
        except RefusedError as refusal:
            if refusal.status != GONE:
                await _refuse(receive, send, refusal)
        finally:
            self._held -= sum(map(len, parts))

    async def _take(self, scope: Scope, receive: Receive, parts: list[bytes]) -> None:
        """Receive a body into `parts`."""
        most, size, more = self.limits.body_bytes, 0, True
        length = dict(scope["headers"]).get(b"content-length", b"0")
        while more:
            if size > most or not length.isdigit() or int(length) > most:
                raise RefusedError(413, f"the body has more than {most} bytes; send less")
            if self._held > self.limits.held_bytes:
                raise RefusedError(429, "too many large requests at a time; try again in 1 s", {"Retry-After": "1"})
            message = await receive()
            if message["type"] == "http.disconnect":
                raise RefusedError(GONE, "the caller went away")
            parts.append(message.get("body", b""))
            size, self._held = size + len(parts[-1]), self._held + len(parts[-1])
            more = message.get("more_body", False)


async def _refuse(receive: Receive, send: Send, error: RefusedError) -> None:
    """Answer, and go on reading for a moment: a connection that is closed over unread bytes is reset, and a caller who
    is still sending would lose the answer."""
    headers = {**(error.headers or {}), "Connection": "close"}
    answer = JSONResponse(refusal_body(error.status, str(error)), error.status, headers)
    await send({"type": "http.response.start", "status": error.status, "headers": answer.raw_headers})
    await send({"type": "http.response.body", "body": bytes(answer.body), "more_body": True})
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(LINGERING_SECONDS):
            while (await receive()).get("more_body", False):
                pass
    await send({"type": "http.response.body", "body": b""})
