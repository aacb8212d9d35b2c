"""The agent's client against a hostile or broken guest: it says what is wrong, and lives."""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from sporevm.agent import Agent
from sporevm.errors import AgentError, GuestError, ProtocolViolation
from sporevm.spec import Command
from sporevm.wire import constants as c
from sporevm.wire.constants import Tag
from sporevm.wire.frames import encode
from sporevm.wire.tlv import encode as tlv
from tests.fake.fake_agent import HELLO, FakeAgent, Faults, ack

OK = tlv([(Tag.ERRNO, 0)])
RUN = tlv([(Tag.ERRNO, 0), (Tag.PID, 7)])
GREETING = encode(0, c.HELLO, HELLO)
SLEEP = Command(("sleep", "1000"), stdin=True)


@contextlib.asynccontextmanager
async def connected(path: Path, faults: Faults, wait: float = 10.0) -> AsyncIterator[Agent]:
    async with FakeAgent(faults).serving(path / "ch"):
        agent = await Agent.connect(path / "ch", timeout=wait)
        try:
            yield agent
        finally:
            await agent.aclose()


async def test_nobody_listens(tmp_path: Path) -> None:
    with pytest.raises(AgentError, match="cannot connect to the guest agent"):
        await Agent.connect(tmp_path / "ch")
    with pytest.raises(AgentError, match="cannot connect to the guest agent"):
        await Agent.connect(tmp_path / ("x" * 200))


SILENCES: dict[str, Callable[[bytes], bytes]] = {
    "nothing at all": lambda nonce: b"",
    "no hello": ack,
    "another nonce": lambda nonce: ack(nonce[::-1]) + GREETING,
    "half an ack": lambda nonce: ack(nonce)[:39],
    "half a hello": lambda nonce: ack(nonce) + GREETING[:-1],
    "noise": lambda nonce: bytes(500_000),
}


@pytest.mark.parametrize("name", SILENCES)
async def test_silence(tmp_path: Path, name: str) -> None:
    faults = Faults(greeting=SILENCES[name], opened=lambda service, stream: b"")
    async with connected(tmp_path, faults, wait=0.05) as agent:
        pending = asyncio.ensure_future(agent.exec("p", SLEEP))
        with pytest.raises(AgentError, match=r"did not say hello within 0\.05 s"):
            await agent.ready()
        with pytest.raises(AgentError, match="did not say hello"):
            await pending
        assert isinstance(await agent.wait_closed(), AgentError)


BAD_GREETINGS: dict[str, Callable[[bytes], bytes]] = {
    "endless noise": lambda nonce: bytes(c.MAX_SKIP + 70_000),
    "a version not offered": lambda nonce: ack(nonce, 2),
    "garbage": lambda nonce: ack(nonce) + b"\xff" * 5000,
    "two hellos": lambda nonce: ack(nonce) + GREETING * 2,
    "hello without version": lambda nonce: ack(nonce) + encode(0, c.HELLO),
    "hello with half a field": lambda nonce: ack(nonce) + encode(0, c.HELLO, HELLO[:-1]),
    "huge length": lambda nonce: ack(nonce) + GREETING + struct.pack("<IIBBH", 1 << 31, 1, 4, 1, 0),
    "unasked pong": lambda nonce: ack(nonce) + GREETING + encode(0, c.PONG),
    "unasked data": lambda nonce: ack(nonce) + GREETING + encode(9, c.DATA, b"x", 1),
}


@pytest.mark.parametrize("name", BAD_GREETINGS)
async def test_bad_greetings(tmp_path: Path, name: str) -> None:
    async with connected(tmp_path, Faults(greeting=BAD_GREETINGS[name])) as agent:
        reason = await agent.wait_closed()
        assert type(reason) is ProtocolViolation
        with pytest.raises(ProtocolViolation, match=str(reason)[:20]):
            await agent.exec("p", SLEEP)


