"""Archives and directories to images and back, with the real tools; and input that is bad."""

from __future__ import annotations

import asyncio
import dataclasses
import gzip
import io
import json
import os
import stat
import subprocess
import tarfile
import tempfile
from pathlib import Path

import pytest

from sporevm._sys import fs, process
from sporevm.errors import ArtifactError, NotFound, SporeError, UsageError
from sporevm.image import squashfs
from sporevm.image.squashfs_root import Root, set_root
from sporevm.image.store import Image, ImageStore
from sporevm.spec import SLOT_BYTES, Arch
from sporevm.store.layout import Layout

_MACHINES = {Arch.X86_64: 62, Arch.AARCH64: 183}


def elf(arch: Arch) -> bytes:
    machine = _MACHINES[arch].to_bytes(2, "little")
    return b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x02\x00" + machine + bytes(100)


def add(tar: tarfile.TarFile, name: str, data: bytes = b"", **fields: object) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    info.mode = 0o644
    for key, value in fields.items():
        setattr(info, key, value)
    tar.addfile(info, io.BytesIO(data))


def rootfs(path: Path, arch: Arch = Arch.X86_64) -> Path:
    """An archive with one of everything that a root file system may hold."""
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        add(tar, "./", type=tarfile.DIRTYPE, mode=0o751, uid=1000, gid=1001)
        add(tar, "./bin", type=tarfile.DIRTYPE, mode=0o755)
        add(tar, "./bin/sh", elf(arch), mode=0o755, mtime=1_600_000_000)
        add(tar, "./bin/su", elf(arch), mode=0o4755)
        add(tar, "./bin/hard", type=tarfile.LNKTYPE, linkname="./bin/sh")
        add(tar, "./tmp", type=tarfile.DIRTYPE, mode=0o1777)
        add(tar, "./home", type=tarfile.DIRTYPE, mode=0o750, uid=1000, gid=1001)
        add(tar, "./home/with space\n-and 'quotes' ünï", b"odd", uid=1000, gid=1001)
        add(tar, "./secret", b"s", mode=0o000, uid=70000, gid=80000)
        add(tar, "./null", type=tarfile.CHRTYPE, mode=0o666, devmajor=1, devminor=3)
        add(tar, "./loop", type=tarfile.BLKTYPE, mode=0o660, devmajor=7, devminor=300)
        add(tar, "./fifo", type=tarfile.FIFOTYPE, mode=0o600)
        add(tar, "./link", type=tarfile.SYMTYPE, linkname="../../etc/passwd")
        caps = {"SCHILY.xattr.user.note": "hello"}
        add(tar, "./noted", b"n", pax_headers=caps)
    return path


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path / "home")


@pytest.fixture
def store(layout: Layout) -> ImageStore:
    return ImageStore(layout)


def listing(image: Image) -> dict[str, list[str]]:
    """unsquashfs' long listing with numeric owners, by path."""
    done = subprocess.run(
        ["unsquashfs", "-lln", str(image.disk)], capture_output=True, text=True, check=True
    )
    found = {}
    for line in done.stdout.splitlines():
        if "squashfs-root" in line:
            words, _, name = line.partition("squashfs-root")
            found[name] = words.split()
    return found


async def test_everything_survives(tmp_path: Path, store: ImageStore) -> None:
    image = await store.import_tar(rootfs(tmp_path / "t.tar"), "box", Arch.X86_64)
    seen = listing(image)
    assert seen[""][:2] == ["drwxr-x--x", "1000/1001"]
    assert seen["/bin/sh"][0] == "-rwxr-xr-x"
    assert seen["/bin/su"][0] == "-rwsr-xr-x"
    assert seen["/tmp"][0] == "drwxrwxrwt"
    assert seen["/home"][:2] == ["drwxr-x---", "1000/1001"]
    assert seen["/secret"][:2] == ["----------", "70000/80000"]
    assert seen["/null"][0] == "crw-rw-rw-"
    assert seen["/null"][2:4] == ["1,", "3"]
    assert seen["/loop"][0] == "brw-rw----"
    assert seen["/fifo"][0] == "prw-------"
    assert "/link -> ../../etc/passwd" in seen
    assert any("with space" in name for name in seen)


