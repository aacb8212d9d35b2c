"""The host's end of a channel as a state machine: bytes in, frames out; calls in, bytes out.

It does no I/O and never waits. All that the protocol's sections 2 and 7 demand of the agent is
checked here, so a frame that comes out of `received` is one its stream may really get: behind a
REPLY, within a window, on a channel of its service that has not ended. Anything else raises
ProtocolViolation, and the connection is dead.

What it holds is bounded by construction: one decoder buffer, at most MAX_STREAMS records, and bytes
to send that are asked for by the owner, or are CREDIT worth at least `CREDIT_STEP` received bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

from sporevm.errors import AgentError, ProtocolViolation, StateError
from sporevm.wire import constants as c
from sporevm.wire.accept import State, Stream, accept
from sporevm.wire.frames import Decoder, Frame, encode
from sporevm.wire.sync import AckScanner, sync_record

_U32: Final = struct.Struct("<I")

#: CREDIT goes out in steps of a quarter window: few frames, and a guest that sends its data byte
#: by byte can't make us answer every byte.
CREDIT_STEP: Final = c.WINDOW // 4
MAX_PINGS: Final = 64


class Connection:
    """See the module. `nonce` must be fresh for each connection."""

    def __init__(self, nonce: bytes) -> None:
        self._nonce = nonce
        self._decoder = Decoder()
        self._scanner: AckScanner | None = AckScanner(nonce)
        self._state = State()
        self._out: list[bytes] = []
        self._broken: AgentError | None = None
        self.pings_sent = 0

    # Bytes

    def start(self, *, flush: bool = False) -> None:
        """Queue SYNC, behind zeros if the agent may be in the middle of a frame."""
        if flush:
            self._out.append(bytes(c.FLUSH_BYTES))
        self._out.append(sync_record(self._nonce))

    def take(self) -> bytes:
        """The bytes to send now."""
        out = self._out
        if len(out) == 1:
            return out.pop()
        data = b"".join(out)
        out.clear()
        return data

    def room(self) -> memoryview:
        """Where to write received bytes; then call `received`, and run it to its end."""
        return self._decoder.room()

    def received(self, size: int) -> Iterator[Frame]:
        """Take `size` bytes written to `room`; the frames for the owner: HELLO, REPLY, DATA,
        CREDIT, EOF, EVENT, CLOSE and PONG.

        After a CLOSE the owner must call `close` for that stream, now or when it is done with it.
        Raises ProtocolViolation, or AgentError if the agent speaks no version of ours.
        """
        if self._broken is not None:
            raise self._broken
        self._decoder.wrote(size)
        try:
            if self._scanner is not None and not self._synchronised(self._scanner):
                return
            for frame in self._decoder.frames():
                if accept(self._state, frame):
                    yield frame
        except AgentError as error:
            self._broken = error
            raise

    def _synchronised(self, scanner: AckScanner) -> bool:
        rest = scanner.feed(self._decoder.drain())
        if rest is None:
            return False
        if scanner.version != c.VERSION:
            if scanner.version:
                raise ProtocolViolation(f"the agent chose version {scanner.version}, not offered")
            raise AgentError(f"the guest agent does not speak protocol version {c.VERSION}")
        self._scanner = None
        self._decoder.room()[: len(rest)] = rest
        self._decoder.wrote(len(rest))
        return True

    # What the host sends

    @property
    def full(self) -> bool:
        """No further stream can be opened until one is over on both sides."""
        return len(self._state.streams) >= c.MAX_STREAMS

    def open(self, service: c.Service, payload: bytes) -> int:
        """Open a stream with the TLV `payload`; returns its id. Not when `full`."""
        if self.full or self._state.next_id > c.MAX_STREAM_ID:
            raise StateError(
                "no stream is free",
                current=f"{len(self._state.streams)} open",
                required="a free one",
            )
        if 1 + len(payload) > c.MAX_PAYLOAD:
            raise ValueError(f"an OPEN of {len(payload)} bytes does not fit into a frame")
        stream = self._state.next_id
        self._state.next_id += 2
        self._state.streams[stream] = Stream(service)
        self._out.append(encode(stream, c.OPEN, bytes((service,)) + payload))
        return stream

    def window(self, stream: int, channel: int) -> int:
        """How many bytes `data` would take now; 0 too when the channel or stream is over."""
        state = self._state.streams.get(stream)
        if state is None or state.closed or state.peer_closed or channel in state.ended:
            return 0
        return state.outward[channel]

    def data(self, stream: int, channel: int, data: bytes | memoryview) -> None:
        """Send 1 to MAX_PAYLOAD bytes, within `window`."""
        if not 0 < len(data) <= min(self.window(stream, channel), c.MAX_PAYLOAD):
            raise ValueError(f"{len(data)} bytes can't be sent now on stream {stream}")
        self._state.streams[stream].outward[channel] -= len(data)
        self._out.append(encode(stream, c.DATA, data, channel))

    def eof(self, stream: int, channel: int) -> None:
        """No more data on `channel`; no effect when that is known or the stream is over."""
        state = self._state.streams.get(stream)
        if state is None or state.closed or state.peer_closed or channel in state.ended:
            return
        state.ended.add(channel)
        self._out.append(encode(stream, c.EOF, b"", channel))

    def credit(self, stream: int, channel: int, size: int) -> None:
        """`size` received bytes have been passed on. Sent in steps; no effect on what has ended."""
        state = self._state.streams.get(stream)
        if state is None or state.closed or state.peer_closed or channel not in state.inward:
            return
        owed = state.owed[channel] + size
        if owed + state.inward[channel] > c.WINDOW:
            raise ValueError(f"{size} bytes of stream {stream} were not received")
        if owed >= CREDIT_STEP:
            self._out.append(encode(stream, c.CREDIT, _U32.pack(owed), channel))
            state.inward[channel] += owed
            owed = 0
        state.owed[channel] = owed

    def event(self, stream: int, payload: bytes) -> None:
        """Send an EVENT; no effect when the stream is over."""
        state = self._state.streams.get(stream)
        if state is not None and not state.closed and not state.peer_closed:
            self._out.append(encode(stream, c.EVENT, payload))

    def close(self, stream: int, payload: bytes = b"") -> None:
        """Send CLOSE if it has not been sent; nothing more of this stream comes out then."""
        state = self._state.streams.get(stream)
        if state is None or state.closed:
            return
        state.closed = True
        self._out.append(encode(stream, c.CLOSE, payload))
        if state.peer_closed:
            del self._state.streams[stream]

    def ping(self, data: bytes) -> None:
        if len(data) > c.MAX_PING:
            raise ValueError(f"a PING has at most {c.MAX_PING} bytes")
        if len(self._state.pings) >= MAX_PINGS:
            raise StateError(
                "too many PINGs wait for a PONG", current=str(MAX_PINGS), required="fewer"
            )
        self._state.pings.append(data)
        self.pings_sent += 1
        self._out.append(encode(0, c.PING, data))
