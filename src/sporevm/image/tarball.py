"""Looking at a root file system's archive before it is turned into an image."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import shutil
import tarfile
import zlib
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from sporevm._sys import fs, process
from sporevm.errors import ArtifactError, UsageError
from sporevm.image.squashfs_root import Root
from sporevm.image.validate import elf_arch_of
from sporevm.spec import Arch

_Packed = gzip.GzipFile | bz2.BZ2File | lzma.LZMAFile
_OPENERS: dict[bytes, Callable[[Path], _Packed]] = {
    b"\x1f\x8b": gzip.GzipFile,
    b"BZh": bz2.BZ2File,
    b"\xfd7zXZ\x00": lzma.LZMAFile,
}
_ZSTD = b"\x28\xb5\x2f\xfd"
_COPY = 1 << 20
#: Where programs live; the first ones found there decide the image's architecture.
PROGRAM_DIRS = ("bin", "sbin", "usr/bin", "usr/sbin", "usr/local/bin", "lib", "usr/lib", "")
_ENOUGH = 8


@dataclass
class Contents:
    """What a scan of an archive found."""

    members: int = 0
    newest: int = 0  # UNIX time of the newest member
    root: Root = Root()
    archs: list[Arch] = field(default_factory=list)

    @property
    def arch(self) -> Arch | None:
        """The architecture of most programs; None if there is none of a known kind."""
        return max(self.archs, key=self.archs.count) if self.archs else None


async def plain_tar(source: Path | int, place: Path) -> Path:
    """The archive as an uncompressed, seekable file; a copy below `place` if it isn't that yet."""
    if isinstance(source, int):
        path, label = place / "stdin", "the archive on standard input"
        with fs.writing(path), path.open("wb") as file, os.fdopen(os.dup(source), "rb") as given:
            shutil.copyfileobj(given, file, _COPY)
    else:
        path, label = source, f"archive {source}"
    head = _head(path, label)
    for magic, opener in _OPENERS.items():
        if head.startswith(magic):
            return _unpack(path, opener, label, place / "tar")
    if head.startswith(_ZSTD):
        return await _unpack_zstd(path, label, place / "tar")
    return path


def _head(path: Path, label: str) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(512)
    except FileNotFoundError:
        raise UsageError(f"{label} does not exist") from None
    except IsADirectoryError:
        raise UsageError(f"{label} is a directory", hint="import it as a directory") from None
    except OSError as error:
        raise UsageError(f"{label} can't be read: {error.strerror}") from None


def _unpack(path: Path, opener: Callable[[Path], _Packed], label: str, target: Path) -> Path:
    with fs.writing(target), target.open("wb") as file:
        try:
            with closing(opener(path)) as packed:
                while block := packed.read(_COPY):
                    file.write(block)
        except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
            raise _damaged(label, path, str(error)) from error
    return target


async def _unpack_zstd(path: Path, label: str, target: Path) -> Path:
    with fs.writing(target), target.open("wb") as file, path.open("rb") as packed:
        try:
            await process.run(["zstd", "-dcq"], stdin=packed.fileno(), stdout=file.fileno())
        except process.ProcessFailed as error:
            raise _damaged(label, path, error.message) from error
    return target


def _damaged(label: str, path: Path, found: str) -> ArtifactError:
    return ArtifactError(
        f"{label} ({path.stat().st_size} bytes) is damaged: {found}", hint="fetch or copy it again"
    )


def scan(path: Path, label: str) -> Contents:
    """Read all headers: a whole tar archive, with nothing in it that points outside."""
    contents = Contents()
    size = path.stat().st_size
    try:
        with tarfile.open(path, mode="r:", errorlevel=2) as tar:
            while (member := tar.next()) is not None:
                _check(member, label)
                contents.members += 1
                contents.newest = max(contents.newest, int(member.mtime))
                if member.isdir() and not PurePosixPath(member.name.lstrip("/")).parts:
                    owner = (member.uid, member.gid)
                    contents.root = Root(member.mode, *owner, int(member.mtime))
                _look(tar, member, contents)
            end = tar.offset
    except (tarfile.TarError, EOFError, ValueError) as error:
        raise ArtifactError(
            f"{label} ({size} bytes) is not a whole tar archive: {error}",
            hint="fetch or copy it again",
        ) from error
    if contents.members == 0:
        raise ArtifactError(
            f"{label} ({size} bytes) is not a tar archive, or there is nothing in it"
        )
    # tarfile takes the end of the file for the end of the archive; a whole one has an end mark.
    if end + tarfile.BLOCKSIZE > size:
        raise ArtifactError(
            f"{label} is cut short: it has {size} bytes and no end mark behind its "
            f"{contents.members} members",
            hint="fetch or copy it again",
        )
    return contents


def _check(member: tarfile.TarInfo, label: str) -> None:
    names = [member.name, *([member.linkname] if member.islnk() else [])]
    for name in names:
        if ".." in PurePosixPath(name).parts:
            raise ArtifactError(f"{label} is refused: its member {name!r} points outside of it")


def _look(tar: tarfile.TarFile, member: tarfile.TarInfo, contents: Contents) -> None:
    if not member.isfile() or len(contents.archs) >= _ENOUGH:
        return
    directory = str(PurePosixPath(member.name.lstrip("/")).parent)
    if directory.removeprefix("./").removeprefix(".") not in PROGRAM_DIRS:
        return
    data = tar.extractfile(member)
    if data is not None:
        arch = elf_arch_of(data.read(64))
        if arch is not None:
            contents.archs.append(arch)


def scan_directory(root: Path) -> Contents:
    """The same for a directory: is there anything, and for which machine?"""
    if not root.is_dir():
        what = "is not a directory" if root.exists() else "does not exist"
        raise UsageError(f"directory {root} {what}")
    contents = Contents()
    try:
        contents.members = sum(1 for _ in root.iterdir())
        for name in PROGRAM_DIRS:
            directory = root / name
            # A link there may lead out of the tree, to the programs of this machine.
            if directory.is_dir() and directory.resolve().is_relative_to(root.resolve()):
                _look_into(directory, contents)
    except PermissionError as error:
        raise UsageError(f"directory {error.filename} may not be read") from None
    if contents.members == 0:
        raise UsageError(f"directory {root} is empty")
    return contents


def _look_into(directory: Path, contents: Contents) -> None:
    for path in sorted(directory.iterdir()):
        if len(contents.archs) >= _ENOUGH:
            return
        if path.is_file() and not path.is_symlink() and os.access(path, os.R_OK):
            with path.open("rb") as file:
                arch = elf_arch_of(file.read(64))
            if arch is not None:
                contents.archs.append(arch)
