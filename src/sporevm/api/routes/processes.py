"""Processes: run to the end, talk with one, or create a sandbox around one."""

from __future__ import annotations

import asyncio
from contextlib import aclosing, suppress
from dataclasses import replace
from typing import Any

from aiohttp import web

from sporevm.api import convert, progress
from sporevm.api.models import (
    MAX_RUN_OUTPUT,
    ClientMessage,
    ExecStart,
    ProcView,
    Progress,
    RunBody,
    RunResult,
    RunStart,
    Started,
    StreamMessage,
)
from sporevm.api.port import ProcessPort, ProgressFn
from sporevm.api.router import Call, NoBody, NoQuery, Route
from sporevm.api.streams import accept, drain, first_message, refuse, send, serve_process
from sporevm.errors import NotFound, SporeError, StateError, UsageError
from sporevm.store.records import SandboxRecord

Plain = Call[NoBody, NoQuery]
_STDOUT = 1


async def run_to_end(call: Call[RunBody, NoQuery]) -> RunResult:
    """The fast path of `commands.run`: one request, one answer."""
    body = call.body
    body.stdin = body.input is not None
    process = await call.app.engine.exec(call.ref, convert.command(body))
    ended = False
    try:
        result = await _collect(process, body.input)
        ended = True
    finally:
        await call.app.to_the_end(process.close(not ended))
    return result


async def _collect(process: ProcessPort, stdin: bytes | None) -> RunResult:
    outputs = (bytearray(), bytearray())
    total = 0
    feeding = asyncio.ensure_future(_feed(process, stdin)) if stdin is not None else None
    try:
        while (piece := await process.read()) is not None:
            channel, data = piece
            total += len(data)
            if total > MAX_RUN_OUTPUT:
                raise UsageError(
                    f"the command printed more than {MAX_RUN_OUTPUT >> 20} MiB",
                    hint="take the output as it comes: on_stdout=…, or the exec stream",
                )
            outputs[channel != _STDOUT].extend(data)
        end = await process.wait()
    finally:
        if feeding is not None:
            feeding.cancel()
            await asyncio.gather(feeding, return_exceptions=True)
    return RunResult(
        exit_code=end.status,
        signal=end.signal,
        timed_out=end.timed_out,
        stdout=bytes(outputs[0]),
        stderr=bytes(outputs[1]),
    )


async def _feed(process: ProcessPort, data: bytes) -> None:
    """A process that does not read all of its stdin is none of our business."""
    for start in range(0, len(data), 1 << 16):
        await process.write(data[start : start + (1 << 16)])
    process.write_eof()


async def exec_stream(call: Plain) -> web.StreamResponse:
    ws = await accept(call.request)
    try:
        start = await first_message(ws, ExecStart)
        sandbox_id = call.app.engine.get(call.ref).id
        process = await call.app.engine.exec(sandbox_id, convert.command(start.command))
    except SporeError as error:
        await refuse(ws, error)
        return ws
    if start.detach:
        call.app.spawn(drain(process))
        await send(ws, Started(sandbox=sandbox_id, proc=process.proc, pid=process.pid))
        await ws.close()
        return ws
    await _serve(call, ws, sandbox_id, process, stdin=start.command.stdin)
    return ws


async def _serve(
    call: Plain, ws: web.WebSocketResponse, sandbox_id: str, process: ProcessPort, *, stdin: bool
) -> None:
    try:
        await send(ws, Started(sandbox=sandbox_id, proc=process.proc, pid=process.pid))
    except BaseException:
        await call.app.to_the_end(process.close(kill=True))
        raise
    await serve_process(call.app, ws, process, stdin=stdin)


async def run_stream(call: Plain) -> web.StreamResponse:
    ws = await accept(call.request)
    try:
        start = await first_message(ws, RunStart)
        record, process = await _create(call, ws, start)
    except SporeError as error:
        await refuse(ws, error)
        return ws
    try:
        await _serve(call, ws, record.id, process, stdin=start.command.stdin)
    finally:
        await call.app.to_the_end(_end(call, record.id, remove=start.sandbox.auto_remove))
    return ws


Made = tuple[SandboxRecord, ProcessPort]


async def _create(call: Plain, ws: web.WebSocketResponse, start: RunStart) -> Made:
    """Create the sandbox of a run, telling the client how it goes; the client may go meanwhile."""
    if start.sandbox.command is not None:
        raise UsageError("sandbox.command: the command of a run goes beside the sandbox")
    spec = replace(convert.spec(start.sandbox), bound=True)
    command = convert.command(start.command)

    async def work(report: ProgressFn) -> Made:
        record = await call.app.engine.create(spec, command, progress=report)
        # Taken in the same step of the loop: a process that has ended already is still there.
        return record, call.app.engine.main(record.id)

    async def undo(made: Made) -> None:
        await _end(call, made[0].id, remove=True)

    async with aclosing(progress.steps(work, undo)) as items:
        async for item in items:
            if not isinstance(item, Progress):
                made: Made = item
                return made
            await send(ws, item)
    raise AssertionError("the last item is the sandbox")


async def _end(call: Plain, sandbox_id: str, *, remove: bool) -> None:
    """The end of a run. An engine that is told to leave keeps what is not meant to be removed."""
    with suppress(NotFound, StateError):  # its main process has ended: it may be gone already
        if remove:
            await call.app.engine.remove(sandbox_id, force=True)
        elif not call.app.stopping.is_set():
            await call.app.engine.kill(sandbox_id)


async def procs(call: Plain) -> list[ProcView]:
    agent = await call.app.engine.agent(call.ref)
    return [
        ProcView(
            proc=found.proc,
            pid=found.pid,
            ended=found.exit is not None,
            exit_code=found.exit.status if found.exit else None,
            signal=found.exit.signal if found.exit else 0,
        )
        for found in await agent.procs()
    ]


ROUTES: list[Route[Any, Any]] = [
    Route(
        "GET", "/v1/sandboxes/{ref}/processes", procs, "Processes the agent knows",
        NoBody, NoQuery, list[ProcView],
    ),
    Route(
        "POST", "/v1/sandboxes/{ref}/run", run_to_end, "Run a process to its end",
        RunBody, NoQuery, RunResult,
    ),
    Route(
        "GET", "/v1/sandboxes/{ref}/exec", exec_stream, "Start a process and talk with it",
        NoBody, NoQuery, None, client_messages=ClientMessage, server_messages=StreamMessage,
    ),
    Route(
        "GET", "/v1/run", run_stream, "Create a sandbox around a process; it ends with the client",
        NoBody, NoQuery, None, client_messages=ClientMessage, server_messages=StreamMessage,
    ),
]  # fmt: skip
