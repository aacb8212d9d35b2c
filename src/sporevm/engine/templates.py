"""Templates: memory that is saved once and that every sandbox starts from.

Two levels, both caches that can be deleted at any time:

* a *bare* template, one for each shape: booted once, saved when the agent is ready and no image has
  been attached. Any image can be started from it without a cold boot.
* an *image* template, one for each shape, image and disk size: derived from the bare one by
  attaching the image, mounting its root and running a shell once, then saving again. A start from
  it skips the mount and finds the image's common files in the guest's page cache.

A new image starts from the bare template at once; its image template is made behind it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import msgspec
from msgspec import Struct

from sporevm._sys.boot import boot_id
from sporevm._sys.fs import real_size, remove_tree, sparse_copy, writing
from sporevm._version import __version__
from sporevm.agent import Agent, Configure, Mount
from sporevm.engine.spawn import until_dead
from sporevm.errors import ArtifactError, GuestError, NotFound
from sporevm.image.kernel import Kernel
from sporevm.image.progress import Progress
from sporevm.image.scratch import ensure_blank
from sporevm.image.store import Image
from sporevm.spec import DRIVE_IMAGE, DRIVE_SCRATCH, Command, TemplateKey
from sporevm.store.checksums import sparse_sha256
from sporevm.store.layout import Layout, TemplateFiles
from sporevm.vmm.base import Boot, Drive, Machine, Restore, Shape, Vmm

log = logging.getLogger(__name__)

ProgressFn = Progress

BOOT_DEADLINE = 120.0
CONFIGURE_DEADLINE = 60.0

#: Run once in an image template so that a sandbox's first process finds these pages in memory.
#: Each may be missing or fail: an image need not have them.
_WARM_UPS = (("/bin/true",), ("/bin/sh", "-c", ":"), ("python3", "-c", "pass"))


_CLOCK = "/sys/devices/system/clocksource/clocksource0/current_clocksource"
_EARLY_CLOCKS = (b"tsc-early", b"refined-jiffies", b"jiffies")
_CLOCK_TRIES = 50


class Part(Struct, kw_only=True, frozen=True):
    """One file of a template, and how it looked when its checksum was taken."""

    sha256: str
    size: int
    inode: int
    mtime_ns: int
    #: Nothing was synced: after another boot of the host the file is read and compared.
    boot_id: str


class Manifest(Struct, kw_only=True, frozen=True):
    key: str
    version: str
    created: float
    shape: dict[str, object]
    image: str
    image_name: str
    disk_bytes: int
    parts: dict[str, Part]


@dataclass(frozen=True, slots=True)
class Template:
    files: TemplateFiles
    manifest: Manifest

    @property
    def has_image(self) -> bool:
        return bool(self.manifest.image)


@dataclass(frozen=True, slots=True)
class Bare:
    """What a bare template is made from."""

    vmm: Vmm
    shape: Shape
    kernel: Kernel

    @property
    def bare_key(self) -> TemplateKey:
        return self.shape.key()


@dataclass(frozen=True, slots=True)
class Wanted(Bare):
    """What a sandbox is to be started from."""

    image: Image
    disk_bytes: int

    @property
    def image_key(self) -> TemplateKey:
        return self.shape.key(image=f"{self.image.id}:{self.disk_bytes}")


def _part(path: Path) -> Part:
    stat = path.stat()
    return Part(
        sha256=sparse_sha256(path),
        size=stat.st_size,
        inode=stat.st_ino,
        mtime_ns=stat.st_mtime_ns,
        boot_id=boot_id(),
    )


def _parts(root: Path, names: list[str]) -> dict[str, Part]:
    return {name: _part(root / name) for name in names}


class Templates:
    """All templates of one home. One engine owns a home, so its event loop is the only lock."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._checked: dict[str, Template] = {}
        self._builds: dict[str, asyncio.Task[Template]] = {}

    async def close(self) -> None:
        for task in self._builds.values():
            task.cancel()
        await asyncio.gather(*self._builds.values(), return_exceptions=True)

    async def obtain(self, wanted: Wanted, progress: ProgressFn) -> Template:
        """The best template there is, at once; a bare one is built if there is none at all."""
        found = await self._usable(wanted.image_key)
        return found or await self.bare(wanted, progress)

    async def bare(self, wanted: Bare, progress: ProgressFn) -> Template:
        key = wanted.bare_key
        found = await self._usable(key)
        if found is not None:
            return found
        progress("building the template", 0, 0)
        return await asyncio.shield(self._build(key, lambda: self._boot(wanted, key)))

    async def with_image(self, wanted: Wanted, progress: ProgressFn) -> Template:
        key = wanted.image_key
        found = await self._usable(key)
        if found is not None:
            return found
        bare = await self.bare(wanted, progress)
        progress(f"preparing {wanted.image.name or wanted.image.id[:12]}", 0, 0)
        return await asyncio.shield(self._build(key, lambda: self._derive(wanted, bare, key)))

    def derive_behind(self, wanted: Wanted) -> None:
        """Start making the image template, without waiting for it."""
        if wanted.image_key in self._builds:
            return
        bare = self._checked.get(wanted.bare_key)
        if bare is not None and wanted.image_key not in self._checked:
            key = wanted.image_key
            self._build(key, lambda: self._derive(wanted, bare, key))

    def all(self) -> list[Template]:
        found = []
        for path in sorted(self._layout.templates.glob("*/manifest.json")):
            files = TemplateFiles(path.parent)
            try:
                found.append(Template(files, _read(files)))
            except ArtifactError as error:
                log.warning("%s", error)
        return found

    def size(self, template: Template) -> int:
        return sum(real_size(template.files.root / part) for part in template.manifest.parts)

    def remove(self, prefix: str) -> None:
        found = [t for t in self.all() if t.manifest.key.startswith(prefix)]
        if len(found) != 1 or not prefix:
            raise NotFound(
                f"no template {prefix!r}" if not found else f"{prefix!r} fits several templates",
                hint="spore template ls shows them",
            )
        self._checked.pop(found[0].manifest.key, None)
        remove_tree(found[0].files.root)

    def _build(
        self, key: str, make: Callable[[], Coroutine[None, None, Template]]
    ) -> asyncio.Task[Template]:
        """Join the build of `key` that is under way, or start it."""
        task = self._builds.get(key)
        if task is None:
            task = asyncio.create_task(make(), name=f"template {key}")
            self._builds[key] = task
            task.add_done_callback(lambda done: self._built(key, done))
        return task

    def _built(self, key: str, task: asyncio.Task[Template]) -> None:
        self._builds.pop(key, None)
        if task.cancelled():
            return
        error = task.exception()
        if error is None:
            self._checked[key] = task.result()
        else:
            log.warning("template %s could not be built: %s", key, error)

    async def _usable(self, key: str) -> Template | None:
        """The template if it is there and its files are what its manifest says."""
        files = self._layout.template(key)
        known = self._checked.get(key)
        if known is not None and files.manifest.exists():
            return known
        if not files.manifest.exists():
            self._checked.pop(key, None)
            return None
        try:
            template = Template(files, _read(files))
            for name, part in template.manifest.parts.items():
                await asyncio.to_thread(_verify, files.root / name, part)
        except ArtifactError as error:
            # A template is a cache: a damaged one is never used, and made again.
            log.warning("%s; building it again", error)
            remove_tree(files.root)
            return None
        self._checked[key] = template
        return template

    async def _boot(self, wanted: Bare, key: TemplateKey) -> Template:
        """Cold-boot a shape and save it as soon as its agent answers."""
        async with AsyncExitStack() as stack:
            files, run_dir = self._workspace(stack, key)
            machine = await wanted.vmm.boot(
                Boot(
                    shape=wanted.shape,
                    run_dir=run_dir,
                    log=run_dir.parent / "vmm.log",
                    mem=files.mem,
                    kernel=wanted.kernel.vmlinuz,
                    initrd=wanted.kernel.initrd,
                )
            )
            stack.push_async_callback(machine.kill)
            agent = await Agent.connect(machine.channel, timeout=BOOT_DEADLINE)
            stack.push_async_callback(agent.aclose)
            await until_dead(machine, agent.ready(), BOOT_DEADLINE, "boot")
            await self._save(machine, agent, files)
            made = await self._install(wanted, key, files)
        self._drop_outdated(made)
        return made

    def _drop_outdated(self, made: Template) -> None:
        """Remove templates of the same size whose kernel, VMM or host is not this one any more.

        Nothing can be started from them. A sandbox that runs keeps the memory it has mapped.
        """
        size = ("arch", "cpus", "memory_mib", "accelerator")
        shape = made.manifest.shape
        for other in self.all():
            old = other.manifest.shape
            if old != shape and all(old.get(field) == shape[field] for field in size):
                log.info("removing outdated template %s", other.manifest.key)
                self._checked.pop(other.manifest.key, None)
                remove_tree(other.files.root)

    async def _derive(self, wanted: Wanted, bare: Template, key: TemplateKey) -> Template:
        """Attach the image to a copy of the bare template, warm it, and save it again."""
        async with AsyncExitStack() as stack:
            files, run_dir = self._workspace(stack, key)
            blank = await ensure_blank(self._layout, wanted.disk_bytes)
            await asyncio.to_thread(sparse_copy, bare.files.mem, files.mem)
            await asyncio.to_thread(sparse_copy, blank, files.scratch)
            machine = await wanted.vmm.restore(
                Restore(
                    shape=wanted.shape,
                    run_dir=run_dir,
                    log=run_dir.parent / "vmm.log",
                    mem=files.mem,
                    state=bare.files.state,
                    drives={
                        DRIVE_IMAGE: Drive(wanted.image.disk, read_only=True),
                        DRIVE_SCRATCH: Drive(files.scratch, read_only=False),
                    },
                    share=True,
                )
            )
            stack.push_async_callback(machine.kill)
            agent = await Agent.connect(machine.channel, timeout=CONFIGURE_DEADLINE)
            stack.push_async_callback(agent.aclose)
            mounts = root_mounts(wanted.image)
            await until_dead(
                machine, agent.configure(mounts), CONFIGURE_DEADLINE, "mount the image"
            )
            await until_dead(machine, _warm(agent), CONFIGURE_DEADLINE, "warm up")
            await until_dead(machine, _clock_settled(agent), CONFIGURE_DEADLINE, "settle its clock")
            await self._save(machine, agent, files)
            if not wanted.image.disk.exists():
                raise NotFound(f"image {wanted.image.id[:12]} was removed meanwhile")
            return await self._install(wanted, key, files, wanted.image, wanted.disk_bytes)

    def _workspace(self, stack: AsyncExitStack, key: str) -> tuple[TemplateFiles, Path]:
        """A directory for the new template's files and one for its VM, both gone on failure."""
        root = workspace(self._layout) / key[:8]
        remove_tree(root)
        files = TemplateFiles(root / "files")
        run_dir = root / "vm"
        files.root.mkdir(parents=True)
        run_dir.mkdir()
        stack.callback(remove_tree, root)
        return files, run_dir

    async def _save(self, machine: Machine, agent: Agent, files: TemplateFiles) -> None:
        await agent.quiesce()
        await agent.aclose()
        await machine.save(files.state)
        await machine.kill()

    async def _install(
        self,
        made: Bare,
        key: TemplateKey,
        files: TemplateFiles,
        image: Image | None = None,
        disk_bytes: int = 0,
    ) -> Template:
        names = ["mem", "state", *(["scratch"] if image else [])]
        for name in names:
            (files.root / name).chmod(0o444)
        manifest = Manifest(
            key=key,
            version=__version__,
            created=time.time(),
            shape=made.shape.as_dict(),
            image=image.id if image else "",
            image_name=image.name if image else "",
            disk_bytes=disk_bytes,
            parts=await asyncio.to_thread(_parts, files.root, names),
        )
        final = self._layout.template(key)
        with writing(final.root):
            files.manifest.write_bytes(msgspec.json.format(msgspec.json.encode(manifest)))
            remove_tree(final.root)
            files.root.rename(final.root)
        return Template(final, manifest)


