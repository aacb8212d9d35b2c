"""`spore version`."""

from __future__ import annotations

import os
import platform
from argparse import Namespace

from sporevm import __version__
from sporevm.cli import options
from sporevm.cli.client import Client, call
from sporevm.cli.context import Context
from sporevm.cli.output import print_json
from sporevm.cli.parser import Parser, Verb

EXAMPLES = (
    ("spore version", "of this program, and of the engine if it runs"),
    ("spore version --json", "for scripts"),
)


def _options(parser: Parser) -> None:
    options.add_json(parser)


def _run(args: Namespace, ctx: Context) -> int:
    async def engine(client: Client) -> str | None:
        view = await client.engine.status()
        return None if view is None else view.version

    running = call(ctx, engine, start=False)
    host = os.uname()
    facts = {
        "spore": __version__,
        "engine": running,
        "python": platform.python_version(),
        "system": " ".join((host.sysname, host.release, host.machine)),
    }
    if ctx.json:
        print_json(facts)
    else:
        for name, value in facts.items():
            print(f"{name:<8}{value or 'not running'}")
    return 0


VERBS = {"version": Verb(_run, _options, EXAMPLES)}
