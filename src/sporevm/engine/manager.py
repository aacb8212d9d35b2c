"""`Engine`: the one object the API serves. It owns every sandbox of one SPORE_HOME."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

from sporevm.agent.client import Agent, Process
from sporevm.spec import Command, SandboxSpec

#: Called with (step, done, total) while a start takes longer than usual.
ProgressFn = Callable[[str, float, float], None]


class Engine:
    async def start(self) -> None: ...
    async def close(self) -> None:
        """Leave: sandboxes go on running and are adopted by the next engine."""