def workspace(layout: Layout) -> Path:
    """The engine's own part of tmp/: whatever is in it when an engine starts is rubbish."""
    return layout.tmp / "e"


def root_mounts(image: Image) -> Configure:
    """The part of CONFIGURE that makes an image and a scratch disk the guest's root."""
    return Configure(
        root=Mount(DRIVE_IMAGE, image.fstype),
        scratch=Mount(DRIVE_SCRATCH, "ext4"),
        clock_ns=time.time_ns(),
    )


async def _warm(agent: Agent) -> None:
    for number, argv in enumerate(_WARM_UPS):
        try:
            process = await agent.exec(f"warm-{number}", Command(argv))
        except GuestError:
            continue
        while await process.read() is not None:
            pass
        await process.wait()
        await process.close()
    await agent.sync_fs()


async def _clock_settled(agent: Agent) -> None:
    """Wait until the kernel has taken its final clock, about a second after boot.

    Saved earlier, every clone would do that work again, and tick at full rate until it is done.
    The guest has no event to wait for; this happens once for a template.
    """
    for _ in range(_CLOCK_TRIES):
        reader = await agent.read_file(_CLOCK)
        name = b"".join([piece async for piece in reader]).strip()
        if name not in _EARLY_CLOCKS:
            return
        await asyncio.sleep(0.1)


def _read(files: TemplateFiles) -> Manifest:
    try:
        return msgspec.json.decode(files.manifest.read_bytes(), type=Manifest)
    except (OSError, msgspec.DecodeError) as error:
        raise ArtifactError(f"template manifest {files.manifest} can't be read: {error}") from error


def _verify(path: Path, part: Part) -> None:
    """A file that looks untouched since its checksum was taken is trusted; else it is read."""
    try:
        stat = path.stat()
    except OSError as error:
        raise ArtifactError(f"template file {path} is missing: {error.strerror}") from error
    if stat.st_size != part.size:
        raise ArtifactError(f"template file {path} has {stat.st_size} bytes, expected {part.size}")
    if (stat.st_ino, stat.st_mtime_ns, boot_id()) == (part.inode, part.mtime_ns, part.boot_id):
        return
    if sparse_sha256(path) != part.sha256:
        raise ArtifactError(f"template file {path} does not match its checksum")