async def test_an_agent_too_old(tmp_path: Path) -> None:
    async with connected(tmp_path, Faults(greeting=lambda nonce: ack(nonce, 0))) as agent:
        with pytest.raises(AgentError, match="does not speak protocol version 1") as caught:
            await agent.ready()
        assert type(caught.value) is AgentError


async def test_noise_before_the_ack_is_skipped(tmp_path: Path) -> None:
    faults = Faults(greeting=lambda nonce: b"\xd1\x86" * 100_000 + ack(nonce) + GREETING)
    async with connected(tmp_path, faults) as agent:
        assert (await agent.ready()).version == "fake"
        await agent.ping()


@pytest.mark.parametrize("data", [b"", encode(1, c.REPLY, RUN)[:5], encode(1, c.REPLY, RUN)])
async def test_a_hang_up(tmp_path: Path, data: bytes) -> None:
    faults = Faults(opened=lambda service, stream: data, hang_up=True)
    async with connected(tmp_path, faults) as agent:
        with pytest.raises(AgentError, match="the channel to the guest agent ended"):
            process = await agent.exec("p", SLEEP)
            await process.read()
        reason = await agent.wait_closed()
        assert type(reason) is AgentError


Frames = Callable[[int], bytes]
BAD_EXECS: dict[str, Frames] = {
    "data before reply": lambda s: encode(s, c.DATA, b"x", 1),
    "no pid": lambda s: encode(s, c.REPLY, OK),
    "a pid too great": lambda s: encode(s, c.REPLY, tlv([(Tag.ERRNO, 0), (Tag.PID, 1 << 40)])),
    "an errno too great": lambda s: encode(s, c.REPLY, tlv([(Tag.ERRNO, 1 << 40)])),
    "reply is no TLV": lambda s: encode(s, c.REPLY, b"abc"),
    "errno is no number": lambda s: encode(s, c.REPLY, struct.pack("<HI", Tag.ERRNO, 3) + b"abc"),
    "exit without its code's size": lambda s: (
        encode(s, c.REPLY, RUN)
        + encode(s, c.EOF, b"", 1)
        + encode(s, c.EOF, b"", 2)
        + encode(s, c.EVENT, tlv([(Tag.EXIT_CODE, 256)]))
    ),
    "credit for nothing": lambda s: encode(s, c.REPLY, RUN) + encode(s, c.CREDIT, b"\1\0\0\0", 0),
    "another stream's reply": lambda s: encode(s + 2, c.REPLY, RUN),
    "close is no TLV": lambda s: encode(s, c.REPLY, RUN) + encode(s, c.CLOSE, b"abc"),
    "garbage": lambda s: encode(s, c.REPLY, RUN) + b"\xee" * 64,
}


@pytest.mark.parametrize("name", BAD_EXECS)
async def test_bad_execs(tmp_path: Path, name: str) -> None:
    faults = Faults(opened=lambda service, stream: BAD_EXECS[name](stream))
    async with connected(tmp_path, faults) as agent:
        await agent.ready()
        with pytest.raises(ProtocolViolation):
            process = await agent.exec("p", SLEEP)
            while await process.read() is not None:
                pass
            await process.wait()
        assert isinstance(await agent.wait_closed(), ProtocolViolation)


async def test_a_window_overrun(tmp_path: Path) -> None:
    def overrun(service: int, stream: int) -> bytes:
        return encode(stream, c.REPLY, RUN) + encode(stream, c.DATA, bytes(65536), 1) * 5

    async with connected(tmp_path, Faults(opened=overrun)) as agent:
        process = await agent.exec("p", SLEEP)
        reason = await agent.wait_closed()
        assert type(reason) is ProtocolViolation
        assert "65536 bytes on channel 1, beyond its window of 0" in str(reason)
        for _ in range(4):  # what came before it is good
            assert await process.read() == (1, bytes(65536))
        with pytest.raises(ProtocolViolation):
            await process.read()


