"""Module closure, and kernels from files, packages and addresses, without any network."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gzip
import hashlib
import http.server
import json
import lzma
import random
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from sporevm._sys import process
from sporevm.errors import ArtifactError, SetupError, UsageError
from sporevm.image import initramfs, kernel, sources
from sporevm.image.apt import host_transport
from sporevm.image.kernel import ensure_kernel, list_kernels, prune_kernels
from sporevm.image.modules import ModuleTree, modinfo
from sporevm.spec import Arch
from sporevm.store.layout import Layout

from .test_kernel_validate import RELEASE, arm64_image, bzimage


def module_elf(name: str, depends: str = "", softdep: str = "", release: str = RELEASE) -> bytes:
    """A 64-bit ELF file with nothing but a .modinfo section."""
    fields = [f"depends={depends}", f"name={name}", f"vermagic={release} SMP mod_unload "]
    fields += [f"softdep={softdep}"] if softdep else []
    info = "\0".join(fields).encode() + b"\0"
    names = b"\0.modinfo\0.shstrtab\0"
    table = 64 + len(info) + len(names)
    head = bytearray(64)
    head[:7] = b"\x7fELF\x02\x01\x01"
    struct.pack_into("<HH", head, 16, 1, 62)
    struct.pack_into("<Q", head, 0x28, table)
    struct.pack_into("<HHH", head, 0x3A, 64, 3, 2)
    sections = [(0, 0, 0), (1, 64, len(info)), (10, 64 + len(info), len(names))]
    rows = b"".join(
        struct.pack("<IIQQQQIIQQ", n, 1, 0, 0, a, s, 0, 0, 1, 0) for n, a, s in sections
    )
    return bytes(head) + info + names + rows


_MODULES = {
    "fs/squashfs/squashfs.ko": module_elf("squashfs"),
    "fs/overlayfs/overlay.ko": module_elf("overlay"),
    "drivers/virtio/virtio.ko": module_elf("virtio", "virtio_ring"),
    "drivers/virtio/virtio_ring.ko": module_elf("virtio_ring"),
    "drivers/virtio/virtio_mmio.ko": module_elf("virtio_mmio", "virtio,virtio_ring"),
    "drivers/virtio/virtio_pci.ko": module_elf("virtio_pci", "virtio_pci_modern_dev,virtio"),
    "drivers/virtio/virtio_pci_modern_dev.ko": module_elf("virtio_pci_modern_dev"),
    "drivers/block/virtio_blk.ko": module_elf("virtio_blk", "virtio,virtio_ring"),
    "drivers/char/virtio_console.ko.xz": lzma.compress(module_elf("virtio_console", "virtio")),
    "drivers/char/virtio-rng.ko.gz": gzip.compress(module_elf("virtio_rng", "virtio")),
    "fs/erofs/erofs.ko": module_elf("erofs", "libcrc32c"),
    "lib/libcrc32c.ko": module_elf("libcrc32c", softdep="pre: crc32c other-one post: late"),
    "crypto/other_one.ko": module_elf("other_one"),
    "crypto/late.ko": module_elf("late"),
}


def make_tree(root: Path) -> Path:
    for name, data in _MODULES.items():
        path = root / "kernel" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    (root / "modules.builtin").write_text("kernel/fs/ext4/ext4.ko\n")
    (root / "modules.builtin.modinfo").write_bytes(
        b"crc32c_generic.alias=crc32c\0ext4.license=GPL\0"
    )
    return root


def names(tree: ModuleTree) -> list[str]:
    return [module.name for module in tree.closure()]


def test_closure_is_in_load_order(tmp_path: Path) -> None:
    order = names(ModuleTree(make_tree(tmp_path)))
    for module in ModuleTree(tmp_path).closure():
        for needed in module.depends:
            assert order.index(needed) < order.index(module.name)
    assert order.index("other_one") < order.index("libcrc32c")
    assert "ext4" not in order  # built in
    assert "crc32c" not in order  # built in under another name
    assert "late" not in order
    assert "virtio_rng" in order  # its file is virtio-rng.ko.gz
    assert len(order) == len(set(order))


def test_closure_agrees_with_depmod(tmp_path: Path) -> None:
    """depmod works from symbols, which these files lack, so this only compares what it lists."""
    import shutil
    import subprocess

    if shutil.which("depmod") is None:
        pytest.skip("depmod is not installed")
    tree = make_tree(tmp_path / "lib/modules" / RELEASE)
    subprocess.run(["depmod", "-b", tmp_path, RELEASE], check=True)
    listed = (tree / "modules.dep").read_text()
    for module in ModuleTree(tree).closure():
        if module.path.suffix != ".ko":
            continue  # Debian's kmod is built without zlib and passes over these
        assert str(module.path.relative_to(tree)) in listed


def test_a_missing_module_is_named(tmp_path: Path) -> None:
    make_tree(tmp_path)
    (tmp_path / "kernel/drivers/virtio/virtio_pci_modern_dev.ko").unlink()
    with pytest.raises(ArtifactError, match="virtio_pci_modern_dev, needed by virtio_pci"):
        names(ModuleTree(tmp_path))


def test_a_circle_ends(tmp_path: Path) -> None:
    make_tree(tmp_path)
    path = tmp_path / "kernel/drivers/virtio/virtio_ring.ko"
    path.write_bytes(module_elf("virtio_ring", "virtio"))
    with pytest.raises(ArtifactError, match="depend on each other"):
        names(ModuleTree(tmp_path))


@pytest.mark.parametrize("size", [0, 10, 64, 100, 180])
def test_a_damaged_module_is_named(tmp_path: Path, size: int) -> None:
    make_tree(tmp_path)
    path = tmp_path / "kernel/fs/squashfs/squashfs.ko"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ArtifactError, match="squashfs.ko"):
        names(ModuleTree(tmp_path))


def test_modinfo_of_noise(tmp_path: Path) -> None:
    whole = module_elf("x")
    for at in range(0, len(whole), 3):
        noise = whole[:at] + b"\xff" + whole[at + 1 :]
        with contextlib.suppress(ArtifactError):
            modinfo(noise, tmp_path)


@pytest.fixture
def layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Layout:
    """A home, and an agent that stands in for the real one (which may not have been built)."""
    agent = tmp_path / "agent"
    agent.write_bytes(b"\x7fELF the agent" + random.Random(1).randbytes(1000))
    monkeypatch.setattr(initramfs, "agent_path", lambda arch: agent)
    return Layout(tmp_path / "home")


def boot_directory(root: Path) -> Path:
    (root / "boot").mkdir(parents=True)
    make_tree(root / "lib/modules" / RELEASE)
    path = root / "boot" / f"vmlinuz-{RELEASE}"
    path.write_bytes(bzimage())
    return path


async def make_package(root: Path) -> Path:
    """A kernel package like Debian's, with everything small."""
    boot_directory(root / "tree")
    (root / "tree/DEBIAN").mkdir()
    (root / "tree/DEBIAN/control").write_text(
        "Package: linux-image-test\nVersion: 1\nArchitecture: all\nMaintainer: x <x@example.org>\n"
        "Description: test\n"
    )
    await process.run(["dpkg-deb", "-b", root / "tree", root / "k.deb"])
    return root / "k.deb"


