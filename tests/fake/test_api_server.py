"""The HTTP server on a real socket, with a fake engine behind it and raw clients before it."""

# ruff: noqa: ASYNC110 -- what the other side of a socket does is looked at, not waited for

from __future__ import annotations

import asyncio
import json
import os
import socket
import stat
import struct
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from sporevm.api import auth
from sporevm.api.context import App
from sporevm.api.listen import listen
from sporevm.api.models import STDIN_WINDOW, CommandBody, CreateBody, Exited, Started
from sporevm.api.server import ApiServer
from sporevm.errors import GuestError, NotFound, StorageError, UsageError
from sporevm.sdk._client import Client
from sporevm.store.layout import Layout
from tests.fake.fake_engine import FakeEngine

SH = ["/bin/sh", "-c"]


class Served:
    def __init__(self, layout: Layout, engine: FakeEngine, app: App) -> None:
        self.layout, self.engine, self.app = layout, engine, app
        self.client = Client(layout.home, start=False)

    async def raw(self, data: bytes) -> bytes:
        """All the server says to these bytes until it closes, or falls silent."""
        reader, writer = await asyncio.open_unix_connection(str(self.layout.socket))
        writer.write(data)
        answer = b""
        try:
            async with asyncio.timeout(3):
                while more := await reader.read(1 << 16):
                    answer += more
                    head, _, body = answer.partition(b"\r\n\r\n")
                    for line in head.split(b"\r\n"):
                        name, _, value = line.partition(b": ")
                        if name.lower() == b"content-length" and len(body) >= int(value):
                            return answer
        finally:
            writer.close()
        return answer

    async def ask(
        self, method: str, path: str, body: bytes = b"", *headers: str
    ) -> tuple[int, Any]:
        head = "".join(f"{h}\r\n" for h in headers)
        answer = await self.raw(
            f"{method} {path} HTTP/1.1\r\nHost: x\r\n{head}Content-Length: {len(body)}\r\n\r\n"
            .encode() + body
        )  # fmt: skip
        status = int(answer.split(b" ", 2)[1])
        return status, json.loads(answer.partition(b"\r\n\r\n")[2])

    async def gone(self, sandbox_id: str) -> bool:
        async with asyncio.timeout(5):
            while sandbox_id in self.engine.boxes:
                await asyncio.sleep(0.01)
        return True


@asynccontextmanager
async def serving() -> AsyncIterator[Served]:
    with tempfile.TemporaryDirectory(prefix="sp-") as path:
        layout = Layout(Path(path))
        engine = FakeEngine(layout)
        app = App(engine)
        app.ready.set()
        server = ApiServer(app)
        await server.serve(listen(layout))
        served = Served(layout, engine, app)
        try:
            yield served
        finally:
            await served.client.close()
            await server.close(grace=1.0)
            await engine.close()


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    async with serving() as s:
        yield s


async def test_socket_is_private(served: Served) -> None:
    assert stat.S_IMODE(served.layout.socket.stat().st_mode) == 0o600
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(served.layout.socket))
        assert auth.peer_uid(sock) == os.getuid()
    assert auth.may_connect(0, own=5) and auth.may_connect(5, own=5)
    assert not auth.may_connect(6, own=5)


async def test_another_user_is_refused(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auth, "may_connect", lambda uid, own=None: False)
    with suppress(ConnectionResetError):  # the same, seen earlier
        assert await served.raw(b"GET /v1/version HTTP/1.1\r\nHost: x\r\n\r\n") == b""


