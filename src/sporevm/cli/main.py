"""`spore`: finds the verb, runs it, and turns every error into one line and an exit status."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module

from sporevm.cli.context import Context
from sporevm.cli.parser import HelpAsked, Parser, Verb, columns, common, nearest
from sporevm.cli.verbs import ALIASES, ENTRIES, GROUPS, Entry, find
from sporevm.errors import SporeError, UsageError

#: As a shell reports SIGINT and SIGPIPE.
INTERRUPTED = 130
BROKEN_PIPE = 141


def main(argv: Sequence[str] | None = None) -> int:
    """The console script: returns the exit status. Raises only with `--debug`."""
    _occupy_standard_streams()
    words = list(sys.argv[1:] if argv is None else argv)
    ctx = Context()
    try:
        status = run(words, ctx)
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has gone. Nothing more can be said; keep the interpreter from
        # trying when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except SporeError as error:
        if ctx.debug:
            raise
        return _report(error, ctx)
    except Exception as error:  # noqa: BLE001  the outermost boundary: a bug is shown as one line
        if ctx.debug:
            raise
        bug = SporeError(
            f"internal error: {type(error).__name__}: {error}",
            hint="run it again with --debug and report what it prints",
        )
        return _report(bug, ctx)


def _occupy_standard_streams() -> None:
    """Keep the numbers of closed standard streams from being given to a connection.

    As stdin its messages would be taken for input, as stdout it would get the output. What stands
    in is open the wrong way round, so that reading and writing still fail as on a closed stream.
    """
    for fd, mode in ((0, os.O_WRONLY), (1, os.O_RDONLY), (2, os.O_RDONLY)):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, mode)  # gets the lowest free number: those below are taken
    # Python has no object for a stream that was closed. What is printed goes nowhere.
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: PTH123, SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: PTH123, SIM115


def run(words: list[str], ctx: Context) -> int:
    """Run the verb `words` ask for."""
    top = top_parser()
    try:
        args, rest = top.parse_command(words, operands=0)
        ctx.adopt(args)
        if vars(args).get("version"):
            return _version()
        if not rest or rest == ["help"]:
            raise HelpAsked(overview())
        if rest[0] == "help":
            rest = [*rest[1:], "--help"]
        found = find(rest)
        if found is None:
            return _no_verb(rest)
        entry, count = found
        verb = load(entry)
        parser = verb.parser(entry)
        if entry.takes_command:
            args, command = parser.parse_command(rest[count:], operands=1)
            args.command = command
        else:
            # Known before the rest is: an error in it is then printed as asked for, too.
            ctx.json |= "--json" in rest and "--json" in parser.option_names
            args = parser.parse(rest[count:])
    except HelpAsked as asked:
        print(asked, end="")
        return 0
    ctx.adopt(args)
    return verb.run(args, ctx)


def load(entry: Entry) -> Verb:
    verb: Verb = import_module(entry.module).VERBS[entry.key]
    return verb


class _Top(Parser):
    """The options before the verb."""

    def format_help(self) -> str:
        return overview()


def top_parser() -> Parser:
    parser = _Top("spore")
    add = parser.add_argument
    add("--json", action="store_true", help="print JSON, where a verb can")
    add("-q", "--quiet", action="store_true", help="print no progress, and ids only in lists")
    add("-V", "--version", action="store_true", help="print the version")
    common(parser)
    return parser


def overview() -> str:
    """`spore --help`."""
    groups: dict[str, list[tuple[str, str]]] = {}
    for entry in ENTRIES.values():
        groups.setdefault(entry.group, []).append((entry.name, entry.summary))
    text = [
        "Usage:  spore [OPTIONS] VERB ...",
        "Run any code in its own microVM, in milliseconds",
        *(f"{title}:\n{columns(rows)}" for title, rows in groups.items()),
        top_parser().options_help(),
        "spore VERB --help says more, with examples.",
    ]
    return "\n\n".join(text) + "\n"


def _version() -> int:
    from sporevm import __version__

    print(f"spore {__version__}")
    return 0


def _no_verb(words: list[str]) -> int:
    group = words[0]
    if group not in GROUPS:
        names = {name.split()[0] for name in (*ENTRIES, *ALIASES)}
        hint = nearest(group, sorted(names)) or "see: spore --help"
        raise UsageError(f"there is no verb {group!r}", hint=hint)
    members = [entry for name, entry in ENTRIES.items() if name.startswith(f"{group} ")]
    if len(words) > 1 and not words[1].startswith("-"):
        hint = nearest(words[1], [entry.key for entry in members]) or f"see: spore {group} --help"
        raise UsageError(f"there is no verb '{group} {words[1]}'", hint=hint)
    rows = [(entry.name, entry.summary) for entry in members]
    raise HelpAsked(f"Usage:  spore {group} VERB ...\n\nVerbs:\n{columns(rows)}\n")


def _report(error: SporeError, ctx: Context) -> int:
    from sporevm.cli.report import report

    try:
        return report(error, as_json=ctx.json)
    except BrokenPipeError:
        return BROKEN_PIPE
