"""What sandboxes are made from: templates and images, and who still needs them."""

from __future__ import annotations

from sporevm.engine.planner import Planner
from sporevm.engine.templates import ProgressFn, Template, Templates
from sporevm.errors import Conflict
from sporevm.image.progress import silent
from sporevm.image.store import Image, ImageStore
from sporevm.spec import SandboxSpec
from sporevm.store.layout import Layout
from sporevm.store.records import Records


class Stock:
    def __init__(
        self, layout: Layout, records: Records, templates: Templates, planner: Planner
    ) -> None:
        self._records = records
        self._templates = templates
        self._planner = planner
        self._images = ImageStore(layout)

    def templates(self) -> list[tuple[Template, int]]:
        """Each template with the bytes it really takes on disk."""
        return [(template, self._templates.size(template)) for template in self._templates.all()]

    async def build_template(self, spec: SandboxSpec, *, progress: ProgressFn = silent) -> Template:
        """The bare template of the spec's shape; with an image named, that one's too."""
        if not spec.image:
            shape = await self._planner.shape(spec, progress)
            return await self._templates.bare(shape, progress)
        plan = await self._planner.plan(spec, None, progress)
        return await self._templates.with_image(plan.wanted, progress)

    def remove_template(self, key: str) -> None:
        """Templates are caches: a sandbox that runs keeps its memory mapped."""
        self._templates.remove(key)

    def images(self) -> list[Image]:
        return self._images.list()

    def image(self, ref: str) -> Image:
        return self._images.resolve(ref)

    def remove_image(self, ref: str) -> None:
        """Remove a name, and the image with its last one; Conflict while a sandbox needs it."""
        image = self._images.resolve(ref)
        users = [r.name for r in self._records.all() if r.image_id == image.id]
        if users:
            raise Conflict(
                f"image {ref!r} is in use by {', '.join(users[:5])}",
                hint=f"remove them first: spore rm -f {' '.join(users[:5])}",
            )
        gone = self._images.remove(ref)
        if any(left.id == gone.id for left in self._images.list()):
            return
        for template in self._templates.all():
            if template.manifest.image == image.id:
                self._templates.remove(template.manifest.key)
