"""The client's half of a WebSocket (RFC 6455), without extensions.

Frames of a client carry a mask, which protects proxies from scripts in browsers. Here nothing is
between us and the engine, so the mask is zero: valid, and free.
"""

from __future__ import annotations

import asyncio
import binascii
import os
from contextlib import suppress

from sporevm.errors import EngineError
from sporevm.sdk._http import Answer, Connection, Headers, Http, Lost

TEXT, BINARY = 1, 2
_CONTINUATION, _CLOSE, _PING, _PONG = 0, 8, 9, 10
_FINAL, _MASKED = 0x80, 0x80
_ZERO_MASK = b"\0\0\0\0"
#: No message of the engine is longer.
_MAX_MESSAGE = 1 << 24


class WebSocket:
    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._reader = connection.reader
        self._writer = connection.writer
        self._closing = False

    async def send(self, kind: int, data: bytes) -> None:
        """Send one message; returns when the connection has room again."""
        if self._writer.is_closing() or self._closing:
            raise Lost("the stream is closed")
        self._writer.writelines((_frame_head(kind, len(data)), data))
        try:
            await self._writer.drain()
        except ConnectionError:
            raise Lost("the engine closed the stream") from None

    async def receive(self) -> tuple[int, bytes] | None:
        """The next message; None when the engine ended the stream properly, Lost if it broke."""
        kind, parts = 0, b""
        while True:
            try:
                final, opcode, data = await self._frame()
            except (asyncio.IncompleteReadError, ConnectionError):
                raise Lost("the engine closed the stream") from None
            if opcode == _CLOSE:
                self._reply(_CLOSE, data[:2])
                return None
            if opcode == _PING:
                self._reply(_PONG, data)
            elif opcode in (TEXT, BINARY, _CONTINUATION):
                if (opcode == _CONTINUATION) != bool(kind):
                    raise EngineError("the engine broke the WebSocket protocol")
                kind, parts = kind or opcode, parts + data if parts else data
                if final:
                    return kind, parts
                if len(parts) > _MAX_MESSAGE:
                    raise EngineError("the engine sent a message that never ends")
            elif opcode != _PONG:
                raise EngineError("the engine broke the WebSocket protocol")

    async def _frame(self) -> tuple[bool, int, bytes]:
        first, second = await self._reader.readexactly(2)
        length = second & 0x7F
        if length == 126:
            length = int.from_bytes(await self._reader.readexactly(2), "big")
        elif length == 127:
            length = int.from_bytes(await self._reader.readexactly(8), "big")
        if second & _MASKED or first & 0x70 or length > _MAX_MESSAGE:
            raise EngineError("the engine broke the WebSocket protocol")
        data = await self._reader.readexactly(length) if length else b""
        return bool(first & _FINAL), first & 0x0F, data

    def _reply(self, kind: int, data: bytes) -> None:
        if not self._writer.is_closing() and not self._closing:
            self._writer.write(_frame_head(kind, len(data)) + data)
            self._closing = kind == _CLOSE

    async def close(self) -> None:
        """Say good-bye and close the connection; idempotent."""
        if self._writer.transport.get_write_buffer_size():
            self.abort()  # the engine does not read: what waits would never leave
        else:
            self._reply(_CLOSE, b"\x03\xe8")
            self._connection.close()
        with suppress(OSError):
            await self._writer.wait_closed()

    def abort(self) -> None:
        self._connection.abort()


def _frame_head(kind: int, length: int) -> bytes:
    if length < 126:
        return bytes((_FINAL | kind, _MASKED | length)) + _ZERO_MASK
    if length < 1 << 16:
        return bytes((_FINAL | kind, _MASKED | 126)) + length.to_bytes(2, "big") + _ZERO_MASK
    return bytes((_FINAL | kind, _MASKED | 127)) + length.to_bytes(8, "big") + _ZERO_MASK


async def connect(http: Http, target: str) -> WebSocket | Answer:
    """Open a WebSocket; an Answer if the engine answered with something else (an error)."""
    key = binascii.b2a_base64(os.urandom(16), newline=False).decode()
    headers: Headers = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": key,
    }
    connection, status, fields = await http.open_raw(target, headers)
    if status != 101:
        return Answer(http, connection, status, fields)
    return WebSocket(connection)
