"""QEMU's command line, word by word."""

from __future__ import annotations

from dataclasses import replace

from sporevm.spec import DRIVES, Arch
from sporevm.vmm.qemu import argv

BACKEND = argv.Backend("/usr/bin/qemu", Arch.X86_64, "tcg", private_mem_read_only=False)
WIRING = argv.Wiring(
    name="/home/a,b/vm",
    channel=10,
    qmp=11,
    console=12,
    mem=13,
    drives=(argv.DriveFd("image", 14, True), argv.DriveFd("scratch", 15, False)),
)
RESTORE = argv.Incoming(state=16, share=False, paused=False)


def build(
    backend: argv.Backend = BACKEND, start: argv.ColdBoot | argv.Incoming = RESTORE
) -> list[str]:
    return argv.command(backend, cpus=2, memory_mib=512, cpu="max", wiring=WIRING, start=start)


def value(words: list[str], option: str) -> str:
    return words[words.index(option) + 1]


def test_a_restore_in_full():
    node = "driver=raw,node-name={0},read-only={1},discard=unmap,file.driver=file,"
    node += "file.filename=/dev/fdset/{2},file.locking=off,file.read-only={1},"
    node += "file.auto-read-only=off"
    assert build() == [
        "/usr/bin/qemu",
        *("-name", "guest=/home/a,,b/vm"),
        *("-nodefaults", "-no-user-config", "-no-reboot"),
        *("-display", "none"),
        "-sandbox",
        "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
        *("-M", "microvm,acpi=on,memory-backend=mem,suppress-vmdesc=on"),
        *("-accel", "tcg,thread=multi,tb-size=32"),
        *("-cpu", "max"),
        *("-smp", "2"),
        *("-m", "512M"),
        "-object",
        "memory-backend-file,id=mem,size=536870912,mem-path=/proc/self/fd/13,share=off",
        *("-add-fd", "fd=12,set=1"),
        *("-chardev", "file,id=console,path=/dev/fdset/1,append=on"),
        *("-serial", "chardev:console"),
        *("-chardev", "socket,id=qmp,fd=11,server=on,wait=off"),
        *("-mon", "chardev=qmp,mode=control"),
        *("-chardev", "socket,id=agent,fd=10,server=on,wait=off"),
        *("-device", "virtio-serial-device,max_ports=2"),
        *("-device", "virtserialport,chardev=agent,name=agent"),
        *("-add-fd", "fd=14,set=2"),
        *("-blockdev", node.format("image", "on", 2)),
        *("-device", "virtio-blk-device,drive=image,serial=image"),
        *("-add-fd", "fd=15,set=3"),
        *("-blockdev", node.format("scratch", "off", 3)),
        *("-device", "virtio-blk-device,drive=scratch,serial=scratch"),
        *("-object", "rng-builtin,id=rng"),
        *("-device", "virtio-rng-device,rng=rng"),
        *("-global", "migration.send-configuration=off"),
        *("-incoming", "fd:16"),
    ]


def test_a_boot_differs_only_in_its_memory_and_its_start():
    boot, restore = build(start=argv.ColdBoot(20, 21, "quiet")), build()
    memory = boot.index("-object") + 1
    assert boot[memory].endswith("share=on")
    assert boot[memory + 1 : -6] == restore[memory + 1 : -4]
    assert boot[-6:] == [
        *("-kernel", "/proc/self/fd/20", "-initrd", "/proc/self/fd/21"),
        *("-append", "quiet"),
    ]


def test_private_memory_is_read_only_where_qemu_can():
    words = build(replace(BACKEND, private_mem_read_only=True))
    assert value(words, "-object").endswith("share=off,readonly=on,rom=off")
    shared = build(replace(BACKEND, private_mem_read_only=True), replace(RESTORE, share=True))
    assert value(shared, "-object").endswith("share=on")


def test_paused_and_without_seccomp():
    words = build(replace(BACKEND, sandbox=False), replace(RESTORE, paused=True))
    assert words[-1] == "-S"
    assert "-sandbox" not in words


def test_aarch64_and_kvm():
    words = build(replace(BACKEND, arch=Arch.AARCH64, accelerator="kvm"))
    assert value(words, "-M").startswith("virt,")
    assert value(words, "-accel") == "kvm"
    assert argv.cpu_model(Arch.AARCH64, "kvm") == "host"


def test_kernel_command_line():
    line = argv.kernel_command_line(Arch.X86_64, emulated=True, tsc_khz=2596135)
    assert line == (
        "console=ttyS0 quiet panic=-1 reboot=t spore.channel=serial norandmaps "
        "tsc_early_khz=2596135 tsc=reliable"
    )
    assert "tsc" not in argv.kernel_command_line(Arch.X86_64, emulated=True)
    assert "tsc" not in argv.kernel_command_line(Arch.AARCH64, emulated=True, tsc_khz=1)
    assert "console=ttyAMA0" in argv.kernel_command_line(Arch.AARCH64, emulated=True)
    assert "norandmaps" not in argv.kernel_command_line(Arch.X86_64, emulated=False)


def test_only_the_image_slot_is_read_only_hardware():
    assert [s for s, read_only in argv.placeholders(DRIVES).items() if read_only] == ["image"]
