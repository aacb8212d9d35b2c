"""The OpenAPI description, made from the route table; `docs/openapi.json` is a copy of it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import msgspec

from sporevm._version import __version__
from sporevm.api.answers import JSON, JSON_LINES
from sporevm.api.models import ErrorAnswer
from sporevm.api.router import NoBody, Route
from sporevm.api.routes import all_routes

_REF = "#/components/schemas/{name}"
_MODULES = {"service": "engine"}


def document() -> dict[str, Any]:
    routes = all_routes()
    kinds = list(_types(routes))
    schemas, components = msgspec.json.schema_components(kinds, schema_hook=_any, ref_template=_REF)
    by_type = {id(kind): schema for kind, schema in zip(kinds, schemas, strict=True)}
    paths: dict[str, Any] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, by_type)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Spore engine API",
            "version": __version__,
            "description": "Served by spored on a private Unix socket. Every error has the form "
            "of ErrorAnswer. A `ref` is a sandbox's id, the start of one, or its name.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": paths,
        "components": {"schemas": dict(sorted(components.items()))},
    }


def _any(kind: type) -> dict[str, Any]:
    """The schema of `object`."""
    return {"description": "any JSON value"}


def _types(routes: list[Route[Any, Any]]) -> Iterator[Any]:
    yield ErrorAnswer
    for route in routes:
        yield from (route.query, route.client_messages, route.server_messages)
        yield from () if route.body is NoBody else (route.body,)
        yield from () if isinstance(route.answer, str | None) else (route.answer,)


def _operation(route: Route[Any, Any], schemas: dict[int, Any]) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": route.handler.__module__.rpartition(".")[2] + "_" + route.handler.__name__,
        "tags": [_tag(route)],
        "summary": route.summary,
    }
    if parameters := [*_path_parameters(route), *_query_parameters(route)]:
        operation["parameters"] = parameters
    if route.upload:
        operation["requestBody"] = {"required": True, "content": {route.upload: {}}}
    elif route.body is not NoBody:
        operation["requestBody"] = {"content": {JSON: {"schema": schemas[id(route.body)]}}}
    operation["responses"] = {
        **_good_answer(route, schemas),
        "default": {
            "description": "An error",
            "content": {JSON: {"schema": schemas[id(ErrorAnswer)]}},
        },
    }
    if route.client_messages is not None:
        operation["x-websocket"] = {
            "client": schemas[id(route.client_messages)],
            "server": schemas[id(route.server_messages)],
            "binary": "one byte of channel (0 stdin, 1 stdout, 2 stderr), then data",
        }
    return operation


def _tag(route: Route[Any, Any]) -> str:
    name = route.handler.__module__.rpartition(".")[2]
    return _MODULES.get(name, name)


def _good_answer(route: Route[Any, Any], schemas: dict[int, Any]) -> dict[str, Any]:
    if route.client_messages is not None:
        return {"101": {"description": "The connection becomes a WebSocket"}}
    content: dict[str, Any] = {}
    if isinstance(route.answer, str):
        content[route.answer] = {}
    elif route.answer is not None:
        content[JSON] = {"schema": schemas[id(route.answer)]}
    if route.server_messages is not None:
        # The schema is that of each line.
        content[JSON_LINES] = {"schema": schemas[id(route.server_messages)]}
    return {str(route.status): {"description": "Done", "content": content}}


def _path_parameters(route: Route[Any, Any]) -> Iterator[dict[str, Any]]:
    for name in re.findall(r"\{(\w+)\}", route.path):
        yield {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}


def _query_parameters(route: Route[Any, Any]) -> Iterator[dict[str, Any]]:
    schema = msgspec.json.schema(route.query)
    found = schema["$defs"][route.query.__name__]
    required = found.get("required", [])
    for name, kind in found["properties"].items():
        yield {"name": name, "in": "query", "required": name in required, "schema": kind}
