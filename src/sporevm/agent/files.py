"""The guest's files: the part of `Agent` about them."""

from __future__ import annotations

import posixpath
import struct
from collections.abc import AsyncIterable, AsyncIterator
from typing import Final

from sporevm.agent import messages
from sporevm.agent.messages import FileStat
from sporevm.agent.session import CALL_TIMEOUT, Session
from sporevm.agent.stream import Stream
from sporevm.errors import ProtocolViolation
from sporevm.wire import constants as c
from sporevm.wire.constants import Service, Tag
from sporevm.wire.tlv import Field, Fields

_ENTRY: Final = struct.Struct("<HI")


class FileReader:
    """A file's bytes as they come: iterate, or call `read` until it gives b"". Close it if you
    leave early."""

    def __init__(self, stream: Stream, path: str, info: FileStat, limit: int | None) -> None:
        #: The file as it was when it was opened.
        self.info = info
        self._stream = stream
        self._path = path
        self._left = limit
        self._taken = 0
        self._ended = False

    async def read(self, *, timeout: float = CALL_TIMEOUT) -> bytes:
        """The next bytes, b"" at the end; AgentError if none come within `timeout`."""
        if self._taken:
            taken, self._taken = self._taken, 0
            self._stream.credit(1, taken)
        if self._ended:
            return b""
        piece = await self._stream.piece(within=timeout)
        if piece is None:
            await _finish(self._stream, f"read {self._path}", self._path, within=timeout)
            self._ended = True
            return b""
        self._taken = size = len(piece[1])
        if self._left is not None:
            self._stream.judge(lambda: self._spend(size))
        return piece[1]

    def _spend(self, size: int) -> None:
        assert self._left is not None
        self._left -= size
        if self._left < 0:
            raise ProtocolViolation(f"the guest sent more of {self._path!r} than was asked for")

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        data = await self.read()
        if not data:
            raise StopAsyncIteration
        return data

    async def aclose(self) -> None:
        self._stream.close()


async def _finish(stream: Stream, what: str, path: str, *, within: float) -> None:
    """All data has come: the agent's CLOSE says whether it was really all."""
    closing = await stream.closing_fields(within=within)
    stream.judge(lambda: _check_end(closing, what, path, at_end=stream.at_end))


def _check_end(closing: Fields, what: str, path: str, *, at_end: bool) -> None:
    error = messages.failure(closing, what, path)
    if error is not None:
        raise error
    if not at_end:
        raise ProtocolViolation(f"the guest ended its answer ({what}) without an EOF")


