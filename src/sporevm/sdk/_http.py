"""A small HTTP/1.1 client: keep-alive connections to one engine, streams and WebSockets.

It speaks only to spored, whose answers are well-formed or mean a defect, and it is on the path of
every command: importing h11 and wsproto takes longer than the request. Hence this module. What it
can't parse is an EngineError.
"""

from __future__ import annotations

import asyncio
import select
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator
from contextlib import suppress
from typing import Protocol

from sporevm.errors import EngineError

#: How long an unused connection is kept.
IDLE_SECONDS = 30.0
_MAX_IDLE = 8
_LIMIT = 1 << 18  # bytes a connection reads ahead
_PIECE = 1 << 18

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Headers = dict[str, str]
Body = bytes | AsyncIterable[bytes] | None


class Connector(Protocol):
    async def __call__(self) -> Streams: ...


class Lost(EngineError):
    """The connection ended before its answer was whole."""


class Connection:
    """One connection, used by one request at a time."""

    def __init__(self, streams: Streams) -> None:
        self.reader, self.writer = streams
        self.fresh = True
        #: It still owes bytes of a request that was answered early.
        self.spent = False
        self._fd: int = self.writer.get_extra_info("socket").fileno()

    def usable(self) -> bool:
        """False if the peer has closed it: nothing may come on an idle connection."""
        if self.writer.is_closing() or self.reader.at_eof():
            return False
        # The event loop may not have seen the end yet; the kernel has.
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        return not poll.poll(0)

    def close(self) -> None:
        self.writer.close()

    def abort(self) -> None:
        self.writer.transport.abort()

    async def send(self, head: bytes, body: Body) -> None:
        if body is None or isinstance(body, bytes):
            await self._send_whole(head, body or b"")
            return
        self.writer.write(head)
        async for piece in body:
            if piece:
                self.writer.writelines((b"%x\r\n" % len(piece), piece, b"\r\n"))
                await self.writer.drain()
        self.writer.write(b"0\r\n\r\n")
        await self.writer.drain()

    async def _send_whole(self, head: bytes, body: bytes) -> None:
        if len(body) <= _PIECE:
            self.writer.write(head + body)
            await self.writer.drain()
            return
        self.writer.write(head)
        view = memoryview(body)
        for start in range(0, len(body), _PIECE):
            self.writer.write(view[start : start + _PIECE])
            await self.writer.drain()

    async def read_head(self) -> tuple[int, Headers]:
        """Status and headers (lower-case names) of the next answer that is not a 1xx, but 101."""
        while True:
            raw = await self._until(b"\r\n\r\n")
            line, *fields = raw[:-4].decode("latin-1").split("\r\n")
            try:
                status = int(line.split(" ", 2)[1])
                headers = {}
                for field in fields:
                    name, _, value = field.partition(":")
                    headers[name.lower()] = value.strip()
            except (ValueError, IndexError):
                raise EngineError(f"what answered does not speak HTTP: {line[:80]!r}") from None
            if status >= 200 or status == 101:
                return status, headers

    async def _until(self, end: bytes) -> bytes:
        try:
            return await self.reader.readuntil(end)
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            partial = isinstance(error, asyncio.IncompleteReadError) and error.partial
            raise Lost(
                "the engine closed the connection" + (" midway" if partial else "")
            ) from None
        except asyncio.LimitOverrunError:
            raise EngineError("the engine sent a header that never ends") from None

    async def body(self, headers: Headers) -> AsyncIterator[bytes]:
        """The body in pieces as they come; Lost if it is cut short."""
        try:
            if headers.get("transfer-encoding", "").lower() == "chunked":
                while size := int((await self._until(b"\r\n")).split(b";")[0], 16):
                    async for piece in self._exactly(size):
                        yield piece
                    await self.reader.readexactly(2)
                await self._until(b"\r\n")
            else:
                async for piece in self._exactly(int(headers.get("content-length", "0"))):
                    yield piece
        except ValueError:
            raise EngineError("the engine sent a malformed body") from None
        except (asyncio.IncompleteReadError, ConnectionError):
            raise Lost("the engine's answer was cut short") from None

    async def _exactly(self, size: int) -> AsyncIterator[bytes]:
        while size:
            piece = await self.reader.read(min(size, _LIMIT))
            if not piece:
                raise asyncio.IncompleteReadError(b"", size)
            size -= len(piece)
            yield piece


