"""`spore rm`."""

from __future__ import annotations

from argparse import Namespace

from sporevm.cli.client import Client, each
from sporevm.cli.context import Context
from sporevm.cli.parser import Parser, Verb
from sporevm.errors import NotFound, UsageError

EXAMPLES = (
    ("spore rm box", "remove a sandbox that has ended, with its disk and its log"),
    ("spore rm -f box", "end it first if it runs; fine if it is not there"),
    ("spore rm -f $(spore ls -aq)", "remove everything"),
)


def _options(parser: Parser) -> None:
    parser.add_argument("boxes", nargs="*", metavar="BOX")
    parser.add_argument(
        "-f", "--force", action="store_true", help="end running ones; missing ones are no error"
    )


def _run(args: Namespace, ctx: Context) -> int:
    if not args.boxes:
        if args.force:
            return 0  # rm -f $(something that found nothing)
        raise UsageError("rm: no sandbox given", hint="see: spore rm --help")

    async def remove(client: Client, ref: str) -> bool:
        try:
            await client.remove(ref, force=args.force)
        except NotFound:
            if not args.force:
                raise
            return False
        return True

    def show(ref: str, removed: bool) -> None:
        if removed:
            print(ref)

    return each(ctx, args.boxes, remove, show)


VERBS = {"rm": Verb(_run, _options, EXAMPLES)}
