"""Which kernel modules a guest needs, in the order in which they can be loaded.

Dependencies are read from each module's own `.modinfo` section, which is where depmod's
`modules.dep` gets them from too. So neither depmod nor a generated index is needed, and a package
that was only unpacked will do.
"""

from __future__ import annotations

import lzma
import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from sporevm.errors import ArtifactError

#: What a guest may need on any of our VMMs. Those that the kernel has built in are skipped, those
#: marked optional may be missing altogether.
REQUIRED = (
    "virtio",
    "virtio_ring",
    "virtio_mmio",
    "virtio_pci",
    "virtio_blk",
    "virtio_console",
    "squashfs",
    "overlay",
    "ext4",
)
OPTIONAL = (
    "erofs",
    "fuse",
    "vsock",
    "vmw_vsock_virtio_transport",
    "virtio_balloon",
    "virtio_net",
    "virtio_rng",
)

_SUFFIXES = (".ko", ".ko.xz", ".ko.gz", ".ko.zst")


@dataclass(frozen=True, slots=True)
class Module:
    name: str
    path: Path
    depends: tuple[str, ...]
    #: Modules that should come first if they exist: needed at run time, without a symbol.
    wants: tuple[str, ...]
    vermagic: str


def canonical(name: str) -> str:
    """File names use '-' and '_' as they like; the kernel itself only knows '_'."""
    return name.replace("-", "_")


def read_module(path: Path) -> bytes:
    """A module's ELF file, unpacked if it is compressed."""
    data = path.read_bytes()
    try:
        if path.name.endswith(".xz"):
            return lzma.decompress(data)
        if path.name.endswith(".gz"):
            import gzip

            return gzip.decompress(data)
    except (lzma.LZMAError, OSError, EOFError) as error:
        raise ArtifactError(f"kernel module {path} can't be unpacked: {error}") from error
    if path.name.endswith(".zst"):
        raise ArtifactError(
            f"kernel module {path} is compressed with zstd, which is not supported",
            hint="use a kernel whose modules are not compressed, or compressed with xz",
        )
    return data


def modinfo(elf: bytes, path: Path) -> list[tuple[str, str]]:
    """The `key=value` pairs of a module's .modinfo section."""
    try:
        section = _section(elf, b".modinfo")
    except (struct.error, IndexError, ValueError) as error:
        raise ArtifactError(
            f"kernel module {path} ({len(elf)} bytes) is not a whole 64-bit ELF module: {error}"
        ) from error
    pairs = (item.partition(b"=") for item in section.split(b"\0") if item)
    return [
        (key.decode(errors="replace"), value.decode(errors="replace")) for key, _, value in pairs
    ]


def _section(elf: bytes, wanted: bytes) -> bytes:
    """Contents of a section of a little-endian ELF64 file."""
    if elf[:6] != b"\x7fELF\x02\x01":
        raise ValueError("it does not start with an ELF header")
    (table,) = struct.unpack_from("<Q", elf, 0x28)
    entry_size, count, names_index = struct.unpack_from("<HHH", elf, 0x3A)

    def header(index: int) -> tuple[int, int, int]:
        at = table + index * entry_size
        (name,) = struct.unpack_from("<I", elf, at)
        offset, size = struct.unpack_from("<QQ", elf, at + 0x18)
        return name, offset, size

    _, names, _ = header(names_index)
    for index in range(count):
        name, offset, size = header(index)
        end = elf.index(b"\0", names + name)
        if elf[names + name : end] == wanted:
            if offset + size > len(elf):
                raise ValueError("it is cut short")
            return elf[offset : offset + size]
    raise ValueError(f"it has no {wanted.decode()} section")


@dataclass
class ModuleTree:
    """The modules below one `lib/modules/RELEASE` directory."""

    root: Path
    _files: dict[str, Path] = field(default_factory=dict)
    _builtin: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        for path in sorted(self.root.rglob("*.ko*")):
            stem, dot, _ = path.name.partition(".ko")
            if dot and path.name[len(stem) :] in _SUFFIXES:
                self._files.setdefault(canonical(stem), path)
        listing = self.root / "modules.builtin"
        if listing.exists():
            for line in listing.read_text().splitlines():
                self._builtin.add(canonical(Path(line).name.partition(".ko")[0]))
        self._builtin |= self._builtin_aliases()

    def _builtin_aliases(self) -> set[str]:
        """Other names of built-in code, e.g. `crc32c`, which a module may ask for."""
        listing = self.root / "modules.builtin.modinfo"
        if not listing.exists():
            return set()
        items = listing.read_bytes().split(b"\0")
        pairs = (item.partition(b"=") for item in items)
        return {
            canonical(value.decode(errors="replace"))
            for key, _, value in pairs
            if key.endswith(b".alias") and b":" not in value
        }

    def has(self, name: str) -> bool:
        return canonical(name) in self._files

    def builtin(self, name: str) -> bool:
        return canonical(name) in self._builtin

    def module(self, name: str) -> Module:
        path = self._files[canonical(name)]
        depends: list[str] = []
        wants: list[str] = []
        vermagic = ""
        for key, value in modinfo(read_module(path), path):
            if key == "depends":
                depends += [canonical(d) for d in value.split(",") if d]
            elif key == "softdep" and value.startswith("pre:"):
                wants += [canonical(w) for w in value[4:].partition("post:")[0].split()]
            elif key == "vermagic":
                vermagic = value
        return Module(canonical(name), path, tuple(depends), tuple(wants), vermagic)

    def closure(
        self, required: Iterable[str] = REQUIRED, optional: Iterable[str] = OPTIONAL
    ) -> list[Module]:
        """The wanted modules and all they depend on, each after its dependencies."""
        found: dict[str, Module] = {}
        visiting: list[str] = []

        def visit(name: str, *, needed_by: str, must: bool) -> None:
            name = canonical(name)
            if name in found or self.builtin(name):
                return
            if not self.has(name):
                if must:
                    raise ArtifactError(
                        f"the kernel in {self.root} lacks the module {name}, needed by {needed_by}",
                        hint="use a kernel that has virtio, squashfs, overlay and ext4",
                    )
                return
            if name in visiting:
                raise ArtifactError(f"kernel modules in {self.root} depend on each other: {name}")
            visiting.append(name)
            module = self.module(name)
            for other in module.depends:
                visit(other, needed_by=name, must=True)
            for other in module.wants:
                visit(other, needed_by=name, must=False)
            visiting.pop()
            found[name] = module

        for name in required:
            visit(name, needed_by="every guest", must=True)
        for name in optional:
            visit(name, needed_by="", must=False)
        return list(found.values())
