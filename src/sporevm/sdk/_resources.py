"""The parts of a Client: engine, files, images and templates."""

from __future__ import annotations

import builtins
from collections.abc import AsyncGenerator, AsyncIterable, Callable
from contextlib import aclosing
from typing import TypeVar

import msgspec

from sporevm.api.models import (
    Built,
    Created,
    EngineView,
    Failed,
    FileInfo,
    ImageView,
    MkdirBody,
    Progress,
    ProgressLine,
    Removed,
    RenameBody,
    TemplateBody,
    TemplateView,
)
from sporevm.errors import EngineError
from sporevm.sdk import _engine
from sporevm.sdk._errors import from_body
from sporevm.sdk._link import Link, target

#: Called with each Progress of a long start.
OnProgress = Callable[[Progress], None]

T = TypeVar("T")
_decode_line = msgspec.json.Decoder(ProgressLine).decode


async def with_progress(
    link: Link, path: str, body: msgspec.Struct, on_progress: OnProgress
) -> Created | Built:
    """A long POST, its progress reported; the last line."""
    async with aclosing(link.lines("POST", path, body)) as lines:
        async for raw in lines:
            line: ProgressLine = _decode_line(raw)
            if isinstance(line, Failed):
                raise from_body(line.error)
            if not isinstance(line, Progress):
                return line
            on_progress(line)
    raise EngineError("the engine ended its answer without a result")


class EngineCalls:
    """The engine itself. These never start one."""

    def __init__(self, link: Link) -> None:
        self._link = link

    async def status(self) -> EngineView | None:
        """None if it is not running."""
        sock = _engine.dial(self._link.layout)
        if sock is None:
            return None
        sock.close()
        return await self._link.call("GET", target("engine"), EngineView)

    async def stop(self) -> None:
        """End the engine and return when it is gone. Sandboxes go on running."""
        await self._link.stop_engine()


class FileCalls:
    """Files in sandboxes."""

    def __init__(self, link: Link) -> None:
        self._link = link

    async def read(self, ref: str, path: str) -> bytes:
        answer = await self._link.open("GET", target("sandboxes", ref, "files", path=path))
        return await answer.read()

    async def stream(self, ref: str, path: str) -> AsyncGenerator[bytes, None]:
        """The content in pieces, as fast as they are taken."""
        answer = await self._link.open("GET", target("sandboxes", ref, "files", path=path))
        async with aclosing(answer.chunks()) as chunks:
            async for piece in chunks:
                yield piece

    async def write(
        self,
        ref: str,
        path: str,
        data: bytes | AsyncIterable[bytes],
        *,
        mode: int = 0o644,
        user: str = "",
    ) -> FileInfo:
        """Write a file: whole, or not at all."""
        where = target("sandboxes", ref, "files", path=path, mode=mode, user=user or None)
        answer = await self._link.open("PUT", where, data)
        return msgspec.json.decode(await answer.read(), type=FileInfo)

    async def stat(self, ref: str, path: str, *, follow: bool = True) -> FileInfo:
        where = target("sandboxes", ref, "files", "stat", path=path, follow=follow)
        return await self._link.call("GET", where, FileInfo)

    async def list(self, ref: str, path: str) -> builtins.list[FileInfo]:
        where = target("sandboxes", ref, "files", "list", path=path)
        return await self._link.call("GET", where, list[FileInfo])

    async def remove(self, ref: str, path: str, *, recursive: bool = False) -> None:
        where = target("sandboxes", ref, "files", path=path, recursive=recursive)
        await self._link.call("DELETE", where, Removed)

    async def rename(self, ref: str, path: str, to: str) -> FileInfo:
        where = target("sandboxes", ref, "files", "rename")
        return await self._link.call("POST", where, FileInfo, RenameBody(path=path, to=to))

    async def mkdir(
        self, ref: str, path: str, *, mode: int = 0o755, parents: bool = True, user: str = ""
    ) -> FileInfo:
        body = MkdirBody(path=path, mode=mode, parents=parents, user=user)
        return await self._link.call(
            "POST", target("sandboxes", ref, "files", "mkdir"), FileInfo, body
        )


class ImageCalls:
    def __init__(self, link: Link) -> None:
        self._link = link

    async def list(self) -> builtins.list[ImageView]:
        return await self._link.call("GET", target("images"), list[ImageView])

    async def inspect(self, ref: str) -> ImageView:
        return await self._link.call("GET", target("images", ref), ImageView)

    async def remove(self, ref: str) -> None:
        await self._link.call("DELETE", target("images", ref), Removed)


class TemplateCalls:
    def __init__(self, link: Link) -> None:
        self._link = link

    async def list(self) -> builtins.list[TemplateView]:
        return await self._link.call("GET", target("templates"), list[TemplateView])

    async def build(
        self, body: TemplateBody, *, on_progress: OnProgress | None = None
    ) -> TemplateView:
        """Build the template of a shape ahead of its first use."""
        if on_progress is None:
            return await self._link.call("POST", target("templates"), TemplateView, body)
        last = await with_progress(self._link, target("templates"), body, on_progress)
        if not isinstance(last, Built):
            raise EngineError("the engine ended its answer without a result")
        return last.template

    async def remove(self, key: str) -> None:
        await self._link.call("DELETE", target("templates", key), Removed)
