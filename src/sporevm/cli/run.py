"""`spore run`."""

from __future__ import annotations

from argparse import Namespace
from typing import cast

from sporevm.cli import foreground, options
from sporevm.cli.context import Context
from sporevm.cli.parser import Parser, Verb
from sporevm.errors import NotFound, UsageError

DEFAULT_IMAGE = "base"
#: Commands of images that end at once without a terminal or input.
_SHELLS = ("sh", "bash", "ash", "dash", "zsh")

EXAMPLES = (
    ("spore run -- uname -a", "one command in a fresh microVM, gone when it ends"),
    ("spore run -it", "a shell to try things in"),
    ("cat main.py | spore run -i -- python3 -", "run a script from standard input"),
    ("spore run -m 2G -c 2 --timeout 1m IMAGE make test", "with more of the machine, for a minute"),
    ("spore run -d --name box && spore exec box -- ls /", "a sandbox that waits for commands"),
)
NOTES = """\
IMAGE is 'base' if it is left out. Without a COMMAND the image's own runs; -t alone gives a shell;
-d alone gives a sandbox that waits for `spore exec`. A shell as the image's own command counts as
none unless there is -i or -t.

Exit status: the command's own; 128+N if signal N ended it; 124 after --timeout; 126 and 127 if it
can't be executed or found; 125 if the VM or the engine failed; 2 for wrong use; 1 for the rest."""


def _options(parser: Parser) -> None:
    options.add_process(parser)
    add = parser.add_argument
    add("-d", "--detach", action="store_true", help="run in the background and print the id")
    add("--name", default="", metavar="NAME", help="name the sandbox (made up if left out)")
    add(
        "--rm",
        action="store_true",
        help="remove the sandbox when the command ends (always so for one without a name or -d)",
    )
    add("-m", "--memory", default="", metavar="SIZE", help="memory, like 512M or 2G (default 512M)")
    add("-c", "--cpus", type=int, metavar="N", help="virtual CPUs (default 1)")
    add("--disk", default="", metavar="SIZE", help="size of the writable disk (default 10G)")
    add("--ttl", default="", metavar="TIME", help="remove the sandbox after this time, like 1h")
    add("--hostname", default="", metavar="NAME", help="the guest's host name")
    add("-l", "--label", action="append", default=[], metavar="K=V", help="a label; repeatable")
    add("--vmm", default="", metavar="NAME", help="auto or qemu (default auto)")
    add("--arch", default="", metavar="ARCH", help="x86_64 or aarch64 (default: this machine's)")
    options.add_quiet(parser)
    options.add_json(parser)


def _run(args: Namespace, ctx: Context) -> int:
    image = args.operands[0] if args.operands else DEFAULT_IMAGE
    _check(args)
    argv = args.command or _own_command(ctx, image, args)
    sandbox = _sandbox(args, image)
    command = options.command(args, argv) if argv else None
    if args.detach:
        return _start(ctx, sandbox, command)
    if command is None:
        raise UsageError(
            "no command given", hint="put it after --, like: spore run -- ls / (or use -it, or -d)"
        )
    return foreground.play(ctx, "/v1/run", {"type": "run", "sandbox": sandbox}, command)


def _check(args: Namespace) -> None:
    if args.detach and (args.interactive or args.tty):
        raise UsageError("-d can't go together with -i or -t", hint="leave one of them out")
    if args.detach and args.timeout and not args.command:
        raise UsageError("--timeout limits a command, and there is none", hint="use --ttl")


def _sandbox(args: Namespace, image: str) -> dict[str, object]:
    """An api.models.CreateBody."""
    body: dict[str, object] = {
        "image": image,
        "name": args.name,
        "cpus": args.cpus,
        "vmm": args.vmm,
        "arch": args.arch,
        "hostname": args.hostname,
        "workdir": args.workdir,
        "user": args.user,
        "env": options.environment(args.env, args.env_file),
        "labels": options.pairs(args.label, what="label"),
        "auto_remove": args.rm or not (args.name or args.detach),
    }
    if args.memory or args.disk or args.ttl:
        from sporevm import spec

        if args.memory:
            body["memory_mib"] = spec.parse_memory(args.memory)
        if args.disk:
            body["disk_bytes"] = spec.parse_size(args.disk, what="disk")
        if args.ttl:
            body["ttl"] = spec.parse_duration(args.ttl, what="--ttl")
    return options.without_empty(body)


def _own_command(ctx: Context, image: str, args: Namespace) -> list[str]:
    """The image's own command, a shell for -t, or nothing."""
    from sporevm.cli.client import call

    try:
        config = call(ctx, lambda client: client.images.inspect(image)).config
    except NotFound:
        # The default image is made on first use; what is really missing, the run itself reports.
        config = {}
    found = [*_words(config.get("Entrypoint")), *_words(config.get("Cmd"))]
    only_a_shell = len(found) == 1 and found[0].rpartition("/")[2] in _SHELLS
    if found and not (only_a_shell and not (args.interactive or args.tty)):
        return found
    return list(foreground.SHELL) if args.tty else []


def _words(value: object) -> list[str]:
    if isinstance(value, str):
        return ["/bin/sh", "-c", value]
    return [str(word) for word in cast("list[object]", value or [])]


def _start(ctx: Context, sandbox: dict[str, object], command: dict[str, object] | None) -> int:
    import msgspec

    from sporevm.api.models import CreateBody
    from sporevm.cli.client import call
    from sporevm.cli.output import print_json
    from sporevm.cli.progress import Ticking

    try:
        body = msgspec.convert({**sandbox, "command": command}, CreateBody)
    except msgspec.ValidationError as error:
        raise UsageError(str(error)) from error
    with Ticking(ctx.progress()) as ticking:
        view = call(
            ctx,
            lambda client: client.create(
                body, on_progress=lambda news: ticking.step(news.step, news.done, news.total)
            ),
        )
    if ctx.json:
        print_json(view)
    else:
        print(view.id)
    return 0


VERBS = {"run": Verb(_run, _options, EXAMPLES, notes=NOTES)}