async def test_unpacked_again(tmp_path: Path, store: ImageStore) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root to make devices and owners")
    image = await store.import_tar(rootfs(tmp_path / "t.tar"), "box", Arch.X86_64)
    out = tmp_path / "out"
    await process.run(["unsquashfs", "-q", "-d", out, image.disk])
    assert (out / "bin/sh").read_bytes() == elf(Arch.X86_64)
    assert (out / "bin/sh").stat().st_ino == (out / "bin/hard").stat().st_ino
    assert (out / "bin/sh").stat().st_mtime == 1_600_000_000
    assert (out / "home/with space\n-and 'quotes' ünï").read_bytes() == b"odd"
    assert os.getxattr(out / "noted", "user.note") == b"hello"
    loop = (out / "loop").stat()
    assert (stat.S_ISBLK(loop.st_mode), os.minor(loop.st_rdev)) == (True, 300)


async def test_sizes_names_and_manifest(tmp_path: Path, store: ImageStore) -> None:
    config: dict[str, object] = {"Cmd": ["/bin/sh"], "Env": ["A=b"]}
    image = await store.import_tar(rootfs(tmp_path / "t.tar"), "me/box:1", config=config)
    assert image.arch is Arch.X86_64
    assert image.disk.stat().st_size == SLOT_BYTES
    assert image.size < 1 << 20
    assert fs.real_size(image.disk) < 1 << 20
    assert image.names == ("me/box:1",)
    assert image.config == config
    assert store.list() == [image]
    store.verify(image)


async def test_same_bytes_same_id(tmp_path: Path, store: ImageStore) -> None:
    first = await store.import_tar(rootfs(tmp_path / "a.tar"), "a")
    packed = tmp_path / "b.tar.gz"
    packed.write_bytes(gzip.compress((tmp_path / "a.tar").read_bytes()))
    await asyncio.sleep(1.1)  # squashfs knows whole seconds: a time of "now" would show
    second = await store.import_tar(packed, "b")
    assert first.id == second.id
    assert second.names == ("a", "b")
    assert len(store.list()) == 1
    other = await store.import_tar(tmp_path / "a.tar", "c", config={"User": "me"})
    assert other.id != first.id


@pytest.mark.parametrize("tool", ["gzip", "bzip2", "xz", "zstd"])
async def test_packed_archives(tmp_path: Path, store: ImageStore, tool: str) -> None:
    tar = rootfs(tmp_path / "t.tar")
    packed = tmp_path / "packed"
    with packed.open("wb") as out:
        await process.run([tool, "-c", tar], stdout=out.fileno())
    assert (await store.import_tar(packed, "x")).id == (await store.import_tar(tar, "y")).id


async def test_from_a_pipe(tmp_path: Path, store: ImageStore) -> None:
    tar = rootfs(tmp_path / "t.tar")
    read, write = os.pipe()
    cat = await process.start(["cat", tar], stdout=write)
    os.close(write)
    image = await store.import_tar(read, "piped")
    os.close(read)
    assert await cat.wait() == 0
    assert image.id == (await store.import_tar(tar, "file")).id


async def test_from_a_directory(tmp_path: Path, store: ImageStore) -> None:
    root = tmp_path / "root"
    (root / "bin").mkdir(parents=True)
    (root / "bin/sh").write_bytes(elf(Arch.AARCH64))
    (root / "bin/sh").chmod(0o755)
    (root / "lib").symlink_to("/usr/lib")  # must not be followed to this machine's own
    image = await store.import_dir(root, "dir")
    assert image.arch is Arch.AARCH64
    assert listing(image)["/bin/sh"][0] == "-rwxr-xr-x"
    with pytest.raises(ArtifactError, match=r"aarch64 \(arm64\), not for x86_64"):
        await store.import_dir(root, "dir", Arch.X86_64)


async def test_root_of_an_archive_that_does_not_mention_it(
    tmp_path: Path, store: ImageStore
) -> None:
    image = await store.import_tar(_tar_with(tmp_path / "t.tar"), "x")
    assert listing(image)[""][:2] == ["drwxr-xr-x", "0/0"]


