"""`spore image`."""

from __future__ import annotations

import asyncio
import sys
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from sporevm.cli import options
from sporevm.cli.client import Client, call, each
from sporevm.cli.context import Context
from sporevm.cli.output import ago, print_json, safe, size, table
from sporevm.cli.parser import Parser, Verb
from sporevm.cli.report import report
from sporevm.errors import NotFound, UsageError

if TYPE_CHECKING:
    from sporevm.api.models import ImageView
    from sporevm.image.progress import Progress

_HEADER = ("NAME", "ID", "ARCH", "SIZE", "CREATED")


def _ls_options(parser: Parser) -> None:
    options.add_quiet(parser, "print ids only")
    options.add_json(parser)


def _ls(args: Namespace, ctx: Context) -> int:
    views = call(ctx, lambda client: client.images.list())
    if ctx.json:
        print_json(views)
    elif ctx.quiet:
        for view in views:
            print(view.id)
    else:
        print(table(_HEADER, [row for view in views for row in _rows(view)]))
    return 0


def _rows(view: ImageView) -> list[tuple[str, ...]]:
    """A line for each name."""
    return [
        (safe(name), view.id[:12], view.arch, size(view.size), ago(view.created))
        for name in view.names or ["-"]
    ]


def _inspect_options(parser: Parser) -> None:
    parser.add_argument("images", nargs="+", metavar="IMAGE")
    options.add_json(parser)


def _inspect(args: Namespace, ctx: Context) -> int:
    async def everything(client: Client) -> list[ImageView | NotFound]:
        return [await _find(client, ref) for ref in args.images]

    found = call(ctx, everything)
    print_json([view for view in found if not isinstance(view, NotFound)])
    missing = [error for error in found if isinstance(error, NotFound)]
    return max((report(error, as_json=False) for error in missing), default=0)


async def _find(client: Client, ref: str) -> ImageView | NotFound:
    try:
        return await client.images.inspect(ref)
    except NotFound as error:
        return error


def _rm_options(parser: Parser) -> None:
    parser.add_argument("images", nargs="+", metavar="IMAGE")


def _rm(args: Namespace, ctx: Context) -> int:
    return each(
        ctx,
        args.images,
        lambda client, ref: client.images.remove(ref),
        lambda ref, _none: print(ref),
    )


def _import_options(parser: Parser) -> None:
    add = parser.add_argument
    add("name", metavar="NAME")
    add("source", metavar="SOURCE")
    add("--arch", default="", metavar="ARCH", help="x86_64 or aarch64 (default: this machine's)")
    options.add_quiet(parser)
    options.add_json(parser)


def _import(args: Namespace, ctx: Context) -> int:
    from sporevm.cli.progress import Ticking

    source = None if args.source == "-" else Path(args.source)
    if source is None and sys.stdin.isatty():
        raise UsageError(
            "standard input is a terminal", hint="like: tar c . | spore image import NAME -"
        )
    if source is not None and not source.exists():
        raise NotFound(f"there is no file or directory {source}")
    with Ticking(ctx.progress()) as ticking:
        image_id = _import_into(ctx, args.name, source, args.arch, ticking.step)
    if ctx.json:
        print_json(call(ctx, lambda client: client.images.inspect(image_id)))
    else:
        print(image_id)
    return 0


def _import_into(
    ctx: Context, name: str, source: Path | None, arch_name: str, progress: Progress
) -> str:
    from sporevm.image.store import ImageStore
    from sporevm.spec import parse_arch

    arch = parse_arch(arch_name) if arch_name else None
    store = ImageStore(ctx.layout)
    if source is not None and source.is_dir():
        made = store.import_dir(source, name, arch, progress=progress)
    else:
        archive = sys.stdin.fileno() if source is None else source
        made = store.import_tar(archive, name, arch, progress=progress)
    return asyncio.run(made).id


VERBS = {
    "ls": Verb(_ls, _ls_options, (("spore image ls", "a line for each name"),)),
    "inspect": Verb(_inspect, _inspect_options, (("spore image inspect base", "as JSON"),)),
    "import": Verb(
        _import,
        _import_options,
        (
            ("spore image import tools ./rootfs", "a directory"),
            ("docker export box | spore image import box -", "a tar from standard input"),
            ("spore run tools -- ls /", "use it"),
        ),
        notes="SOURCE is a directory, a tar file (gzip, xz or zstd too), or - for standard input.",
    ),
    "rm": Verb(_rm, _rm_options, (("spore image rm tools", "it must not be in use"),)),
}
