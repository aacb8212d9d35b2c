"""Golden vectors of the guest protocol: `python tests/vectors/make.py` writes the JSON files.

The Python codec and the C agent are both tested against these files, so this program packs bytes
by hand with `struct`, from docs/protocol.md alone, and imports neither.

frames.json    [{name, hex, frames: [{stream, type, channel, payload_hex}], error, rule?}]
               Feed `hex` to a frame decoder. `frames` come out; then, if `error`, a bad header.
               rule "header": length, type, channel or zero is out of its range whatever the type.
               rule "type":   the header is plausible but wrong for its type (a DATA of no bytes).
               A decoder that has more bytes to wait for is not in error: names say "incomplete".
tlv.json       [{name, hex, fields: [[tag, value_hex]], error, rule?}]
               rule "shape": it does not end at its end.  rule "type": a known tag has a bad value.
sync.json      [{name, role, hex, end, ...}]  `end`: offset just behind the record, null if none.
               role "agent": scan for a SYNC; lowest, highest, nonce_hex; `ack_hex` is the answer of
               an agent that speaks version 1 only.
               role "host": scan for an ACK with nonce_hex; version.
messages.json  [{name, sender, hex, stream, type, service?, fields}]  one whole frame, in clear.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable
from pathlib import Path

Json = dict[str, object]

NOP, HELLO, OPEN, REPLY, DATA, CREDIT, EOF, EVENT, CLOSE, PING, PONG = range(11)
SYNC_MAGIC = bytes.fromhex("F59AC3E1B78DD296AFE891CBF0A4BD87")
ACK_MAGIC = bytes.fromhex("D186FAB39CE7A5C88BF492BEE097CDAA")
NONCE = bytes(range(1, 17))
OTHER_NONCE = bytes(range(0xA0, 0xB0))


def raw(length: int, stream: int, kind: int, channel: int = 0, zero: int = 0) -> bytes:
    return struct.pack("<IIBBH", length, stream, kind, channel, zero)


def frame(stream: int, kind: int, payload: bytes = b"", channel: int = 0) -> bytes:
    return raw(len(payload), stream, kind, channel) + payload


def u64(value: int) -> bytes:
    return struct.pack("<Q", value)


def tlv(*fields: tuple[int, bytes]) -> bytes:
    return b"".join(struct.pack("<HI", tag, len(value)) + value for tag, value in fields)


def pattern(size: int) -> bytes:
    return (bytes(range(256)) * (size // 256 + 1))[:size]


def frames() -> list[Json]:
    made: list[Json] = []

    def add(
        name: str, good: Iterable[tuple[int, int, bytes, int]], tail: bytes = b"", rule: str = ""
    ) -> None:
        items = list(good)
        entry: Json = {
            "name": name,
            "hex": (b"".join(frame(s, k, p, c) for s, k, p, c in items) + tail).hex(),
            "frames": [
                {"stream": s, "type": k, "channel": c, "payload_hex": p.hex()}
                for s, k, p, c in items
            ],
            "error": bool(rule),
        }
        if rule:
            entry["rule"] = rule
        made.append(entry)

    add("nothing", [])
    add("nop", [(0, NOP, b"", 0)])
    add("three nops in a row", [(0, NOP, b"", 0)] * 3)
    add("hello", [(0, HELLO, tlv((3, b"0.1.0"), (4, b"b" * 36), (12, u64(0))), 0)])
    add("open exec", [(1, OPEN, b"\x02" + tlv((24, b"main"), (20, b"/bin/true")), 0)])
    add("open without fields", [(3, OPEN, b"\x0d", 0)])
    add("open by the agent", [(2, OPEN, b"\x0e" + tlv((60, u64(80))), 0)])
    add("reply ok", [(1, REPLY, tlv((1, u64(0)), (30, u64(7))), 0)])
    add("reply that is empty", [(1, REPLY, b"", 0)])
    for channel in range(4):
        add(f"data on channel {channel}", [(1, DATA, b"hello", channel)])
    add("data of one byte", [(1, DATA, b"\x00", 1)])
    add("data of the greatest size", [(5, DATA, pattern(65536), 1)])
    add("credit of one byte", [(1, CREDIT, struct.pack("<I", 1), 1)])
    add("credit of a whole window", [(1, CREDIT, struct.pack("<I", 262144), 2)])
    add("eof", [(1, EOF, b"", 1)])
    add("event of an exit", [(1, EVENT, tlv((28, u64(3)), (29, u64(0))), 0)])
    add("close", [(1, CLOSE, b"", 0)])
    add("close with fields", [(1, CLOSE, tlv((12, u64(1))), 0)])
    add("ping and pong", [(0, PING, b"abc", 0), (0, PONG, b"abc", 0)])
    add("ping of nothing", [(0, PING, b"", 0)])
    add("ping of the greatest size", [(0, PING, pattern(64), 0)])
    add("greatest stream ids", [(0xFFFFFFFF, CLOSE, b"", 0), (0xFFFFFFFE, EOF, b"", 3)])
    add(
        "a short process",
        [
            (1, REPLY, tlv((1, u64(0)), (30, u64(42))), 0),
            (1, DATA, b"out\n", 1),
            (1, DATA, b"err\n", 2),
            (1, EOF, b"", 1),
            (1, EOF, b"", 2),
            (1, EVENT, tlv((28, u64(0)), (29, u64(0))), 0),
            (1, CLOSE, b"", 0),
        ],
    )
    add("incomplete header", [(1, EOF, b"", 1)], frame(1, CLOSE)[:11])
    add("incomplete payload", [(1, EOF, b"", 1)], frame(1, DATA, b"12345", 1)[:-1])

    before = [(1, DATA, b"good", 1)]
    add("length one too great", before, raw(65537, 1, DATA, 1), "header")
    add("length of all ones", before, raw(0xFFFFFFFF, 1, DATA, 1), "header")
    add("type 11", before, raw(0, 1, 11), "header")
    add("type 255", before, raw(0, 1, 255), "header")
    add("channel 4", before, raw(4, 1, DATA, 4), "header")
    add("channel 255", before, raw(0, 1, EOF, 255), "header")
    for kind in (NOP, HELLO, OPEN, REPLY, EVENT, CLOSE, PING, PONG):
        stream = 0 if kind in (NOP, HELLO, PING, PONG) else 1
        add(f"channel 1 on type {kind}", before, raw(0, stream, kind, 1), "header")
    add("zero is one", before, raw(0, 1, EOF, 1, 1), "header")
    add("zero is 0x0100", before, raw(0, 1, EOF, 1, 0x100), "header")
    add("a sync in the middle", before, SYNC_MAGIC + struct.pack("<HHI", 1, 1, 0) + NONCE, "header")

    add("nop with a payload", before, raw(1, 0, NOP), "type")
    add("nop of a stream", before, raw(0, 1, NOP), "type")
    add("hello of a stream", before, raw(0, 1, HELLO), "type")
    add("open of stream 0", before, raw(1, 0, OPEN), "type")
    add("open without a service", before, raw(0, 1, OPEN), "type")
    add("reply of stream 0", before, raw(0, 0, REPLY), "type")
    add("data of stream 0", before, raw(1, 0, DATA, 1), "type")
    add("data of no bytes", before, raw(0, 1, DATA, 1), "type")
    add("credit of three bytes", before, raw(3, 1, CREDIT, 1), "type")
    add("credit of five bytes", before, raw(5, 1, CREDIT, 1), "type")
    add("eof with a payload", before, raw(1, 1, EOF, 1), "type")
    add("event of stream 0", before, raw(0, 0, EVENT), "type")
    add("close of stream 0", before, raw(0, 0, CLOSE), "type")
    add("ping of 65 bytes", before, raw(65, 0, PING), "type")
    add("ping of a stream", before, raw(0, 1, PING), "type")
    add("pong of 65 bytes", before, raw(65, 0, PONG), "type")
    add("pong of a stream", before, raw(0, 1, PONG), "type")
    return made


def tlvs() -> list[Json]:
    made: list[Json] = []

    def good(name: str, *fields: tuple[int, bytes]) -> None:
        made.append(
            {
                "name": name,
                "hex": tlv(*fields).hex(),
                "fields": [[tag, value.hex()] for tag, value in fields],
                "error": False,
            }
        )

    def bad(name: str, data: bytes, rule: str) -> None:
        made.append({"name": name, "hex": data.hex(), "fields": [], "error": True, "rule": rule})

    good("empty")
    good("u64 zero", (1, u64(0)))
    good("u64 greatest", (10, u64(0xFFFFFFFFFFFFFFFF)))
    good("empty str", (22, b""))
    good("text is UTF-8", (2, "kein Gerät 🖥".encode()))
    good("a path is raw bytes", (5, b"/tmp/\xff\xfe\x01"))
    good(
        "order of repeats is kept",
        (20, b"sh"),
        (20, b"-c"),
        (20, b""),
        (20, b"exit 3"),
        (21, b"A=1"),
        (20, b"x"),
    )
    good("blob with NUL", (52, b"\x00\x01\x00"))
    good("nested", (15, tlv((24, b"main"), (30, u64(12)), (12, u64(0)))), (15, tlv((24, b"p2"))))
    good("unknown tags", (9999, b"\x00anything"), (1, u64(2)), (65535, b""))
    good("greatest message", (2, b"m" * 4096))
    bad("half a header", bytes(5), "shape")
    bad("one byte", b"\x01", "shape")
    bad("value cut by one", tlv((5, b"/etc"))[:-1], "shape")
    bad("length of all ones", struct.pack("<HI", 5, 0xFFFFFFFF) + b"x", "shape")
    bad("length past the end by one", struct.pack("<HI", 5, 2) + b"x", "shape")
    bad("rest behind a good field", tlv((1, u64(0))) + b"\x00", "shape")
    bad("header without its value", struct.pack("<HI", 1, 8), "shape")
    bad("u64 of seven bytes", tlv((1, bytes(7))), "type")
    bad("u64 of nine bytes", tlv((1, bytes(9))), "type")
    bad("u64 of no bytes", tlv((30, b"")), "type")
    bad("str with a NUL", tlv((5, b"/etc\x00/passwd")), "type")
    bad("str that ends with a NUL", tlv((20, b"sh\x00")), "type")
    bad("message too long", tlv((2, b"m" * 4097)), "type")
    return made


def sync_record(lowest: int = 1, highest: int = 1, nonce: bytes = NONCE) -> bytes:
    return SYNC_MAGIC + struct.pack("<HHI", lowest, highest, 0) + nonce


def ack_record(version: int = 1, nonce: bytes = NONCE) -> bytes:
    return ACK_MAGIC + struct.pack("<HHI", version, 0, 0) + nonce


def syncs() -> list[Json]:
    made: list[Json] = []

    def agent(
        name: str, before: bytes, lowest: int, highest: int, version: int, after: bytes = b""
    ) -> None:
        made.append(
            {
                "name": name,
                "role": "agent",
                "hex": (before + sync_record(lowest, highest) + after).hex(),
                "end": len(before) + 40,
                "lowest": lowest,
                "highest": highest,
                "nonce_hex": NONCE.hex(),
                "ack_hex": ack_record(version).hex(),
            }
        )

    def nothing(name: str, role: str, data: bytes) -> None:
        made.append(
            {"name": name, "role": role, "hex": data.hex(), "end": None, "nonce_hex": NONCE.hex()}
        )

    def host(name: str, before: bytes, version: int = 1, after: bytes = b"") -> None:
        made.append(
            {
                "name": name,
                "role": "host",
                "hex": (before + ack_record(version) + after).hex(),
                "end": len(before) + 40,
                "nonce_hex": NONCE.hex(),
                "version": version,
            }
        )

    agent("sync alone", b"", 1, 1, 1)
    agent("sync with frames behind it", b"", 1, 1, 1, frame(1, OPEN, b"\x0d"))
    agent("range includes us", b"", 1, 9, 1)
    agent("only newer versions", b"", 2, 9, 0)
    agent("zeros before", bytes(100), 1, 1, 1)
    agent("noise before", pattern(300), 1, 1, 1)
    agent("a cut magic before", SYNC_MAGIC[:15], 1, 1, 1)
    agent("first byte of the magic, twice", SYNC_MAGIC[:1], 1, 1, 1)
    agent("magic but its last byte is wrong", SYNC_MAGIC[:15] + b"\x86", 1, 1, 1)
    agent("an ack before", ack_record(), 1, 1, 1)
    agent("the flush before", bytes(65552), 1, 1, 1)
    nothing("half a sync", "agent", sync_record()[:39])
    nothing("noise only", "agent", pattern(512))
    host("ack alone", b"")
    host("ack and hello", b"", 1, frame(0, HELLO, tlv((3, b"0.1.0"))))
    host("no version in common", b"", 0)
    host("stale bytes before", frame(7, DATA, pattern(500), 1))
    host(
        "an ack of another nonce before",
        ack_record(1, OTHER_NONCE) + frame(0, HELLO, tlv((3, b"0.1.0"))),
    )
    host("a cut ack before", ack_record()[:39])
    host("a cut ack of sixteen bytes before", ACK_MAGIC)
    nothing("half an ack", "host", ack_record()[:39])
    nothing("an ack of another nonce only", "host", ack_record(1, OTHER_NONCE))
    return made


def messages() -> list[Json]:
    made: list[Json] = []

    def add(
        name: str, sender: str, stream: int, kind: int, *fields: tuple[int, bytes], service: int = 0
    ) -> None:
        payload = (bytes([service]) if kind == OPEN else b"") + tlv(*fields)
        entry: Json = {
            "name": name,
            "sender": sender,
            "hex": frame(stream, kind, payload).hex(),
            "stream": stream,
            "type": kind,
            "fields": [[tag, value.hex()] for tag, value in fields],
        }
        if kind == OPEN:
            entry["service"] = service
        made.append(entry)

    ok = (1, u64(0))
    add(
        "hello",
        "agent",
        0,
        HELLO,
        (3, b"0.1.0"),
        (4, b"5b3c7b84-3f0a-4a7e-9d6b-0c1f2e3d4a5b"),
        (12, u64(1)),
    )
    add(
        "configure all", "host", 1, OPEN,
        (42, u64(1_700_000_000_123_456_789)), (43, pattern(32)), (40, b"box"),
        (41, b"0123456789abcdef" * 2),
        (44, b"image"), (45, b"squashfs"), (46, b"scratch"), (47, b"ext4"),
        (21, b"HTTP_PROXY=http://127.0.0.1:3128"), (21, b"LANG=C.UTF-8"),
        (49, tlv((5, b"/etc/resolv.conf"), (7, u64(0o644)), (52, b"nameserver 127.0.0.1\n"))),
        (48, tlv((50, b"vol0"), (51, b"ext4"), (5, b"/data"), (12, u64(1)))),
        service=1,
    )  # fmt: skip
    add(
        "exec with everything", "host", 3, OPEN,
        (24, b"main"), (20, b"/bin/sh"), (20, b"-c"), (20, b"exit 3"), (21, b"A=b"), (22, b"/srv"),
        (23, b"user:group"), (12, u64(1 | 2)), (25, u64(24)), (26, u64(80)), (31, u64(1500)),
        service=2,
    )  # fmt: skip
    add("exec of the least", "host", 5, OPEN, (24, b"p1"), (20, b"true"), (12, u64(0)), service=2)
    add("exec reply", "agent", 5, REPLY, ok, (30, u64(42)))
    add(
        "exec reply not found",
        "agent",
        5,
        REPLY,
        (1, u64(2)),
        (2, b"cannot run nope: No such file or directory"),
    )
    add("exec signal", "host", 5, EVENT, (27, u64(15)))
    add("exec resize", "host", 5, EVENT, (25, u64(50)), (26, u64(132)))
    add("exec exited", "agent", 5, EVENT, (28, u64(3)), (29, u64(0)))
    add("exec killed by its timeout", "agent", 5, EVENT, (28, u64(0)), (29, u64(9)), (12, u64(1)))
    add("attach", "host", 7, OPEN, (24, b"main"), (32, u64(1000)), (33, u64(0)), service=3)
    add("attach reply", "agent", 7, REPLY, ok, (30, u64(42)), (34, u64(5)))
    add("procs", "host", 9, OPEN, service=4)
    add(
        "procs reply", "agent", 9, REPLY, ok,
        (15, tlv((24, b"main"), (30, u64(42)), (12, u64(0)))),
        (15, tlv((24, b"p1"), (30, u64(43)), (12, u64(1)), (28, u64(0)), (29, u64(9)))),
    )  # fmt: skip
    add("kill", "host", 11, OPEN, (24, b"main"), (27, u64(9)), service=5)
    add("file read", "host", 13, OPEN, (5, b"/etc/hosts"), (11, u64(4)), (10, u64(100)), service=6)
    add(
        "file read reply", "agent", 13, REPLY, ok, (10, u64(1234)), (7, u64(0o100644)), (8, u64(0)),
        (9, u64(0)), (13, u64(1_700_000_000_000_000_000)), (14, u64(1)),
    )  # fmt: skip
    add(
        "file write",
        "host",
        15,
        OPEN,
        (5, b"/a/b"),
        (7, u64(0o600)),
        (23, b"1000:1000"),
        (12, u64(2 | 4)),
        service=7,
    )
    add("file write done", "agent", 15, EVENT, (10, u64(5)), ok)
    add("stat", "host", 17, OPEN, (5, b"/tmp/\xff"), (12, u64(1)), service=8)
    add("list", "host", 19, OPEN, (5, b"/etc"), service=9)
    add("remove", "host", 21, OPEN, (5, b"/x"), (12, u64(1)), service=10)
    add("rename", "host", 23, OPEN, (5, b"/x"), (6, b"/y"), service=11)
    add("mkdir", "host", 25, OPEN, (5, b"/d/e"), (7, u64(0o755)), (12, u64(2)), service=12)
    add("metrics", "host", 27, OPEN, service=13)
    add(
        "metrics reply",
        "agent",
        27,
        REPLY,
        ok,
        (15, tlv((53, b"procs"), (54, u64(9)))),
        (15, tlv((53, b"uptime_ms"), (54, u64(77)))),
    )
    add("tcp connect", "host", 29, OPEN, (60, u64(8080)), (61, b"127.0.0.1"), service=14)
    add(
        "tcp refused",
        "agent",
        29,
        REPLY,
        (1, u64(111)),
        (2, b"cannot connect to 127.0.0.1:8080: Connection refused"),
    )
    add("sync fs", "host", 31, OPEN, service=15)
    add("quiesce", "host", 33, OPEN, service=16)
    add("shutdown", "host", 35, OPEN, (12, u64(1)), (31, u64(5000)), service=17)
    add("close and kill", "host", 5, CLOSE, (12, u64(1)))
    return made


def render() -> dict[str, str]:
    """File name to content of every vector file."""
    made = {"frames": frames(), "tlv": tlvs(), "sync": syncs(), "messages": messages()}
    return {
        f"{name}.json": "[\n" + ",\n".join(json.dumps(entry) for entry in entries) + "\n]\n"
        for name, entries in made.items()
    }


def main() -> None:
    here = Path(__file__).parent
    for name, text in render().items():
        (here / name).write_text(text)


if __name__ == "__main__":
    main()
