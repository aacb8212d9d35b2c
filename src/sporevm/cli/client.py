"""Calls of the engine for the verbs that need no terminal: one event loop for each verb."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from sporevm.cli.context import Context
from sporevm.cli.report import report
from sporevm.errors import SporeError
from sporevm.sdk._client import Client as Client

T = TypeVar("T")


def call(ctx: Context, work: Callable[[Client], Awaitable[T]], *, start: bool = True) -> T:
    """The result of `work`, done with a connected client. The engine is started if need be."""

    async def connected() -> T:
        async with Client(ctx.home, start=start) as client:
            return await work(client)

    return asyncio.run(connected())


def each(
    ctx: Context,
    refs: Sequence[str],
    work: Callable[[Client, str], Awaitable[T]],
    show: Callable[[str, T], None],
) -> int:
    """Do `work` for all `refs` at once and show each result, in order.

    Each failure is reported by itself; the exit status is that of the first one.
    """

    async def attempt(client: Client, ref: str) -> T | SporeError:
        try:
            return await work(client, ref)
        except SporeError as error:
            return error

    async def everything(client: Client) -> list[T | SporeError]:
        return await asyncio.gather(*(attempt(client, ref) for ref in dict.fromkeys(refs)))

    status = 0
    results = call(ctx, everything)
    for ref, result in zip(dict.fromkeys(refs), results, strict=True):
        if isinstance(result, SporeError):
            status = status or report(result, as_json=ctx.json)
        else:
            show(ref, result)
    return status
