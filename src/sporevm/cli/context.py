"""What every verb is given: where things are, how to print. Only here the environment is read."""

from __future__ import annotations

import os
import sys
from argparse import Namespace
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from sporevm.cli.progress import Progress
    from sporevm.store.layout import Layout


class Context:
    """The global options, and the streams."""

    def __init__(self, *, home: str = "", debug: bool = False) -> None:
        self._home = home
        self.debug = debug
        self.json = False
        self.quiet = False

    def adopt(self, args: Namespace) -> None:
        """Take over the options a verb's own command line carried."""
        options = vars(args)
        self._home = options.get("home", self._home)
        self.debug |= options.get("debug", False)
        self.json |= options.get("json", False)
        self.quiet |= options.get("quiet", False)

    @property
    def home(self) -> Path:
        return self.layout.home

    @property
    def layout(self) -> Layout:
        from pathlib import Path

        from sporevm.store.layout import Layout, default_home

        home = default_home(
            is_root=os.geteuid() == 0,
            env_home=self._home or os.environ.get("SPORE_HOME"),
            user_home=Path.home(),
        )
        return Layout(home.absolute())

    def progress(self, *, verbose: bool = False) -> Progress:
        from sporevm.cli.progress import Progress

        terminal = is_terminal(sys.stderr)
        return Progress(sys.stderr, quiet=self.quiet, terminal=terminal, verbose=verbose)


def is_terminal(stream: IO[str]) -> bool:
    return not stream.closed and stream.isatty()


def colour(stream: IO[str]) -> bool:
    """Colour only for a person, and only one who did not ask for none."""
    return is_terminal(stream) and not os.environ.get("NO_COLOR")


def columns(stream: IO[str]) -> int:
    """The width of a terminal."""
    text = os.environ.get("COLUMNS", "")
    if text.isdecimal() and int(text) > 0:
        return int(text)
    try:
        return os.get_terminal_size(stream.fileno()).columns
    except OSError:
        return 80


def host_variable(name: str) -> str | None:
    """For `-e NAME`: the value this process was given."""
    return os.environ.get(name)
