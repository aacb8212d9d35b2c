"""Every error Spore raises on purpose, named for what the caller can do about it.

    SporeError
    ├── UsageError            you asked for something impossible: change the request   (exit 2)
    ├── NotFound              no such sandbox, image, template …
    ├── Conflict              the name is taken, or it is in use
    ├── StateError            right request, wrong moment: says the current and required state
    ├── SetupError            this machine lacks something: says the command that mends it
    ├── ArtifactError         a kernel, initrd, image or template is not what it must be
    ├── StorageError          disk full or not writable; nothing half-made is left
    ├── VmmError              the VMM died or refused: carries command, exit code, log tail
    ├── AgentError            the guest agent went silent, or broke the protocol
    │   └── ProtocolViolation   the guest sent what no honest agent sends; its sandbox is killed
    ├── GuestError            the guest's answer is an errno (a missing file, a missing program)
    ├── DeadlineExceeded      it took longer than the caller allowed
    ├── EngineError           the engine can't be started or reached
    └── CommandFailed         a command run with check=True did not exit with 0

`code` is stable and machine-readable; `hint` is one line that says what to do.
"""

from __future__ import annotations

import os


class SporeError(Exception):
    """Root of the tree. `str(error)` is one clear line; `hint` says what to do about it."""

    code = "error"
    exit_code = 1
    http_status = 500

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def details(self) -> dict[str, object]:
        """Fields beyond message and hint, for `--json` and the HTTP API."""
        return {}


class UsageError(SporeError):
    code, exit_code, http_status = "usage", 2, 400


class NotFound(SporeError):
    code, http_status = "not_found", 404


class Conflict(SporeError):
    code, http_status = "conflict", 409


class StateError(SporeError):
    code, http_status = "state", 409

    def __init__(self, message: str, *, current: str, required: str, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.current = current
        self.required = required

    def details(self) -> dict[str, object]:
        return {"current": self.current, "required": self.required}


class SetupError(SporeError):
    code, http_status = "setup", 503


class ArtifactError(SporeError):
    code, http_status = "artifact", 422


class StorageError(SporeError):
    code, http_status = "storage", 507


class VmmError(SporeError):
    """The VMM process failed. Exit status of foreground commands: 125."""

    code, exit_code, http_status = "vmm", 125, 502

    def __init__(
        self,
        message: str,
        *,
        command: str = "",
        status: int | None = None,
        log_tail: str = "",
        hint: str = "",
    ) -> None:
        super().__init__(message, hint=hint)
        self.command = command
        self.status = status
        self.log_tail = log_tail

    def details(self) -> dict[str, object]:
        return {"command": self.command, "status": self.status, "log_tail": self.log_tail}


class AgentError(SporeError):
    """The channel to the guest broke. Exit status of foreground commands: 125."""

    code, exit_code, http_status = "agent", 125, 502


class ProtocolViolation(AgentError):
    code = "protocol"


class GuestError(SporeError):
    """The guest answered with an errno."""

    code, http_status = "guest", 422

    def __init__(self, message: str, *, errno: int, path: str = "", hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.errno = errno
        self.path = path

    def details(self) -> dict[str, object]:
        name = os.strerror(self.errno)
        return {"errno": self.errno, "strerror": name, "path": self.path}


class DeadlineExceeded(SporeError):
    code, exit_code, http_status = "deadline", 124, 504


class EngineError(SporeError):
    code, http_status = "engine", 503


class CommandFailed(SporeError):
    """A command that was run with `check=True` did not exit with 0."""

    code = "command_failed"

    def __init__(
        self,
        message: str,
        *,
        exit_code: int = 1,
        stdout: str = "",
        stderr: str = "",
        hint: str = "",
    ) -> None:
        super().__init__(message, hint=hint)
        self.status = exit_code
        self.stdout = stdout
        self.stderr = stderr

    def details(self) -> dict[str, object]:
        return {"exit_code": self.status, "stdout": self.stdout, "stderr": self.stderr}


def by_code() -> dict[str, type[SporeError]]:
    """All concrete classes by `code`: how a client turns the engine's answer back into a class."""
    found: dict[str, type[SporeError]] = {}
    todo: list[type[SporeError]] = [SporeError]
    while todo:
        cls = todo.pop()
        found[cls.code] = cls
        todo.extend(cls.__subclasses__())
    return found
