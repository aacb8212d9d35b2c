"""`spore ls`."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from sporevm.cli import options
from sporevm.cli.client import call
from sporevm.cli.context import Context
from sporevm.cli.output import ago, print_json, safe, shorten, span, table
from sporevm.cli.parser import Parser, Verb
from sporevm.errors import UsageError

if TYPE_CHECKING:
    from sporevm.api.models import SandboxView

EXAMPLES = (
    ("spore ls", "what runs"),
    ("spore ls -a --filter label=job=nightly", "all sandboxes with a label, ended ones too"),
    ("spore rm -f $(spore ls -aq)", "remove everything"),
    ("spore ls --json", "an array, for scripts"),
)
NOTES = """\
Filters: name=TEXT (a part of it), state=STATE, image=NAME, arch=ARCH, label=NAME, label=NAME=VALUE.
A sandbox must fit all of them."""

_LIVE = ("creating", "running", "paused")
_HEADER = ("ID", "NAME", "IMAGE", "COMMAND", "CREATED", "STATE", "SIZE")


def _options(parser: Parser) -> None:
    add = parser.add_argument
    add("-a", "--all", action="store_true", help="ended sandboxes too")
    add("-f", "--filter", action="append", default=[], metavar="K=V", help="only these; repeatable")
    options.add_quiet(parser, "print ids only")
    options.add_json(parser)


def _run(args: Namespace, ctx: Context) -> int:
    tests = [_test(text) for text in args.filter]
    everything = args.all or any(text.startswith("state=") for text in args.filter)
    views = [
        view
        for view in call(ctx, lambda client: client.list())
        if (everything or view.state in _LIVE) and all(test(view) for test in tests)
    ]
    views.sort(key=lambda view: view.created, reverse=True)
    if ctx.json:
        print_json(views)
    elif ctx.quiet:
        for view in views:
            print(view.id)
    else:
        print(table(_HEADER, [_row(view) for view in views]))
    return 0


def _row(view: SandboxView) -> Sequence[str]:
    return (
        view.id,
        view.name,
        safe(view.image or view.image_id[:12]),
        safe(shorten(" ".join(view.command), 24)) if view.command else "-",
        ago(view.created),
        state(view),
        f"{view.cpus} CPU, {view.memory_mib} MiB",
    )


def state(view: SandboxView) -> str:
    """`up 3 minutes`, `exited (1) 2 hours ago`."""
    if view.state == "running" and view.started is not None:
        return f"up {span(_now() - view.started)}"
    if view.finished is not None:
        code = "" if view.exit_code is None else f"({view.exit_code}) "
        word = "exited" if view.exit_code is not None else view.state
        return f"{word} {code}{ago(view.finished)}"
    return view.state


def _now() -> float:
    import time

    return time.time()


def _test(text: str) -> Callable[[SandboxView], bool]:
    key, given, value = text.partition("=")
    if key == "label" and given:
        name, exact, wanted = value.partition("=")
        return lambda view: name in view.labels and (not exact or view.labels[name] == wanted)
    tests: dict[str, Callable[[SandboxView], bool]] = {
        "name": lambda view: value in view.name,
        "state": lambda view: view.state == value,
        "status": lambda view: view.state == value,
        "image": lambda view: value in (view.image, view.image_id),
        "arch": lambda view: view.arch == value,
    }
    if not given or key not in tests:
        raise UsageError(
            f"--filter {text!r}: not a filter", hint="name=, state=, image=, arch= or label="
        )
    return tests[key]


VERBS = {"ls": Verb(_run, _options, EXAMPLES, notes=NOTES)}