@pytest.mark.parametrize(
    "method, path, body, status, code, word",
    [
        ("GET", "/nope", b"", 404, "not_found", "/nope"),
        ("PATCH", "/v1/sandboxes", b"", 405, "method_not_allowed", "PATCH"),
        ("POST", "/v1/sandboxes", b"{x}", 400, "usage", "malformed"),
        ("POST", "/v1/sandboxes", b"\xff\xfe", 400, "usage", "body"),
        ("POST", "/v1/sandboxes", b'{"cpus": "two"}', 400, "usage", "$.cpus"),
        ("POST", "/v1/sandboxes", b'{"cpu": 2}', 400, "usage", "cpu"),
        ("POST", "/v1/sandboxes", b'{"memory_mib": 1e99}', 400, "usage", "memory_mib"),
        ("POST", "/v1/sandboxes", b"[" * 10000, 400, "usage", "body"),
        ("POST", "/v1/sandboxes", b'{"name": "a b"}', 400, "usage", "a b"),
        ("POST", "/v1/sandboxes", b'{"image": "nope"}', 404, "not_found", "nope"),
        ("POST", "/v1/sandboxes", b'{"name": "\\ud800"}', 400, "usage", "body"),
        ("GET", "/v1/sandboxes/nope", b"", 404, "not_found", "nope"),
        ("GET", "/v1/sandboxes/%ff%fe", b"", 404, "not_found", ""),
        ("GET", "/v1/sandboxes/x/logs?tail=-1", b"", 400, "usage", "tail"),
        ("GET", "/v1/sandboxes/x/logs?tail=1&tail=2", b"", 400, "usage", "twice"),
        ("GET", "/v1/sandboxes/x/logs?bogus=1", b"", 400, "usage", "bogus"),
        ("GET", "/v1/sandboxes/x/exec", b"", 400, "usage", "WebSocket"),
        ("GET", "/v1/run", b"", 400, "usage", "WebSocket"),
        ("DELETE", "/v1/sandboxes/x?force=perhaps", b"", 400, "usage", "force"),
        ("GET", "/v1/sandboxes/x/files", b"", 400, "usage", "path"),
    ],
)
async def test_nonsense_is_refused_in_one_form(
    served: Served, method: str, path: str, body: bytes, status: int, code: str, word: str
) -> None:
    got, answer = await served.ask(method, path, body)
    assert (got, answer["error"]["code"]) == (status, code)
    assert word in answer["error"]["message"]


@pytest.mark.parametrize(
    "data",
    [b"hello\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"GET /v1/version HTTP/1.1\r\nA b\r\n\r\n",
     b"POST /v1/sandboxes HTTP/1.1\r\nHost: x\r\nContent-Length: -4\r\n\r\n",
     b"GET /" + b"a" * 70000 + b" HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00"],
)  # fmt: skip
async def test_what_is_not_http(served: Served, data: bytes) -> None:
    answer = await served.raw(data)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.") and b" 400 " in head
    assert json.loads(body)["error"]["code"] == "usage"


async def test_a_body_that_is_too_big(served: Served) -> None:
    status, answer = await served.ask("POST", "/v1/sandboxes", b" " * (5 << 20))
    assert (status, answer["error"]["code"]) == (413, "too_big")


