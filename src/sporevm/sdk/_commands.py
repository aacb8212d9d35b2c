"""Commands in a sandbox."""

from __future__ import annotations

import asyncio
import builtins
import codecs
import signal as signals
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Literal, overload

from sporevm.api.models import CommandBody, Exited, Started
from sporevm.errors import DeadlineExceeded, EngineError, UsageError
from sporevm.sdk._client import Client, Stream
from sporevm.sdk._types import CommandResult, ProcessInfo

#: Called with a piece of output as it comes; a coroutine function is awaited.
OnOutput = Callable[[str], object]
Stdin = str | bytes | bool | None

#: What a handle keeps of each output.
KEEP_BYTES = 16 << 20
#: Largest stdin that goes along with the request.
_INLINE_STDIN = 1 << 20
_STDOUT, _STDERR = 1, 2


class AsyncCommands:
    """Run commands in a sandbox: `box.commands`."""

    def __init__(self, client: Client, sandbox_id: str) -> None:
        self._client = client
        self._id = sandbox_id

    @overload
    async def run(
        self,
        command: str | Sequence[str],
        *,
        cwd: str = "",
        envs: Mapping[str, str] | None = None,
        user: str = "",
        timeout: float | None = None,
        stdin: Stdin = None,
        on_stdout: OnOutput | None = None,
        on_stderr: OnOutput | None = None,
        background: Literal[False] = False,
        check: bool = False,
    ) -> CommandResult: ...

    @overload
    async def run(
        self,
        command: str | Sequence[str],
        *,
        cwd: str = "",
        envs: Mapping[str, str] | None = None,
        user: str = "",
        timeout: float | None = None,
        stdin: Stdin = None,
        on_stdout: OnOutput | None = None,
        on_stderr: OnOutput | None = None,
        background: Literal[True],
        check: bool = False,
    ) -> AsyncCommandHandle: ...

    @overload
    async def run(
        self,
        command: str | Sequence[str],
        *,
        cwd: str = "",
        envs: Mapping[str, str] | None = None,
        user: str = "",
        timeout: float | None = None,
        stdin: Stdin = None,
        on_stdout: OnOutput | None = None,
        on_stderr: OnOutput | None = None,
        background: bool,
        check: bool = False,
    ) -> CommandResult | AsyncCommandHandle: ...

    async def run(
        self,
        command: str | Sequence[str],
        *,
        cwd: str = "",
        envs: Mapping[str, str] | None = None,
        user: str = "",
        timeout: float | None = None,
        stdin: Stdin = None,
        on_stdout: OnOutput | None = None,
        on_stderr: OnOutput | None = None,
        background: bool = False,
        check: bool = False,
    ) -> CommandResult | AsyncCommandHandle:
        """Run a command and wait for its end, or with `background=True` get a handle of it.

        Text is run by `/bin/sh -c`; a list is a program and its arguments. `stdin` is all the
        command reads; `True` leaves it open for `send_stdin` of a handle. `on_stdout` and
        `on_stderr` are called with each piece of output as it comes.

        An exit code other than 0 is no exception, unless `check=True`: then it is CommandFailed.
        After `timeout` seconds the command is killed and DeadlineExceeded is raised.
        """
        argv = ["/bin/sh", "-c", command] if isinstance(command, str) else list(command)
        data = stdin.encode() if isinstance(stdin, str) else stdin
        body = CommandBody(
            argv=argv,
            cwd=cwd,
            env=dict(envs or {}),
            user=user,
            timeout=timeout,
            stdin=bool(data) or isinstance(data, bytes),
        )
        if background:
            if on_stdout or on_stderr:
                raise UsageError("background=True: give on_stdout and on_stderr to handle.wait()")
            return await self._start(body, data)
        if data is True:
            raise UsageError("stdin=True needs background=True: nobody else could write to it")
        given = data if isinstance(data, bytes) else None
        if on_stdout or on_stderr or len(given or b"") > _INLINE_STDIN:
            result = await self._run_stream(body, given, on_stdout, on_stderr)
        else:
            result = await self._run_at_once(body, given)
        return result.check() if check else result

    async def _run_at_once(self, body: CommandBody, stdin: bytes | None) -> CommandResult:
        answer = await self._client.run_command(self._id, body, stdin=stdin)
        if answer.timed_out:
            raise _timed_out(body.timeout)
        return CommandResult(answer.exit_code, answer.stdout, answer.stderr, answer.signal)

    async def _run_stream(
        self,
        body: CommandBody,
        stdin: bytes | None,
        on_stdout: OnOutput | None,
        on_stderr: OnOutput | None,
    ) -> CommandResult:
        """Output is read only as fast as the callbacks take it."""
        told = {_STDOUT: _Teller(on_stdout), _STDERR: _Teller(on_stderr)}
        kept = {_STDOUT: _Kept(), _STDERR: _Kept()}
        end: Exited | None = None
        async with await self._client.exec(self._id, body) as stream, _feeding(stream, stdin):
            async for item in stream:
                if isinstance(item, tuple):
                    kept[item[0]].add(item[1])
                    await told[item[0]].tell(item[1])
                elif isinstance(item, Exited):
                    end = item
        for teller in told.values():
            await teller.tell(b"", final=True)
        if end is None:
            raise EngineError("the engine did not say how the command ended")
        return _result(end, body, kept)

    async def _start(self, body: CommandBody, data: bytes | bool | None) -> AsyncCommandHandle:
        stream = await self._client.exec(self._id, body)
        try:
            first = await stream.receive()
            if not isinstance(first, Started):
                raise EngineError("the engine did not say that the command has started")
        except BaseException:
            await stream.close()
            raise
        return AsyncCommandHandle(stream, first, body, data if isinstance(data, bytes) else None)

    async def list(self) -> builtins.list[ProcessInfo]:
        """The commands the guest knows: running, or ended and not yet asked for."""
        return await self._client.procs(self._id)


