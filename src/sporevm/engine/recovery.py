"""After a restart: adopt the sandboxes that live, free what is left of those that do not.

All of it is found from disk: records were written before the resources they speak of.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from contextlib import AsyncExitStack

from sporevm._sys.fs import remove_tree
from sporevm._sys.process import Identity, adopt
from sporevm._sys.scan import holding_argument
from sporevm.agent import Agent
from sporevm.engine.box import MAIN, Box, Main
from sporevm.engine.keeper import Keeper
from sporevm.engine.output import OutputLog
from sporevm.engine.states import transition
from sporevm.errors import EngineError, GuestError, NotFound, SporeError, VmmError
from sporevm.spec import State, parse_arch
from sporevm.store.layout import Layout
from sporevm.store.records import Records, SandboxRecord
from sporevm.vmm.base import Shape
from sporevm.vmm.registry import choose

log = logging.getLogger(__name__)

ADOPT_DEADLINE = 15.0


async def recover(layout: Layout, records: Records, keeper: Keeper) -> None:
    known = records.all()
    await asyncio.gather(*(_one(layout, records, keeper, record) for record in known))
    ids = {record.id for record in known}
    for path in layout.sandboxes.iterdir():
        if path.name not in ids:
            log.info("removing what is left of %s", path.name)
            await _end_processes(str(path))
            remove_tree(path)


async def _one(layout: Layout, records: Records, keeper: Keeper, record: SandboxRecord) -> None:
    if not record.alive:
        return
    try:
        if record.state == State.CREATING:
            raise VmmError("the engine ended while it was being created")
        if record.bound:
            raise EngineError("the engine died, and with it the client it ran for")
        keeper.keep(await _adopt(layout, record))
        log.info("%s: adopted, pid %s", record.name, record.pid)
    except SporeError as error:
        await _give_up(layout, records, keeper, record, error)


async def _adopt(layout: Layout, record: SandboxRecord) -> Box:
    if record.pid is None or record.pid_start is None:
        raise VmmError("its VMM is unknown")
    files = layout.sandbox(record.id)
    shape = _shape(record)
    vmm = await choose("auto", shape.arch, layout)
    async with AsyncExitStack() as stack:
        machine = await vmm.adopt(
            Identity(record.pid, record.pid_start), shape, files.vm, files.vmm_log
        )
        stack.push_async_callback(machine.kill)
        agent = await Agent.connect(machine.channel, timeout=ADOPT_DEADLINE, flush=True)
        stack.push_async_callback(agent.aclose)
        async with asyncio.timeout(ADOPT_DEADLINE):
            await agent.ready()
            box = Box(record, files, machine, agent)
            if record.command:
                box.main = await _reattach(box)
        stack.pop_all()
        return box
    raise AssertionError("unreachable")


async def _reattach(box: Box) -> Main:
    """The main process goes on exactly behind what its log already has."""
    output = OutputLog(box.files.output)
    try:
        process = await box.agent.attach(
            MAIN, stdout_seen=output.seen[1], stderr_seen=output.seen[2], auto_ack=False
        )
    except GuestError as error:
        output.close()
        raise VmmError(f"its main process is gone: {error.message}") from error
    return Main(process, output)


async def _give_up(
    layout: Layout,
    records: Records,
    keeper: Keeper,
    record: SandboxRecord,
    error: SporeError,
) -> None:
    log.warning("%s: lost: %s", record.name, error)
    files = layout.sandbox(record.id)
    await _end_processes(str(files.vm))
    half_made = record.state == State.CREATING
    record.error = error.message
    record.finished = time.time()
    record.pid = record.pid_start = None
    transition(record, State.FAILED)
    records.update(record)
    if half_made or record.auto_remove:
        keeper.forget(record)


async def _end_processes(directory: str) -> None:
    """End VMMs that were started for this directory, which holds an id no other program has."""
    for identity in holding_argument(directory):
        with contextlib.suppress(NotFound):  # it ended by itself
            await adopt(identity).terminate(grace=0)


def _shape(record: SandboxRecord) -> Shape:
    """The shape as it was written down; a field it lacks was not there in that version."""
    data = dict(record.shape)
    try:
        return Shape(
            arch=parse_arch(str(data["arch"])),
            cpus=int(str(data["cpus"])),
            memory_mib=int(str(data["memory_mib"])),
            vmm=str(data["vmm"]),
            accelerator=str(data["accelerator"]),
            cpu_model=str(data["cpu_model"]),
            machine=str(data["machine"]),
            kernel=str(data["kernel"]),
        )
    except KeyError as error:
        raise VmmError(f"its record lacks {error}") from error