async def test_request_id_and_defects(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = await served.raw(b"GET /v1/version HTTP/1.1\r\nHost: x\r\nX-Request-Id: abc-1\r\n\r\n")
    assert b"X-Request-Id: abc-1\r\n" in answer
    monkeypatch.setattr(FakeEngine, "all", lambda self: 1 / 0)
    status, body = await served.ask("GET", "/v1/sandboxes")
    assert (status, body["error"]["code"]) == (500, "internal")
    assert "ZeroDivision" not in json.dumps(body)


async def test_a_newer_client_is_told(served: Served) -> None:
    status, body = await served.ask("GET", "/v1/sandboxes", b"", "Spore-Client: 99.0.0")
    assert (status, body["error"]["code"]) == (426, "engine_outdated")
    assert (await served.ask("GET", "/v1/version", b"", "Spore-Client: 99.0.0"))[0] == 200
    assert (await served.ask("GET", "/v1/sandboxes", b"", "Spore-Client: 0.0.1"))[0] == 200


async def test_requests_wait_for_the_engine(served: Served) -> None:
    served.app.ready.clear()
    waiting = asyncio.ensure_future(served.client.list())
    assert (await served.client.version()).api == "v1"
    assert not waiting.done()
    served.app.failure = StorageError("disk full")
    served.app.ready.set()
    with pytest.raises(StorageError, match="disk full"):
        await waiting


async def test_life_of_a_sandbox(served: Served) -> None:
    client = served.client
    steps: list[str] = []
    body = CreateBody(name="one", labels={"k": "v"})
    box = await client.create(body, on_progress=lambda p: steps.append(p.step))
    assert steps == ["template"] and box.labels == {"k": "v"}
    assert [b.id for b in await client.list()] == [box.id]
    assert (await client.inspect("one")).id == box.id
    assert (await client.metrics("one"))["mem_total"]
    assert (await client.engine.status() or box) is not box
    waiting = asyncio.ensure_future(client.wait("one"))
    stopped = await client.stop("one", timeout=0)
    assert stopped.state == "stopped" and (await waiting).id == box.id
    await client.remove("one")
    with pytest.raises(NotFound):
        await client.inspect("one")


async def test_a_create_nobody_waits_for_is_undone(served: Served) -> None:
    served.engine.create_gate = asyncio.Event()
    task = asyncio.ensure_future(served.client.create(CreateBody(name="lost")))
    while not served.app.engine.undone and not task.done():  # type: ignore[attr-defined]
        await asyncio.sleep(0.02)
        task.cancel()
    assert served.engine.undone == ["lost"] and not served.engine.boxes


async def test_exec_streams_both_ways(served: Served) -> None:
    box = await served.client.create(CreateBody())
    command = CommandBody(argv=["cat"], stdin=True)
    async with await served.client.exec(box.id, command) as stream:
        await stream.send(b"hello")
        await stream.send_eof()
        items = [item async for item in stream]
    assert isinstance(items[0], Started) and isinstance(items[-1], Exited)
    assert b"".join(i[1] for i in items if isinstance(i, tuple)) == b"hello"


async def test_huge_stdin_and_output(served: Served) -> None:
    box = await served.client.create(CreateBody())
    data = b"0123456789abcdef" * (1 << 20)
    async with await served.client.exec(box.id, CommandBody(argv=["cat"], stdin=True)) as stream:

        async def feed() -> None:
            await stream.send(data)
            await stream.send_eof()

        feeding = asyncio.ensure_future(feed())
        got = [i[1] async for i in stream if isinstance(i, tuple)]
        await feeding
    assert b"".join(got) == data


async def test_a_signal_overtakes_stdin_nobody_reads(served: Served) -> None:
    box = await served.client.create(CreateBody())
    command = CommandBody(argv=["sleep", "100"], stdin=True)
    async with await served.client.exec(box.id, command) as stream:
        await stream.receive()
        feeding = asyncio.ensure_future(stream.send(b"x" * (8 << 20)))
        await asyncio.sleep(0.1)
        assert not feeding.done()
        await stream.signal(15)
        last = [item async for item in stream][-1]
        await feeding
    assert isinstance(last, Exited) and last.exit_code == 143


async def test_output_nobody_reads_holds_the_process(served: Served) -> None:
    box = await served.client.create(CreateBody())
    async with await served.client.exec(box.id, CommandBody(argv=["yes"])) as stream:
        await stream.receive()
        [process] = served.engine.boxes[box.id].processes.values()
        before = -1
        while process.passed != before:
            before = process.passed
            await asyncio.sleep(0.2)
        assert before < 4 << 20
    assert process.exit is not None or await asyncio.wait_for(process.wait(), 5)


async def test_client_that_vanishes_ends_its_process(served: Served) -> None:
    box = await served.client.create(CreateBody())
    for argv in (["sleep", "100"], ["yes"]):
        stream = await served.client.exec(box.id, CommandBody(argv=argv))
        started = await stream.receive()
        assert isinstance(started, Started)
        process = served.engine.boxes[box.id].processes[started.proc]
        stream._socket.abort()
        end = await asyncio.wait_for(process.wait(), 5)
        assert end.signal == 9


async def test_detached_processes_stay(served: Served) -> None:
    box = await served.client.create(CreateBody())
    processes = served.engine.boxes[box.id].processes
    async with await served.client.exec(box.id, CommandBody(argv=["sleep", "9"])) as stream:
        await stream.receive()
        await stream.detach()
    command = CommandBody(argv=[*SH, "yes | head -c 5000000; exit 4"])
    async with await served.client.exec(box.id, command, detach=True) as stream:
        assert len([item async for item in stream]) == 1
    assert processes["x0"].exit is None
    assert (await asyncio.wait_for(processes["x1"].wait(), 5)).code == 4


async def test_run_ends_its_sandbox_with_the_client(served: Served) -> None:
    client = served.client
    create = CreateBody(auto_remove=True)
    async with await client.run(create, CommandBody(argv=[*SH, "echo out; exit 7"])) as stream:
        items = [item async for item in stream]
    assert (1, b"out\n") in items and items[-1].exit_code == 7  # type: ignore[union-attr]
    stream = await client.run(create, CommandBody(argv=["sleep", "100"]))
    async for item in stream:
        if isinstance(item, Started):
            break
    stream._socket.abort()
    assert await served.gone(item.sandbox)
    async with await client.run(CreateBody(name="kept"), CommandBody(argv=["echo", "x"])) as stream:
        _ = [item async for item in stream]
    record = await client.wait("kept")
    assert (record.state, record.exit_code) == ("stopped", 0)
    assert [line.data async for line in client.logs("kept")] == [b"x\n"]


async def test_run_whose_client_goes_during_the_start(served: Served) -> None:
    served.engine.create_gate = asyncio.Event()
    stream = await served.client.run(CreateBody(name="r"), CommandBody(argv=["true"]))
    await stream.receive()
    stream._socket.abort()
    async with asyncio.timeout(5):
        while served.engine.undone != ["r"]:
            await asyncio.sleep(0.01)
    assert not served.engine.boxes


async def test_stream_errors(served: Served) -> None:
    client = served.client
    with pytest.raises(NotFound):
        async with await client.exec("nope", CommandBody(argv=["true"])) as stream:
            await stream.receive()
    box = await client.create(CreateBody())
    with pytest.raises(GuestError) as caught:
        async with await client.exec(box.id, CommandBody(argv=["/no/such"])) as stream:
            await stream.receive()
    assert caught.value.errno == 2
    # Not `cat`: without stdin that ends at once, and its exit may come before the refusal.
    with pytest.raises(UsageError):
        async with await client.exec(box.id, CommandBody(argv=["sleep", "60"])) as stream:
            await stream.receive()
            await stream.send(b"not asked for")
            await stream.receive()
    (process,) = served.engine.boxes[box.id].processes.values()
    assert (await asyncio.wait_for(process.wait(), 5)).signal == 9


def masked(kind: int, data: bytes, *, fin: int = 0x80) -> bytes:
    size = bytes((0x80 | len(data),)) if len(data) < 126 else b"\xfe" + struct.pack(">H", len(data))
    return bytes((fin | kind,)) + size + b"\0\0\0\0" + data


UPGRADE = (
    b"GET /v1/sandboxes/%s/exec HTTP/1.1\r\nHost: x\r\n"
    b"Connection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)


@pytest.mark.parametrize(
    "first",
    [masked(1, b"{"), masked(1, b'{"type":"signal","signal":1}'), masked(2, b"\0abc"),
     masked(1, b'{"type":"exec","command":{"argv":[]}}'), masked(3, b"x"), b"\xc1\x80\0\0\0\0",
     b"\x81\x05hello", masked(1, b"\xff"), b"\x81\xff" + b"\xff" * 12, masked(8, b"")],
)  # fmt: skip
async def test_malformed_messages_end_the_stream_only(served: Served, first: bytes) -> None:
    box = await served.client.create(CreateBody())
    answer = await served.raw(UPGRADE % box.id.encode() + first)
    assert answer.startswith(b"HTTP/1.1 101")
    assert (await served.client.run_command(box.id, CommandBody(argv=["true"]))).exit_code == 0
    assert len(served.engine.boxes[box.id].processes) == 1


async def test_malformed_message_later_kills_the_process(served: Served) -> None:
    box = await served.client.create(CreateBody())
    start = b'{"type":"exec","command":{"argv":["sleep","100"],"stdin":true}}'
    for bad in (
        masked(1, b'{"type":"resize","rows":0,"cols":1}'),
        masked(2, b"\x07x"),
        b"\xff\xff",
    ):
        await served.raw(UPGRADE % box.id.encode() + masked(1, start) + bad)
    for process in served.engine.boxes[box.id].processes.values():
        assert (await asyncio.wait_for(process.wait(), 5)).signal == 9


async def test_a_client_that_ignores_the_window_is_held_back(served: Served) -> None:
    box = await served.client.create(CreateBody())
    stream = await served.client.exec(box.id, CommandBody(argv=["sleep", "60"], stdin=True))
    await stream.receive()
    piece = b"\0" + b"x" * 65536

    async def flood() -> int:
        sent = 0
        while sent < 64 << 20:
            await stream._socket.send(2, piece)
            sent += len(piece)
        return sent

    flooding = asyncio.ensure_future(flood())
    await asyncio.sleep(0.5)
    assert not flooding.done()
    flooding.cancel()
    await asyncio.gather(flooding, return_exceptions=True)
    await stream.close()
    [process] = served.engine.boxes[box.id].processes.values()
    assert (await asyncio.wait_for(process.wait(), 10)).signal == 9
    assert STDIN_WINDOW < 1 << 20


async def test_files(served: Served) -> None:
    client, box = served.client, await served.client.create(CreateBody())
    data = bytes(range(256)) * 40000
    info = await client.files.write(box.id, "/d/a b&c.bin", data, mode=0o600)
    assert (info.size, info.mode, info.name) == (len(data), 0o600, "a b&c.bin")
    assert await client.files.read(box.id, "/d/a b&c.bin") == data

    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield b"y" * 70000

    assert (await client.files.write(box.id, "/d/two", pieces())).size == 7_000_000
    assert sum([len(p) async for p in client.files.stream(box.id, "/d/two")]) == 7_000_000
    assert [e.name for e in await client.files.list(box.id, "/d")] == ["a b&c.bin", "two"]
    await client.files.rename(box.id, "/d/two", "/d/2")
    await client.files.mkdir(box.id, "/d/e/f")
    await client.files.remove(box.id, "/d/e", recursive=True)
    for call in (client.files.read, client.files.stat, client.files.list, client.files.remove):
        with pytest.raises(GuestError) as caught:
            await call(box.id, "/d/e")  # type: ignore[operator]
        assert caught.value.errno == 2


async def test_a_broken_upload_changes_nothing(served: Served) -> None:
    client, box = served.client, await served.client.create(CreateBody())
    await client.files.write(box.id, "/f", b"old")

    async def broken() -> AsyncIterator[bytes]:
        yield b"new" * 100000
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        await client.files.write(box.id, "/f", broken())
    await asyncio.sleep(0.1)
    assert await client.files.read(box.id, "/f") == b"old"
    with pytest.raises(NotFound):  # refused before the body was read
        await client.files.write("nope", "/f", b"x" * (64 << 20))


async def test_events_and_logs_end_with_the_client(served: Served) -> None:
    events = served.client.events()
    first = asyncio.ensure_future(anext(events))
    while not served.engine.listeners:
        await asyncio.sleep(0.01)
    await served.client.create(CreateBody())
    assert (await first).kind == "created"
    await events.aclose()
    async with asyncio.timeout(5):
        while served.engine.listeners:
            await asyncio.sleep(0.01)


async def test_many_clients(served: Served) -> None:
    box = await served.client.create(CreateBody())

    async def one(number: int) -> bytes:
        command = CommandBody(argv=["echo", str(number)])
        return (await served.client.run_command(box.id, command)).stdout

    answers = await asyncio.gather(*(one(n) for n in range(40)))
    assert answers == [b"%d\n" % n for n in range(40)]


async def test_images_and_templates(served: Served) -> None:
    client = served.client
    assert [i.names for i in await client.images.list()] == [["base"]]
    assert (await client.images.inspect("base")).fstype == "erofs"
    with pytest.raises(NotFound):
        await client.images.remove("nope")
    from sporevm.api.models import TemplateBody

    steps: list[str] = []
    made = await client.templates.build(TemplateBody(), on_progress=lambda p: steps.append(p.step))
    assert made.key == "t2" and steps == ["boot"]
    await client.templates.remove("t1")
