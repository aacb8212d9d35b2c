"""Locks between processes: `flock` on a file that is never removed.

A lock belongs to an open file and dies with its process, so nothing has to be cleaned up after a
crash. The file holds the owner's pid, only to name it in messages.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import Future
from pathlib import Path

from sporevm._sys import fs
from sporevm.errors import Conflict, DeadlineExceeded


def _open(path: Path) -> int:
    fs.make_directory(path.parent)
    with fs.writing(path):
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def _try(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _sign(fd: int) -> None:
    os.ftruncate(fd, 0)
    os.pwrite(fd, b"%d\n" % os.getpid(), 0)


def holder(path: Path) -> int | None:
    """Pid of the process that took the lock last, for messages only: it may be gone."""
    try:
        return int(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return None


@contextlib.contextmanager
def try_lock(path: Path, *, what: str) -> Iterator[None]:
    """Hold the lock for the body, or raise Conflict at once if another process has it."""
    fd = _open(path)
    try:
        if not _try(fd):
            pid = holder(path)
            raise Conflict(f"{what} is in use by process {pid or 'unknown'}")
        _sign(fd)
        yield
    finally:
        os.close(fd)


@contextlib.contextmanager
def lock(path: Path, *, what: str, timeout: float | None = None) -> Iterator[None]:
    """Hold the lock for the body; DeadlineExceeded if it is not free within `timeout` seconds."""
    fd = _open(path)
    if not _try(fd):
        waiter = _wait_in_thread(fd)
        try:
            waiter.result(timeout)
        except TimeoutError:
            _abandon(waiter, fd)
            pid = holder(path) or "unknown"
            late = f"{what} is still in use by process {pid} after {timeout:g} s"
            raise DeadlineExceeded(late) from None
        except BaseException:
            _abandon(waiter, fd)
            raise
    try:
        _sign(fd)
        yield
    finally:
        os.close(fd)


@contextlib.asynccontextmanager
async def lock_async(path: Path) -> AsyncIterator[None]:
    """Hold the lock for the body; waiting can be cut short by `asyncio.timeout`, like any other."""
    fd = _open(path)
    if not _try(fd):
        waiter = _wait_in_thread(fd)
        try:
            await asyncio.shield(asyncio.wrap_future(waiter))
        except BaseException:
            _abandon(waiter, fd)
            raise
    try:
        _sign(fd)
        yield
    finally:
        os.close(fd)


def _wait_in_thread(fd: int) -> Future[None]:
    """Wait for the lock in a thread of its own.

    flock can't be given a deadline. A daemon thread may stay blocked in it without holding up the
    end of this process, which the threads of an executor would.
    """
    future: Future[None] = Future()

    def wait() -> None:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
        except OSError as error:
            future.set_exception(error)
        else:
            future.set_result(None)

    threading.Thread(target=wait, name="flock", daemon=True).start()
    return future


def _abandon(waiter: Future[None], fd: int) -> None:
    """Nobody waits any more: when the thread gets the lock at last, it is given back at once."""
    waiter.add_done_callback(lambda _: os.close(fd))