async def test_from_a_boot_directory(tmp_path: Path, layout: Layout) -> None:
    path = boot_directory(tmp_path / "host")
    steps: list[str] = []
    made = await ensure_kernel(
        layout, Arch.X86_64, f"file:{path}", lambda step, done, total: steps.append(step)
    )
    assert made.version == RELEASE
    assert made.vmlinuz.read_bytes() == bzimage()
    data = made.initrd.read_bytes()
    assert b"\x7fELF the agent" in data
    assert b"/m/virtio_ring.ko\n/m/virtio.ko\n" in data
    assert module_elf("virtio_console", "virtio") in data  # unpacked
    assert steps
    assert list(layout.tmp.iterdir()) == []
    manifest = json.loads((made.vmlinuz.parent / "manifest.json").read_text())
    assert manifest["vmlinuz_sha256"] == hashlib.sha256(bzimage()).hexdigest()


async def test_second_call_makes_nothing(tmp_path: Path, layout: Layout) -> None:
    path = boot_directory(tmp_path / "host")
    first = await ensure_kernel(layout, Arch.X86_64, f"file:{path}")
    inode = first.initrd.stat().st_ino

    def never(step: str, done: float, total: float) -> None:
        raise AssertionError(step)

    assert await ensure_kernel(layout, Arch.X86_64, f"file:{path}", never) == first
    assert first.initrd.stat().st_ino == inode


