"""The engine as the API sees it: its own objects turned into the API's data."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import msgspec

from sporevm._version import __version__
from sporevm.agent.client import Agent
from sporevm.agent.messages import Exit
from sporevm.agent.process import Process
from sporevm.api.models import EventRecord, ImageView, TemplateView
from sporevm.api.port import ProgressFn
from sporevm.engine.box import Main
from sporevm.engine.manager import Engine
from sporevm.engine.output import LogLine
from sporevm.engine.templates import Template
from sporevm.spec import Command, SandboxSpec
from sporevm.store.layout import Layout
from sporevm.store.records import SandboxRecord


class MainProcess:
    """A sandbox's main process, its output read from the log that keeps it."""

    def __init__(self, main: Main) -> None:
        self._main = main
        self._output = main.read()
        self.proc = main.process.proc
        self.pid = main.process.pid

    async def read(self) -> tuple[int, bytes] | None:
        async for line in self._output:
            return line.channel, line.data
        return None

    async def write(self, data: bytes) -> None:
        await self._main.process.write(data)

    def write_eof(self) -> None:
        self._main.process.write_eof()

    def signal(self, number: int) -> None:
        self._main.process.signal(number)

    def resize(self, rows: int, cols: int) -> None:
        self._main.process.resize(rows, cols)

    async def wait(self) -> Exit:
        return await asyncio.shield(self._main.exit)

    async def close(self, kill: bool = False) -> None:
        """Stop following. It belongs to the sandbox."""


class EngineAdapter:
    """An EnginePort over the real engine."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self._engine = Engine(layout)

    async def start(self) -> None:
        await self._engine.start()

    async def close(self) -> None:
        await self._engine.close()

    async def create(
        self, spec: SandboxSpec, command: Command | None = None, *, progress: ProgressFn
    ) -> SandboxRecord:
        return await self._engine.create(spec, command, progress=progress)

    def all(self) -> list[SandboxRecord]:
        return self._engine.all()

    def get(self, ref: str) -> SandboxRecord:
        return self._engine.get(ref)

    async def exec(self, ref: str, command: Command) -> Process:
        return await self._engine.exec(ref, command)

    def main(self, ref: str) -> MainProcess:
        return MainProcess(self._engine.main(ref))

    async def agent(self, ref: str) -> Agent:
        return await self._engine.agent(ref)

    async def stop(self, ref: str, timeout: float) -> SandboxRecord:
        return await self._engine.stop(ref, timeout)

    async def kill(self, ref: str, signal: int | None = None) -> SandboxRecord:
        return await self._engine.kill(ref, signal)

    async def remove(self, ref: str, *, force: bool) -> None:
        await self._engine.remove(ref, force=force)

    async def wait(self, ref: str) -> SandboxRecord:
        return await self._engine.wait(ref)

    def logs(self, ref: str, *, follow: bool, tail: int | None) -> AsyncIterator[LogLine]:
        return self._engine.logs(ref, follow=follow, tail=tail)

    async def events(self) -> AsyncIterator[EventRecord]:
        async for event in self._engine.events():
            yield _event(event)


class StockAdapter(EngineAdapter):
    """The same, with templates and images."""

    async def templates(self) -> list[TemplateView]:
        return [_template(template, size) for template, size in self._engine.stock.templates()]

    async def build_template(self, spec: SandboxSpec, progress: ProgressFn) -> TemplateView:
        made = await self._engine.stock.build_template(spec, progress=progress)
        sizes = {t.manifest.key: size for t, size in self._engine.stock.templates()}
        return _template(made, sizes.get(made.manifest.key, 0))

    async def remove_template(self, key: str) -> None:
        self._engine.stock.remove_template(key)

    async def images(self) -> list[ImageView]:
        return [_image(image) for image in self._engine.stock.images()]

    async def image(self, ref: str) -> ImageView:
        return _image(self._engine.stock.image(ref))

    async def remove_image(self, ref: str) -> None:
        self._engine.stock.remove_image(ref)


def _template(template: Template, size: int) -> TemplateView:
    manifest = template.manifest
    shape: dict[str, Any] = manifest.shape
    return TemplateView(
        key=manifest.key,
        arch=str(shape.get("arch", "")),
        cpus=int(shape.get("cpus", 0)),
        memory_mib=int(shape.get("memory_mib", 0)),
        vmm=str(shape.get("vmm", "")),
        accelerator=str(shape.get("accelerator", "")),
        image=manifest.image_name,
        created=manifest.created,
        size=size,
        current=manifest.version == __version__,
    )


def _image(image: object) -> ImageView:
    return msgspec.convert(image, ImageView, from_attributes=True)


def _event(event: dict[str, object]) -> EventRecord:
    rest = dict(event)
    when, kind, sandbox = rest.pop("time", 0.0), rest.pop("kind", ""), rest.pop("sandbox", "")
    return EventRecord(time=float(str(when)), kind=str(kind), sandbox=str(sandbox), details=rest)
