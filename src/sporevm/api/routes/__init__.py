"""The handlers, by subject. Each module has ROUTES."""

from __future__ import annotations

from typing import Any

from sporevm.api.router import Route
from sporevm.api.routes import files, processes, sandboxes, service, stock


def all_routes() -> list[Route[Any, Any]]:
    return [
        *service.ROUTES,
        *sandboxes.ROUTES,
        *processes.ROUTES,
        *files.ROUTES,
        *stock.ROUTES,
    ]
