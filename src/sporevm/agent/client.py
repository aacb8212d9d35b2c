"""The client of the guest agent."""

from __future__ import annotations

from typing import Final

from sporevm.agent import messages
from sporevm.agent.files import FileCalls
from sporevm.agent.messages import Configure, ProcInfo
from sporevm.agent.process import Process
from sporevm.agent.session import CALL_TIMEOUT
from sporevm.agent.tcp import TcpStream
from sporevm.errors import AgentError, UsageError
from sporevm.spec import Command
from sporevm.wire import constants as c
from sporevm.wire.constants import Service, Tag
from sporevm.wire.tlv import Field

_MAX_PROC: Final = 64


class Agent(FileCalls):
    """A connection to one guest's agent.

    Made by `connect`; use it on one event loop. Any number of calls may run at the same time. A
    cancelled call closes its stream. Once the connection is over, every call raises AgentError,
    and `wait_closed` says why.
    """

    async def configure(self, what: Configure) -> None:
        await self._ask(Service.CONFIGURE, what.fields(), "configure the guest")

    async def exec(
        self,
        proc: str,
        command: Command,
        *,
        auto_ack: bool = True,
        timeout: float = CALL_TIMEOUT,
    ) -> Process:
        """Start a process known as `proc` for the life of the VM; see `Process` for `auto_ack`.

        A missing program is GuestError ENOENT, one that can't be executed EACCES. `timeout` is
        for the start; if it runs out, or the call is cancelled, the process is killed.
        """
        _check_proc(proc)
        fields = messages.exec_fields(proc, command)
        stream = await self._open(Service.EXEC, fields, within=timeout, hold=not auto_ack)
        try:
            what = f"run {command.argv[0]}"
            reply = await stream.answer(what, path=command.argv[0], within=timeout)
        except BaseException:  # nobody has a handle to it
            stream.close([(Tag.FLAGS, c.CLOSE_KILL)])
            raise
        return Process(stream, proc, reply, auto_ack=auto_ack)

    async def attach(
        self, proc: str, *, stdout_seen: int = 0, stderr_seen: int = 0, auto_ack: bool = True
    ) -> Process:
        """Go on with a process after a lost connection; output goes on behind what was seen."""
        _check_proc(proc)
        fields: list[Field] = [(Tag.PROC, proc)]
        fields += [(Tag.STDOUT_SEEN, stdout_seen), (Tag.STDERR_SEEN, stderr_seen)]
        stream = await self._open(Service.ATTACH, fields, within=CALL_TIMEOUT, hold=not auto_ack)
        try:
            reply = await stream.answer(f"attach to process {proc}", within=CALL_TIMEOUT)
        except BaseException:
            stream.close()
            raise
        return Process(
            stream,
            proc,
            reply,
            auto_ack=auto_ack,
            stdout_seen=stdout_seen,
            stderr_seen=stderr_seen,
        )

    async def procs(self) -> list[ProcInfo]:
        stream, reply = await self._ask(Service.PROCS, (), "list processes")
        return stream.judge(
            lambda: [messages.proc_info(entry) for entry in reply.nested(Tag.ENTRY)]
        )

    async def kill(self, proc: str, signal: int) -> None:
        """Send a signal to the process group of `proc`, attached or not."""
        _check_proc(proc)
        fields: list[Field] = [(Tag.PROC, proc), (Tag.SIGNAL, signal)]
        await self._ask(Service.KILL, fields, f"signal process {proc}")

    async def metrics(self) -> dict[str, int]:
        stream, reply = await self._ask(Service.METRICS, (), "read metrics")
        return stream.judge(lambda: messages.metrics(reply))

    async def tcp_connect(self, port: int, host: str = "127.0.0.1") -> TcpStream:
        """Connect from inside the guest."""
        where = f"{host}:{port}"
        fields: list[Field] = [(Tag.PORT, port), (Tag.HOST, host)]
        stream, _ = await self._call(Service.TCP_CONNECT, fields, f"connect to {where}")
        return TcpStream(stream, where)

    async def sync_fs(self) -> None:
        """sync(2): returns when everything written is on the disk."""
        await self._ask(Service.SYNC_FS, (), "sync")

    async def quiesce(self, *, timeout: float = CALL_TIMEOUT) -> None:
        """Make the agent forget this connection, to be saved with nothing under way.

        Afterwards only `aclose` makes sense; it is left to the caller, so that the guest does not
        see a hang-up before it has been paused.
        """
        stream = await self._open(Service.QUIESCE, (), within=timeout, hold=True)
        try:
            await stream.answer("quiesce", within=timeout)
            await stream.closing_fields(within=timeout)
        except BaseException:
            stream.close()
            raise
        # No CLOSE from us: the agent scans for a SYNC already.
        self._cancel_greeting()
        self._link.leave(AgentError("the guest agent was quiesced: connect again"))

    async def shutdown(self, reboot: bool = False, *, timeout: float = 10.0) -> None:
        """Have the guest power off. Returns when the agent has agreed; `wait_closed` says when
        the VM is gone. Processes get TERM, and KILL after `timeout`."""
        fields: list[Field] = [(Tag.FLAGS, c.SHUTDOWN_REBOOT if reboot else 0)]
        fields.append((Tag.TIMEOUT_MS, messages.milliseconds(timeout)))
        await self._ask(Service.SHUTDOWN, fields, "shut down")


def _check_proc(proc: str) -> None:
    if not 1 <= len(proc.encode()) <= _MAX_PROC:
        raise UsageError(f"a process's name has 1 to {_MAX_PROC} bytes, not {proc!r}")
