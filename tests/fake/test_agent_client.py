"""The agent's client against an honest agent: the fake one, and the real one where it is built."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from sporevm.agent import Agent, Configure, Exit, GuestFile, Mount, Process, Volume
from sporevm.errors import AgentError, GuestError, StateError, UsageError
from sporevm.spec import Command
from sporevm.wire.constants import MAX_STREAMS, WINDOW, Tag
from tests.fake.fake_agent import FakeAgent

PATTERN = bytes(range(256)) * 4096  # 1 MiB


@pytest.fixture
async def fake(tmp_path: Path) -> AsyncIterator[FakeAgent]:
    async with FakeAgent().serving(tmp_path / "ch") as serving:
        yield serving


@pytest.fixture
async def agent(fake: FakeAgent, tmp_path: Path) -> AsyncIterator[Agent]:
    agent = await Agent.connect(tmp_path / "ch")
    yield agent
    await agent.aclose()
    assert agent.closed.done()


async def output(process: Process) -> tuple[bytes, bytes]:
    parts: dict[int, list[bytes]] = {1: [], 2: []}
    while (item := await process.read()) is not None:
        parts[item[0]].append(item[1])
    return b"".join(parts[1]), b"".join(parts[2])


def sh(script: str) -> Command:
    return Command(("sh", "-c", script))


async def test_hello(agent: Agent) -> None:
    hello = await agent.ready()
    assert (hello.version, len(hello.boot_id), hello.root_mounted) == ("fake", 36, False)


async def test_a_connected_socket_will_do(fake: FakeAgent, tmp_path: Path) -> None:
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(str(tmp_path / "ch"))
    agent = await Agent.connect(sock, flush=True)
    await agent.ready()
    await agent.aclose()
    assert sock.fileno() == -1


async def test_exec(agent: Agent) -> None:
    process = await agent.exec("p", sh("echo out ; echo err >&2 ; exit 3"))
    assert process.pid > 0
    assert await output(process) == (b"out\n", b"err\n")
    assert await process.read() is None
    assert await process.wait() == Exit(3)
    assert (process.stdout_seen, process.stderr_seen) == (4, 4)
    assert await agent.procs() == []  # its record went with our CLOSE


async def test_exit_by_a_signal(agent: Agent) -> None:
    process = await agent.exec("p", sh("kill -15 $$"))
    assert await output(process) == (b"", b"")
    ended = await process.wait()
    assert (ended, ended.status) == (Exit(0, signal=15), 143)


async def test_signals_and_resize(agent: Agent, fake: FakeAgent) -> None:
    process = await agent.exec("p", Command(("sleep", "1000"), tty=True, rows=3, cols=4))
    process.resize(50, 132)
    process.signal(2)
    assert await process.read() is None
    assert (await process.wait()).signal == 2
    process.signal(2)  # no effect


async def test_kill_without_a_stream(agent: Agent) -> None:
    process = await agent.exec("p", Command(("sleep", "1000")))
    (info,) = await agent.procs()
    assert (info.proc, info.pid, info.exit) == ("p", process.pid, None)
    await agent.kill("p", 9)
    assert (await process.wait()).signal == 9
    with pytest.raises(GuestError) as caught:
        await agent.kill("nobody", 9)
    assert caught.value.errno == errno.ESRCH


@pytest.mark.parametrize("size", [0, 1, 65536, 65537, 3 * WINDOW + 1])
async def test_stdin_comes_back_whole(agent: Agent, size: int) -> None:
    data = (PATTERN * (size // len(PATTERN) + 1))[:size]
    process = await agent.exec("p", Command(("cat",), stdin=True))

    async def feed() -> None:
        await process.write(data)
        process.write_eof()

    feeding = asyncio.ensure_future(feed())
    out, _ = await output(process)
    await feeding
    assert hashlib.sha256(out).digest() == hashlib.sha256(data).digest()
    assert await process.wait() == Exit(0)


async def test_writing_to_an_ended_process(agent: Agent) -> None:
    process = await agent.exec("p", Command(("true",), stdin=True))
    await process.wait()
    with pytest.raises(GuestError) as caught:
        await process.write(b"too late")
    assert caught.value.errno == errno.EPIPE


async def test_a_missing_program(agent: Agent) -> None:
    with pytest.raises(GuestError, match="cannot run nope: No such file or directory") as caught:
        await agent.exec("p", Command(("nope",)))
    assert (caught.value.errno, caught.value.path) == (errno.ENOENT, "nope")
    await agent.ping()


async def test_a_command_that_is_too_large(agent: Agent) -> None:
    with pytest.raises(UsageError, match="too large"):
        await agent.exec("p", Command(("echo", "x" * 70_000)))
    with pytest.raises(UsageError, match="1 to 64 bytes"):
        await agent.exec("p" * 65, Command(("true",)))
    await agent.ping()


async def test_environment(agent: Agent) -> None:
    process = await agent.exec("p", Command(("env",), env={"A": "1", "B": "ä=\udcff"}))
    out, _ = await output(process)
    assert out.decode("utf-8", "surrogateescape").splitlines() == ["A=1", "B=ä=\udcff"]


async def test_a_reader_that_stalls_blocks_nobody(agent: Agent, fake: FakeAgent) -> None:
    size = 4 * WINDOW
    stalled = await agent.exec("a", Command(("head", "-c", str(size), "/dev/zero")))
    for name in ("b", "c"):
        process = await agent.exec(name, Command(("head", "-c", str(size), "/dev/zero")))
        assert len((await output(process))[0]) == size
    assert fake.procs["a"].base[1] == 0  # no credit for what nobody read
    assert len((await output(stalled))[0]) == size


async def test_without_auto_ack_output_can_be_had_again(fake: FakeAgent, tmp_path: Path) -> None:
    first = await Agent.connect(tmp_path / "ch")
    process = await first.exec("p", sh("echo one ; echo two ; exit 5"), auto_ack=False)
    got, _ = await output(process)
    assert got == b"one\ntwo\n"
    await process.wait()
    assert process.stdout_seen == 0
    await first.aclose()

    second = await Agent.connect(tmp_path / "ch", flush=True)
    (info,) = await second.procs()
    assert info.exit == Exit(5)
    again = await second.attach("p", stdout_seen=4, auto_ack=False)
    assert (await output(again))[0] == b"two\n"
    again.ack()
    assert again.stdout_seen == 8
    assert await again.wait() == Exit(5)
    assert len(await second.procs()) == 1  # until it is closed
    await again.close()
    assert await second.procs() == []
    await second.aclose()


async def test_a_stream_without_ack_is_held_back(agent: Agent) -> None:
    command = Command(("head", "-c", str(WINDOW + 10), "/dev/zero"))
    process = await agent.exec("p", command, auto_ack=False)
    got = 0
    while got < WINDOW:
        item = await process.read()
        assert item is not None
        got += len(item[1])
    reading = asyncio.ensure_future(process.read())
    await agent.ping()
    assert not reading.done()
    process.ack()
    assert await reading == (1, bytes(10))
    assert await process.read() is None
    await process.close()


async def test_processes_outlive_the_connection(fake: FakeAgent, tmp_path: Path) -> None:
    first = await Agent.connect(tmp_path / "ch")
    process = await first.exec("p", Command(("cat",), stdin=True))
    await process.write(b"abc")
    assert await process.read() == (1, b"abc")
    await first.aclose()
    second = await Agent.connect(tmp_path / "ch", flush=True)
    again = await second.attach("p", stdout_seen=0)
    assert (again.pid, again.stdin_seen) == (process.pid, 3)
    assert await again.read() == (1, b"abc")
    await again.write(b"def")
    assert await again.read() == (1, b"def")
    again.write_eof()
    assert await again.read() is None
    assert await again.wait() == Exit(0)
    await second.aclose()


async def test_close_with_kill(agent: Agent, fake: FakeAgent) -> None:
    process = await agent.exec("p", Command(("sleep", "1000")))
    reading = asyncio.ensure_future(process.read())
    await agent.ping()
    await process.close(kill=True)
    with pytest.raises(StateError):
        await reading
    with pytest.raises(StateError):
        await process.wait()
    await agent.ping()
    assert fake.procs["p"].signal == 9


async def test_a_cancelled_exec_kills_what_it_started(agent: Agent, fake: FakeAgent) -> None:
    starting = asyncio.ensure_future(agent.exec("p", Command(("sleep", "1000"))))
    await asyncio.sleep(0)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    await agent.ping()
    proc = fake.procs.get("p")
    assert proc is None or proc.signal == 9


async def test_files(agent: Agent) -> None:
    assert await agent.write_file("/d/a", PATTERN) == len(PATTERN)
    assert await agent.write_file("/d/a", b"more", append=True) == len(PATTERN) + 4
    with pytest.raises(GuestError) as caught:
        await agent.write_file("/d/a", b"", exclusive=True)
    assert caught.value.errno == errno.EEXIST

    reader = await agent.read_file("/d/a")
    assert (reader.info.name, reader.info.kind, reader.info.mode) == ("a", "file", 0o644)
    assert b"".join([data async for data in reader]) == PATTERN + b"more"
    reader = await agent.read_file("/d/a", offset=len(PATTERN), size=2)
    assert [data async for data in reader] == [b"mo"]
    assert await reader.read() == b""

    assert (await agent.stat("/d")).kind == "dir"
    await agent.rename("/d/a", "/d/b")
    await agent.make_dir("/d/c")
    assert [(entry.name, entry.kind) for entry in await agent.list_dir("/d")] == [
        ("b", "file"),
        ("c", "dir"),
    ]
    await agent.remove("/d", recursive=True)
    for call in (agent.stat("/d"), agent.list_dir("/d"), agent.read_file("/d/b")):
        with pytest.raises(GuestError, match="No such file or directory"):
            await call


async def test_writing_from_an_iterator(agent: Agent, fake: FakeAgent) -> None:
    async def parts() -> AsyncIterator[bytes]:
        for at in range(0, len(PATTERN), 100_000):
            yield PATTERN[at : at + 100_000]

    assert await agent.write_file("/f", parts()) == len(PATTERN)
    assert fake.files["/f"] == PATTERN


async def test_an_upload_that_breaks_changes_nothing(agent: Agent, fake: FakeAgent) -> None:
    async def parts() -> AsyncIterator[bytes]:
        yield b"half"
        raise KeyError("the source broke")

    fake.files["/f"] = b"old"
    with pytest.raises(KeyError):
        await agent.write_file("/f", parts())
    await agent.ping()
    assert fake.files["/f"] == b"old"


async def test_leaving_a_reader_early(agent: Agent, fake: FakeAgent) -> None:
    fake.files["/f"] = PATTERN * 2
    reader = await agent.read_file("/f")
    assert await reader.read()
    await reader.aclose()
    await reader.aclose()
    with pytest.raises(StateError):
        await reader.read()
    await agent.ping()


async def test_many_entries(agent: Agent, fake: FakeAgent) -> None:
    fake.files |= {f"/many/{number:05}": b"" for number in range(3000)}
    entries = await agent.list_dir("/many")
    assert [entry.name for entry in entries] == [f"{number:05}" for number in range(3000)]


async def test_tcp(agent: Agent) -> None:
    with pytest.raises(GuestError) as caught:
        await agent.tcp_connect(1)
    assert caught.value.errno == errno.ECONNREFUSED
    stream = await agent.tcp_connect(7)
    writing = asyncio.ensure_future(stream.write(PATTERN))
    got = bytearray()
    while len(got) < len(PATTERN):
        got += await stream.read()
    await writing
    stream.write_eof()
    assert await stream.read() == b""
    assert got == PATTERN
    with pytest.raises(GuestError) as caught:
        await stream.write(b"x")
    assert caught.value.errno == errno.EPIPE
    await stream.aclose()


async def test_configure(agent: Agent, fake: FakeAgent) -> None:
    await agent.configure(
        Configure(
            clock_ns=1,
            entropy=bytes(32),
            hostname="box",
            machine_id="0" * 32,
            root=Mount("image", "squashfs"),
            scratch=Mount("scratch", "ext4"),
            env={"A": "b"},
            files=(GuestFile("/etc/x", b"y"),),
            volumes=(Volume("vol0", "ext4", "/data", read_only=True),),
        )
    )
    await agent.configure(Configure())
    everything, nothing = fake.configured
    assert everything.text(Tag.ROOT_FSTYPE) == "squashfs"
    assert everything.nested(Tag.FILE)[0].raw(Tag.DATA) == b"y"
    assert everything.nested(Tag.VOLUME)[0].u64(Tag.FLAGS) == 1
    assert Tag.CLOCK_NS not in nothing


async def test_the_rest(agent: Agent, fake: FakeAgent) -> None:
    await asyncio.gather(agent.ping(b"a"), agent.ping(b"b"), agent.ping(bytes(64)))
    assert await agent.metrics() == {"procs": 0}
    await agent.sync_fs()
    await agent.shutdown(timeout=1)
    assert fake.shut_down
    reason = await agent.wait_closed()
    assert isinstance(reason, AgentError)
    with pytest.raises(AgentError, match="the channel to the guest agent ended"):
        await agent.ping()


async def test_more_calls_than_streams(agent: Agent) -> None:
    calls = [agent.metrics() for _ in range(3 * MAX_STREAMS)]
    assert await asyncio.gather(*calls) == [{"procs": 0}] * len(calls)


async def test_quiesce(fake: FakeAgent, tmp_path: Path) -> None:
    agent = await Agent.connect(tmp_path / "ch")
    await agent.quiesce()
    with pytest.raises(AgentError, match="quiesced"):
        await agent.ping()
    assert not agent.closed.done()
    await agent.aclose()
    assert await agent.wait_closed() is None


async def test_what_waits_fails_when_we_leave(fake: FakeAgent, tmp_path: Path) -> None:
    agent = await Agent.connect(tmp_path / "ch")
    process = await agent.exec("p", Command(("sleep", "1000")))
    waits = [asyncio.ensure_future(wait) for wait in (process.read(), process.wait())]
    await agent.ping()
    await agent.aclose()
    for wait in waits:
        with pytest.raises(AgentError, match="was closed"):
            await wait
    await process.close()
    await agent.aclose()