@pytest.mark.parametrize("count", [0, 1, *range(120, 136), 5000])
async def test_root_inode_anywhere_in_the_table(
    tmp_path: Path, store: ImageStore, count: int
) -> None:
    """The root's inode is the last one; with some counts it lies across two blocks."""
    with tarfile.open(tmp_path / "t.tar", "w") as tar:
        add(tar, ".", type=tarfile.DIRTYPE, mode=0o700, uid=7, gid=8, mtime=77)
        add(tar, "bin/sh", elf(Arch.X86_64))
        add(tar, "owned", uid=7, gid=8)
        for number in range(count):
            add(tar, f"dev{number}", type=tarfile.CHRTYPE, devmajor=1, devminor=number % 256)
    image = await store.import_tar(tmp_path / "t.tar", "x")
    seen = listing(image)
    assert seen[""][:2] == ["drwx------", "7/8"]
    assert len(seen) == count + 4


async def test_another_user_gets_the_same_image(tmp_path: Path, store: ImageStore) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root to become another user")
    tar = rootfs(tmp_path / "t.tar")
    mine = await store.import_tar(tar, "x")
    disk = tmp_path / "disk"
    env = process.minimal_env(SOURCE_DATE_EPOCH="1600000000")
    # nobody can't look into tmp_path, so the tool runs where it can, on a directory of its own.
    place = tempfile.mkdtemp(prefix="spore-test-")
    try:
        os.chown(place, 65534, 65534)
        with tar.open("rb") as file:
            as_nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
            argv = [*as_nobody, *squashfs.argv("-", Path(place, "disk"))]
            await process.run(argv, stdin=file.fileno(), env=env)
        fs.sparse_copy(Path(place, "disk"), disk)
    finally:
        fs.remove_tree(Path(place))
    set_root(disk, Root(0o751, 1000, 1001, 0))
    assert listing(dataclasses.replace(mine, disk=disk)) == listing(mine)


async def test_wrong_architecture_both_named(tmp_path: Path, store: ImageStore) -> None:
    tar = rootfs(tmp_path / "t.tar", Arch.AARCH64)
    with pytest.raises(ArtifactError, match="aarch64 .* x86_64"):
        await store.import_tar(tar, "x", Arch.X86_64)
    assert store.list() == []


def _tar_with(path: Path, *names: str, link: str = "") -> Path:
    with tarfile.open(path, "w") as tar:
        add(tar, "bin/sh", elf(Arch.X86_64), mode=0o755)
        for name in names:
            add(tar, name, b"x")
        if link:
            add(tar, "link", type=tarfile.LNKTYPE, linkname=link)
    return path


async def refused(store: ImageStore, layout: Layout, source: Path) -> SporeError:
    """The error of an import that must leave nothing behind."""
    with pytest.raises((ArtifactError, UsageError)) as caught:
        await store.import_tar(source, "bad", Arch.X86_64)
    assert store.list() == []
    assert store.find("bad") is None
    assert list(layout.tmp.iterdir()) == []
    assert str(source) in caught.value.message
    assert "\n" not in caught.value.message
    return caught.value


@pytest.mark.parametrize("names", [("../up",), ("a/../../up",), ("/../up",)])
async def test_escapes(
    tmp_path: Path, store: ImageStore, layout: Layout, names: tuple[str, ...]
) -> None:
    error = await refused(store, layout, _tar_with(tmp_path / "t.tar", *names))
    assert "points outside" in error.message


async def test_hard_link_out(tmp_path: Path, store: ImageStore, layout: Layout) -> None:
    await refused(store, layout, _tar_with(tmp_path / "t.tar", link="../../etc/shadow"))


@pytest.mark.parametrize(
    "junk", [b"", b"hello", bytes(10240), b"<html>" * 2000, os.urandom(40000), b"\x1f\x8b" * 99]
)
async def test_not_a_tar(tmp_path: Path, store: ImageStore, layout: Layout, junk: bytes) -> None:
    (tmp_path / "t.tar").write_bytes(junk)
    await refused(store, layout, tmp_path / "t.tar")


