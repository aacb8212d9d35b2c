"""`spore completion`: scripts made from the table of verbs, so they are never out of date."""

from __future__ import annotations

import argparse
from argparse import Namespace
from importlib import import_module

from sporevm.cli.context import Context
from sporevm.cli.parser import Parser, Verb
from sporevm.cli.verbs import ENTRIES, Entry
from sporevm.errors import UsageError

EXAMPLES = (
    ('eval "$(spore completion bash)"', "in ~/.bashrc"),
    ('eval "$(spore completion zsh)"', "in ~/.zshrc, after compinit"),
    ("spore completion fish | source", "in fish's configuration"),
)

_BASH = """\
_spore() {
    local cur=${COMP_WORDS[COMP_CWORD]} typed="${COMP_WORDS[1]} ${COMP_WORDS[2]}" found=
    case "$typed" in
%(cases)s
    esac
    if [ "$COMP_CWORD" = 1 ]; then found="%(first)s"; fi
    COMPREPLY=($(compgen -W "$found" -- "$cur"))
}
complete -o default -F _spore spore
"""


def _options(parser: Parser) -> None:
    parser.add_argument("shell", metavar="SHELL")


def _run(args: Namespace, _ctx: Context) -> int:
    if args.shell == "fish":
        print(_fish(), end="")
    elif args.shell == "zsh":
        print("autoload -U +X bashcompinit && bashcompinit\n" + _bash(), end="")
    elif args.shell == "bash":
        print(_bash(), end="")
    else:
        raise UsageError(f"completion: no script for {args.shell!r}", hint="bash, zsh or fish")
    return 0


def option_words(entry: Entry) -> list[str]:
    """The long options of a verb."""
    verb: Verb = import_module(entry.module).VERBS[entry.key]
    actions = verb.parser(entry)._actions
    return sorted(o for action in actions for o in _long(action))


def _long(action: argparse.Action) -> list[str]:
    return [option for option in action.option_strings if option.startswith("--")]


def _groups() -> dict[str, list[Entry]]:
    """Entries by first word."""
    found: dict[str, list[Entry]] = {}
    for entry in ENTRIES.values():
        found.setdefault(entry.name.split()[0], []).append(entry)
    return found


def _bash() -> str:
    cases = []
    for first, entries in _groups().items():
        if " " not in entries[0].name:
            cases.append(f'    "{first} "*) found="{" ".join(option_words(entries[0]))}" ;;')
            continue
        for entry in entries:
            cases.append(f'    "{entry.name}") found="{" ".join(option_words(entry))}" ;;')
        cases.append(f'    "{first} "*) found="{" ".join(e.key for e in entries)}" ;;')
    return _BASH % {"cases": "\n".join(cases), "first": " ".join(_groups())}


def _fish() -> str:
    lines = ["complete -c spore -f -n __fish_use_subcommand"]
    for first, entries in _groups().items():
        grouped = " " in entries[0].name
        told = f"{first} ..." if grouped else entries[0].summary
        lines.append(f"complete -c spore -n __fish_use_subcommand -a {first} -d {_quoted(told)}")
        for entry in entries:
            seen = f"__fish_seen_subcommand_from {first}"
            if grouped:
                lines.append(
                    f"complete -c spore -n '{seen}' -a {entry.key} -d {_quoted(entry.summary)}"
                )
                seen += f"; and __fish_seen_subcommand_from {entry.key}"
            lines += [
                f"complete -c spore -n '{seen}' -l {option.removeprefix('--')}"
                for option in option_words(entry)
            ]
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


VERBS = {"completion": Verb(_run, _options, EXAMPLES)}