async def test_a_new_agent_makes_a_new_kernel(tmp_path: Path, layout: Layout) -> None:
    path = boot_directory(tmp_path / "host")
    first = await ensure_kernel(layout, Arch.X86_64, f"file:{path}")
    (tmp_path / "agent").write_bytes(b"\x7fELF a newer agent")
    second = await ensure_kernel(layout, Arch.X86_64, f"file:{path}")
    assert first.name != second.name
    assert first.hash != second.hash
    assert [k.name for k in list_kernels(layout)] == [second.name, first.name]
    assert prune_kernels(layout, {second.hash}) == [first.name]
    assert list_kernels(layout) == [second]


async def test_at_once(tmp_path: Path, layout: Layout) -> None:
    path = boot_directory(tmp_path / "host")
    made = await asyncio.gather(
        *(ensure_kernel(layout, Arch.X86_64, f"file:{path}") for _ in range(4))
    )
    assert len(set(made)) == 1
    assert len(list_kernels(layout)) == 1


async def test_from_a_package(tmp_path: Path, layout: Layout) -> None:
    package = await make_package(tmp_path)
    made = await ensure_kernel(layout, Arch.X86_64, f"file:{package}")
    assert made.version == RELEASE
    assert b"m/overlay.ko" in made.initrd.read_bytes()


@pytest.mark.parametrize("size", [8, 70, 200, 1000])
async def test_from_a_cut_package(tmp_path: Path, layout: Layout, size: int) -> None:
    package = await make_package(tmp_path)
    package.write_bytes(package.read_bytes()[:size])
    with pytest.raises(ArtifactError, match=r"k\.deb"):
        await ensure_kernel(layout, Arch.X86_64, f"file:{package}")
    assert list_kernels(layout) == []
    assert list(layout.tmp.iterdir()) == []


async def test_wrong_architecture_leaves_nothing(tmp_path: Path, layout: Layout) -> None:
    (tmp_path / "Image").write_bytes(arm64_image())
    with pytest.raises(ArtifactError, match="aarch64"):
        await ensure_kernel(layout, Arch.X86_64, f"file:{tmp_path / 'Image'}")
    assert list_kernels(layout) == []
    assert (
        await ensure_kernel(layout, Arch.AARCH64, f"file:{tmp_path / 'Image'}")
    ).arch == "aarch64"


async def test_modules_of_another_release(tmp_path: Path, layout: Layout) -> None:
    path = boot_directory(tmp_path / "host")
    tree = path.parent.parent / "lib/modules" / RELEASE
    (tree / "kernel/fs/overlayfs/overlay.ko").write_bytes(module_elf("overlay", release="5.4.0"))
    with pytest.raises(ArtifactError, match=r"are for 5\.4\.0"):
        await ensure_kernel(layout, Arch.X86_64, f"file:{path}")


async def test_damage_in_the_store_is_noticed(tmp_path: Path, layout: Layout) -> None:
    path = boot_directory(tmp_path / "host")
    made = await ensure_kernel(layout, Arch.X86_64, f"file:{path}")
    made.initrd.write_bytes(b"junk")
    with pytest.raises(ArtifactError, match="initrd is damaged"):
        await ensure_kernel(layout, Arch.X86_64, f"file:{path}")


@pytest.mark.parametrize(
    "source", ["", "ubuntu", "http://example.org/k", "https://h/k#sha256=abc", "/boot/vmlinuz"]
)
async def test_unknown_sources(layout: Layout, source: str) -> None:
    with pytest.raises(UsageError, match="not a kernel source"):
        await ensure_kernel(layout, Arch.X86_64, source)


async def test_a_file_that_is_not_there(tmp_path: Path, layout: Layout) -> None:
    with pytest.raises(ArtifactError, match="does not exist"):
        await ensure_kernel(layout, Arch.X86_64, f"file:{tmp_path / 'none'}")


