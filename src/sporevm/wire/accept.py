"""Whether the agent may send a frame now: the protocol's sections 2 and 7, frame by frame."""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable
from typing import Final

from sporevm.errors import ProtocolViolation
from sporevm.wire import constants as c
from sporevm.wire.frames import Frame

_U32: Final = struct.Struct("<I")


class Stream:
    __slots__ = (
        "closed",
        "ended",
        "event",
        "inward",
        "outward",
        "owed",
        "peer_closed",
        "replied",
        "service",
    )

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


class State:
    """What both directions of a connection know."""

    __slots__ = ("greeted", "next_id", "pings", "streams")

    def __init__(self) -> None:
        self.greeted = False  # HELLO has come
        self.streams: dict[int, Stream] = {}
        self.next_id = 1
        self.pings: deque[bytes] = deque()  # those without a PONG, oldest first


def accept(state: State, frame: Frame) -> bool:
    """Take note of the agent's frame. True if the owner must see it, False if its stream has been
    closed by us. Raises ProtocolViolation."""
    return _ACCEPT[frame.type](state, frame)


def _find(state: State, frame: Frame) -> Stream:
    stream = state.streams.get(frame.stream)
    if stream is None:
        why = "is over" if frame.stream % 2 and frame.stream < state.next_id else "was never opened"
        raise ProtocolViolation(f"{frame}, which {why}")
    if stream.peer_closed:
        raise ProtocolViolation(f"{frame} behind its CLOSE")
    return stream


def _answered(state: State, frame: Frame) -> Stream:
    stream = _find(state, frame)
    if not (state.greeted and stream.replied):
        raise ProtocolViolation(f"{frame} before its REPLY")
    return stream


def _unasked(state: State, frame: Frame) -> bool:
    raise ProtocolViolation(f"{frame}, which an agent never sends")


def _on_hello(state: State, frame: Frame) -> bool:
    if state.greeted:
        raise ProtocolViolation("a second HELLO")
    state.greeted = True
    return True


def _on_reply(state: State, frame: Frame) -> bool:
    stream = _find(state, frame)
    if not state.greeted:
        raise ProtocolViolation(f"{frame} before HELLO")
    if stream.replied:
        raise ProtocolViolation(f"a second {frame}")
    stream.replied = True
    return not stream.closed


def _on_data(state: State, frame: Frame) -> bool:
    stream = _answered(state, frame)
    window = _inward(stream, frame)
    if len(frame.payload) > window:
        raise ProtocolViolation(
            f"{frame}: {len(frame.payload)} bytes on channel {frame.channel}, "
            f"beyond its window of {window}"
        )
    stream.inward[frame.channel] = window - len(frame.payload)
    return not stream.closed


def _on_eof(state: State, frame: Frame) -> bool:
    stream = _answered(state, frame)
    _inward(stream, frame)
    del stream.inward[frame.channel]
    return not stream.closed


def _inward(stream: Stream, frame: Frame) -> int:
    window = stream.inward.get(frame.channel)
    if window is None:
        why = "after its EOF" if frame.channel in stream.owed else "which the service has not"
        raise ProtocolViolation(f"{frame} on channel {frame.channel}, {why}")
    return window


def _on_credit(state: State, frame: Frame) -> bool:
    stream = _answered(state, frame)
    window = stream.outward.get(frame.channel)
    (size,) = _U32.unpack(frame.payload)
    if window is None or size < 1 or window + size > c.WINDOW:
        raise ProtocolViolation(
            f"{frame}: {size} bytes on channel {frame.channel}, "
            f"where {c.WINDOW - window if window is not None else 0} are owed"
        )
    stream.outward[frame.channel] = window + size
    return not stream.closed


def _on_event(state: State, frame: Frame) -> bool:
    stream = _answered(state, frame)
    if not stream.event:
        raise ProtocolViolation(f"unasked {frame} ({stream.service.name})")
    if stream.inward:
        raise ProtocolViolation(f"{frame} before the EOF of channels {[*stream.inward]}")
    stream.event = False
    return not stream.closed


def _on_close(state: State, frame: Frame) -> bool:
    stream = _find(state, frame)
    if stream.closed:
        del state.streams[frame.stream]
        return False
    if not stream.replied:
        raise ProtocolViolation(f"{frame} before its REPLY")
    stream.peer_closed = True
    return True


def _on_pong(state: State, frame: Frame) -> bool:
    if not state.pings or state.pings[0] != frame.payload:
        raise ProtocolViolation("a PONG that answers no PING")
    state.pings.popleft()
    return True


_ACCEPT: Final[tuple[Callable[[State, Frame], bool], ...]] = (
    _unasked,  # NOP
    _on_hello,
    _unasked,  # OPEN: version 1 has no service for the agent to open
    _on_reply,
    _on_data,
    _on_credit,
    _on_eof,
    _on_event,
    _on_close,
    _unasked,  # PING
    _on_pong,
)