@pytest.mark.parametrize("cut", [100, 512, 700, 2000, 5120, -10240, -9000])
async def test_truncated(tmp_path: Path, store: ImageStore, layout: Layout, cut: int) -> None:
    whole = rootfs(tmp_path / "whole.tar").read_bytes()
    end = len(whole.rstrip(b"\0")) // 512 * 512 + 512
    (tmp_path / "t.tar").write_bytes(whole[:end] if cut == -10240 else whole[:cut])
    if cut == -9000:
        (tmp_path / "t.tar").write_bytes(gzip.compress(whole)[:-20])
    await refused(store, layout, tmp_path / "t.tar")


async def test_missing_sources(tmp_path: Path, store: ImageStore, layout: Layout) -> None:
    await refused(store, layout, tmp_path / "nothing.tar")
    await refused(store, layout, tmp_path)
    for path in (tmp_path / "nothing", tmp_path / "file"):
        (tmp_path / "file").write_bytes(b"")
        with pytest.raises(UsageError, match=str(path)):
            await store.import_dir(path, "x")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="empty"):
        await store.import_dir(tmp_path / "empty", "x")


async def test_resolve(tmp_path: Path, store: ImageStore) -> None:
    image = await store.import_tar(rootfs(tmp_path / "t.tar"), "box")
    for ref in ("box", image.id, image.id[:4], image.id[:12], f"sha256:{image.id}"):
        assert store.resolve(ref) == image
    for ref in ("", "bo", image.id[:3], "0" * 64, "../box", "box/"):
        with pytest.raises((NotFound, UsageError)):
            store.resolve(ref)


async def test_a_name_wins_over_an_id(tmp_path: Path, store: ImageStore) -> None:
    image = await store.import_tar(rootfs(tmp_path / "a.tar"), "a")
    other = await store.import_tar(rootfs(tmp_path / "b.tar"), image.id[:6], config={"User": "x"})
    assert store.resolve(image.id[:6]) == other


async def test_an_ambiguous_prefix(tmp_path: Path, store: ImageStore, layout: Layout) -> None:
    image = await store.import_tar(rootfs(tmp_path / "t.tar"), "box")
    twin = layout.image(image.id[:-1] + ("0" if image.id[-1] != "0" else "1"))
    twin.root.mkdir()
    twin.manifest.write_text(json.dumps(json.loads(layout.image(image.id).manifest.read_text())))
    with pytest.raises(UsageError, match="2 images"):
        store.resolve(image.id[:8])


async def test_tag_and_remove(tmp_path: Path, store: ImageStore, layout: Layout) -> None:
    image = await store.import_tar(rootfs(tmp_path / "t.tar"), "one")
    assert store.tag("one", "two/three:4").names == ("one", "two/three:4")
    store.remove("one")
    assert store.resolve("two/three:4").id == image.id
    store.remove(image.id[:8])
    assert store.list() == []
    assert not layout.image(image.id).root.exists()
    with pytest.raises(NotFound):
        store.remove("one")


@pytest.mark.parametrize("name", ["", "a b", "a\nb", "x" * 300, "a\0"])
async def test_bad_names(tmp_path: Path, store: ImageStore, name: str) -> None:
    with pytest.raises(UsageError):
        await store.import_tar(rootfs(tmp_path / "t.tar"), name)


@pytest.mark.parametrize("name", ["..", ".", ".hidden", "a/../b", "/etc/passwd", "%2E"])
async def test_odd_names_stay_in_the_store(tmp_path: Path, store: ImageStore, name: str) -> None:
    image = await store.import_tar(rootfs(tmp_path / "t.tar"), name)
    assert image.names == (name,)
    assert store.resolve(name) == image


async def test_a_damaged_disk_is_noticed(tmp_path: Path, store: ImageStore) -> None:
    image = await store.import_tar(rootfs(tmp_path / "t.tar"), "box")
    image.disk.chmod(0o600)
    with image.disk.open("r+b") as file:
        file.seek(100)
        file.write(b"\xff\xff\xff")
    with pytest.raises(ArtifactError, match="damaged"):
        store.verify(image)


async def test_a_damaged_manifest_is_named(tmp_path: Path, store: ImageStore) -> None:
    image = await store.import_tar(rootfs(tmp_path / "t.tar"), "box")
    (image.disk.parent / "manifest.json").write_bytes(b"{")
    with pytest.raises(ArtifactError, match="manifest"):
        store.get(image.id)
