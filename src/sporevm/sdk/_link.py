"""The asynchronous way to the engine: connections, requests, and what their failures mean."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing, suppress
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

import msgspec

from sporevm._version import __version__
from sporevm.api.models import encode
from sporevm.errors import EngineError
from sporevm.sdk import _engine, _websocket
from sporevm.sdk._errors import EngineAnswered, from_answer
from sporevm.sdk._http import Answer, Body, Headers, Http, Lost, Streams
from sporevm.sdk._stream import Stream
from sporevm.store.layout import Layout

T = TypeVar("T")

_LIMIT = 1 << 18
_OUTDATED = "engine_outdated"
_decoders: dict[object, msgspec.json.Decoder[object]] = {}


def decode(data: bytes, kind: type[T]) -> T:
    decoder = _decoders.get(kind)
    if decoder is None:
        decoder = _decoders[kind] = msgspec.json.Decoder(kind)
    try:
        return decoder.decode(data)  # type: ignore[return-value]
    except msgspec.DecodeError as error:
        raise EngineError(f"the engine's answer makes no sense: {error}") from None


def target(*parts: str, **query: object) -> str:
    """The path of a request under /v1. Parameters that are None are left out."""
    path = "/v1/" + "/".join(quote(part, safe="", errors="surrogateescape") for part in parts)
    pairs = [f"{key}={_query_value(value)}" for key, value in query.items() if value is not None]
    return path + ("?" + "&".join(pairs) if pairs else "")


def _query_value(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return quote(str(value), safe="/", errors="surrogateescape")


async def in_thread(work: Callable[[], T]) -> T:
    """Run something that blocks in a thread that does not keep the process from ending."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def deliver(result: T | None, error: BaseException | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]

    def body() -> None:
        result: T | None = None
        error: BaseException | None = None
        try:
            result = work()
        except BaseException as caught:  # noqa: BLE001 - handed to the waiting task as it is
            error = caught
        with suppress(RuntimeError):  # the loop has been closed: nobody waits any more
            loop.call_soon_threadsafe(deliver, result, error)

    threading.Thread(target=body, daemon=True, name="spore-engine").start()
    return await future


class Link:
    """Requests to the engine of one home."""

    def __init__(
        self, home: Path | str | None, *, start: bool, daemon: Sequence[str] | None = None
    ) -> None:
        self.layout: Layout = _engine.layout_of(home)
        self._start = start
        self._daemon = daemon
        self._http = Http(self._connect, {"Spore-Client": __version__})

    async def close(self) -> None:
        await self._http.close()

    async def _connect(self) -> Streams:
        sock = _engine.dial(self.layout)
        if sock is None:
            if not self._start:
                raise _engine.not_running(self.layout)
            sock = await in_thread(lambda: _engine.connect(self.layout, argv=self._daemon))
        sock.setblocking(False)
        return await asyncio.open_unix_connection(sock=sock, limit=_LIMIT)

    async def _open(self, method: str, path: str, body: Body, headers: Headers | None) -> Answer:
        """An answer that is no error."""
        try:
            answer = await self._http.request(method, path, body, headers)
        except Lost as error:
            raise Lost(str(error), hint=_engine.last_words(self.layout)) from None
        if answer.status >= 400:
            raise from_answer(answer.status, await answer.read())
        return answer

    async def open(
        self, method: str, path: str, body: Body = None, headers: Headers | None = None
    ) -> Answer:
        """Like `_open`; an engine of an older version is replaced first (sandboxes survive)."""
        try:
            return await self._open(method, path, body, headers)
        except EngineAnswered as error:
            if error.code != _OUTDATED or not (body is None or isinstance(body, bytes)):
                raise
        await self.stop_engine()
        return await self._open(method, path, body, headers)

    async def call(
        self, method: str, path: str, kind: type[T], body: msgspec.Struct | None = None
    ) -> T:
        """A request with JSON in and out."""
        answer = await self.open(method, path, None if body is None else encode(body))
        return decode(await answer.read(), kind)

    async def lines(
        self, method: str, path: str, body: msgspec.Struct | None = None
    ) -> AsyncGenerator[bytes, None]:
        """The lines of a streamed answer. Closing the iterator tells the engine to stop."""
        answer = await self.open(
            method,
            path,
            None if body is None else encode(body),
            {"Accept": "application/jsonl"},
        )
        async with aclosing(answer.lines()) as lines:
            async for line in lines:
                yield line

    async def stream(self, path: str, first: msgspec.Struct) -> Stream:
        """A WebSocket stream, with its first message sent."""
        made = await _websocket.connect(self._http, path)
        if isinstance(made, Answer):
            error = from_answer(made.status, await made.read())
            if not isinstance(error, EngineAnswered) or error.code != _OUTDATED:
                raise error
            await self.stop_engine()
            made = await _websocket.connect(self._http, path)
            if isinstance(made, Answer):
                raise from_answer(made.status, await made.read())
        stream = Stream(made)
        try:
            await made.send(_websocket.TEXT, encode(first))
        except BaseException:
            await stream.close()
            raise
        return stream

    async def stop_engine(self) -> None:
        """End the engine, if there is one, and return when it is gone."""
        if (sock := _engine.dial(self.layout)) is None:
            return
        sock.close()
        try:
            answer = await self._http.request("POST", target("engine", "stop"))
            await answer.read()
        except Lost:
            pass  # it ended before it could answer
        await self._http.close()
        await in_thread(lambda: _engine.wait_gone(self.layout))
