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
from collections import deque
from collections.abc import Callable, Iterator
from typing import Final

from sporevm.errors import AgentError, ProtocolViolation, StateError
from sporevm.wire import constants as c
from sporevm.wire.frames import Decoder, Frame, encode
from sporevm.wire.sync import AckScanner, sync_record

_U32: Final = struct.Struct("<I")

#: CREDIT goes out in steps of a quarter window: few frames, and a guest that sends its data byte
#: by byte can't make us answer every byte.
CREDIT_STEP: Final = c.WINDOW // 4
MAX_PINGS: Final = 64


class _Stream:
    __slots__ = (
        "closed", "ended", "event", "inward", "outward", "owed", "peer_closed", "replied", "service",
    )  # fmt: skip

    def __init__(self, service: c.Service) -> None:
        rules = c.RULES[service]
        self.service = service
        self.replied = False
        self.event = rules.event  # it may still come
        self.closed = False  # by us
        self.peer_closed = False
        self.ended: set[int] = set()  # channels we sent EOF on
        self.outward = dict.fromkeys(rules.host_sends, c.WINDOW)
        self.inward = dict.fromkeys(rules.agent_sends, c.WINDOW)  # loses a channel at its EOF
        self.owed = dict.fromkeys(rules.agent_sends, 0)


