"""What sandboxes are made from: images and templates."""

from __future__ import annotations

from typing import Any

from sporevm.api import convert, progress
from sporevm.api.models import (
    Built,
    ImageView,
    ProgressLine,
    Removed,
    TemplateBody,
    TemplateView,
)
from sporevm.api.port import ProgressFn
from sporevm.api.router import Call, NoBody, NoQuery, Route

Plain = Call[NoBody, NoQuery]


async def images(call: Plain) -> list[ImageView]:
    return await call.app.engine.images()


async def image(call: Plain) -> ImageView:
    return await call.app.engine.image(call.ref)


async def remove_image(call: Plain) -> Removed:
    await call.app.to_the_end(call.app.engine.remove_image(call.ref))
    return Removed(removed=call.ref)


async def templates(call: Plain) -> list[TemplateView]:
    return await call.app.engine.templates()


async def build_template(call: Call[TemplateBody, NoQuery]) -> Any:
    lines = progress.wanted(call.request)
    spec = convert.template_spec(call.body)

    async def work(report: ProgressFn) -> TemplateView | Built:
        made = await call.app.engine.build_template(spec, report)
        return Built(template=made) if lines else made

    return await progress.answer(call.request, work)


async def remove_template(call: Plain) -> Removed:
    await call.app.to_the_end(call.app.engine.remove_template(call.ref))
    return Removed(removed=call.ref)


ROUTES: list[Route[Any, Any]] = [
    Route("GET", "/v1/images", images, "All images", NoBody, NoQuery, list[ImageView]),
    Route("GET", "/v1/images/{ref}", image, "One image", NoBody, NoQuery, ImageView),
    Route(
        "DELETE", "/v1/images/{ref}", remove_image, "Remove an image that nothing uses",
        NoBody, NoQuery, Removed,
    ),
    Route(
        "GET", "/v1/templates", templates, "All templates",
        NoBody, NoQuery, list[TemplateView],
    ),
    Route(
        "POST", "/v1/templates", build_template, "Build the template of a shape ahead of time",
        TemplateBody, NoQuery, TemplateView, status=201, server_messages=ProgressLine,
    ),
    Route(
        "DELETE", "/v1/templates/{key}", remove_template, "Remove a template",
        NoBody, NoQuery, Removed,
    ),
]  # fmt: skip
