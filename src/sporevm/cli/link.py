"""The connection of a session: to the running engine, or to one started for it."""

from __future__ import annotations

import socket
from typing import cast

from sporevm.cli.progress import Progress
from sporevm.errors import EngineError, SporeError
from sporevm.sdk import _engine
from sporevm.store.layout import Layout

#: The code of an engine that is older than this client: it may be replaced at any time.
OUTDATED = "engine_outdated"


def connect(layout: Layout, progress: Progress) -> socket.socket:
    """A connected socket. Raises EngineError or SetupError."""
    layout.check()
    found = _engine.dial(layout)
    if found is not None:
        return found
    progress.step("starting the engine")
    return _engine.connect(layout)


def error_from(message: object) -> SporeError:
    """The error in an api.models.Failed or ErrorAnswer."""
    # Only a failure pays for these imports.
    import msgspec

    from sporevm.api.models import ErrorBody
    from sporevm.sdk._errors import from_body

    body = cast("dict[str, object]", message).get("error") if isinstance(message, dict) else None
    try:
        return from_body(msgspec.convert(body, ErrorBody))
    except msgspec.ValidationError:
        return EngineError("the engine reported an error that makes no sense")
