"""`Stream`: a process in a sandbox, seen from the client."""

from __future__ import annotations

import asyncio
from typing import Self

import msgspec

from sporevm.api.models import (
    STDIN_WINDOW,
    Detach,
    Eof,
    Exited,
    Failed,
    Progress,
    Resize,
    Room,
    Signal,
    Started,
    StreamMessage,
    encode,
)
from sporevm.sdk._errors import from_body
from sporevm.sdk._http import Lost
from sporevm.sdk._websocket import BINARY, TEXT, WebSocket

#: What iterating over a Stream gives: (1 stdout | 2 stderr, bytes), or a message.
Item = Progress | Started | Exited | tuple[int, bytes]

_decode = msgspec.json.Decoder(StreamMessage).decode
_CHUNK = 1 << 16


class Stream:
    """Iterate over it, and meanwhile send. Leaving `async with` ends the connection, and with it
    the process (for a run: the sandbox), unless it has ended or `detach` was called."""

    def __init__(self, socket: WebSocket) -> None:
        self._socket = socket
        self._unread = 0  # stdin sent for which no Room came yet
        self._room = asyncio.Event()
        self._reading = asyncio.Lock()
        self._over = False
        self.started: Started | None = None
        self.exited: Exited | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Item:
        item = await self.receive()
        if item is None:
            raise StopAsyncIteration
        return item

    async def receive(self) -> Item | None:
        """The next item, None after Exited. Raises the error the engine told, or Lost."""
        while not self._over:
            message = await self._receive_raw()
            if message is None:
                break
            kind, data = message
            if kind == BINARY:
                return data[0], data[1:]
            told: StreamMessage = _decode(data)
            if isinstance(told, Room):
                self._unread -= told.bytes
                self._room.set()
                continue
            if isinstance(told, Failed):
                self._end()
                raise from_body(told.error)
            if isinstance(told, Started):
                self.started = told
            elif isinstance(told, Exited):
                self.exited = told
                self._end()
            return told
        return None

    async def _receive_raw(self) -> tuple[int, bytes] | None:
        async with self._reading:
            if self._over:
                return None
            try:
                message = await self._socket.receive()
            except BaseException:
                self._end()
                raise
            if message is None:
                self._end()
            return message

    def _end(self) -> None:
        self._over = True
        self._room.set()

    async def send(self, data: bytes) -> None:
        """Write to stdin. Waits while the process does not read, so somebody else must iterate.

        Once the process has ended, data goes nowhere and that is no error.
        """
        for start in range(0, len(data), _CHUNK):
            piece = data[start : start + _CHUNK]
            while self._unread + len(piece) > STDIN_WINDOW and not self._over:
                self._room.clear()
                await self._room.wait()
            self._unread += len(piece)
            await self._send(BINARY, b"\0" + piece)

    async def send_eof(self) -> None:
        await self._tell(Eof())

    async def resize(self, rows: int, cols: int) -> None:
        await self._tell(Resize(rows=rows, cols=cols))

    async def signal(self, number: int) -> None:
        """Signal the process's group."""
        await self._tell(Signal(signal=number))

    async def detach(self) -> None:
        """Leave the process running and end the stream."""
        await self._tell(Detach())
        # The engine closes the stream when it has understood. Closing first could overtake it.
        while not self._over:
            await self._receive_raw()

    async def _tell(self, message: msgspec.Struct) -> None:
        await self._send(TEXT, encode(message))

    async def _send(self, kind: int, data: bytes) -> None:
        if self._over:
            return
        try:
            await self._socket.send(kind, data)
        except Lost:
            if not self._over:
                raise

    async def close(self) -> None:
        """End the connection; idempotent."""
        self._end()
        await self._socket.close()
