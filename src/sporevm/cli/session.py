"""A process in a sandbox and the user's terminal, joined by one `select` loop.

Output is written as it comes, and nothing more is read from the engine while it can't be: a full
pipe makes the guest wait. Signals become messages at any time, also while output is stuck.
"""

from __future__ import annotations

import errno
import json
import os
import select
import signal
import socket
import stat
from collections import deque
from collections.abc import Mapping
from contextlib import ExitStack
from types import FrameType

from sporevm.cli import terminal
from sporevm.cli.link import error_from
from sporevm.cli.progress import FRAME, Progress
from sporevm.cli.websocket import BINARY, CLOSE, PING, PONG, TEXT, Reader, Refused, frame, upgrade
from sporevm.errors import EngineError, StorageError

STDIN, STDOUT, STDERR = 0, 1, 2
#: Stdin the engine has not yet passed on; the same as sporevm.api.models.STDIN_WINDOW.
STDIN_WINDOW = 256 << 10
#: Output waiting to be written; above it nothing is read from the engine.
OUTPUT_LIMIT = 1 << 20
TIMED_OUT = 124
#: What a pipe that select calls writable takes without blocking (PIPE_BUF).
_SAFE_WRITE = 4096
_CHUNK = 64 << 10
_FORWARDED = (
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
)
#: Before a process runs there is nobody to forward these to: they end the session.
_CANCELLING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


