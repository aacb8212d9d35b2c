"""The route table: what the API offers, in a form that dispatches requests and describes itself."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar
from urllib.parse import parse_qsl, unquote

import msgspec
from aiohttp import web
from msgspec import Struct

from sporevm.api.context import App
from sporevm.errors import NotFound, UsageError


class NoBody(Struct, forbid_unknown_fields=True):
    """The request has no JSON body."""


class NoQuery(Struct, forbid_unknown_fields=True):
    """The request takes no query parameters."""


B = TypeVar("B")
Q = TypeVar("Q")


class MethodNotAllowed(UsageError):
    code, http_status = "method_not_allowed", 405

    def __init__(self, method: str, allowed: list[str]) -> None:
        super().__init__(f"{method} is not allowed here", hint="use " + " or ".join(allowed))
        self.allowed = allowed

    def details(self) -> dict[str, object]:
        return {"allowed": self.allowed}


@dataclass(slots=True)
class Call(Generic[B, Q]):
    """One request, parsed and validated."""

    app: App
    request: web.BaseRequest
    params: tuple[str, ...]
    query: Q
    body: B

    @property
    def ref(self) -> str:
        """The first variable part of the path."""
        return self.params[0]


@dataclass(frozen=True, slots=True)
class Route(Generic[B, Q]):
    """`answer` is the type of the JSON answer, or a media type for anything else."""

    method: str
    path: str
    handler: Callable[[Call[B, Q]], Awaitable[Any]]
    summary: str
    body: type[B]
    query: type[Q]
    answer: Any
    status: int = 200
    #: Media type of a request body that is not JSON.
    upload: str = ""
    #: Types of the lines or messages, for streams.
    client_messages: Any = None
    server_messages: Any = None
    #: False: answered even while the engine is still starting.
    needs_engine: bool = True
    decoder: msgspec.json.Decoder[B] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "decoder", msgspec.json.Decoder(self.body))

    def parse_query(self, raw: str) -> Q:
        """Typed query parameters; UsageError names the one that is wrong."""
        pairs = parse_qsl(raw, keep_blank_values=True, errors="surrogateescape") if raw else []
        values = dict(pairs)
        if len(values) != len(pairs):
            raise UsageError("a query parameter is given twice")
        try:
            return msgspec.convert(values, self.query, strict=False)
        except msgspec.ValidationError as error:
            raise UsageError(f"query: {error}") from None

    def parse_body(self, raw: bytes) -> B:
        try:
            return self.decoder.decode(raw or b"{}")
        except msgspec.DecodeError as error:  # ValidationError is one
            raise UsageError(f"body: {error}") from None


_Node = dict[str, Any]


class Router:
    """Finds the route of a path by its segments, `{name}` matching any one."""

    def __init__(self, routes: list[Route[Any, Any]]) -> None:
        self.routes = routes
        self._root: _Node = {}
        for route in routes:
            node = self._root
            for part in route.path.strip("/").split("/"):
                node = node.setdefault("{}" if part.startswith("{") else part, {})
            node.setdefault("/methods", {})[route.method] = route

    def find(self, method: str, raw_path: str) -> tuple[Route[Any, Any], tuple[str, ...]]:
        """The route and the values of its variable parts; NotFound or MethodNotAllowed."""
        node: _Node = self._root
        params: list[str] = []
        for part in raw_path.strip("/").split("/"):
            if part in node and not part.startswith("{"):
                node = node[part]
            elif part and "{}" in node:
                node = node["{}"]
                params.append(unquote(part, errors="surrogateescape"))
            else:
                node = {}
                break
        methods: dict[str, Route[Any, Any]] | None = node.get("/methods")
        if methods is None:
            path = raw_path.encode(errors="replace").decode()
            raise NotFound(f"there is no {path}", hint="GET /openapi.json lists what there is")
        route = methods.get(method)
        if route is None:
            raise MethodNotAllowed(method, sorted(methods))
        return route, tuple(params)
