"""Locks between processes, and checksums that are computed once."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sporevm.errors import Conflict, DeadlineExceeded
from sporevm.store import checksums
from sporevm.store.checksums import Checksums, sha256_of
from sporevm.store.locks import holder, lock, lock_async, try_lock

_HOLD = """
import sys
from pathlib import Path
from sporevm.store.locks import try_lock
with try_lock(Path(sys.argv[1]), what="it"):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def held_by_another(path: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", _HOLD, str(path)]
    with subprocess.Popen(command, stdin=-1, stdout=-1, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


def test_try_lock_says_who_has_it(tmp_path: Path) -> None:
    path = tmp_path / "l"
    with (
        held_by_another(path) as other,
        pytest.raises(Conflict, match=f"store is in use by process {other.pid}"),
        try_lock(path, what="the store"),
    ):
        pass


def test_a_killed_holder_leaves_the_lock_free(tmp_path: Path) -> None:
    path = tmp_path / "l"
    with held_by_another(path) as other:
        other.kill()
        other.wait()
        with try_lock(path, what="it"):
            assert holder(path) == os.getpid()


def test_lock_gives_up_at_its_deadline_and_can_be_taken_later(tmp_path: Path) -> None:
    path = tmp_path / "l"
    with held_by_another(path), pytest.raises(DeadlineExceeded), lock(path, what="it", timeout=0.1):
        pass
    # The thread left waiting gives the lock back as soon as it gets it.
    with lock(path, what="it", timeout=20):
        pass


async def test_lock_async_waits_its_turn(tmp_path: Path) -> None:
    path = tmp_path / "l"
    order = []

    async def worker(number: int) -> None:
        async with lock_async(path):
            order.append(number)
            await asyncio.sleep(0)
            order.append(number)

    await asyncio.gather(*(worker(n) for n in range(5)))
    assert order[::2] == order[1::2]
    assert sorted(order[::2]) == list(range(5))


async def test_lock_async_can_be_cancelled(tmp_path: Path) -> None:
    path = tmp_path / "l"
    async with lock_async(path):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05), lock_async(path):
                pass
    async with asyncio.timeout(20), lock_async(path):
        pass


def test_checksum_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"abc")
    cache = Checksums(tmp_path / "cache" / "sums")
    first = cache.sha256(path)
    cache.save()
    assert first == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"

    def never(*_: object, **__: object) -> str:
        raise AssertionError("read again")

    monkeypatch.setattr(checksums, "sha256_of", never)
    assert Checksums(tmp_path / "cache" / "sums").sha256(path) == first
    path.write_bytes(b"abd")
    with pytest.raises(AssertionError):
        cache.sha256(path)


def test_checksum_of_the_first_bytes(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"abcdef")
    (tmp_path / "g").write_bytes(b"abc")
    assert sha256_of(tmp_path / "f", length=3) == sha256_of(tmp_path / "g")


@pytest.mark.parametrize("junk", [b"", b"{", b"[]", b'{"a": 1}'])
def test_a_broken_cache_is_an_empty_one(tmp_path: Path, junk: bytes) -> None:
    (tmp_path / "c").write_bytes(junk)
    (tmp_path / "f").write_bytes(b"abc")
    assert Checksums(tmp_path / "c").sha256(tmp_path / "f").startswith("ba78")
