"""Long POSTs: one JSON answer, or progress as JSON lines if the client accepts those."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

from aiohttp import hdrs, web

from sporevm.api.answers import JSON_LINES, json_lines
from sporevm.api.models import Progress
from sporevm.api.port import ProgressFn

Work = Callable[[ProgressFn], Awaitable[Any]]
Undo = Callable[[Any], Awaitable[None]]


def wanted(request: web.BaseRequest) -> bool:
    return JSON_LINES in request.headers.get(hdrs.ACCEPT, "")


def ignore(step: str, done: float, total: float) -> None:
    """For a client that did not ask."""


async def steps(work: Work, undo: Undo | None = None) -> AsyncGenerator[Any, None]:
    """Progress while `work` runs, then its result.

    Closing the iterator before it gave the result cancels the work, or undoes it if it is done.
    A client that reads slowly gets the newest step: progress is never queued.
    """
    delivered = False
    latest: list[Progress] = []
    changed = asyncio.Event()

    def report(step: str, done: float, total: float) -> None:
        latest[:] = [Progress(step=step, done=done, total=total)]
        changed.set()

    task = asyncio.ensure_future(work(report))
    task.add_done_callback(lambda _: changed.set())
    try:
        while not task.done():
            await changed.wait()
            changed.clear()
            while latest:
                yield latest.pop()
        result = await task
        delivered = True
        yield result
    finally:
        if not delivered:
            task.cancel()
            [result] = await asyncio.gather(task, return_exceptions=True)
            if undo is not None and not isinstance(result, BaseException):
                await undo(result)


async def answer(request: web.BaseRequest, work: Work, undo: Undo | None = None) -> Any:
    """The work's result as the answer, or as the last of the lines."""
    if wanted(request):
        async with aclosing(steps(work, undo)) as lines:
            return await json_lines(request, lines)
    return await work(ignore)
