"""The verbs, in the order and groups `spore --help` lists them.

A table of strings only: the module behind a verb is imported when that verb is used, so a new verb
costs the others nothing. A module named here has a dictionary `VERBS` with a `parser.Verb` for the
verb `x`, or for `x` of the verb `group x`.
"""

from __future__ import annotations


class Entry:
    """One line of the table. `name` has a space for a verb of a group, like `template ls`."""

    __slots__ = ("group", "module", "name", "operands", "summary", "takes_command")

    def __init__(
        self,
        name: str,
        group: str,
        module: str,
        operands: str,
        summary: str,
        *,
        takes_command: bool = False,
    ) -> None:
        self.name = name
        self.takes_command = takes_command
        self.group = group
        self.module = f"sporevm.cli.{module}"
        self.operands = operands
        self.summary = summary

    @property
    def key(self) -> str:
        """The verb's name inside its module."""
        return self.name.rpartition(" ")[2]


RUNNING = "Run code"
WATCHING = "Look at sandboxes"
ENDING = "End sandboxes"
KEEPING = "Images and templates"
MACHINE = "This machine"

_TABLE = (
    Entry(
        "run",
        RUNNING,
        "run",
        "[IMAGE] [--] [COMMAND [ARG...]]",
        "Run a command in a new sandbox",
        takes_command=True,
    ),
    Entry(
        "exec",
        RUNNING,
        "exec",
        "BOX [--] COMMAND [ARG...]",
        "Run a command in a sandbox",
        takes_command=True,
    ),
    Entry("shell", RUNNING, "shell", "BOX", "Open a shell in a sandbox"),
    Entry("ls", WATCHING, "ls", "", "List sandboxes"),
    Entry("inspect", WATCHING, "inspect", "REF...", "Show all that is known, as JSON"),
    Entry("logs", WATCHING, "logs", "BOX", "Show the output of a sandbox's main process"),
    Entry("wait", WATCHING, "wait", "BOX...", "Wait until sandboxes end; print their exit codes"),
    Entry("stop", ENDING, "stop", "BOX...", "Shut sandboxes down"),
    Entry("kill", ENDING, "kill", "BOX...", "End sandboxes now, or signal their main process"),
    Entry("rm", ENDING, "rm", "BOX...", "Remove sandboxes"),
    Entry("image ls", KEEPING, "image", "", "List images"),
    Entry("image inspect", KEEPING, "image", "IMAGE...", "Show images as JSON"),
    Entry(
        "image import", KEEPING, "image", "NAME DIR|TAR|-", "Make an image of a directory or tar"
    ),
    Entry("image rm", KEEPING, "image", "IMAGE...", "Remove images"),
    Entry("template ls", KEEPING, "template", "", "List templates"),
    Entry("template build", KEEPING, "template", "", "Build a template before it is needed"),
    Entry("template rm", KEEPING, "template", "KEY...", "Remove templates"),
    Entry("doctor", MACHINE, "doctor", "", "Check this machine, and say what mends it"),
    Entry("setup", MACHINE, "setup", "[PART...]", "Make kernel, base image and template"),
    Entry("daemon status", MACHINE, "daemon", "", "Show the engine"),
    Entry("daemon stop", MACHINE, "daemon", "", "Stop the engine; sandboxes go on running"),
    Entry("daemon restart", MACHINE, "daemon", "", "Stop the engine and start it again"),
    Entry("daemon logs", MACHINE, "daemon", "", "Show the engine's log"),
    Entry("completion", MACHINE, "completion", "bash|zsh|fish", "Print a completion script"),
    Entry("version", MACHINE, "version", "", "Show versions"),
)

ENTRIES = {entry.name: entry for entry in _TABLE}
ALIASES = {"ps": "ls", "list": "ls", "remove": "rm", "setup preflight": "doctor"}
#: First words that need a second one.
GROUPS = tuple(dict.fromkeys(entry.name.split()[0] for entry in _TABLE if " " in entry.name))


def find(words: list[str]) -> tuple[Entry, int] | None:
    """The entry for the verb at the head of `words`, and how many words it took."""
    for count in (2, 1):
        name = " ".join(words[:count])
        entry = ENTRIES.get(ALIASES.get(name, name))
        if entry is not None and len(words) >= count:
            return entry, count
    return None
