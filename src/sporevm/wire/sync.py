"""How the two sides find each other in a stream that may hold stale bytes: SYNC and ACK."""

from __future__ import annotations

import struct
from typing import Final

from sporevm.errors import ProtocolViolation
from sporevm.wire.constants import (
    ACK_MAGIC,
    MAX_SKIP,
    NONCE_BYTES,
    RECORD_BYTES,
    SYNC_MAGIC,
    VERSION,
)

_SYNC: Final = struct.Struct("<16sHHI16s")
_ACK: Final = struct.Struct("<16sHHI16s")


def sync_record(nonce: bytes) -> bytes:
    """The SYNC that opens a channel. It offers one version, so frames may follow at once."""
    if len(nonce) != NONCE_BYTES:
        raise ValueError(f"a nonce has {NONCE_BYTES} bytes, not {len(nonce)}")
    return _SYNC.pack(SYNC_MAGIC, VERSION, VERSION, 0, nonce)


class AckScanner:
    """Skips bytes until the ACK that carries our nonce. Holds less than one record of them."""

    __slots__ = ("_held", "_nonce", "skipped", "version")

    def __init__(self, nonce: bytes) -> None:
        self._nonce = nonce
        self._held = b""
        self.skipped = 0
        self.version: int | None = None

    def feed(self, data: bytes) -> bytes | None:
        """What stands behind the ACK, or None while it has not come.

        Raises ProtocolViolation when more has been skipped than an honest agent can have left.
        """
        data = self._held + data
        at = 0
        while (at := data.find(ACK_MAGIC, at)) >= 0 and len(data) - at >= RECORD_BYTES:
            _, version, zero, flags, nonce = _ACK.unpack_from(data, at)
            if nonce == self._nonce and not zero and not flags:
                self._skip(at)
                self.version = version
                return data[at + RECORD_BYTES :]
            at += 1
        keep = at if at >= 0 else max(0, len(data) - len(ACK_MAGIC) + 1)
        self._skip(keep)
        self._held = data[keep:]
        return None

    def _skip(self, size: int) -> None:
        self.skipped += size
        if self.skipped > MAX_SKIP:
            raise ProtocolViolation(f"no answer to SYNC within {MAX_SKIP} bytes")
