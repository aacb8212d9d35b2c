"""The guest's initramfs: the agent as /init, and the modules it loads before anything else."""

from __future__ import annotations

import gzip
import importlib.resources
from collections.abc import Sequence
from pathlib import Path

from sporevm.errors import SetupError
from sporevm.image import cpio
from sporevm.image.modules import Module, read_module
from sporevm.spec import Arch

#: Raised when the contents or their arrangement change, so that kernels are made anew.
FORMAT = 1

MODULE_LIST = "modules.list"
_DIRECTORIES = ("dev", "proc", "sys", "run", "tmp", "newroot", "m")


def agent_path(arch: Arch) -> Path:
    """The guest agent that belongs to this version; SetupError if it has not been built."""
    resource = importlib.resources.files("sporevm") / "_bin" / f"agent-{arch.value}"
    path = Path(str(resource))
    if not path.is_file():
        raise SetupError(
            f"the guest agent for {arch.value} is missing: {path}",
            hint="install sporevm from a wheel, or build the agent: make agent",
        )
    return path


def build(agent: bytes, modules: Sequence[Module]) -> bytes:
    """The archive, a pure function of the agent and the modules' contents."""
    entries = [cpio.directory(name) for name in _DIRECTORIES]
    entries += [
        cpio.file("init", agent, mode=0o755),
        cpio.char_device("dev/console", 5, 1),
        cpio.char_device("dev/null", 1, 3, mode=0o666),
    ]
    paths = []
    for module in modules:
        name = f"m/{module.name}.ko"
        entries.append(cpio.file(name, read_module(module.path)))
        paths.append(f"/{name}\n")
    entries.append(cpio.file(MODULE_LIST, "".join(paths).encode()))
    return pack(cpio.archive(entries))


def pack(archive: bytes) -> bytes:
    return gzip.compress(archive, compresslevel=6, mtime=0)
