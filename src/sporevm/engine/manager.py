"""`Engine`: the one object the API serves. It owns every sandbox of one SPORE_HOME."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncIterator

from sporevm._sys.fs import make_directory, remove_tree
from sporevm.agent import Agent, Process
from sporevm.engine.box import Box, Main
from sporevm.engine.keeper import Keeper
from sporevm.engine.names import made_up_name
from sporevm.engine.output import LogLine, OutputLog
from sporevm.engine.planner import Plan, Planner
from sporevm.engine.recovery import recover
from sporevm.engine.starter import Starter, with_defaults
from sporevm.engine.states import require
from sporevm.engine.stock import Stock
from sporevm.engine.templates import ProgressFn, Templates, workspace
from sporevm.errors import Conflict, SporeError, StateError
from sporevm.image.progress import silent
from sporevm.spec import Command, SandboxSpec, State, new_sandbox_id
from sporevm.store.layout import Layout
from sporevm.store.records import Records, SandboxRecord

log = logging.getLogger(__name__)


class Engine:
    """Create, find, use and end sandboxes. One per home: the caller holds the home's lock."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.started = time.time()
        layout.check()
        for path in (layout.home, layout.sandboxes):
            # The VMM's own user has to get through to its directory, and sees nothing on the way.
            make_directory(path, mode=0o711)
        for path in (layout.templates, layout.cache, layout.images):
            make_directory(path)
        remove_tree(workspace(layout))
        make_directory(workspace(layout), mode=0o711)
        self._records = Records(layout.db)
        self._templates = Templates(layout)
        self._planner = Planner(layout)
        self._starter = Starter(layout, self._records, self._templates)
        self.stock = Stock(layout, self._records, self._templates, self._planner)
        self._keeper = Keeper(layout, self._records)

    async def start(self) -> None:
        """Take charge of what an earlier engine left: adopt the living, free the dead."""
        await recover(self.layout, self._records, self._keeper)

    async def close(self) -> None:
        """Leave: sandboxes go on running and are adopted by the next engine."""
        await self._templates.close()
        await self._keeper.leave()
        self._records.close()

    # -- sandboxes ------------------------------------------------------------------------------

    async def create(
        self,
        spec: SandboxSpec,
        command: Command | None = None,
        *,
        progress: ProgressFn = silent,
    ) -> SandboxRecord:
        """Start a sandbox; with a command that is its main process, and its end the sandbox's.

        Raises UsageError, NotFound (image), Conflict (name), SetupError, StorageError, VmmError or
        AgentError; then nothing is left of it.
        """
        plan = await self._planner.plan(spec, command, progress)
        record = self._new_record(plan)
        self._records.insert(record)
        try:
            box = await self._starter.start(plan, record, progress)
        except BaseException as error:
            self._records.delete(record.id)
            if isinstance(error, BaseExceptionGroup):
                raise _first(error) from error
            raise
        self._keeper.keep(box)
        return record

    def all(self) -> list[SandboxRecord]:
        return self._records.all()

    def get(self, ref: str) -> SandboxRecord:
        return self._records.find(ref)

    async def agent(self, ref: str) -> Agent:
        return self._live(ref, "reach").agent

    async def exec(self, ref: str, command: Command) -> Process:
        box = self._live(ref, "run a command in")
        # A token of this engine's own: after a restart the guest still knows the older names.
        proc = box.next_proc(secrets.token_hex(4))
        return await box.agent.exec(proc, with_defaults(command, box.record))

    def main(self, ref: str) -> Main:
        """The main process of a live sandbox, to follow, feed and signal it."""
        box = self._live(ref, "attach to")
        if box.main is None:
            raise StateError(
                f"{box.record.name} has no main process", current="none", required="a command"
            )
        return box.main

    async def stop(self, ref: str, timeout: float) -> SandboxRecord:
        """TERM to every process, KILL after `timeout`, disks synced, VM ended. Idempotent."""
        record = self._records.find(ref)
        require(record, State.RUNNING, State.PAUSED, State.STOPPED, State.FAILED, to="stop")
        box = self._keeper.box(record.id)
        return record if box is None else await self._keeper.stop(box, timeout)

    async def kill(self, ref: str, signal: int | None = None) -> SandboxRecord:
        """End the VM now; or, with a signal, send it to the main process."""
        record = self._records.find(ref)
        require(record, State.RUNNING, State.PAUSED, to="kill")
        box = self._live(ref, "kill")
        if signal is not None and box.main is not None:
            box.main.process.signal(signal)
            return record
        return await self._keeper.stop(box, None)

    async def remove(self, ref: str, *, force: bool = False) -> None:
        record = self._records.find(ref)
        box = self._keeper.box(record.id)
        if record.alive and not force:
            raise Conflict(
                f"{record.name} is {record.state}",
                hint=f"stop it first, or: spore rm -f {record.name}",
            )
        if record.state == State.CREATING:
            raise Conflict(f"{record.name} is being created", hint="wait, or interrupt its start")
        if box is not None:
            await self._keeper.stop(box, None)
        self._keeper.forget(record)

    async def wait(self, ref: str) -> SandboxRecord:
        """Return when the sandbox is not alive any more."""
        record = self._records.find(ref)
        box = self._keeper.box(record.id)
        return record if box is None else await asyncio.shield(box.ended)

    def logs(
        self, ref: str, *, follow: bool = False, tail: int | None = None
    ) -> AsyncIterator[LogLine]:
        record = self._records.find(ref)
        box = self._keeper.box(record.id)
        if box is not None and box.main is not None:
            return box.main.output.read(follow=follow, tail=tail)
        return _finished_output(self.layout, record, tail)

    def events(self) -> AsyncIterator[dict[str, object]]:
        return self._keeper.events()

    # -- inside ---------------------------------------------------------------------------------

    def _live(self, ref: str, to: str) -> Box:
        record = self._records.find(ref)
        require(record, State.RUNNING, to=to)
        box = self._keeper.box(record.id)
        if box is None:
            raise StateError(
                f"cannot {to} {record.name}: it is being taken over by a new engine",
                current=record.state,
                required=State.RUNNING,
            )
        return box

    def _new_record(self, plan: Plan) -> SandboxRecord:
        spec, shape = plan.spec, plan.wanted.shape
        sandbox_id = new_sandbox_id()
        taken = {record.name for record in self._records.all()}
        return SandboxRecord(
            id=sandbox_id,
            name=spec.name or made_up_name(taken),
            state=State.CREATING,
            image=spec.image,
            image_id=plan.wanted.image.id,
            arch=plan.arch.value,
            vmm=shape.vmm,
            accelerator=shape.accelerator,
            cpus=spec.cpus,
            memory_mib=spec.memory_mib,
            disk_bytes=spec.disk_bytes,
            created=time.time(),
            command=list(plan.command.argv) if plan.command else [],
            labels=dict(spec.labels),
            env=dict(spec.env),
            workdir=plan.workdir,
            user=plan.user,
            hostname=spec.hostname,
            ttl=spec.ttl,
            auto_remove=spec.auto_remove,
            bound=spec.bound,
        )


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The error that tells most: one of ours if there is one."""
    ours = group.subgroup(SporeError)
    found: BaseException = ours or group
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    return found


async def _finished_output(
    layout: Layout, record: SandboxRecord, tail: int | None
) -> AsyncIterator[LogLine]:
    path = layout.sandbox(record.id).output
    if not path.exists():
        return
    output = OutputLog(path)
    try:
        async for line in output.read(follow=False, tail=tail):
            yield line
    finally:
        output.close()
