"""An engine without VMs, for the API and the SDK: sandboxes are directories, commands are real
processes of this machine, and everything else behaves like the real one.

Run as a program it is a daemon like `sporevm.api.daemon`, with this engine inside.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import stat
import sys
import time
from collections.abc import AsyncIterable, AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

from sporevm.api.models import EventRecord, ImageView, TemplateView
from sporevm.api.port import ProgressFn
from sporevm.errors import Conflict, GuestError, NotFound, StateError
from sporevm.spec import Command, SandboxSpec, new_sandbox_id
from sporevm.store.layout import Layout
from sporevm.store.records import SandboxRecord

#: Runs no process: what is left is the cost of the API itself.
NOOP = "spore-noop"


@dataclass(frozen=True)
class Exit:
    code: int
    signal: int = 0
    timed_out: bool = False

    @property
    def status(self) -> int:
        return 128 + self.signal if self.signal else self.code


@dataclass(frozen=True)
class LogLine:
    time: float
    channel: int
    data: bytes


class NoopProcess:
    proc, pid = "noop", 1

    async def read(self) -> None:
        return None

    async def wait(self) -> Exit:
        return Exit(0)

    async def close(self, kill: bool = False) -> None: ...
    async def write(self, data: bytes) -> None: ...
    def write_eof(self) -> None: ...
    def signal(self, number: int) -> None: ...
    def resize(self, rows: int, cols: int) -> None: ...


class FakeProcess:
    """A process of this machine behind the interface of one in a guest."""

    def __init__(self, process: asyncio.subprocess.Process, proc: str, command: Command) -> None:
        self.proc = proc
        self.pid = process.pid
        self.size = (command.rows, command.cols)
        self.exit: Exit | None = None
        self._process = process
        # One item each: what is not read makes the process wait.
        self._items: asyncio.Queue[tuple[int, bytes] | None] = asyncio.Queue(1)
        self.passed = 0
        assert process.stdout is not None and process.stderr is not None
        readers = ((1, process.stdout), (2, process.stderr))
        self._pumps = [asyncio.ensure_future(self._pump(*r)) for r in readers]
        self._ender = asyncio.ensure_future(self._end(command.timeout))

    async def _pump(self, channel: int, reader: asyncio.StreamReader) -> None:
        while data := await reader.read(1 << 16):
            await self._items.put((channel, data))
            self.passed += len(data)

    async def _end(self, timeout: float | None) -> Exit:
        timed_out = False
        try:
            async with asyncio.timeout(timeout):
                await self._process.wait()
        except TimeoutError:
            timed_out = True
            self.signal(signal.SIGKILL)
            await self._process.wait()
        await asyncio.gather(*self._pumps)
        code = self._process.returncode or 0
        self.exit = Exit(max(code, 0), max(-code, 0), timed_out)
        await self._items.put(None)
        return self.exit

    async def read(self) -> tuple[int, bytes] | None:
        item = await self._items.get()
        if item is None:
            self._items.put_nowait(None)  # the end stays, for whoever reads next
        return item

    async def write(self, data: bytes) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(data)
            await self._process.stdin.drain()
        except ConnectionError:
            raise GuestError("cannot write to a process that has ended", errno=32) from None

    def write_eof(self) -> None:
        if self._process.stdin is not None:
            self._process.stdin.close()

    def signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    def resize(self, rows: int, cols: int) -> None:
        self.size = (rows, cols)

    async def wait(self) -> Exit:
        return await asyncio.shield(self._ender)

    async def close(self, kill: bool = False) -> None:
        if not kill:
            return
        self.signal(signal.SIGKILL)
        drainer = asyncio.ensure_future(self._drain())
        await asyncio.gather(self._ender, drainer, return_exceptions=True)

    async def _drain(self) -> None:
        while await self.read() is not None:
            pass


class FakeReader:
    def __init__(self, path: Path, info: SimpleNamespace) -> None:
        self.info = info
        self._file = path.open("rb")

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while data := self._file.read(1 << 16):
            yield data
            await asyncio.sleep(0)

    async def aclose(self) -> None:
        self._file.close()


_KINDS = {stat.S_IFREG: "file", stat.S_IFDIR: "dir", stat.S_IFLNK: "link", stat.S_IFIFO: "fifo"}


def _facts(path: Path, *, follow: bool) -> SimpleNamespace:
    st = path.stat() if follow else path.lstat()
    kind = _KINDS.get(stat.S_IFMT(st.st_mode), "char")
    return SimpleNamespace(
        name=path.name, kind=kind, size=st.st_size, mode=stat.S_IMODE(st.st_mode), uid=st.st_uid,
        gid=st.st_gid, mtime_ns=st.st_mtime_ns,
        target=str(path.readlink()) if kind == "link" else "",
    )  # fmt: skip


@contextlib.contextmanager
def _guest_errors(path: str) -> object:
    try:
        yield
    except OSError as error:
        number = error.errno or 5
        raise GuestError(f"{path}: {os.strerror(number)}", errno=number, path=path) from None


class FakeAgent:
    def __init__(self, root: Path, processes: dict[str, FakeProcess]) -> None:
        self._root = root
        self._processes = processes

    def _at(self, path: str) -> Path:
        return self._root / path.lstrip("/")

    async def read_file(self, path: str) -> FakeReader:
        with _guest_errors(path):
            if self._at(path).is_dir():
                raise IsADirectoryError(21, path)
            return FakeReader(self._at(path), _facts(self._at(path), follow=True))

    async def write_file(
        self, path: str, data: AsyncIterable[bytes], *, mode: int = 0o644, user: str = ""
    ) -> int:
        target = self._at(path)
        half = target.with_name(f".{target.name}.half")
        with _guest_errors(path):
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                with half.open("wb") as file:
                    async for piece in data:
                        file.write(piece)
                half.chmod(mode)
                half.rename(target)
            finally:
                half.unlink(missing_ok=True)
            return target.stat().st_size

    async def stat(self, path: str, follow: bool = True) -> SimpleNamespace:
        with _guest_errors(path):
            return _facts(self._at(path), follow=follow)

    async def list_dir(self, path: str) -> list[SimpleNamespace]:
        with _guest_errors(path):
            return [_facts(entry, follow=False) for entry in sorted(self._at(path).iterdir())]

    async def remove(self, path: str, recursive: bool = False) -> None:
        with _guest_errors(path):
            target = self._at(path)
            if not target.is_dir():
                target.unlink()
            elif recursive:
                shutil.rmtree(target)
            else:
                target.rmdir()

    async def rename(self, old: str, new: str) -> None:
        with _guest_errors(old):
            self._at(old).rename(self._at(new))

    async def make_dir(
        self, path: str, mode: int = 0o755, user: str = "", parents: bool = True
    ) -> None:
        with _guest_errors(path):
            self._at(path).mkdir(mode=mode, parents=parents, exist_ok=parents)

    async def procs(self) -> list[FakeProcess]:
        return list(self._processes.values())

    async def metrics(self) -> dict[str, int]:
        return {"mem_total": 1 << 29, "procs": len(self._processes)}


@dataclass
class Box:
    record: SandboxRecord
    root: Path
    processes: dict[str, FakeProcess] = field(default_factory=dict)
    lines: list[LogLine] = field(default_factory=list)
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)


class FakeMain:
    """The main process, its output followed from the log."""

    def __init__(self, box: Box) -> None:
        self._box = box
        self._process = box.processes["main"]
        self._next = 0
        self.proc, self.pid = "main", self._process.pid
        self.write, self.write_eof = self._process.write, self._process.write_eof
        self.signal, self.resize = self._process.signal, self._process.resize
        self.wait = self._process.wait

    async def read(self) -> tuple[int, bytes] | None:
        async with self._box.changed:
            await self._box.changed.wait_for(
                lambda: len(self._box.lines) > self._next or self._box.record.finished
            )
        if len(self._box.lines) <= self._next:
            return None
        line = self._box.lines[self._next]
        self._next += 1
        return line.channel, line.data

    async def close(self, kill: bool = False) -> None: ...


class FakeEngine:
    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.boxes: dict[str, Box] = {}
        self.listeners: list[asyncio.Queue[EventRecord]] = []
        #: How a test makes `create` slow or fail.
        self.create_gate: asyncio.Event | None = None
        self.start_error: Exception | None = None
        self.undone: list[str] = []

    async def start(self) -> None:
        if self.start_error is not None:
            raise self.start_error

    async def close(self) -> None:
        for box in self.boxes.values():
            await self._end(box)

    async def create(
        self, spec: SandboxSpec, command: Command | None = None, *, progress: ProgressFn
    ) -> SandboxRecord:
        if spec.image not in ("base", "other"):
            raise NotFound(f"no image {spec.image!r}", hint="spore image ls")
        if spec.name in [box.record.name for box in self.boxes.values()]:
            raise Conflict(f"the name {spec.name!r} is taken")
        progress("template", 1, 2)
        if self.create_gate is not None:
            try:
                await self.create_gate.wait()
            except asyncio.CancelledError:
                self.undone.append(spec.name)
                raise
        sandbox_id = new_sandbox_id()
        root = self.layout.sandbox(sandbox_id).root
        (root / "tmp").mkdir(parents=True)
        record = SandboxRecord(
            id=sandbox_id, name=spec.name or f"box-{sandbox_id}", state="running", image=spec.image,
            image_id="0" * 64, arch="x86_64", vmm="fake", accelerator="none", cpus=spec.cpus,
            memory_mib=spec.memory_mib, disk_bytes=spec.disk_bytes, created=time.time(),
            env=dict(spec.env), labels=dict(spec.labels), workdir=spec.workdir, ttl=spec.ttl,
            auto_remove=spec.auto_remove, command=list(command.argv) if command else [],
        )  # fmt: skip
        box = self.boxes[sandbox_id] = Box(record, root)
        if command is not None:
            main = await self._spawn(box, "main", command)
            record.pid = main.pid
            box_task = asyncio.ensure_future(self._follow(box, main))
            box_task.add_done_callback(lambda _: None)
        self.tell("created", sandbox_id)
        return record

    async def _follow(self, box: Box, main: FakeProcess) -> None:
        while (item := await main.read()) is not None:
            async with box.changed:
                box.lines.append(LogLine(time.time(), *item))
                box.changed.notify_all()
        end = await main.wait()
        await self._end(box, end.status)
        if box.record.auto_remove:
            self.boxes.pop(box.record.id, None)

    def tell(self, kind: str, sandbox: str) -> None:
        for queue in self.listeners:
            queue.put_nowait(EventRecord(time=time.time(), kind=kind, sandbox=sandbox))

    def all(self) -> list[SandboxRecord]:
        return [box.record for box in self.boxes.values()]

    def _box(self, ref: str) -> Box:
        for box in self.boxes.values():
            if ref in (box.record.id, box.record.name):
                return box
        raise NotFound(f"no sandbox {ref!r}", hint="spore ls -a shows them all")

    def get(self, ref: str) -> SandboxRecord:
        return self._box(ref).record

    def _live(self, ref: str) -> Box:
        box = self._box(ref)
        if box.record.state != "running":
            raise StateError(
                f"{box.record.name} is {box.record.state}",
                current=box.record.state,
                required="running",
            )
        return box

    async def exec(self, ref: str, command: Command) -> FakeProcess | NoopProcess:
        box = self._live(ref)
        if command.argv[0] == NOOP:
            return NoopProcess()
        return await self._spawn(box, f"x{len(box.processes)}", command)

    async def _spawn(self, box: Box, proc: str, command: Command) -> FakeProcess:
        env = {"PATH": os.environ["PATH"], **box.record.env, **command.env}
        pipe, null = asyncio.subprocess.PIPE, asyncio.subprocess.DEVNULL
        with _guest_errors(command.argv[0]):
            process = await asyncio.create_subprocess_exec(
                *command.argv, env=env, cwd=command.cwd or box.root, start_new_session=True,
                stdin=pipe if command.stdin else null, stdout=pipe, stderr=pipe,
            )  # fmt: skip
        box.processes[proc] = FakeProcess(process, proc, command)
        return box.processes[proc]

    def main(self, ref: str) -> FakeMain:
        return FakeMain(self._box(ref))

    async def agent(self, ref: str) -> FakeAgent:
        box = self._live(ref)
        return FakeAgent(box.root, box.processes)

    async def _end(self, box: Box, exit_code: int | None = None) -> None:
        for process in box.processes.values():
            if process.exit is None:
                await process.close(kill=True)
        async with box.changed:
            if box.record.finished is None:
                box.record.state, box.record.finished = "stopped", time.time()
                box.record.exit_code = exit_code
                self.tell("stopped", box.record.id)
            box.changed.notify_all()

    async def stop(self, ref: str, timeout: float) -> SandboxRecord:
        box = self._box(ref)
        await self._end(box)
        return box.record

    async def kill(self, ref: str, signal: int | None = None) -> SandboxRecord:
        box = self._live(ref)
        if signal is None:
            await self._end(box)
        elif "main" in box.processes:
            box.processes["main"].signal(signal)
        return box.record

    async def remove(self, ref: str, *, force: bool) -> None:
        box = self._box(ref)
        if box.record.state == "running" and not force:
            raise Conflict(f"{box.record.name} is running", hint="use force")
        await self._end(box)
        self.boxes.pop(box.record.id, None)
        shutil.rmtree(box.root, ignore_errors=True)
        self.tell("removed", box.record.id)

    async def wait(self, ref: str) -> SandboxRecord:
        box = self._box(ref)
        async with box.changed:
            await box.changed.wait_for(lambda: box.record.finished)
        return box.record

    async def logs(self, ref: str, *, follow: bool, tail: int | None) -> AsyncIterator[LogLine]:
        box = self._box(ref)
        at = 0 if tail is None else max(len(box.lines) - tail, 0)
        while True:
            while at < len(box.lines):
                yield box.lines[at]
                at += 1
            if not follow or box.record.finished:
                return
            async with box.changed:
                await box.changed.wait_for(
                    lambda seen=at: len(box.lines) > seen or box.record.finished
                )

    async def templates(self) -> list[TemplateView]:
        return [_template("t1")]

    async def build_template(self, spec: SandboxSpec, progress: ProgressFn) -> TemplateView:
        progress("boot", 0, 1)
        await asyncio.sleep(0)
        return _template("t2")

    async def remove_template(self, key: str) -> None:
        if key != "t1":
            raise NotFound(f"no template {key!r}")

    async def images(self) -> list[ImageView]:
        return [
            ImageView(id="0" * 64, names=["base"], arch="x86_64", size=1, created=0, fstype="erofs")
        ]

    async def image(self, ref: str) -> ImageView:
        if ref != "base":
            raise NotFound(f"no image {ref!r}")
        return (await self.images())[0]

    async def remove_image(self, ref: str) -> None:
        await self.image(ref)

    async def events(self) -> AsyncIterator[EventRecord]:
        queue: asyncio.Queue[EventRecord] = asyncio.Queue()
        self.listeners.append(queue)
        try:
            while True:
                yield await queue.get()
        finally:
            self.listeners.remove(queue)


def _template(key: str) -> TemplateView:
    return TemplateView(
        key=key, arch="x86_64", cpus=1, memory_mib=512, vmm="fake", accelerator="none", image="",
        created=0.0, size=1, current=True,
    )  # fmt: skip


if __name__ == "__main__":
    from sporevm.api import daemon

    sys.exit(daemon.run(None, FakeEngine))
