"""The agent's client against an honest agent: the fake one, and the real one where it is built."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import runpy
import socket
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from sporevm.agent import Agent, Configure, Exit, GuestFile, Mount, Process, Volume
from sporevm.errors import AgentError, GuestError, StateError, UsageError
from sporevm.spec import Command
from sporevm.wire.constants import MAX_STREAMS, WINDOW, Tag
from tests.fake.fake_agent import FakeAgent

BUILD_GUEST = Path(__file__).parents[2] / "tools/build_guest.py"
PATTERN = bytes(range(256)) * 4096  # 1 MiB


class Guest:
    """An honest agent and a directory in it. `fake` is set if it is the fake one."""

    def __init__(self, where: Path | socket.socket, root: str, fake: FakeAgent | None) -> None:
        self._where = where
        self.root = root
        self.fake = fake

    async def connect(self, *, flush: bool = False) -> Agent:
        where = self._where if isinstance(self._where, Path) else self._where.dup()
        return await Agent.connect(where, flush=flush)


@pytest.fixture(scope="session")
def real_agent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The C agent as a program of this machine, under sanitizers."""
    build = runpy.run_path(str(BUILD_GUEST))
    compiler, _ = build["native_compiler"]()
    made = tmp_path_factory.mktemp("native") / "agent"
    flags = [*build["COMMON"], "-g", "-O1", "-DSPORE_TEST", "-Iagent"]
    build["run"]([*compiler, *flags, "-o", str(made), *build["TARGETS"][0].sources()])
    return made


@pytest.fixture
async def fake(tmp_path: Path) -> AsyncIterator[FakeAgent]:
    async with FakeAgent().serving(tmp_path / "ch") as serving:
        yield serving


@pytest.fixture
def real(real_agent: Path) -> Iterator[socket.socket]:
    """Our end of a real agent's channel. It stays open over reconnects, as a VM's does."""
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            argv = [real_agent, "--test-socket", str(theirs.fileno())]
            process = subprocess.Popen(argv, pass_fds=[theirs.fileno()])
        try:
            yield ours
            assert process.poll() is None, "a sanitizer ended the agent"
        finally:
            process.kill()
            process.wait()


@pytest.fixture(params=["fake", "real"])
async def guest(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Guest]:
    """Tests with this one run against both agents."""
    if request.param == "real":
        yield Guest(request.getfixturevalue("real"), str(tmp_path / "d"), None)
        return
    async with FakeAgent().serving(tmp_path / "ch") as serving:
        yield Guest(tmp_path / "ch", "/d", serving)


@pytest.fixture
async def agent(guest: Guest) -> AsyncIterator[Agent]:
    agent = await guest.connect()
    yield agent
    await agent.aclose()
    assert agent.closed.done()


@pytest.fixture
async def faked(fake: FakeAgent, tmp_path: Path) -> AsyncIterator[Agent]:
    """Connected to `fake`: for tests that look into it."""
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
    assert hello.version
    assert (len(hello.boot_id), hello.root_mounted) == (36, False)


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


async def test_signals_and_resize(faked: Agent, fake: FakeAgent) -> None:
    process = await faked.exec("p", Command(("sleep", "1000"), tty=True, rows=3, cols=4))
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
    assert {"A=1", "B=ä=\udcff"} <= set(out.decode("utf-8", "surrogateescape").splitlines())


async def test_a_reader_that_stalls_blocks_nobody(faked: Agent, fake: FakeAgent) -> None:
    size = 4 * WINDOW
    stalled = await faked.exec("a", Command(("head", "-c", str(size), "/dev/zero")))
    for name in ("b", "c"):
        process = await faked.exec(name, Command(("head", "-c", str(size), "/dev/zero")))
        assert len((await output(process))[0]) == size
    assert fake.procs["a"].base[1] == 0  # no credit for what nobody read
    assert len((await output(stalled))[0]) == size


async def test_without_auto_ack_output_can_be_had_again(guest: Guest) -> None:
    first = await guest.connect()
    process = await first.exec("p", sh("echo one ; echo two ; exit 5"), auto_ack=False)
    got, _ = await output(process)
    assert got == b"one\ntwo\n"
    await process.wait()
    assert process.stdout_seen == 0
    await first.aclose()

    second = await guest.connect(flush=True)
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


async def test_processes_outlive_the_connection(guest: Guest) -> None:
    first = await guest.connect()
    process = await first.exec("p", Command(("cat",), stdin=True))
    await process.write(b"abc")
    assert await process.read() == (1, b"abc")
    await first.aclose()
    second = await guest.connect(flush=True)
    again = await second.attach("p", stdout_seen=0)
    assert (again.pid, again.stdin_seen) == (process.pid, 3)
    assert await again.read() == (1, b"abc")
    await again.write(b"def")
    assert await again.read() == (1, b"def")
    again.write_eof()
    assert await again.read() is None
    assert await again.wait() == Exit(0)
    await second.aclose()


async def test_close_with_kill(faked: Agent, fake: FakeAgent) -> None:
    process = await faked.exec("p", Command(("sleep", "1000")))
    reading = asyncio.ensure_future(process.read())
    await faked.ping()
    await process.close(kill=True)
    with pytest.raises(StateError):
        await reading
    with pytest.raises(StateError):
        await process.wait()
    await faked.ping()
    assert fake.procs["p"].signal == 9


async def test_a_cancelled_exec_kills_what_it_started(faked: Agent, fake: FakeAgent) -> None:
    starting = asyncio.ensure_future(faked.exec("p", Command(("sleep", "1000"))))
    await asyncio.sleep(0)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    await faked.ping()
    proc = fake.procs.get("p")
    assert proc is None or proc.signal == 9


