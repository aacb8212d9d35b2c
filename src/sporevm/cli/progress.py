"""Progress of anything that may take over a second, on standard error.

On a terminal: one line that is drawn again, with a spinner or a bar and the time, and that is gone
when the work is done. In a pipe or a file: `step ... done (2.1 s)`, one line for a step. With -q:
nothing. A step that ends before it could be seen is not shown, unless it was asked for.
"""

from __future__ import annotations

import time
from types import TracebackType
from typing import IO

#: Seconds before a step is worth a line.
PATIENCE = 0.5
#: Seconds between two drawings.
FRAME = 0.1
_SPINNER = "|/-\\"
_BAR = 24


class Progress:
    """Shows one step at a time. Every method may be called from one thread at a time."""

    def __init__(
        self, stream: IO[str], *, quiet: bool = False, terminal: bool = False, verbose: bool = False
    ) -> None:
        """`verbose`: show every step, however short, and leave a line for each."""
        self._stream = stream
        self._quiet = quiet
        self._terminal = terminal
        self._verbose = verbose
        self._step = ""
        self._begun = 0.0
        self._part = (0.0, 0.0)
        self._shown = False
        self._frame = 0

    @property
    def active(self) -> bool:
        """Is a step under way that wants `tick` to be called?"""
        return bool(self._step) and not self._quiet

    def step(self, name: str, done: float = 0, total: float = 0) -> None:
        """`name` is being done: a new step, or news of the one under way."""
        if name != self._step:
            self.done()
            self._step, self._begun, self._shown = name, time.monotonic(), False
        self._part = (done, total)
        self.tick()

    def tick(self) -> None:
        """Draw again, if it is time to."""
        if not self.active:
            return
        elapsed = time.monotonic() - self._begun
        if elapsed < PATIENCE and not self._verbose:
            return
        if self._terminal:
            self._frame += 1
            self._write(f"\r\x1b[K{self._line(elapsed)}")
        elif not self._shown:
            self._write(f"{self._step} ...")
        self._shown = True

    def done(self, result: str = "done") -> None:
        """The step under way has ended."""
        step, self._step = self._step, ""
        if not step or self._quiet or not self._shown:
            return
        elapsed = time.monotonic() - self._begun
        if not self._terminal:
            self._write(f" {result} ({elapsed:.1f} s)\n")
        elif self._verbose:
            self._write(f"\r\x1b[K{step}: {result} ({elapsed:.1f} s)\n")
        else:
            self._write("\r\x1b[K")

    def failed(self) -> None:
        self.done("failed")

    def note(self, text: str) -> None:
        """A line of its own."""
        self.done()
        if not self._quiet:
            self._write(f"{text}\n")

    def _line(self, elapsed: float) -> str:
        done, total = self._part
        if total > 0:
            share = min(max(done / total, 0.0), 1.0)
            full = int(share * _BAR)
            bar = f"[{'#' * full}{'.' * (_BAR - full)}] {share:4.0%}"
            return f"{self._step}  {bar}  {elapsed:.1f} s"
        return f"{_SPINNER[self._frame % len(_SPINNER)]} {self._step}  {elapsed:.1f} s"

    def _write(self, text: str) -> None:
        try:
            self._stream.write(text)
            self._stream.flush()
        except OSError:
            # Nobody can see it any more. The work goes on.
            self._quiet = True


class Ticking:
    """Draws a Progress from a thread while the caller works; a failure is shown as one."""

    def __init__(self, progress: Progress) -> None:
        import threading

        self._progress = progress
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._draw, name="progress", daemon=True)

    def __enter__(self) -> Ticking:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()
        if kind is None:
            self._progress.done()
        else:
            self._progress.failed()

    def step(self, name: str, done: float = 0, total: float = 0) -> None:
        with self._lock:
            self._progress.step(name, done, total)

    def note(self, text: str) -> None:
        with self._lock:
            self._progress.note(text)

    def _draw(self) -> None:
        while not self._stop.wait(FRAME):
            with self._lock:
                self._progress.tick()