class Session:
    """One run or exec over one connection."""

    def __init__(
        self,
        link: socket.socket,
        path: str,
        start: Mapping[str, object],
        *,
        progress: Progress,
        stdin: bool = False,
        tty: bool = False,
        detach: bool = False,
    ) -> None:
        """`start` is the first message: an api.models.RunStart or ExecStart as plain data."""
        self._link = link
        self._progress = progress
        self._stdin = stdin
        self._tty = tty
        self._detach = detach
        self._reader = Reader()
        self._sending = bytearray(upgrade(path))
        self._writing = {STDOUT: bytearray(), STDERR: bytearray()}
        self._limits = {fd: _write_limit(fd) for fd in self._writing}
        self._room = STDIN_WINDOW
        self._signals: deque[int] = deque()
        self._wakeup = -1
        self._raw: terminal.RawMode | None = None
        self._status: int | None = None
        #: The name of the process in its sandbox, once it runs.
        self.proc = ""
        self._say(start)

    @property
    def status(self) -> int:
        """The exit status; meaningful once `play` has returned."""
        return -1 if self._status is None else self._status

    def play(self) -> int:
        """Go on until the process has ended and its output is written. Returns its exit status.

        Raises what the engine reports, and BrokenPipeError if nobody reads the output.
        """
        with ExitStack() as stack:
            stack.callback(self._progress.failed)
            self._catch_signals(stack)
            self._link.setblocking(False)
            while self._status is None or any(self._writing.values()):
                self._turn(stack)
        return self.status

    def _turn(self, stack: ExitStack) -> None:
        readable, writable = self._select()
        if self._wakeup in readable:
            _drain(self._wakeup)
        while self._signals:
            self._on_signal(self._signals.popleft())
        for fd, data in self._writing.items():
            if data and fd in writable:
                del data[: _write(fd, bytes(data[: self._limits[fd]]))]
        if self._link.fileno() in writable:
            self._send()
        if self._link.fileno() in readable:
            self._receive(stack)
        if STDIN in readable:
            self._read_stdin()
        self._progress.tick()

    def _select(self) -> tuple[list[int], list[int]]:
        link = self._link.fileno()
        reading = [self._wakeup]
        if self._status is None and sum(map(len, self._writing.values())) < OUTPUT_LIMIT:
            reading.append(link)
        if self.proc and self._stdin and self._status is None and self._room > 0:
            reading.append(STDIN)
        writing = [fd for fd, data in self._writing.items() if data]
        if self._sending and self._status is None:
            writing.append(link)
        timeout = FRAME if self._progress.active else None
        readable, writable, _ = select.select(reading, writing, (), timeout)
        return readable, writable

    # to the engine

    def _say(self, message: Mapping[str, object]) -> None:
        self._sending += frame(TEXT, json.dumps(message).encode())

    def _send(self) -> None:
        try:
            count = self._link.send(bytes(self._sending[:_CHUNK]))
        except BlockingIOError:
            return
        except (BrokenPipeError, ConnectionResetError):
            # The engine's last words may still be there to be read; `_receive` sees the end.
            self._sending.clear()
            return
        del self._sending[:count]

    def _read_stdin(self) -> None:
        try:
            data = os.read(STDIN, min(self._room, _CHUNK))
        except OSError:
            # A terminal that was closed, or that is not ours any more: no more input.
            data = b""
        if data:
            self._room -= len(data)
            self._sending += frame(BINARY, bytes((STDIN,)) + data)
        else:
            self._stdin = False
            self._say({"type": "eof"})

    # from the engine

    def _receive(self, stack: ExitStack) -> None:
        try:
            data = self._link.recv(_CHUNK)
        except BlockingIOError:
            return
        except ConnectionResetError:
            data = b""
        try:
            for kind, payload in self._reader.feed(data):
                self._on_message(kind, payload, stack)
        except Refused as refused:
            raise error_from(refused.body) from None
        if not data and self._status is None:
            raise EngineError(
                "the engine closed the connection", hint="see: spore daemon logs, spore doctor"
            )

    def _on_message(self, kind: int, payload: bytes, stack: ExitStack) -> None:
        if kind == BINARY and payload[:1] in (b"\1", b"\2"):
            self._writing[payload[0]] += memoryview(payload)[1:]
        elif kind == TEXT:
            self._on_text(json.loads(payload), stack)
        elif kind == PING:
            self._sending += frame(PONG, payload)
        elif kind == CLOSE and self._status is None:
            raise EngineError(
                "the engine ended the session", hint="see: spore daemon logs, spore doctor"
            )

    def _on_text(self, message: dict[str, object], stack: ExitStack) -> None:
        kind = message.get("type")
        if kind == "progress":
            self._progress.step(
                str(message["step"]), _number(message, "done"), _number(message, "total")
            )
        elif kind == "started":
            self._on_started(str(message["proc"]), stack)
        elif kind == "room":
            self._room += int(_number(message, "bytes"))
        elif kind == "exited":
            self._status = exit_status(message)
        elif kind == "error":
            raise error_from(message)

    def _on_started(self, proc: str, stack: ExitStack) -> None:
        self._progress.done()
        self.proc = proc
        if self._detach:
            self._status = 0
        elif self._tty and os.isatty(STDIN):
            # Only now: until the process runs, Ctrl-C must stay a signal for us.
            self._raw = stack.enter_context(terminal.RawMode(STDIN))
            self._resize()

    # signals

    def _catch_signals(self, stack: ExitStack) -> None:
        self._wakeup, write_end = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        stack.callback(os.close, self._wakeup)
        stack.callback(os.close, write_end)
        stack.callback(
            signal.set_wakeup_fd, signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
        )
        caught = (*_FORWARDED, signal.SIGWINCH, signal.SIGCONT) if self._tty else _FORWARDED
        for number in caught:
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup, and `&` of a plain shell
                stack.callback(signal.signal, number, signal.signal(number, self._note_signal))

    def _note_signal(self, number: int, _frame: FrameType | None) -> None:
        self._signals.append(number)

    def _on_signal(self, number: int) -> None:
        if number in (signal.SIGWINCH, signal.SIGCONT):
            if self._raw is not None:
                if number == signal.SIGCONT:
                    self._raw.apply()
                self._resize()
        elif number == signal.SIGHUP or (not self.proc and number in _CANCELLING):
            # Nothing runs yet, or our terminal has gone: leave. The engine ends what we started.
            self._progress.done("interrupted")
            self._status = 128 + number
        elif self.proc:
            self._say({"type": "signal", "signal": int(number)})

    def _resize(self) -> None:
        rows, cols = terminal.size(STDIN, STDOUT)
        self._say({"type": "resize", "rows": rows, "cols": cols})


def exit_status(message: Mapping[str, object]) -> int:
    """Our exit status for an api.models.Exited."""
    if message.get("timed_out"):
        return TIMED_OUT
    if number := int(_number(message, "signal")):
        return 128 + number
    return int(_number(message, "exit_code"))


def _number(message: Mapping[str, object], key: str) -> float:
    value = message.get(key)
    return value if isinstance(value, (int, float)) else 0


def _write_limit(fd: int) -> int:
    """How much may be written at once without a risk to block for long."""
    try:
        mode = os.fstat(fd).st_mode
    except OSError:
        return _SAFE_WRITE
    return OUTPUT_LIMIT if stat.S_ISREG(mode) else _SAFE_WRITE


def _write(fd: int, data: bytes) -> int:
    try:
        return os.write(fd, data)
    except BlockingIOError:
        return 0
    except OSError as error:
        if error.errno in (errno.EPIPE, errno.EIO, errno.EBADF):
            raise BrokenPipeError from error
        raise StorageError(f"the output can't be written: {error.strerror}") from error


def _drain(fd: int) -> None:
    try:
        while os.read(fd, 512):
            pass
    except BlockingIOError:
        return
