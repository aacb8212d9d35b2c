"""How figures are taken and shown."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Series:
    """Milliseconds of one thing done many times."""

    values: list[float] = field(default_factory=list)

    def percentile(self, part: float) -> float:
        """The smallest value that at least `part` of all are not above."""
        ordered = sorted(self.values)
        return ordered[max(0, math.ceil(part * len(ordered)) - 1)]

    @property
    def p50(self) -> float:
        return self.percentile(0.5)

    @property
    def p90(self) -> float:
        return self.percentile(0.9)

    @property
    def p99(self) -> float:
        return self.percentile(0.99)

    def time(self, work: Callable[[], object]) -> None:
        start = time.perf_counter()
        work()
        self.values.append((time.perf_counter() - start) * 1e3)

    def as_dict(self) -> dict[str, float]:
        return {
            "n": len(self.values),
            "p50": round(self.p50, 2),
            "p90": round(self.p90, 2),
            "p99": round(self.p99, 2),
        }


@dataclass(frozen=True)
class Row:
    """A line of the table: a figure beside its budget."""

    what: str
    value: float
    budget: float
    unit: str
    note: str = ""
    at_least: bool = False

    @property
    def ok(self) -> bool:
        return self.value >= self.budget if self.at_least else self.value <= self.budget

    def as_dict(self) -> dict[str, object]:
        return {
            "what": self.what,
            "value": round(self.value, 2),
            "budget": round(self.budget, 2),
            "unit": self.unit,
            "ok": self.ok,
            "note": self.note,
        }


def table(rows: list[Row]) -> str:
    lines = ["| what | measured | budget | | note |", "|---|---:|---:|---|---|"]
    for row in rows:
        sign = ">=" if row.at_least else "<="
        lines.append(
            f"| {row.what} | {row.value:.1f} {row.unit} | {sign} {row.budget:.1f} {row.unit} "
            f"| {'ok' if row.ok else 'OVER'} | {row.note} |"
        )
    return "\n".join(lines)


def rss_bytes(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    return 0


def private_bytes(pid: int, mapping: str = "") -> int:
    """Memory of a process that no file stands behind, or only that of mappings named `mapping`.

    "Anonymous" in smaps: pages of a template that were only read are the page cache's, and shared.
    """
    total = 0
    inside = not mapping
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        first = line.split(" ", 1)[0]
        if "-" in first and not first.endswith(":"):
            inside = not mapping or mapping in line
        elif inside and first == "Anonymous:":
            total += int(line.split()[1]) * 1024
    return total
