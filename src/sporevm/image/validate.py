"""Is this file what it must be? Found out before a VMM silently hangs on it.

A kernel for another machine, or a download that was cut short, makes a VM that never says a
word. So each file is looked at first, and a bad one is an ArtifactError that names the file, its
size, what was expected and what was found.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

from sporevm.errors import ArtifactError
from sporevm.image import cpio
from sporevm.spec import Arch

_HEAD = 4096
_ELF_MACHINES = {62: Arch.X86_64, 183: Arch.AARCH64}
#: Magics that linux/lib/decompress.c knows.
_COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\x5d\x00\x00": "lzma",
    b"\xfd7zXZ\x00": "xz",
    b"\x89LZO\x00": "lzo",
    b"\x02\x21\x4c\x18": "lz4",
    b"\x28\xb5\x2f\xfd": "zstd",
}
#: The smallest things that could be one: less is a stub, an error page or a broken download.
_MIN_KERNEL = 256 << 10
_MIN_INITRD = 512


@dataclass(frozen=True, slots=True)
class KernelFormat:
    """What a kernel file is: `bzimage`, `image`, `image.gz`, `elf` or `zboot`."""

    arch: Arch
    kind: str
    release: str = ""


def _read(path: Path, what: str) -> tuple[bytes, int]:
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD)
            size = path.stat().st_size
    except IsADirectoryError:
        raise ArtifactError(f"{what} {path} is a directory, not a file") from None
    except FileNotFoundError:
        raise ArtifactError(f"{what} {path} does not exist") from None
    except PermissionError:
        raise ArtifactError(f"{what} {path} may not be read", hint=f"chmod a+r {path}") from None
    return head, size


def _describe(head: bytes) -> str:
    """What a file that isn't what we wanted looks like."""
    if not head:
        return "it is empty"
    for magic, name in _COMPRESSED.items():
        if head.startswith(magic):
            return f"it looks like {name} data"
    if head.startswith(b"!<arch>\ndebian"):
        return "it is a Debian package"
    if head.lstrip()[:1] == b"<":
        return "it looks like a web page"
    if head.startswith(b"\x7fELF"):
        return "it is an ELF file"
    if head.startswith(cpio.MAGIC):
        return "it is a cpio archive"
    return f"it starts with {head[:8].hex(' ')}"


def inspect_kernel(path: Path) -> KernelFormat:
    """What kind of kernel a file is, for which machine; ArtifactError if it isn't a whole one."""
    start, size = _read(path, "kernel")
    head = start.ljust(_HEAD, b"\0")  # so that no field is missing; `size` tells what is cut short
    if head[0x202:0x206] == b"HdrS":
        return _bzimage(path, head, size)
    if head[0x38:0x3C] == b"ARM\x64":
        return _arm64(path, head, size, packed=False)
    if head[:2] == b"MZ" and head[4:8] == b"zimg":
        return _zboot(path, head, size)
    if head.startswith(b"\x7fELF"):
        return _elf(path, head, size)
    if head.startswith(b"\x1f\x8b"):
        inner = _gunzip_head(path).ljust(_HEAD, b"\0")
        if inner[0x38:0x3C] == b"ARM\x64":
            return _arm64(path, inner, size, packed=True)
    raise ArtifactError(
        f"kernel {path} ({size} bytes) is not a Linux kernel: expected an x86 bzImage, an arm64 "
        f"Image or an ELF vmlinux, but {_describe(start)}"
    )


def validate_kernel(path: Path, arch: Arch) -> KernelFormat:
    """Check that a file is a whole kernel for `arch`."""
    found = inspect_kernel(path)
    if found.arch != arch:
        raise ArtifactError(
            f"kernel {path} is for {found.arch.value} ({found.arch.debian}), "
            f"but the guest is {arch.value} ({arch.debian})",
            hint=f"give a kernel for {arch.value}, or use --arch {found.arch.value}",
        )
    return found


def _too_short(path: Path, size: int, least: int, why: str) -> ArtifactError:
    return ArtifactError(
        f"kernel {path} is cut short: it has {size} bytes, but {why} at least {least}",
        hint="fetch or copy it again",
    )


def _bzimage(path: Path, head: bytes, size: int) -> KernelFormat:
    """See the kernel's Documentation/arch/x86/boot.rst for the header."""
    (version,) = struct.unpack_from("<H", head, 0x206)
    (name_at,) = struct.unpack_from("<H", head, 0x20E)
    if version < 0x020C:
        raise ArtifactError(
            f"kernel {path} speaks boot protocol {version >> 8}.{version & 255:02}, "
            "which is older than the 2.12 a 64-bit guest needs"
        )
    setup_sectors = head[0x1F1] or 4
    (paragraphs,) = struct.unpack_from("<I", head, 0x1F4)
    (load_flags,) = struct.unpack_from("<H", head, 0x236)
    least = (setup_sectors + 1) * 512 + paragraphs * 16
    if size < max(least, _MIN_KERNEL):
        raise _too_short(path, size, max(least, _MIN_KERNEL), "its header promises")
    if not load_flags & 1:
        raise ArtifactError(
            f"kernel {path} is a 32-bit x86 kernel, but the guest is x86_64 (amd64)",
            hint="give a 64-bit kernel",
        )
    release = b""
    if name_at:
        with path.open("rb") as file:
            file.seek(name_at + 0x200)
            release = file.read(256).partition(b"\0")[0].partition(b" ")[0]
    return KernelFormat(Arch.X86_64, "bzimage", release.decode(errors="replace"))


