"""Root file systems as squashfs disks, made without root.

Archives go straight into mksquashfs: owners, modes, devices and extended attributes come from
the archive's headers and never touch a file system, so an ordinary user gets the very same image.
Why squashfs, LZ4 and 128 KiB: docs/decisions/image-format.md.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from pathlib import Path

from sporevm._sys import fs, process
from sporevm.errors import ArtifactError

FSTYPE = "squashfs"
#: Raised when the options below change.
FORMAT = 1

_OPTIONS = (
    *("-comp", "lz4"),
    *("-b", "128K"),
    *("-mkfs-time", "0"),
    *("-root-mode", "0755"),
    *("-root-uid", "0"),
    *("-root-gid", "0"),
    *("-root-time", "0"),
    "-xattrs",
    "-noappend",
    "-exit-on-error",
    "-no-progress",
    "-quiet",
)
#: Of a file that could not be read: mksquashfs puts in an empty one and goes on.
_LOST = ("creating empty file", "failed to read", "can't open", "cannot open")


def argv(source: str, disk: Path) -> list[str]:
    """The command line; `-` as source is a tar archive on standard input."""
    extra = ("-tar",) if source == "-" else ()
    return ["mksquashfs", source, str(disk), *_OPTIONS, *extra]


async def from_tar(tar: Path, disk: Path, label: str) -> None:
    """Make a disk of an uncompressed archive; ArtifactError if mksquashfs does not take it."""
    with tar.open("rb") as file:
        await _run(argv("-", disk), disk, label, stdin=file.fileno())


async def from_directory(root: Path, disk: Path) -> None:
    """Make a disk of a directory as this user sees it."""
    await _run(argv(str(root), disk), disk, f"directory {root}")


async def _run(command: Sequence[str], disk: Path, label: str, stdin: int | None = None) -> None:
    try:
        done = await process.run(command, stdin=stdin)
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
