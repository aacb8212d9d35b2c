"""`spore setup`: makes now what the first run would make."""

from __future__ import annotations

import asyncio
from argparse import Namespace
from collections.abc import Callable

from sporevm.cli import options, template
from sporevm.cli.context import Context
from sporevm.cli.output import print_json
from sporevm.cli.parser import Parser, Verb
from sporevm.cli.progress import Ticking
from sporevm.errors import UsageError
from sporevm.spec import Arch, parse_arch

PARTS = ("kernel", "rootfs", "template")
EXAMPLES = (
    ("spore setup", "everything, for this machine's architecture"),
    ("spore setup kernel rootfs --arch arm64", "some of it, for another one"),
    ("spore setup preflight", "the same as spore doctor: can sandboxes run here?"),
)
NOTES = """\
PART is kernel (the guest's kernel and initramfs), rootfs (the image 'base') or template (a booted
VM, saved). What is there already is checked and left as it is. It needs no root."""

#: What made a part: its name, and whether it was there already.
Made = tuple[str, bool]


def _options(parser: Parser) -> None:
    add = parser.add_argument
    add("parts", nargs="*", metavar="PART")
    add("--arch", default="", metavar="ARCH", help="x86_64 or aarch64 (default: this machine's)")
    options.add_quiet(parser)
    options.add_json(parser)


def _run(args: Namespace, ctx: Context) -> int:
    for part in args.parts:
        if part not in PARTS:
            raise UsageError(f"setup: there is no part {part!r}", hint=f"it is {', '.join(PARTS)}")
    arch = parse_arch(args.arch) if args.arch else _own_arch()
    results: list[dict[str, object]] = []
    for part in PARTS:
        if args.parts and part not in args.parts:
            continue
        name, was_there = _MAKERS[part](ctx, arch)
        results.append({"part": part, "name": name, "was_there": was_there})
        if not ctx.json:
            print(f"{part:<10}{name}{' (was there already)' if was_there else ''}", flush=True)
    if ctx.json:
        print_json(results)
    return 0


def _own_arch() -> Arch:
    from sporevm.engine.doctor import host_arch

    return host_arch()


def _kernel(ctx: Context, arch: Arch) -> Made:
    from sporevm.image.kernel import ensure_kernel, list_kernels

    before = {kernel.name for kernel in list_kernels(ctx.layout)}
    with _Shown(ctx) as shown:
        kernel = asyncio.run(ensure_kernel(ctx.layout, arch, progress=shown.step))
    return kernel.name, kernel.name in before


def _rootfs(ctx: Context, arch: Arch) -> Made:
    from sporevm.image.base import base_name, ensure_base
    from sporevm.image.store import ImageStore

    before = {image.id for image in ImageStore(ctx.layout).list()}
    with _Shown(ctx) as shown:
        image = asyncio.run(ensure_base(ctx.layout, arch, shown.step))
    return f"{base_name(arch)} {image.id[:12]}", image.id in before


def _template(ctx: Context, arch: Arch) -> Made:
    from sporevm.cli.client import call
    from sporevm.image.base import base_name

    before = {view.key for view in call(ctx, lambda client: client.templates.list())}
    view = template.build(ctx, arch=arch.value, image=base_name(arch))
    return view.key, view.key in before


class _Shown(Ticking):
    """Every step is shown, also a short one: this is what the user waits for."""

    def __init__(self, ctx: Context) -> None:
        super().__init__(ctx.progress(verbose=True))


_MAKERS: dict[str, Callable[[Context, Arch], Made]] = {
    "kernel": _kernel,
    "rootfs": _rootfs,
    "template": _template,
}

VERBS = {"setup": Verb(_run, _options, EXAMPLES, notes=NOTES)}
