"""Kernels and initrds that are not what they must be, made on the spot."""

from __future__ import annotations

import gzip
import lzma
import struct
from pathlib import Path

import pytest

from sporevm.errors import ArtifactError
from sporevm.image import cpio
from sporevm.image.validate import inspect_kernel, validate_initrd, validate_kernel
from sporevm.spec import Arch

RELEASE = "6.1.0-1-cloud-amd64"
SIZE = 320 << 10


def bzimage(*, size: int = SIZE, version: int = 0x20F, bits64: bool = True) -> bytes:
    """A file with the header of an x86 kernel of 320 KiB."""
    data = bytearray(SIZE)
    sectors = 4
    data[0x1F1] = sectors
    struct.pack_into("<I", data, 0x1F4, (SIZE - (sectors + 1) * 512) // 16)
    data[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", data, 0x206, version)
    struct.pack_into("<H", data, 0x20E, 0x600)
    struct.pack_into("<H", data, 0x236, 1 if bits64 else 0)
    text = f"{RELEASE} (builder) #1 SMP\0".encode()
    data[0x800 : 0x800 + len(text)] = text
    return bytes(data[:size])


def arm64_image(*, size: int = SIZE) -> bytes:
    data = bytearray(SIZE)
    data[:2] = b"MZ"
    struct.pack_into("<Q", data, 0x10, SIZE + 4096)
    data[0x38:0x3C] = b"ARM\x64"
    struct.pack_into("<I", data, 0x3C, 0x40)
    data[0x40:0x44] = b"PE\0\0"
    struct.pack_into("<HH", data, 0x44, 0xAA64, 1)
    struct.pack_into("<H", data, 0x54, 0)
    struct.pack_into("<II", data, 0x58 + 16, SIZE - 4096, 4096)
    return bytes(data[:size])


def vmlinux(machine: int, *, size: int = SIZE, kind: int = 2) -> bytes:
    data = bytearray(SIZE)
    data[:8] = b"\x7fELF\x02\x01\x01\x00"
    struct.pack_into("<HH", data, 16, kind, machine)
    struct.pack_into("<Q", data, 0x20, 64)
    struct.pack_into("<HH", data, 0x36, 56, 1)
    struct.pack_into("<IIQQQQ", data, 64, 1, 5, 4096, 0, 0, SIZE - 4096)
    return bytes(data[:size])


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("data", "arch", "kind"),
    [
        (bzimage(), Arch.X86_64, "bzimage"),
        (arm64_image(), Arch.AARCH64, "image"),
        (vmlinux(62), Arch.X86_64, "elf"),
        (vmlinux(183), Arch.AARCH64, "elf"),
    ],
)
def test_good_kernels(tmp_path: Path, data: bytes, arch: Arch, kind: str) -> None:
    path = write(tmp_path / "k", data)
    assert validate_kernel(path, arch).kind == kind
    other = Arch.AARCH64 if arch is Arch.X86_64 else Arch.X86_64
    with pytest.raises(ArtifactError) as caught:
        validate_kernel(path, other)
    for word in (str(path), arch.value, arch.debian, other.value, other.debian):
        assert word in caught.value.message


def test_the_release_is_read(tmp_path: Path) -> None:
    assert inspect_kernel(write(tmp_path / "k", bzimage())).release == RELEASE


def test_gzipped_arm64_image(tmp_path: Path) -> None:
    import os

    image = bytearray(arm64_image() + os.urandom(300 << 10))  # what does not compress
    path = write(tmp_path / "k", gzip.compress(bytes(image)))
    assert validate_kernel(path, Arch.AARCH64).kind == "image.gz"


@pytest.mark.parametrize("make", [bzimage, arm64_image, lambda size: vmlinux(62, size=size)])
@pytest.mark.parametrize("size", [SIZE - 1, SIZE // 2, 4096, 1024])
def test_truncated(tmp_path: Path, make: object, size: int) -> None:
    path = write(tmp_path / "k", make(size=size))  # type: ignore[operator]
    with pytest.raises(ArtifactError) as caught:
        inspect_kernel(path)
    assert str(path) in caught.value.message
    assert str(size) in caught.value.message
    assert "cut short" in caught.value.message


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (b"", "empty"),
        (b"\0" * 100, "starts with"),
        (b"hello world" * 1000, "starts with"),
        (b"<!DOCTYPE html><html>", "web page"),
        (gzip.compress(b"nothing"), "gzip"),
        (lzma.compress(b"nothing"), "xz"),
        (b"!<arch>\ndebian-binary   ", "Debian package"),
        (cpio.archive([]), "cpio"),
    ],
)
def test_no_kernel_at_all(tmp_path: Path, data: bytes, found: str) -> None:
    path = write(tmp_path / "k", data)
    with pytest.raises(ArtifactError) as caught:
        inspect_kernel(path)
    for word in (str(path), f"{len(data)} bytes", "expected", "bzImage", found):
        assert word in caught.value.message


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (bzimage(version=0x204), "boot protocol 2.04"),
        (bzimage(bits64=False), "32-bit"),
        (vmlinux(40), "not for x86_64"),
        (vmlinux(62, kind=1), "module"),
    ],
)
def test_kernels_of_another_kind(tmp_path: Path, data: bytes, word: str) -> None:
    with pytest.raises(ArtifactError, match=word):
        inspect_kernel(write(tmp_path / "k", data))


@pytest.mark.parametrize("size", range(0, 4096, 61))
def test_no_length_of_a_header_makes_it_stumble(tmp_path: Path, size: int) -> None:
    for data in (bzimage(size=size), arm64_image(size=size), vmlinux(62, size=size)):
        with pytest.raises(ArtifactError):
            inspect_kernel(write(tmp_path / "k", data))


def test_missing_and_directory(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="does not exist"):
        inspect_kernel(tmp_path / "none")
    with pytest.raises(ArtifactError, match="directory"):
        inspect_kernel(tmp_path)


def test_initrds(tmp_path: Path) -> None:
    data = cpio.archive([cpio.file("init", b"x" * 4000)])
    noise = cpio.archive([cpio.file("init", bytes(range(256)) * 40)])
    assert validate_initrd(write(tmp_path / "a", data)) == "cpio"
    assert validate_initrd(write(tmp_path / "b", gzip.compress(noise, 0))) == "gzip"


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (b"", "empty"),
        (b"not an archive", "expected cpio"),
        (cpio.archive([])[:200], "200 bytes"),
        (gzip.compress(bytes(5000), 0), "inside gzip"),
        (gzip.compress(cpio.archive([cpio.file("i", bytes(9000))]), 0)[:-9], "damaged"),
        (cpio.archive([cpio.file("i", bytes(9000))])[:9000], "no end mark"),
        (bzimage(), "starts with"),
    ],
)
def test_bad_initrds(tmp_path: Path, data: bytes, word: str) -> None:
    path = write(tmp_path / "i", data)
    with pytest.raises(ArtifactError) as caught:
        validate_initrd(path)
    assert word in caught.value.message
    assert str(path) in caught.value.message
