"""A writer of `newc` cpio archives, the format the kernel unpacks an initramfs from.

The bytes depend on the entries alone: no times, owner 0, inode numbers in order of appearance.
See the kernel's Documentation/driver-api/early-userspace/buffer-format.rst.
"""

from __future__ import annotations

import stat
from dataclasses import dataclass

MAGIC = b"070701"
TRAILER = "TRAILER!!!"
_BLOCK = 512


@dataclass(frozen=True, slots=True)
class Entry:
    """A file, directory or device; `mode` includes the type, as in `stat`."""

    name: str
    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)


def directory(name: str, mode: int = 0o755) -> Entry:
    return Entry(name, stat.S_IFDIR | mode)


def file(name: str, data: bytes, mode: int = 0o644) -> Entry:
    return Entry(name, stat.S_IFREG | mode, data)


def char_device(name: str, major: int, minor: int, mode: int = 0o600) -> Entry:
    return Entry(name, stat.S_IFCHR | mode, device=(major, minor))


def archive(entries: list[Entry]) -> bytes:
    """The archive; entries are sorted by name, so a directory comes before what is in it."""
    ordered = sorted(entries, key=lambda entry: entry.name)
    names = [entry.name for entry in ordered]
    if len(set(names)) != len(names):
        raise ValueError("two entries of an archive have the same name")
    out = bytearray()
    for number, entry in enumerate(ordered, start=1):
        _append(out, entry, number)
    _append(out, Entry(TRAILER, 0), 0)
    out += bytes(-len(out) % _BLOCK)
    return bytes(out)


def _append(out: bytearray, entry: Entry, number: int) -> None:
    name = entry.name.encode() + b"\0"
    links = 2 if stat.S_ISDIR(entry.mode) else 1
    fields = (
        number,
        entry.mode,
        0,  # uid
        0,  # gid
        links,
        0,  # mtime
        len(entry.data),
        0,  # device of the file itself: major, minor
        0,
        *entry.device,
        len(name),
        0,  # checksum: not used by newc
    )
    out += MAGIC + b"".join(b"%08X" % value for value in fields) + name
    out += bytes(-len(out) % 4)
    out += entry.data
    out += bytes(-len(out) % 4)
