"""Sandboxes: create, look, end."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Any

from aiohttp import web
from msgspec import Meta, Struct

from sporevm.api import convert, progress
from sporevm.api.answers import JSON_LINES, json_lines
from sporevm.api.models import (
    CreateBody,
    Created,
    LogRecord,
    MetricsView,
    ProgressLine,
    Removed,
    SandboxView,
    SignalBody,
    StopBody,
)
from sporevm.api.port import ProgressFn
from sporevm.api.router import Call, NoBody, NoQuery, Route

Plain = Call[NoBody, NoQuery]


class RemoveQuery(Struct, forbid_unknown_fields=True):
    force: bool = False


class LogQuery(Struct, forbid_unknown_fields=True):
    follow: bool = False
    tail: Annotated[int, Meta(ge=0, le=1 << 31)] | None = None


async def create(call: Call[CreateBody, NoQuery]) -> Any:
    spec = convert.spec(call.body)
    command = convert.command(call.body.command) if call.body.command else None
    lines = progress.wanted(call.request)

    async def work(report: ProgressFn) -> SandboxView | Created:
        record = await call.app.engine.create(spec, command, progress=report)
        view = convert.sandbox_view(record)
        return Created(sandbox=view) if lines else view

    async def undo(made: Created | SandboxView) -> None:
        view = made.sandbox if isinstance(made, Created) else made
        await call.app.engine.remove(view.id, force=True)

    return await progress.answer(call.request, work, undo)


async def list_all(call: Plain) -> list[SandboxView]:
    return [convert.sandbox_view(record) for record in call.app.engine.all()]


async def inspect(call: Plain) -> SandboxView:
    return convert.sandbox_view(call.app.engine.get(call.ref))


async def remove(call: Call[NoBody, RemoveQuery]) -> Removed:
    sandbox_id = call.app.engine.get(call.ref).id
    await call.app.to_the_end(call.app.engine.remove(sandbox_id, force=call.query.force))
    return Removed(removed=sandbox_id)


async def stop(call: Call[StopBody, NoQuery]) -> SandboxView:
    work = call.app.engine.stop(call.ref, call.body.timeout)
    return convert.sandbox_view(await call.app.to_the_end(work))


async def kill(call: Call[SignalBody, NoQuery]) -> SandboxView:
    work = call.app.engine.kill(call.ref, call.body.signal)
    return convert.sandbox_view(await call.app.to_the_end(work))


async def wait(call: Plain) -> SandboxView:
    return convert.sandbox_view(await call.app.engine.wait(call.ref))


async def metrics(call: Plain) -> MetricsView:
    agent = await call.app.engine.agent(call.ref)
    return MetricsView(values=dict(await agent.metrics()))


async def logs(call: Call[NoBody, LogQuery]) -> web.StreamResponse:
    sandbox_id = call.app.engine.get(call.ref).id
    source = call.app.engine.logs(sandbox_id, follow=call.query.follow, tail=call.query.tail)

    async def lines() -> AsyncIterator[LogRecord]:
        async for piece in source:
            yield LogRecord(time=piece.time, channel=piece.channel, data=piece.data)

    return await json_lines(call.request, lines())


ROUTES: list[Route[Any, Any]] = [
    Route(
        "POST", "/v1/sandboxes", create, "Create a sandbox, and start its command if it has one",
        CreateBody, NoQuery, SandboxView, status=201, server_messages=ProgressLine,
    ),
    Route(
        "GET", "/v1/sandboxes", list_all, "All sandboxes",
        NoBody, NoQuery, list[SandboxView],
    ),
    Route(
        "GET", "/v1/sandboxes/{ref}", inspect, "One sandbox, by id, start of its id, or name",
        NoBody, NoQuery, SandboxView,
    ),
    Route(
        "DELETE", "/v1/sandboxes/{ref}", remove, "Remove a sandbox and all it has on disk",
        NoBody, RemoveQuery, Removed,
    ),
    Route(
        "POST", "/v1/sandboxes/{ref}/stop", stop, "Ask it to end; end it after the timeout",
        StopBody, NoQuery, SandboxView,
    ),
    Route(
        "POST", "/v1/sandboxes/{ref}/kill", kill, "Signal its main process, or end it now",
        SignalBody, NoQuery, SandboxView,
    ),
    Route(
        "POST", "/v1/sandboxes/{ref}/wait", wait, "Answer when it is not running",
        NoBody, NoQuery, SandboxView,
    ),
    Route(
        "GET", "/v1/sandboxes/{ref}/metrics", metrics, "What the guest says of itself",
        NoBody, NoQuery, MetricsView,
    ),
    Route(
        "GET", "/v1/sandboxes/{ref}/logs", logs, "Output of the main process",
        NoBody, LogQuery, JSON_LINES, server_messages=LogRecord,
    ),
]  # fmt: skip
