"""A guest agent for tests: a real server on a Unix socket that speaks the protocol, or breaks it.

Processes are small coroutines that know a few commands (`true`, `echo`, `cat`, `sleep`, `env`,
`head -c N /dev/zero`, `sh -c` with those and `exit`, `kill -N $$`, joined by `;`), files live in a
dict. Like the real one, it keeps processes over a lost connection and replays what was not
credited. Faults are raw bytes put in the place of an honest answer: see `Faults`.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

from sporevm.wire import constants as c
from sporevm.wire.constants import Service, Tag
from sporevm.wire.frames import Decoder, Frame, encode
from sporevm.wire.tlv import Field, Fields
from sporevm.wire.tlv import encode as tlv

HELLO = tlv([(Tag.VERSION, "fake"), (Tag.BOOT_ID, "b" * 36), (Tag.FLAGS, 0)])


def ack(nonce: bytes, version: int = c.VERSION) -> bytes:
    return c.ACK_MAGIC + struct.pack("<HHI", version, 0, 0) + nonce


@dataclass
class Faults:
    """What to do wrong. Each function returns raw bytes to send, or None to be honest."""

    #: Instead of ACK and HELLO; gets the nonce.
    greeting: Callable[[bytes], bytes | None] = lambda nonce: None
    #: Instead of serving an OPEN; gets the service and the stream.
    opened: Callable[[int, int], bytes | None] = lambda service, stream: None
    #: Hang up behind the bytes of either.
    hang_up: bool = False


@dataclass
class Proc:
    name: str
    pid: int
    argv: list[str]
    env: dict[str, str]
    kept: dict[int, bytearray] = field(default_factory=lambda: {1: bytearray(), 2: bytearray()})
    base: dict[int, int] = field(default_factory=lambda: {1: 0, 2: 0})  # credited bytes
    stdin: asyncio.Queue[bytes] = field(default_factory=asyncio.Queue)
    stdin_seen: int = 0
    code: int = 0
    signal: int = 0
    ended: bool = False
    events: list[Fields] = field(default_factory=list)
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)
    task: asyncio.Task[None] | None = None

    async def notify(self) -> None:
        async with self.changed:
            self.changed.notify_all()

    async def write(self, channel: int, data: bytes) -> None:
        for at in range(0, len(data), c.MAX_PAYLOAD):
            async with self.changed:
                await self.changed.wait_for(lambda: len(self.kept[channel]) < c.WINDOW)
                self.kept[channel] += data[at : at + c.MAX_PAYLOAD]
                self.changed.notify_all()

    async def output(self, channel: int, at: int) -> bytes:
        """What there is behind `at`, as soon as there is some; b"" at the end."""
        base = self.base
        async with self.changed:
            await self.changed.wait_for(
                lambda: self.ended or at < base[channel] + len(self.kept[channel])
            )
            return bytes(self.kept[channel][at - base[channel] :])

    async def run(self) -> None:
        try:
            script = self.argv[2] if self.argv[:2] == ["sh", "-c"] else None
            steps = [step.split() for step in script.split(";")] if script else [self.argv]
            for step in steps:
                if not await self.step(step):
                    break
        finally:
            self.ended = True
            with contextlib.suppress(asyncio.CancelledError):
                await self.notify()

    async def step(self, argv: list[str]) -> bool:
        match argv:
            case ["exit", code]:
                self.code = int(code)
                return False
            case ["kill", number, "$$"]:
                self.signal = int(number[1:])
                return False
            case ["echo", *words]:
                channel = 2 if words[-1:] == [">&2"] else 1
                text = " ".join(word for word in words if word != ">&2")
                await self.write(channel, text.encode() + b"\n")
            case ["head", "-c", size, "/dev/zero"]:
                await self.write(1, bytes(int(size)))
            case ["cat"]:
                while data := await self.stdin.get():
                    await self.write(1, data)
            case ["env"]:
                text = "".join(f"{key}={value}\n" for key, value in self.env.items())
                await self.write(1, text.encode("utf-8", "surrogateescape"))
            case ["sleep", *_]:
                await asyncio.Event().wait()
        return True

    def end(self, signal: int) -> None:
        if not self.ended and self.task is not None:
            self.signal = signal
            self.task.cancel()


PROGRAMS = {"true", "echo", "cat", "sleep", "env", "head", "sh", "exit"}


class _Stream:
    def __init__(self, number: int) -> None:
        self.number = number
        self.window = {1: c.WINDOW, 2: c.WINDOW}
        self.credited: Callable[[int, int], None] = lambda channel, size: None
        self.frames: asyncio.Queue[Frame] = asyncio.Queue()
        self.changed = asyncio.Condition()
        self.task: asyncio.Task[None] | None = None
        self.closed = False
        self.proc: Proc | None = None


class _Refused(Exception):
    def __init__(self, number: int, message: str = "") -> None:
        self.fields: list[Field] = [(Tag.ERRNO, number)]
        if message:
            self.fields.append((Tag.MESSAGE, message))


def _texts(fields: Fields, tag: Tag) -> list[str]:
    found = fields._values.get(tag, ())
    return [v.decode("utf-8", "surrogateescape") for v in found if isinstance(v, bytes)]


class FakeAgent:
    """State that lasts from one connection to the next, like a guest's. Use `serving`."""

    def __init__(self, faults: Faults | None = None) -> None:
        self.faults = faults or Faults()
        self.procs: dict[str, Proc] = {}
        self.files: dict[str, bytes] = {}
        self.configured: list[Fields] = []
        self.connections = 0
        self.shut_down = False
        self.received = 0
        self._next_pid = 100

    @contextlib.asynccontextmanager
    async def serving(self, path: Path) -> AsyncIterator[FakeAgent]:
        tasks: set[asyncio.Task[None]] = set()

        def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self.connections += 1
            tasks.add(asyncio.ensure_future(_Channel(self, reader, writer).serve()))

        server = await asyncio.start_unix_server(connected, path, limit=1 << 20)
        try:
            yield self
        finally:
            server.close()
            tasks |= {proc.task for proc in self.procs.values() if proc.task}
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await server.wait_closed()

    def start(self, fields: Fields) -> Proc:
        argv = _texts(fields, Tag.ARG)
        if argv[0] not in PROGRAMS:
            raise _Refused(errno.ENOENT)
        name = fields.text(Tag.PROC)
        if name in self.procs:
            raise _Refused(errno.EEXIST)
        pairs = [pair.split("=", 1) for pair in _texts(fields, Tag.ENV)]
        self._next_pid += 1
        proc = Proc(name, self._next_pid, argv, dict(pairs))
        if not fields.u64(Tag.FLAGS) & c.EXEC_STDIN:
            proc.stdin.put_nowait(b"")
        self.procs[name] = proc
        proc.task = asyncio.ensure_future(proc.run())
        return proc

    def proc(self, fields: Fields) -> Proc:
        try:
            return self.procs[fields.text(Tag.PROC)]
        except KeyError:
            raise _Refused(errno.ESRCH) from None


