"""Frames to bytes and back: a decoder for bytes from a hostile peer, in one bounded buffer."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final, NamedTuple

from sporevm.errors import ProtocolViolation
from sporevm.wire.constants import HEADER_BYTES, MAX_PAYLOAD, MAX_PING, TYPE_NAMES

_HEADER: Final = struct.Struct("<IIBBH")
#: Room for a whole frame plus several more, so that one read takes many frames.
_BUFFER_BYTES: Final = 4 * (MAX_PAYLOAD + HEADER_BYTES)

#: By type: least and greatest length, whether it belongs to stream 0, whether it has a channel.
_LIMITS: Final[tuple[tuple[int, int, bool, bool], ...]] = (
    (0, 0, True, False),  # NOP
    (0, MAX_PAYLOAD, True, False),  # HELLO
    (1, MAX_PAYLOAD, False, False),  # OPEN
    (0, MAX_PAYLOAD, False, False),  # REPLY
    (1, MAX_PAYLOAD, False, True),  # DATA
    (4, 4, False, True),  # CREDIT
    (0, 0, False, True),  # EOF
    (0, MAX_PAYLOAD, False, False),  # EVENT
    (0, MAX_PAYLOAD, False, False),  # CLOSE
    (0, MAX_PING, True, False),  # PING
    (0, MAX_PING, True, False),  # PONG
)


class Frame(NamedTuple):
    stream: int
    type: int
    channel: int
    payload: bytes

    def __str__(self) -> str:
        return f"{TYPE_NAMES[self.type]} of stream {self.stream}"


def encode(stream: int, kind: int, payload: bytes | memoryview = b"", channel: int = 0) -> bytes:
    """The bytes of one frame. The caller keeps the limits; `Connection` does."""
    return b"".join((_HEADER.pack(len(payload), stream, kind, channel, 0), payload))


def _check(length: int, stream: int, kind: int, channel: int, zero: int) -> None:
    if kind >= len(_LIMITS):
        raise ProtocolViolation(f"malformed frame: type {kind} does not exist")
    name = TYPE_NAMES[kind]
    if length > MAX_PAYLOAD:
        raise ProtocolViolation(f"malformed frame: {name} of {length} bytes")
    if zero:
        raise ProtocolViolation(f"malformed frame: {name} with {zero:#x} where a zero must be")
    least, most, connection, has_channel = _LIMITS[kind]
    if channel > (3 if has_channel else 0):
        raise ProtocolViolation(f"malformed frame: {name} on channel {channel}")
    if not least <= length <= most:
        raise ProtocolViolation(f"malformed frame: {name} of {length} bytes")
    if (stream == 0) is not connection:
        raise ProtocolViolation(f"malformed frame: {name} of stream {stream}")


class Decoder:
    """Cuts a byte stream into frames.

    Bytes are read straight into its buffer (`room`, then `wrote`), and each payload is copied out
    of it once. A header is judged as soon as it is there, before its payload is waited for; so the
    buffer never grows, and garbage is found out at its first header.
    """

    __slots__ = ("_buffer", "_end", "_start", "_view")

    def __init__(self) -> None:
        self._buffer = bytearray(_BUFFER_BYTES)
        self._view = memoryview(self._buffer)
        self._start = 0
        self._end = 0

    def __len__(self) -> int:
        """Bytes held that are not a whole frame yet, or have not been asked for."""
        return self._end - self._start

    def room(self) -> memoryview:
        """Where to write the next bytes; never empty once `frames` has run to its end."""
        if self._start == self._end:
            self._start = self._end = 0
        elif len(self._view) - self._start < MAX_PAYLOAD + HEADER_BYTES:
            held = len(self)
            self._buffer[:held] = bytes(self._view[self._start : self._end])
            self._start, self._end = 0, held
        return self._view[self._end :]

    def wrote(self, size: int) -> None:
        self._end += size

    def drain(self) -> bytes:
        """Take everything out, unparsed."""
        data = bytes(self._view[self._start : self._end])
        self._start = self._end = 0
        return data

    def frames(self) -> Iterator[Frame]:
        """The whole frames that are there. Raises ProtocolViolation at a malformed header."""
        view, unpack = self._view, _HEADER.unpack_from
        while (held := self._end - self._start) >= HEADER_BYTES:
            start = self._start
            length, stream, kind, channel, zero = unpack(view, start)
            _check(length, stream, kind, channel, zero)
            if held < HEADER_BYTES + length:
                return
            begin = start + HEADER_BYTES
            self._start = end = begin + length
            yield Frame(stream, kind, channel, bytes(view[begin:end]))
