"""QMP: one lazily made connection to a VMM's monitor.

Starting a VM needs no word on QMP, so neither the connection nor its library is on the hot path.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from sporevm.errors import VmmError

if TYPE_CHECKING:
    from qemu.qmp import QMPClient

#: QMP answers in milliseconds; a VMM that takes this long is stuck.
DEADLINE = 20.0

# The library reports a VMM that goes away, which `quit` asks it to, as an error.
logging.getLogger("qemu.qmp").setLevel(logging.CRITICAL)


class Monitor:
    """Commands to one VMM; one at a time."""

    def __init__(self, socket: Path) -> None:
        self._socket = socket
        self._lock = asyncio.Lock()
        self._client: QMPClient | None = None

    async def execute(self, command: str, **arguments: object) -> object:
        """Run a command; raises VmmError if QEMU refuses, is gone, or does not answer."""
        async with self._connected() as client:
            return await self._ask(client, command, arguments)

    async def execute_with_fd(self, fd: int, command: str, **arguments: object) -> object:
        """The same with a descriptor handed over, as `add-fd` wants it."""
        async with self._connected() as client:
            client.send_fd_scm(fd)
            return await self._ask(client, command, arguments)

    async def close(self) -> None:
        """Hang up; the monitor accepts the next connection."""
        from qemu.qmp import QMPError

        client, self._client = self._client, None
        if client is not None:
            with contextlib.suppress(QMPError, OSError, EOFError):
                await client.disconnect()

    @contextlib.asynccontextmanager
    async def _connected(self) -> AsyncIterator[QMPClient]:
        from qemu.qmp import QMPClient, QMPError

        async with self._lock:
            try:
                async with asyncio.timeout(DEADLINE):
                    if self._client is None:
                        client = QMPClient("spore")
                        await client.connect(str(self._socket))
                        self._client = client
                    yield self._client
            except TimeoutError:
                raise VmmError(f"QEMU's monitor did not answer in {DEADLINE:g} s") from None
            except (QMPError, OSError, EOFError) as error:
                await self.close()
                raise VmmError(f"QEMU's monitor: {error}") from error

    @staticmethod
    async def _ask(client: QMPClient, command: str, arguments: Mapping[str, object]) -> object:
        return await client.execute(command, arguments)