@pytest.fixture
def web(tmp_path: Path) -> Iterator[str]:
    """A web server of a directory, on a port of its own."""
    (tmp_path / "web").mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    handler = functools.partial(Quiet, directory=str(tmp_path / "web"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


async def test_from_an_address(tmp_path: Path, layout: Layout, web: str) -> None:
    (tmp_path / "web/k").write_bytes(arm64_image())
    right = hashlib.sha256(arm64_image()).hexdigest()
    with pytest.raises(ArtifactError, match=f"expected sha256 {'0' * 64}, found {right}"):
        await ensure_kernel(layout, Arch.AARCH64, f"{web}/k#sha256={'0' * 64}")
    made = await ensure_kernel(layout, Arch.AARCH64, f"{web}/k#sha256={right}")
    assert made.vmlinuz.read_bytes() == arm64_image()
    (tmp_path / "web/k").unlink()
    assert await ensure_kernel(layout, Arch.AARCH64, f"{web}/k#sha256={right}") == made
    with pytest.raises(SetupError, match="can't fetch"):
        await ensure_kernel(layout, Arch.AARCH64, f"{web}/k#sha256={'1' * 64}")


def test_zboot_is_unpacked(tmp_path: Path) -> None:
    packed = gzip.compress(arm64_image())
    head = bytearray(128)
    head[:2] = b"MZ"
    head[4:8] = b"zimg"
    struct.pack_into("<II", head, 8, 128, len(packed))
    head[24:28] = b"gzip"
    struct.pack_into("<I", head, 0x3C, 0x40)
    head[0x40:0x46] = b"PE\0\0\x64\xaa"
    (tmp_path / "k").write_bytes(bytes(head) + packed)
    made = kernel.kernel_source.bootable(tmp_path / "k", tmp_path)
    assert made.read_bytes() == arm64_image()


ONE_LINE = """
# deb http://no.example/ bookworm main
deb [arch=amd64 signed-by=/k.gpg] http://a.example/debian bookworm main contrib # hello
deb http://a.example/security bookworm-security main
deb-src http://a.example/debian bookworm main
deb http://b.example/apt cloud-sdk-bookworm main
deb http://c.example/linux/debian bookworm stable
"""
DEB822 = """# a comment
Types: deb deb-src
URIs: http://a.example/debian
Suites: bookworm bookworm-updates
Components: main
Architectures: amd64
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 abc

Types: deb
URIs: http://d.example/node
Suites: nodistro
Components: main

Enabled: no
Types: deb
URIs: http://off.example/debian
Suites: bookworm
Components: main
"""


def test_sources_of_debian_only(tmp_path: Path) -> None:
    (tmp_path / "sources.list").write_text(ONE_LINE)
    (tmp_path / "sources.list.d").mkdir()
    (tmp_path / "sources.list.d/x.sources").write_text(DEB822)
    (tmp_path / "sources.list.d/x.save").write_text("deb http://old.example/ bookworm main\n")
    text = sources.read_sources("bookworm", tmp_path)
    assert text.count("Types: deb\n") == 3
    assert "Signed-By: /k.gpg" in text
    assert "BEGIN PGP" in text
    assert "Architectures" not in text
    for other in ("b.example", "c.example", "d.example", "no.example", "off.example", "old."):
        assert other not in text


def test_no_sources(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="no source for Debian"):
        sources.read_sources("bookworm", tmp_path)


def test_not_debian(tmp_path: Path) -> None:
    (tmp_path / "os").write_text('ID=fedora\nPRETTY_NAME="Fedora 40"\n')
    with pytest.raises(SetupError, match="Fedora 40 is not Debian"):
        sources.read_codename(tmp_path / "os")
    with pytest.raises(SetupError):
        sources.read_codename(tmp_path / "none")


def test_only_transport_settings_are_taken_from_the_host() -> None:
    dump = (
        'APT::Update::Post-Invoke:: "rm -f x";\nAcquire::http::Proxy "http://p";\n'
        'Acquire::IndexTargets::deb::X "y";\nAcquire::Languages "de";\nDPkg::Post-Invoke:: "z";\n'
    )
    assert host_transport(dump) == ('Acquire::http::Proxy "http://p";',)
