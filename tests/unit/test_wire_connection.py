"""The host's end of a connection: what it lets an agent do, and what it lets its owner do."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sporevm.errors import AgentError, ProtocolViolation, StateError
from sporevm.wire import constants as c
from sporevm.wire.connection import CREDIT_STEP, MAX_PINGS, Connection
from sporevm.wire.constants import Service, Tag
from sporevm.wire.frames import Decoder, Frame, encode
from sporevm.wire.tlv import encode as tlv

NONCE = bytes(range(16))
OK = tlv([(Tag.ERRNO, 0)])
ACK = c.ACK_MAGIC + struct.pack("<HHI", 1, 0, 0) + NONCE
HELLO = encode(0, c.HELLO, tlv([(Tag.VERSION, "0")]))


def feed(connection: Connection, data: bytes) -> list[Frame]:
    found: list[Frame] = []
    while data:
        room = connection.room()
        size = min(len(room), len(data))
        room[:size] = data[:size]
        data = data[size:]
        found.extend(connection.received(size))
    return found


def sent(connection: Connection) -> list[Frame]:
    data, decoder, found = connection.take(), Decoder(), []
    while data:
        room = decoder.room()
        size = min(len(room), len(data))
        room[:size] = data[:size]
        data = data[size:]
        decoder.wrote(size)
        found.extend(decoder.frames())
    return found


def credit(stream: int, channel: int, size: int) -> bytes:
    return encode(stream, c.CREDIT, struct.pack("<I", size), channel)


@pytest.fixture
def connection() -> Connection:
    made = Connection(NONCE)
    made.start()
    assert len(made.take()) == c.RECORD_BYTES
    assert [frame.type for frame in feed(made, ACK + HELLO)] == [c.HELLO]
    return made


@pytest.fixture
def stream(connection: Connection) -> int:
    """An exec that was answered."""
    made = connection.open(Service.EXEC, b"")
    connection.take()
    feed(connection, encode(made, c.REPLY, OK))
    return made


def test_flush_comes_before_sync() -> None:
    connection = Connection(NONCE)
    connection.start(flush=True)
    data = connection.take()
    assert len(data) == c.FLUSH_BYTES + c.RECORD_BYTES
    assert data.lstrip(b"\0").startswith(c.SYNC_MAGIC)
    assert connection.take() == b""


def test_frames_may_follow_sync_at_once() -> None:
    connection = Connection(NONCE)
    connection.start()
    assert connection.open(Service.PROCS, b"") == 1
    assert connection.take()[c.RECORD_BYTES :] == encode(1, c.OPEN, b"\x04")
    got = feed(connection, b"stale" + ACK + HELLO + encode(1, c.REPLY, OK) + encode(1, c.CLOSE))
    assert [frame.type for frame in got] == [c.HELLO, c.REPLY, c.CLOSE]


@pytest.mark.parametrize(
    ("version", "error"), [(0, AgentError), (2, ProtocolViolation), (9, ProtocolViolation)]
)
def test_versions(version: int, error: type[AgentError]) -> None:
    connection = Connection(NONCE)
    with pytest.raises(error) as caught:
        feed(connection, c.ACK_MAGIC + struct.pack("<HHI", version, 0, 0) + NONCE)
    assert type(caught.value) is error
    with pytest.raises(error):
        feed(connection, ACK)


def test_a_whole_exec(connection: Connection, stream: int) -> None:
    got = feed(
        connection,
        encode(stream, c.DATA, b"out", 1)
        + encode(stream, c.DATA, b"err", 2)
        + encode(stream, c.EOF, b"", 2)
        + encode(stream, c.EOF, b"", 1)
        + encode(stream, c.EVENT, tlv([(Tag.EXIT_CODE, 0)]))
        + encode(stream, c.CLOSE),
    )
    assert [(f.type, f.channel) for f in got] == [
        (c.DATA, 1), (c.DATA, 2), (c.EOF, 2), (c.EOF, 1), (c.EVENT, 0), (c.CLOSE, 0),
    ]  # fmt: skip
    connection.credit(stream, 1, 3)  # what has ended needs no credit
    assert connection.window(stream, 0) == 0
    assert sent(connection) == []
    connection.close(stream)
    connection.close(stream)
    assert sent(connection) == [Frame(stream, c.CLOSE, 0, b"")]


Violation = Callable[[int], bytes]
VIOLATIONS: dict[str, Violation] = {
    "nop": lambda s: encode(0, c.NOP),
    "second hello": lambda s: HELLO,
    "open": lambda s: encode(2, c.OPEN, b"\x0e"),
    "ping": lambda s: encode(0, c.PING),
    "pong": lambda s: encode(0, c.PONG),
    "second reply": lambda s: encode(s, c.REPLY, OK),
    "unknown stream": lambda s: encode(s + 2, c.DATA, b"x", 1),
    "even stream": lambda s: encode(2, c.CLOSE),
    "channel of the host": lambda s: encode(s, c.DATA, b"x", 0),
    "channel of nobody": lambda s: encode(s, c.DATA, b"x", 3),
    "data after eof": lambda s: encode(s, c.EOF, b"", 1) + encode(s, c.DATA, b"x", 1),
    "second eof": lambda s: encode(s, c.EOF, b"", 1) * 2,
    "eof of the host's channel": lambda s: encode(s, c.EOF, b"", 0),
    "window overrun": lambda s: encode(s, c.DATA, bytes(65536), 1) * 4 + encode(s, c.DATA, b"x", 1),
    "credit of nothing sent": lambda s: credit(s, 0, 1),
    "credit of zero": lambda s: credit(s, 0, 0),
    "credit of all ones": lambda s: credit(s, 0, 0xFFFFFFFF),
    "credit of the agent's channel": lambda s: credit(s, 1, 1),
    "exit before eof": lambda s: encode(s, c.EOF, b"", 1) + encode(s, c.EVENT),
    "two exits": lambda s: (
        encode(s, c.EOF, b"", 1) + encode(s, c.EOF, b"", 2) + encode(s, c.EVENT) * 2
    ),
    "frame behind close": lambda s: encode(s, c.CLOSE) + encode(s, c.DATA, b"x", 1),
    "second close": lambda s: encode(s, c.CLOSE) * 2,
}


@pytest.mark.parametrize("name", VIOLATIONS)
def test_violations(connection: Connection, stream: int, name: str) -> None:
    with pytest.raises(ProtocolViolation):
        feed(connection, VIOLATIONS[name](stream))
    with pytest.raises(ProtocolViolation):  # and it stays broken
        feed(connection, encode(stream, c.DATA, b"fine", 2))


@pytest.mark.parametrize(
    "frame",
    [
        encode(1, c.DATA, b"x", 1),
        encode(1, c.EOF, b"", 1),
        encode(1, c.EVENT),
        encode(1, c.CLOSE),
        credit(1, 0, 1),
    ],
)
def test_nothing_comes_before_a_reply(connection: Connection, frame: bytes) -> None:
    assert connection.open(Service.EXEC, b"") == 1
    with pytest.raises(ProtocolViolation, match="before its REPLY"):
        feed(connection, frame)


def test_nothing_comes_before_hello() -> None:
    connection = Connection(NONCE)
    connection.open(Service.PROCS, b"")
    with pytest.raises(ProtocolViolation, match="before HELLO"):
        feed(connection, ACK + encode(1, c.REPLY, OK))


@pytest.mark.parametrize("service", [s for s in Service if c.RULES[s] == c.ONE_SHOT])
def test_one_shot_services_have_no_data_and_no_event(
    connection: Connection, service: Service
) -> None:
    for frame in (encode(1, c.DATA, b"x", 1), encode(3, c.EVENT)):
        made = Connection(NONCE)
        made.open(service, b"")
        made.open(service, b"")
        feed(made, ACK + HELLO + encode(1, c.REPLY, OK) + encode(3, c.REPLY, OK))
        with pytest.raises(ProtocolViolation):
            feed(made, frame)


def test_after_our_close_frames_are_checked_but_not_seen(
    connection: Connection, stream: int
) -> None:
    connection.close(stream)
    assert feed(connection, encode(stream, c.DATA, bytes(65536), 1) * 4) == []
    assert feed(connection, encode(stream, c.CLOSE)) == []
    with pytest.raises(ProtocolViolation, match="which is over"):
        feed(connection, encode(stream, c.CLOSE))


def test_a_reply_may_cross_our_close(connection: Connection) -> None:
    stream = connection.open(Service.STAT, b"")
    connection.close(stream)
    assert feed(connection, encode(stream, c.REPLY, OK) + encode(stream, c.CLOSE)) == []


def test_our_data_keeps_the_window(connection: Connection, stream: int) -> None:
    for _ in range(4):
        connection.data(stream, 0, bytes(65536))
    assert connection.window(stream, 0) == 0
    with pytest.raises(ValueError, match="can't be sent now"):
        connection.data(stream, 0, b"x")
    assert [f.type for f in feed(connection, credit(stream, 0, 100))] == [c.CREDIT]
    assert connection.window(stream, 0) == 100
    connection.eof(stream, 0)
    connection.eof(stream, 0)
    assert [frame.type for frame in sent(connection)] == [c.DATA] * 4 + [c.EOF]
    assert connection.window(stream, 0) == 0
    feed(connection, credit(stream, 0, c.WINDOW - 100))  # those we sent before the EOF
    with pytest.raises(ProtocolViolation):
        feed(connection, credit(stream, 0, 1))


def test_credit_goes_out_in_steps(connection: Connection, stream: int) -> None:
    feed(connection, encode(stream, c.DATA, bytes(65536), 1) * 3)
    connection.credit(stream, 1, CREDIT_STEP - 1)
    assert sent(connection) == []
    connection.credit(stream, 1, 1)
    assert sent(connection) == [Frame(stream, c.CREDIT, 1, struct.pack("<I", CREDIT_STEP))]
    with pytest.raises(ValueError, match="not received"):
        connection.credit(stream, 1, 3 * 65536)


def test_streams_are_bounded_and_freed_by_both_closes(connection: Connection) -> None:
    streams = [connection.open(Service.PROCS, b"") for _ in range(c.MAX_STREAMS)]
    assert streams == list(range(1, 2 * c.MAX_STREAMS, 2))
    assert connection.full
    with pytest.raises(StateError):
        connection.open(Service.PROCS, b"")
    connection.close(1)
    assert connection.full
    feed(connection, encode(1, c.REPLY, OK) + encode(1, c.CLOSE))
    assert not connection.full
    assert connection.open(Service.PROCS, b"") == 2 * c.MAX_STREAMS + 1


def test_pings_are_answered_in_order(connection: Connection) -> None:
    connection.ping(b"a")
    connection.ping(b"b")
    assert len(feed(connection, encode(0, c.PONG, b"a"))) == 1
    with pytest.raises(ProtocolViolation):
        feed(connection, encode(0, c.PONG, b"a"))


def test_pings_are_bounded(connection: Connection) -> None:
    with pytest.raises(ValueError, match="at most 64"):
        connection.ping(bytes(65))
    for _ in range(MAX_PINGS):
        connection.ping(b"")
    with pytest.raises(StateError):
        connection.ping(b"")


def test_frames_before_a_violation_are_delivered(connection: Connection, stream: int) -> None:
    data = encode(stream, c.DATA, b"last words", 1) + b"\xff" * 12
    connection.room()[: len(data)] = data
    frames = connection.received(len(data))
    assert next(frames).payload == b"last words"
    with pytest.raises(ProtocolViolation):
        next(frames)


@settings(deadline=None, max_examples=300)
@given(
    st.lists(
        st.one_of(
            st.binary(max_size=30),
            st.builds(
                lambda kind, stream, channel, size: encode(stream, kind, bytes(size), channel),
                st.integers(0, 10),
                st.integers(0, 6),
                st.integers(0, 3),
                st.sampled_from([0, 1, 4, 5, 1000, 65536]),
            ),
            st.sampled_from([encode(s, c.REPLY, OK) for s in (1, 3, 5)]),
        ),
        max_size=40,
    )
)
def test_no_agent_can_do_more_than_break_it(chunks: list[bytes]) -> None:
    """Whatever comes: frames or a violation, within the windows, and few bytes in answer."""
    connection = Connection(NONCE)
    feed(connection, ACK + HELLO)
    for service in (Service.EXEC, Service.FILE_WRITE, Service.LIST):
        connection.open(service, b"")
    connection.take()
    held: dict[tuple[int, int], int] = {}
    try:
        for chunk in chunks:
            for frame in feed(connection, chunk):
                if frame.type == c.DATA:
                    key = (frame.stream, frame.channel)
                    held[key] = held.get(key, 0) + len(frame.payload)
                    assert held[key] <= c.WINDOW
    except ProtocolViolation:
        pass
    assert connection.take() == b""
