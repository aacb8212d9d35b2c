"""`AsyncSandbox`: the SDK. The synchronous `Sandbox` is generated from this file."""

from __future__ import annotations

import builtins
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from pathlib import Path
from typing import Self

from sporevm.api.models import CreateBody
from sporevm.errors import NotFound
from sporevm.sdk._client import Client, OnProgress
from sporevm.sdk._commands import AsyncCommandHandle, AsyncCommands
from sporevm.sdk._files import AsyncFiles
from sporevm.sdk._types import LogLine, SandboxInfo
from sporevm.spec import (
    DEFAULT_DISK_BYTES,
    DEFAULT_IMAGE,
    DEFAULT_MEMORY_MIB,
    MIB,
    parse_duration,
    parse_memory,
    parse_size,
)

__all__ = ["AsyncCommandHandle", "AsyncCommands", "AsyncFiles", "AsyncSandbox"]


class AsyncSandbox:
    """A microVM of your own. Made by `create` or `connect`.

    Leaving the `with` block of a created sandbox ends and removes it; that of a connected one only
    closes the connection.
    """

    def __init__(self, client: Client, info: SandboxInfo, *, owned: bool) -> None:
        self._client = client
        self._id = info.id
        self._name = info.name
        self._owned = owned
        self._commands = AsyncCommands(client, info.id)
        self._files = AsyncFiles(client, info.id)

    @classmethod
    async def create(
        cls,
        image: str = DEFAULT_IMAGE,
        *,
        name: str = "",
        memory: int | str = DEFAULT_MEMORY_MIB,
        cpus: int = 1,
        disk: int | str = DEFAULT_DISK_BYTES // MIB,
        timeout: float | str | None = None,
        envs: Mapping[str, str] | None = None,
        metadata: Mapping[str, str] | None = None,
        arch: str = "",
        vmm: str = "auto",
        user: str = "",
        workdir: str = "",
        hostname: str = "",
        home: Path | str | None = None,
        on_progress: OnProgress | None = None,
    ) -> Self:
        """Create and start a sandbox.

        `memory` and `disk` are MiB, or text like "512M" and "10G". After `timeout` (seconds, or
        text like "10m") the engine removes the sandbox; None means never. `envs`, `user` and
        `workdir` are the defaults of its commands, `metadata` is yours. `home` is the SPORE_HOME
        to use. `on_progress` is called with each step of a long start.

        Raises UsageError, NotFound (image), Conflict (name), SetupError, EngineError, VmmError.
        """
        body = CreateBody(
            image=image,
            name=name,
            memory_mib=parse_memory(str(memory)),
            cpus=cpus,
            disk_bytes=parse_size(str(disk), what="disk", unit="m"),
            ttl=None if timeout is None else parse_duration(str(timeout), what="timeout"),
            env=dict(envs or {}),
            labels=dict(metadata or {}),
            arch=arch,
            vmm=vmm,
            user=user,
            workdir=workdir,
            hostname=hostname,
        )
        client = Client(home)
        try:
            info = await client.create(body, on_progress=on_progress)
        except BaseException:
            await client.close()
            raise
        return cls(client, info, owned=True)

    @classmethod
    async def connect(cls, ref: str, *, home: Path | str | None = None) -> Self:
        """A sandbox that exists: by id, the start of an id that only one has, or name."""
        client = Client(home)
        try:
            info = await client.inspect(ref)
        except BaseException:
            await client.close()
            raise
        return cls(client, info, owned=False)

    @classmethod
    async def list(cls, *, home: Path | str | None = None) -> builtins.list[SandboxInfo]:
        """All sandboxes of this home, running or not."""
        async with Client(home) as client:
            return await client.list()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        if self._owned:
            await self.kill()
        await self.close()

    @property
    def id(self) -> str:
        return self._id

    @property
    def name(self) -> str:
        return self._name

    @property
    def commands(self) -> AsyncCommands:
        """Run commands in it."""
        return self._commands

    @property
    def files(self) -> AsyncFiles:
        """Its files."""
        return self._files

    async def info(self) -> SandboxInfo:
        """All that is known of it now. Raises NotFound once it has been removed."""
        return await self._client.inspect(self._id)

    async def is_running(self) -> bool:
        try:
            return (await self.info()).state == "running"
        except NotFound:
            return False

    async def logs(
        self, *, follow: bool = False, tail: int | None = None
    ) -> AsyncIterator[LogLine]:
        """Output of its main process, if it was started with one (`spore run -d`)."""
        async with aclosing(self._client.logs(self._id, follow=follow, tail=tail)) as lines:
            async for line in lines:
                yield line

    async def metrics(self) -> dict[str, int]:
        """What the guest says of itself: mem_total, mem_available, load1_milli, uptime_ms …"""
        return await self._client.metrics(self._id)

    async def wait(self) -> SandboxInfo:
        """Return when it is not running any more."""
        return await self._client.wait(self._id)

    async def stop(self, grace: float = 10.0) -> SandboxInfo:
        """Ask its processes to end, then power it off; its disk and logs stay until `kill`."""
        return await self._client.stop(self._id, grace)

    async def kill(self) -> bool:
        """End it now and remove all it had. False if it was gone already."""
        try:
            await self._client.remove(self._id, force=True)
        except NotFound:
            return False
        return True

    async def close(self) -> None:
        """Close the connection; the sandbox goes on. It is opened again when it is needed."""
        await self._client.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._name} ({self._id})>"