async def test_files(agent: Agent, guest: Guest) -> None:
    d = guest.root
    assert await agent.write_file(f"{d}/a", PATTERN) == len(PATTERN)
    assert await agent.write_file(f"{d}/a", b"more", append=True) == 4
    with pytest.raises(GuestError) as caught:
        await agent.write_file(f"{d}/a", b"", exclusive=True)
    assert caught.value.errno == errno.EEXIST

    reader = await agent.read_file(f"{d}/a")
    assert (reader.info.name, reader.info.kind, reader.info.mode) == ("a", "file", 0o644)
    assert b"".join([data async for data in reader]) == PATTERN + b"more"
    reader = await agent.read_file(f"{d}/a", offset=len(PATTERN), size=2)
    assert [data async for data in reader] == [b"mo"]
    assert await reader.read() == b""

    assert (await agent.stat(d)).kind == "dir"
    await agent.rename(f"{d}/a", f"{d}/b")
    await agent.make_dir(f"{d}/c")
    entries = await agent.list_dir(d)
    assert {(entry.name, entry.kind) for entry in entries} == {("b", "file"), ("c", "dir")}
    await agent.remove(d, recursive=True)
    for call in (agent.stat(d), agent.list_dir(d), agent.read_file(f"{d}/b")):
        with pytest.raises(GuestError, match="No such file or directory"):
            await call


async def test_writing_from_an_iterator(faked: Agent, fake: FakeAgent) -> None:
    async def parts() -> AsyncIterator[bytes]:
        for at in range(0, len(PATTERN), 100_000):
            yield PATTERN[at : at + 100_000]

    assert await faked.write_file("/f", parts()) == len(PATTERN)
    assert fake.files["/f"] == PATTERN


async def test_an_upload_that_breaks_changes_nothing(faked: Agent, fake: FakeAgent) -> None:
    async def parts() -> AsyncIterator[bytes]:
        yield b"half"
        raise KeyError("the source broke")

    fake.files["/f"] = b"old"
    with pytest.raises(KeyError):
        await faked.write_file("/f", parts())
    await faked.ping()
    assert fake.files["/f"] == b"old"


async def test_leaving_a_reader_early(faked: Agent, fake: FakeAgent) -> None:
    fake.files["/f"] = PATTERN * 2
    reader = await faked.read_file("/f")
    assert await reader.read()
    await reader.aclose()
    await reader.aclose()
    with pytest.raises(StateError):
        await reader.read()
    await faked.ping()


async def test_many_entries(faked: Agent, fake: FakeAgent) -> None:
    fake.files |= {f"/many/{number:05}": b"" for number in range(3000)}
    entries = await faked.list_dir("/many")
    assert [entry.name for entry in entries] == [f"{number:05}" for number in range(3000)]


async def test_tcp(agent: Agent, guest: Guest) -> None:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    port = 7 if guest.fake else server.sockets[0].getsockname()[1]
    with pytest.raises(GuestError) as caught:
        await agent.tcp_connect(1)
    assert caught.value.errno == errno.ECONNREFUSED
    stream = await agent.tcp_connect(port)
    writing = asyncio.ensure_future(stream.write(PATTERN))
    got = bytearray()
    while len(got) < len(PATTERN):
        got += await stream.read()
    await writing
    stream.write_eof()
    assert await stream.read() == b""
    assert got == PATTERN
    await agent.ping()
    with pytest.raises(GuestError) as caught:
        await stream.write(b"x")
    assert caught.value.errno == errno.EPIPE
    await stream.aclose()
    server.close()
    await server.wait_closed()


async def test_configure(faked: Agent, fake: FakeAgent) -> None:
    await faked.configure(
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
    await faked.configure(Configure())
    everything, nothing = fake.configured
    assert everything.text(Tag.ROOT_FSTYPE) == "squashfs"
    assert everything.nested(Tag.FILE)[0].raw(Tag.DATA) == b"y"
    assert everything.nested(Tag.VOLUME)[0].u64(Tag.FLAGS) == 1
    assert Tag.CLOCK_NS not in nothing


async def test_the_rest(faked: Agent, fake: FakeAgent) -> None:
    await asyncio.gather(faked.ping(b"a"), faked.ping(b"b"), faked.ping(bytes(64)))
    assert await faked.metrics() == {"procs": 0}
    await faked.sync_fs()
    await faked.shutdown(timeout=1)
    assert fake.shut_down
    reason = await faked.wait_closed()
    assert isinstance(reason, AgentError)
    with pytest.raises(AgentError, match="the channel to the guest agent ended"):
        await faked.ping()


async def test_more_calls_than_streams(agent: Agent) -> None:
    calls = [agent.procs() for _ in range(3 * MAX_STREAMS)]
    assert await asyncio.gather(*calls) == [[]] * len(calls)


async def test_quiesce(guest: Guest) -> None:
    agent = await guest.connect()
    await agent.quiesce()
    with pytest.raises(AgentError, match="quiesced"):
        await agent.ping()
    assert not agent.closed.done()
    await agent.aclose()
    assert await agent.wait_closed() is None


async def test_what_waits_fails_when_we_leave(guest: Guest) -> None:
    agent = await guest.connect()
    process = await agent.exec("p", Command(("sleep", "1000")))
    waits = [asyncio.ensure_future(wait) for wait in (process.read(), process.wait())]
    await agent.ping()
    await agent.aclose()
    for wait in waits:
        with pytest.raises(AgentError, match="was closed"):
            await wait
    await process.close()
    await agent.aclose()
