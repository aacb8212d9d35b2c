"""What every request handler shares."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar

from sporevm.api.port import EnginePort
from sporevm.errors import SporeError

log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(slots=True)
class App:
    engine: EnginePort
    started: float = field(default_factory=time.time)
    #: Set when the engine can serve, or has failed to start (then `failure` says why).
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    failure: SporeError | None = None
    #: Set to end the daemon.
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    #: Work that goes on though its client has gone.
    tasks: set[asyncio.Task[Any]] = field(default_factory=set)

    def spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Run in the background; a failure is logged unless somebody awaits the task first."""
        task = asyncio.ensure_future(work)
        self.tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    async def to_the_end(self, work: Coroutine[Any, Any, T]) -> T:
        """Like `await work`, but a client that goes away does not stop it half-way."""
        return await asyncio.shield(self.spawn(work))

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self.tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.debug("background work ended with %r", error)
