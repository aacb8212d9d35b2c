"""SHA-256 of files, computed once per file version.

A result is kept under (device, inode, size, mtime_ns, length): a file that was replaced or
written to has another key. The cache can be kept on disk, so that a new process need not read
every kernel and image again; losing it costs time, never correctness.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from sporevm._sys import fs

_CHUNK = 1 << 20
_LIMIT = 4096
_BLOCK = 1 << 16


def sha256_of(path: Path, *, length: int | None = None) -> str:
    """Hex digest of a file, or of its first `length` bytes (of a disk that is sparse behind)."""
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        left = length
        while left is None or left > 0:
            block = file.read(_CHUNK if left is None else min(_CHUNK, left))
            if not block:
                break
            digest.update(block)
            left = None if left is None else left - len(block)
    return digest.hexdigest()


def sparse_sha256(path: Path) -> str:
    """Hex digest of a sparse file's content, read only where there is data.

    Over the length, then the number and bytes of each 64 KiB block that is not all zeros: so it
    does not depend on where the holes are, and a terabyte that is empty costs nothing.
    """
    with path.open("rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        digest = hashlib.sha256(size.to_bytes(8, "little"))
        last = -1
        for start, end in fs.data_ranges(file.fileno(), size):
            first = max(start // _BLOCK, last + 1)
            for number in range(first, -(-end // _BLOCK)):
                data = os.pread(file.fileno(), _BLOCK, number * _BLOCK)
                if data.count(0) != len(data):
                    digest.update(number.to_bytes(8, "little"))
                    digest.update(data)
                last = number
    return digest.hexdigest()


class Checksums:
    """A cache of file digests; `save` writes it to `file`, if there is one."""

    def __init__(self, file: Path | None = None) -> None:
        self._file = file
        self._known: dict[str, str] = self._load()
        self._changed = False

    def sha256(self, path: Path, *, length: int | None = None) -> str:
        """Digest of a file; read only if it is not the one seen before."""
        before = _key(path, length)
        known = self._known.get(before)
        if known is not None:
            return known
        value = sha256_of(path, length=length)
        if _key(path, length) == before:  # else it was written to meanwhile: don't keep it
            self._known[before] = value
            self._changed = True
        return value

    def save(self) -> None:
        if self._file is None or not self._changed:
            return
        newest = dict(list(self._known.items())[-_LIMIT:])
        fs.make_directory(self._file.parent)
        fs.write_atomic(self._file, json.dumps(newest).encode())
        self._changed = False

    def _load(self) -> dict[str, str]:
        if self._file is None:
            return {}
        try:
            found = json.loads(self._file.read_bytes())
        except (OSError, ValueError):
            return {}
        if not isinstance(found, dict):
            return {}
        return {k: v for k, v in found.items() if isinstance(k, str) and isinstance(v, str)}


def _key(path: Path, length: int | None) -> str:
    info = path.stat()
    size = info.st_size
    return f"{info.st_dev}:{info.st_ino}:{size}:{info.st_mtime_ns}:{length or size}"
