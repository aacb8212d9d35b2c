"""The output of a sandbox's main process, kept on disk.

The file is the truth about what has been received: after the engine was killed, the counts of bytes
in it are what ATTACH names as seen, so no byte is lost and none is written twice.

Format: records of `f64 UNIX time, u8 channel, 3 zero bytes, u32 length`, then the bytes. A record
cut short by a crash at the end of the file is dropped when the file is opened again.
"""

from __future__ import annotations

import asyncio
import os
import struct
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

from sporevm._sys.fs import writing

_HEADER = struct.Struct("<dBxxxI")
_MAX_RECORD = 1 << 20


@dataclass(frozen=True, slots=True)
class LogLine:
    """A piece of output as it came: not necessarily one line."""

    time: float
    channel: int  # 1 = stdout, 2 = stderr
    data: bytes


def _records(fd: int) -> Iterator[tuple[int, LogLine]]:
    """Each whole record with the offset behind it."""
    offset = 0
    while len(header := os.pread(fd, _HEADER.size, offset)) == _HEADER.size:
        when, channel, length = _HEADER.unpack(header)
        data = os.pread(fd, length, offset + _HEADER.size) if length <= _MAX_RECORD else b""
        if len(data) != length:
            return
        offset += _HEADER.size + length
        yield offset, LogLine(when, channel, data)


class OutputLog:
    """Appends to and follows one output file. Lives on the engine's event loop."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._waiters: set[asyncio.Future[None]] = set()
        self._ended = False
        self.seen = {1: 0, 2: 0}
        with writing(path):
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            self._size = 0
            for end, line in _records(self._fd):
                self._size = end
                self.seen[line.channel] = self.seen.get(line.channel, 0) + len(line.data)
            os.ftruncate(self._fd, self._size)

    def append(self, channel: int, data: bytes) -> None:
        record = _HEADER.pack(time.time(), channel, len(data)) + data
        with writing(self._path):
            written = 0
            while written < len(record):
                written += os.pwrite(self._fd, record[written:], self._size + written)
        self._size += len(record)
        self.seen[channel] += len(data)
        self._wake()

    def end(self) -> None:
        """No more will come: followers finish."""
        self._ended = True
        self._wake()

    def close(self) -> None:
        self.end()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _wake(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)
        self._waiters.clear()

    async def read(self, *, follow: bool, tail: int | None = None) -> AsyncIterator[LogLine]:
        """What is there (the last `tail` lines of it), then what comes until the end."""
        fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            offset = 0 if tail is None else _tail_offset(fd, self._size, tail)
            while True:
                while offset < self._size:
                    when, channel, length = _HEADER.unpack(os.pread(fd, _HEADER.size, offset))
                    data = os.pread(fd, length, offset + _HEADER.size)
                    offset += _HEADER.size + length
                    yield LogLine(when, channel, data)
                if self._ended or not follow:
                    return
                waiter = asyncio.get_running_loop().create_future()
                self._waiters.add(waiter)
                try:
                    await waiter
                finally:
                    self._waiters.discard(waiter)
        finally:
            os.close(fd)


def _tail_offset(fd: int, size: int, lines: int) -> int:
    """Where the record begins that holds the start of the last `lines` lines."""
    starts: list[tuple[int, int]] = []
    offset = 0
    for end, line in _records(fd):
        if end > size:
            break
        starts.append((offset, line.data.count(b"\n")))
        offset = end
    for start, count in reversed(starts):
        if lines <= 0:
            break
        offset = start
        lines -= count
    return offset
