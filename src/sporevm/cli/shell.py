"""`spore shell`."""

from __future__ import annotations

import os
from argparse import Namespace

from sporevm.cli import exec as exec_verb
from sporevm.cli import foreground, options
from sporevm.cli.context import Context
from sporevm.cli.parser import Parser, Verb

EXAMPLES = (
    ("spore shell box", "bash if the sandbox has it, else sh"),
    ("spore shell -u nobody -w /tmp box", "as a user, in a directory"),
    ("spore shell box < script.sh", "run a script from standard input"),
)


def _options(parser: Parser) -> None:
    add = parser.add_argument
    add("box", metavar="BOX")
    add("-w", "--workdir", default="", metavar="DIR", help="start in this directory")
    add("-u", "--user", default="", metavar="USER", help="as: name, uid, name:group, uid:gid")
    add("-e", "--env", action="append", default=[], metavar="NAME[=VALUE]", help="set a variable")


def _run(args: Namespace, ctx: Context) -> int:
    args.interactive, args.tty = True, os.isatty(0)
    args.env_file, args.timeout = [], ""
    command = options.command(args, list(foreground.SHELL))
    return foreground.play(ctx, exec_verb.path(args.box), {"type": "exec"}, command)


VERBS = {"shell": Verb(_run, _options, EXAMPLES)}
