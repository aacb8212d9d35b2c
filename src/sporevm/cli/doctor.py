"""`spore doctor`."""

from __future__ import annotations

import asyncio
import sys
from argparse import Namespace

from sporevm.cli import options
from sporevm.cli.context import Context, colour
from sporevm.cli.output import print_json
from sporevm.cli.parser import Parser, Verb
from sporevm.cli.progress import Ticking
from sporevm.engine.doctor import Check, Status, able, examine

EXAMPLES = (
    ("spore doctor", "what works here, what does not, and what mends it"),
    ("spore doctor --json", "an array of checks, for scripts"),
)
NOTES = """\
Also called `spore setup preflight`. Exit status: 0 if sandboxes can run here, 1 if they can't."""

_COLOURS = {Status.OK: "32", Status.DEGRADED: "33", Status.MISSING: "31"}
_WIDTH = 17


def _options(parser: Parser) -> None:
    options.add_quiet(parser, "print only what is missing or degraded")
    options.add_json(parser)


def _run(args: Namespace, ctx: Context) -> int:
    with Ticking(ctx.progress()) as ticking:
        ticking.step("examining this machine")
        checks = asyncio.run(examine(ctx.layout))
    if ctx.json:
        print_json(checks)
    else:
        _show(checks, quiet=ctx.quiet)
    return 0 if able(checks) else 1


def _show(checks: list[Check], *, quiet: bool) -> None:
    coloured = colour(sys.stdout)
    for check in checks:
        if quiet and check.status is Status.OK:
            continue
        word = f"{check.status.value:<9}"
        if coloured:
            word = f"\x1b[{_COLOURS[check.status]}m{word}\x1b[0m"
        print(f"{word} {check.name:<{_WIDTH}} {check.detail}")
        if check.mend and check.status is not Status.OK:
            print(f"{'':9} {'':<{_WIDTH}} mend: {check.mend}")
    if quiet:
        return
    if able(checks):
        worse = sum(check.status is not Status.OK for check in checks)
        print(f"\nSandboxes can run here{f'; {worse} things could be better' if worse else ''}.")
    else:
        print("\nSandboxes can't run here yet: mend what is missing.")


VERBS = {"doctor": Verb(_run, _options, EXAMPLES, notes=NOTES)}
