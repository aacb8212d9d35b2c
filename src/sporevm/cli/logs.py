"""`spore logs`."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections import deque
from datetime import datetime
from typing import TYPE_CHECKING, BinaryIO

from sporevm.cli.client import Client, call
from sporevm.cli.context import Context
from sporevm.cli.parser import Parser, Verb
from sporevm.errors import UsageError

if TYPE_CHECKING:
    from sporevm.api.models import LogRecord

EXAMPLES = (
    ("spore logs box", "all it printed; errors go to standard error"),
    ("spore logs -f --tail 20 box", "the last 20 lines, then what comes"),
    ("spore logs --timestamps box", "with the time of each line"),
)


def _options(parser: Parser) -> None:
    add = parser.add_argument
    add("box", metavar="BOX")
    add("-f", "--follow", action="store_true", help="go on until the process ends")
    add("-n", "--tail", type=int, metavar="N", help="only the last N lines")
    add("-t", "--timestamps", action="store_true", help="put the time before each line")


def _run(args: Namespace, ctx: Context) -> int:
    if args.tail is not None and args.tail < 0:
        raise UsageError("--tail: must not be negative")
    writer = Writer(timestamps=args.timestamps)

    async def show(client: Client) -> None:
        records = client.logs(args.box, follow=args.follow, tail=args.tail)
        if args.tail is None or args.follow:
            async for record in records:
                writer.write(record)
            return
        # The engine keeps pieces of output, not lines: it may send a little more than asked for.
        for record in last_lines([record async for record in records], args.tail):
            writer.write(record)

    call(ctx, show)
    writer.finish()
    return 0


def last_lines(records: list[LogRecord], count: int) -> list[LogRecord]:
    """The end of `records` that holds the last `count` lines, cut at the start of a line."""
    kept: deque[LogRecord] = deque()
    if count == 0:
        return []
    ends = 0
    for position, record in enumerate(reversed(records)):
        data = record.data
        # A newline at the very end closes the last line and starts none.
        stop = len(data) - 1 if position == 0 and data.endswith(b"\n") else len(data)
        while (found := data.rfind(b"\n", 0, stop)) >= 0:
            ends += 1
            stop = found
            if ends == count:
                record.data = data[found + 1 :]
                kept.appendleft(record)
                return list(kept)
        kept.appendleft(record)
    return list(kept)


class Writer:
    """Writes records to standard output and error, whole lines only where times are put before."""

    def __init__(self, *, timestamps: bool) -> None:
        self._timestamps = timestamps
        self._open: dict[int, bool] = {1: False, 2: False}

    def write(self, record: LogRecord) -> None:
        stream = _stream(record.channel)
        if not self._timestamps:
            stream.write(record.data)
            stream.flush()
            return
        stamp = _stamp(record.time)
        for line in record.data.splitlines(keepends=True):
            if not self._open[record.channel]:
                stream.write(stamp)
            stream.write(line)
            self._open[record.channel] = not line.endswith(b"\n")
        stream.flush()

    def finish(self) -> None:
        for channel, is_open in self._open.items():
            if is_open:
                _stream(channel).write(b"\n")
                _stream(channel).flush()


def _stream(channel: int) -> BinaryIO:
    return sys.stderr.buffer if channel == 2 else sys.stdout.buffer


def _stamp(when: float) -> bytes:
    return (
        datetime.fromtimestamp(when).astimezone().isoformat(timespec="milliseconds").encode() + b" "
    )


VERBS = {"logs": Verb(_run, _options, EXAMPLES)}