class _Channel:
    def __init__(
        self, agent: FakeAgent, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.agent = agent
        self.reader = reader
        self.writer = writer
        self.streams: dict[int, _Stream] = {}

    async def serve(self) -> None:
        try:
            data = b""
            while (at := data.find(c.SYNC_MAGIC)) < 0 or len(data) < at + c.RECORD_BYTES:
                data = data[max(0, at if at >= 0 else len(data) - 39) :]
                more = await self.reader.read(1 << 16)
                if not more:
                    return
                data += more
            nonce = data[at + 24 : at + 40]
            if not self.fault(self.agent.faults.greeting(nonce)):
                self.writer.write(ack(nonce) + encode(0, c.HELLO, HELLO))
            await self.frames(data[at + 40 :])
        except ConnectionError:
            pass
        finally:
            for stream in self.streams.values():
                if stream.task is not None:
                    stream.task.cancel()
            self.writer.close()

    def fault(self, data: bytes | None) -> bool:
        if data is None:
            return False
        self.writer.write(data)
        if self.agent.faults.hang_up:
            self.writer.close()
        return True

    async def frames(self, data: bytes) -> None:
        decoder = Decoder()
        while True:
            at = 0
            while at < len(data):
                room = decoder.room()
                size = min(len(room), len(data) - at)
                room[:size] = data[at : at + size]
                decoder.wrote(size)
                at += size
                for frame in decoder.frames():
                    await self.on_frame(frame)
            data = await self.reader.read(1 << 18)
            if not data:
                return

    async def on_frame(self, frame: Frame) -> None:
        if frame.type == c.PING:
            self.writer.write(encode(0, c.PONG, frame.payload))
            return
        if frame.type == c.OPEN:
            if self.fault(self.agent.faults.opened(frame.payload[0], frame.stream)):
                return
            stream = self.streams[frame.stream] = _Stream(frame.stream)
            stream.task = asyncio.ensure_future(self.service(stream, frame.payload))
            return
        found = self.streams.get(frame.stream)
        if found is None:
            return
        if frame.type == c.CREDIT:
            (size,) = struct.unpack("<I", frame.payload)
            async with found.changed:
                found.window[frame.channel] += size
                found.credited(frame.channel, size)
                found.changed.notify_all()
        elif frame.type == c.CLOSE:
            del self.streams[frame.stream]
            if not found.closed and found.task is not None:
                found.task.cancel()
                self.writer.write(encode(frame.stream, c.CLOSE))
            self.done_with(found, Fields(frame.payload))
        else:
            found.frames.put_nowait(frame)

    def done_with(self, stream: _Stream, fields: Fields) -> None:
        proc = stream.proc
        if proc is not None and proc.ended:
            self.agent.procs.pop(proc.name, None)
        elif proc is not None and fields.u64(Tag.FLAGS, 0) & c.CLOSE_KILL:
            proc.end(9)

    # Sending

    def reply(self, stream: _Stream, *fields: Field) -> None:
        payload = tlv([(Tag.ERRNO, 0), *fields])
        self.writer.write(encode(stream.number, c.REPLY, payload))

    def close(self, stream: _Stream, *fields: Field) -> None:
        stream.closed = True
        self.writer.write(encode(stream.number, c.CLOSE, tlv(fields)))

    async def data(self, stream: _Stream, data: bytes, channel: int = 1) -> None:
        view = memoryview(data)
        while view:
            async with stream.changed:
                await stream.changed.wait_for(lambda: stream.window[channel] > 0)
                size = min(len(view), c.MAX_PAYLOAD, stream.window[channel])
                stream.window[channel] -= size
            self.writer.write(encode(stream.number, c.DATA, view[:size], channel))
            await self.writer.drain()
            view = view[size:]

    def eof(self, stream: _Stream, channel: int = 1) -> None:
        self.writer.write(encode(stream.number, c.EOF, b"", channel))

    async def incoming(self, stream: _Stream) -> AsyncIterator[bytes]:
        """Data of channel 0 to its end; the bytes are credited when the next ones are asked for."""
        while (frame := await stream.frames.get()).type != c.EOF:
            if frame.type == c.DATA:
                yield frame.payload
                self.agent.received += len(frame.payload)
                size = struct.pack("<I", len(frame.payload))
                self.writer.write(encode(stream.number, c.CREDIT, size, 0))

    # Services

    async def service(self, stream: _Stream, payload: bytes) -> None:
        fields = Fields(payload[1:])
        try:
            await _SERVICES[Service(payload[0])](self, stream, fields)
        except _Refused as error:
            self.writer.write(encode(stream.number, c.REPLY, tlv(error.fields)))
            self.close(stream)

    async def configure(self, stream: _Stream, fields: Fields) -> None:
        self.agent.configured.append(fields)
        self.one_shot(stream)

    async def nothing(self, stream: _Stream, fields: Fields) -> None:
        self.one_shot(stream)

    def one_shot(self, stream: _Stream, *fields: Field) -> None:
        self.reply(stream, *fields)
        self.close(stream)

    async def exec(self, stream: _Stream, fields: Fields) -> None:
        proc = self.agent.start(fields)
        self.reply(stream, (Tag.PID, proc.pid))
        await self.follow(stream, proc)

    async def attach(self, stream: _Stream, fields: Fields) -> None:
        proc = self.agent.proc(fields)
        for channel, tag in ((1, Tag.STDOUT_SEEN), (2, Tag.STDERR_SEEN)):
            size = fields.u64(tag, 0) - proc.base[channel]
            if not 0 <= size <= len(proc.kept[channel]):
                raise _Refused(errno.ERANGE, "those bytes are gone")
            del proc.kept[channel][:size]
            proc.base[channel] += size
        await proc.notify()
        self.reply(stream, (Tag.PID, proc.pid), (Tag.STDIN_SEEN, proc.stdin_seen))
        await self.follow(stream, proc)

    async def follow(self, stream: _Stream, proc: Proc) -> None:
        stream.proc = proc

        def credited(channel: int, size: int) -> None:
            del proc.kept[channel][:size]
            proc.base[channel] += size
            asyncio.ensure_future(proc.notify())

        stream.credited = credited
        control = asyncio.ensure_future(self.control(stream, proc))
        try:
            await asyncio.gather(*(self.pump(stream, proc, channel) for channel in (1, 2)))
            ended: list[Field] = [(Tag.EXIT_CODE, proc.code), (Tag.TERM_SIGNAL, proc.signal)]
            self.writer.write(encode(stream.number, c.EVENT, tlv(ended)))
            self.close(stream)
        finally:
            control.cancel()

    async def pump(self, stream: _Stream, proc: Proc, channel: int) -> None:
        at = proc.base[channel]
        while piece := await proc.output(channel, at):
            at += len(piece)
            await self.data(stream, piece, channel)
        self.eof(stream, channel)

    async def control(self, stream: _Stream, proc: Proc) -> None:
        while True:
            frame = await stream.frames.get()
            if frame.type == c.DATA:
                proc.stdin_seen += len(frame.payload)
                proc.stdin.put_nowait(frame.payload)
                size = struct.pack("<I", len(frame.payload))
                self.writer.write(encode(stream.number, c.CREDIT, size, 0))
            elif frame.type == c.EOF:
                proc.stdin.put_nowait(b"")
            elif frame.type == c.EVENT:
                fields = Fields(frame.payload)
                proc.events.append(fields)
                if Tag.SIGNAL in fields:
                    proc.end(fields.u64(Tag.SIGNAL))

    async def list_procs(self, stream: _Stream, fields: Fields) -> None:
        entries: list[Field] = []
        for proc in self.agent.procs.values():
            entry: list[Field] = [(Tag.PROC, proc.name), (Tag.PID, proc.pid)]
            entry.append((Tag.FLAGS, c.PROC_ENDED if proc.ended else 0))
            if proc.ended:
                entry += [(Tag.EXIT_CODE, proc.code), (Tag.TERM_SIGNAL, proc.signal)]
            entries.append((Tag.ENTRY, tlv(entry)))
        self.one_shot(stream, *entries)

    async def kill(self, stream: _Stream, fields: Fields) -> None:
        self.agent.proc(fields).end(fields.u64(Tag.SIGNAL))
        self.one_shot(stream)

    def about(self, path: str) -> list[Field]:
        files = self.agent.files
        is_dir = path not in files and any(name.startswith(f"{path}/") for name in files)
        if path not in files and not is_dir:
            raise _Refused(errno.ENOENT)
        return [
            (Tag.KIND, 2 if is_dir else 1), (Tag.SIZE, len(files.get(path, b""))),
            (Tag.MODE, 0o100644), (Tag.UID, 0), (Tag.GID, 0), (Tag.MTIME_NS, 10**18),
        ]  # fmt: skip

    async def file_read(self, stream: _Stream, fields: Fields) -> None:
        path = fields.text(Tag.PATH)
        self.reply(stream, *self.about(path))
        begin = fields.u64(Tag.OFFSET, 0)
        data = self.agent.files[path][begin:][: fields.u64(Tag.SIZE, 1 << 60)]
        await self.data(stream, data)
        self.eof(stream)
        self.close(stream)

    async def file_write(self, stream: _Stream, fields: Fields) -> None:
        path, flags = fields.text(Tag.PATH), fields.u64(Tag.FLAGS)
        if flags & c.WRITE_EXCLUSIVE and path in self.agent.files:
            raise _Refused(errno.EEXIST)
        self.reply(stream)
        old = self.agent.files.get(path, b"") if flags & c.WRITE_APPEND else b""
        data = b"".join([data async for data in self.incoming(stream)])
        self.agent.files[path] = old + data
        ended = tlv([(Tag.SIZE, len(data)), (Tag.ERRNO, 0)])
        self.writer.write(encode(stream.number, c.EVENT, ended))
        self.close(stream)

    async def stat(self, stream: _Stream, fields: Fields) -> None:
        self.one_shot(stream, *self.about(fields.text(Tag.PATH)))

    async def list_dir(self, stream: _Stream, fields: Fields) -> None:
        prefix = fields.text(Tag.PATH) + "/"
        names = {n[len(prefix) :].split("/")[0] for n in self.agent.files if n.startswith(prefix)}
        if not names:
            raise _Refused(errno.ENOENT)
        self.reply(stream)
        for name in sorted(names):
            entry = tlv([(Tag.NAME, name), *self.about(prefix + name)])
            await self.data(stream, tlv([(Tag.ENTRY, entry)]))
        self.eof(stream)
        self.close(stream)

    async def remove(self, stream: _Stream, fields: Fields) -> None:
        self.about(path := fields.text(Tag.PATH))
        for name in [n for n in self.agent.files if n == path or n.startswith(f"{path}/")]:
            del self.agent.files[name]
        self.one_shot(stream)

    async def rename(self, stream: _Stream, fields: Fields) -> None:
        self.about(path := fields.text(Tag.PATH))
        self.agent.files[fields.text(Tag.PATH2)] = self.agent.files.pop(path)
        self.one_shot(stream)

    async def make_dir(self, stream: _Stream, fields: Fields) -> None:
        self.agent.files[fields.text(Tag.PATH) + "/."] = b""
        self.one_shot(stream)

    async def metrics(self, stream: _Stream, fields: Fields) -> None:
        entry = tlv([(Tag.NAME, "procs"), (Tag.VALUE, len(self.agent.procs))])
        self.one_shot(stream, (Tag.ENTRY, entry))

    async def tcp_connect(self, stream: _Stream, fields: Fields) -> None:
        """Port 7 echoes; nobody listens on the others."""
        if fields.u64(Tag.PORT) != 7:
            raise _Refused(errno.ECONNREFUSED)
        self.reply(stream)
        async for data in self.incoming(stream):
            await self.data(stream, data)
        self.eof(stream)
        self.close(stream)

    async def shutdown(self, stream: _Stream, fields: Fields) -> None:
        self.agent.shut_down = True
        self.one_shot(stream)
        await self.writer.drain()
        self.writer.close()


_SERVICES: dict[Service, Callable[[_Channel, _Stream, Fields], Awaitable[None]]] = {
    Service.CONFIGURE: _Channel.configure,
    Service.EXEC: _Channel.exec,
    Service.ATTACH: _Channel.attach,
    Service.PROCS: _Channel.list_procs,
    Service.KILL: _Channel.kill,
    Service.FILE_READ: _Channel.file_read,
    Service.FILE_WRITE: _Channel.file_write,
    Service.STAT: _Channel.stat,
    Service.LIST: _Channel.list_dir,
    Service.REMOVE: _Channel.remove,
    Service.RENAME: _Channel.rename,
    Service.MKDIR: _Channel.make_dir,
    Service.METRICS: _Channel.metrics,
    Service.TCP_CONNECT: _Channel.tcp_connect,
    Service.SYNC_FS: _Channel.nothing,
    Service.QUIESCE: _Channel.nothing,
    Service.SHUTDOWN: _Channel.shutdown,
}
