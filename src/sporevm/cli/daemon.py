"""`spore daemon`: the engine, which every other verb starts by itself."""

from __future__ import annotations

import time
from argparse import Namespace
from typing import TYPE_CHECKING

from sporevm.cli import options
from sporevm.cli.client import Client, call
from sporevm.cli.context import Context
from sporevm.cli.output import print_json, size, span
from sporevm.cli.parser import Parser, Verb
from sporevm.errors import NotFound, UsageError

if TYPE_CHECKING:
    from sporevm.api.models import EngineView

NOT_RUNNING = "not running; the next command starts it"


def _json_option(parser: Parser) -> None:
    options.add_json(parser)


def _no_option(parser: Parser) -> None:
    """None but the common ones."""


def _status(args: Namespace, ctx: Context) -> int:
    view = call(ctx, _state, start=False)
    if ctx.json:
        print_json(view)
    else:
        print(NOT_RUNNING if view is None else _describe(view))
    return 0


def _describe(view: EngineView) -> str:
    rows = (
        ("version", view.version),
        ("pid", str(view.pid)),
        ("home", view.home),
        ("up", span(time.time() - view.started)),
        ("sandboxes", f"{view.sandboxes}, {view.running} running"),
        ("memory", size(view.rss_bytes)),
    )
    return "\n".join(f"{name:<11}{value}" for name, value in rows)


async def _state(client: Client) -> EngineView | None:
    return await client.engine.status()


async def _end(client: Client) -> bool:
    if await client.engine.status() is None:
        return False
    await client.engine.stop()
    return True


def _stop(_args: Namespace, ctx: Context) -> int:
    print("stopped" if call(ctx, _end, start=False) else "it was not running")
    return 0


def _restart(_args: Namespace, ctx: Context) -> int:
    async def begin(client: Client) -> int:
        return (await client.version()).pid

    call(ctx, _end, start=False)
    print(f"running, pid {call(ctx, begin)}")
    return 0


def _logs_options(parser: Parser) -> None:
    parser.add_argument("-n", "--tail", type=int, default=200, metavar="N", help="the last N lines")


def _logs(args: Namespace, ctx: Context) -> int:
    if args.tail < 1:
        raise UsageError("--tail: must be at least 1")
    path = ctx.layout.engine_log
    try:
        lines = path.read_text(errors="replace").splitlines()
    except FileNotFoundError:
        raise NotFound("the engine has no log yet", hint=f"it will be {path}") from None
    for line in lines[-args.tail :]:
        print(line)
    return 0


VERBS = {
    "status": Verb(
        _status,
        _json_option,
        (("spore daemon status", "does it run, since when, for how many sandboxes"),),
    ),
    "stop": Verb(
        _stop,
        _no_option,
        (("spore daemon stop", "sandboxes go on; the next command takes charge of them again"),),
    ),
    "restart": Verb(
        _restart, _no_option, (("spore daemon restart", "for example after an upgrade"),)
    ),
    "logs": Verb(_logs, _logs_options, (("spore daemon logs -n 50", "the last 50 lines"),)),
}
