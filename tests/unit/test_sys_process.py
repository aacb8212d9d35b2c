"""Processes: identity, output, deadlines, reaping, adoption."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from sporevm._sys import process
from sporevm._sys.process import Identity, ProcessFailed
from sporevm.errors import DeadlineExceeded, NotFound, SetupError
from tests.conftest import eventually


async def eventually_here(check: Callable[[], bool]) -> None:
    """Let the loop run until a condition holds; nothing else is awaited, that is the point."""
    async with asyncio.timeout(5):
        while not check():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


def open_fds() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def children() -> set[str]:
    """Of this process, zombies included."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = path.read_text().rsplit(")", 1)[1].split()
            if int(fields[1]) == os.getpid():
                found.add(path.parent.name)
    return found


@pytest.fixture(autouse=True)
def nothing_left():
    """Neither a descriptor nor a child (zombies included) stays behind."""
    before = open_fds()
    had = children()
    yield
    assert open_fds() <= before
    assert children() <= had


async def test_output_and_input_are_exact():
    data = os.urandom(1 << 20)
    done = await process.run(["cat"], input=data)
    assert done.stdout == data
    assert done.stderr == b""
    assert done.returncode == 0


async def test_failure_carries_its_evidence():
    with pytest.raises(ProcessFailed) as caught:
        await process.run(["sh", "-c", "echo out; echo 'no such disk' >&2; exit 3"])
    error = caught.value
    assert error.status == 3
    assert error.tail == "no such disk"
    assert error.command == "sh -c 'echo out; echo '\"'\"'no such disk'\"'\"' >&2; exit 3'"
    assert "no such disk" in str(error)


async def test_unchecked_failure_and_signal():
    assert (await process.run(["false"], check=False)).returncode == 1
    killed = await process.run(["sh", "-c", "kill -9 $$"], check=False)
    assert killed.returncode == -9


async def test_missing_program():
    with pytest.raises(SetupError, match="no-such-program"):
        await process.run(["no-such-program"], input=b"x")


async def test_a_deadline_ends_the_whole_group(tmp_path):
    note = tmp_path / "pid"
    began = time.monotonic()
    with pytest.raises(DeadlineExceeded):
        await process.run(["sh", "-c", f"sleep 60 & echo $! > {note}; wait"], timeout=0.3)
    assert time.monotonic() - began < 5
    grandchild = int(note.read_text())
    fd = None
    try:
        fd = os.pidfd_open(grandchild)
    except ProcessLookupError:
        return
    await asyncio.wait_for(process._ready(fd), 5)
    os.close(fd)


async def test_cancelling_ends_the_program(tmp_path):
    note = tmp_path / "pid"
    task = asyncio.create_task(process.run(["sh", "-c", f"echo $$ > {note}; exec sleep 60"]))
    assert await asyncio.to_thread(eventually, lambda: note.exists() and note.read_text())
    identity = Identity.of(int(note.read_text()))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not identity.alive()


async def test_a_child_gets_its_environment_and_descriptors_only():
    read, write = os.pipe()
    os.environ["SPORE_SECRET_OF_THE_CALLER"] = "1"
    try:
        done = await process.run(["sh", "-c", "env; ls /proc/$$/fd"], pass_fds=[read])
    finally:
        del os.environ["SPORE_SECRET_OF_THE_CALLER"]
        os.close(read)
        os.close(write)
    assert "SPORE_SECRET" not in done.text
    assert f"\n{read}\n" in done.text
    assert f"\n{write}\n" not in done.text


async def test_terminate_asks_then_forces():
    polite = await process.start(["sleep", "60"])
    assert await polite.terminate(5) == -signal.SIGTERM
    read, write = os.pipe()
    deaf = await process.start(["sh", "-c", "trap '' TERM; echo; while :; do sleep 1; done"],
                               stdout=write)  # fmt: skip
    os.close(write)
    await process._ready(read)
    os.close(read)
    assert await deaf.terminate(0.1) == -signal.SIGKILL
    assert await deaf.terminate(0.1) == -signal.SIGKILL
    assert not deaf.identity.alive()


async def test_an_ended_child_is_reaped_without_a_waiter():
    child = await process.start(["true"])
    await eventually_here(lambda: child.ended)
    assert child.status == 0
    child.signal(signal.SIGKILL)  # nothing to signal, and no harm


async def test_waiting_is_shared():
    child = await process.start(["sleep", "60"])
    waiters = [asyncio.create_task(child.wait()) for _ in range(3)]
    await asyncio.sleep(0)
    waiters[0].cancel()
    await child.terminate(5)
    assert await waiters[1] == await waiters[2] == -signal.SIGTERM


async def test_children_outlive_their_parent_and_are_adopted():
    """The parent is a real second engine-like process that dies by SIGKILL."""
    script = (
        "import asyncio, os, signal\n"
        "from sporevm._sys import process\n"
        "async def main():\n"
        "    c = await process.start(['sleep', '60'])\n"
        "    print(c.identity.pid, c.identity.start_time, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "asyncio.run(main())\n"
    )
    done = await process.run([sys.executable, "-c", script], check=False)
    assert done.returncode == -signal.SIGKILL
    pid, start_time = map(int, done.text.split())
    identity = Identity(pid, start_time)
    assert identity.alive()

    with pytest.raises(NotFound):
        process.adopt(Identity(pid, start_time + 1))
    child = process.adopt(identity)
    assert await child.terminate(5) is None
    assert not identity.alive()
    with pytest.raises(NotFound):
        process.adopt(identity)


async def test_release_leaves_it_running():
    child = await process.start(["sleep", "60"])
    child.release()
    child.release()
    assert child.identity.alive()
    again = process.adopt(child.identity)
    assert await again.terminate(5) == -signal.SIGTERM


def test_identity_of_nobody():
    with pytest.raises(NotFound):
        Identity.of(2**22 + 1)
    mine = Identity.of(os.getpid())
    assert mine.alive()
    assert not Identity(mine.pid, mine.start_time + 1).alive()


def test_identity_reads_odd_program_names(tmp_path):
    program = tmp_path / "a) S (b"
    program.symlink_to("/bin/sleep")
    child = subprocess.Popen([program, "60"])
    try:
        assert Identity.of(child.pid).alive()
    finally:
        child.kill()
        child.wait()
