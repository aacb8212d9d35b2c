"""What the SDK gives back."""

from __future__ import annotations

from dataclasses import dataclass

from sporevm.api.models import FileInfo, SandboxView
from sporevm.api.models import LogRecord as LogLine
from sporevm.api.models import ProcView as ProcessInfo
from sporevm.errors import CommandFailed

SandboxInfo = SandboxView

__all__ = ["CommandResult", "FileInfo", "LogLine", "ProcessInfo", "SandboxInfo"]

_TAIL = 400


@dataclass(frozen=True, slots=True)
class CommandResult:
    """How a command ended, and what it printed.

    `exit_code` is as a shell shows it: 128 + N if signal N ended it. `truncated`: it printed more
    than is kept, and the oldest part is gone (only commands run in the background).
    """

    exit_code: int
    stdout_bytes: bytes
    stderr_bytes: bytes
    signal: int = 0
    truncated: bool = False

    @property
    def stdout(self) -> str:
        return self.stdout_bytes.decode(errors="replace")

    @property
    def stderr(self) -> str:
        return self.stderr_bytes.decode(errors="replace")

    @property
    def ok(self) -> bool:
        return self.exit_code == 0

    def check(self) -> CommandResult:
        """Itself; raises CommandFailed if the exit code is not 0."""
        if self.exit_code:
            last = (self.stderr.strip() or self.stdout.strip())[-_TAIL:]
            how = f"signal {self.signal}" if self.signal else f"exit code {self.exit_code}"
            raise CommandFailed(
                f"the command ended with {how}" + (f": {last}" if last else ""),
                exit_code=self.exit_code,
                stdout=self.stdout,
                stderr=self.stderr,
            )
        return self
