"""A TCP connection made by the agent, inside the guest."""

from __future__ import annotations

from sporevm.agent import messages
from sporevm.agent.stream import Stream
from sporevm.errors import GuestError

_EPIPE = 32


class TcpStream:
    """Bytes both ways; each direction ends on its own. Not reading holds the peer back."""

    def __init__(self, stream: Stream, where: str) -> None:
        self._stream = stream
        self._where = where
        self._taken = 0

    async def read(self) -> bytes:
        """The next bytes; b"" at the end. Asking for more says that the last were passed on."""
        if self._taken:
            taken, self._taken = self._taken, 0
            self._stream.credit(1, taken)
        piece = await self._stream.piece()
        if piece is None:
            closing = self._stream.closing
            if closing is not None and not self._stream.at_end:
                what = f"read from {self._where}"
                error = self._stream.judge(lambda: messages.failure(closing, what))
                if error is not None:
                    raise error
            return b""
        self._taken = len(piece[1])
        return piece[1]

    async def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send all; GuestError when the connection is over."""
        if not await self._stream.send(0, memoryview(data)):
            closing = self._stream.closing
            assert closing is not None
            what = f"write to {self._where}"
            error = self._stream.judge(lambda: messages.failure(closing, what))
            raise error or GuestError(f"cannot {what}: it was closed", errno=_EPIPE)

    def write_eof(self) -> None:
        """No more bytes from here; the other direction goes on."""
        self._stream.eof(0)

    async def aclose(self) -> None:
        self._stream.close()
