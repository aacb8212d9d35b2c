"""Between the API's data and the engine's: bodies become specs, records become views."""

from __future__ import annotations

import msgspec

from sporevm.api.models import CommandBody, CreateBody, FileInfo, SandboxView, TemplateBody
from sporevm.api.port import StatPort
from sporevm.errors import UsageError
from sporevm.spec import Command, SandboxSpec, parse_arch


def sandbox_view(record: object) -> SandboxView:
    return msgspec.convert(record, SandboxView, from_attributes=True)


def file_info(info: StatPort, path: str = "") -> FileInfo:
    """From the agent's facts about a file. Bytes that are not UTF-8 are shown as U+FFFD."""
    name = printable(info.name) or path.rstrip("/").rpartition("/")[2] or "/"
    return FileInfo(
        name=name,
        path=printable(path) if path else name,
        kind=info.kind,
        size=info.size,
        mode=info.mode,
        uid=info.uid,
        gid=info.gid,
        mtime=info.mtime_ns / 1e9,
        target=printable(info.target),
    )


def printable(name: str | bytes) -> str:
    raw = name if isinstance(name, bytes) else name.encode(errors="surrogateescape")
    return raw.decode(errors="replace")


def command(body: CommandBody) -> Command:
    return Command(
        argv=tuple(body.argv),
        env=body.env,
        cwd=body.cwd,
        user=body.user,
        tty=body.tty,
        stdin=body.stdin,
        rows=body.rows,
        cols=body.cols,
        timeout=body.timeout,
    )


def spec(body: CreateBody) -> SandboxSpec:
    for what in ("image", "vmm", "workdir", "user", "hostname"):
        if "\0" in getattr(body, what):
            raise UsageError(f"{what} can't contain a NUL character")
    for key, value in body.env.items():
        if not key or "=" in key or "\0" in key + value:
            raise UsageError(f"environment variable {key!r} is not allowed")
    return SandboxSpec(
        image=body.image,
        name=body.name,
        arch=parse_arch(body.arch) if body.arch else None,
        vmm=body.vmm,
        cpus=body.cpus,
        memory_mib=body.memory_mib,
        disk_bytes=body.disk_bytes,
        env=body.env,
        workdir=body.workdir,
        user=body.user,
        hostname=body.hostname,
        labels=body.labels,
        ttl=body.ttl,
        auto_remove=body.auto_remove,
    )


def template_spec(body: TemplateBody) -> SandboxSpec:
    return SandboxSpec(
        image=body.image,
        arch=parse_arch(body.arch) if body.arch else None,
        vmm=body.vmm,
        cpus=body.cpus,
        memory_mib=body.memory_mib,
    )
