"""Who may talk to the engine: its own user and root, as the kernel names them."""

from __future__ import annotations

import os
import socket
import struct
from typing import Protocol

_UCRED = struct.Struct("iII")


class HasOptions(Protocol):
    def getsockopt(self, level: int, name: int, size: int, /) -> bytes: ...


def peer_uid(sock: HasOptions) -> int:
    """The uid the peer had when it connected."""
    raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    uid: int = _UCRED.unpack(raw)[1]
    return uid


def may_connect(uid: int, own: int | None = None) -> bool:
    return uid in (0, os.getuid() if own is None else own)
