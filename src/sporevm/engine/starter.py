"""From a plan to a running sandbox: each acquisition undoes itself if a later one fails."""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from contextlib import AsyncExitStack
from dataclasses import replace

from sporevm._sys.fs import remove_tree, sparse_copy, writing
from sporevm.agent import Agent, Configure, Process
from sporevm.engine.box import MAIN, Box, Main
from sporevm.engine.output import OutputLog
from sporevm.engine.planner import Plan
from sporevm.engine.spawn import until_dead
from sporevm.engine.states import transition
from sporevm.engine.templates import ProgressFn, Template, Templates, root_mounts
from sporevm.image.scratch import ensure_blank
from sporevm.spec import DRIVE_IMAGE, DRIVE_SCRATCH, Command, State
from sporevm.store.layout import Layout, SandboxFiles
from sporevm.store.records import Records, SandboxRecord
from sporevm.vmm.base import Drive, Machine, Restore

START_DEADLINE = 60.0
_ENTROPY_BYTES = 64


class Clock:
    """Milliseconds of each step, for `inspect` and the benchmark."""

    def __init__(self) -> None:
        self._last = self._start = time.perf_counter()
        self.steps: dict[str, float] = {}

    def step(self, name: str) -> None:
        now = time.perf_counter()
        self.steps[name] = round((now - self._last) * 1e3, 2)
        self._last = now

    def total(self) -> None:
        self.steps["total"] = round((time.perf_counter() - self._start) * 1e3, 2)


class Starter:
    def __init__(self, layout: Layout, records: Records, templates: Templates) -> None:
        self._layout = layout
        self._records = records
        self._templates = templates

    async def start(self, plan: Plan, record: SandboxRecord, progress: ProgressFn) -> Box:
        """Restore a template for `record` (which is in the store, `creating`) and configure it."""
        clock = Clock()
        template = await self._templates.obtain(plan.wanted, progress)
        clock.step("template")
        async with AsyncExitStack() as stack:
            files = self._directory(stack, record)
            await self._scratch(plan, template, files)
            clock.step("disk")
            machine = await self._restore(plan, template, files)
            stack.push_async_callback(machine.kill)
            record.pid, record.pid_start = machine.identity.pid, machine.identity.start_time
            record.confinement = machine.confinement
            record.template = template.manifest.key
            record.shape = plan.wanted.shape.as_dict()
            self._records.update(record)
            clock.step("spawn")
            agent = await Agent.connect(machine.channel, timeout=START_DEADLINE)
            stack.push_async_callback(agent.aclose)
            box = Box(record, files, machine, agent)
            process = await until_dead(
                machine, self._configure(plan, template, record, agent), START_DEADLINE, "start"
            )
            clock.step("guest")
            if process is not None:
                box.main = Main(process, OutputLog(files.output))
            record.started = time.time()
            clock.total()
            record.timings = clock.steps
            transition(record, State.RUNNING)
            self._records.update(record)
            stack.pop_all()
        if not template.has_image:
            self._templates.derive_behind(plan.wanted)
        return box

    def _directory(self, stack: AsyncExitStack, record: SandboxRecord) -> SandboxFiles:
        files = self._layout.sandbox(record.id)
        stack.callback(remove_tree, files.root)
        with writing(files.root):
            files.root.mkdir(mode=0o711)
            files.vm.mkdir(mode=0o700)
        return files

    async def _scratch(self, plan: Plan, template: Template, files: SandboxFiles) -> None:
        if template.has_image:
            source = template.files.scratch
        else:
            source = await ensure_blank(self._layout, plan.spec.disk_bytes)
        sparse_copy(source, files.scratch)

    async def _restore(self, plan: Plan, template: Template, files: SandboxFiles) -> Machine:
        return await plan.wanted.vmm.restore(
            Restore(
                shape=plan.wanted.shape,
                run_dir=files.vm,
                log=files.vmm_log,
                mem=template.files.mem,
                state=template.files.state,
                drives={
                    DRIVE_IMAGE: Drive(plan.wanted.image.disk, read_only=True),
                    DRIVE_SCRATCH: Drive(files.scratch, read_only=False),
                },
            )
        )

    async def _configure(
        self, plan: Plan, template: Template, record: SandboxRecord, agent: Agent
    ) -> Process | None:
        """Give the guest its identity, and its main process in the same breath."""
        what = identity(record, dict(plan.env))
        if not template.has_image:
            mounts = root_mounts(plan.wanted.image)
            what = replace(what, root=mounts.root, scratch=mounts.scratch)
        if plan.command is None:
            await agent.configure(what)
            return None
        command = with_defaults(plan.command, record)
        async with asyncio.TaskGroup() as group:
            group.create_task(agent.configure(what))
            running = group.create_task(agent.exec(MAIN, command, auto_ack=False))
        return running.result()


def identity(record: SandboxRecord, env: dict[str, str]) -> Configure:
    """What makes one restored guest differ from every other."""
    return Configure(
        clock_ns=time.time_ns(),
        entropy=os.urandom(_ENTROPY_BYTES),
        hostname=record.hostname or record.name,
        machine_id=secrets.token_hex(16),
        env=env,
    )


def with_defaults(command: Command, record: SandboxRecord) -> Command:
    """Fill what a command leaves open with its sandbox's defaults."""
    return replace(command, cwd=command.cwd or record.workdir, user=command.user or record.user)
