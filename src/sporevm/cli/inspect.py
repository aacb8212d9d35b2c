"""`spore inspect`."""

from __future__ import annotations

from argparse import Namespace
from typing import TYPE_CHECKING

from sporevm.cli import options
from sporevm.cli.client import Client, call
from sporevm.cli.context import Context
from sporevm.cli.output import print_json
from sporevm.cli.parser import Parser, Verb
from sporevm.cli.report import report
from sporevm.errors import NotFound

if TYPE_CHECKING:
    from sporevm.api.models import ImageView, SandboxView, TemplateView

EXAMPLES = (
    ("spore inspect box", "a sandbox: its shape, its state, how long each step of its start took"),
    ("spore inspect base", "an image"),
    ("spore inspect box | jq '.[0].timings'", "one field"),
)
NOTES = "REF is a sandbox, an image or a template: the first of them that fits. Prints an array."


def _options(parser: Parser) -> None:
    parser.add_argument("refs", nargs="+", metavar="REF")
    options.add_json(parser)


def _run(args: Namespace, ctx: Context) -> int:
    async def everything(client: Client) -> list[SandboxView | ImageView | TemplateView | NotFound]:
        return [await _find(client, ref) for ref in args.refs]

    found = call(ctx, everything)
    missing = [error for error in found if isinstance(error, NotFound)]
    if ctx.json and len(missing) == len(found):
        raise missing[0]
    print_json([view for view in found if not isinstance(view, NotFound)])
    status = 0
    for error in missing:
        status = report(error, as_json=False)
    return status


async def _find(client: Client, ref: str) -> SandboxView | ImageView | TemplateView | NotFound:
    for kind in (client.inspect, client.images.inspect):
        try:
            return await kind(ref)
        except NotFound:
            continue
    fitting = [view for view in await client.templates.list() if view.key.startswith(ref)]
    if len(fitting) == 1:
        return fitting[0]
    return NotFound(
        f"no sandbox, image or template {ref!r}",
        hint="see: spore ls -a, spore image ls, spore template ls",
    )


VERBS = {"inspect": Verb(_run, _options, EXAMPLES, notes=NOTES)}
