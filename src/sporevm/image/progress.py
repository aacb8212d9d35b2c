"""How a long step tells how far it is."""

from __future__ import annotations

from collections.abc import Callable

#: `progress(step, done, total)`; a total of 0 means that it is not known.
Progress = Callable[[str, float, float], None]


def silent(step: str, done: float, total: float) -> None:
    """A Progress that says nothing."""
