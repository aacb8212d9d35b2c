"""Spore runs any code in its own microVM.

    from sporevm import Sandbox

    with Sandbox.create("base", memory="512M") as box:
        print(box.commands.run("uname -a").stdout)

`AsyncSandbox` is the same for asyncio. Names are loaded when first used, so importing this package
costs next to nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sporevm._version import __version__

if TYPE_CHECKING:
    from sporevm.errors import (
        AgentError,
        ArtifactError,
        CommandFailed,
        Conflict,
        DeadlineExceeded,
        EngineError,
        GuestError,
        NotFound,
        ProtocolViolation,
        SetupError,
        SporeError,
        StateError,
        StorageError,
        UsageError,
        VmmError,
    )
    from sporevm.sdk._async import AsyncCommandHandle, AsyncCommands, AsyncFiles, AsyncSandbox
    from sporevm.sdk._sync import CommandHandle, Commands, Files, Sandbox
    from sporevm.sdk._types import CommandResult, FileInfo, LogLine, ProcessInfo, SandboxInfo

__all__ = [
    "AgentError",
    "ArtifactError",
    "AsyncCommandHandle",
    "AsyncCommands",
    "AsyncFiles",
    "AsyncSandbox",
    "CommandFailed",
    "CommandHandle",
    "CommandResult",
    "Commands",
    "Conflict",
    "DeadlineExceeded",
    "EngineError",
    "FileInfo",
    "Files",
    "GuestError",
    "LogLine",
    "NotFound",
    "ProcessInfo",
    "ProtocolViolation",
    "Sandbox",
    "SandboxInfo",
    "SetupError",
    "SporeError",
    "StateError",
    "StorageError",
    "UsageError",
    "VmmError",
    "__version__",
]

_ASYNC = ("AsyncCommandHandle", "AsyncCommands", "AsyncFiles", "AsyncSandbox")
_SYNC = ("CommandHandle", "Commands", "Files", "Sandbox")
_TYPES = ("CommandResult", "FileInfo", "LogLine", "ProcessInfo", "SandboxInfo")


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module 'sporevm' has no attribute {name!r}")
    import importlib

    if name in _ASYNC:
        where = "sporevm.sdk._async"
    elif name in _SYNC:
        where = "sporevm.sdk._sync"
    elif name in _TYPES:
        where = "sporevm.sdk._types"
    else:
        where = "sporevm.errors"
    value: object = getattr(importlib.import_module(where), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
