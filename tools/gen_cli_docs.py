"""Write docs/cli.md from the command line's own help. `--check` only compares."""

from __future__ import annotations

import sys
from pathlib import Path

from sporevm.cli.main import load, overview
from sporevm.cli.verbs import ALIASES, ENTRIES

PAGE = Path(__file__).resolve().parents[1] / "docs" / "cli.md"

_HEAD = """\
# The command line

Generated from the program's own help by `tools/gen_cli_docs.py`; do not edit.

```text
{overview}```

## In general

* **Exit status.** 0: done. 2: wrong use. 1: any other failure. `run`, `exec` and `shell` end with
  the command's own status; 128+N if signal N ended it; 124 after `--timeout`; 126 and 127 if it
  can't be executed or found in the guest; 125 if the VM, its agent or the engine failed; 130 if it
  was interrupted before the command ran.
* **Errors** are one line, `spore: what went wrong`, and mostly a second one that says what to do,
  both on standard error. `--debug` shows a traceback.
* **`--json`** prints JSON on standard output, an error too, as
  `{{"error": {{"code", "message", "hint", "details"}}}}`. `code` is stable; scripts may rely on it.
* **Progress** of anything that takes over half a second is shown on standard error: one line that
  is drawn again on a terminal, a line for each step in a pipe, nothing with `-q`.
* **Signals.** `run`, `exec` and `shell` pass INT, TERM, QUIT, USR1 and USR2 on to the command, each
  time. When the terminal goes away (HUP), so does the command.
* **Standard input** reaches a command only with `-i`; otherwise it reads nothing.
* **Environment.** `SPORE_HOME`: where everything is kept. `NO_COLOR`: no colours. `COLUMNS`: the
  width of the terminal. Nothing else is read.
* **Other names:** {aliases}.
"""


def page() -> str:
    aliases = ", ".join(f"`{alias}` is `{name}`" for alias, name in ALIASES.items())
    parts = [_HEAD.format(overview=overview(), aliases=aliases)]
    for entry in ENTRIES.values():
        help_text = load(entry).parser(entry).format_help()
        parts.append(f"## spore {entry.name}\n\n```text\n{help_text}```\n")
    return "\n".join(parts)


def main() -> int:
    text = page()
    if "--check" not in sys.argv[1:]:
        PAGE.write_text(text)
        return 0
    if PAGE.exists() and PAGE.read_text() == text:
        return 0
    print(f"{PAGE.name} is out of date: run tools/gen_cli_docs.py", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
