"""Keeps the live sandboxes: watches each, ends each, and frees what it held."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator

from sporevm._sys.fs import remove_tree
from sporevm.engine.box import Box, End, exit_code, first_end
from sporevm.engine.states import transition
from sporevm.errors import AgentError, SporeError
from sporevm.spec import State
from sporevm.store.layout import Layout
from sporevm.store.records import Records, SandboxRecord

log = logging.getLogger(__name__)

#: After SHUTDOWN was accepted the guest still unmounts and powers off.
_POWER_OFF = 5.0
_EVENTS_KEPT = 1024
#: A guest may write to its console without end: how often that is looked after, and its limit.
_CONSOLE_SECONDS = 5.0
_CONSOLE_BYTES = 4 << 20


class Keeper:
    def __init__(self, layout: Layout, records: Records) -> None:
        self._layout = layout
        self._records = records
        self._boxes: dict[str, Box] = {}
        self._listeners: set[asyncio.Queue[dict[str, object]]] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._chores: asyncio.TimerHandle | None = None

    def box(self, sandbox_id: str) -> Box | None:
        return self._boxes.get(sandbox_id)

    def keep(self, box: Box) -> None:
        """From here on the box is watched, and ended when its time is over."""
        self._boxes[box.record.id] = box
        box.watcher = asyncio.create_task(self._watch(box), name=f"watch {box.record.name}")
        if box.record.ttl is not None:
            left = max(0.0, box.record.created + box.record.ttl - time.time())
            loop = asyncio.get_running_loop()
            box.ttl = loop.call_later(left, self._out_of_time, box)
        if self._chores is None:
            self._chores = asyncio.get_running_loop().call_later(_CONSOLE_SECONDS, self._trim)
        self._emit("start", box.record)

    def _trim(self) -> None:
        """Runs while there are boxes; an engine without any has no timer."""
        self._chores = None
        for box in self._boxes.values():
            box.machine.trim_console(_CONSOLE_BYTES)
        if self._boxes:
            self._chores = asyncio.get_running_loop().call_later(_CONSOLE_SECONDS, self._trim)

    async def leave(self) -> None:
        """Let go of every box without ending it."""
        if self._chores is not None:
            self._chores.cancel()
        for task in list(self._tasks):
            task.cancel()
        for box in list(self._boxes.values()):
            box.ending = True
            if box.ttl is not None:
                box.ttl.cancel()
            if box.watcher is not None:
                box.watcher.cancel()
                await asyncio.gather(box.watcher, return_exceptions=True)
            await self._close(box)
        self._boxes.clear()

    async def stop(self, box: Box, timeout: float | None) -> SandboxRecord:
        """End the VM: softly within `timeout`, or at once if it is None."""
        if box.ending:
            return await asyncio.shield(box.ended)
        box.ending = True
        if timeout is not None:
            await self._soften(box, timeout)
        code = _exit_code_so_far(box)
        await self._finish(box, End(exit_code=code if code is not None else 137))
        return box.record

    def forget(self, record: SandboxRecord) -> None:
        """Remove a sandbox that is not alive: its files first, then its record."""
        remove_tree(self._layout.sandbox(record.id).root)
        transition(record, State.REMOVED)
        self._records.delete(record.id)
        self._emit("remove", record)

    async def events(self) -> AsyncIterator[dict[str, object]]:
        queue: asyncio.Queue[dict[str, object]] = asyncio.Queue(_EVENTS_KEPT)
        self._listeners.add(queue)
        try:
            while True:
                yield await queue.get()
        finally:
            self._listeners.discard(queue)

    async def _soften(self, box: Box, timeout: float) -> None:
        """Ask the guest to end and power off; whatever goes wrong, the VM is killed next."""
        try:
            async with asyncio.timeout(timeout + _POWER_OFF):
                await box.agent.shutdown(timeout=timeout)
                await box.machine.wait()
        except (TimeoutError, AgentError) as error:
            log.info("%s: no soft end: %s", box.record.name, error)

    async def _watch(self, box: Box) -> None:
        end = await first_end(box)
        if box.ending:
            return
        box.ending = True
        await self._finish(box, end)

    async def _finish(self, box: Box, end: End) -> None:
        """Free everything a box holds and say how it ended. Runs once for each box."""
        record = box.record
        if box.ttl is not None:
            box.ttl.cancel()
        if end.error is None and end.exit_code is not None and not record.auto_remove:
            # Its disk is kept, so what the guest still holds in memory has to reach it.
            await self._sync(box)
        await box.machine.kill()
        await self._close(box)
        self._boxes.pop(record.id, None)
        record.finished = time.time()
        record.pid = record.pid_start = None
        record.exit_code = end.exit_code
        if end.error is not None:
            record.error = end.error.message
            log.warning("%s: failed: %s", record.name, end.error)
        transition(record, State.STOPPED if end.error is None else State.FAILED)
        self._records.update(record)
        self._emit("fail" if end.error else "stop", record)
        if record.auto_remove:
            self.forget(record)
        if not box.ended.done():
            box.ended.set_result(record)

    async def _sync(self, box: Box) -> None:
        try:
            async with asyncio.timeout(_POWER_OFF):
                await box.agent.sync_fs()
        except (TimeoutError, SporeError) as error:
            log.info("%s: not synced: %s", box.record.name, error)

    async def _close(self, box: Box) -> None:
        await box.agent.aclose()
        if box.main is not None:
            if not box.main.exit.done():
                box.main.exit.cancel()
            await asyncio.gather(box.main.exit, return_exceptions=True)
            box.main.output.close()

    def _out_of_time(self, box: Box) -> None:
        async def end() -> None:
            log.info("%s: its time to live is over", box.record.name)
            await self.stop(box, None)
            if box.record.state != State.REMOVED:
                self.forget(box.record)

        task = asyncio.create_task(end(), name=f"ttl {box.record.name}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _emit(self, kind: str, record: SandboxRecord) -> None:
        event: dict[str, object] = {
            "time": time.time(),
            "type": kind,
            "id": record.id,
            "name": record.name,
            "state": record.state,
            "exit_code": record.exit_code,
            "error": record.error,
        }
        for queue in self._listeners:
            if queue.full():
                queue.get_nowait()
            queue.put_nowait(event)


def _exit_code_so_far(box: Box) -> int | None:
    main = box.main
    if main is None:
        return 0
    if main.exit.done() and not main.exit.cancelled() and main.exit.exception() is None:
        return exit_code(main.exit.result())
    return None
