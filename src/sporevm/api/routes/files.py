"""Files in a sandbox, streamed in both directions."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Any

from aiohttp import hdrs, web
from msgspec import Meta, Struct

from sporevm.api import convert
from sporevm.api.answers import BYTES, chunked
from sporevm.api.models import FileInfo, MkdirBody, Removed, RenameBody, encode
from sporevm.api.router import Call, NoBody, NoQuery, Route
from sporevm.errors import UsageError

#: Facts about the file that an answer carries, as JSON.
FILE_HEADER = "Spore-File"
_CHUNK = 1 << 16

Path = Annotated[str, Meta(min_length=1, description="path in the guest")]


class PathQuery(Struct, forbid_unknown_fields=True):
    path: Path


class StatQuery(Struct, forbid_unknown_fields=True):
    path: Path
    follow: bool = True


class WriteQuery(Struct, forbid_unknown_fields=True):
    path: Path
    mode: Annotated[int, Meta(ge=0, le=0o7777)] = 0o644
    user: str = ""


class RemoveQuery(Struct, forbid_unknown_fields=True):
    path: Path
    recursive: bool = False


def _checked(path: str) -> str:
    if not path or "\0" in path:
        raise UsageError("path: must not be empty or contain a NUL character")
    return path


async def read(call: Call[NoBody, PathQuery]) -> web.StreamResponse:
    agent = await call.app.engine.agent(call.ref)
    path = _checked(call.query.path)
    reader = await agent.read_file(path)
    facts = encode(convert.file_info(reader.info, path))
    # A header holds ASCII only, so what JSON leaves as UTF-8 is escaped.
    header = facts.decode().encode("ascii", "backslashreplace").decode()
    try:
        async with chunked(call.request, BYTES, {FILE_HEADER: header}) as response:
            async for data in reader:
                await response.write(data)
    finally:
        await reader.aclose()
    return response


async def write(call: Call[NoBody, WriteQuery]) -> FileInfo:
    agent = await call.app.engine.agent(call.ref)
    query = call.query
    path = _checked(query.path)
    if call.request.headers.get(hdrs.EXPECT, "").lower() == "100-continue":
        await call.request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        call.request.writer.output_size = 0
    await agent.write_file(path, _pieces(call.request), mode=query.mode, user=query.user)
    return convert.file_info(await agent.stat(path), path)


async def _pieces(request: web.BaseRequest) -> AsyncIterator[bytes]:
    """The body in pieces a frame can carry."""
    while data := await request.content.readany():
        if len(data) <= _CHUNK:
            yield data
        else:
            for start in range(0, len(data), _CHUNK):
                yield data[start : start + _CHUNK]


async def stat(call: Call[NoBody, StatQuery]) -> FileInfo:
    agent = await call.app.engine.agent(call.ref)
    path = _checked(call.query.path)
    return convert.file_info(await agent.stat(path, follow=call.query.follow), path)


async def list_dir(call: Call[NoBody, PathQuery]) -> list[FileInfo]:
    agent = await call.app.engine.agent(call.ref)
    path = _checked(call.query.path)
    base = path.rstrip("/")
    entries = await agent.list_dir(path)
    return [convert.file_info(entry, f"{base}/{entry.name}") for entry in entries]


async def remove(call: Call[NoBody, RemoveQuery]) -> Removed:
    agent = await call.app.engine.agent(call.ref)
    path = _checked(call.query.path)
    await agent.remove(path, recursive=call.query.recursive)
    return Removed(removed=convert.printable(path))


async def rename(call: Call[RenameBody, NoQuery]) -> FileInfo:
    agent = await call.app.engine.agent(call.ref)
    source, target = _checked(call.body.path), _checked(call.body.to)
    await agent.rename(source, target)
    return convert.file_info(await agent.stat(target, follow=False), target)


async def mkdir(call: Call[MkdirBody, NoQuery]) -> FileInfo:
    agent = await call.app.engine.agent(call.ref)
    body = call.body
    path = _checked(body.path)
    await agent.make_dir(path, mode=body.mode, user=body.user, parents=body.parents)
    return convert.file_info(await agent.stat(path), path)


ROUTES: list[Route[Any, Any]] = [
    Route(
        "GET", "/v1/sandboxes/{ref}/files", read, "Content of a file",
        NoBody, PathQuery, BYTES,
    ),
    Route(
        "PUT", "/v1/sandboxes/{ref}/files", write, "Write a file: whole or not at all",
        NoBody, WriteQuery, FileInfo, upload=BYTES,
    ),
    Route(
        "DELETE", "/v1/sandboxes/{ref}/files", remove, "Remove a file or directory",
        NoBody, RemoveQuery, Removed,
    ),
    Route(
        "GET", "/v1/sandboxes/{ref}/files/stat", stat, "Facts about a file",
        NoBody, StatQuery, FileInfo,
    ),
    Route(
        "GET", "/v1/sandboxes/{ref}/files/list", list_dir, "Entries of a directory",
        NoBody, PathQuery, list[FileInfo],
    ),
    Route(
        "POST", "/v1/sandboxes/{ref}/files/rename", rename, "Rename a file or directory",
        RenameBody, NoQuery, FileInfo,
    ),
    Route(
        "POST", "/v1/sandboxes/{ref}/files/mkdir", mkdir, "Make a directory",
        MkdirBody, NoQuery, FileInfo,
    ),
]  # fmt: skip
