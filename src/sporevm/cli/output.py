"""Tables, JSON, times and sizes, as a person or a script wants them."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
_STEPS = ((60, "second"), (60, "minute"), (24, "hour"), (7, "day"), (52, "week"))


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Aligned columns, three spaces apart."""
    lines = [list(header), *map(list, rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    padded = ("   ".join(f"{c:<{w}}" for c, w in zip(line, widths, strict=True)) for line in lines)
    return "\n".join(line.rstrip() for line in padded)


def print_json(value: object) -> None:
    """`value` as indented JSON; API models become objects with their fields."""
    if value is None or isinstance(value, (str, int, float)):
        print(json.dumps(value))
        return
    import msgspec

    plain = msgspec.to_builtins(value)
    print(json.dumps(plain, indent=2, ensure_ascii=not _utf8()))


def _utf8() -> bool:
    return (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"


def size(count: float) -> str:
    """Bytes as `1.5 GiB`."""
    unit = 0
    while count >= 1024 and unit < len(_UNITS) - 1:
        count /= 1024
        unit += 1
    return (
        f"{count:.0f} {_UNITS[unit]}"
        if unit == 0 or count >= 100
        else f"{count:.1f} {_UNITS[unit]}"
    )


def span(seconds: float) -> str:
    """A length of time as `3 minutes`, in its largest unit."""
    amount = max(seconds, 0.0)
    for limit, unit in _STEPS:
        if amount < limit:
            whole = int(amount)
            return f"{whole} {unit}{'' if whole == 1 else 's'}"
        amount /= limit
    years = int(amount)
    return f"{years} year{'' if years == 1 else 's'}"


def ago(moment: float, now: float | None = None) -> str:
    """A UNIX time as `3 minutes ago`."""
    return f"{span((time.time() if now is None else now) - moment)} ago"


def shorten(text: str, width: int) -> str:
    return text if len(text) <= width else text[: max(width - 3, 1)] + "..."


def safe(text: str) -> str:
    """`text` without characters that would move a terminal's cursor: a guest may have chosen it."""
    return "".join(c if c.isprintable() else "?" for c in text)
