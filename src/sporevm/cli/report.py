"""Errors, as a person or a script gets them."""

from __future__ import annotations

import json
import sys

from sporevm.errors import SporeError


def report(error: SporeError, *, as_json: bool) -> int:
    """Print `error` as one line and a hint, or as JSON. Returns the exit status it stands for."""
    if as_json:
        body = {"code": error.code, "message": error.message, "hint": error.hint}
        print(json.dumps({"error": {**body, "details": error.details()}}, default=str), flush=True)
        return error.exit_code
    sys.stdout.flush()
    print(f"spore: {_one_line(error.message)}", file=sys.stderr)
    if error.hint:
        print(f"  {_one_line(error.hint)}", file=sys.stderr)
    return error.exit_code


def _one_line(text: str) -> str:
    """A guest may have chosen parts of a message: nothing in it may steer the terminal."""
    return "".join(c if c.isprintable() else " " for c in text).strip()
