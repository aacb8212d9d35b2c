"""The engine's error answers, turned back into the classes of `sporevm.errors`."""

from __future__ import annotations

from typing import Any

import msgspec

from sporevm import errors
from sporevm.api.models import ErrorAnswer, ErrorBody
from sporevm.errors import EngineError, SporeError

_decode = msgspec.json.Decoder(ErrorAnswer).decode
#: Keyword arguments of the classes that carry more than message and hint.
_FIELDS: dict[type[SporeError], dict[str, object]] = {
    errors.StateError: {"current": "", "required": ""},
    errors.VmmError: {"command": "", "status": None, "log_tail": ""},
    errors.GuestError: {"errno": 0, "path": ""},
}
#: Only those of `errors` itself: inner layers may have narrower ones with the same code.
_CLASSES: dict[str, type[SporeError]] = {
    cls.code: cls
    for cls in vars(errors).values()
    if isinstance(cls, type) and issubclass(cls, SporeError)
}


class EngineAnswered(SporeError):
    """An error of a kind this version does not know; `code` is the engine's word for it."""

    def __init__(self, body: ErrorBody) -> None:
        super().__init__(body.message, hint=body.hint)
        self.code = body.code
        self._details = body.details

    def details(self) -> dict[str, object]:
        return self._details


def from_body(body: ErrorBody) -> SporeError:
    cls = _CLASSES.get(body.code)
    if cls is None:
        return EngineAnswered(body)
    fields: dict[str, Any] = {}
    for known, defaults in _FIELDS.items():
        if issubclass(cls, known):
            fields = {name: body.details.get(name, value) for name, value in defaults.items()}
    return cls(body.message, hint=body.hint, **fields)


def from_answer(status: int, body: bytes) -> SporeError:
    """The error of an answer with a status of 400 or more."""
    try:
        return from_body(_decode(body).error)
    except msgspec.DecodeError:
        return EngineError(f"the engine answered with HTTP status {status} and no reason")
