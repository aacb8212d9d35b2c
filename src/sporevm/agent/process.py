"""A process in the guest, and its three streams."""

from __future__ import annotations

from sporevm.agent import messages
from sporevm.agent.messages import Exit
from sporevm.agent.stream import Stream
from sporevm.errors import AgentError, GuestError
from sporevm.wire import constants as c
from sporevm.wire.constants import Tag
from sporevm.wire.tlv import Fields

_EPIPE = 32


class Process:
    """A process with somebody attached. It outlives this object, and the connection.

    Output that is not read holds the process back. Output that was read but not acknowledged is
    kept by the agent, so that another `attach` can have it again: with `auto_ack` an item is
    acknowledged when the next one is asked for, and the agent forgets the process as soon as it
    has told its end; without it that happens in `ack` and `close`.
    """

    def __init__(
        self,
        stream: Stream,
        proc: str,
        reply: Fields,
        *,
        auto_ack: bool,
        stdout_seen: int = 0,
        stderr_seen: int = 0,
    ) -> None:
        self.proc = proc
        self.pid = stream.judge(lambda: messages.pid(reply))
        #: Bytes of stdin the process had been given before this attachment.
        self.stdin_seen = stream.judge(lambda: reply.u64(Tag.STDIN_SEEN, 0))
        self._stream = stream
        self._auto_ack = auto_ack
        self._seen = {c.STDOUT: stdout_seen, c.STDERR: stderr_seen}
        self._unacked = {c.STDOUT: 0, c.STDERR: 0}
        self._exit: Exit | None = None

    @property
    def stdout_seen(self) -> int:
        """Bytes of stdout acknowledged so far: what a later `attach` is told."""
        return self._seen[c.STDOUT]

    @property
    def stderr_seen(self) -> int:
        return self._seen[c.STDERR]

    async def read(self) -> tuple[int, bytes] | None:
        """The next output as (1 = stdout or 2 = stderr, bytes); None when both have ended."""
        if self._auto_ack:
            self.ack()
        piece = await self._stream.piece()
        if piece is None:
            if not self._stream.at_end:
                raise self._cut_short()
            return None
        channel, data = piece
        self._unacked[channel] += len(data)
        return piece

    def ack(self) -> None:
        """All that `read` has returned is safe: the agent may forget it and send more."""
        for channel, size in self._unacked.items():
            if size:
                self._unacked[channel] = 0
                self._seen[channel] += size
                self._stream.credit(channel, size)

    async def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send to stdin; returns when all has left. GuestError EPIPE when the process has ended."""
        if not await self._stream.send(c.STDIN, memoryview(data)) or self._stream.notice:
            raise GuestError("cannot write to a process that has ended", errno=_EPIPE)

    def write_eof(self) -> None:
        """No more stdin."""
        self._stream.eof(c.STDIN)

    def signal(self, number: int) -> None:
        """Send a signal to the process group; no effect when it has ended."""
        self._stream.event([(Tag.SIGNAL, number)])

    def resize(self, rows: int, cols: int) -> None:
        self._stream.event([(Tag.ROWS, rows), (Tag.COLS, cols)])

    async def wait(self) -> Exit:
        """How the process ended. It can't end while its output is not read: read that first, or
        at the same time. A shell shows `Exit.status`."""
        if self._exit is None:
            stream = self._stream
            await stream.until(lambda: stream.notice is not None or stream.closing is not None)
            notice = stream.notice
            if notice is None:
                raise self._cut_short()
            self._exit = stream.judge(lambda: messages.exit_status(notice))
        return self._exit

    async def close(self, kill: bool = False) -> None:
        """Be done with the process; idempotent. An ended one is forgotten by the agent; a live
        one goes on with nobody reading, or is killed."""
        self._stream.close([(Tag.FLAGS, c.CLOSE_KILL)] if kill else ())

    def _cut_short(self) -> GuestError | AgentError:
        """The agent's CLOSE came too early: why."""
        closing = self._stream.closing
        assert closing is not None
        error = self._stream.judge(lambda: messages.failure(closing, f"follow process {self.proc}"))
        return error or AgentError(f"the guest agent let go of process {self.proc}")
