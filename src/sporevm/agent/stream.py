"""One conversation with the agent, seen from whoever started it."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from typing import Final, TypeVar

from sporevm.agent import messages
from sporevm.agent.link import Link, Wakeup, silent
from sporevm.errors import ProtocolViolation, StateError
from sporevm.wire import constants as c
from sporevm.wire.frames import Frame
from sporevm.wire.tlv import Field, Fields, encode

#: From this many waiting pieces on, small ones are put together: a guest that writes byte by byte
#: must not cost the host an object for each of the bytes a window allows.
_MANY_PIECES: Final = 64

T = TypeVar("T")


class Stream:
    """An open stream. Data waits here, at most a window for each channel, until it is taken.

    `hold`: answer the agent's CLOSE only in `close`, so that it keeps what belongs to the stream.
    """

    __slots__ = (
        "_hold",
        "_id",
        "_last",
        "_link",
        "_open",
        "_pieces",
        "_wakeup",
        "closed",
        "closing",
        "notice",
        "reply",
    )

    def __init__(
        self, link: Link, service: c.Service, fields: Iterable[Field], *, hold: bool = False
    ) -> None:
        self._link = link
        self._hold = hold
        self.reply: Fields | None = None
        self.notice: Fields | None = None  # the agent's EVENT
        self.closing: Fields | None = None  # what its CLOSE said
        self.closed = False  # by us
        self._open = set(c.RULES[service].agent_sends)  # channels that have not ended
        self._pieces: deque[tuple[int, bytes | bytearray]] = deque()
        self._last: dict[int, bytearray] = {}  # by channel: the last piece, if it may still grow
        self._wakeup = Wakeup()
        self._id = link.open(service, fields, self)
        link.flush()

    # What the link calls

    def on_frame(self, frame: Frame) -> None:
        kind = frame.type
        if kind == c.DATA:
            self._keep(frame.channel, frame.payload)
        elif kind == c.REPLY:
            self.reply = Fields(frame.payload)
        elif kind == c.EOF:
            self._open.discard(frame.channel)
        elif kind == c.EVENT:
            self.notice = Fields(frame.payload)
        elif kind == c.CLOSE:
            self.closing = Fields(frame.payload)
            if not self._hold:
                self._link.connection.close(self._id)  # leaves with the link's next flush
                self._link.forget(self._id)
        self._wakeup.wake()

    def fail(self) -> None:
        self._wakeup.wake()

    def _keep(self, channel: int, data: bytes) -> None:
        if len(self._pieces) < _MANY_PIECES:
            self._pieces.append((channel, data))
            self._last.pop(channel, None)  # this piece stands behind it
            return
        growing = self._last.get(channel)
        if growing is not None and len(growing) + len(data) <= c.MAX_PAYLOAD:
            growing += data
        else:
            self._last[channel] = growing = bytearray(data)
            self._pieces.append((channel, growing))

    # Waiting

    async def until(
        self, ready: Callable[[], bool], *, within: float | None = None, what: str = ""
    ) -> None:
        """Wait until `ready()`; raises when the link or this stream is over before."""
        if ready():
            return
        try:
            async with asyncio.timeout(within):
                while not ready():
                    self._link.check()
                    if self.closed:
                        raise StateError("this was closed", current="closed", required="open")
                    await self._wakeup.wait()
        except TimeoutError:
            raise silent(what, within or 0) from None

    async def answer(self, what: str, *, path: str = "", within: float) -> Fields:
        """The agent's REPLY; GuestError if it says no. `what` completes "cannot …"."""
        await self.until(lambda: self.reply is not None, within=within, what=f"answer ({what})")
        reply = self.reply
        assert reply is not None
        error = self.judge(lambda: messages.failure(reply, what, path))
        if error is not None:
            self.close()
            raise error
        return reply

    async def piece(self, *, within: float | None = None) -> tuple[int, bytes] | None:
        """The next piece of data with its channel; None when all channels are at their end.

        None too when the agent closed the stream: `closing` and `at_end` tell the two apart.
        """
        if not self._pieces:
            await self.until(
                lambda: bool(self._pieces) or not self._open or self.closing is not None,
                within=within,
                what="send data",
            )
            if not self._pieces:
                return None
        channel, data = self._pieces.popleft()
        if self._last.get(channel) is data:
            del self._last[channel]
        return channel, bytes(data)

    @property
    def at_end(self) -> bool:
        """Every channel has had its EOF."""
        return not self._open

    async def closing_fields(self, *, within: float) -> Fields:
        """What the agent's CLOSE says."""
        await self.until(lambda: self.closing is not None, within=within, what="close")
        assert self.closing is not None
        return self.closing

    # Sending

    async def send(
        self, channel: int, data: bytes | memoryview, *, within: float | None = None
    ) -> bool:
        """Send all of `data` as credit allows; False if the agent closed the stream before.

        Stops early, with True, when an EVENT of the agent has come: it wants no more. AgentError
        if nothing at all could be sent for `within` seconds.
        """
        view = memoryview(data).cast("B")
        connection = self._link.connection
        while view and self.notice is None:
            if self.closing is not None:
                return False
            size = min(len(view), c.MAX_PAYLOAD, self._sendable(channel))
            if size == 0:
                await self._until_sendable(channel, within)
                continue
            connection.data(self._id, channel, view[:size])
            self._link.flush()
            view = view[size:]
        return True

    def _sendable(self, channel: int) -> int:
        """Bytes that may be sent now. Raises when none ever will."""
        self._link.check()
        if self.closed:
            raise StateError("this was closed", current="closed", required="open")
        return 0 if self._link.paused else self._link.connection.window(self._id, channel)

    async def _until_sendable(self, channel: int, within: float | None) -> None:
        try:
            async with asyncio.timeout(within):
                while not (self._sendable(channel) or self.closing or self.notice):
                    wakeup = self._link.changed if self._link.paused else self._wakeup
                    await wakeup.wait()
        except TimeoutError:
            raise silent("take data", within or 0) from None

    def eof(self, channel: int) -> None:
        if self._link.reason is None:
            self._link.connection.eof(self._id, channel)
            self._link.flush()

    def event(self, fields: Iterable[Field]) -> None:
        self._link.check()
        self._link.connection.event(self._id, encode(fields))
        self._link.flush()

    def credit(self, channel: int, size: int) -> None:
        """`size` bytes that were taken have been passed on."""
        if self._link.reason is None:
            self._link.connection.credit(self._id, channel, size)
            self._link.flush()

    def close(self, fields: Iterable[Field] = ()) -> None:
        """Leave the stream, whatever its state; idempotent. Data not taken is dropped."""
        if self.closed:
            return
        self.closed = True
        self._pieces.clear()
        self._last.clear()
        if self._link.reason is None:
            self._link.connection.close(self._id, encode(fields))
            self._link.forget(self._id)
            self._link.flush()
        self._wakeup.wake()
        self._link.changed.wake()

    def judge(self, parse: Callable[[], T]) -> T:
        """`parse()`; if it finds a violation, that ends the connection, not only this call."""
        try:
            return parse()
        except ProtocolViolation as error:
            self._link.fail(error)
            raise
