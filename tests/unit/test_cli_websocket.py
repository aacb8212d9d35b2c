"""The client's WebSocket codec, against bytes built by hand and cut anywhere."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sporevm import __version__
from sporevm.api import models
from sporevm.cli import session
from sporevm.cli.websocket import (
    BINARY,
    CLOSE,
    MAX_MESSAGE,
    PING,
    TEXT,
    Reader,
    Refused,
    frame,
    upgrade,
)
from sporevm.errors import EngineError

HEAD = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n"


def served(opcode: int, payload: bytes, *, final: bool = True) -> bytes:
    """A frame as a server sends it."""
    first = bytes(((0x80 if final else 0) | opcode,))
    size = len(payload)
    if size < 126:
        return first + bytes((size,)) + payload
    if size < 1 << 16:
        return first + b"\x7e" + size.to_bytes(2, "big") + payload
    return first + b"\x7f" + size.to_bytes(8, "big") + payload


def read(*pieces: bytes) -> list[tuple[int, bytes]]:
    reader = Reader()
    return [message for piece in pieces for message in reader.feed(piece)]


def test_upgrade() -> None:
    head = upgrade("/v1/run").decode()
    assert head.startswith("GET /v1/run HTTP/1.1\r\n")
    assert f"\r\nSpore-Client: {__version__}\r\n" in head
    assert head.endswith("\r\n\r\n")


@pytest.mark.parametrize("size", [0, 1, 125, 126, 65535, 65536])
def test_sizes_both_ways(size: int) -> None:
    payload = bytes(size)
    sent = frame(BINARY, payload)
    assert sent[0] == 0x80 | BINARY
    assert sent[1] & 0x80, "a client's frames are masked"
    assert sent.endswith(b"\0\0\0\0" + payload)
    assert read(HEAD + served(BINARY, payload)) == [(BINARY, payload)]


@given(
    payloads=st.lists(st.tuples(st.sampled_from((TEXT, BINARY, PING)), st.binary(max_size=300))),
    cuts=st.lists(st.integers(0, 3000)),
)
def test_cut_anywhere(payloads: list[tuple[int, bytes]], cuts: list[int]) -> None:
    whole = HEAD + b"".join(served(kind, data) for kind, data in payloads)
    ends = [0, *sorted(min(cut, len(whole)) for cut in cuts), len(whole)]
    pieces = [whole[a:b] for a, b in zip(ends, ends[1:], strict=False)]
    assert read(*pieces) == payloads


def test_fragments_are_joined_around_a_ping() -> None:
    stream = (
        HEAD
        + served(TEXT, b"one ", final=False)
        + served(PING, b"?")
        + served(0, b"two ", final=False)
        + served(0, b"three")
        + served(CLOSE, b"")
    )
    assert read(stream) == [(PING, b"?"), (TEXT, b"one two three"), (CLOSE, b"")]


def test_a_refusal_carries_its_body() -> None:
    body = json.dumps({"error": {"code": "not_found", "message": "no"}}).encode()
    head = f"HTTP/1.1 404 Not Found\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    reader = Reader()
    assert list(reader.feed(head + body[:5])) == []
    with pytest.raises(Refused) as caught:
        list(reader.feed(body[5:]))
    assert caught.value.status == 404
    assert caught.value.body == json.loads(body)


@pytest.mark.parametrize("body", [b"", b"<html>"])
def test_a_refusal_without_sense(body: bytes) -> None:
    head = f"HTTP/1.1 500 Oh\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    with pytest.raises(Refused) as caught:
        read(head + body)
    assert caught.value.body is None


@pytest.mark.parametrize(
    "stream",
    [
        b"SSH-2.0-OpenSSH\r\n\r\n",
        b"x" * 70_000,
        HEAD + b"\x82\x85aaaabbbbb",
        HEAD + b"\x82\x7f" + (MAX_MESSAGE + 1).to_bytes(8, "big"),
    ],
)
def test_nonsense_is_an_engine_error(stream: bytes) -> None:
    with pytest.raises(EngineError):
        read(stream)


def test_endless_fragments_are_refused() -> None:
    piece = served(0, bytes(1 << 20), final=False)
    reader = Reader()
    list(reader.feed(HEAD + served(BINARY, b"", final=False)))
    with pytest.raises(EngineError):
        for _ in range(18):
            list(reader.feed(piece))


def test_numbers_the_engine_and_we_agree_on() -> None:
    assert session.STDIN_WINDOW == models.STDIN_WINDOW


@pytest.mark.parametrize(
    ("message", "status"),
    [
        ({"exit_code": 0}, 0),
        ({"exit_code": 42}, 42),
        ({"exit_code": 137, "signal": 9}, 137),
        ({"exit_code": 0, "signal": 15}, 143),
        ({"exit_code": 137, "signal": 9, "timed_out": True}, 124),
    ],
)
def test_exit_statuses(message: dict[str, object], status: int) -> None:
    assert session.exit_status(message) == status
