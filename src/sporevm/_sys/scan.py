"""Finding processes by an argument that only ours can have."""

from __future__ import annotations

import os
from pathlib import Path

from sporevm._sys.process import Identity
from sporevm.errors import NotFound


def holding_argument(text: str) -> list[Identity]:
    """Processes with `text`, a path that holds a random id, in their command line; not our own."""
    needle = os.fsencode(text)
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            # Identity first: were the pid recycled in between, the command line would not match.
            identity = Identity.of(int(entry.name))
            if needle in (entry / "cmdline").read_bytes() and identity.alive():
                found.append(identity)
        except (OSError, NotFound):
            continue
    return found