async def test_an_exec_let_go_without_an_exit(tmp_path: Path) -> None:
    def let_go(service: int, stream: int) -> bytes:
        return (
            encode(stream, c.REPLY, RUN) + encode(stream, c.DATA, b"a", 1) + encode(stream, c.CLOSE)
        )

    async with connected(tmp_path, Faults(opened=let_go)) as agent:
        process = await agent.exec("p", SLEEP)
        assert await process.read() == (1, b"a")
        for call in (process.read(), process.wait()):
            with pytest.raises(AgentError, match="let go of process p"):
                await call


async def test_an_agent_that_does_not_answer(tmp_path: Path) -> None:
    async with connected(tmp_path, Faults(opened=lambda service, stream: b"")) as agent:
        with pytest.raises(AgentError, match=r"did not answer \(run sleep\) within 0\.05 s"):
            await agent.exec("p", SLEEP, timeout=0.05)
        await agent.ping()  # the connection lives: only this call failed


async def test_a_file_that_stops_coming(tmp_path: Path) -> None:
    about = [(Tag.ERRNO, 0), (Tag.KIND, 1), (Tag.SIZE, 9), (Tag.MODE, 0), (Tag.UID, 0)]
    reply = tlv([*about, (Tag.GID, 0), (Tag.MTIME_NS, 0)])

    def half(service: int, stream: int) -> bytes:
        return encode(stream, c.REPLY, reply) + encode(stream, c.DATA, b"half", 1)

    async with connected(tmp_path, Faults(opened=half)) as agent:
        reader = await agent.read_file("/f")
        assert await reader.read() == b"half"
        with pytest.raises(AgentError, match="did not send data"):
            await reader.read(timeout=0.05)
        await reader.aclose()
        more = await agent.read_file("/f", size=3)
        with pytest.raises(ProtocolViolation, match="more of '/f' than was asked for"):
            await more.read()


@pytest.mark.parametrize("eof", [True, False])
async def test_a_file_that_fails_half_way(tmp_path: Path, eof: bool) -> None:
    about = [(Tag.ERRNO, 0), (Tag.KIND, 1), (Tag.SIZE, 9), (Tag.MODE, 0), (Tag.UID, 0)]
    reply = tlv([*about, (Tag.GID, 0), (Tag.MTIME_NS, 0)])

    def fails(service: int, stream: int) -> bytes:
        return (
            encode(stream, c.REPLY, reply)
            + encode(stream, c.DATA, b"half", 1)
            + (encode(stream, c.EOF, b"", 1) if eof else b"")
            + encode(stream, c.CLOSE, tlv([(Tag.ERRNO, 5), (Tag.MESSAGE, "disk \x1b[31mred")]))
        )

    async with connected(tmp_path, Faults(opened=fails)) as agent:
        reader = await agent.read_file("/f")
        assert await reader.read() == b"half"
        with pytest.raises(
            GuestError, match="error .disk \N{REPLACEMENT CHARACTER}.31mred."
        ) as caught:
            await reader.read()
        assert (caught.value.errno, caught.value.path) == (5, "/f")
        await agent.ping()


@pytest.mark.parametrize(
    "entry",
    [
        tlv([(Tag.NAME, "a/b"), (Tag.KIND, 1)]),
        tlv([(Tag.NAME, ".."), (Tag.KIND, 1)]),
        tlv([(Tag.NAME, "x"), (Tag.KIND, 9)]),
        tlv([(Tag.KIND, 1)]),
        b"abc",
    ],
)
async def test_bad_entries(tmp_path: Path, entry: bytes) -> None:
    def listing(service: int, stream: int) -> bytes:
        data = tlv([(Tag.ENTRY, entry)])
        return encode(stream, c.REPLY, OK) + encode(stream, c.DATA, data, 1)

    async with connected(tmp_path, Faults(opened=listing)) as agent:
        with pytest.raises(ProtocolViolation):
            await agent.list_dir("/d")
        assert isinstance(await agent.wait_closed(), ProtocolViolation)


