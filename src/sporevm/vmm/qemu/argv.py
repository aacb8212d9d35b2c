"""QEMU's command line: pure functions from what is wanted to a list of words.

Everything the VMM touches comes as an open descriptor, so that its confined user needs no access
to any directory. The device list is the same for a cold boot and for every restore: a saved state
names devices by their place in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sporevm.spec import MIB, Arch

#: Size of the buffer of translated code (MiB). Below 16 it thrashes; more than 32 gains nothing.
TB_SIZE_MIB = 32

#: What QEMU's own filter forbids: old system calls, more privileges, new processes.
SANDBOX = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"

_MACHINES = {
    # Without ACPI a stock kernel does not find virtio-mmio devices: its driver is a module.
    Arch.X86_64: "microvm,acpi=on",
    Arch.AARCH64: "virt,gic-version=3",
}
_CONSOLES = {Arch.X86_64: "ttyS0", Arch.AARCH64: "ttyAMA0"}
_TCG_CPUS = {
    # Models named after Intel's make the guest switch on mitigations that cost a third.
    Arch.X86_64: "max",
    # `max` computes pointer authentication in software, and its 52-bit tables are slow to walk.
    Arch.AARCH64: "neoverse-n1",
}


@dataclass(frozen=True, slots=True)
class Backend:
    """What the probe found out and the caller decided: the part a shape is made of."""

    binary: str
    arch: Arch
    accelerator: str
    private_mem_read_only: bool  # 8.2: a private mapping of a file opened read-only can be RAM
    sandbox: bool = True


@dataclass(frozen=True, slots=True)
class DriveFd:
    serial: str
    fd: int
    read_only: bool


@dataclass(frozen=True, slots=True)
class Wiring:
    """The descriptors a VM is made of, numbered as the VMM will see them."""

    name: str
    channel: int  # listening Unix sockets
    qmp: int
    console: int
    mem: int
    drives: tuple[DriveFd, ...]


@dataclass(frozen=True, slots=True)
class ColdBoot:
    kernel: int
    initrd: int
    append: str


@dataclass(frozen=True, slots=True)
class Incoming:
    state: int
    share: bool
    paused: bool


def machine_type(arch: Arch) -> str:
    return _MACHINES[arch]


def cpu_model(arch: Arch, accelerator: str) -> str:
    return "host" if accelerator == "kvm" else _TCG_CPUS[arch]


def kernel_command_line(arch: Arch, *, emulated: bool, tsc_khz: int = 0) -> str:
    """Options of the guest kernel. `tsc_khz` spares it a calibration that fails on a busy host."""
    words = [
        f"console={_CONSOLES[arch]}",
        "quiet",
        "panic=-1",
        "reboot=t",
        "spore.channel=serial",
    ]
    if emulated:
        # Translated code is found again by its virtual address. With addresses that change at each
        # exec, every process is translated anew: 30 ms for `true` against 8 without.
        words.append("norandmaps")
    if arch is Arch.X86_64 and tsc_khz:
        # Reliable: on a busy host the watchdog would find it unstable and fall back to jiffies, and
        # then the guest ticks 250 times a second for ever (5 % of a core, measured, against 0.6).
        words += [f"tsc_early_khz={tsc_khz}", "tsc=reliable"]
    return " ".join(words)


def command(
    backend: Backend,
    *,
    cpus: int,
    memory_mib: int,
    cpu: str,
    wiring: Wiring,
    start: ColdBoot | Incoming,
) -> list[str]:
    """The whole command line of one VM."""
    return [
        backend.binary,
        *("-name", name_option(wiring.name)),
        "-nodefaults",
        "-no-user-config",
        "-no-reboot",
        *("-display", "none"),
        *(("-sandbox", SANDBOX) if backend.sandbox else ()),
        *("-M", f"{machine_type(backend.arch)},memory-backend=mem,suppress-vmdesc=on"),
        *("-accel", _accelerator(backend.accelerator)),
        *("-cpu", cpu),
        *("-smp", str(cpus)),
        *("-m", f"{memory_mib}M"),
        *("-object", _memory(backend, memory_mib, wiring.mem, start)),
        *_console_and_monitor(wiring),
        *_devices(wiring),
        *_start(start),
    ]


def name_option(name: str) -> str:
    """By this argument a VMM is known again. QEMU's option syntax writes a comma as two."""
    return "guest=" + name.replace(",", ",,")


