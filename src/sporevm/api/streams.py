"""WebSocket streams: a process in a guest on one side, a client on the other.

Output is read from the process only as fast as the client takes it. Stdin is read from the client
ahead of the process, up to a window, so that a signal is never stuck behind it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TypeVar

import msgspec
from aiohttp import WSMsgType, web

from sporevm.api.answers import failed
from sporevm.api.context import App
from sporevm.api.models import (
    MAX_MESSAGE,
    STDIN_WINDOW,
    ClientMessage,
    Detach,
    Eof,
    ExecStart,
    Exited,
    Resize,
    Room,
    RunStart,
    Signal,
    encode,
)
from sporevm.api.port import ProcessPort
from sporevm.errors import SporeError, UsageError

T = TypeVar("T")

#: While stdin is stalled nothing is read, so only a write shows that the client has gone.
_PROBE_SECONDS = 5.0
_STDIN = 0

_decode_message = msgspec.json.Decoder(ClientMessage).decode


async def accept(request: web.BaseRequest) -> web.WebSocketResponse:
    """Answer the handshake; a request that is none raises (and becomes a 400)."""
    ws = web.WebSocketResponse(compress=False, max_msg_size=MAX_MESSAGE, timeout=1.0)
    await ws.prepare(request)
    return ws


async def send(ws: web.WebSocketResponse, message: msgspec.Struct) -> None:
    await ws.send_str(encode(message).decode())


async def refuse(ws: web.WebSocketResponse, error: SporeError) -> None:
    """Tell the client the error and end the stream."""
    await send(ws, failed(error))
    await ws.close()


async def first_message(ws: web.WebSocketResponse, kind: type[T]) -> T:
    """The message that says what to do. UsageError if it is another, or the client has gone."""
    message = await ws.receive()
    if message.type is not WSMsgType.TEXT:
        raise UsageError("the first message must be JSON text")
    try:
        return msgspec.json.decode(message.data, type=kind)
    except msgspec.DecodeError as error:
        raise UsageError(f"first message: {error}") from None


class _Detached(Exception):
    """The client asked to leave the process running."""


class _Gone(Exception):
    """The client has gone."""


class Bridge:
    """Carries one process's input, output and control until it ends or the client goes."""

    def __init__(self, ws: web.WebSocketResponse, process: ProcessPort, *, stdin: bool) -> None:
        self._ws = ws
        self._process = process
        self._stdin = stdin
        self._queue: deque[bytes | None] = deque()
        self._queued = 0
        self._changed = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()

    async def run(self) -> bool:
        """True: the process has ended and the client knows. False: the client left it running.

        Raises _Gone (as ConnectionResetError) if the client vanished, and what the process's side
        raises. Neither side is closed here.
        """
        tasks = [
            asyncio.ensure_future(work)
            for work in (self._outgoing(), self._incoming(), self._feed())
        ]
        try:
            # Only the first two end by themselves; _feed ends after EOF and is then left out.
            await asyncio.wait(tasks[:2], return_when=asyncio.FIRST_COMPLETED)
            if tasks[0].done():
                await tasks[0]
                return True
            await tasks[1]
        except _Detached:
            return False
        except _Gone:
            raise ConnectionResetError("the client has gone") from None
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        raise AssertionError("the reader of client messages never just returns")

    async def _outgoing(self) -> None:
        while (piece := await self._process.read()) is not None:
            channel, data = piece
            await self._ws.send_bytes(bytes((channel,)) + data)
        end = await self._process.wait()
        await send(
            self._ws, Exited(exit_code=end.status, signal=end.signal, timed_out=end.timed_out)
        )

    async def _incoming(self) -> None:
        while True:
            await self._until_room()
            message = await self._ws.receive()
            if message.type is WSMsgType.BINARY:
                self._take_stdin(message.data)
            elif message.type is WSMsgType.TEXT:
                await self._control(message.data)
            elif message.type is WSMsgType.ERROR:
                raise UsageError(f"malformed message: {message.data}")
            else:
                raise _Gone

    def _take_stdin(self, data: bytes) -> None:
        if not data or data[0] != _STDIN:
            raise UsageError("a binary message must begin with channel 0 (stdin)")
        if not self._stdin:
            raise UsageError("the process was started without stdin")
        if len(data) > 1:
            self._put(data[1:])

    def _put(self, data: bytes | None) -> None:
        self._queue.append(data)
        self._queued += len(data or b"")
        if self._queued > STDIN_WINDOW:
            self._room.clear()
        self._changed.set()

    async def _until_room(self) -> None:
        while not self._room.is_set():
            try:
                await asyncio.wait_for(self._room.wait(), _PROBE_SECONDS)
            except TimeoutError:
                await self._ws.ping()

    async def _control(self, text: str) -> None:
        try:
            message = _decode_message(text)
        except msgspec.DecodeError as error:
            raise UsageError(f"message: {error}") from None
        match message:
            case Signal(signal=number):
                self._process.signal(number)
            case Resize(rows=rows, cols=cols):
                self._process.resize(rows, cols)
            case Eof():
                self._put(None)
            case Detach():
                raise _Detached
            case ExecStart() | RunStart():
                raise UsageError("this stream has its process already")

    async def _feed(self) -> None:
        """Pass stdin on as the process takes it. A process that closed its stdin swallows it."""
        open_ = True
        while True:
            while not self._queue:
                self._changed.clear()
                await self._changed.wait()
            data = self._queue.popleft()
            if open_:
                try:
                    if data is None:
                        self._process.write_eof()
                    else:
                        await self._process.write(data)
                except (SporeError, ConnectionError):
                    open_ = False  # the output side tells how it ended
            if data is None:
                return
            self._queued -= len(data)
            if self._queued <= STDIN_WINDOW:
                self._room.set()
            await send(self._ws, Room(bytes=len(data)))


async def serve_process(
    app: App, ws: web.WebSocketResponse, process: ProcessPort, *, stdin: bool
) -> None:
    """Bridge a process that is bound to its client: it is killed unless it ended or was left."""
    keep = False
    try:
        try:
            ended = await Bridge(ws, process, stdin=stdin).run()
            keep = not ended
        except SporeError as error:
            await refuse(ws, error)
            return
        await ws.close()
    finally:
        await app.to_the_end(_release(app, process, keep=keep))


async def _release(app: App, process: ProcessPort, *, keep: bool) -> None:
    if keep:
        app.spawn(drain(process))
    else:
        await process.close(kill=not app.stopping.is_set())


async def drain(process: ProcessPort) -> None:
    """Read the output of a process nobody listens to: a full window would make it wait."""
    try:
        while await process.read() is not None:
            pass
        await process.wait()
    finally:
        await process.close()
