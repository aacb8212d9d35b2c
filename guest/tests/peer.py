"""A small host for tests of the agent: blocking, independent of `sporevm.wire` on purpose.

A second implementation of the protocol finds the misunderstandings that two ends written against
the same code would share.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterable
from dataclasses import dataclass, field

SYNC = bytes.fromhex("F59AC3E1B78DD296AFE891CBF0A4BD87")
ACK = bytes.fromhex("D186FAB39CE7A5C88BF492BEE097CDAA")
HELLO, OPEN, REPLY, DATA, CREDIT, EOF, EVENT, CLOSE, PING, PONG = range(1, 11)
(CONFIGURE, EXEC, ATTACH, PROCS, KILL, FILE_READ, FILE_WRITE, STAT, LIST, REMOVE, RENAME, MKDIR,
 METRICS, TCP_CONNECT, SYNC_FS, QUIESCE, SHUTDOWN) = range(1, 18)  # fmt: skip
TAGS = {
    "errno": 1, "message": 2, "version": 3, "boot_id": 4, "path": 5, "path2": 6, "mode": 7,
    "uid": 8, "gid": 9, "size": 10, "offset": 11, "flags": 12, "mtime_ns": 13, "kind": 14,
    "entry": 15, "target": 16, "arg": 20, "env": 21, "cwd": 22, "user": 23, "proc": 24, "rows": 25,
    "cols": 26, "signal": 27, "exit_code": 28, "term_signal": 29, "pid": 30, "timeout_ms": 31,
    "stdout_seen": 32, "stderr_seen": 33, "stdin_seen": 34, "hostname": 40, "machine_id": 41,
    "clock_ns": 42, "entropy": 43, "root_drive": 44, "root_fstype": 45, "scratch_drive": 46,
    "scratch_fstype": 47, "volume": 48, "file": 49, "drive": 50, "fstype": 51, "data": 52,
    "name": 53, "value": 54, "tag_id": 55, "port": 60, "host": 61,
}  # fmt: skip
NAMES = {number: name for name, number in TAGS.items()}
BLOBS = {"entry", "entropy", "volume", "file", "data"}
WINDOW = 262144

Value = int | str | bytes | dict[str, "Value"] | list["Value"]
Fields = dict[str, list[int | bytes]]


def tlv(**fields: Value) -> bytes:
    out = []
    for name, value in fields.items():
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, int):
                raw = struct.pack("<Q", one)
            elif isinstance(one, dict):
                raw = tlv(**one)
            else:
                raw = one.encode() if isinstance(one, str) else one  # type: ignore[assignment]
            out.append(struct.pack("<HI", TAGS[name], len(raw)) + raw)
    return b"".join(out)


STRINGS = {
    "message", "version", "boot_id", "path", "path2", "target", "arg", "env", "cwd", "user", "proc",
    "hostname", "machine_id", "root_drive", "root_fstype", "scratch_drive", "scratch_fstype",
    "drive", "fstype", "name", "tag_id", "host",
}  # fmt: skip


def parse(payload: bytes) -> Fields:
    found: Fields = {}
    at = 0
    while at < len(payload):
        tag, size = struct.unpack_from("<HI", payload, at)
        raw = payload[at + 6 : at + 6 + size]
        assert len(raw) == size, "a TLV runs over its payload"
        name = NAMES[tag]
        value = raw if name in STRINGS | BLOBS else struct.unpack("<Q", raw)[0]
        found.setdefault(name, []).append(value)
        at += 6 + size
    return found


@dataclass
class Stream:
    id: int
    reply: Fields | None = None
    event: Fields | None = None
    close: Fields | None = None
    out: dict[int, bytearray] = field(default_factory=lambda: {1: bytearray(), 2: bytearray()})
    ended: set[int] = field(default_factory=set)
    window: int = WINDOW  # what we may send on channel 0
    paused: bool = False  # give no credit
    frames: list[int] = field(default_factory=list)

    @property
    def errno(self) -> int:
        assert self.reply is not None
        code = self.reply["errno"][0]
        assert isinstance(code, int)
        return code

    def number(self, name: str) -> int:
        assert self.reply is not None
        value = self.reply[name][0]
        assert isinstance(value, int)
        return value

    def exit(self) -> tuple[int, int, int]:
        """Exit code, signal, flags."""
        assert self.event is not None, "no exit event"
        code, sig = self.event["exit_code"][0], self.event["term_signal"][0]
        flags = self.event.get("flags", [0])[0]
        assert isinstance(code, int) and isinstance(sig, int) and isinstance(flags, int)
        return code, sig, flags


class Peer:
    def __init__(self, sock: socket.socket, timeout: float = 20) -> None:
        self.sock = sock
        sock.settimeout(timeout)
        self.buffer = b""
        self.streams: dict[int, Stream] = {}
        self.next_id = 1
        self.hello: Fields = {}
        self.pongs: list[bytes] = []
        self.reads = 0

    # Connection

    def sync(self, *, flush: bool = False, low: int = 1, high: int = 1, hello: bool = True) -> None:
        nonce = os.urandom(16)
        self.streams.clear()
        self.next_id, self.hello, self.buffer = 1, {}, b""
        zeros = bytes(65552) if flush else b""
        self.sock.sendall(zeros + SYNC + struct.pack("<HHI", low, high, 0) + nonce)
        while (
            (at := self.buffer.find(ACK)) < 0
            or len(self.buffer) < at + 40
            or (self.buffer[at + 24 : at + 40] != nonce)
        ):
            stale = at >= 0 and len(self.buffer) >= at + 40
            self.buffer = self.buffer[at + 1 :] if stale else self.buffer + self._read()
        self.version = struct.unpack_from("<H", self.buffer, at + 16)[0]
        self.buffer = self.buffer[at + 40 :]
        while hello and self.version and not self.hello:
            self.step()

    def _read(self) -> bytes:
        data = self.sock.recv(262144)
        assert data, "the agent hung up"
        self.reads += 1
        return data

    def frame(self, stream: int, kind: int, payload: bytes = b"", channel: int = 0) -> None:
        head = struct.pack("<IIBBH", len(payload), stream, kind, channel, 0)
        self.sock.sendall(head + payload)

    def step(self) -> None:
        """Take one frame."""
        while len(self.buffer) < 12:
            self.buffer += self._read()
        size, stream, kind, channel, zero = struct.unpack_from("<IIBBH", self.buffer)
        assert size <= 65536 and zero == 0 and kind <= 10, f"malformed {self.buffer[:12].hex()}"
        while len(self.buffer) < 12 + size:
            self.buffer += self._read()
        payload, self.buffer = self.buffer[12 : 12 + size], self.buffer[12 + size :]
        if kind == HELLO:
            self.hello = parse(payload)
        elif kind == PONG:
            self.pongs.append(payload)
        else:
            self._stream_frame(self.streams[stream], kind, channel, payload)

    def _stream_frame(self, s: Stream, kind: int, channel: int, payload: bytes) -> None:
        assert s.close is None, "a frame behind CLOSE"
        s.frames.append(kind)
        if kind == REPLY:
            assert s.reply is None
            s.reply = parse(payload)
        else:
            assert s.reply is not None, "something before REPLY"
        if kind == DATA:
            assert payload and channel not in s.ended
            s.out[channel] += payload
            if not s.paused:
                self.frame(s.id, CREDIT, struct.pack("<I", len(payload)), channel)
        elif kind == CREDIT:
            s.window += struct.unpack("<I", payload)[0]
            assert s.window <= WINDOW
        elif kind == EOF:
            assert channel not in s.ended
            s.ended.add(channel)
        elif kind == EVENT:
            s.event = parse(payload)
        elif kind == CLOSE:
            s.close = parse(payload)

    # Streams

    def open(self, service: int, **fields: Value) -> Stream:
        s = Stream(self.next_id)
        self.next_id += 2
        self.streams[s.id] = s
        self.frame(s.id, OPEN, bytes([service]) + tlv(**fields))
        return s

    def replied(self, s: Stream) -> Stream:
        while s.reply is None:
            self.step()
        return s

    def finish(self, s: Stream) -> Stream:
        """Until the agent closes; then close too."""
        while s.close is None:
            self.step()
        self.frame(s.id, CLOSE)
        return s

    def call(self, service: int, **fields: Value) -> Stream:
        return self.finish(self.open(service, **fields))

    def ok(self, service: int, **fields: Value) -> Stream:
        s = self.call(service, **fields)
        assert s.errno == 0, s.reply
        return s

    def send(self, s: Stream, data: bytes) -> None:
        at = 0
        while at < len(data):
            while s.window == 0 and s.close is None:
                self.step()
            if s.close is not None:
                return
            piece = data[at : at + min(s.window, 65536)]
            self.frame(s.id, DATA, piece)
            s.window -= len(piece)
            at += len(piece)

    def run(self, *argv: str, proc: str, **fields: Value) -> Stream:
        return self.finish(self.open(EXEC, proc=proc, arg=list(argv), **fields))

    def write(self, path: str, data: bytes, **fields: Value) -> Stream:
        s = self.replied(self.open(FILE_WRITE, path=path, **fields))
        if s.errno == 0:
            self.send(s, data)
            self.frame(s.id, EOF)
        return self.finish(s)

    def entries(self, chunks: Iterable[int | bytes]) -> list[Fields]:
        return [parse(one) for one in chunks if isinstance(one, bytes)]