def _timed_out(timeout: float | None) -> DeadlineExceeded:
    return DeadlineExceeded(f"the command took longer than {timeout or 0:g} s and was killed")


class _Kept:
    """The newest KEEP_BYTES of an output."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.dropped = 0

    def add(self, data: bytes) -> None:
        self.data += data
        if len(self.data) > 2 * KEEP_BYTES:
            self.trim()

    def trim(self) -> bytes:
        if (over := len(self.data) - KEEP_BYTES) > 0:
            del self.data[:over]
            self.dropped += over
        return bytes(self.data)

    def since(self, offset: int) -> tuple[bytes, int]:
        """What came behind `offset` and is still there, and the offset behind that."""
        start = max(offset - self.dropped, 0)
        return bytes(self.data[start:]), self.dropped + len(self.data)


class _Teller:
    """Calls a callback with text; a character cut in two by the pieces stays whole."""

    def __init__(self, callback: OnOutput | None) -> None:
        self._callback = callback
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    async def tell(self, data: bytes, *, final: bool = False) -> None:
        if self._callback is None:
            return
        if text := self._decoder.decode(data, final):
            answer = self._callback(text)
            if asyncio.iscoroutine(answer):
                await answer


@asynccontextmanager
async def _feeding(stream: Stream, data: bytes | None) -> AsyncIterator[None]:
    """Stdin is written meanwhile, and no further than the block."""
    task = None if data is None else asyncio.ensure_future(_feed(stream, data))
    try:
        yield
    finally:
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def _feed(stream: Stream, data: bytes) -> None:
    with suppress(EngineError):  # the command ended without reading it all
        await stream.send(data)
        await stream.send_eof()


def _result(end: Exited, body: CommandBody, kept: dict[int, _Kept]) -> CommandResult:
    if end.timed_out:
        raise _timed_out(body.timeout)
    out, err = kept[_STDOUT], kept[_STDERR]
    stdout, stderr = out.trim(), err.trim()
    truncated = bool(out.dropped or err.dropped)
    return CommandResult(end.exit_code, stdout, stderr, end.signal, truncated)


class AsyncCommandHandle:
    """A command that runs in the background. Its output is read and kept (the newest 16 MiB of
    each) whether anybody waits or not; when this process ends, so does the command, unless
    `disconnect` was called."""

    def __init__(
        self, stream: Stream, started: Started, body: CommandBody, stdin: bytes | None
    ) -> None:
        self._stream = stream
        self._started = started
        self._body = body
        self._kept = {_STDOUT: _Kept(), _STDERR: _Kept()}
        self._changed = asyncio.Event()
        self._pump = asyncio.ensure_future(self._read(stdin))

    @property
    def pid(self) -> int:
        """Its process id in the guest."""
        return self._started.pid

    @property
    def running(self) -> bool:
        return not self._pump.done()

    async def _read(self, stdin: bytes | None) -> Exited:
        try:
            async with self._stream, _feeding(self._stream, stdin):
                async for item in self._stream:
                    if isinstance(item, tuple):
                        self._kept[item[0]].add(item[1])
                        self._changed.set()
                    elif isinstance(item, Exited):
                        return item
            raise EngineError("the command was left: its end is not known")
        finally:
            self._changed.set()

    async def wait(
        self,
        *,
        on_stdout: OnOutput | None = None,
        on_stderr: OnOutput | None = None,
        check: bool = False,
    ) -> CommandResult:
        """Wait for its end. The callbacks get the output that is kept, then what comes.

        Raises like `run`; may be called again.
        """
        if on_stdout or on_stderr:
            await self._follow({_STDOUT: _Teller(on_stdout), _STDERR: _Teller(on_stderr)})
        end = await asyncio.shield(self._pump)
        result = _result(end, self._body, self._kept)
        return result.check() if check else result

    async def _follow(self, told: dict[int, _Teller]) -> None:
        seen = dict.fromkeys(told, 0)
        while True:
            ended = self._pump.done()
            self._changed.clear()
            for channel, teller in told.items():
                data, seen[channel] = self._kept[channel].since(seen[channel])
                await teller.tell(data, final=ended)
            if ended:
                return
            await self._changed.wait()
            # Set also by the end of the pump, which is done only after this step of the loop.
            await asyncio.sleep(0)

    async def send_stdin(self, data: str | bytes) -> None:
        """Write to its stdin (it was run with `stdin=True`); waits while it does not read."""
        if not self._body.stdin:
            raise UsageError("the command was run without stdin=True")
        await self._stream.send(data.encode() if isinstance(data, str) else data)

    async def close_stdin(self) -> None:
        """No more stdin: it reads the end of the file."""
        await self._stream.send_eof()

    async def kill(self, signal: int = signals.SIGKILL) -> bool:
        """Send a signal to it and its children. False if it has ended already."""
        if self._pump.done():
            return False
        await self._stream.signal(int(signal))
        return True

    async def disconnect(self) -> None:
        """Leave it running by itself; its later output is lost."""
        if self._pump.done():
            return
        await self._stream.detach()
        await asyncio.gather(self._pump, return_exceptions=True)
