"""The engine's socket: how it is made, by the client that starts the engine or by the engine."""

from __future__ import annotations

import socket
from contextlib import suppress

from sporevm.store.layout import Layout

_BACKLOG = 128


def listen(layout: Layout) -> socket.socket:
    """A listening socket that only its owner can connect to.

    The caller holds the engine's lock, so a socket file that is there is a dead engine's.
    """
    with suppress(FileNotFoundError):
        layout.socket.unlink()
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        sock.bind(str(layout.socket))
        # Nobody can connect before listen(), so there is no moment with wider permissions.
        layout.socket.chmod(0o600)
        sock.listen(_BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock
