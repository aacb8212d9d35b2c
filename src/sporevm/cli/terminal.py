"""The user's terminal: its size, and raw mode that is always undone."""

from __future__ import annotations

import os
import termios
import tty
from types import TracebackType
from typing import Any


def size(*fds: int) -> tuple[int, int]:
    """Rows and columns of the first of `fds` that is a terminal."""
    for fd in fds:
        try:
            found = os.get_terminal_size(fd)
        except OSError:
            continue
        if found.lines > 0 and found.columns > 0:
            return found.lines, found.columns
    return 24, 80


class RawMode:
    """While entered, `fd` passes every key on; afterwards it is as it was before."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._saved: list[Any] | None = None

    def __enter__(self) -> RawMode:
        self._saved = termios.tcgetattr(self._fd)
        self.apply()
        return self

    def apply(self) -> None:
        """Raw (again): a shell resets the terminal of a job it stopped and continued."""
        tty.setraw(self._fd, termios.TCSADRAIN)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        saved, self._saved = self._saved, None
        if saved is None:
            return
        try:
            termios.tcsetattr(self._fd, termios.TCSADRAIN, saved)
        except termios.error:
            # The terminal is gone (its window was closed): there is nothing to restore.
            return