def _arm64(path: Path, head: bytes, size: int, *, packed: bool) -> KernelFormat:
    """`size` of the header counts the zeros behind the file too, so it bounds from above only."""
    (image_size,) = struct.unpack_from("<Q", head, 0x10)
    least = _MIN_KERNEL
    if not packed:
        least = max(least, _pe_end(head))
    if size < least or image_size == 0:
        raise _too_short(path, size, least, "a kernel has")
    return KernelFormat(Arch.AARCH64, "image.gz" if packed else "image")


def _pe_end(head: bytes) -> int:
    """Where the last section of an EFI-bootable Image ends in its file; 0 without a PE header."""
    if head[:2] != b"MZ":
        return 0
    (pe,) = struct.unpack_from("<I", head, 0x3C)
    if head[pe : pe + 4] != b"PE\0\0" or pe + 24 > len(head):
        return 0
    (sections,) = struct.unpack_from("<H", head, pe + 6)
    (optional_size,) = struct.unpack_from("<H", head, pe + 20)
    end = 0
    for index in range(sections):
        at = pe + 24 + optional_size + index * 40
        if at + 40 > len(head):
            break
        raw_size, raw_at = struct.unpack_from("<II", head, at + 16)
        end = max(end, raw_at + raw_size)
    return end


def _zboot(path: Path, head: bytes, size: int) -> KernelFormat:
    offset, length = struct.unpack_from("<II", head, 8)
    if size < offset + length:
        raise _too_short(path, size, offset + length, "its header promises")
    (pe,) = struct.unpack_from("<I", head, 0x3C)
    (machine,) = struct.unpack_from("<H", head, pe + 4) if pe + 6 <= len(head) else (0,)
    machines = {0xAA64: Arch.AARCH64, 0x8664: Arch.X86_64}
    if machine not in machines:
        raise ArtifactError(f"kernel {path} is an EFI kernel for an unknown machine {machine:#x}")
    return KernelFormat(machines[machine], "zboot")


def _elf(path: Path, head: bytes, size: int) -> KernelFormat:
    machine = _elf_machine(head)
    if machine is None:
        raise ArtifactError(
            f"kernel {path} is an ELF file, but not for x86_64 (amd64) or aarch64 (arm64)"
        )
    (kind,) = struct.unpack_from("<H", head, 16)
    (phoff,) = struct.unpack_from("<Q", head, 0x20)
    entry_size, count = struct.unpack_from("<HH", head, 0x36)
    if kind not in (2, 3) or not count:
        raise ArtifactError(f"kernel {path} is an ELF file that can't be run, such as a module")
    end = 0
    for index in range(count):
        at = phoff + index * entry_size
        if at + 40 <= len(head):
            offset, _, _, file_size = struct.unpack_from("<QQQQ", head, at + 8)
            end = max(end, offset + file_size)
    if size < max(end, _MIN_KERNEL):
        raise _too_short(path, size, max(end, _MIN_KERNEL), "a kernel of its kind has")
    return KernelFormat(machine, "elf")


def _elf_machine(head: bytes) -> Arch | None:
    if len(head) < 64 or head[4:6] != b"\x02\x01":
        return None
    return _ELF_MACHINES.get(struct.unpack_from("<H", head, 18)[0])


def elf_arch_of(head: bytes) -> Arch | None:
    """The machine that a file's first 64 bytes are a program for; None if we don't know it."""
    return _elf_machine(head) if head.startswith(b"\x7fELF") else None


def _gunzip_head(path: Path) -> bytes:
    import zlib

    with path.open("rb") as file:
        packed = file.read(_HEAD * 16)
    try:
        return zlib.decompressobj(31).decompress(packed, _HEAD)
    except zlib.error:
        return b""


def validate_initrd(path: Path) -> str:
    """Check that a file can be an initramfs; returns how it is packed (`cpio`, `gzip`, …)."""
    head, size = _read(path, "initrd")
    kind = ""
    if head.startswith((cpio.MAGIC, b"070702")):
        kind = "cpio"
    for magic, name in _COMPRESSED.items():
        if head.startswith(magic):
            kind = name
    if not kind:
        raise ArtifactError(
            f"initrd {path} ({size} bytes) is not an archive: expected cpio (newc), plain or "
            f"compressed, but {_describe(head)}"
        )
    if size < _MIN_INITRD:
        raise ArtifactError(
            f"initrd {path} has only {size} bytes: expected at least {_MIN_INITRD}",
            hint="fetch or copy it again",
        )
    if kind == "gzip":
        _check_gzip(path, size)
    if kind == "cpio" and cpio.TRAILER.encode() not in path.read_bytes():
        raise ArtifactError(
            f"initrd {path} is cut short: it has {size} bytes and no end mark",
            hint="fetch or copy it again",
        )
    return kind


def _check_gzip(path: Path, size: int) -> None:
    import gzip
    import zlib

    try:
        with gzip.open(path) as file:
            magic = file.read(6)
            while file.read(1 << 20):
                pass
    except (EOFError, OSError, zlib.error) as error:
        raise ArtifactError(
            f"initrd {path} ({size} bytes) is damaged: expected a whole gzip file, found: {error}",
            hint="fetch or copy it again",
        ) from error
    if magic not in (cpio.MAGIC, b"070702"):
        raise ArtifactError(
            f"initrd {path} ({size} bytes) is not an archive: expected cpio (newc) inside gzip, "
            f"found {magic.hex(' ') or 'nothing'}"
        )
