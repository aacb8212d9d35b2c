"""The initramfs writer, checked with the real cpio; blank disks, checked with e2fsck."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from sporevm._sys import fs, process
from sporevm.errors import UsageError
from sporevm.image import cpio, initramfs
from sporevm.image.modules import Module
from sporevm.image.scratch import ensure_blank, mkfs_argv
from sporevm.spec import GIB, MIB, SLOT_BYTES
from sporevm.store.layout import Layout


def list_archive(data: bytes) -> dict[str, str]:
    """`cpio -itv`: mode, owner and device of each name."""
    done = subprocess.run(["cpio", "-itv", "--quiet"], input=data, capture_output=True, check=True)
    return {line.split()[-1]: line for line in done.stdout.decode().splitlines()}


def test_entries_as_cpio_sees_them() -> None:
    data = cpio.archive(
        [
            cpio.file("d/odd", b"12345"),
            cpio.file("init", b"#!", mode=0o755),
            cpio.directory("d"),
            cpio.char_device("d/console", 5, 1),
        ]
    )
    seen = list_archive(data)
    assert list(seen) == ["d", "d/console", "d/odd", "init"]
    assert seen["d"].startswith("drwxr-xr-x   2 root     root ")
    assert seen["d/console"].startswith("crw-------")
    assert "5,   1" in seen["d/console"]
    assert " 5 Jan  1  1970" in seen["d/odd"]
    assert seen["init"].startswith("-rwxr-xr-x")


def test_contents_survive_at_every_alignment() -> None:
    for size in range(9):
        data = cpio.archive([cpio.file("f", b"x" * size), cpio.file("g", b"tail")])
        for name, wanted in (("f", b"x" * size), ("g", b"tail")):
            command = ["cpio", "-i", "--quiet", "--to-stdout", name]
            done = subprocess.run(command, input=data, capture_output=True, check=True)
            assert done.stdout == wanted


def test_order_of_entries_does_not_matter() -> None:
    entries = [cpio.file("b", b"1"), cpio.directory("a"), cpio.file("a/x", b"2")]
    assert cpio.archive(entries) == cpio.archive(entries[::-1])


def test_a_name_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="same name"):
        cpio.archive([cpio.file("a", b""), cpio.directory("a")])


def test_initramfs(tmp_path: Path) -> None:
    modules = []
    for name in ("zeta", "alpha"):
        path = tmp_path / f"{name}.ko"
        path.write_bytes(name.encode())
        modules.append(Module(name, path, (), (), ""))
    data = initramfs.build(b"agent", modules)
    assert data == initramfs.build(b"agent", modules)
    seen = list_archive(data)
    for name in ("dev", "proc", "sys", "run", "tmp", "newroot", "dev/console", "init"):
        assert name in seen
    # In load order, which is not the archive's order.
    assert b"/m/zeta.ko\n/m/alpha.ko\n" in data


async def test_blank_disk(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    path = await ensure_blank(layout, 10 * GIB)
    assert path.stat().st_size == SLOT_BYTES
    assert fs.real_size(path) < 256 << 10
    fs.sparse_copy(path, tmp_path / "copy")
    await process.run(["e2fsck", "-fn", tmp_path / "copy"])
    about = (await process.run(["dumpe2fs", tmp_path / "copy"])).text
    assert "Block count:              2621440\n" in about
    assert "Reserved block count:     0\n" in about
    # Else each guest would write all its inode tables full of zeros in the background.
    assert about.count("ITABLE_ZEROED") == 80
    assert list(layout.tmp.iterdir()) == []


async def test_blank_disk_is_made_once_and_the_same(tmp_path: Path) -> None:
    one = await ensure_blank(Layout(tmp_path / "a"), 64 * MIB)
    before = one.stat()
    assert await ensure_blank(Layout(tmp_path / "a"), 64 * MIB) == one
    assert one.stat().st_ino == before.st_ino
    two = await ensure_blank(Layout(tmp_path / "b"), 64 * MIB)
    with one.open("rb") as a, two.open("rb") as b:
        assert a.read(64 * MIB) == b.read(64 * MIB)


@pytest.mark.parametrize("size", [16 * MIB, 100 * MIB, SLOT_BYTES])
async def test_blank_disks_of_extreme_sizes(tmp_path: Path, size: int) -> None:
    path = await ensure_blank(Layout(tmp_path), size)
    assert fs.real_size(path) < 2 * MIB


@pytest.mark.parametrize("size", [0, 1 * MIB, SLOT_BYTES + 4096])
async def test_impossible_sizes(tmp_path: Path, size: int) -> None:
    with pytest.raises(UsageError):
        await ensure_blank(Layout(tmp_path), size)


def test_mkfs_argv_takes_nothing_from_the_host() -> None:
    argv = mkfs_argv(Path("disk"), GIB)
    assert argv[argv.index("-O") + 1].startswith("none,")
    assert argv[-2:] == ["disk", "262144"]
