"""The client side of a WebSocket (RFC 6455), sans-I/O: bytes in, messages out, and back.

Why not the SDK's: importing asyncio takes longer than all of `spore exec` may. A terminal's session
is one socket and three files, which one `select` loop serves; all it needs of HTTP is one request.

The peer is our own engine on a private Unix socket. So the mask, which protects proxies from
hostile scripts, is zero, and no compression is offered.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

from sporevm import __version__
from sporevm.errors import EngineError

TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10
_CONTINUE = 0
_MASKED = 0x80
_FINAL = 0x80
MAX_MESSAGE = 16 << 20
MAX_HEAD = 64 << 10


class Refused(Exception):
    """The engine answered the upgrade with an error: its JSON body, decoded."""

    def __init__(self, status: int, body: object) -> None:
        super().__init__(f"HTTP status {status}")
        self.status = status
        self.body = body


def upgrade(path: str) -> bytes:
    """The request that turns a connection into a WebSocket."""
    return (
        f"GET {path} HTTP/1.1\r\nHost: spored\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: c3BvcmUsIGEgbWljcm9WTQ==\r\n"
        f"Spore-Client: {__version__}\r\n\r\n"
    ).encode("ascii")


def frame(opcode: int, payload: bytes) -> bytes:
    """One whole message as the client sends it."""
    size = len(payload)
    if size < 126:
        head = bytes((_FINAL | opcode, _MASKED | size))
    elif size < 1 << 16:
        head = bytes((_FINAL | opcode, _MASKED | 126)) + size.to_bytes(2, "big")
    else:
        head = bytes((_FINAL | opcode, _MASKED | 127)) + size.to_bytes(8, "big")
    return head + b"\0\0\0\0" + payload


class Reader:
    """Turns what the socket gave into messages. CLOSE, PING and PONG come as messages too."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._upgraded = False
        self._parts: list[bytes] = []
        self._kind = 0

    def feed(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        self._buffer += data
        if not self._upgraded and not self._answer():
            return
        while (message := self._next()) is not None:
            yield message

    def _answer(self) -> bool:
        """Read the answer to the upgrade; False when more of it must come first."""
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            if len(self._buffer) > MAX_HEAD:
                raise EngineError("the engine's answer has no end")
            return False
        first, *lines = bytes(self._buffer[:end]).decode("latin-1").split("\r\n")
        words = first.split(" ", 2)
        if len(words) < 2 or not words[0].startswith("HTTP/1.") or not words[1].isdecimal():
            raise EngineError("what listens on the engine's socket is no engine")
        status = int(words[1])
        if status == 101:
            del self._buffer[: end + 4]
            self._upgraded = True
            return True
        headers = {key.strip().lower(): value.strip() for key, _, value in _pairs(lines)}
        length = int(headers.get("content-length") or 0)
        if length > MAX_MESSAGE:
            raise EngineError(f"the engine answered with status {status}")
        body = bytes(self._buffer[end + 4 : end + 4 + length])
        if len(body) < length:
            return False
        try:
            decoded = json.loads(body)
        except ValueError:
            decoded = None
        raise Refused(status, decoded)

    def _next(self) -> tuple[int, bytes] | None:
        """The next whole message, or a control frame; joins fragments."""
        while True:
            found = self._frame()
            if found is None:
                return None
            final, opcode, payload = found
            if opcode >= CLOSE:
                return opcode, payload
            if opcode != _CONTINUE:
                self._kind = opcode
                self._parts.clear()
            self._parts.append(payload)
            if final:
                whole = payload if len(self._parts) == 1 else b"".join(self._parts)
                self._parts.clear()
                return self._kind, whole
            if sum(map(len, self._parts)) > MAX_MESSAGE:
                raise EngineError("the engine sent a message that is too long")

    def _frame(self) -> tuple[bool, int, bytes] | None:
        data = self._buffer
        if len(data) < 2:
            return None
        size, start = data[1], 2
        if size & _MASKED:
            raise EngineError("the engine broke the WebSocket protocol")
        if size >= 126:
            start = 4 if size == 126 else 10
            if len(data) < start:
                return None
            size = int.from_bytes(data[2:start], "big")
        if size > MAX_MESSAGE:
            raise EngineError("the engine sent a message that is too long")
        if len(data) < start + size:
            return None
        payload = bytes(data[start : start + size])
        final, opcode = bool(data[0] & _FINAL), data[0] & 0x0F
        del data[: start + size]
        return final, opcode, payload


def _pairs(lines: list[str]) -> Iterator[tuple[str, str, str]]:
    return (line.partition(":") for line in lines)
