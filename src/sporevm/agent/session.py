"""Reaching the agent, and asking it one thing at a time: the base of `Agent`."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterable
from pathlib import Path
from typing import Final, Self

from sporevm.agent.link import Link
from sporevm.agent.messages import Hello
from sporevm.agent.stream import Stream
from sporevm.errors import AgentError
from sporevm.wire.constants import Service
from sporevm.wire.tlv import Field, Fields

#: How long the agent may take to answer. Some answers need the disk, so it is generous; a VMM that
#: died is noticed at once by the end of the channel.
CALL_TIMEOUT: Final = 30.0
_CLOSE_TIMEOUT: Final = 1.0


class Session:
    """A connection to the agent. Made by `connect`."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._greeting: asyncio.TimerHandle | None = None

    @classmethod
    async def connect(
        cls, where: Path | socket.socket, *, timeout: float = 10.0, flush: bool = False
    ) -> Self:
        """Open the channel and send SYNC; calls may follow without waiting for `ready`.

        `where` is a Unix socket's path, or a connected socket, which is ours from here on.
        `flush`: the agent may be in the middle of a frame (a reconnect, a busy VM restored).
        Everything fails with AgentError when the agent has not said hello `timeout` from now.
        """
        loop = asyncio.get_running_loop()
        link = Link(flush=flush)
        deadline = loop.time() + timeout
        try:
            async with asyncio.timeout_at(deadline):
                if isinstance(where, Path):
                    await loop.create_unix_connection(lambda: link, os.fspath(where))
                else:
                    where.setblocking(False)  # noqa: ASYNC240 -- a socket, not a path
                    await loop.create_connection(lambda: link, sock=where)
        except TimeoutError:
            raise AgentError(f"cannot connect to the guest agent within {timeout:g} s") from None
        except OSError as error:
            raise AgentError(f"cannot connect to the guest agent: {error}") from error
        session = cls(link)
        session._greeting = loop.call_at(deadline, session._silent, timeout)
        return session

    def _silent(self, timeout: float) -> None:
        if self._link.hello is None:
            self._link.fail(
                AgentError(
                    f"the guest agent did not say hello within {timeout:g} s",
                    hint="the guest may not have booted: see the sandbox's console log",
                )
            )

    async def ready(self) -> Hello:
        """Wait for the agent's hello, as long as `connect` allowed."""
        link = self._link
        while link.hello is None:
            link.check()
            await link.changed.wait()
        self._cancel_greeting()
        return link.hello

    async def ping(self, data: bytes = b"", *, timeout: float = CALL_TIMEOUT) -> None:
        """Return when the agent has sent back `data` (at most 64 bytes)."""
        link = self._link
        link.check()
        link.connection.ping(data)
        link.flush()
        goal = link.connection.pings_sent
        await link.until(lambda: link.pongs >= goal, within=timeout, what="answer a ping")

    @property
    def closed(self) -> asyncio.Future[AgentError | None]:
        """Done when the channel is: with the reason, or None after `aclose`. Don't cancel it."""
        return self._link.closed

    async def wait_closed(self) -> AgentError | None:
        """Wait for the end of the channel; why it ended, None after `aclose`."""
        return await asyncio.shield(self._link.closed)

    async def aclose(self) -> None:
        """Leave. Processes go on; what still waits on this connection fails."""
        self._cancel_greeting()
        self._link.leave(AgentError("this connection to the guest agent was closed"))
        self._link.close(now=False)
        done, _ = await asyncio.wait({self._link.closed}, timeout=_CLOSE_TIMEOUT)
        if not done:  # the guest does not take what was still to send
            self._link.close(now=True)
            await self.wait_closed()

    def _cancel_greeting(self) -> None:
        if self._greeting is not None:
            self._greeting.cancel()
            self._greeting = None

    async def _open(
        self, service: Service, fields: Iterable[Field], *, within: float, hold: bool = False
    ) -> Stream:
        """Open a stream, after waiting for a free one if need be."""
        link = self._link
        link.check()
        if link.connection.full:
            await link.until(
                lambda: not link.connection.full, within=within, what="end one of its streams"
            )
        return Stream(link, service, fields, hold=hold)

    async def _call(
        self,
        service: Service,
        fields: Iterable[Field],
        what: str,
        *,
        path: str = "",
        within: float = CALL_TIMEOUT,
    ) -> tuple[Stream, Fields]:
        """Open a stream and wait for a good REPLY. The stream is closed if anything goes wrong."""
        stream = await self._open(service, fields, within=within)
        try:
            reply = await stream.answer(what, path=path, within=within)
        except BaseException:  # cancelled, too: nobody will look at this stream again
            stream.close()
            raise
        return stream, reply

    async def _ask(
        self, service: Service, fields: Iterable[Field], what: str, *, path: str = ""
    ) -> tuple[Stream, Fields]:
        """`_call` for a one-shot service: the stream is closed when this returns."""
        stream, reply = await self._call(service, fields, what, path=path)
        stream.close()
        return stream, reply