def _accelerator(name: str) -> str:
    return name if name == "kvm" else f"tcg,thread=multi,tb-size={TB_SIZE_MIB}"


def _memory(backend: Backend, memory_mib: int, fd: int, start: ColdBoot | Incoming) -> str:
    shared = isinstance(start, ColdBoot) or start.share
    words = [
        "memory-backend-file,id=mem",
        f"size={memory_mib * MIB}",
        f"mem-path=/proc/self/fd/{fd}",
        f"share={'on' if shared else 'off'}",
    ]
    if not shared and backend.private_mem_read_only:
        words += ["readonly=on", "rom=off"]
    return ",".join(words)


def _console_and_monitor(wiring: Wiring) -> list[str]:
    return [
        *("-add-fd", f"fd={wiring.console},set=1"),
        *("-chardev", "file,id=console,path=/dev/fdset/1,append=on"),
        *("-serial", "chardev:console"),
        *("-chardev", f"socket,id=qmp,fd={wiring.qmp},server=on,wait=off"),
        *("-mon", "chardev=qmp,mode=control"),
        *("-chardev", f"socket,id=agent,fd={wiring.channel},server=on,wait=off"),
    ]


def _devices(wiring: Wiring) -> list[str]:
    """In a fixed order, whatever is attached: this is the hardware the template was saved with."""
    words = [
        *("-device", "virtio-serial-device,max_ports=2"),
        *("-device", "virtserialport,chardev=agent,name=agent"),
    ]
    for number, drive in enumerate(wiring.drives, start=2):
        words += _drive(drive, number)
    # `rng-builtin` asks the host's kernel itself: no file to open. There is no balloon: QEMU
    # gives pages back by punching holes into the file behind the memory, and that is the template.
    words += ["-object", "rng-builtin,id=rng", "-device", "virtio-rng-device,rng=rng"]
    return words


def _drive(drive: DriveFd, fd_set: int) -> list[str]:
    read_only = "on" if drive.read_only else "off"
    node = (
        f"driver=raw,node-name={drive.serial},read-only={read_only},discard=unmap,"
        f"file.driver=file,file.filename=/dev/fdset/{fd_set},file.locking=off,"
        f"file.read-only={read_only},file.auto-read-only=off"
    )
    return [
        *("-add-fd", f"fd={drive.fd},set={fd_set}"),
        *("-blockdev", node),
        *("-device", f"virtio-blk-device,drive={drive.serial},serial={drive.serial}"),
    ]


def _start(start: ColdBoot | Incoming) -> list[str]:
    if isinstance(start, ColdBoot):
        return [
            *("-kernel", f"/proc/self/fd/{start.kernel}"),
            *("-initrd", f"/proc/self/fd/{start.initrd}"),
            *("-append", start.append),
        ]
    # No kernel: it is in the saved memory already, and loading it again costs 15 MB and 20 ms.
    # The state is device state alone (`xen-save-devices-state`), which has no configuration
    # section. The VM runs by itself once it is loaded, without a word on QMP.
    return [
        *("-global", "migration.send-configuration=off"),
        *("-incoming", f"fd:{start.state}"),
        *(("-S",) if start.paused else ()),
    ]


def placeholders(serials: Sequence[str]) -> dict[str, bool]:
    """Whether each slot is read-only hardware: only the first, the image's, is.

    What a guest negotiated when the template was made holds for ever. A slot made writable may
    later be backed by a read-only file (writes then fail on the host); the reverse is impossible.
    """
    return {serial: number == 0 for number, serial in enumerate(serials)}