class Connection:
    """See the module. `nonce` must be fresh for each connection."""

    def __init__(self, nonce: bytes) -> None:
        self._nonce = nonce
        self._decoder = Decoder()
        self._scanner: AckScanner | None = AckScanner(nonce)
        self._greeted = False
        self._streams: dict[int, _Stream] = {}
        self._next = 1
        self._pings: deque[bytes] = deque()
        self._out: list[bytes] = []
        self._broken: AgentError | None = None

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
                if _ACCEPT[frame.type](self, frame):
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

    # What the agent sends

    def _find(self, frame: Frame) -> _Stream:
        stream = self._streams.get(frame.stream)
        if stream is None:
            why = "is over" if frame.stream % 2 and frame.stream < self._next else "was never opened"
            raise ProtocolViolation(f"{frame}, which {why}")
        if stream.peer_closed:
            raise ProtocolViolation(f"{frame} behind its CLOSE")
        return stream

    def _answered(self, frame: Frame) -> _Stream:
        stream = self._find(frame)
        if not (self._greeted and stream.replied):
            raise ProtocolViolation(f"{frame} before its REPLY")
        return stream

    def _unasked(self, frame: Frame) -> bool:
        raise ProtocolViolation(f"{frame}, which an agent never sends")

    def _on_hello(self, frame: Frame) -> bool:
        if self._greeted:
            raise ProtocolViolation("a second HELLO")
        self._greeted = True
        return True

    def _on_reply(self, frame: Frame) -> bool:
        stream = self._find(frame)
        if not self._greeted:
            raise ProtocolViolation(f"{frame} before HELLO")
        if stream.replied:
            raise ProtocolViolation(f"a second {frame}")
        stream.replied = True
        return not stream.closed

    def _on_data(self, frame: Frame) -> bool:
        stream = self._answered(frame)
        window = self._inward(stream, frame)
        if len(frame.payload) > window:
            raise ProtocolViolation(
                f"{frame}: {len(frame.payload)} bytes on channel {frame.channel}, "
                f"beyond its window of {window}"
            )
        stream.inward[frame.channel] = window - len(frame.payload)
        return not stream.closed

    def _on_eof(self, frame: Frame) -> bool:
        stream = self._answered(frame)
        self._inward(stream, frame)
        del stream.inward[frame.channel]
        return not stream.closed

    def _inward(self, stream: _Stream, frame: Frame) -> int:
        window = stream.inward.get(frame.channel)
        if window is None:
            why = "after its EOF" if frame.channel in stream.owed else "which the service has not"
            raise ProtocolViolation(f"{frame} on channel {frame.channel}, {why}")
        return window

    def _on_credit(self, frame: Frame) -> bool:
        stream = self._answered(frame)
        window = stream.outward.get(frame.channel)
        (size,) = _U32.unpack(frame.payload)
        if window is None or size < 1 or window + size > c.WINDOW:
            raise ProtocolViolation(
                f"{frame}: {size} bytes on channel {frame.channel}, "
                f"where {c.WINDOW - window if window is not None else 0} are owed"
            )
        stream.outward[frame.channel] = window + size
        return not stream.closed

    def _on_event(self, frame: Frame) -> bool:
        stream = self._answered(frame)
        if not stream.event:
            raise ProtocolViolation(f"unasked {frame} ({stream.service.name})")
        if stream.inward:
            raise ProtocolViolation(f"{frame} before the EOF of channels {[*stream.inward]}")
        stream.event = False
        return not stream.closed

    def _on_close(self, frame: Frame) -> bool:
        stream = self._find(frame)
        if stream.closed:
            del self._streams[frame.stream]
            return False
        if not stream.replied:
            raise ProtocolViolation(f"{frame} before its REPLY")
        stream.peer_closed = True
        return True

    def _on_pong(self, frame: Frame) -> bool:
        if not self._pings or self._pings[0] != frame.payload:
            raise ProtocolViolation("a PONG that answers no PING")
        self._pings.popleft()
        return True

    # What the host sends

    @property
    def full(self) -> bool:
        """No further stream can be opened until one is over on both sides."""
        return len(self._streams) >= c.MAX_STREAMS

    def open(self, service: c.Service, payload: bytes) -> int:
        """Open a stream with the TLV `payload`; returns its id. Not when `full`."""
        if self.full or self._next > c.MAX_STREAM_ID:
            raise StateError(
                "no stream is free", current=f"{len(self._streams)} open", required="a free one"
            )
        if 1 + len(payload) > c.MAX_PAYLOAD:
            raise ValueError(f"an OPEN of {len(payload)} bytes does not fit into a frame")
        stream = self._next
        self._next += 2
        self._streams[stream] = _Stream(service)
        self._out.append(encode(stream, c.OPEN, bytes((service,)) + payload))
        return stream

    def window(self, stream: int, channel: int) -> int:
        """How many bytes `data` would take now; 0 too when the channel or stream is over."""
        state = self._streams.get(stream)
        if state is None or state.closed or state.peer_closed or channel in state.ended:
            return 0
        return state.outward[channel]

    def data(self, stream: int, channel: int, data: bytes | memoryview) -> None:
        """Send 1 to MAX_PAYLOAD bytes, within `window`."""
        if not 0 < len(data) <= min(self.window(stream, channel), c.MAX_PAYLOAD):
            raise ValueError(f"{len(data)} bytes can't be sent now on stream {stream}")
        self._streams[stream].outward[channel] -= len(data)
        self._out.append(encode(stream, c.DATA, data, channel))

    def eof(self, stream: int, channel: int) -> None:
        """No more data on `channel`; no effect when that is known or the stream is over."""
        state = self._streams.get(stream)
        if state is None or state.closed or state.peer_closed or channel in state.ended:
            return
        state.ended.add(channel)
        self._out.append(encode(stream, c.EOF, b"", channel))

    def credit(self, stream: int, channel: int, size: int) -> None:
        """`size` received bytes have been passed on. Sent in steps; no effect on what has ended."""
        state = self._streams.get(stream)
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
        state = self._streams.get(stream)
        if state is not None and not state.closed and not state.peer_closed:
            self._out.append(encode(stream, c.EVENT, payload))

    def close(self, stream: int, payload: bytes = b"") -> None:
        """Send CLOSE if it has not been sent; nothing more of this stream comes out then."""
        state = self._streams.get(stream)
        if state is None or state.closed:
            return
        state.closed = True
        self._out.append(encode(stream, c.CLOSE, payload))
        if state.peer_closed:
            del self._streams[stream]

    def ping(self, data: bytes) -> None:
        if len(data) > c.MAX_PING:
            raise ValueError(f"a PING has at most {c.MAX_PING} bytes")
        if len(self._pings) >= MAX_PINGS:
            raise StateError(
                "too many PINGs wait for a PONG", current=str(MAX_PINGS), required="fewer"
            )
        self._pings.append(data)
        self._out.append(encode(0, c.PING, data))


_ACCEPT: Final[tuple[Callable[[Connection, Frame], bool], ...]] = (
    Connection._unasked,  # NOP
    Connection._on_hello,
    Connection._unasked,  # OPEN: version 1 has no service for the agent to open
    Connection._on_reply,
    Connection._on_data,
    Connection._on_credit,
    Connection._on_eof,
    Connection._on_event,
    Connection._on_close,
    Connection._unasked,  # PING
    Connection._on_pong,
)
