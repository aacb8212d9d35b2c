"""The one place where processes are born, waited for and ended.

* Arguments are lists, never a shell line; the environment is explicit; only named descriptors
  are inherited.
* A process is identified by pid *and* start time, and held by a pidfd, so that a recycled pid is
  never signalled.
* Each process leads a session of its own. Nothing ties its life to ours: a long-lived child
  (`start`) outlives this process, and the next one takes charge of it again (`adopt`).
* Spawning goes through vfork: the time does not depend on how big this process has grown. That is
  why there is no `preexec_fn` and no `user=` here; uid, limits and namespaces are set by a small
  launcher in the child (`confine`).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from sporevm._sys import pidfd
from sporevm.errors import DeadlineExceeded, NotFound, SetupError, SporeError

#: How much of a failed program's last words an error carries.
TAIL_BYTES = 4096
_CHUNK = 1 << 16
_DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

Argument = str | os.PathLike[str]


class ProcessFailed(SporeError):
    """A program ended with a status other than zero. Carries what is needed to try it by hand."""

    code = "process"

    def __init__(self, command: str, *, status: int, tail: str, hint: str = "") -> None:
        program = command.split(" ", 1)[0]
        last = tail.strip().rsplit("\n", 1)[-1]
        how = f"was killed by signal {-status}" if status < 0 else f"failed with status {status}"
        super().__init__(f"{program} {how}" + (f": {last}" if last else ""), hint=hint)
        self.command = command
        self.status = status
        self.tail = tail

    def details(self) -> dict[str, object]:
        return {"command": self.command, "status": self.status, "tail": self.tail}


@dataclass(frozen=True, slots=True)
class Identity:
    """A process, told apart from a later one that got the same pid."""

    pid: int
    start_time: int  # clock ticks since boot: field 22 of /proc/PID/stat

    @classmethod
    def of(cls, pid: int) -> Identity:
        """Raises NotFound if there is no such process, or only its zombie."""
        state, start_time = _stat(pid)
        if state in _GONE:
            raise NotFound(f"there is no process {pid}")
        return cls(pid, start_time)

    def alive(self) -> bool:
        state, start_time = _stat(self.pid)
        return state not in _GONE and start_time == self.start_time


_GONE = ("", "Z", "X")


def _stat(pid: int) -> tuple[str, int]:
    """State letter and start time of a process; no letter if there is none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return "", 0
    # The second field is the program's name in brackets and may itself hold brackets and spaces.
    fields = text[text.rindex(b")") + 2 :].split()
    return fields[0].decode(), int(fields[19])


def arguments(pid: int) -> list[str]:
    """A process's command line; empty if it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")[:-1]
    except OSError:
        return []


@dataclass(frozen=True, slots=True)
class Completed:
    """How a program ended and what it said."""

    returncode: int
    stdout: bytes
    stderr: bytes

    @property
    def text(self) -> str:
        return self.stdout.decode(errors="replace")


class Launcher(Protocol):
    """Something that runs a program under restrictions: see `sporevm._sys.confine`."""

    def wrap(self, argv: Sequence[str]) -> list[str]: ...

    @property
    def fds(self) -> tuple[int, ...]:
        """Descriptors that the wrapper itself needs."""


def command_line(argv: Sequence[Argument]) -> str:
    """The command as one could paste it into a shell."""
    return shlex.join(os.fspath(a) for a in argv)


def minimal_env(**extra: str) -> dict[str, str]:
    """What a program needs to be found and to speak plain English; nothing of the caller's own."""
    env = {"PATH": os.environ.get("PATH", _DEFAULT_PATH), "LC_ALL": "C.UTF-8"}
    for name in ("TMPDIR", "HOME"):
        if name in os.environ:
            env[name] = os.environ[name]
    return env | extra


