"""Files that are whole or absent, sparse copies that cost what they hold, and clear disk errors.

A writer here makes its file or directory under a temporary name on the same file system, brings
it to the disk, and renames it: after a crash the final name is the old thing, the new thing, or
nothing, never a half.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import shutil
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

from sporevm.errors import StorageError

#: `_IOW(0x94, 9, int)` of linux/fs.h: share the other file's blocks, copy on write.
_FICLONE = 0x40049409
_CHUNK = 1 << 20

_REASONS = {
    errno.ENOSPC: ("no space is left", "free some space there, or set SPORE_HOME to another disk"),
    errno.EDQUOT: ("the disk quota is used up", "free some space, or ask for a larger quota"),
    errno.EROFS: ("the file system is read-only", "set SPORE_HOME to a writable directory"),
    errno.EACCES: ("no permission", "set SPORE_HOME to a directory of your own"),
    errno.EPERM: ("not permitted", "set SPORE_HOME to a directory of your own"),
    errno.EFBIG: ("the file is too large for its file system", "use ext4, XFS or btrfs"),
    errno.EIO: ("input/output error", "check the disk"),
}
#: What a file system, or a pair of them, says when it can't do a special kind of copy.
_CANNOT = {errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL, errno.EXDEV, errno.ENOSYS, errno.EPERM}


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what a full or read-only disk says into a StorageError that names the path."""
    try:
        yield
    except OSError as error:
        if error.errno not in _REASONS:
            raise
        reason, hint = _REASONS[error.errno]
        raise StorageError(f"can't write {path}: {reason}", hint=hint) from error


def make_directory(path: Path, *, mode: int = 0o700) -> Path:
    """Make a directory and its parents; an existing one is fine."""
    with writing(path):
        path.mkdir(mode=mode, parents=True, exist_ok=True)
    return path


def write_atomic(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Replace `path` by a file with `data`, durably, or leave it as it was."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    with writing(path):
        try:
            fd = os.open(temporary, flags, mode)
            with os.fdopen(fd, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Make renames and new names in a directory durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_tree(root: Path) -> None:
    """Bring every regular file and directory below `root` to the disk."""
    for directory, _, names in os.walk(root):
        for name in names:
            path = Path(directory, name)
            if stat.S_ISREG(path.lstat().st_mode):
                with path.open("rb") as file:
                    os.fsync(file.fileno())
        sync_directory(Path(directory))


@contextlib.contextmanager
def scratch_directory(tmp: Path) -> Iterator[Path]:
    """A fresh directory below `tmp` that is gone afterwards."""
    make_directory(tmp)
    path = tmp / secrets.token_hex(8)
    with writing(path):
        path.mkdir(mode=0o700)
    try:
        yield path
    finally:
        remove_tree(path)


def install_directory(built: Path, target: Path, *, mode: int = 0o755) -> bool:
    """Move a finished directory to its final name, durably.

    Returns False if there is one already: somebody else was faster, `built` stays as it is. Only
    for content-addressed targets, where both are the same thing.
    """
    with writing(target):
        make_directory(target.parent)
        built.chmod(mode)
        sync_tree(built)
        try:
            built.rename(target)
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                return False
            raise
        sync_directory(target.parent)
    return True


def install_file(built: Path, target: Path) -> None:
    """Move a finished file to its final name, durably; one that is there is replaced."""
    with writing(target):
        with built.open("rb") as file:
            os.fsync(file.fileno())
        built.replace(target)
        sync_directory(target.parent)


def make_sparse(path: Path, size: int) -> None:
    """Make a file `size` long without writing any data; it is created if it isn't there."""
    with writing(path):
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            os.ftruncate(fd, size)
        finally:
            os.close(fd)


def remove_tree(path: Path) -> None:
    """Remove a file or directory; nothing happens if it is not there.

    A directory is made writable first: unpacked trees may hold read-only ones.
    """
    if not path.is_dir() or path.is_symlink():
        path.unlink(missing_ok=True)
        return
    if os.geteuid() != 0:
        for directory, names, _ in os.walk(path):
            for name in (".", *names):
                inner = Path(directory, name)
                if not inner.is_symlink():
                    inner.chmod(0o700)
    shutil.rmtree(path)


def sparse_copy(source: Path, target: Path, *, mode: int = 0o600) -> None:
    """Copy a file that is mostly holes into a new one: shared blocks if possible, else the data.

    The time depends on the data in it, not on its length. `target` must not exist.
    """
    src = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with writing(target):
            dst = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
            try:
                if not _reflink(src, dst):
                    _copy_data(src, dst)
            except BaseException:
                target.unlink(missing_ok=True)
                raise
            finally:
                os.close(dst)
    finally:
        os.close(src)


def _reflink(src: int, dst: int) -> bool:
    if sys.platform != "linux":
        return False
    try:
        fcntl.ioctl(dst, _FICLONE, src)
    except OSError as error:
        if error.errno in _CANNOT:
            return False
        raise
    return True


def _copy_data(src: int, dst: int) -> None:
    size = os.fstat(src).st_size
    os.ftruncate(dst, size)
    for start, end in data_ranges(src, size):
        _copy_range(src, dst, start, end)


def data_ranges(fd: int, size: int) -> Iterator[tuple[int, int]]:
    """The (start, end) parts of a sparse file that may hold something else than zeros."""
    end = 0
    while end < size:
        try:
            start = os.lseek(fd, end, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # only a hole up to the end of the file
                return
            raise
        end = os.lseek(fd, start, os.SEEK_HOLE)
        yield start, end


def _copy_range(src: int, dst: int, start: int, end: int) -> None:
    while start < end:
        done = 0
        if sys.platform == "linux":
            try:
                done = os.copy_file_range(src, dst, end - start, start, start)
            except OSError as error:
                if error.errno not in _CANNOT:
                    raise
        if done == 0:
            data = os.pread(src, min(end - start, _CHUNK), start)
            if not data:
                return  # the source was cut short under us: what is beyond reads as zeros
            done = os.pwrite(dst, data, start)
        start += done


def can_reflink(directory: Path) -> bool:
    """Whether files in a directory can share their blocks (btrfs, XFS, bcachefs)."""
    with scratch_directory(directory) as probe, writing(directory):
        (probe / "a").write_bytes(b"\0" * 4096)
        src = os.open(probe / "a", os.O_RDONLY | os.O_CLOEXEC)
        try:
            dst = os.open(probe / "b", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                return _reflink(src, dst)
            finally:
                os.close(dst)
        finally:
            os.close(src)


def real_size(path: Path) -> int:
    """Bytes a file or a directory's files occupy on the disk; holes cost nothing."""
    info = path.lstat()
    if not stat.S_ISDIR(info.st_mode):
        return info.st_blocks * 512
    total = 0
    for directory, _, names in os.walk(path):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                total += Path(directory, name).lstat().st_blocks * 512
    return total
