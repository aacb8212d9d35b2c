"""TLV fields: what OPEN, REPLY, EVENT, CLOSE and HELLO carry."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Final

from sporevm.errors import ProtocolViolation, UsageError
from sporevm.wire.constants import MAX_MESSAGE, STR_TAGS, U64_TAGS, Tag

_FIELD: Final = struct.Struct("<HI")
_U64: Final = struct.Struct("<Q")
_U64_FIELD: Final = struct.Struct("<HIQ")
_MAX_U64: Final = (1 << 64) - 1

Field = tuple[int, int | str | bytes]


def encode(fields: Iterable[Field]) -> bytes:
    """Bytes of fields: int is u64, str is UTF-8 (raw bytes of a path survive), bytes as they are.

    Raises UsageError for a NUL in a str or a number that is no u64.
    """
    parts: list[bytes] = []
    for tag, value in fields:
        if isinstance(value, int):
            if not 0 <= value <= _MAX_U64:
                raise UsageError(f"{_name(tag)}: {value} is out of range")
            parts.append(_U64_FIELD.pack(tag, 8, value))
            continue
        data = value.encode("utf-8", "surrogateescape") if isinstance(value, str) else value
        if tag in STR_TAGS and b"\0" in data:
            raise UsageError(f"{_name(tag)}: a NUL character is not allowed")
        parts.append(_FIELD.pack(tag, len(data)))
        parts.append(data)
    return b"".join(parts)


def split(data: bytes) -> list[tuple[int, bytes]]:
    """Tags and raw values in order; raises ProtocolViolation if they do not fill `data` exactly."""
    fields: list[tuple[int, bytes]] = []
    at, end = 0, len(data)
    while at < end:
        if end - at < _FIELD.size:
            raise ProtocolViolation(f"malformed TLV: {end - at} bytes left over at offset {at}")
        tag, length = _FIELD.unpack_from(data, at)
        at += _FIELD.size
        if length > end - at:
            raise ProtocolViolation(
                f"malformed TLV: {_name(tag)} of {length} bytes where {end - at} are left"
            )
        fields.append((tag, data[at : at + length]))
        at += length
    return fields


class Fields:
    """A decoded TLV. Every known field has been checked for its type; unknown ones are skipped."""

    __slots__ = ("_values",)

    def __init__(self, data: bytes) -> None:
        self._values: dict[int, list[int | bytes]] = {}
        for tag, raw in split(data):
            value: int | bytes = raw
            if tag in U64_TAGS:
                if len(raw) != _U64.size:
                    raise ProtocolViolation(
                        f"malformed TLV: {_name(tag)} of {len(raw)} bytes is no u64"
                    )
                value = _U64.unpack(raw)[0]
            elif tag in STR_TAGS:
                if b"\0" in raw:
                    raise ProtocolViolation(f"malformed TLV: a NUL in {_name(tag)}")
                if tag == Tag.MESSAGE and len(raw) > MAX_MESSAGE:
                    raise ProtocolViolation(f"malformed TLV: MESSAGE of {len(raw)} bytes")
            self._values.setdefault(tag, []).append(value)

    def __contains__(self, tag: int) -> bool:
        return tag in self._values

    def u64(self, tag: Tag, default: int | None = None, *, most: int = _MAX_U64) -> int:
        """The number in `tag`. Without a default it must be there; it must not exceed `most`."""
        values = self._values.get(tag)
        if values is None:
            if default is None:
                raise ProtocolViolation(f"the guest left out {tag.name}")
            return default
        value = values[0]
        if not isinstance(value, int) or value > most:
            raise ProtocolViolation(f"the guest sent {tag.name} {value!r}, more than {most}")
        return value

    def raw(self, tag: Tag, default: bytes | None = None) -> bytes:
        """The bytes of `tag`. Without a default it must be there."""
        values = self._values.get(tag)
        if values is None:
            if default is None:
                raise ProtocolViolation(f"the guest left out {tag.name}")
            return default
        value = values[0]
        assert isinstance(value, bytes)  # its type was settled by the tag
        return value

    def text(self, tag: Tag, default: str | None = None) -> str:
        """`raw` as text; bytes that are not UTF-8 come back as they were when encoded again."""
        value = self.raw(tag, None if default is None else default.encode())
        return value.decode("utf-8", "surrogateescape")

    def nested(self, tag: Tag) -> list[Fields]:
        """Every `tag`, in order, as a TLV of its own."""
        return [Fields(value) for value in self._values.get(tag, ()) if isinstance(value, bytes)]


def _name(tag: int) -> str:
    try:
        return Tag(tag).name
    except ValueError:
        return f"tag {tag}"
