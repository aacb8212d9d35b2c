"""The QEMU backend: opens what a VM is made of, hands it over, and starts QEMU.

Sockets are bound here before QEMU is started, so nobody waits for them: the channel can be
connected, and written to, before the VM has loaded its state.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import platform
import socket
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from sporevm._sys import fs, process
from sporevm._sys.confine import Confinement, Confiner, launcher_path
from sporevm._sys.kvm import DEVICE as KVM_DEVICE
from sporevm._sys.process import Identity
from sporevm._sys.tsc import emulated_tsc_khz
from sporevm.errors import ArtifactError, NotFound, SetupError, VmmError
from sporevm.spec import DRIVES, MIB, SLOT_BYTES, Arch
from sporevm.vmm.base import Boot, Capabilities, Drive, Restore, Shape
from sporevm.vmm.qemu import argv, probe
from sporevm.vmm.qemu.machine import Home, QemuMachine

#: Raised whenever devices or kernel options change: a state saved with others is of another VM.
LAYOUT = "3"

_F_SETPIPE_SZ = 1031
_PIPE_MAX = 1 << 20


@dataclass(frozen=True, slots=True)
class Opened:
    """Descriptors for the command line, and all that the child must inherit."""

    wiring: argv.Wiring
    start: argv.ColdBoot | argv.Incoming
    fds: tuple[int, ...]


class QemuVmm:
    """See `sporevm.vmm.base.Vmm`. One for each architecture, made by `find`."""

    name = "qemu"

    def __init__(
        self, found: probe.Found, arch: Arch, accelerator: str, confiner: Confiner, blank: Path
    ) -> None:
        self._found = found
        self._arch = arch
        self._confiner = confiner
        self._blank = blank
        self._backend = argv.Backend(
            binary=found.path,
            arch=arch,
            accelerator=accelerator,
            private_mem_read_only=found.private_mem_read_only,
            sandbox=found.sandbox,
        )
        self._memro = launcher_path().with_name(f"memro-{platform.machine()}.so")
        self._emulated = accelerator == "tcg"
        self._tsc_khz = emulated_tsc_khz() if accelerator == "tcg" else 0

    @classmethod
    async def find(cls, arch: Arch, accelerator: str, confiner: Confiner, cache: Path) -> QemuVmm:
        """Raises SetupError if there is no QEMU for `arch`, or one that lacks something."""
        found = await probe.find(arch, cache)
        return cls(found, arch, accelerator, confiner, cache / "blank-slot")

    @property
    def version(self) -> str:
        return self._found.version_text

    def capabilities(self, arch: Arch) -> Capabilities:
        accelerator = self._backend.accelerator
        return Capabilities(accelerator=accelerator, security_boundary=accelerator != "tcg")

    def shape(self, *, arch: Arch, cpus: int, memory_mib: int, kernel: str) -> Shape:
        extra = {"layout": LAYOUT}
        if arch is Arch.X86_64 and self._tsc_khz:
            extra["tsc_khz"] = str(self._tsc_khz)
        if self._backend.accelerator == "kvm":
            extra["host_cpu"] = _host_cpu()
        return Shape(
            arch=arch,
            cpus=cpus,
            memory_mib=memory_mib,
            vmm=f"{self.name}-{self.version}",
            accelerator=self._backend.accelerator,
            cpu_model=argv.cpu_model(arch, self._backend.accelerator),
            machine=argv.machine_type(arch),
            kernel=kernel,
            extra=extra,
        )

    async def boot(self, what: Boot) -> QemuMachine:
        self._check(what.shape)
        confinement = self._confinement(what.run_dir)
        fs.make_sparse(what.mem, what.shape.memory_mib * MIB)
        with ExitStack() as stack:
            files = _Files(stack)
            kernel = files.open(what.kernel, os.O_RDONLY)
            initrd = files.open(what.initrd, os.O_RDONLY)
            append = argv.kernel_command_line(
                self._arch, emulated=self._emulated, tsc_khz=self._tsc_khz
            )
            start = argv.ColdBoot(kernel, initrd, append)
            mem = files.share(what.mem, confinement)
            drives = self._drives(files, what.drives, spare=what.run_dir / "blank")
            opened = _wire(files, what.run_dir, mem, drives, start)
            return await self._spawn(what, opened, confinement, shared_mem=what.mem)

    async def restore(self, what: Restore) -> QemuMachine:
        self._check(what.shape)
        private = not what.share
        confinement = self._confinement(what.run_dir, writes_template=private)
        with ExitStack() as stack:
            files = _Files(stack)
            env = process.minimal_env()
            if private:
                mem = files.open(what.mem, os.O_RDONLY)
                env |= self._keep_read_only(files, mem, what.mem)
            else:
                mem = files.share(what.mem, confinement)
            _check_memory(mem, what.mem, what.shape)
            start = argv.Incoming(files.contents(what.state), what.share, what.paused)
            drives = self._drives(files, what.drives)
            opened = _wire(files, what.run_dir, mem, drives, start)
            shared_mem = None if private else what.mem
            return await self._spawn(what, opened, confinement, shared_mem=shared_mem, env=env)

    async def adopt(
        self, identity: Identity, shape: Shape, run_dir: Path, log: Path
    ) -> QemuMachine:
        try:
            child = process.adopt(identity)
        except NotFound as error:
            raise VmmError(f"its VMM is gone: {error}") from error
        if argv.name_option(str(run_dir)) not in process.arguments(identity.pid):
            child.release()
            raise VmmError(f"process {identity.pid} is not the VMM of {run_dir}")
        return QemuMachine(child, Home(run_dir, log), confinement=[], shared_mem=None)

    # -- helpers -----------------------------------------------------------------------------------

    @property
    def _read_only_mem(self) -> bool:
        """Whether a private VM can be kept from writing to the template it maps."""
        return self._backend.private_mem_read_only or self._memro.exists()

    def _keep_read_only(self, files: _Files, mem: int, path: Path) -> dict[str, str]:
        """Environment that makes an old QEMU open the template's memory read-only: see memro.c."""
        if self._backend.private_mem_read_only:
            return {}
        if not self._memro.exists():
            if os.geteuid() != 0:
                path.chmod(0o644)  # it opens it for writing, or not at all
            return {}
        # By descriptor: the confined user can't reach the directory it is in.
        library = files.open(self._memro, os.O_RDONLY)
        return {"LD_PRELOAD": f"/proc/self/fd/{library}", "SPORE_MEMRO": f"/proc/self/fd/{mem}"}

    def _check(self, shape: Shape) -> None:
        mine = self.shape(
            arch=self._arch, cpus=shape.cpus, memory_mib=shape.memory_mib, kernel=shape.kernel
        )
        if shape != mine:
            raise ArtifactError(
                "this VM's shape is not of this host and QEMU",
                hint="templates are rebuilt on their own; a snapshot needs the VMM that made it",
            )

    def _confinement(self, run_dir: Path, *, writes_template: bool = False) -> Confinement:
        keep, gid = "", None
        if writes_template and not self._read_only_mem:
            keep = f"QEMU {self.version} opens the template's memory for writing; 8.2 does not"
        if self._backend.accelerator == "kvm":
            info = KVM_DEVICE.stat()
            if info.st_mode & 0o006 != 0o006:
                gid = info.st_gid
                if info.st_mode & 0o060 != 0o060:
                    keep = f"only root may use {KVM_DEVICE}"
        return self._confiner.confinement(
            run_dir, seccomp=self._backend.sandbox, keep_uid=keep, gid=gid
        )

    def _drives(
        self, files: _Files, drives: Mapping[str, Drive], *, spare: Path | None = None
    ) -> tuple[argv.DriveFd, ...]:
        """All slots, in their order. An empty one holds a blank.

        `spare`: where to make a writable blank, for a cold boot: a slot that is read-only there
        stays so in each VM that is restored from it.
        """
        opened = []
        for serial, fixed_read_only in argv.placeholders(DRIVES).items():
            drive = drives.get(serial)
            if drive is not None:
                read_only = fixed_read_only or drive.read_only
                path = drive.path
            elif spare is not None and not fixed_read_only:
                read_only, path = False, spare
                fs.make_sparse(spare, SLOT_BYTES)
            else:
                read_only, path = True, self._blank
                if not path.exists():
                    fs.make_directory(path.parent)
                    fs.make_sparse(path, SLOT_BYTES)
            fd = files.open(path, os.O_RDONLY if read_only else os.O_RDWR)
            opened.append(argv.DriveFd(serial, fd, read_only))
            if path == spare:
                path.unlink()  # what the guest writes there goes away with QEMU
        return tuple(opened)

    async def _spawn(
        self,
        what: Boot | Restore,
        opened: Opened,
        confinement: Confinement,
        *,
        shared_mem: Path | None,
        env: Mapping[str, str] | None = None,
    ) -> QemuMachine:
        words = argv.command(
            self._backend,
            cpus=what.shape.cpus,
            memory_mib=what.shape.memory_mib,
            cpu=what.shape.cpu_model,
            wiring=opened.wiring,
            start=opened.start,
        )
        log = os.open(what.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            child = await process.start(
                words, env=env, stdout=log, stderr=log, pass_fds=opened.fds, confine=confinement
            )
        finally:
            os.close(log)
        return QemuMachine(
            child,
            Home(what.run_dir, what.log),
            confinement=confinement.describe(),
            shared_mem=shared_mem,
        )


class _Files:
    """Descriptors opened for a VM; all closed here once it has its copies."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self.fds: list[int] = []

    def keep(self, fd: int) -> int:
        self._stack.callback(os.close, fd)
        self.fds.append(fd)
        return fd

    def open(self, path: Path, flags: int) -> int:
        try:
            return self.keep(os.open(path, flags | os.O_CLOEXEC, 0o600))
        except FileNotFoundError:
            raise ArtifactError(f"{path} is missing") from None

    def share(self, path: Path, confinement: Confinement) -> int:
        """A file that QEMU opens again by its descriptor's name, to write: it must own it."""
        fd = self.open(path, os.O_RDWR)
        os.fchmod(fd, 0o600)
        if confinement.uid:
            os.fchown(fd, confinement.uid, confinement.gid)
        return fd

    def listen(self, path: Path) -> int:
        """A listening socket. What is left there by an earlier VMM is replaced."""
        path.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
            try:
                server.bind(os.fspath(path))
            except OSError as error:
                raise SetupError(
                    f"can't make the socket {path}: {error}", hint="use a shorter SPORE_HOME"
                ) from error
            path.chmod(0o600)
            server.listen(1)
            return self.keep(server.detach())

    def contents(self, path: Path) -> int:
        """A pipe that holds the file's bytes: QEMU reads a stream, and needs no access to it."""
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            raise ArtifactError(f"{path} is missing") from None
        if len(data) > _PIPE_MAX:
            return self.open(path, os.O_RDONLY)
        read, write = os.pipe()
        self.keep(read)
        try:
            fcntl.fcntl(write, _F_SETPIPE_SZ, max(len(data), 4096))
            os.set_blocking(write, False)
            whole = os.write(write, data) == len(data)
        except (BlockingIOError, PermissionError):  # the user's pipes are used up
            whole = False
        finally:
            os.close(write)
        return read if whole else self.open(path, os.O_RDONLY)


def _wire(
    files: _Files,
    run_dir: Path,
    mem: int,
    drives: tuple[argv.DriveFd, ...],
    start: argv.ColdBoot | argv.Incoming,
) -> Opened:
    home = Home(run_dir, run_dir)
    wiring = argv.Wiring(
        name=str(run_dir),
        channel=files.listen(home.channel),
        qmp=files.listen(home.qmp),
        console=files.open(home.console, os.O_WRONLY | os.O_CREAT | os.O_APPEND),
        mem=mem,
        drives=drives,
    )
    return Opened(wiring, start, tuple(files.fds))


def _check_memory(fd: int, path: Path, shape: Shape) -> None:
    if os.fstat(fd).st_size != shape.memory_mib * MIB:
        raise ArtifactError(
            f"{path} is not {shape.memory_mib} MiB long", hint="remove the template"
        )


def _host_cpu() -> str:
    """A name for what `-cpu host` means here."""
    wanted = ("model name", "flags", "CPU part", "Features")
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        text = "\n".join(sorted({line for line in lines if line.startswith(wanted)}))
        return hashlib.sha256(text.encode()).hexdigest()[:16]
    return "unknown"
