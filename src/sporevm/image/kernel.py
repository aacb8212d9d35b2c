"""The guest's kernel and initramfs: found, fetched, checked, and kept under the hash of what made
them.

A kernel directory is made from a kernel, its modules and the guest agent. Its name says which, so
a rebuilt agent gives a new directory beside the old one, which `prune_kernels` removes once no
template needs it.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sporevm._sys import fs
from sporevm.errors import ArtifactError
from sporevm.image import initramfs, kernel_source, modules
from sporevm.image.kernel_source import Origin
from sporevm.image.progress import Progress, silent
from sporevm.image.validate import validate_initrd, validate_kernel
from sporevm.spec import Arch
from sporevm.store.checksums import Checksums
from sporevm.store.layout import KernelFiles, Layout
from sporevm.store.locks import lock_async

DEFAULT_SOURCE = "debian"


@dataclass(frozen=True, slots=True)
class Kernel:
    """A kernel ready to boot. `hash` is of the bytes of both files."""

    name: str
    arch: Arch
    version: str
    vmlinuz: Path
    initrd: Path
    hash: str
    created: float
    source: str


async def ensure_kernel(
    layout: Layout,
    arch: Arch,
    source: str = DEFAULT_SOURCE,
    progress: Progress = silent,
    *,
    refresh: bool = False,
) -> Kernel:
    """The kernel of that source with the present agent; made if it isn't there yet.

    `source` is `debian` (the kernel for clouds, from this machine's own archives), `file:PATH` (a
    kernel or a Debian kernel package) or `URL#sha256=HEX`. `refresh` looks for a newer package.
    Raises ArtifactError, SetupError, StorageError or UsageError.
    """
    origin = kernel_source.parse(source)
    recipe = await asyncio.to_thread(_recipe, layout, arch, origin)
    if not refresh:
        found = await asyncio.to_thread(_find, layout, recipe)
        if found is not None:
            return found
    async with lock_async(layout.kernels / ".lock"):
        found = None if refresh else await asyncio.to_thread(_find, layout, recipe)
        if found is not None:
            return found
        with fs.scratch_directory(layout.tmp) as place:
            parts = await kernel_source.fetch(
                layout, arch, origin, place, progress, refresh=refresh
            )
            progress("make the initramfs", 0, 1)
            made = await asyncio.to_thread(_make, layout, arch, origin, recipe, parts, place)
            progress("make the initramfs", 1, 1)
            return made


def list_kernels(layout: Layout) -> list[Kernel]:
    """All kernels in the store, newest first."""
    return [_kernel(layout, manifest) for manifest in _manifests(layout)]


def prune_kernels(layout: Layout, keep: Collection[str]) -> list[str]:
    """Remove the kernels whose `hash` is not in `keep`; returns their names."""
    gone = [kernel.name for kernel in list_kernels(layout) if kernel.hash not in keep]
    for name in gone:
        fs.remove_tree(layout.kernel(name).root)
    return gone


def _digest(*values: object) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


@contextmanager
def _checksums(layout: Layout) -> Iterator[Checksums]:
    cache = Checksums(layout.cache / "checksums.json")
    yield cache
    cache.save()


def _recipe(layout: Layout, arch: Arch, origin: Origin) -> str:
    """Hash of everything that is known before anything is fetched."""
    with _checksums(layout) as checksums:
        agent = checksums.sha256(initramfs.agent_path(arch))
        given = checksums.sha256(origin.file) if origin.file is not None else ""
    wanted = [*modules.REQUIRED, *modules.OPTIONAL]
    return _digest(arch.value, origin.text, given, agent, wanted, initramfs.FORMAT)


def _manifests(layout: Layout) -> list[dict[str, object]]:
    found = []
    for path in layout.kernels.glob("*/manifest.json"):
        try:
            manifest = json.loads(path.read_bytes())
        except (OSError, ValueError):
            continue  # `_find` makes it again under the same name, once it is out of the way
        if isinstance(manifest, dict):
            found.append(manifest)
    return sorted(found, key=lambda m: -float(m["created"]))


def _find(layout: Layout, recipe: str) -> Kernel | None:
    for manifest in _manifests(layout):
        if manifest["recipe"] == recipe:
            _verify(layout, manifest)
            return _kernel(layout, manifest)
    return None


def _verify(layout: Layout, manifest: dict[str, object]) -> None:
    files = layout.kernel(str(manifest["name"]))
    with _checksums(layout) as checksums:
        for path, key in ((files.vmlinuz, "vmlinuz_sha256"), (files.initrd, "initrd_sha256")):
            found = checksums.sha256(path) if path.is_file() else "no file"
            if found != manifest[key]:
                raise ArtifactError(
                    f"{path} is damaged: expected sha256 {manifest[key]}, found {found}",
                    hint=f"remove {files.root}; it is made again",
                )


def _kernel(layout: Layout, manifest: dict[str, object]) -> Kernel:
    files = layout.kernel(str(manifest["name"]))
    return Kernel(
        name=str(manifest["name"]),
        arch=Arch(str(manifest["arch"])),
        version=str(manifest["version"]),
        vmlinuz=files.vmlinuz,
        initrd=files.initrd,
        hash=str(manifest["hash"]),
        created=float(str(manifest["created"])),
        source=str(manifest["source"]),
    )


def _make(
    layout: Layout,
    arch: Arch,
    origin: Origin,
    recipe: str,
    parts: kernel_source.Parts,
    place: Path,
) -> Kernel:
    """Put kernel and initramfs together, check them as a stranger's, and install them."""
    built = KernelFiles(place / "kernel")
    built.root.mkdir()
    with fs.writing(built.root):
        fs.sparse_copy(kernel_source.bootable(parts.kernel, place), built.vmlinuz, mode=0o644)
    form = validate_kernel(built.vmlinuz, arch)
    chosen = modules.ModuleTree(parts.modules).closure() if parts.modules is not None else []
    _check_release(parts, form.release, chosen)
    agent = initramfs.agent_path(arch).read_bytes()
    fs.write_atomic(built.initrd, initramfs.build(agent, chosen))
    validate_initrd(built.initrd)
    with _checksums(layout) as checksums:
        sums = (checksums.sha256(built.vmlinuz), checksums.sha256(built.initrd))
    version = parts.version or form.release or "custom"
    short = _digest(recipe, version, *sums)[:12]
    safe = re.sub(r"[^A-Za-z0-9.]+", "-", version).strip("-.")[:60]
    manifest: dict[str, object] = {
        "name": f"{arch.value}-{safe}-{short}",
        "arch": arch.value,
        "version": version,
        "source": origin.text,
        "package": parts.package,
        "package_sha256": parts.package_sha256,
        "kind": form.kind,
        "modules": [module.name for module in chosen],
        "agent_sha256": hashlib.sha256(agent).hexdigest(),
        "vmlinuz_sha256": sums[0],
        "initrd_sha256": sums[1],
        "hash": _digest(*sums)[:24],
        "recipe": recipe,
        "created": time.time(),
    }
    fs.write_atomic(built.manifest, json.dumps(manifest, indent=1).encode())
    files = layout.kernel(str(manifest["name"]))
    if not fs.install_directory(built.root, files.root) and not files.manifest.is_file():
        raise ArtifactError(
            f"{files.root} is damaged: it has no manifest", hint=f"remove {files.root}"
        )
    _verify(layout, manifest)
    return _kernel(layout, manifest)


def _check_release(parts: kernel_source.Parts, release: str, chosen: list[modules.Module]) -> None:
    """Modules of another release would all be refused by the guest's kernel."""
    for module in chosen:
        built_for = module.vermagic.partition(" ")[0]
        if release and built_for and built_for != release:
            raise ArtifactError(
                f"kernel {parts.kernel} is release {release}, but its modules in {parts.modules} "
                f"are for {built_for}"
            )
