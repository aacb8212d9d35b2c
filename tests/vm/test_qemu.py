"""The QEMU driver with real VMs and the real agent, below the engine."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from sporevm._sys import process
from sporevm._sys.confine import Confiner, launcher_path
from sporevm._sys.fs import make_sparse, sparse_copy
from sporevm._sys.process import Identity
from sporevm.agent import Agent
from sporevm.errors import ArtifactError, StateError, VmmError
from sporevm.image.kernel import Kernel, list_kernels
from sporevm.spec import SLOT_BYTES, Arch
from sporevm.store.layout import Layout
from sporevm.vmm.base import Boot, Drive, Restore, Shape
from sporevm.vmm.qemu.driver import QemuVmm
from sporevm.vmm.qemu.machine import QemuMachine
from tests.conftest import processes_naming, set_up_home

pytestmark = [pytest.mark.vm, pytest.mark.timeout(240)]

BOOT_DEADLINE = 60.0
START_DEADLINE = 30.0
ARCHES = [
    pytest.param(Arch.X86_64, id="x86_64"),
    pytest.param(Arch.AARCH64, id="aarch64", marks=pytest.mark.slow),
]


class Lab:
    """A directory, a driver and one saved template; machines made here end with it."""

    def __init__(self, root: Path, vmm: QemuVmm, shape: Shape, kernel: Kernel) -> None:
        self.root, self.vmm, self.shape, self.kernel = root, vmm, shape, kernel
        self.mem, self.state = root / "mem", root / "state"
        self._count = 0

    def run_dir(self) -> Path:
        self._count += 1
        path = self.root / f"r{self._count}"
        path.mkdir()
        return path

    def log(self, run_dir: Path) -> Path:
        return run_dir.with_suffix(".log")

    def scratch(self, run_dir: Path) -> dict[str, Drive]:
        make_sparse(run_dir / "scratch", SLOT_BYTES)
        return {"scratch": Drive(run_dir / "scratch", read_only=False)}

    async def boot(self) -> QemuMachine:
        run_dir = self.run_dir()
        return await self.vmm.boot(
            Boot(
                shape=self.shape,
                run_dir=run_dir,
                log=self.log(run_dir),
                mem=self.mem,
                kernel=self.kernel.vmlinuz,
                initrd=self.kernel.initrd,
            )
        )

    async def restore(self, **changes: object) -> QemuMachine:
        run_dir = self.run_dir()
        wanted: dict[str, object] = {
            "shape": self.shape,
            "run_dir": run_dir,
            "log": self.log(run_dir),
            "mem": self.mem,
            "state": self.state,
            "drives": self.scratch(run_dir),
        }
        return await self.vmm.restore(Restore(**(wanted | changes)))  # type: ignore[arg-type]


@asynccontextmanager
async def agent_of(machine: QemuMachine, deadline: float = START_DEADLINE) -> AsyncIterator[Agent]:
    agent = await Agent.connect(machine.channel, timeout=deadline)
    try:
        await agent.ready()
        yield agent
    finally:
        await agent.aclose()


async def build(arch: Arch, root: Path, confiner: Confiner) -> Lab:
    home = Layout(set_up_home())
    kernels = [kernel for kernel in list_kernels(home) if kernel.arch is arch]
    if not kernels:
        pytest.skip(f"no kernel for {arch.value}: spore setup kernel --arch {arch.value}")
    vmm = await QemuVmm.find(arch, "tcg", confiner, root / "cache")
    shape = vmm.shape(arch=arch, cpus=1, memory_mib=256, kernel=kernels[0].hash)
    lab = Lab(root, vmm, shape, kernels[0])
    machine = await lab.boot()
    try:
        async with agent_of(machine, BOOT_DEADLINE) as agent:
            await agent.quiesce()
        await machine.save(lab.state)
    finally:
        await machine.kill()
    return lab


Use = Callable[[Lab], Awaitable[None]]


def run(lab_of: Callable[[Arch], Lab], arch: Arch, use: Use) -> None:
    asyncio.run(use(lab_of(arch)))


@pytest.fixture(scope="module")
def lab_of() -> AsyncIterator[Callable[[Arch], Lab]]:
    """Labs by architecture, each booted and saved once. After them no process is left."""
    root = Path(tempfile.mkdtemp(prefix="spq-"))
    root.chmod(0o755)
    confiner = asyncio.run(Confiner.probe())
    labs: dict[Arch, Lab] = {}

    def get(arch: Arch) -> Lab:
        if arch not in labs:
            place = root / arch.value
            place.mkdir(exist_ok=True)
            labs[arch] = asyncio.run(build(arch, place, confiner))
        return labs[arch]

    yield get
    confiner.close()
    left = processes_naming(str(root))
    shutil.rmtree(root)
    assert not left


@pytest.fixture(autouse=True)
def no_vm_left(lab_of: Callable[[Arch], Lab], tmp_path: Path):
    yield
    assert not processes_naming("/spq-")


@pytest.mark.parametrize("arch", ARCHES)
def test_a_restored_vm_answers(lab_of, arch):
    async def use(lab: Lab) -> None:
        machine = await lab.restore()
        try:
            async with agent_of(machine) as agent:
                assert (await agent.metrics())["mem_total"] > 128 << 20
        finally:
            await machine.kill()
            await machine.kill()
        assert not machine.channel.exists()
        assert not machine.identity.alive()

    run(lab_of, arch, use)


def test_clones_share_the_template_and_leave_it_alone(lab_of):
    async def use(lab: Lab) -> None:
        before = lab.mem.stat()
        machines = [await lab.restore() for _ in range(3)]
        try:
            boots = set()
            for machine in machines:
                async with agent_of(machine) as agent:
                    boots.add((await agent.ready()).boot_id)
            assert len(boots) == 1
        finally:
            for machine in machines:
                await machine.kill()
        after = lab.mem.stat()
        assert (after.st_mtime_ns, after.st_blocks) == (before.st_mtime_ns, before.st_blocks)

    run(lab_of, Arch.X86_64, use)


def test_pause_and_resume(lab_of):
    async def use(lab: Lab) -> None:
        machine = await lab.restore(paused=True)
        try:
            agent = await Agent.connect(machine.channel, timeout=START_DEADLINE)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(1):
                    await agent.ready()
            await machine.resume()
            await agent.ready()
            await machine.pause()
            asking = asyncio.ensure_future(agent.metrics())
            done, _ = await asyncio.wait({asking}, timeout=0.5)
            assert not done
            await machine.resume()
            assert (await asking)["procs"] > 0
            await agent.aclose()
        finally:
            await machine.kill()

    run(lab_of, Arch.X86_64, use)


@pytest.mark.parametrize("arch", ARCHES)
def test_a_derived_template(lab_of, arch):
    """A copy of the memory, mapped shared, changed by a guest, and saved again."""

    async def use(lab: Lab) -> None:
        mem, state = lab.root / "mem2", lab.root / "state2"
        sparse_copy(lab.mem, mem)
        machine = await lab.restore(mem=mem, share=True)
        try:
            async with agent_of(machine) as agent:
                await agent.make_dir("/derived")
                await agent.quiesce()
            await machine.save(state)
        finally:
            await machine.kill()
        machine = await lab.restore(mem=mem, state=state)
        try:
            async with agent_of(machine) as agent:
                assert "derived" in {entry.name for entry in await agent.list_dir("/")}
        finally:
            await machine.kill()

    run(lab_of, arch, use)


def test_private_memory_can_t_be_saved(lab_of):
    async def use(lab: Lab) -> None:
        machine = await lab.restore()
        try:
            with pytest.raises(StateError):
                await machine.save(lab.root / "state3")
        finally:
            await machine.kill()

    run(lab_of, Arch.X86_64, use)


def test_a_vm_outlives_its_engine_and_is_adopted(lab_of):
    """The engine is a second process that dies by SIGKILL with its connection open."""

    async def use(lab: Lab) -> None:
        run_dir = lab.run_dir()
        script = (
            "import asyncio, os, signal, sys\n"
            "from pathlib import Path\n"
            "from sporevm._sys.confine import Confiner\n"
            "from sporevm.agent import Agent\n"
            "from sporevm.spec import Arch\n"
            "from sporevm.vmm.base import Restore\n"
            "from sporevm.vmm.qemu.driver import QemuVmm\n"
            "async def main():\n"
            "    root, run, kernel = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]\n"
            "    c = await Confiner.probe()\n"
            "    v = await QemuVmm.find(Arch.X86_64, 'tcg', c, root / 'cache')\n"
            "    s = v.shape(arch=Arch.X86_64, cpus=1, memory_mib=256, kernel=kernel)\n"
            "    m = await v.restore(Restore(shape=s, run_dir=run, log=run / 'log',\n"
            "                                mem=root / 'mem', state=root / 'state'))\n"
            "    a = await Agent.connect(m.channel, timeout=30)\n"
            "    await a.ready()\n"
            "    print(m.identity.pid, m.identity.start_time, flush=True)\n"
            "    os.kill(os.getpid(), signal.SIGKILL)\n"
            "asyncio.run(main())\n"
        )
        argv = [sys.executable, "-c", script, lab.root, run_dir, lab.kernel.hash]
        done = await process.run(argv, check=False, timeout=60)
        identity = Identity(*map(int, done.text.split()))

        mine = Identity.of(os.getpid())
        with pytest.raises(VmmError, match="is not the VMM"):
            await lab.vmm.adopt(mine, lab.shape, run_dir, run_dir / "log")
        gone = Identity(identity.pid, identity.start_time + 1)
        with pytest.raises(VmmError, match="gone"):
            await lab.vmm.adopt(gone, lab.shape, run_dir, run_dir / "log")

        machine = await lab.vmm.adopt(identity, lab.shape, run_dir, run_dir / "log")
        try:
            agent = await Agent.connect(machine.channel, timeout=START_DEADLINE, flush=True)
            assert (await agent.metrics())["procs"] > 0
            await agent.aclose()
            await machine.pause()
        finally:
            await machine.kill()
        assert await machine.wait() is None
        assert not identity.alive()

    run(lab_of, Arch.X86_64, use)


def test_a_broken_state_is_told_at_once(lab_of):
    async def use(lab: Lab) -> None:
        state = lab.root / "broken"
        state.write_bytes(lab.state.read_bytes()[:2000] + b"\xff" * 3000)
        began = time.monotonic()
        machine = await lab.restore(state=state)
        try:
            async with asyncio.timeout(10):
                assert await machine.wait() == 1
            assert time.monotonic() - began < 5
            error = machine.failure("start")
            assert isinstance(error, VmmError)
            assert error.status == 1
            assert "qemu" in error.command
            assert error.log_tail
        finally:
            await machine.kill()

    run(lab_of, Arch.X86_64, use)


def test_qemu_that_dies_under_a_command(lab_of):
    async def use(lab: Lab) -> None:
        machine = await lab.restore()
        try:
            async with agent_of(machine):
                os.kill(machine.identity.pid, 9)
                with pytest.raises(VmmError):
                    await machine.pause()
                assert await machine.wait() == -9
                assert "signal 9" in str(machine.failure("run"))
        finally:
            await machine.kill()

    run(lab_of, Arch.X86_64, use)


def test_what_does_not_fit_is_refused_before_anything_starts(lab_of):
    async def use(lab: Lab) -> None:
        with pytest.raises(ArtifactError, match="missing"):
            await lab.restore(state=lab.root / "none")
        short = lab.root / "short"
        make_sparse(short, 1 << 20)
        with pytest.raises(ArtifactError, match="MiB long"):
            await lab.restore(mem=short)
        other = lab.vmm.shape(arch=Arch.X86_64, cpus=1, memory_mib=256, kernel="k")
        with pytest.raises(ArtifactError, match="shape"):
            await lab.restore(shape=Shape(**{**_fields(other), "vmm": "qemu-1.0.0"}))

    run(lab_of, Arch.X86_64, use)


def _fields(shape: Shape) -> dict[str, object]:
    return {name: getattr(shape, name) for name in Shape.__dataclass_fields__}


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
@pytest.mark.skipif(not launcher_path().exists(), reason="the launcher is not built")
def test_what_holds_the_vmm(lab_of):
    """Read from the kernel, not from what we say."""

    async def use(lab: Lab) -> None:
        machine = await lab.restore()
        try:
            async with agent_of(machine):
                proc = Path(f"/proc/{machine.identity.pid}")
                lines = (proc / "status").read_text().splitlines()
                status = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
                assert status["Seccomp"] == "2"
                assert status["NoNewPrivs"] == "1"
                devices = (proc / "net/dev").read_text().splitlines()[2:]
                assert [line.split(":")[0].strip() for line in devices] == ["lo"]
                uid = int(status["Uid"].split()[0])
                words = machine.confinement
                assert ("uid 0" if uid == 0 else f"uid {uid}") in words or uid == 0
                if uid:  # otherwise it is said that, and why, it kept ours
                    assert {int(word) for word in status["Uid"].split()} == {uid}
                    modes = _open_modes(proc, lab.mem)
                    assert modes
                    assert set(modes) == {os.O_RDONLY}
                else:
                    assert any("own uid" in word for word in words)
        finally:
            await machine.kill()

    run(lab_of, Arch.X86_64, use)


def _open_modes(proc: Path, path: Path) -> list[int]:
    """How a process holds a file open."""
    modes = []
    for fd in (proc / "fd").iterdir():
        if fd.readlink() == path:
            text = (proc / "fdinfo" / fd.name).read_text()
            flags = next(line for line in text.splitlines() if line.startswith("flags:"))
            modes.append(int(flags.split()[1], 8) & os.O_ACCMODE)
    return modes


def test_the_console_is_bounded(lab_of):
    async def use(lab: Lab) -> None:
        machine = await lab.restore()
        try:
            async with agent_of(machine):
                machine.console.write_bytes(b"x" * 5000)
                machine.trim_console(10_000)
                assert machine.console.stat().st_size == 5000
                machine.trim_console(1000)
                assert machine.console.stat().st_size == 0
        finally:
            await machine.kill()

    run(lab_of, Arch.X86_64, use)
