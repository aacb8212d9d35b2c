"""`spore stop`."""

from __future__ import annotations

from argparse import Namespace

from sporevm.cli import options
from sporevm.cli.client import each
from sporevm.cli.context import Context
from sporevm.cli.parser import Parser, Verb
from sporevm.errors import UsageError

EXAMPLES = (
    ("spore stop box", "TERM to its processes, KILL after 10 seconds, then power off"),
    ("spore stop -t 60 db1 db2", "two at once, with a minute of patience"),
)


def _options(parser: Parser) -> None:
    parser.add_argument("boxes", nargs="+", metavar="BOX")
    parser.add_argument(
        "-t", "--time", default="10", metavar="TIME", help="patience before the guest is killed"
    )


def _run(args: Namespace, ctx: Context) -> int:
    patience = 0.0 if args.time in ("0", "0s") else options.duration(args.time, what="--time")
    if patience > 86400:
        raise UsageError("--time: more than a day")
    return each(
        ctx,
        args.boxes,
        lambda client, ref: client.stop(ref, patience),
        lambda ref, _view: print(ref),
    )


VERBS = {"stop": Verb(_run, _options, EXAMPLES)}
