"""What the engine remembers of its sandboxes: one SQLite file in WAL mode.

A record is written *before* the resource it speaks of exists, so whatever a killed engine leaves
behind can be found and freed from disk alone. Only the engine that holds the home's lock writes.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
from msgspec import Struct

from sporevm.errors import Conflict, NotFound, StorageError
from sporevm.spec import State

_SCHEMA = """
CREATE TABLE IF NOT EXISTS sandboxes (
    id TEXT PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    state TEXT NOT NULL,
    data BLOB NOT NULL
) STRICT;
"""
_VERSION = 1


class SandboxRecord(Struct, kw_only=True):
    """All that is known of a sandbox. Times are UNIX seconds."""

    id: str
    name: str
    state: str
    image: str
    image_id: str
    arch: str
    vmm: str
    accelerator: str
    cpus: int
    memory_mib: int
    disk_bytes: int
    created: float
    started: float | None = None
    finished: float | None = None
    pid: int | None = None
    #: With `pid` the identity of the VMM process: a bare pid is never trusted.
    pid_start: int | None = None
    command: list[str] = []
    exit_code: int | None = None
    error: str = ""
    labels: dict[str, str] = {}
    env: dict[str, str] = {}
    workdir: str = ""
    user: str = ""
    hostname: str = ""
    ttl: float | None = None
    auto_remove: bool = False
    #: It ends with the client that started it.
    bound: bool = False
    confinement: list[str] = []
    timings: dict[str, float] = {}
    template: str = ""
    #: The shape of its template, as `vmm.base.Shape.as_dict` gives it: what adoption needs.
    shape: dict[str, object] = {}

    @property
    def alive(self) -> bool:
        return self.state in (State.CREATING, State.RUNNING, State.PAUSED)


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(SandboxRecord).decode


class Records:
    """The table of sandboxes. Not thread-safe: it lives on the engine's event loop."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with self._guard():
            self._db = sqlite3.connect(path, isolation_level=None)
            # WAL without a sync at each commit survives any death of the engine. After a power
            # cut no VM is alive, and the sandbox directories are the truth that is left.
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=NORMAL")
            found = self._db.execute("PRAGMA user_version").fetchone()[0]
            if found not in (0, _VERSION):
                raise StorageError(
                    f"{path} was written by a newer Spore (format {found}, this one is {_VERSION})",
                    hint="upgrade Spore, or set SPORE_HOME to another directory",
                )
            self._db.executescript(_SCHEMA)
            self._db.execute(f"PRAGMA user_version={_VERSION}")

    def close(self) -> None:
        self._db.close()

    @contextmanager
    def _guard(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.IntegrityError as error:
            raise Conflict(str(error)) from error
        except sqlite3.Error as error:
            if error.sqlite_errorcode == sqlite3.SQLITE_FULL:
                raise StorageError(
                    f"can't write {self._path}: no space left on the disk",
                    hint="free some space, for example: spore template ls, spore image ls",
                ) from error
            raise StorageError(
                f"cannot use the records in {self._path}: {error}",
                hint="check that the disk is not full and the file is writable",
            ) from error

    def insert(self, record: SandboxRecord) -> None:
        """Add a new one; Conflict if the name or id is taken."""
        try:
            with self._guard():
                self._db.execute(
                    "INSERT INTO sandboxes VALUES (?, ?, ?, ?)",
                    (record.id, record.name, record.state, _encode(record)),
                )
        except Conflict:
            raise Conflict(
                f"the name {record.name!r} is taken",
                hint=f"choose another, or remove it: spore rm -f {record.name}",
            ) from None

    def update(self, record: SandboxRecord) -> None:
        with self._guard():
            self._db.execute(
                "UPDATE sandboxes SET name = ?, state = ?, data = ? WHERE id = ?",
                (record.name, record.state, _encode(record), record.id),
            )

    def delete(self, sandbox_id: str) -> None:
        with self._guard():
            self._db.execute("DELETE FROM sandboxes WHERE id = ?", (sandbox_id,))

    def all(self) -> list[SandboxRecord]:
        with self._guard():
            rows = self._db.execute("SELECT data FROM sandboxes ORDER BY rowid").fetchall()
        return [_decode(row[0]) for row in rows]

    def find(self, ref: str) -> SandboxRecord:
        """By id, by name, or by an id prefix that only one has."""
        with self._guard():
            rows = self._db.execute(
                "SELECT data FROM sandboxes WHERE id = ? OR name = ?", (ref, ref)
            ).fetchall()
            if not rows and len(ref) >= 2 and ref.isalnum():
                rows = self._db.execute(
                    "SELECT data FROM sandboxes WHERE substr(id, 1, ?) = ?", (len(ref), ref)
                ).fetchall()
        if not rows:
            raise NotFound(f"no sandbox {ref!r}", hint="spore ls -a shows them all")
        if len(rows) > 1:
            raise Conflict(f"{ref!r} is the start of {len(rows)} ids", hint="give more characters")
        return _decode(rows[0][0])
