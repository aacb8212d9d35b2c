"""The engine itself: version, state, stop, events, and the description of the API."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from aiohttp import web

from sporevm._version import __version__
from sporevm.api.answers import JSON, JSON_LINES, json_lines
from sporevm.api.models import API_VERSION, EngineView, EventRecord, VersionView
from sporevm.api.router import Call, NoBody, NoQuery, Route
from sporevm.spec import State

Plain = Call[NoBody, NoQuery]


async def version(call: Plain) -> VersionView:
    return VersionView(version=__version__, api=API_VERSION, pid=os.getpid())


async def health(call: Plain) -> VersionView:
    if call.app.ready.is_set() and call.app.failure is not None:
        raise call.app.failure
    return await version(call)


async def engine(call: Plain) -> EngineView:
    records = call.app.engine.all()
    return EngineView(
        version=__version__,
        pid=os.getpid(),
        home=str(call.app.engine.layout.home),
        started=call.app.started,
        sandboxes=len(records),
        running=sum(record.state == State.RUNNING for record in records),
        rss_bytes=_rss_bytes(),
    )


def _rss_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])  # noqa: ASYNC240 - no disk in it
    return pages * os.sysconf("SC_PAGE_SIZE")


async def stop(call: Plain) -> VersionView:
    call.app.stopping.set()
    return await version(call)


async def events(call: Plain) -> web.StreamResponse:
    return await json_lines(call.request, call.app.engine.events())


async def description(call: Plain) -> Any:
    from sporevm.api.openapi import document

    return document()


ROUTES: list[Route[Any, Any]] = [
    Route(
        "GET", "/v1/version", version, "Version of the engine and of its API",
        NoBody, NoQuery, VersionView, needs_engine=False,
    ),
    Route(
        "GET", "/healthz", health, "Whether the engine serves",
        NoBody, NoQuery, VersionView, needs_engine=False,
    ),
    Route("GET", "/v1/engine", engine, "State of the engine", NoBody, NoQuery, EngineView),
    Route(
        "POST", "/v1/engine/stop", stop, "End the engine; sandboxes go on running",
        NoBody, NoQuery, VersionView, needs_engine=False,
    ),
    Route(
        "GET", "/v1/events", events, "What happens to sandboxes, as it happens",
        NoBody, NoQuery, JSON_LINES, server_messages=EventRecord,
    ),
    Route(
        "GET", "/openapi.json", description, "This description",
        NoBody, NoQuery, JSON, needs_engine=False,
    ),
]  # fmt: skip