class Child:
    """A process we hold by its pidfd: one that we started, or one that we adopted.

    Made by `start` and `adopt`, inside a running event loop. It watches the process until that
    ends, or until `release`; a child of ours is reaped at once, whether anybody waits or not.
    """

    def __init__(self, identity: Identity, fd: int, *, command: str) -> None:
        self.identity = identity
        self.command = command
        self._fd = fd
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[int | None] = self._loop.create_future()
        self._loop.add_reader(fd, self._on_end)

    @property
    def pid(self) -> int:
        return self.identity.pid

    @property
    def ended(self) -> bool:
        return self._ended.done()

    @property
    def status(self) -> int | None:
        """Exit status, negative for a signal; None while it runs or if it was not our child."""
        done = self._ended.done() and not self._ended.cancelled()
        return self._ended.result() if done else None

    async def wait(self) -> int | None:
        """Wait for the end; None if the process is not our child, so its status is not ours."""
        return await asyncio.shield(self._ended)

    def signal(self, number: int) -> None:
        """Send a signal; nothing happens if the process has ended."""
        if self._fd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._fd, number)

    async def terminate(self, grace: float = 5.0) -> int | None:
        """TERM, then KILL after `grace` seconds (at once if 0); returns when it is gone."""
        if grace > 0 and not self.ended:
            self.signal(signal.SIGTERM)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(grace):
                    return await self.wait()
        self.signal(signal.SIGKILL)
        return await self.wait()

    def release(self) -> None:
        """Let go of the process and leave it running; idempotent."""
        self._forget()
        if not self._ended.done():
            self._ended.cancel()

    def _on_end(self) -> None:
        status = pidfd.reap(self._fd)
        self._forget()
        if not self._ended.done():
            self._ended.set_result(status)

    def _forget(self) -> None:
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1


def _spawn(
    argv: Sequence[str],
    *,
    env: Mapping[str, str],
    cwd: Argument | None,
    stdin: int | None,
    stdout: int | None,
    stderr: int | None,
    pass_fds: Sequence[int],
) -> int:
    """Start a program in a session of its own; returns its pid."""
    null = subprocess.DEVNULL
    try:
        popen = subprocess.Popen(
            argv,
            env=dict(env),
            cwd=cwd,
            stdin=null if stdin is None else stdin,
            stdout=null if stdout is None else stdout,
            stderr=null if stderr is None else stderr,
            pass_fds=tuple(pass_fds),
            start_new_session=True,
        )
    except FileNotFoundError as error:
        missing = error.filename or argv[0]
        raise SetupError(f"program {missing!r} was not found", hint=f"install {missing}") from None
    except PermissionError as error:
        raise SetupError(f"program {argv[0]!r} may not be run: {error.strerror}") from None
    # Popen is only the launcher. From here on the pidfd is the one handle of the process; a
    # status of any kind keeps Popen from waiting for it behind our back.
    popen.returncode = 0
    return popen.pid


async def start(
    argv: Sequence[Argument],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Argument | None = None,
    stdin: int | None = None,
    stdout: int | None = None,
    stderr: int | None = None,
    pass_fds: Sequence[int] = (),
    confine: Launcher | None = None,
) -> Child:
    """Start a long-lived program in a session of its own. It outlives this process.

    Streams are descriptors, None means /dev/null; they stay the caller's to close. The program
    has been executed when this returns; a missing one raises SetupError.
    """
    words = [os.fspath(a) for a in argv]
    command = command_line(words)
    fds = list(pass_fds)
    if confine is not None:
        words = confine.wrap(words)
        fds += confine.fds
    pid = _spawn(
        words,
        env=minimal_env() if env is None else env,
        cwd=cwd,
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        pass_fds=fds,
    )
    # Until we reap it, the pid can't belong to another process, even if it has ended already.
    fd = os.pidfd_open(pid)
    return Child(Identity(pid, _stat(pid)[1]), fd, command=command)


def adopt(identity: Identity, *, command: str = "") -> Child:
    """Take charge of a process that an earlier one of us started; raises NotFound if it is gone.

    Needs a running event loop. `wait` of an adopted process returns None, unless it happens to be
    our own child after all.
    """
    try:
        fd = os.pidfd_open(identity.pid)
    except ProcessLookupError:
        raise NotFound(f"process {identity.pid} has ended") from None
    # In this order: the pidfd holds on to whoever has the pid now, then we look who that is.
    if not identity.alive():
        os.close(fd)
        raise NotFound(f"process {identity.pid} has ended, its number is free or another's")
    return Child(identity, fd, command=command)


