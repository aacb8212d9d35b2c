"""Root file systems as squashfs disks, made without root.

Archives go straight into mksquashfs: owners, modes, devices and extended attributes come from
the archive's headers and never touch a file system, so an ordinary user gets the very same image.
Why squashfs, LZ4 and 64 KiB: docs/decisions/image-format.md.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from sporevm._sys import fs, process
from sporevm.errors import ArtifactError
from sporevm.image.squashfs_root import Root, set_root

FSTYPE = "squashfs"
#: Raised when the options below change.
FORMAT = 2

_OPTIONS = (
    *("-comp", "lz4"),
    *("-b", "64K"),
    # Inodes and ids as they are: `set_root` needs it, and the guest saves the unpacking.
    "-noI",
    "-noId",
    "-xattrs",
    "-noappend",
    "-exit-on-error",
    "-no-progress",
    "-quiet",
)
_DIRECTORY_OPTIONS = ("-mkfs-time", "0")
#: Of a file that could not be read: mksquashfs puts in an empty one and goes on.
_LOST = ("creating empty file", "failed to read", "can't open", "cannot open")


def argv(source: str, disk: Path) -> list[str]:
    """The command line; `-` as source is a tar archive on standard input."""
    extra = ("-tar",) if source == "-" else _DIRECTORY_OPTIONS
    return ["mksquashfs", source, str(disk), *_OPTIONS, *extra]


async def from_tar(tar: Path, disk: Path, label: str, *, root: Root, newest: int) -> None:
    """Make a disk of an uncompressed archive; ArtifactError if mksquashfs does not take it.

    `newest` is the time of the newest member. Directories that the archive does not mention would
    get the present time, and each build other bytes; this holds them back.
    """
    env = process.minimal_env(SOURCE_DATE_EPOCH=str(newest))
    with tar.open("rb") as file:
        await _run(argv("-", disk), disk, label, stdin=file.fileno(), env=env)
    set_root(disk, root)


async def from_directory(root: Path, disk: Path) -> None:
    """Make a disk of a directory as this user sees it."""
    await _run(argv(str(root), disk), disk, f"directory {root}")
    set_root(disk, Root())


async def _run(
    command: Sequence[str],
    disk: Path,
    label: str,
    *,
    stdin: int | None = None,
    env: Mapping[str, str] | None = None,
) -> None:
    try:
        done = await process.run(command, stdin=stdin, env=env)
    except process.ProcessFailed as error:
        _raise_if_full(disk, error.tail)
        raise ArtifactError(
            f"{label} can't be made into an image: {_reason(error.tail)}"
        ) from error
    said = (done.stdout + done.stderr).decode(errors="replace")
    for line in said.splitlines():
        if any(word in line.lower() for word in _LOST):
            raise ArtifactError(f"{label} can't be made into an image: {line.strip()}")


def _reason(tail: str) -> str:
    lines = [line.strip() for line in tail.splitlines() if line.strip()]
    fatal = [line for line in lines if "FATAL" in line or "because" in line]
    return (fatal or lines or ["mksquashfs gave no reason"])[0].removeprefix("FATAL ERROR:").strip()


def _raise_if_full(disk: Path, tail: str) -> None:
    """mksquashfs tells of a full disk only in words; say it like every other writer here."""
    if "No space left" in tail or "Write failed" in tail:
        code = errno.ENOSPC if "No space left" in tail else errno.EIO
        with fs.writing(disk):
            raise OSError(code, os.strerror(code))
