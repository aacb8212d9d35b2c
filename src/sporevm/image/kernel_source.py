"""Where a guest kernel comes from: Debian's archive, a file, or an address with a checksum."""

from __future__ import annotations

import asyncio
import json
import re
import zlib
from dataclasses import dataclass
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

from sporevm._sys import fs
from sporevm.errors import ArtifactError, SetupError, UsageError
from sporevm.image.apt import Apt, Package, unpack
from sporevm.image.progress import Progress
from sporevm.image.validate import inspect_kernel
from sporevm.spec import Arch
from sporevm.store.checksums import sha256_of
from sporevm.store.layout import Layout

_URL = re.compile(r"(https?://[^#]+)#sha256=([0-9a-fA-F]{64})")
_DEB_MAGIC = b"!<arch>\ndebian"
_CHUNK = 1 << 18
_NETWORK_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Origin:
    """A parsed kernel source: a file, or an address, or neither (Debian)."""

    text: str
    file: Path | None = None
    url: str = ""
    sha256: str = ""


@dataclass(frozen=True, slots=True)
class Parts:
    """A kernel as it was fetched. Without `modules` it must have all drivers built in."""

    kernel: Path
    modules: Path | None = None
    version: str = ""
    package: str = ""
    package_sha256: str = ""


def parse(source: str) -> Origin:
    """Check a `--kernel` argument; UsageError or ArtifactError if it can't be a kernel."""
    if source == "debian":
        return Origin("debian")
    if source.startswith("file:"):
        path = Path(source.removeprefix("file:")).expanduser()
        if not path.is_file():
            what = "is not a file" if path.exists() else "does not exist"
            raise ArtifactError(f"kernel {path} {what}")
        path = path.resolve()
        return Origin(f"file:{path}", file=path)
    match = _URL.fullmatch(source)
    if match is not None:
        return Origin(source, url=match[1], sha256=match[2].lower())
    raise UsageError(
        f"{source!r} is not a kernel source", hint="use debian, file:PATH or URL#sha256=HEX"
    )


async def fetch(
    layout: Layout,
    arch: Arch,
    origin: Origin,
    place: Path,
    progress: Progress,
    *,
    refresh: bool,
) -> Parts:
    """Bring the kernel to this machine; what is unpacked goes below `place`."""
    if origin.file is not None:
        return await _from_file(origin.file, place)
    if origin.url:
        file = await asyncio.to_thread(_download, layout, origin, progress)
        return await _from_file(file, place)
    package = None if refresh else await asyncio.to_thread(_cached, layout, arch)
    if package is None:
        package = await _from_archive(layout, arch, progress)
    return await _from_package(package, place)


def _record(layout: Layout, arch: Arch) -> Path:
    return layout.cache / "packages" / f"kernel-{arch.value}.json"


def _cached(layout: Layout, arch: Arch) -> Package | None:
    """The package fetched last, if it is still here and whole."""
    try:
        found = json.loads(_record(layout, arch).read_bytes())
        package = Package(
            found["name"], found["version"], found["sha256"], Path(layout.cache, found["file"])
        )
        return package if sha256_of(package.file) == package.sha256 else None
    except (OSError, ValueError, KeyError, TypeError):
        return None  # the cache may be deleted at any time, and then it is filled again


async def _from_archive(layout: Layout, arch: Arch, progress: Progress) -> Package:
    apt = Apt(layout.cache / f"apt-{arch.debian}", arch)
    await apt.update(progress)
    fields = await apt.resolve_kernel()
    package = await apt.fetch(fields, layout.cache / "packages", progress)
    record = {
        "name": package.name,
        "version": package.version,
        "sha256": package.sha256,
        "file": str(package.file.relative_to(layout.cache)),
    }
    fs.write_atomic(_record(layout, arch), json.dumps(record).encode())
    return package


async def _from_package(package: Package, place: Path) -> Parts:
    root = place / "package"
    await unpack(package.file, root)
    kernels = sorted(root.glob("boot/vmlinu[xz]-*"))
    if len(kernels) != 1:
        raise ArtifactError(
            f"package {package.file} holds {len(kernels)} kernels: expected one boot/vmlinuz-…",
            hint="use a linux-image package that holds the kernel itself, not a meta package",
        )
    release = kernels[0].name.partition("-")[2]
    trees = [*root.glob(f"lib/modules/{release}"), *root.glob(f"usr/lib/modules/{release}")]
    return Parts(
        kernel=kernels[0],
        modules=trees[0] if trees else None,
        version=package.version or release,
        package=package.name,
        package_sha256=package.sha256,
    )


async def _from_file(path: Path, place: Path) -> Parts:
    """A kernel package, or a kernel; beside `/boot/vmlinuz-R` its `/lib/modules/R` is used."""
    with path.open("rb") as file:
        head = file.read(len(_DEB_MAGIC))
    if head == _DEB_MAGIC:
        return await _from_package(Package(path.stem, "", "", path), place)
    release = path.name.partition("-")[2]
    tree = path.parent.parent / "lib" / "modules" / release
    return Parts(kernel=path, modules=tree if release and tree.is_dir() else None, version=release)


def _download(layout: Layout, origin: Origin, progress: Progress) -> Path:
    """Fetch an address into the cache, where it is kept under its checksum."""
    final = layout.cache / "downloads" / origin.sha256
    if final.is_file() and sha256_of(final) == origin.sha256:
        return final
    fs.make_directory(final.parent)
    step = f"download {origin.url}"
    with fs.scratch_directory(layout.tmp) as place, fs.writing(final):
        part = place / "part"
        try:
            with urlopen(origin.url, timeout=_NETWORK_SECONDS) as answer, part.open("wb") as file:
                total = float(answer.headers.get("Content-Length") or 0)
                while block := answer.read(_CHUNK):
                    file.write(block)
                    progress(step, file.tell(), total)
        except (URLError, TimeoutError) as error:
            reason = getattr(error, "reason", error)
            raise SetupError(
                f"can't fetch {origin.url}: {reason}", hint="check the address and the network"
            ) from error
        found = sha256_of(part)
        if found != origin.sha256:
            raise ArtifactError(
                f"{origin.url} ({part.stat().st_size} bytes) is not what was promised: expected "
                f"sha256 {origin.sha256}, found {found}"
            )
        part.replace(final)
    return final


def bootable(kernel: Path, place: Path) -> Path:
    """The kernel in a form every VMM takes: an EFI zboot file holds a packed Image."""
    if inspect_kernel(kernel).kind != "zboot":
        return kernel
    data = kernel.read_bytes()
    offset = int.from_bytes(data[8:12], "little")
    length = int.from_bytes(data[12:16], "little")
    packing = data[24:56].partition(b"\0")[0].decode(errors="replace")
    if packing != "gzip":
        raise ArtifactError(
            f"kernel {kernel} is an EFI kernel packed with {packing}, only gzip is supported",
            hint="give an uncompressed Image",
        )
    try:
        image = zlib.decompress(data[offset : offset + length], 31)
    except zlib.error as error:
        raise ArtifactError(f"kernel {kernel} is damaged: {error}") from error
    target = place / "Image"
    with fs.writing(target):
        target.write_bytes(image)
    return target
