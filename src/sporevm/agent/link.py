"""One connected channel on the event loop: reads into the connection, writes what it says.

A `Link` moves bytes and hands each frame to its `Stream`. Everything that waits, waits on a
`Wakeup` and looks again, so there is one way to wait and one way to fail.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterable
from typing import Final, Protocol

from sporevm.agent import messages
from sporevm.errors import AgentError, UsageError
from sporevm.wire import constants as c
from sporevm.wire.connection import Connection
from sporevm.wire.frames import Frame
from sporevm.wire.tlv import Field, Fields, encode

#: Bytes in the transport's own buffer above which senders of DATA wait.
_HIGH_WATER: Final = 4 * c.MAX_PAYLOAD


class Wakeup:
    """Wakes everyone who waits now. They look again at whatever they wait for."""

    __slots__ = ("_waiters",)

    def __init__(self) -> None:
        self._waiters: set[asyncio.Future[None]] = set()

    def wake(self) -> None:
        if self._waiters:
            for waiter in self._waiters:
                if not waiter.done():
                    waiter.set_result(None)
            self._waiters.clear()

    async def wait(self) -> None:
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.add(waiter)
        try:
            await waiter
        finally:
            self._waiters.discard(waiter)


class Receiver(Protocol):
    """What a link needs of a stream."""

    def on_frame(self, frame: Frame) -> None: ...

    def fail(self) -> None:
        """The link is over; `Link.reason` says why."""


class Link(asyncio.BufferedProtocol):
    """Owns the connection, and the transport once there is one."""

    def __init__(self, *, flush: bool = False) -> None:
        self.connection = Connection(os.urandom(c.NONCE_BYTES))
        self.connection.start(flush=flush)
        self.hello: messages.Hello | None = None
        self.pongs = 0
        self.paused = False  # the transport asks for no more DATA for now
        self.reason: AgentError | None = None  # set once, when no more can be done here
        self.changed = Wakeup()  # hello, pongs, paused, reason, a free stream
        self.closed: asyncio.Future[AgentError | None]
        self.closed = asyncio.get_running_loop().create_future()
        self._left = False
        self._streams: dict[int, Receiver] = {}
        self._transport: asyncio.Transport | None = None

    # asyncio's callbacks

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.set_write_buffer_limits(high=_HIGH_WATER)
        self.flush()

    def get_buffer(self, sizehint: int) -> memoryview:
        return self.connection.room()

    def buffer_updated(self, nbytes: int) -> None:
        if self.reason is not None:
            return
        try:
            for frame in self.connection.received(nbytes):
                self._dispatch(frame)
        except AgentError as error:
            self.fail(error)
            return
        self.changed.wake()
        self.flush()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        detail = f": {exc}" if exc is not None else ""
        self.fail(AgentError(f"the channel to the guest agent ended{detail}"))
        if not self.closed.done():
            self.closed.set_result(None if self._left else self.reason)

    def pause_writing(self) -> None:
        self.paused = True

    def resume_writing(self) -> None:
        self.paused = False
        self.changed.wake()

    # Frames

    def _dispatch(self, frame: Frame) -> None:
        if frame.type == c.HELLO:
            self.hello = messages.hello(Fields(frame.payload))
        elif frame.type == c.PONG:
            self.pongs += 1
        else:
            self._streams[frame.stream].on_frame(frame)

    def flush(self) -> None:
        """Give the transport what the connection has to send."""
        transport = self._transport
        if transport is not None and self.reason is None:
            data = self.connection.take()
            if data:
                transport.write(data)

    def open(self, service: c.Service, fields: Iterable[Field], receiver: Receiver) -> int:
        """Open a stream whose frames go to `receiver`; the OPEN leaves with the next `flush`."""
        payload = encode(fields)
        if len(payload) >= c.MAX_PAYLOAD:
            raise UsageError(
                f"the request is too large: {len(payload)} bytes",
                hint="arguments, environment and small files must fit into 64 KiB together",
            )
        stream = self.connection.open(service, payload)
        self._streams[stream] = receiver
        return stream

    def forget(self, stream: int) -> None:
        self._streams.pop(stream, None)

    def check(self) -> None:
        """Raise the reason if the link is over: a new error each time, for its own traceback."""
        if self.reason is not None:
            raise type(self.reason)(self.reason.message, hint=self.reason.hint) from self.reason

    async def until(self, ready: Callable[[], bool], *, within: float, what: str) -> None:
        """Wait until `ready()`; AgentError after `within` seconds, or why the link is over."""
        try:
            async with asyncio.timeout(within):
                while not ready():
                    self.check()
                    await self.changed.wait()
        except TimeoutError:
            raise silent(what, within) from None

    # The end

    def fail(self, reason: AgentError) -> None:
        """End everything at once; the first reason counts."""
        if self.reason is None:
            self.reason = reason
            self._end()
        if self._transport is not None:
            self._transport.abort()

    def leave(self, reason: AgentError) -> None:
        """Send nothing more, and let what waits fail with `reason`; the transport stays."""
        self.flush()
        if self.reason is None:
            self.reason = reason
            self._left = True
            self._end()

    def _end(self) -> None:
        streams = [*self._streams.values()]
        self._streams.clear()
        for stream in streams:
            stream.fail()
        self.changed.wake()

    def close(self, *, now: bool) -> None:
        """Close the transport: after its buffer is sent, or `now`. `closed` says when it is."""
        if self._transport is not None:
            if now:
                self._transport.abort()
            else:
                self._transport.close()


def silent(what: str, within: float) -> AgentError:
    return AgentError(
        f"the guest agent did not {what} within {within:g} s",
        hint="the guest may be overloaded or stuck: see the sandbox's console log",
    )
