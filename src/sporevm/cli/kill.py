"""`spore kill`."""

from __future__ import annotations

import signal
from argparse import Namespace

from sporevm.cli.client import each
from sporevm.cli.context import Context
from sporevm.cli.parser import Parser, Verb, nearest
from sporevm.errors import UsageError

EXAMPLES = (
    ("spore kill box", "end the sandbox now"),
    ("spore kill -s HUP box", "signal its main process"),
)


def _options(parser: Parser) -> None:
    parser.add_argument("boxes", nargs="+", metavar="BOX")
    parser.add_argument(
        "-s",
        "--signal",
        default="",
        metavar="SIGNAL",
        help="send this to the main process, like HUP, SIGHUP or 1, and end nothing else",
    )


def _run(args: Namespace, ctx: Context) -> int:
    number = number_of(args.signal) if args.signal else None
    return each(
        ctx,
        args.boxes,
        lambda client, ref: client.kill(ref, number),
        lambda ref, _view: print(ref),
    )


def number_of(name: str) -> int:
    """The signal's number from `HUP`, `SIGHUP`, `hup` or `1`."""
    if name.isdecimal():
        if 1 <= int(name) <= 64:
            return int(name)
        raise UsageError(f"signal {name}: out of range", hint="1 to 64")
    word = name.upper()
    known = {one.name: int(one) for one in signal.Signals}
    full = word if word.startswith("SIG") else f"SIG{word}"
    if full not in known:
        raise UsageError(
            f"there is no signal {name!r}", hint=nearest(full, known) or "see: kill -l"
        )
    return known[full]


VERBS = {"kill": Verb(_run, _options, EXAMPLES)}
