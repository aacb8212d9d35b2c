"""Answers: JSON, JSON lines, and every error in one form."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
from aiohttp import hdrs, web
from multidict import CIMultiDict

from sporevm._version import __version__
from sporevm.api.models import ErrorAnswer, ErrorBody, Failed, encode
from sporevm.errors import SporeError

JSON = "application/json"
JSON_LINES = "application/jsonl"
BYTES = "application/octet-stream"
SERVER = f"spored/{__version__}"


class InternalError(SporeError):
    """Something the engine did not foresee: a defect, told without its insides."""

    code = "internal"


class EngineOutdated(SporeError):
    """The client is of a newer version and should start a new engine; sandboxes go on."""

    code, http_status = "engine_outdated", 426


def error_body(error: SporeError) -> ErrorBody:
    return ErrorBody(code=error.code, message=str(error), hint=error.hint, details=error.details())


def failed(error: SporeError) -> Failed:
    return Failed(error=error_body(error))


def _headers(kind: str) -> CIMultiDict[str]:
    return CIMultiDict({hdrs.CONTENT_TYPE: kind, hdrs.SERVER: SERVER})


def json_answer(value: object, status: int = 200) -> web.Response:
    return web.Response(body=encode(value), status=status, headers=_headers(JSON))


def error_answer(error: SporeError) -> web.Response:
    try:
        body = encode(ErrorAnswer(error=error_body(error)))
    except (TypeError, ValueError):  # a detail that JSON has no form for, e.g. a lone surrogate
        text = str(error).encode(errors="replace").decode()
        body = encode(ErrorAnswer(error=ErrorBody(code=error.code, message=text)))
    return web.Response(body=body, status=error.http_status, headers=_headers(JSON))


class Broken(Exception):
    """A stream that had begun can't go on: its connection is dropped, so that the client sees an
    answer cut short and not a whole one."""


@asynccontextmanager
async def chunked(
    request: web.BaseRequest, kind: str, headers: dict[str, str] | None = None
) -> AsyncIterator[web.StreamResponse]:
    """An answer of unknown length. An error inside drops the connection."""
    response = web.StreamResponse(headers={**_headers(kind), **(headers or {})})
    response.enable_chunked_encoding()
    await response.prepare(request)
    try:
        yield response
    except (SporeError, OSError, msgspec.MsgspecError) as error:
        raise Broken(str(error)) from error
    await response.write_eof()


async def json_lines(request: web.BaseRequest, lines: AsyncIterable[Any]) -> web.StreamResponse:
    """One JSON value a line, each sent at once. An error of the source is the last line."""
    async with chunked(request, JSON_LINES) as response:
        try:
            async for line in lines:
                await response.write(encode(line) + b"\n")
        except SporeError as error:
            await response.write(encode(failed(error)) + b"\n")
    return response