class Answer:
    """An answer whose body is still to be read. Close it, or read it to the end."""

    def __init__(self, http: Http, connection: Connection, status: int, headers: Headers) -> None:
        self.status = status
        self.headers = headers
        self._http = http
        self._connection: Connection | None = connection

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        connection = self._connection
        if connection is None:
            return
        try:
            async for piece in connection.body(self.headers):
                yield piece
            self._connection = None
            self._http.give_back(connection, self.headers)
        finally:
            self.close()

    async def lines(self) -> AsyncGenerator[bytes, None]:
        rest = b""
        async for piece in self.chunks():
            *lines, rest = (rest + piece).split(b"\n")
            for line in lines:
                yield line
        if rest:
            raise Lost("the engine's answer ends within a line")

    async def read(self) -> bytes:
        return b"".join([piece async for piece in self.chunks()])

    def close(self) -> None:
        """Drop the connection if the body was not read to its end: the engine notices."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.abort()


class Http:
    """Requests to one engine, over as many connections as there are requests at a time."""

    def __init__(self, connect: Connector, headers: Headers) -> None:
        self._connect = connect
        self._fixed = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        self._idle: list[tuple[Connection, asyncio.TimerHandle]] = []

    async def request(
        self, method: str, target: str, body: Body = None, headers: Headers | None = None
    ) -> Answer:
        """Send a request and read the head of its answer."""
        head = self._head(method, target, body, headers or {})
        connection = await self._take()
        while True:
            try:
                status, fields = await self._exchange(connection, head, body)
                return Answer(self, connection, status, fields)
            except Lost:
                # An engine that ended closed its idle connections: nothing was lost but a race.
                if connection.fresh or method != "GET":
                    raise
                connection = Connection(await self._connect())

    async def open_raw(self, target: str, headers: Headers) -> tuple[Connection, int, Headers]:
        """A connection of its own, for an upgrade."""
        connection = Connection(await self._connect())
        head = self._head("GET", target, None, headers)
        status, fields = await self._exchange(connection, head, None)
        return connection, status, fields

    def _head(self, method: str, target: str, body: Body, headers: Headers) -> bytes:
        lines = [f"{method} {target} HTTP/1.1\r\nHost: spored\r\n{self._fixed}"]
        lines += [f"{name}: {value}\r\n" for name, value in headers.items()]
        if isinstance(body, bytes):
            lines.append(f"Content-Length: {len(body)}\r\n")
        elif body is not None:
            lines.append("Transfer-Encoding: chunked\r\n")
        lines.append("\r\n")
        return "".join(lines).encode("ascii")

    async def _exchange(
        self, connection: Connection, head: bytes, body: Body
    ) -> tuple[int, Headers]:
        try:
            if body is None or (isinstance(body, bytes) and len(body) <= _PIECE):
                with suppress(ConnectionError):  # the answer, or its absence, says more
                    await connection.send(head, body)
                return await connection.read_head()
            return await self._upload(connection, head, body)
        except BaseException:
            connection.abort()
            raise

    @staticmethod
    async def _upload(
        connection: Connection, head: bytes, body: bytes | AsyncIterable[bytes]
    ) -> tuple[int, Headers]:
        """Send while listening: the engine may refuse before it has read everything."""
        sending = asyncio.ensure_future(connection.send(head, body))
        answering = asyncio.ensure_future(connection.read_head())
        try:
            await asyncio.wait((sending, answering), return_when=asyncio.FIRST_COMPLETED)
            error = sending.exception() if sending.done() else None
            if error is not None and not isinstance(error, ConnectionError):
                raise error  # the caller's own iterator failed
            answer = await answering
            connection.spent = not sending.done()
            return answer
        finally:
            for task in (sending, answering):
                task.cancel()
            await asyncio.gather(sending, answering, return_exceptions=True)

    async def _take(self) -> Connection:
        while self._idle:
            connection, timer = self._idle.pop()
            timer.cancel()
            if connection.usable():
                connection.fresh = False
                return connection
            connection.close()
        return Connection(await self._connect())

    def give_back(self, connection: Connection, headers: Headers) -> None:
        reusable = headers.get("connection", "").lower() != "close" and not connection.spent
        if reusable and len(self._idle) < _MAX_IDLE and not connection.writer.is_closing():
            loop = asyncio.get_running_loop()
            timer = loop.call_later(IDLE_SECONDS, self._expire, connection)
            self._idle.append((connection, timer))
        else:
            connection.close()

    def _expire(self, connection: Connection) -> None:
        self._idle = [item for item in self._idle if item[0] is not connection]
        connection.close()

    async def close(self) -> None:
        """Close idle connections. Those in use end with their answers."""
        idle, self._idle = self._idle, []
        for connection, timer in idle:
            timer.cancel()
            connection.close()
        for connection, _ in idle:
            with suppress(OSError):
                await connection.writer.wait_closed()
