"""Options several verbs share, and how their values become API data.

Values are plain dictionaries in the shape of `sporevm.api.models`: loading the models would cost
`spore exec` a fifth of its time. The engine validates what it is sent.
"""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Iterable, Mapping
from pathlib import Path

from sporevm.cli import terminal
from sporevm.cli.context import host_variable
from sporevm.cli.parser import JSON_HELP, Parser
from sporevm.errors import UsageError


def add_process(parser: Parser) -> None:
    add = parser.add_argument
    add("-i", "--interactive", action="store_true", help="pass standard input on to the command")
    add("-t", "--tty", action="store_true", help="give the command a terminal")
    add(
        "-e",
        "--env",
        action="append",
        default=[],
        metavar="NAME[=VALUE]",
        help="set an environment variable; without a value, take it from here; may be repeated",
    )
    add(
        "--env-file",
        action="append",
        default=[],
        metavar="FILE",
        help="set environment variables from a file of NAME=VALUE lines; may be repeated",
    )
    add("-w", "--workdir", default="", metavar="DIR", help="run the command in this directory")
    add(
        "-u", "--user", default="", metavar="USER", help="run it as: name, uid, name:group, uid:gid"
    )
    add(
        "--timeout",
        default="",
        metavar="TIME",
        help="kill the command after this time, like 30s or 5m, and exit with 124",
    )


def add_json(parser: Parser) -> None:
    parser.add_argument("--json", action="store_true", default=False, help=JSON_HELP)


def add_quiet(parser: Parser, text: str = "print no progress") -> None:
    parser.add_argument("-q", "--quiet", action="store_true", default=False, help=text)


def command(args: Namespace, argv: list[str]) -> dict[str, object]:
    """An api.models.CommandBody for the options of `add_process`."""
    if args.interactive and args.tty and not os.isatty(0):
        raise UsageError(
            "-i -t: standard input is not a terminal", hint="leave -t out to pass a pipe or file on"
        )
    body: dict[str, object] = {
        "argv": argv,
        "env": environment(args.env, args.env_file),
        "cwd": args.workdir,
        "user": args.user,
        "tty": args.tty,
        "stdin": args.interactive,
    }
    if args.tty:
        body["rows"], body["cols"] = terminal.size(0, 1, 2)
    if args.timeout:
        body["timeout"] = duration(args.timeout, what="--timeout")
    return body


def duration(text: str, *, what: str) -> float:
    from sporevm.spec import parse_duration

    return parse_duration(text, what=what)


def environment(settings: Iterable[str], files: Iterable[str]) -> dict[str, str]:
    """Files first, in order, then settings: the last one wins."""
    found: dict[str, str] = {}
    for name in files:
        try:
            lines = Path(name).read_text().splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"--env-file {name}: {_reason(error)}") from error
        stripped = (line.strip() for line in lines)
        _set(found, (line for line in stripped if line and not line.startswith("#")))
    _set(found, settings)
    return found


def _set(env: dict[str, str], settings: Iterable[str]) -> None:
    for setting in settings:
        name, given, value = setting.partition("=")
        if not name:
            raise UsageError(f"environment variable {setting!r} has no name")
        if given:
            env[name] = value
        elif (inherited := host_variable(name)) is not None:
            env[name] = inherited


def _reason(error: OSError | UnicodeDecodeError) -> str:
    return str(error.strerror) if isinstance(error, OSError) else "is not UTF-8 text"


def pairs(settings: Iterable[str], *, what: str) -> dict[str, str]:
    """`K=V` options; a bare `K` has an empty value."""
    found: dict[str, str] = {}
    for setting in settings:
        name, _, value = setting.partition("=")
        if not name:
            raise UsageError(f"{what} {setting!r} has no name")
        found[name] = value
    return found


def without_empty(body: Mapping[str, object]) -> dict[str, object]:
    """Leave out what was not given, so that the engine's defaults hold."""
    return {key: value for key, value in body.items() if value not in ("", None, {}, [])}
