"""The root directory of a squashfs that mksquashfs made from an archive.

mksquashfs skips an archive's entry for `./` and gives the root to whoever runs it, with the
present time. An image that an ordinary user made would have a root directory that isn't root's. So
the inode is put right in place, which is possible because the image's inodes and ids are not
compressed.
Layout: the kernel's fs/squashfs/squashfs_fs.h.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from pathlib import Path

from sporevm.errors import ArtifactError

_MAGIC = 0x73717368
_BLOCK = 8192  # of metadata, behind a header of two bytes
_UNCOMPRESSED = 0x8000
_DIRECTORY_TYPES = (1, 8)


@dataclass(frozen=True, slots=True)
class Root:
    """What the root directory shall be; the defaults are for an archive that does not say."""

    mode: int = 0o755
    uid: int = 0
    gid: int = 0
    mtime: int = 0


def set_root(disk: Path, root: Root) -> None:
    """Set mode, owner and time of the root directory.

    An owner whom nothing in the image has can't be expressed; the first one in its table is taken.
    """
    fd = os.open(disk, os.O_RDWR | os.O_CLOEXEC)
    try:
        head = os.pread(fd, 96, 0)
        magic, id_count = struct.unpack_from("<I22xH", head)
        inode, _, id_table, _, inode_table = struct.unpack_from("<5Q", head, 32)
        if magic != _MAGIC:
            raise ArtifactError(f"{disk} is not a squashfs")
        (ids_at,) = struct.unpack("<Q", os.pread(fd, 8, id_table))
        ids = struct.unpack(f"<{id_count}I", _read(fd, ids_at, 0, id_count * 4))
        block, offset = inode_table + (inode >> 16), inode & 0xFFFF
        kind = struct.unpack("<H", _read(fd, block, offset, 2))[0]
        if kind not in _DIRECTORY_TYPES:
            raise ArtifactError(f"{disk} has no root directory")
        uid, gid = (ids.index(i) if i in ids else 0 for i in (root.uid, root.gid))
        fields = struct.pack("<4HI", kind, root.mode & 0o7777, uid, gid, root.mtime & 0xFFFFFFFF)
        for at, byte in zip(_places(fd, block, offset, len(fields)), fields, strict=True):
            os.pwrite(fd, bytes([byte]), at)
    finally:
        os.close(fd)


def _read(fd: int, block: int, offset: int, length: int) -> bytes:
    return b"".join(os.pread(fd, 1, at) for at in _places(fd, block, offset, length))


def _places(fd: int, block: int, offset: int, length: int) -> list[int]:
    """Where the bytes of a piece of metadata are: it may go on in the next block."""
    places = []
    for position in range(offset, offset + length):
        start = block + position // _BLOCK * (_BLOCK + 2)
        (header,) = struct.unpack("<H", os.pread(fd, 2, start))
        if not header & _UNCOMPRESSED:
            raise ArtifactError("the image's metadata is compressed, its root can't be set")
        places.append(start + 2 + position % _BLOCK)
    return places