async def run(
    argv: Sequence[Argument],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Argument | None = None,
    input: bytes | None = None,
    timeout: float | None = None,
    check: bool = True,
    stdin: int | None = None,
    stdout: int | None = None,
    pass_fds: Sequence[int] = (),
) -> Completed:
    """Run a program to its end and collect what it says.

    `stdin` and `stdout` may be descriptors, to read or write a file or a pipe instead.
    Raises ProcessFailed (unless `check` is false), SetupError if the program is missing, and
    DeadlineExceeded. However this ends, the program and its process group have ended too.
    """
    words = [os.fspath(a) for a in argv]
    with contextlib.ExitStack() as ours, contextlib.ExitStack() as theirs:
        feed = drain = None
        if input is not None:
            stdin, write_end = _pipe(ours, theirs, child_reads=True)
            feed = (write_end, input)
        if stdout is None:
            stdout, drain = _pipe(ours, theirs, child_reads=False)
        stderr, drain_err = _pipe(ours, theirs, child_reads=False)
        child = await start(
            words, env=env, cwd=cwd, stdin=stdin, stdout=stdout, stderr=stderr, pass_fds=pass_fds
        )
        theirs.close()
        out, err, status = await _converse(child, feed, drain, drain_err, timeout)
    if check and status != 0:
        tail = (err.strip() or out.strip())[-TAIL_BYTES:].decode(errors="replace")
        raise ProcessFailed(command_line(words), status=status, tail=tail)
    return Completed(status, out, err)


class _End:
    """Our end of a pipe, closed once."""

    def __init__(self, fd: int) -> None:
        os.set_blocking(fd, False)
        self.fd = fd

    def close(self) -> None:
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)


def _pipe(
    ours: contextlib.ExitStack, theirs: contextlib.ExitStack, *, child_reads: bool
) -> tuple[int, _End]:
    """A pipe as the child's end and ours."""
    read, write = os.pipe()
    child, mine = (read, write) if child_reads else (write, read)
    theirs.callback(os.close, child)
    return child, ours.enter_context(contextlib.closing(_End(mine)))


async def _converse(
    child: Child,
    feed: tuple[_End, bytes] | None,
    out_end: _End | None,
    err_end: _End,
    seconds: float | None,
) -> tuple[bytes, bytes, int]:
    """Feed, drain and wait; end the whole process group if that is cut short."""
    try:
        async with asyncio.timeout(seconds), asyncio.TaskGroup() as group:
            if feed is not None:
                group.create_task(_feed(*feed))
            out = group.create_task(_drain(out_end))
            err = group.create_task(_drain(err_end))
            status = await child.wait()
    except TimeoutError:
        name = child.command.split(" ", 1)[0]
        raise DeadlineExceeded(f"{name} took longer than {seconds:g} s") from None
    finally:
        if not child.ended:
            # The leader is not reaped yet, so the group's number is still its own.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            await child.wait()
    return out.result(), err.result(), 0 if status is None else status


async def _ready(fd: int, *, write: bool = False) -> None:
    loop = asyncio.get_running_loop()
    future = loop.create_future()

    def wake() -> None:
        if not future.done():
            future.set_result(None)

    (loop.add_writer if write else loop.add_reader)(fd, wake)
    try:
        await future
    finally:
        (loop.remove_writer if write else loop.remove_reader)(fd)


async def _drain(end: _End | None) -> bytes:
    data = bytearray()
    while end is not None:
        await _ready(end.fd)
        chunk = os.read(end.fd, _CHUNK)
        if not chunk:
            break
        data += chunk
    return bytes(data)


async def _feed(end: _End, data: bytes) -> None:
    view = memoryview(data)
    try:
        while view:
            await _ready(end.fd, write=True)
            view = view[os.write(end.fd, view[:_CHUNK]) :]
    except BrokenPipeError:
        pass  # it did not want all of it; its status says whether that is an error
    finally:
        end.close()
