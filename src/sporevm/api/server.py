"""The HTTP server: one handler over the route table, on sockets made by the caller.

aiohttp's low-level server parses HTTP; routing, validation and errors are ours, so that every
answer, for whatever nonsense came in, has the same form.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import re
import socket
from typing import Any

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from sporevm._version import __version__
from sporevm.api import auth
from sporevm.api.answers import Broken, EngineOutdated, InternalError, error_answer, json_answer
from sporevm.api.context import App
from sporevm.api.models import MAX_BODY
from sporevm.api.router import Call, Route, Router
from sporevm.api.routes import all_routes
from sporevm.errors import SporeError, UsageError

log = logging.getLogger(__name__)

REQUEST_ID = "X-Request-Id"
CLIENT_VERSION = "Spore-Client"
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


class TooBig(UsageError):
    code, http_status = "too_big", 413


def version_key(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text)[:3])


_OWN_VERSION = version_key(__version__)


class _Protocol(RequestHandler):
    """A connection. Refuses other users, and words aiohttp's own complaints as ours."""

    __slots__ = ()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        sock: socket.socket = transport.get_extra_info("socket")
        if sock.family == socket.AF_UNIX and not auth.may_connect(auth.peer_uid(sock)):
            log.warning("refused a connection of uid %d", auth.peer_uid(sock))
            self.force_close()
            transport.close()
        super().connection_made(transport)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        if status >= 500:
            log.error("request failed in the HTTP layer", exc_info=exc)
            return error_answer(InternalError("the engine failed on this request"))
        text = (message or "not HTTP/1.1").strip().split("\n", 1)[0]
        answer = error_answer(UsageError(f"malformed request: {text}"))
        answer.force_close()
        return answer


class _HttpServer(web.Server):
    def __call__(self) -> RequestHandler:
        return _Protocol(self, loop=self._loop, **self._kwargs)


class ApiServer:
    """Serves one App. `serve` returns at once; `close` ends what is still running."""

    def __init__(self, app: App) -> None:
        self.app = app
        self.router = Router(all_routes())
        self._http = _HttpServer(
            self._handle,
            handler_cancellation=True,  # a client that goes away stops what only it wanted
            access_log=None,
            logger=log,
            tcp_keepalive=False,
            keepalive_timeout=600.0,
            lingering_time=1.0,
            auto_decompress=False,
            read_bufsize=1 << 18,
            max_field_size=32768,
            max_line_size=32768,
        )
        self._servers: list[asyncio.Server] = []
        self._prefix = os.urandom(3).hex()
        self._count = itertools.count(1)

    async def serve(self, sock: socket.socket) -> None:
        """Accept connections on a listening socket."""
        loop = asyncio.get_running_loop()
        self._servers.append(await loop.create_server(self._http, sock=sock, backlog=128))

    async def close(self, grace: float = 2.0) -> None:
        """Stop accepting; give running requests `grace` seconds, then drop them."""
        for server in self._servers:
            server.close()
        self._http.pre_shutdown()
        await self._http.shutdown(grace)
        if self.app.tasks:
            await asyncio.wait(list(self.app.tasks), timeout=grace)

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        asked = request.headers.get(REQUEST_ID, "")
        request_id = asked if _REQUEST_ID.fullmatch(asked) else self._next_id()
        try:
            answer = await self._dispatch(request)
        except SporeError as error:
            answer = error_answer(error)
        except web.HTTPException as error:  # aiohttp refusing a WebSocket handshake
            answer = error_answer(UsageError(f"not a WebSocket request: {error.text or ''}"[:300]))
        except Broken as error:
            log.warning("%s: %s %s broke: %s", request_id, request.method, request.path, error)
            self._abort(request)
            raise ConnectionResetError from None
        except (ConnectionError, TimeoutError):
            raise
        except Exception:  # noqa: BLE001 - the boundary of the API: a defect must not end spored
            log.exception("%s: %s %s failed", request_id, request.method, request.path)
            hint = f"spored.log says more: look for {request_id}"
            answer = error_answer(InternalError("the engine failed on this request", hint=hint))
        if not answer.prepared:
            answer.headers[REQUEST_ID] = request_id
        return answer

    def _next_id(self) -> str:
        return f"{self._prefix}-{next(self._count):x}"

    @staticmethod
    def _abort(request: web.BaseRequest) -> None:
        if isinstance(request.transport, asyncio.Transport):
            request.transport.abort()

    async def _dispatch(self, request: web.BaseRequest) -> web.StreamResponse:
        raw_path, _, raw_query = request.raw_path.partition("?")
        route, params = self.router.find(request.method, raw_path)
        self._check_version(request, route)
        if route.needs_engine:
            await self._engine_ready()
        query = route.parse_query(raw_query)
        body: Any = None
        if not route.upload:
            body = route.parse_body(await self._read_body(request))
        call = Call(self.app, request, params, query, body)
        answer = await route.handler(call)
        if isinstance(answer, web.StreamResponse):
            return answer
        return json_answer(answer, route.status)

    @staticmethod
    def _check_version(request: web.BaseRequest, route: Route[Any, Any]) -> None:
        client = request.headers.get(CLIENT_VERSION)
        if client and route.needs_engine and version_key(client) > _OWN_VERSION:
            raise EngineOutdated(
                f"the engine is version {__version__}, older than the client ({client[:32]})",
                hint="restart it: spore daemon stop",
            )

    async def _engine_ready(self) -> None:
        if not self.app.ready.is_set():
            await self.app.ready.wait()
        if self.app.failure is not None:
            raise self.app.failure

    @staticmethod
    async def _read_body(request: web.BaseRequest) -> bytes:
        if not request.can_read_body:
            return b""
        parts: list[bytes] = []
        size = 0
        while chunk := await request.content.readany():
            size += len(chunk)
            if size > MAX_BODY:
                raise TooBig(f"a JSON body can't exceed {MAX_BODY} bytes")
            parts.append(chunk)
        return b"".join(parts)
