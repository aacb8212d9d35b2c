"""`argparse` with Spore's help layout, Spore's errors, and commands that need no `--`."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, NoReturn

from sporevm.errors import UsageError

if TYPE_CHECKING:
    from sporevm.cli.context import Context
    from sporevm.cli.verbs import Entry

WIDTH = 96
_INDENT = 28


class Parser(argparse.ArgumentParser):
    """A parser for one verb. It never prints or exits: wrong use is a UsageError."""

    def __init__(self, name: str, *, operands: str = "", summary: str = "") -> None:
        super().__init__(prog=name, add_help=False, allow_abbrev=False, exit_on_error=False)
        self.operands = operands
        self.summary = summary
        self.notes = ""
        self.examples: Sequence[Example] = ()

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{self.prog.removeprefix('spore ')}: {message}", hint=self._see)

    @property
    def option_names(self) -> list[str]:
        return sorted(self._option_string_actions)

    @property
    def _see(self) -> str:
        return f"see: {self.prog} --help"

    def parse(self, argv: Sequence[str]) -> argparse.Namespace:
        """All of `argv`, or a UsageError that names the nearest option."""
        try:
            args, unknown = self.parse_known_args(list(argv))
        except argparse.ArgumentError as error:
            self.error(_plain(error))
        if unknown:
            word = unknown[0].partition("=")[0]
            if not word.startswith("-"):
                self.error(f"unexpected argument {word!r}")
            raise UsageError(
                f"{self.prog.removeprefix('spore ')}: unknown option {word}",
                hint=nearest(word, self.option_names) or self._see,
            )
        return args

    def parse_command(
        self, argv: Sequence[str], operands: int
    ) -> tuple[argparse.Namespace, list[str]]:
        """Options, then up to `operands` operands, then a command whose words are never options.

        Options may stand on either side of an operand. The command starts behind `--`, or at the
        first word after the operands that is no option. Operands are in `args.operands`.
        """
        options: list[str] = []
        found: list[str] = []
        index = 0
        while index < len(argv) and argv[index] != "--":
            word = argv[index]
            if _is_option(word):
                count = 1 + self._takes_next(word)
                options += argv[index : index + count]
                index += count
            elif len(found) < operands:
                found.append(word)
                index += 1
            else:
                break
        args = self.parse(options)
        args.operands = found
        command = list(argv[index:])
        return args, command[1:] if command[:1] == ["--"] else command

    def _takes_next(self, word: str) -> bool:
        """Is the word behind this option its value?"""
        if word.startswith("--"):
            action = self._option_string_actions.get(word)
            return action is not None and action.nargs is None
        for position, letter in enumerate(word[1:], start=1):
            action = self._option_string_actions.get(f"-{letter}")
            if action is None:
                return False
            if action.nargs is None:
                return position == len(word) - 1
        return False

    def format_help(self) -> str:
        usage = " ".join(part for part in (self.prog, "[OPTIONS]", self.operands) if part)
        parts = [f"Usage:  {usage}", self.summary]
        if self.notes:
            parts.append(self.notes)
        parts.append(self.options_help())
        if self.examples:
            lines = (f"  # {what}\n  {line}" for line, what in self.examples)
            parts.append("Examples:\n" + "\n\n".join(lines))
        return "\n\n".join(parts) + "\n"

    def options_help(self) -> str:
        rows = [
            (_spelling(action), _described(action))
            for action in self._actions
            if action.help != argparse.SUPPRESS and action.option_strings
        ]
        return "Options:\n" + columns(rows)


def _is_option(word: str) -> bool:
    return len(word) > 1 and word.startswith("-")


def _plain(error: argparse.ArgumentError) -> str:
    name = error.argument_name
    return f"{name}: {error.message}" if name else str(error.message)


def _spelling(action: argparse.Action) -> str:
    text = ", ".join(action.option_strings)
    if action.option_strings[0].startswith("--"):
        text = "    " + text
    if action.nargs is None:
        text += f" {action.metavar or action.dest.upper()}"
    return text


def _described(action: argparse.Action) -> str:
    text = action.help or ""
    if action.nargs is None and action.default not in (None, "", argparse.SUPPRESS, []):
        text += f" (default {action.default})"
    return text


def columns(rows: Sequence[tuple[str, str]], indent: int = _INDENT) -> str:
    """Two columns, the right one wrapped."""
    lines = []
    for left, right in rows:
        wrapped = _wrap(right, WIDTH - indent)
        if len(left) + 4 > indent:
            lines.append(f"  {left}")
        else:
            lines.append(f"  {left:<{indent - 2}}{wrapped.pop(0) if wrapped else ''}".rstrip())
        lines += [" " * indent + line for line in wrapped]
    return "\n".join(lines)


def _wrap(text: str, width: int) -> list[str]:
    lines = [""]
    for word in text.split():
        if lines[-1] and len(lines[-1]) + 1 + len(word) > width:
            lines.append("")
        lines[-1] += f" {word}" if lines[-1] else word
    return lines


def nearest(word: str, names: Iterable[str]) -> str:
    """A question that offers the name most like `word`, or nothing."""
    import difflib

    found = difflib.get_close_matches(word, list(names), n=1, cutoff=0.6)
    return f"did you mean {found[0]}?" if found else ""


class HelpAsked(Exception):
    """`--help` was given: the text to print."""


class _Help(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *rest: object) -> None:
        raise HelpAsked(parser.format_help())


def common(parser: Parser) -> None:
    """Options every verb has. Given before the verb they count too, so no default is set here."""
    add = parser.add_argument
    add("--home", metavar="DIR", default=argparse.SUPPRESS, help=HOME_HELP)
    add("--debug", action="store_true", default=argparse.SUPPRESS, help=DEBUG_HELP)
    add("-h", "--help", action=_Help, nargs=0, help="show this help")


HOME_HELP = "where Spore keeps everything (default: $SPORE_HOME, else the user's own place)"
DEBUG_HELP = "show a traceback when something fails"
JSON_HELP = "print JSON; an error is printed as JSON on standard output too"

#: A line to type, and what it does.
Example = tuple[str, str]


class Verb:
    """What a verb's module says of it."""

    __slots__ = ("examples", "notes", "options", "run")

    def __init__(
        self,
        run: Callable[[argparse.Namespace, Context], int],
        options: Callable[[Parser], None],
        examples: Sequence[Example],
        *,
        notes: str = "",
    ) -> None:
        self.run = run
        self.options = options
        self.examples = examples
        self.notes = notes

    def parser(self, entry: Entry) -> Parser:
        parser = Parser(f"spore {entry.name}", operands=entry.operands, summary=entry.summary)
        self.options(parser)
        common(parser)
        parser.notes = self.notes
        parser.examples = self.examples
        return parser