class FileCalls(Session):
    """Calls about files. Paths are the guest's, as text; bytes that are not UTF-8 survive as
    Python's surrogate escapes."""

    async def read_file(self, path: str, *, offset: int = 0, size: int | None = None) -> FileReader:
        fields: list[Field] = [(Tag.PATH, path), (Tag.OFFSET, offset)]
        if size is not None:
            fields.append((Tag.SIZE, size))
        stream, reply = await self._call(Service.FILE_READ, fields, f"read {path}", path=path)
        info = stream.judge(lambda: messages.file_stat(reply, posixpath.basename(path)))
        return FileReader(stream, path, info, size)

    async def write_file(
        self,
        path: str,
        data: AsyncIterable[bytes] | bytes,
        *,
        mode: int = 0o644,
        user: str = "",
        append: bool = False,
        parents: bool = True,
        exclusive: bool = False,
        timeout: float = CALL_TIMEOUT,
    ) -> int:
        """Write a file; returns how many bytes the agent wrote. Without `append` the old file stays
        as it was until all has been written. `timeout` is for each answer, not for the whole."""
        flags = (c.WRITE_APPEND if append else 0) | (c.MAKE_PARENTS if parents else 0)
        flags |= c.WRITE_EXCLUSIVE if exclusive else 0
        fields: list[Field] = [(Tag.PATH, path), (Tag.MODE, mode), (Tag.FLAGS, flags)]
        if user:
            fields.append((Tag.USER, user))
        what = f"write {path}"
        stream, _ = await self._call(Service.FILE_WRITE, fields, what, path=path)
        try:
            if isinstance(data, bytes):
                await stream.send(0, data, within=timeout)
            else:
                async for chunk in data:
                    await stream.send(0, chunk, within=timeout)
            stream.eof(0)
            await stream.until(
                lambda: stream.notice is not None or stream.closing is not None,
                within=timeout,
                what=f"finish ({what})",
            )
            return stream.judge(lambda: _written(stream, what, path))
        finally:
            stream.close()

    async def stat(self, path: str, follow: bool = True) -> FileStat:
        fields: list[Field] = [(Tag.PATH, path), (Tag.FLAGS, c.STAT_FOLLOW if follow else 0)]
        stream, reply = await self._ask(Service.STAT, fields, f"stat {path}", path=path)
        return stream.judge(lambda: messages.file_stat(reply, posixpath.basename(path)))

    async def list_dir(self, path: str) -> list[FileStat]:
        what = f"list {path}"
        stream, _ = await self._call(Service.LIST, [(Tag.PATH, path)], what, path=path)
        entries = _Entries()
        try:
            while (piece := await stream.piece(within=CALL_TIMEOUT)) is not None:
                data = piece[1]
                stream.judge(lambda data=data: entries.feed(data))  # type: ignore[misc]
                stream.credit(1, len(data))
            await _finish(stream, what, path, within=CALL_TIMEOUT)
            stream.judge(entries.end)
        finally:
            stream.close()
        return entries.found

    async def remove(self, path: str, recursive: bool = False) -> None:
        flags = c.REMOVE_RECURSIVE if recursive else 0
        fields: list[Field] = [(Tag.PATH, path), (Tag.FLAGS, flags)]
        await self._ask(Service.REMOVE, fields, f"remove {path}", path=path)

    async def rename(self, old: str, new: str) -> None:
        fields: list[Field] = [(Tag.PATH, old), (Tag.PATH2, new)]
        await self._ask(Service.RENAME, fields, f"rename {old} to {new}", path=old)

    async def make_dir(
        self, path: str, mode: int = 0o755, user: str = "", parents: bool = True
    ) -> None:
        """Make a directory; with `parents`, those above it too, and it may be there already."""
        flags = c.MAKE_PARENTS if parents else 0
        fields: list[Field] = [(Tag.PATH, path), (Tag.MODE, mode), (Tag.FLAGS, flags)]
        if user:
            fields.append((Tag.USER, user))
        await self._ask(Service.MKDIR, fields, f"make directory {path}", path=path)


def _written(stream: Stream, what: str, path: str) -> int:
    fields = stream.notice or stream.closing
    assert fields is not None
    error = messages.failure(fields, what, path)
    if error is not None:
        raise error
    return fields.u64(Tag.SIZE)


class _Entries:
    """The entries of a LIST, cut out of the data as it comes."""

    def __init__(self) -> None:
        self.found: list[FileStat] = []
        self._held = b""
        self._total = 0

    def feed(self, data: bytes) -> None:
        self._total += len(data)
        if self._total > c.MAX_LIST_BYTES:
            raise ProtocolViolation(f"a directory of more than {c.MAX_LIST_BYTES} bytes")
        data = self._held + data
        at = 0
        while len(data) - at >= _ENTRY.size:
            tag, length = _ENTRY.unpack_from(data, at)
            if length > c.MAX_PAYLOAD:
                raise ProtocolViolation(f"a directory entry of {length} bytes")
            begin = at + _ENTRY.size
            if len(data) - begin < length:
                break
            at = begin + length
            if tag == Tag.ENTRY:
                self.found.append(messages.file_stat(Fields(data[begin:at])))
        self._held = data[at:]

    def end(self) -> None:
        if self._held:
            raise ProtocolViolation(f"a directory that ends with half an entry, {self._held!r:.40}")
