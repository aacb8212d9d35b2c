"""`spore exec`."""

from __future__ import annotations

from argparse import Namespace
from urllib.parse import quote

from sporevm.cli import foreground, options
from sporevm.cli.context import Context
from sporevm.cli.parser import Parser, Verb
from sporevm.errors import UsageError

EXAMPLES = (
    ("spore exec box -- cat /etc/os-release", "one command"),
    ("spore exec -it box bash", "a shell, with a terminal"),
    ("tar c src | spore exec -i box -- tar x -C /work", "pass a stream on"),
    ("spore exec -u nobody -w /tmp -e DEBUG=1 box -- make", "as a user, in a directory"),
)
NOTES = """\
Exit status: the command's own; 128+N if signal N ended it; 124 after --timeout; 126 and 127 if it
can't be executed or found; 125 if the VM or the engine failed; 2 for wrong use; 1 for the rest."""


def _options(parser: Parser) -> None:
    options.add_process(parser)
    parser.add_argument(
        "-d", "--detach", action="store_true", help="leave it running and print its name"
    )
    options.add_quiet(parser)


def _run(args: Namespace, ctx: Context) -> int:
    if not args.operands:
        raise UsageError("exec: no sandbox given", hint="see: spore exec --help")
    if not args.command:
        raise UsageError("exec: no command given", hint="like: spore exec BOX -- ls /")
    if args.detach and (args.interactive or args.tty):
        raise UsageError("-d can't go together with -i or -t", hint="leave one of them out")
    command = options.command(args, args.command)
    start = {"type": "exec", "detach": args.detach}
    return foreground.play(ctx, path(args.operands[0]), start, command, detach=args.detach)


def path(ref: str) -> str:
    """The API's stream for a new process in the sandbox `ref`."""
    return f"/v1/sandboxes/{quote(ref, safe='')}/exec"


VERBS = {"exec": Verb(_run, _options, EXAMPLES, notes=NOTES)}
