"""`spore template`: the saved memories sandboxes start from. All of them can be made again."""

from __future__ import annotations

from argparse import Namespace
from typing import TYPE_CHECKING

from sporevm.cli import options
from sporevm.cli.client import call, each
from sporevm.cli.context import Context
from sporevm.cli.output import ago, print_json, safe, size, table
from sporevm.cli.parser import Parser, Verb
from sporevm.errors import UsageError

if TYPE_CHECKING:
    from sporevm.api.models import TemplateView

_HEADER = ("KEY", "ARCH", "SHAPE", "VMM", "ACCEL", "IMAGE", "DISK", "CREATED", "STATE")


def _ls_options(parser: Parser) -> None:
    options.add_quiet(parser, "print keys only")
    options.add_json(parser)


def _ls(args: Namespace, ctx: Context) -> int:
    views = call(ctx, lambda client: client.templates.list())
    if ctx.json:
        print_json(views)
    elif ctx.quiet:
        for view in views:
            print(view.key)
    else:
        print(table(_HEADER, [_row(view) for view in views]))
    return 0


def _row(view: TemplateView) -> tuple[str, ...]:
    return (
        view.key[:12],
        view.arch,
        f"{view.cpus} CPU, {view.memory_mib} MiB",
        view.vmm,
        view.accelerator,
        safe(view.image[:20]) or "-",
        size(view.size),
        ago(view.created),
        "current" if view.current else "outdated",
    )


def _build_options(parser: Parser) -> None:
    add = parser.add_argument
    add("-m", "--memory", default="512M", metavar="SIZE", help="memory of the shape")
    add("-c", "--cpus", type=int, default=1, metavar="N", help="virtual CPUs of the shape")
    add("--image", default="", metavar="IMAGE", help="with this image mounted and warm")
    add("--vmm", default="auto", metavar="NAME", help="auto or qemu")
    add("--arch", default="", metavar="ARCH", help="x86_64 or aarch64 (default: this machine's)")
    options.add_quiet(parser)
    options.add_json(parser)


def _build(args: Namespace, ctx: Context) -> int:
    from sporevm.spec import parse_memory

    if args.cpus < 1:
        raise UsageError("--cpus: must be at least 1")
    view = build(
        ctx,
        arch=args.arch,
        cpus=args.cpus,
        memory_mib=parse_memory(args.memory),
        vmm=args.vmm,
        image=args.image,
    )
    if ctx.json:
        print_json(view)
    else:
        print(view.key)
    return 0


def build(
    ctx: Context,
    *,
    arch: str = "",
    cpus: int = 1,
    memory_mib: int = 512,
    vmm: str = "auto",
    image: str = "",
) -> TemplateView:
    """Have the engine build a template, showing its progress; at once if it is there."""
    from sporevm.api.models import TemplateBody
    from sporevm.cli.progress import Ticking

    body = TemplateBody(arch=arch, cpus=cpus, memory_mib=memory_mib, vmm=vmm, image=image)
    with Ticking(ctx.progress()) as ticking:
        return call(
            ctx,
            lambda client: client.templates.build(
                body, on_progress=lambda news: ticking.step(news.step, news.done, news.total)
            ),
        )


def _rm_options(parser: Parser) -> None:
    parser.add_argument("keys", nargs="*", metavar="KEY")
    parser.add_argument("--outdated", action="store_true", help="all that no start would use")
    parser.add_argument("--all", action="store_true", help="all; they are built again when needed")


def _rm(args: Namespace, ctx: Context) -> int:
    keys = list(args.keys)
    if args.all or args.outdated:
        views = call(ctx, lambda client: client.templates.list())
        keys += [view.key for view in views if args.all or not view.current]
    elif not keys:
        raise UsageError("template rm: no template given", hint="see: spore template ls")
    return each(
        ctx, keys, lambda client, key: client.templates.remove(key), lambda key, _none: print(key)
    )


VERBS = {
    "ls": Verb(
        _ls,
        _ls_options,
        (("spore template ls", "their shapes, and what they take of the disk"),),
    ),
    "build": Verb(
        _build,
        _build_options,
        (
            (
                "spore template build -m 2G -c 2",
                "so that the first start of this shape is fast too",
            ),
            ("spore template build --image base", "with an image mounted and warm"),
        ),
    ),
    "rm": Verb(
        _rm,
        _rm_options,
        (
            ("spore template rm 3f2a", "by the start of its key"),
            ("spore template rm --outdated", "those of other versions, kernels and machines"),
        ),
    ),
}
