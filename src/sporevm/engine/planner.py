"""From what the caller asked for to what will be started: everything that can be refused, first."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import cast

from sporevm.engine.templates import Bare, ProgressFn, Wanted
from sporevm.errors import ArtifactError, UsageError
from sporevm.image.base import base_name, ensure_base
from sporevm.image.kernel import Kernel, ensure_kernel
from sporevm.image.store import Image, ImageStore
from sporevm.spec import DEFAULT_IMAGE, MIB, Arch, Command, SandboxSpec, parse_arch
from sporevm.store.layout import Layout
from sporevm.vmm.registry import choose


@dataclass(frozen=True, slots=True)
class Plan:
    spec: SandboxSpec
    arch: Arch
    wanted: Wanted
    command: Command | None
    #: Defaults of every process: the caller's first, then the image's.
    env: Mapping[str, str]
    workdir: str
    user: str


def host_arch() -> Arch:
    return parse_arch(os.uname().machine)


def host_memory_mib() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // MIB


class Planner:
    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._images = ImageStore(layout)
        self._kernels: dict[Arch, Kernel] = {}

    async def plan(self, spec: SandboxSpec, command: Command | None, progress: ProgressFn) -> Plan:
        limit = host_memory_mib()
        if spec.memory_mib > limit:
            raise UsageError(
                f"memory: {spec.memory_mib} MiB is more than this machine's {limit} MiB",
                hint="ask for less with --memory",
            )
        image = await self._image(spec, progress)
        arch = spec.arch or image.arch
        if image.arch != arch:
            raise ArtifactError(
                f"image {spec.image!r} is for {image.arch}, the machine asked for is {arch.value}",
                hint=f"leave --arch out, or import an image for {arch.value}",
            )
        wanted = await self.wanted(spec, arch, image, progress)
        return Plan(
            spec=spec,
            arch=arch,
            wanted=wanted,
            command=command,
            env=_image_env(image) | dict(spec.env),
            workdir=spec.workdir or _text(image.config, "WorkingDir"),
            user=spec.user or _text(image.config, "User"),
        )

    async def wanted(
        self, spec: SandboxSpec, arch: Arch, image: Image, progress: ProgressFn
    ) -> Wanted:
        bare = await self.shape(replace(spec, arch=arch), progress)
        return Wanted(bare.vmm, bare.shape, bare.kernel, image, spec.disk_bytes)

    async def shape(self, spec: SandboxSpec, progress: ProgressFn) -> Bare:
        arch = spec.arch or host_arch()
        vmm = await choose(spec.vmm, arch, self._layout)
        kernel = await self.kernel(arch, progress)
        shape = vmm.shape(arch=arch, cpus=spec.cpus, memory_mib=spec.memory_mib, kernel=kernel.hash)
        return Bare(vmm, shape, kernel)

    async def kernel(self, arch: Arch, progress: ProgressFn) -> Kernel:
        if arch not in self._kernels or not self._kernels[arch].initrd.exists():
            self._kernels[arch] = await ensure_kernel(self._layout, arch, progress=progress)
        return self._kernels[arch]

    async def _image(self, spec: SandboxSpec, progress: ProgressFn) -> Image:
        name = spec.image
        if name == DEFAULT_IMAGE:
            # Each architecture has its own default image. It is made on first use, so that there
            # is nothing to set up.
            arch = spec.arch or host_arch()
            found = self._images.find(base_name(arch))
            return found or await ensure_base(self._layout, arch, progress)
        return self._images.resolve(name)


def _strings(config: Mapping[str, object], key: str) -> list[str]:
    value = config.get(key) or []
    return [value] if isinstance(value, str) else [str(item) for item in cast(list[object], value)]


def _image_env(image: Image) -> dict[str, str]:
    return dict(item.split("=", 1) for item in _strings(image.config, "Env") if "=" in item)


def _text(config: Mapping[str, object], key: str) -> str:
    return str(config.get(key) or "")
