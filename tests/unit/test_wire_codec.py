"""Properties of the codec: any bytes, any split."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sporevm.errors import ProtocolViolation, UsageError
from sporevm.wire import constants as c
from sporevm.wire import frames, tlv
from sporevm.wire.constants import Tag
from sporevm.wire.frames import Decoder, Frame
from sporevm.wire.sync import AckScanner, sync_record
from sporevm.wire.tlv import Fields

NONCE = bytes(range(16))


@st.composite
def any_frame(draw: st.DrawFn) -> Frame:
    kind = draw(st.integers(0, 10))
    least, most, connection, has_channel = frames._LIMITS[kind]
    payload = draw(st.binary(min_size=least, max_size=min(most, 300)))
    if kind == c.DATA and draw(st.booleans()):
        payload *= draw(st.integers(1, c.MAX_PAYLOAD // len(payload)))
    stream = 0 if connection else draw(st.integers(1, c.MAX_STREAM_ID))
    channel = draw(st.integers(0, 3)) if has_channel else 0
    return Frame(stream, kind, channel, payload)


def feed(decoder: Decoder, data: bytes, cuts: list[int]) -> list[Frame]:
    found: list[Frame] = []
    edges = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    for begin, end in zip(edges, edges[1:], strict=False):
        at = begin
        while at < end:
            room = decoder.room()
            assert len(room) > 0
            size = min(len(room), end - at)
            room[:size] = data[at : at + size]
            decoder.wrote(size)
            at += size
            found.extend(decoder.frames())
            assert len(decoder) < c.HEADER_BYTES + c.MAX_PAYLOAD
    return found


@settings(deadline=None)
@given(st.lists(any_frame(), max_size=12), st.lists(st.integers(0, 1 << 20), max_size=40))
def test_frames_survive_any_split(sent: list[Frame], cuts: list[int]) -> None:
    data = b"".join(frames.encode(f.stream, f.type, f.payload, f.channel) for f in sent)
    decoder = Decoder()
    assert feed(decoder, data, cuts) == sent
    assert len(decoder) == 0


@settings(deadline=None)
@given(st.binary(max_size=4000), st.lists(st.integers(0, 4000), max_size=10))
def test_garbage_is_a_violation_or_waits(data: bytes, cuts: list[int]) -> None:
    with contextlib.suppress(ProtocolViolation):
        feed(Decoder(), data, cuts)


@given(st.integers(0, 65537), st.integers(0, 3), st.integers(0, 12), st.integers(0, 5))
def test_a_header_is_judged_before_its_payload(
    length: int, stream: int, kind: int, channel: int
) -> None:
    decoder = Decoder()
    header = frames._HEADER.pack(length, stream, kind, channel, 0)
    decoder.room()[: len(header)] = header
    decoder.wrote(len(header))
    try:
        found = list(decoder.frames())
    except ProtocolViolation:
        return
    least, most, connection, has_channel = frames._LIMITS[kind]
    assert least <= length <= most
    assert (stream == 0) is connection
    assert channel <= (3 if has_channel else 0)
    assert len(found) == (1 if length == 0 else 0)


def test_a_stream_of_great_frames_never_moves_more_than_one() -> None:
    decoder = Decoder()
    frame = frames.encode(1, c.DATA, bytes(c.MAX_PAYLOAD), 1)
    data = frame * 9
    assert len(feed(decoder, data, list(range(0, len(data), 50_001)))) == 9


@given(st.lists(st.tuples(st.integers(0, 65535), st.binary(max_size=50)), max_size=30))
def test_tlv_roundtrip(fields: list[tuple[int, bytes]]) -> None:
    fields = [(tag, value.replace(b"\0", b"")) for tag, value in fields]
    assert tlv.split(tlv.encode(fields)) == fields


@given(st.binary(max_size=300))
def test_tlv_garbage(data: bytes) -> None:
    try:
        fields = tlv.split(data)
    except ProtocolViolation:
        return
    assert sum(6 + len(value) for _, value in fields) == len(data)
    with contextlib.suppress(ProtocolViolation):
        Fields(data)


def test_fields_are_typed() -> None:
    data = tlv.encode(
        [
            (Tag.SIZE, 12),
            (Tag.PATH, "/tmp/\udcff"),
            (9999, b"unknown"),
            (Tag.ENTRY, tlv.encode([(Tag.NAME, "a")])),
            (Tag.ENTRY, tlv.encode([(Tag.NAME, "b")])),
        ]
    )
    fields = Fields(data)
    assert fields.u64(Tag.SIZE) == 12
    assert fields.raw(Tag.PATH) == b"/tmp/\xff"
    assert fields.text(Tag.PATH) == "/tmp/\udcff"
    assert [entry.text(Tag.NAME) for entry in fields.nested(Tag.ENTRY)] == ["a", "b"]
    assert fields.u64(Tag.PID, 7) == 7
    assert Tag.SIZE in fields
    assert Tag.PID not in fields
    for missing in (lambda: fields.u64(Tag.PID), lambda: fields.raw(Tag.HOST)):
        with pytest.raises(ProtocolViolation, match="left out"):
            missing()
    with pytest.raises(ProtocolViolation, match="SIZE 12, more than 11"):
        fields.u64(Tag.SIZE, most=11)


@pytest.mark.parametrize("field", [(Tag.PATH, "a\0b"), (Tag.SIZE, -1), (Tag.SIZE, 1 << 64)])
def test_what_cannot_be_sent_is_the_callers_mistake(field: tuple[Tag, int | str]) -> None:
    with pytest.raises(UsageError):
        tlv.encode([field])


def test_every_tag_has_one_type() -> None:
    assert set(Tag) == c.U64_TAGS | c.STR_TAGS | c.BLOB_TAGS
    assert len(c.U64_TAGS) + len(c.STR_TAGS) + len(c.BLOB_TAGS) == len(Tag)


def ack(nonce: bytes, version: int = 1) -> bytes:
    return c.ACK_MAGIC + bytes((version, 0, 0, 0, 0, 0, 0, 0)) + nonce


@given(st.binary(max_size=200), st.integers(0, 3), st.lists(st.integers(0, 300), max_size=8))
def test_an_ack_is_found_behind_any_noise(noise: bytes, others: int, cuts: list[int]) -> None:
    data = noise + ack(NONCE[::-1]) * others + ack(NONCE) + b"rest"
    scanner = AckScanner(NONCE)
    edges = sorted({0, len(data), *(cut % len(data) for cut in cuts)})
    for begin, end in zip(edges, edges[1:], strict=False):
        rest = scanner.feed(data[begin:end])
        if rest is not None:
            assert rest + data[end:] == b"rest"
            assert scanner.version == 1
            return
        assert len(scanner._held) < c.RECORD_BYTES
    raise AssertionError("not found")


@pytest.mark.parametrize("noise", [b"\0", c.ACK_MAGIC[:1], ack(NONCE[::-1])])
def test_the_search_for_an_ack_ends(noise: bytes) -> None:
    scanner, chunk = AckScanner(NONCE), noise * (65536 // len(noise))
    with pytest.raises(ProtocolViolation, match="no answer to SYNC"):
        for _ in range(c.MAX_SKIP // len(chunk) + 2):
            assert scanner.feed(chunk) is None


def test_no_mixture_of_flush_and_sync_reads_as_frames() -> None:
    """An agent in the middle of a frame finds the SYNC behind the zeros, wherever it was."""
    data = bytes(c.FLUSH_BYTES) + sync_record(NONCE)
    for missing in (1, 11, 12, 13, 500, c.MAX_PAYLOAD, c.MAX_PAYLOAD + c.HEADER_BYTES):
        decoder, at = Decoder(), missing  # the first `missing` zeros end the frame it was in
        with pytest.raises(ProtocolViolation):
            while at < len(data):
                room = decoder.room()
                size = min(len(room), len(data) - at)
                room[:size] = data[at : at + size]
                decoder.wrote(size)
                at += size
                assert all(frame.type == c.NOP for frame in decoder.frames())
