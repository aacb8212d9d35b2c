"""`Client`: every call of the engine's HTTP API, one method each, asynchronous and thin.

    async with Client() as client:                      # finds or starts the engine
        box = await client.create(CreateBody(image="base"))
        result = await client.run_command(box.id, CommandBody(argv=["uname"]))
        async with await client.exec(box.id, CommandBody(argv=["cat"], stdin=True)) as stream:
            await stream.send(b"hello"); await stream.send_eof()
            async for item in stream: ...               # (channel, bytes) | Started | Exited

Errors come back as the classes of `sporevm.errors`. `sporevm.sdk` is built on this; so is the CLI.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Self

import msgspec

from sporevm.api import models
from sporevm.api.models import (
    CommandBody,
    CreateBody,
    EventRecord,
    LogRecord,
    MetricsView,
    ProcView,
    RunResult,
    SandboxView,
    VersionView,
)
from sporevm.sdk._stream import Stream

#: Called with each Progress of a long start.
OnProgress = Callable[[models.Progress], None]


class Client:
    """Calls of one engine. Attributes `engine`, `files`, `images` and `templates` hold the rest."""

    def __init__(self, home: Path | None = None, *, start: bool = True) -> None:
        """Nothing is connected yet. `home` is SPORE_HOME (default: the environment's, else the
        user's own); with `start=False` an absent engine is an EngineError instead of a start."""
        ...

    async def __aenter__(self) -> Self: ...
    async def __aexit__(self, *exc: object) -> None: ...
    async def close(self) -> None: ...

    async def version(self) -> VersionView: ...

    # sandboxes
    async def create(
        self, body: CreateBody, *, on_progress: OnProgress | None = None
    ) -> SandboxView: ...
    async def list(self) -> list[SandboxView]: ...
    async def inspect(self, ref: str) -> SandboxView: ...
    async def wait(self, ref: str) -> SandboxView:
        """Return when it is not running any more."""
    async def stop(self, ref: str, timeout: float = 10.0) -> SandboxView: ...
    async def kill(self, ref: str, signal: int | None = None) -> SandboxView: ...
    async def remove(self, ref: str, *, force: bool = False) -> None: ...
    def logs(
        self, ref: str, *, follow: bool = False, tail: int | None = None
    ) -> AsyncIterator[LogRecord]: ...
    def events(self) -> AsyncIterator[EventRecord]: ...
    async def metrics(self, ref: str) -> dict[str, int]: ...

    # processes
    async def run_command(self, ref: str, command: CommandBody) -> RunResult:
        """Run to the end, output collected (at most MAX_RUN_OUTPUT bytes)."""
    async def exec(self, ref: str, command: CommandBody, *, detach: bool = False) -> Stream:
        """Start a process and talk with it. With `detach` only Started comes."""
    async def run(self, sandbox: CreateBody, command: CommandBody) -> Stream:
        """Create a sandbox, run its main process, and end the sandbox when either side goes."""
    async def procs(self, ref: str) -> list[ProcView]: ...


# The attributes of a Client:
#
#   client.engine.status() -> EngineView | None     None: not running (never starts one)
#   client.engine.stop() -> None                    sandboxes go on running; returns when it is gone
#   client.files.read(ref, path) -> bytes           .stream(ref, path) -> AsyncIterator[bytes]
#   client.files.write(ref, path, data: bytes | AsyncIterable[bytes], *, mode=0o644, user="") -> FileInfo
#   client.files.stat(ref, path, *, follow=True) / list(ref, path) / remove(ref, path, recursive=False)
#   client.files.rename(ref, path, to) / mkdir(ref, path, mode=0o755, parents=True, user="")
#   client.images.list() -> list[ImageView] / inspect(ref) / remove(ref)
#   client.templates.list() -> list[TemplateView] / build(TemplateBody, on_progress=) / remove(key)
#
# Stream (sdk/_stream.py), an async context manager; leaving it closes the connection, and an
# attached process (for `run`: the sandbox) ends with it:
#
#   async for item in stream:   Progress* Started ((channel, bytes))* Exited; then it ends
#                               a Failed is raised as the error it stands for
#   await stream.send(data) / send_eof() / resize(rows, cols) / signal(n) / detach()
#   await stream.close()
