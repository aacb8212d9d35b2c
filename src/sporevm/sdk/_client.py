"""`Client`: every call of the engine's HTTP API, one method each, asynchronous and thin.

    async with Client() as client:                      # finds or starts the engine
        box = await client.create(CreateBody(image="base"))
        result = await client.run_command(box.id, CommandBody(argv=["uname"]))
        async with await client.exec(box.id, CommandBody(argv=["cat"], stdin=True)) as stream:
            await stream.send(b"hello"); await stream.send_eof()
            async for item in stream: ...               # Started, then (channel, bytes), Exited

    client.engine      status() -> EngineView | None, stop()       (these never start an engine)
    client.files       read, stream, write, stat, list, remove, rename, mkdir
    client.images      list, inspect, remove
    client.templates   list, build, remove

Errors come back as the classes of `sporevm.errors`. The SDK's classes are built on this.
"""

from __future__ import annotations

import builtins
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Self, TypeVar

import msgspec

from sporevm.api.models import (
    CommandBody,
    CreateBody,
    Created,
    EventRecord,
    ExecStart,
    Failed,
    LogRecord,
    MetricsView,
    ProcView,
    Removed,
    RunBody,
    RunResult,
    RunStart,
    SandboxView,
    SignalBody,
    StopBody,
    VersionView,
)
from sporevm.errors import EngineError
from sporevm.sdk._errors import from_body
from sporevm.sdk._link import Link, decode, target
from sporevm.sdk._resources import (
    EngineCalls,
    FileCalls,
    ImageCalls,
    OnProgress,
    TemplateCalls,
    with_progress,
)
from sporevm.sdk._stream import Stream

__all__ = ["Client", "OnProgress", "Stream"]

T = TypeVar("T")
#: How a streamed answer says that its source failed.
_FAILED = b'{"type":"error"'


class Client:
    """Calls of one engine. It belongs to the event loop that first uses it."""

    def __init__(
        self,
        home: Path | str | None = None,
        *,
        start: bool = True,
        daemon: Sequence[str] | None = None,
    ) -> None:
        """Nothing is connected yet. `home` is SPORE_HOME (default: the environment's, else the
        user's own); with `start=False` an absent engine is an EngineError instead of a start.
        `daemon` is the command that starts another engine than Spore's own."""
        self._link = Link(home, start=start, daemon=daemon)
        self.engine = EngineCalls(self._link)
        self.files = FileCalls(self._link)
        self.images = ImageCalls(self._link)
        self.templates = TemplateCalls(self._link)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close idle connections; the client can still be used."""
        await self._link.close()

    async def version(self) -> VersionView:
        return await self._link.call("GET", target("version"), VersionView)

    async def create(
        self, body: CreateBody, *, on_progress: OnProgress | None = None
    ) -> SandboxView:
        """Create a sandbox; with `body.command` its main process is started too."""
        if on_progress is None:
            return await self._link.call("POST", target("sandboxes"), SandboxView, body)
        last = await with_progress(self._link, target("sandboxes"), body, on_progress)
        if not isinstance(last, Created):
            raise EngineError("the engine ended its answer without a result")
        return last.sandbox

    async def list(self) -> builtins.list[SandboxView]:
        return await self._link.call("GET", target("sandboxes"), list[SandboxView])

    async def inspect(self, ref: str) -> SandboxView:
        """By id, the start of an id that only one has, or name."""
        return await self._link.call("GET", target("sandboxes", ref), SandboxView)

    async def wait(self, ref: str) -> SandboxView:
        """Return when it is not running any more."""
        return await self._link.call("POST", target("sandboxes", ref, "wait"), SandboxView)

    async def stop(self, ref: str, timeout: float = 10.0) -> SandboxView:
        """Ask it to end; after `timeout` seconds end it."""
        body = StopBody(timeout=timeout)
        return await self._link.call("POST", target("sandboxes", ref, "stop"), SandboxView, body)

    async def kill(self, ref: str, signal: int | None = None) -> SandboxView:
        """Send a signal to the main process; without one end the VM now."""
        body = SignalBody(signal=signal)
        return await self._link.call("POST", target("sandboxes", ref, "kill"), SandboxView, body)

    async def remove(self, ref: str, *, force: bool = False) -> None:
        """Remove it and all it has on disk; a running one only with `force`."""
        await self._link.call("DELETE", target("sandboxes", ref, force=force), Removed)

    async def metrics(self, ref: str) -> dict[str, int]:
        """What the guest says of itself: mem_available, load1_milli, uptime_ms …"""
        answer = await self._link.call("GET", target("sandboxes", ref, "metrics"), MetricsView)
        return answer.values

    async def logs(
        self, ref: str, *, follow: bool = False, tail: int | None = None
    ) -> AsyncGenerator[LogRecord, None]:
        """Output of the main process, in the pieces it came in."""
        where = target("sandboxes", ref, "logs", follow=follow, tail=tail)
        async with aclosing(self._records(where, LogRecord)) as records:
            async for record in records:
                yield record

    async def events(self) -> AsyncGenerator[EventRecord, None]:
        """What happens to sandboxes, from now on."""
        async with aclosing(self._records(target("events"), EventRecord)) as records:
            async for record in records:
                yield record

    async def _records(self, where: str, kind: type[T]) -> AsyncGenerator[T, None]:
        async with aclosing(self._link.lines("GET", where)) as lines:
            async for line in lines:
                if line.startswith(_FAILED):
                    raise from_body(msgspec.json.decode(line, type=Failed).error)
                yield decode(line, kind)

    async def run_command(
        self, ref: str, command: CommandBody, *, stdin: bytes | None = None
    ) -> RunResult:
        """Run to the end, output collected (at most MAX_RUN_OUTPUT bytes)."""
        body = RunBody(**msgspec.structs.asdict(command), input=stdin)
        return await self._link.call("POST", target("sandboxes", ref, "run"), RunResult, body)

    async def exec(self, ref: str, command: CommandBody, *, detach: bool = False) -> Stream:
        """Start a process and talk with it. With `detach` only Started comes."""
        first = ExecStart(command=command, detach=detach)
        return await self._link.stream(target("sandboxes", ref, "exec"), first)

    async def run(self, sandbox: CreateBody, command: CommandBody) -> Stream:
        """Create a sandbox around a process; the sandbox ends when either side goes."""
        return await self._link.stream(target("run"), RunStart(sandbox=sandbox, command=command))

    async def procs(self, ref: str) -> builtins.list[ProcView]:
        """The processes the guest's agent knows."""
        return await self._link.call("GET", target("sandboxes", ref, "processes"), list[ProcView])
