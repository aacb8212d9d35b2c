"""`spore wait`."""

from __future__ import annotations

from argparse import Namespace
from typing import TYPE_CHECKING

from sporevm.cli.client import each
from sporevm.cli.context import Context
from sporevm.cli.parser import Parser, Verb

if TYPE_CHECKING:
    from sporevm.api.models import SandboxView

EXAMPLES = (
    ("spore wait box", "returns when it has ended, and prints its exit code"),
    ('[ "$(spore wait job)" = 0 ] && spore logs job', "act on how it ended"),
)
NOTES = "Prints '-' for a sandbox that ended without a process of its own."


def _options(parser: Parser) -> None:
    parser.add_argument("boxes", nargs="+", metavar="BOX")


def _run(args: Namespace, ctx: Context) -> int:
    def show(_ref: str, view: SandboxView) -> None:
        print("-" if view.exit_code is None else view.exit_code)

    return each(ctx, args.boxes, lambda client, ref: client.wait(ref), show)


VERBS = {"wait": Verb(_run, _options, EXAMPLES, notes=NOTES)}
