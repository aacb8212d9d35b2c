"""What `run`, `exec` and `shell` share: a session with the engine, and its exit statuses."""

from __future__ import annotations

import errno
from collections.abc import Mapping

from sporevm.cli.context import Context
from sporevm.cli.link import OUTDATED, connect
from sporevm.cli.session import Session
from sporevm.errors import EngineError, GuestError, SporeError

#: A shell in whatever root there is: bash if it has one.
SHELL = ("/bin/sh", "-c", "command -v bash >/dev/null 2>&1 && exec bash || exec sh")

FAILED, NOT_EXECUTABLE, NOT_FOUND = 125, 126, 127


def play(
    ctx: Context,
    path: str,
    start: Mapping[str, object],
    command: Mapping[str, object],
    *,
    detach: bool = False,
) -> int:
    """Run `command` over a stream of the API; returns the exit status to end with."""
    message = {**start, "command": command}
    tty, stdin = bool(command["tty"]), bool(command["stdin"])

    def attempt() -> Session:
        progress = ctx.progress()
        with connect(ctx.layout, progress) as link:
            session = Session(
                link, path, message, progress=progress, stdin=stdin, tty=tty, detach=detach
            )
            session.play()
            return session

    try:
        try:
            session = attempt()
        except SporeError as error:
            if error.code != OUTDATED:
                raise
            _end_engine(ctx)
            session = attempt()
    except SporeError as error:
        error.exit_code = exit_status(error)
        raise
    if detach and session.proc:
        print(session.proc)
    return session.status


def _end_engine(ctx: Context) -> None:
    """End an engine of an older version: sandboxes go on, and the next one takes them over."""
    from sporevm.cli.client import call

    call(ctx, lambda client: client.engine.stop(), start=False)


def exit_status(error: SporeError) -> int:
    """As docker has it: our own failure must not look like the command's."""
    if isinstance(error, GuestError):
        return NOT_FOUND if error.errno == errno.ENOENT else NOT_EXECUTABLE
    return FAILED if isinstance(error, EngineError) else error.exit_code
