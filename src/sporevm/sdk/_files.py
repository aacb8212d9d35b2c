"""Files in a sandbox."""

from __future__ import annotations

import asyncio
import builtins
import errno
import io
from collections.abc import AsyncIterable, AsyncIterator, Iterable
from typing import Literal, overload

from sporevm.errors import GuestError
from sporevm.sdk._client import Client
from sporevm.sdk._types import FileInfo

#: What can be written: text (as UTF-8), bytes, a binary file, or pieces of bytes.
Data = str | bytes | io.IOBase | Iterable[bytes] | AsyncIterable[bytes]

_CHUNK = 1 << 18


class AsyncFiles:
    """The files of a sandbox: `box.files`. Paths are absolute, or relative to `/`.

    What the guest refuses is a GuestError with its `errno`.
    """

    def __init__(self, client: Client, sandbox_id: str) -> None:
        self._client = client
        self._id = sandbox_id

    @overload
    async def read(self, path: str, format: Literal["text"] = "text") -> str: ...
    @overload
    async def read(self, path: str, format: Literal["bytes"]) -> bytes: ...
    @overload
    async def read(self, path: str, format: Literal["stream"]) -> AsyncIterator[bytes]: ...

    async def read(
        self, path: str, format: Literal["text", "bytes", "stream"] = "text"
    ) -> str | bytes | AsyncIterator[bytes]:
        """Its content, as text (UTF-8), as bytes, or as an iterator over pieces of bytes."""
        if format == "stream":
            return self._client.files.stream(self._id, path)
        data = await self._client.files.read(self._id, path)
        return data if format == "bytes" else data.decode()

    async def write(self, path: str, data: Data, *, mode: int = 0o644, user: str = "") -> FileInfo:
        """Write a file: whole, or not at all. Missing directories are made."""
        if isinstance(data, str):
            data = data.encode()
        body = data if isinstance(data, bytes | AsyncIterable) else _pieces(data)
        return await self._client.files.write(self._id, path, body, mode=mode, user=user)

    async def list(self, path: str) -> builtins.list[FileInfo]:
        """The entries of a directory."""
        return await self._client.files.list(self._id, path)

    async def get_info(self, path: str, *, follow: bool = True) -> FileInfo:
        """Facts about a file; with `follow=False` about the link itself."""
        return await self._client.files.stat(self._id, path, follow=follow)

    async def exists(self, path: str) -> bool:
        try:
            await self._client.files.stat(self._id, path, follow=False)
        except GuestError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR):
                return False
            raise
        return True

    async def remove(self, path: str, *, recursive: bool = False) -> None:
        """Remove a file; a directory only with `recursive`, with all that is in it."""
        await self._client.files.remove(self._id, path, recursive=recursive)

    async def rename(self, path: str, to: str) -> FileInfo:
        """Rename or move within the sandbox, replacing a file that is there."""
        return await self._client.files.rename(self._id, path, to)

    async def make_dir(self, path: str, *, mode: int = 0o755, user: str = "") -> FileInfo:
        """Make a directory and those above it; one that is there already is fine."""
        return await self._client.files.mkdir(self._id, path, mode=mode, user=user)


async def _pieces(data: io.IOBase | Iterable[bytes]) -> AsyncIterator[bytes]:
    """Pieces of a file or an iterable, taken in a thread: they may block."""
    if isinstance(data, io.IOBase):
        while piece := await asyncio.to_thread(data.read, _CHUNK):
            yield piece
        return
    iterator = iter(data)
    while (piece := await asyncio.to_thread(next, iterator, None)) is not None:
        yield piece
