"""A live sandbox: its VMM, its agent, its main process, and the task that watches them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from sporevm.agent import Agent, Exit, Process
from sporevm.engine.output import LogLine, OutputLog
from sporevm.errors import AgentError, ProtocolViolation, SporeError, StorageError
from sporevm.store.layout import SandboxFiles
from sporevm.store.records import SandboxRecord
from sporevm.vmm.base import Machine

log = logging.getLogger(__name__)

#: Name of a sandbox's first process in the guest protocol.
MAIN = "main"


class Main:
    """The main process: what it prints goes to the sandbox's log, and from there to any reader."""

    def __init__(self, process: Process, output: OutputLog) -> None:
        self.process = process
        self.output = output
        self.exit: asyncio.Task[Exit] = asyncio.create_task(self._pump(), name="main output")

    async def _pump(self) -> Exit:
        try:
            while (item := await self.process.read()) is not None:
                self.output.append(*item)
                self.process.ack()
            return await self.process.wait()
        except StorageError as error:
            # The output can't be kept. Stopping to read would hang the process for ever.
            log.error("%s; its process is ended", error)
            await self.process.close(kill=True)
            raise
        finally:
            self.output.end()

    async def read(self) -> AsyncIterator[LogLine]:
        async for line in self.output.read(follow=True):
            yield line


@dataclass(slots=True)
class Box:
    """Everything the engine holds of a sandbox whose VMM is alive."""

    record: SandboxRecord
    files: SandboxFiles
    machine: Machine
    agent: Agent
    main: Main | None = None
    watcher: asyncio.Task[None] | None = None
    #: Set when the engine itself ends the VM, so that the watcher does not call it a failure.
    ending: bool = False
    #: Resolved with the record when the sandbox is not alive any more.
    ended: asyncio.Future[SandboxRecord] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )
    ttl: asyncio.TimerHandle | None = None
    procs: int = 0

    def next_proc(self, token: str) -> str:
        self.procs += 1
        return f"x{token}-{self.procs}"


@dataclass(frozen=True, slots=True)
class End:
    """Why a sandbox is not alive any more."""

    exit_code: int | None = None
    error: SporeError | None = None


async def first_end(box: Box) -> End:
    """Wait until the main process ends, the VMM dies, or the guest breaks the channel."""
    death = asyncio.ensure_future(box.machine.wait())
    silence = asyncio.ensure_future(box.agent.wait_closed())
    waiting: set[asyncio.Future[object]] = {death, silence}  # type: ignore[arg-type]
    if box.main is not None:
        waiting.add(box.main.exit)  # type: ignore[arg-type]
    try:
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        if box.main is not None and box.main.exit.done() and not box.main.exit.cancelled():
            error = box.main.exit.exception()
            if error is None:
                status = box.main.exit.result()
                return End(exit_code=exit_code(status))
            if not isinstance(error, AgentError):
                return End(error=_as_spore_error(error))
        if not death.done():
            # The channel broke first. A dead VMM shows within moments; else the guest did it.
            await asyncio.wait({death}, timeout=1.0)
        if death.done():
            if death.result() == 0:
                return End()
            return End(error=_as_spore_error(box.machine.failure("run")))
        reason = silence.result() if silence.done() else None
        if isinstance(reason, ProtocolViolation):
            reason = ProtocolViolation(f"the guest broke the protocol: {reason.message}")
        return End(error=_as_spore_error(reason or AgentError("the guest closed its channel")))
    finally:
        for task in (death, silence):
            task.cancel()
        await asyncio.gather(death, silence, return_exceptions=True)


def exit_code(status: Exit) -> int:
    """As a shell sees it: 128 + N for a signal, 124 for a time-out."""
    if status.timed_out:
        return 124
    return status.status


def _as_spore_error(error: BaseException) -> SporeError:
    return error if isinstance(error, SporeError) else AgentError(f"unexpected: {error!r}")
