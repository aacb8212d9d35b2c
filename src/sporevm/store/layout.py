"""Every file and directory Spore keeps, named once, here.

A `Layout` is pure: it makes paths, it touches nothing. Files are written under a temporary name,
fsynced and renamed (`sporevm._sys.fs`); a name in this module is therefore whole or absent.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sporevm.errors import SetupError

#: The kernel's limit for a Unix socket's path, NUL included.
SUN_PATH = 108


@dataclass(frozen=True, slots=True)
class TemplateFiles:
    root: Path

    @property
    def mem(self) -> Path:
        return self.root / "mem"

    @property
    def state(self) -> Path:
        return self.root / "state"

    @property
    def scratch(self) -> Path:
        """Only an image template has one: the writable disk at the instant of the snapshot."""
        return self.root / "scratch"

    @property
    def manifest(self) -> Path:
        return self.root / "manifest.json"


@dataclass(frozen=True, slots=True)
class ImageFiles:
    root: Path

    @property
    def disk(self) -> Path:
        return self.root / "image"

    @property
    def manifest(self) -> Path:
        return self.root / "manifest.json"


@dataclass(frozen=True, slots=True)
class KernelFiles:
    root: Path

    @property
    def vmlinuz(self) -> Path:
        return self.root / "vmlinuz"

    @property
    def initrd(self) -> Path:
        return self.root / "initrd"

    @property
    def manifest(self) -> Path:
        return self.root / "manifest.json"


@dataclass(frozen=True, slots=True)
class SandboxFiles:
    """A sandbox's directory. `vm/` alone is reachable by the confined VMM's own user."""

    root: Path

    @property
    def vm(self) -> Path:
        return self.root / "vm"

    @property
    def scratch(self) -> Path:
        return self.vm / "scratch"

    @property
    def channel(self) -> Path:
        return self.vm / "ch"

    @property
    def qmp(self) -> Path:
        return self.vm / "qmp"

    @property
    def console(self) -> Path:
        return self.vm / "console.log"

    @property
    def vmm_log(self) -> Path:
        return self.root / "vmm.log"

    @property
    def output(self) -> Path:
        """What the main process printed: `sporevm.engine.output` has the format."""
        return self.root / "output.log"

    @property
    def events(self) -> Path:
        return self.root / "events.jsonl"


@dataclass(frozen=True, slots=True)
class Layout:
    home: Path

    @property
    def db(self) -> Path:
        return self.home / "spore.db"

    @property
    def socket(self) -> Path:
        return self.home / "spored.sock"

    @property
    def engine_lock(self) -> Path:
        return self.home / "spored.lock"

    @property
    def engine_log(self) -> Path:
        return self.home / "spored.log"

    @property
    def images(self) -> Path:
        return self.home / "images"

    @property
    def kernels(self) -> Path:
        return self.home / "kernels"

    @property
    def templates(self) -> Path:
        return self.home / "templates"

    @property
    def sandboxes(self) -> Path:
        return self.home / "sb"

    @property
    def cache(self) -> Path:
        """Downloads and formatted blank disks; safe to delete at any time."""
        return self.home / "cache"

    @property
    def tmp(self) -> Path:
        """Half-made things, on the same file system as the rest; emptied when the engine starts."""
        return self.home / "tmp"

    def image(self, image_id: str) -> ImageFiles:
        return ImageFiles(self.images / image_id)

    def kernel(self, name: str) -> KernelFiles:
        return KernelFiles(self.kernels / name)

    def template(self, key: str) -> TemplateFiles:
        return TemplateFiles(self.templates / key)

    def sandbox(self, sandbox_id: str) -> SandboxFiles:
        return SandboxFiles(self.sandboxes / sandbox_id)

    def check(self) -> None:
        """Raise SetupError if a socket below this home would not fit into `sockaddr_un`."""
        longest = self.sandbox("0" * 12).channel
        if len(str(longest).encode()) >= SUN_PATH:
            raise SetupError(
                f"SPORE_HOME {self.home} is too long a path for Unix sockets",
                hint="set SPORE_HOME to a directory of at most 70 characters",
            )


def default_home(*, is_root: bool, env_home: str | None, user_home: Path) -> Path:
    """SPORE_HOME if it is set; else root's shared place, else the user's own."""
    if env_home:
        return Path(env_home)
    return Path("/var/lib/spore") if is_root else user_home / ".local/share/spore"