@pytest.mark.parametrize("tail", [struct.pack("<HI", 15, 1 << 20), b"half"])
async def test_bad_lists(tmp_path: Path, tail: bytes) -> None:
    def listing(service: int, stream: int) -> bytes:
        return (
            encode(stream, c.REPLY, OK)
            + encode(stream, c.DATA, tail, 1)
            + encode(stream, c.EOF, b"", 1)
            + encode(stream, c.CLOSE)
        )

    async with connected(tmp_path, Faults(opened=listing)) as agent:
        with pytest.raises(ProtocolViolation):
            await agent.list_dir("/d")


async def test_an_upload_the_guest_gives_up(tmp_path: Path) -> None:
    full = tlv([(Tag.SIZE, 0), (Tag.ERRNO, 28)])

    def gives_up(service: int, stream: int) -> bytes:
        return encode(stream, c.REPLY, OK) + encode(stream, c.EVENT, full) + encode(stream, c.CLOSE)

    async with connected(tmp_path, Faults(opened=gives_up)) as agent:
        with pytest.raises(GuestError, match="cannot write /f: No space left") as caught:
            await agent.write_file("/f", bytes(10 * c.WINDOW))
        assert caught.value.errno == 28
        await agent.ping()


async def test_an_upload_the_guest_does_not_take(tmp_path: Path) -> None:
    faults = Faults(opened=lambda service, stream: encode(stream, c.REPLY, OK))
    async with connected(tmp_path, faults) as agent:
        with pytest.raises(AgentError, match=r"did not take data within 0\.05 s"):
            await agent.write_file("/f", bytes(10 * c.WINDOW), timeout=0.05)
        with pytest.raises(AgentError, match=r"did not finish \(write /f\)"):
            await agent.write_file("/f", b"short", timeout=0.05)
        await agent.ping()


async def test_byte_by_byte_output_keeps_its_order(tmp_path: Path) -> None:
    """Many small frames are put together, and none overtakes another of its channel."""
    expected = {1: b"".join(struct.pack("<H", n) for n in range(2000)), 2: bytes(range(250)) * 8}

    def small(service: int, stream: int) -> bytes:
        made = [encode(stream, c.REPLY, RUN)]
        for number in range(2000):
            made.append(encode(stream, c.DATA, struct.pack("<H", number), 1))
            made.append(encode(stream, c.DATA, expected[2][number : number + 1], 2))
        return b"".join([*made, encode(stream, c.EOF, b"", 1), encode(stream, c.EOF, b"", 2)])

    async with connected(tmp_path, Faults(opened=small)) as agent:
        process = await agent.exec("p", SLEEP)
        got, items = {1: b"", 2: b""}, 0
        while (item := await process.read()) is not None:
            got[item[0]] += item[1]
            items += 1
        assert got == expected
        assert items < 400


async def test_a_guest_that_reads_nothing_cannot_hold_us(tmp_path: Path) -> None:
    """The writer waits for the socket, and `aclose` does not wait for the guest."""

    done, gone = asyncio.Event(), asyncio.Event()

    async def deaf(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        data = await reader.readexactly(c.RECORD_BYTES)
        writer.write(ack(data[24:]) + GREETING)
        await reader.readexactly(c.HEADER_BYTES)
        writer.write(encode(1, c.REPLY, RUN))
        await done.wait()
        writer.close()
        gone.set()

    server = await asyncio.start_unix_server(deaf, tmp_path / "ch", limit=64)
    agent = await Agent.connect(tmp_path / "ch")
    process = await agent.exec("p", SLEEP)
    writing = [asyncio.ensure_future(process.write(bytes(4 * c.WINDOW))) for _ in range(3)]
    await asyncio.sleep(0)  # they run until they wait
    await asyncio.wait_for(agent.aclose(), 5)
    for write in writing:
        with pytest.raises(AgentError):
            await write
    done.set()
    await gone.wait()
    server.close()
    await server.wait_closed()
