"""One QEMU process that runs one VM."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Coroutine
from dataclasses import dataclass
from pathlib import Path

from sporevm._sys.process import Child, Identity
from sporevm.errors import StateError, VmmError
from sporevm.vmm.qemu.qmp import Monitor

CHANNEL = "ch"
QMP = "qmp"
CONSOLE = "console.log"

_TAIL = 4096
_QUIT_DEADLINE = 10.0


@dataclass(frozen=True, slots=True)
class Home:
    """Where a VM's sockets and logs are."""

    run_dir: Path
    log: Path

    @property
    def channel(self) -> Path:
        return self.run_dir / CHANNEL

    @property
    def qmp(self) -> Path:
        return self.run_dir / QMP

    @property
    def console(self) -> Path:
        return self.run_dir / CONSOLE


class QemuMachine:
    """See `sporevm.vmm.base.Machine`."""

    def __init__(
        self,
        child: Child,
        home: Home,
        *,
        confinement: list[str],
        shared_mem: Path | None,
    ) -> None:
        self._child = child
        self._home = home
        self._monitor = Monitor(home.qmp)
        self._shared_mem = shared_mem
        self.confinement = confinement

    @property
    def identity(self) -> Identity:
        return self._child.identity

    @property
    def channel(self) -> Path:
        return self._home.channel

    @property
    def console(self) -> Path:
        return self._home.console

    async def pause(self) -> None:
        await self._ask("stop")

    async def resume(self) -> None:
        await self._ask("cont")

    async def save(self, state: Path) -> None:
        """Pause for good, write the device state, end QEMU.

        Raises StateError for a VM whose memory is a private copy: there is no file to resume from.
        """
        if self._shared_mem is None:
            raise StateError(
                "this VM's memory is private, so its state alone can't be resumed",
                current="private",
                required="shared",
            )
        fd = os.open(state, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            await self._ask("stop")
            # QEMU's user may write nowhere, so it gets the file itself.
            added = await self._watched(self._monitor.execute_with_fd(fd, "add-fd"))
            number = added["fdset-id"] if isinstance(added, dict) else None
            # All devices and no memory, on any machine; Xen is only where the name comes from.
            path = f"/dev/fdset/{number}"
            await self._ask("xen-save-devices-state", filename=path, live=False)
            await self._quit()
            os.fsync(fd)
            # The memory was given to the VMM's user; it is ours again, and nobody's to change.
            if os.geteuid() == 0:
                os.chown(self._shared_mem, 0, 0)
            self._shared_mem.chmod(0o444)
        finally:
            os.close(fd)

    async def wait(self) -> int | None:
        return await self._child.wait()

    async def kill(self) -> None:
        """End QEMU now; its memory is thrown away, so there is nothing to ask it politely for."""
        await self._child.terminate(grace=0)
        await self._monitor.close()
        for socket in (self._home.channel, self._home.qmp):
            socket.unlink(missing_ok=True)

    async def release(self) -> None:
        """Let go of the VM and leave it running, for the next engine to adopt."""
        await self._monitor.close()
        self._child.release()

    def trim_console(self, limit: int) -> None:
        """Empty the console's file if it has grown beyond `limit` bytes.

        A guest may write to its console without end. QEMU appends, so it goes on at the start.
        """
        with contextlib.suppress(FileNotFoundError):
            if self.console.stat().st_size > limit:
                os.truncate(self.console, 0)

    def failure(self, what: str) -> VmmError:
        status = self._child.status
        if status is None:
            how = "ended"
        elif status < 0:
            how = f"was killed by signal {-status}"
        else:
            how = f"ended with status {status}"
        tail = _tail(self._home.log) or _tail(self.console)
        last = tail.rsplit("\n", 1)[-1]
        return VmmError(
            f"{what}: QEMU {how}" + (f": {last}" if last else ""),
            command=self._child.command,
            status=status,
            log_tail=tail,
        )

    async def _ask(self, command: str, **arguments: object) -> object:
        return await self._watched(self._monitor.execute(command, **arguments))

    async def _watched(self, asking: Coroutine[object, object, object]) -> object:
        """An answer, or at once the reason why there will be none: QEMU has died."""
        answer = asyncio.ensure_future(asking)
        death = asyncio.ensure_future(self._child.wait())
        try:
            await asyncio.wait({answer, death}, return_when=asyncio.FIRST_COMPLETED)
            if answer.done() and answer.exception() is None:
                return answer.result()
            if death.done():
                raise self.failure("monitor")
            return await answer
        finally:
            for task in (answer, death):
                task.cancel()
            await asyncio.gather(answer, death, return_exceptions=True)

    async def _quit(self) -> None:
        with contextlib.suppress(VmmError):
            await self._monitor.execute("quit")
        try:
            async with asyncio.timeout(_QUIT_DEADLINE):
                await self._child.wait()
        except TimeoutError:
            await self._child.terminate(grace=0)
        await self._monitor.close()


def _tail(path: Path) -> str:
    """Last words of a log. Its writer is not to be trusted, and it may be any size."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL))
            return file.read(_TAIL).decode(errors="replace").strip()
    except OSError:
        return ""
