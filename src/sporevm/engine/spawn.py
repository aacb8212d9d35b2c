"""Waiting for a guest that may die while we wait."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from sporevm.errors import AgentError
from sporevm.vmm.base import Machine

T = TypeVar("T")


async def until_dead(
    machine: Machine, work: Coroutine[Any, Any, T], seconds: float, what: str
) -> T:
    """The result of `work`, unless the VMM ends first (VmmError) or time runs out (AgentError)."""
    task = asyncio.ensure_future(work)
    death = asyncio.ensure_future(machine.wait())
    try:
        done, _ = await asyncio.wait(
            {task, death}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED
        )
        if task in done:
            error = task.exception()
            if isinstance(error, AgentError) and await _died_too(death):
                raise machine.failure(what) from error
            return task.result()
        if death in done:
            raise machine.failure(what)
        raise AgentError(
            f"the guest did not {what} within {seconds:g} s",
            hint=f"its console is in {machine.console}",
        )
    finally:
        for pending in (task, death):
            pending.cancel()
        await asyncio.gather(task, death, return_exceptions=True)


async def _died_too(death: asyncio.Future[int | None]) -> bool:
    """A channel that breaks is usually the first sign of a dead VMM: give the pidfd a moment."""
    done, _ = await asyncio.wait({death}, timeout=1.0)
    return bool(done)
